"""Convert the localizer session that comes with pyhrf.

Regional means over the voxels of each parcel, mean removed. The onsets are in a table of lines
`session "condition" onset duration amplitude`. Needs nibabel (comes with nilearn).
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import shlex

import numpy as np
from _common import arguments, save


def main() -> None:
    """Average the voxels of each parcel and read the onsets."""
    import nibabel

    given = arguments(
        __doc__,
        bold="4-D image, such as subj0_bold_session0.nii.gz",
        parcels="image of region labels on the same grid, 0 = outside",
        paradigm="table of onsets, paradigm_loc.csv",
    )
    volume = np.asarray(nibabel.load(given.bold).dataobj, dtype=np.float64)
    parcels = np.asarray(nibabel.load(given.parcels).dataobj).astype(int)
    labels = np.unique(parcels[parcels > 0])
    bold = np.stack([volume[parcels == label].mean(axis=0) for label in labels], axis=1)
    rows = [shlex.split(line) for line in given.paradigm.read_text().splitlines() if line.strip()]
    save(
        given.out,
        "fmri_localizer",
        bold=(bold - bold.mean(axis=0)).astype(np.float32),
        roi_label=labels.astype(np.int64),
        tr_seconds=np.array(2.4),
        onset_seconds=np.array([float(row[2]) for row in rows]),
        condition=np.array([row[1] for row in rows]),
    )


if __name__ == "__main__":
    main()
