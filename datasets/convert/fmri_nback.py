"""Convert the n-back recordings of the mmPLRNN repository.

The MATLAB file holds a cell array `Data` of subjects, each a struct with cell arrays over runs:
`X` [region, scan], `C_` [class, scan] (one-hot stage) and `Inp` [input, scan].
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save
from scipy.io import loadmat

LABELS = ("rest", "instruction", "crt", "cdrt", "cmt")
INPUTS = ("triangle", "square", "instr_crt", "instr_cdrt", "instr_cmt")


def main() -> None:
    """Stack subjects and runs."""
    given = arguments(__doc__, source="NBKO_PLRNN_dataset.mat or its RestReference variant")
    subjects = loadmat(given.source, squeeze_me=True, struct_as_record=False)["Data"]
    bold = np.array([[run.T for run in subject.X] for subject in subjects])
    stage = np.array([[run.argmax(axis=0) for run in subject.C_] for subject in subjects])
    inputs = np.array([[run.T for run in subject.Inp] for subject in subjects])
    save(
        given.out,
        "fmri_nback",
        bold=bold.astype(np.float32),
        inputs=inputs.astype(np.uint8),
        labels=stage.astype(np.uint8),
        label_names=np.array(LABELS),
        input_names=np.array(INPUTS),
        subject=np.arange(len(subjects)),
        tr_seconds=np.array(3.0),
    )


if __name__ == "__main__":
    main()
