"""Plain numpy twins of the chain kernels, one trial at a time: slow, short, for the tests."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

__all__ = ["assemble_twin", "covariances_twin", "factor_twin", "solve_twin"]


def assemble_twin(
    jacobian, offset, precision, initial_mean, initial_precision, information, score
):
    """Blocks of U and v of one trial: diag [T, M, M], off [T-1, M, M], v [T, M]."""
    steps, m = score.shape
    diag = np.array(np.broadcast_to(information, (steps, m, m)))
    off = np.zeros((steps - 1, m, m))
    v = score.copy()
    diag[0] += initial_precision
    v[0] += initial_precision @ initial_mean
    for t in range(steps - 1):
        j = jacobian[t if len(jacobian) > 1 else 0]
        diag[t] += j.T @ precision @ j
        diag[t + 1] += precision
        off[t] = -j.T @ precision
        v[t] -= j.T @ precision @ offset[t]
        v[t + 1] += precision @ offset[t]
    return diag, off, v


def factor_twin(diag, off):
    """Upper blocks R_t and coupling blocks C_t of one trial, and log |U|."""
    upper, coupling = np.zeros_like(diag), np.zeros_like(off)
    for t in range(len(diag)):
        schur = diag[t] - (coupling[t - 1].T @ coupling[t - 1] if t else 0.0)
        upper[t] = np.linalg.cholesky(schur).T
        if t + 1 < len(diag):
            coupling[t] = solve_triangular(upper[t], off[t], trans="T")
    return upper, coupling, 2 * np.log(np.diagonal(upper, axis1=1, axis2=2)).sum()


def solve_twin(upper, coupling, v):
    """Solution of U z = v for one trial, [T, M]."""
    y, z = np.zeros_like(v), np.zeros_like(v)
    for t in range(len(v)):
        known = coupling[t - 1].T @ y[t - 1] if t else 0.0
        y[t] = solve_triangular(upper[t], v[t] - known, trans="T")
    for t in reversed(range(len(v))):
        known = coupling[t] @ z[t + 1] if t + 1 < len(v) else 0.0
        z[t] = solve_triangular(upper[t], y[t] - known)
    return z


def covariances_twin(upper, coupling):
    """Lag-0 and lag-1 blocks of the inverse of one trial, [T, M, M] and [T-1, M, M]."""
    p, x = np.zeros_like(upper), np.zeros_like(coupling)
    for t in reversed(range(len(upper))):
        inverse = solve_triangular(upper[t], np.eye(upper.shape[1]))
        p[t] = inverse @ inverse.T
        if t + 1 < len(upper):
            gain = inverse @ coupling[t]
            x[t] = -gain @ p[t + 1]
            p[t] += gain @ p[t + 1] @ gain.T
    return p, x
