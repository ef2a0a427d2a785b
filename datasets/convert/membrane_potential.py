"""Convert the voltage trace of the continuous-time-PLRNN repository.

An array [sample, delay] is repacked as it is; a single trace [sample] is embedded with delays of
0, 13, ..., 65 samples.
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save

DELAYS = np.arange(6) * 13


def main() -> None:
    """Embed if needed, z-score, and save."""
    given = arguments(__doc__, source="array .npy")
    values = np.squeeze(np.load(given.source, allow_pickle=False)).astype(np.float64)
    if values.ndim == 1:
        values = (values - values.mean()) / values.std()
        length = len(values) - DELAYS[-1]
        values = np.stack([values[delay : delay + length] for delay in DELAYS], axis=1)
    save(given.out, "membrane_potential", potential_embedded=values.astype(np.float32))


if __name__ == "__main__":
    main()
