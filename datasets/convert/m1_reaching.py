"""Convert a recording of the DAD repository.

The demo files hold `Ytr`, `Yte` (counts [bin, unit]), `Xtr`, `Xte` (velocity [bin, axis]) and
`Ttr`, `Tte` (target of each bin); `tr` is the training part.
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save
from scipy.io import loadmat


def main() -> None:
    """Rename the arrays and number the targets from zero."""
    given = arguments(__doc__, source="MATLAB file with Ytr, Xtr, Ttr, Yte, Xte, Tte")
    mat = loadmat(given.source, squeeze_me=True)
    targets = np.unique(np.concatenate([mat["Ttr"], mat["Tte"]]))
    arrays = {}
    for part, ending in (("train", "tr"), ("test", "te")):
        arrays[f"counts_{part}"] = np.round(mat[f"Y{ending}"]).astype(np.uint8)
        arrays[f"velocity_{part}"] = mat[f"X{ending}"][:, :2].astype(np.float32)
        arrays[f"target_{part}"] = np.searchsorted(targets, mat[f"T{ending}"]).astype(np.uint8)
    save(given.out, "m1_reaching", **arrays)


if __name__ == "__main__":
    main()
