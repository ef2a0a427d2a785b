"""Memory for results that are soon forgotten, used again and again.

Fresh memory comes from the system page by page at its first touch, which can take longer than
what is computed in it.
"""

from __future__ import annotations

import threading

import numpy as np

__all__ = ["scratch"]

_LARGEST = 4_000_000  # numbers that are kept; larger memory comes in larger pages
_kept = threading.local()


def scratch(size: int) -> np.ndarray:
    """Uninitialised numbers, valid until the next call in the same thread.

    Args:
        size: How many.

    Returns:
        A contiguous float64 array.
    """
    memory = getattr(_kept, "memory", None)
    if memory is None or memory.size < size:
        memory = np.empty(size)
        if size <= _LARGEST:
            _kept.memory = memory
    return memory[:size]
