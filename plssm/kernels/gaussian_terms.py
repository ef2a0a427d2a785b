"""Log-density and gradient of linear Gaussian observations in one pass over the samples."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["gaussian_terms"]

_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads


@compiled
def _terms(y, mask, states, weight, weight_t, bias, precision, known, squares, counts, score):
    """Goes through the samples in pieces that stay in the cache."""
    trials, samples, channels = y.shape
    piece = max(1, _SMALL // weight.size)
    for b in range(trials):
        for start in range(0, samples, piece):
            stop = min(start + piece, samples)
            weighted = np.dot(states[b, start:stop], weight_t)
            for i in range(stop - start):
                t = start + i
                for c in range(channels):
                    if not mask[b, t, c]:
                        weighted[i, c] = 0.0
                        continue
                    r = y[b, t, c] - bias[c] - weighted[i, c]
                    if known.size:
                        r -= known[b, t, c]
                    weighted[i, c] = r * precision[c]
                    squares[b] += r * weighted[i, c]
                    counts[b, c] += 1
            score[b, start:stop] = np.dot(weighted, weight)


def gaussian_terms(
    y: np.ndarray,
    mask: np.ndarray,
    states: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    precision: np.ndarray,
    *,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Sums of squares, numbers of observations and gradient.

    .. math::
        r = y - W z - b - k, \qquad
        \sum_{t,c} \gamma_c r_{tc}^2, \qquad q_t = W^\top (\gamma \odot r_t)

    over observed entries. Runs on one thread: the work is limited by memory.

    Args:
        y: [B, n, N].
        mask: [B, n, N], True where observed.
        states: [B, n, M]; may be NaN where no channel of a sample is observed.
        weight: W, [N, M].
        bias: b, [N].
        precision: gamma, [N], inverse noise variances.
        known: k, [B, n, N], known part of the predictor, as from nuisance regressors.

    Returns:
        Weighted sums of squares [B], numbers of observed entries [B, N], and q [B, n, M].
    """
    y, states, weight, bias, precision = (
        np.require(x, np.float64, "CW") for x in (y, states, weight, bias, precision)
    )
    known = np.zeros((0, 0, 0)) if known is None else np.require(known, np.float64, "CW")
    trials, samples, channels = y.shape
    squares, counts = np.zeros(trials), np.zeros((trials, channels), dtype=np.int64)
    score = np.empty((trials, samples, weight.shape[1]))
    _terms(
        y,
        np.require(mask, np.bool_, "CW"),
        states,
        weight,
        np.ascontiguousarray(weight.T),
        bias,
        precision,
        known,
        squares,
        counts,
        score,
    )
    return squares, counts, score
