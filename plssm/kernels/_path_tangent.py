"""Compiled derivative of the lag-0 and lag-1 blocks of a block-tridiagonal inverse."""

from __future__ import annotations

import numpy as np

from plssm.kernels._chain_loops import block_size
from plssm.kernels._compile import compiled

__all__ = ["tangent_trials"]


@compiled
def tangent_trials(
    kept, covariance, direction, coupling, diag, off, length, status, first, last, size
):
    """Writes the directional derivative of P_t and twice that of Cov(z_t, z_{t+1}).

    In direction D of U, S_t = U_tt - G_{t-1}' S_{t-1} G_{t-1}, with G_t = S_t^-1 U_{t,t+1},
    moves by D_tt - D_{t-1,t}' G_{t-1} - G_{t-1}' D_{t-1,t} + G_{t-1}' dS_{t-1} G_{t-1}, and G_t by
    S_t^-1 (D_{t,t+1} - dS_t G_t); P_t = S_t^-1 + G_t P_{t+1} G_t' follows by the product rule.

    Args:
        kept: The factor.
        covariance: [B, T, M, M], P_t.
        direction: [B, T, M, M], D_tt, symmetric.
        coupling: [B, T-1, M, M], D_{t,t+1}.
        diag: [B, T, M, M], receives dP_t.
        off: [B, T-1, M, M], receives 2 d Cov(z_t, z_{t+1}).
        length: [B].
        status: [B].
        first: First trial.
        last: Last trial, excluded.
        size: Tuple of length M.
    """
    m = len(size)
    block = block_size(size)
    steps = covariance.size // (length.size * m * m)
    inverse, x = np.zeros((m, m)), np.zeros((m, m))
    for b in range(first, last):
        n = length[b] if status[b] == 0 else 0
        diag[(b * steps + n) * m * m : (b + 1) * steps * m * m] = 0.0
        ends = b * (steps - 1) + max(n - 1, 0)
        off[ends * m * m : (b + 1) * (steps - 1) * m * m] = 0.0
        for t in range(n):
            step, lag = b * steps + t, b * (steps - 1) + t
            moved = _matrix(diag, step * m * m, m)
            moved[:] = _matrix(direction, step * m * m, m)
            if t > 0:
                gain = _gain(kept, (step - 1) * block, m)
                _add(moved, -1.0, _matrix(coupling, (lag - 1) * m * m, m).T, gain)
                _add(moved, -1.0, gain.T, _matrix(coupling, (lag - 1) * m * m, m))
                x[:] = 0.0
                _add(x, 1.0, _matrix(diag, (step - 1) * m * m, m), gain)
                _add(moved, 1.0, gain.T, x)
            if t + 1 < n:
                _invert(inverse, kept, step * block, m)
                x[:] = _matrix(coupling, lag * m * m, m)
                _add(x, -1.0, moved, _gain(kept, step * block, m))
                turned = _matrix(off, lag * m * m, m)
                turned[:] = 0.0
                _add(turned, 1.0, inverse, x)
        for t in range(n - 1, -1, -1):
            step, lag = b * steps + t, b * (steps - 1) + t
            moved = _matrix(diag, step * m * m, m)
            _invert(inverse, kept, step * block, m)
            x[:] = 0.0
            _add(x, 1.0, inverse, moved)
            moved[:] = 0.0
            _add(moved, -1.0, x, inverse)
            if t + 1 < n:
                gain, turned = _gain(kept, step * block, m), _matrix(off, lag * m * m, m)
                x[:] = 0.0
                _add(x, 1.0, turned, _matrix(covariance, (step + 1) * m * m, m))
                _add(moved, 1.0, x, gain.T)
                _add(moved, 1.0, gain, x.T)
                turned[:] = x
                x[:] = 0.0
                _add(x, 1.0, gain, _matrix(diag, (step + 1) * m * m, m))
                _add(moved, 1.0, x, gain.T)
                turned[:] += x
                turned[:] *= -2.0


@compiled
def _matrix(flat, at, m):
    """A block of a flat array."""
    return flat[at : at + m * m].reshape(m, m)


@compiled
def _gain(kept, at, m):
    """S_t^-1 U_{t,t+1}."""
    w = (m + 3) // 4 * 4
    return kept[at + m * w : at + 2 * m * w].reshape(m, w)[:, :m].T


@compiled
def _invert(out, kept, at, m):
    """Writes S_t^-1."""
    w = (m + 3) // 4 * 4
    lower = kept[at : at + m * w].reshape(m, w)[:, :m]
    out[:] = 0.0
    _add(out, 1.0, lower.T, lower)


@compiled
def _add(out, scale, a, b):
    """Adds scale A B."""
    for i in range(len(out)):
        for k in range(len(out)):
            x = scale * a[i, k]
            for j in range(len(out)):
                out[i, j] += x * b[k, j]
