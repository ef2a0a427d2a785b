"""Convert the delayed-alternation recording of the PLRNNstsp repository.

The MATLAB file holds a cell array `SCMall` over units, each [trial, bin] (smoothed rates),
`TrType` [trial] (2 left, 3 right) and `meR` [unit] (mean rates).
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save
from scipy.io import loadmat


def main() -> None:
    """Stack the units into [trial, bin, unit]."""
    given = arguments(__doc__, source="del_alt_11_26_KDE05.mat")
    mat = loadmat(given.source, squeeze_me=True)
    save(
        given.out,
        "acc_delayed_alternation",
        rates_hz=np.stack(list(mat["SCMall"]), axis=-1).astype(np.float32),
        trial_type=np.ravel(mat["TrType"]).astype(np.uint8),
        mean_rate_hz=np.ravel(mat["meR"]).astype(np.float64),
        bin_seconds=np.array(0.5),
    )


if __name__ == "__main__":
    main()
