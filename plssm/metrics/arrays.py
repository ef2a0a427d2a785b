"""How the measures of single entries read what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from plssm.errors import DataError

__all__ = ["as_floats", "observed", "same_shape"]


def as_floats(x: Any, role: str) -> np.ndarray:
    """An array, a tensor, a number or a list of trials as one float64 array.

    Args:
        x: Numbers, numpy or torch; the arrays of a list are put one after another.
        role: Name of the argument, for the error message.

    Returns:
        The array; a copy only where one is needed.

    Raises:
        DataError: When it is not numeric, or trials differ in more than their length.
    """
    parts = x if isinstance(x, (list, tuple)) and len(x) and hasattr(x[0], "shape") else None
    try:
        if parts is None:
            return _plain(x)
        return np.concatenate([_plain(part) for part in parts])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{role} is not an array of numbers",
            got=type(x).__name__ if parts is None else f"{len(parts)} arrays: {error}",
            wanted="an array, or a list of trials that agree after the first axis",
        ) from error


def _plain(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    return np.asarray(x, dtype=np.float64)


def same_shape(x: np.ndarray, like: np.ndarray, role: str) -> np.ndarray:
    """Broadcast an array to the shape of the truth.

    Args:
        x: The array.
        like: The truth.
        role: Name of the argument, for the error message.

    Raises:
        DataError: When it does not broadcast.
    """
    try:
        return np.broadcast_to(x, like.shape)
    except ValueError as error:
        raise DataError(
            f"{role} does not fit the truth", got=x.shape, wanted=f"{like.shape}"
        ) from error


def observed(truth: np.ndarray, role: str = "truth") -> np.ndarray:
    """Which entries of the truth are there (NaN = missing).

    Args:
        truth: Any shape.
        role: Name of the argument, for the error message.

    Raises:
        DataError: When none is, or an entry is infinite.
    """
    seen = ~np.isnan(truth)
    if not seen.any():
        raise DataError(f"{role} has no observed entry", got=f"{truth.size} entries, all NaN")
    if np.isinf(truth).any():
        raise DataError(f"{role} has infinite entries", wanted="numbers, or NaN where missing")
    return seen
