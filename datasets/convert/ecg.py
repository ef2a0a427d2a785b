"""Convert the delay-embedded electrocardiogram of the GTF-shPLRNN repository.

Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

import numpy as np
from _common import arguments, save


def main() -> None:
    """Repack the array [sample, channel]."""
    given = arguments(__doc__, source="ECG_pecuzal_5d_train.npy")
    values = np.load(given.source, allow_pickle=False)
    save(given.out, "ecg", ecg_embedded=values.astype(np.float32))


if __name__ == "__main__":
    main()
