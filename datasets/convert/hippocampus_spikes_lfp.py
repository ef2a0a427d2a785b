"""Repack the binned hippocampal recording of bioRxiv 828467.

The layout of the original repository is not known here: save its four arrays as .npy files first
(from MATLAB: read them with scipy.io.loadmat), one row per bin.
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save


def main() -> None:
    """Put the four arrays into one file."""
    given = arguments(
        __doc__,
        counts="spike counts [bin, unit]",
        lfp="field-potential features [bin, feature]",
        position="position [bin]",
        speed="speed [bin]",
    )
    save(
        given.out,
        "hippocampus_spikes_lfp",
        counts=np.load(given.counts, allow_pickle=False).astype(np.uint8),
        lfp_features=np.load(given.lfp, allow_pickle=False).astype(np.float32),
        position=np.ravel(np.load(given.position, allow_pickle=False)).astype(np.float32),
        speed=np.ravel(np.load(given.speed, allow_pickle=False)).astype(np.float32),
    )


if __name__ == "__main__":
    main()
