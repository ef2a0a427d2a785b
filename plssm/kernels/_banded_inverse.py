"""Selected inverse of a block-banded matrix from its banded Cholesky factor."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["select_banded_inverse"]


@compiled
def _read_column(band, t, lower, below):
    """Unpacks block column t of the factor: the diagonal block and what lies below it."""
    m = lower.shape[0]
    for i in range(m):
        column = band[t * m + i]
        for k in range(m):
            lower[k, i] = column[k - i] if k >= i else 0.0
        for k in range(below.shape[0]):
            below[k, i] = column[m + k - i]


@compiled
def _invert_lower(lower, out):
    """Writes the inverse of a lower triangular block."""
    m = lower.shape[0]
    out[:] = 0.0
    for k in range(m):
        out[k, k] = 1.0
        for i in range(k):
            for j in range(i + 1):
                out[k, j] -= lower[k, i] * out[i, j]
        for j in range(k + 1):
            out[k, j] /= lower[k, k]


@compiled
def select_banded_inverse(band, out):
    """Writes the blocks Cov(z_t, z_{t+l}), l = 0..w, of one trial.

    Args:
        band: [T M, (w + 1) M], column j of the factor L from its diagonal downwards.
        out: [T, w + 1, M, M].
    """
    steps, lags, m = out.shape[0], out.shape[1], out.shape[2]
    wide = (lags - 1) * m
    lower, inverse = np.zeros((m, m)), np.zeros((m, m))
    below = np.zeros((wide, m))
    window, following = np.zeros((wide, wide)), np.zeros((wide, wide))
    for t in range(steps - 1, -1, -1):
        _read_column(band, t, lower, below)
        _invert_lower(lower, inverse)
        p = np.dot(inverse.T, inverse)
        if wide == 0:
            out[t, 0] = p
            continue
        gain = np.dot(below, inverse)
        cross = -np.dot(window, gain)
        p -= np.dot(gain.T, cross)
        for i in range(m):
            for j in range(m):
                out[t, 0, i, j] = 0.5 * (p[i, j] + p[j, i])
                for lag in range(1, lags):
                    out[t, lag, i, j] = cross[(lag - 1) * m + j, i]
        following[:m, :m] = out[t, 0]
        following[m:, :m] = cross[: wide - m]
        following[:m, m:] = cross[: wide - m].T
        following[m:, m:] = window[: wide - m, : wide - m]
        window, following = following, window
