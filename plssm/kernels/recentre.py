"""Quadratic observation terms around a path, rewritten around zero."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._threads import over_trials
from plssm.kernels._vector_blocks import subtract_rows
from plssm.kernels.chain import checked

__all__ = ["recentre", "recentre_plain"]


@compiled
def _recentre_trials(gradient, curvature, path, score, value, steps, first, last, size):
    """Writes g + R z, and adds up the values at zero; flat arrays."""
    m = len(size)
    minus, curved = np.zeros(m), np.zeros(m)
    for b in range(first, last):
        total = 0.0
        for t in range(steps):
            z = (b * steps + t) * m
            for i in range(m):
                minus[i] = -path[z + i]
                curved[i] = 0.0
            subtract_rows(curved, 0, minus, 0, curvature, z * m, size)
            for i in range(m):
                score[z + i] = gradient[z + i] + curved[i]
                total -= (gradient[z + i] + 0.5 * curved[i]) * path[z + i]
        value[b] = total


def recentre(
    gradient: np.ndarray, curvature: np.ndarray, path: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""Coefficients around zero of a quadratic that is known around a path.

    .. math::
        \sum_t g_t^\top (x_t - z_t) - \tfrac12 (x_t - z_t)^\top R_t (x_t - z_t)
        = c + \sum_t q_t^\top x_t - \tfrac12 x_t^\top R_t x_t

    Args:
        gradient: g, [B, T, M].
        curvature: R, [B, T, M, M], symmetric.
        path: z, [B, T, M].

    Returns:
        q [B, T, M] and c [B].

    Raises:
        ValueError: If the shapes do not fit together.
    """
    path = np.require(path, np.float64, "C")
    trials, steps, m = path.shape
    gradient = checked("gradient", gradient, path.shape)
    curvature = checked("curvature", curvature, (*path.shape, m))
    score, value = np.empty(path.shape), np.empty(trials)
    flat = (x.reshape(-1) for x in (gradient, curvature, path, score, value))
    length = np.full(trials, steps)
    over_trials(_recentre_trials, (*flat, steps), length=length, m=m)
    return score, value


def recentre_plain(
    gradient: np.ndarray, curvature: np.ndarray, path: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the same as `recentre` with plain arrays."""
    curved = np.einsum("btij,btj->bti", curvature, path)
    return gradient + curved, -((gradient + 0.5 * curved) * path).sum((1, 2))
