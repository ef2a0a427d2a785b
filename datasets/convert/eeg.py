"""Convert the EEG of the GTF-shPLRNN repository, an array [sample, electrode] at 160 Hz.

Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save


def main() -> None:
    """Repack the array [sample, channel]."""
    given = arguments(__doc__, source="array of 64 electrodes, .npy")
    values = np.load(given.source, allow_pickle=False)
    save(given.out, "eeg", eeg=values.astype(np.float32), rate_hz=np.array(160.0))


if __name__ == "__main__":
    main()
