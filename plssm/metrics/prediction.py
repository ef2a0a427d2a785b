"""Prediction error: how far is a forecast from what happened?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plssm.errors import DataError
from plssm.metrics.measure import Measure

__all__ = ["per_channel", "prediction_error", "squared_errors"]


def prediction_error(
    *,
    truth: Any,
    pred: Any,
    scale: Any = None,
    noise: Any = None,
) -> Measure:
    r"""Mean squared error over origins, trials, steps, channels and observed entries.

    .. math:: E = \frac{1}{n} \sum_{\text{observed}}
        \left( \frac{y - \hat y}{\text{scale}} \right)^2

    With `scale` the standard deviation of the training data, 1 is the error of the training mean
    (climatology). Missing entries (NaN) of the truth are left out; a prediction that is not
    finite where the truth is observed scores +inf.

    Args:
        truth: [T, N] or [origin, step, N], or a list of either (trials); NaN = missing.
        pred: The same shape: the mean of the predictive distribution.
        scale: [N] or a number the errors are divided by; None leaves them in the truth's units.
        noise: [N] or a number, variance of the observation noise; makes the floor. None: the
            floor is 0, the error of a perfect prediction of noise-free data.

    Returns:
        The error with `.floor`, `.settings`, `.per_dimension` [N] (NaN for a channel never
        observed), and `.per_step` [step] for [origin, step, N].

    Raises:
        DataError: Empty input, different shapes, no observed entry, or a scale that is not
            positive.

    References:
        Koppe et al. 2019, Identifying nonlinear dynamical systems via generative recurrent
        neural networks with applications to fMRI, doi:10.1371/journal.pcbi.1007263.
    """
    y, guess = _read(truth, "truth"), _read(pred, "pred")
    if y.shape != guess.shape:
        raise DataError(
            "truth and pred have different shapes",
            got=f"truth {y.shape}, pred {guess.shape}",
            wanted="one prediction per entry",
        )
    if np.isinf(y).any():
        raise DataError("truth has infinite entries", wanted="numbers, or NaN where missing")
    seen = ~np.isnan(y)
    if not seen.any():
        raise DataError("truth has no observed entry", got=f"{y.size} entries, all NaN")
    size = per_channel(scale, y.shape[-1], "scale")
    square = squared_errors(y, guess, size, seen)
    variance = (
        np.zeros(y.shape[-1])
        if noise is None
        else per_channel(noise, y.shape[-1], "noise", zero=True)
    )
    least = np.broadcast_to(variance / size**2, y.shape)[seen].mean()
    return Measure(
        square[seen].mean(),
        floor=float(least),
        settings=_settings(y, seen, scale, noise, size),
        per_step=_mean_over_others(square, seen, 1) if y.ndim == 3 else None,
        per_dimension=_mean_over_others(square, seen, y.ndim - 1),
    )


def _read(x: Any, role: str) -> np.ndarray:
    """Return [T, N] or [origin, step, N]; trials in a list are put one after another."""
    parts = x if isinstance(x, (list, tuple)) and len(x) and hasattr(x[0], "shape") else [x]
    arrays = []
    for part in parts:
        part = part.detach().cpu().numpy() if hasattr(part, "detach") else part
        array = np.asarray(part, dtype=np.float64)
        arrays.append(array[:, None] if array.ndim == 1 else array)
    shapes = {a.shape[1:] for a in arrays}
    if len(shapes) > 1 or arrays[0].ndim not in (2, 3):
        raise DataError(
            f"{role} has the wrong shape",
            got=[a.shape for a in arrays],
            wanted="[T, N] or [origin, step, N], or a list that agrees after the first axis",
        )
    joined = np.concatenate(arrays)
    if joined.size == 0:
        raise DataError(f"{role} is empty", got=joined.shape)
    return joined


def per_channel(x: Any, n: int, role: str, *, zero: bool = False) -> np.ndarray:
    """Return a number or [N] as [N], positive (or zero where allowed)."""
    if x is None:
        return np.ones(n)
    x = x.detach().cpu().numpy() if hasattr(x, "detach") else x
    array = np.asarray(x, dtype=np.float64)
    if array.ndim > 1 or array.size not in (1, n):
        raise DataError(
            f"{role} has the wrong shape", got=array.shape, wanted=f"a number or [{n}]"
        )
    good = np.isfinite(array) & ((array >= 0) if zero else (array > 0))
    if not good.all():
        raise DataError(
            f"{role} is out of range",
            got=array.tolist(),
            wanted="finite, 0 or more" if zero else "finite, greater than 0",
        )
    return np.broadcast_to(array, (n,))


def squared_errors(
    y: np.ndarray, guess: np.ndarray, size: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """Return squared scaled errors: 0 where missing, +inf where the prediction is not finite."""
    finite = np.isfinite(guess)
    with np.errstate(over="ignore"):
        square = ((np.where(seen, y, 0.0) - np.where(finite, guess, 0.0)) / size) ** 2
    return np.where(seen, np.where(finite, square, math.inf), 0.0)


def _mean_over_others(square: np.ndarray, seen: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean over observed entries for each index of one axis; NaN if there are none."""
    others = tuple(i for i in range(square.ndim) if i != axis)
    count = seen.sum(axis=others)
    return np.where(count > 0, square.sum(axis=others) / np.maximum(count, 1), math.nan)


def _settings(y: np.ndarray, seen: np.ndarray, scale: Any, noise: Any, size: np.ndarray) -> dict:
    """Describe the measurement."""
    return {
        "measure": "mean squared error",
        "shape": list(y.shape),
        "observed": int(seen.sum()),
        "missing": int((~seen).sum()),
        "scale": None if scale is None else size.tolist(),
        "floor": "perfect prediction of noise-free data"
        if noise is None
        else "perfect prediction, observation noise left",
    }
