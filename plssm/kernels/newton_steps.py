"""Newton directions of many small problems at a time."""

from __future__ import annotations

import math

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["newton_steps", "newton_steps_plain"]

_FLAT = 1e-200  # curvatures up to here count as none
_NARROW = 1e-14  # smallest curvature for the scaling, relative to the largest of the problem
_SHIFT = 1e-13  # added to the unit diagonal


@compiled(fastmath={"contract"})
def _factor_and_solve(A, x):
    """Solves A x = b in place of b, with the factor in the lower triangle of A; if definite."""
    size = x.size
    for j in range(size):
        pivot = A[j, j]
        for k in range(j):
            pivot -= A[j, k] * A[j, k]
        if not (pivot > 0.0 and pivot < np.inf):
            return False
        A[j, j] = math.sqrt(pivot)
        for i in range(j + 1, size):
            total = A[i, j]
            for k in range(j):
                total -= A[i, k] * A[j, k]
            A[i, j] = total / A[j, j]
    for i in range(size):
        for k in range(i):
            x[i] -= A[i, k] * x[k]
        x[i] /= A[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            x[i] -= A[k, i] * x[k]
        x[i] /= A[i, i]
    return True


@compiled
def _steps(gradient, curvature, step, regular, curved):
    """Goes through the problems."""
    problems, size = gradient.shape
    scale, scaled = np.empty(size), np.empty((size, size))
    for p in range(problems):
        largest = 0.0
        curved[p] = True
        for i in range(size):
            for j in range(size):
                scaled[i, j] = curvature[p, i, j]
            if abs(scaled[i, i]) <= _FLAT:
                slope = abs(gradient[p, i])
                curved[p] = curved[p] and slope == 0.0
                scaled[i, i] = slope if slope > 0.0 else 1.0
            scale[i] = abs(scaled[i, i])
            largest = max(largest, scale[i])
        for i in range(size):
            scale[i] = 1.0 / math.sqrt(max(scale[i], _NARROW * largest))
        for i in range(size):
            for j in range(size):
                scaled[i, j] *= scale[i] * scale[j]
            scaled[i, i] += _SHIFT
            step[p, i] = gradient[p, i] * scale[i]
        regular[p] = _factor_and_solve(scaled, step[p])
        for i in range(size):
            step[p, i] *= scale[i]


def newton_steps(
    gradient: np.ndarray, curvature: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Solves for the Newton step of every problem.

    .. math:: d = D (D H D + \epsilon I)^{-1} D g, \qquad D = \mathrm{diag}(|H|)^{-1/2}

    A coordinate without curvature gets one that moves it by one.

    Args:
        gradient: g, [P, q].
        curvature: H, [P, q, q], symmetric.

    Returns:
        Steps [P, q], of no use where the scaled curvature is not positive definite; whether it
        is, [P]; and whether every coordinate with a gradient has a curvature, [P].
    """
    gradient, curvature = (np.require(x, np.float64, "CW") for x in (gradient, curvature))
    step, problems = np.empty(gradient.shape), len(gradient)
    regular, curved = np.zeros(problems, dtype=np.bool_), np.zeros(problems, dtype=np.bool_)
    _steps(gradient, curvature, step, regular, curved)
    return step, regular, curved


def newton_steps_plain(
    gradient: np.ndarray, curvature: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the same as `newton_steps` with plain arrays; zero steps where it is of no use."""
    size, slope = np.abs(np.diagonal(curvature, axis1=-2, axis2=-1)), np.abs(gradient)
    flat = size <= _FLAT
    filled = np.where(flat, np.where(slope > 0, slope, 1.0), 0.0)
    eye, size = np.eye(gradient.shape[1]), np.where(flat, filled, size)
    scale = 1 / np.sqrt(np.maximum(size, _NARROW * size.max(-1, keepdims=True)))
    filled = np.where(flat[:, :, None] & (eye > 0), filled[:, None], curvature)
    scaled = filled * scale[:, :, None] * scale[:, None, :] + _SHIFT * eye
    regular = np.linalg.eigvalsh(scaled)[:, 0] > 0
    step = np.zeros_like(gradient)
    for p in np.flatnonzero(regular):
        step[p] = scale[p] * np.linalg.solve(scaled[p], scale[p] * gradient[p])
    return step, regular, ~(flat & (slope > 0)).any(-1)
