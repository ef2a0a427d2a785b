"""Convert the example subject of the ContPLRNN repository.

The MATLAB file holds `X` [region, scan], `Inp` [input, scan], `rp` [scan, 6] (motion) and the
filter matrix `H`; names of the regions and the haemodynamic response are looked for under the
names below.
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save
from scipy.io import loadmat


def main() -> None:
    """Transpose to [scan, channel]."""
    given = arguments(__doc__, source="Example_winp_206.mat")
    mat = loadmat(given.source, squeeze_me=True)
    names = mat.get("regions", mat.get("names"))
    if names is None:
        names = [f"region {index}" for index in range(len(mat["X"]))]
    save(
        given.out,
        "fmri_nback_subject",
        bold=mat["X"].T.astype(np.float32),
        inputs=mat["Inp"].T.astype(np.uint8),
        motion=mat["rp"].astype(np.float32),
        regions=np.array([str(name) for name in names]),
        hrf=np.ravel(mat["hrf"]).astype(np.float64),
        tr_seconds=np.array(3.0),
    )


if __name__ == "__main__":
    main()
