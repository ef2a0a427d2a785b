"""Sums over transitions of the covariances of a chain whose hinges are replaced by lines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.kernels._compile import compiled
from plssm.linalg.block_tridiagonal import dense

__all__ = ["RegionalSums", "regional_sums", "regional_sums_plain"]

_LOOSE = {"contract", "reassoc", "nsz"}


class RegionalSums(NamedTuple):
    r"""Sums over the transitions t -> t+1 of all trials, with D = diag(d_t).

    Args:
        here: Sum of V_t, [M, M].
        after: Sum of V_{t+1}, [M, M].
        mixed: Sum of B_t D, [M, P].
        gates: Sum of D G_t D, [P, P].
        cross: Sum of X_t, [M, M].
        ahead: Sum of D A_t, [P, M].
    """

    here: np.ndarray
    after: np.ndarray
    mixed: np.ndarray
    gates: np.ndarray
    cross: np.ndarray
    ahead: np.ndarray


@compiled(fastmath=_LOOSE)
def _add_rows(rows, first, last, total):
    """Adds some rows of numbers to their sum."""
    for t in range(first, last):
        for k in range(total.size):
            total[k] += rows[t, k]


@compiled(fastmath=_LOOSE)
def _add_gates(B, G, A, d, mixed, gates, ahead):
    """Adds the blocks of the transitions of a trial that are weighted by the slopes."""
    count, dim = d.shape[1], B.shape[1]
    for t in range(d.shape[0]):
        for i in range(dim):
            for j in range(count):
                mixed[i, j] += B[t, i, j] * d[t, j]
        for i in range(count):
            x = d[t, i]
            if x == 0.0:
                continue
            for j in range(count):
                gates[i, j] += x * (G[t, i, j] * d[t, j])
            for j in range(dim):
                ahead[i, j] += x * A[t, i, j]


@compiled
def _sums(V, X, B, G, A, d, length, states, mixed, gates, ahead):
    """Goes through the transitions of all trials."""
    steps, size = V.shape[1], V.shape[2] * V.shape[3]
    rows, lagged = V.reshape(-1, size), X.reshape(-1, size)
    for b in range(length.size):
        n = max(length[b] - 1, 0)
        _add_rows(rows, b * steps, b * steps + n, states[0])
        _add_rows(rows, b * steps + 1, b * steps + n + 1, states[1])
        _add_rows(lagged, b * (steps - 1), b * (steps - 1) + n, states[2])
        if d.shape[2]:
            _add_gates(B[b], G[b], A[b], d[b, :n], mixed, gates, ahead)


def regional_sums(
    covariance: np.ndarray,
    cross: np.ndarray,
    slope: np.ndarray,
    length: np.ndarray,
    *,
    inner: np.ndarray | None = None,
) -> RegionalSums:
    r"""Sums of covariances of states and of hinges that are lines of slope d.

    .. math:: B_t = V_t I^\top, \quad G_t = I V_t I^\top, \quad A_t = I X_t

    Args:
        covariance: V, [B, T, M, M].
        cross: X, [B, T-1, M, M], covariances of neighbours.
        slope: d, [B, T-1, P], slopes of the hinges.
        length: [B], number of steps of each trial.
        inner: Weights I of the hinges [P, M]; None where they are the states themselves.

    Returns:
        The sums.
    """
    V, X, d = dense(covariance), dense(cross), dense(slope)
    B, G, A = V, V, X
    if inner is not None:
        B = dense(V[:, :-1] @ inner.T)
        G, A = dense(inner @ B), dense(inner @ X)
    dim, gates = V.shape[-1], d.shape[-1]
    states, mixed = np.zeros((3, dim * dim)), np.zeros((dim, gates))
    within, ahead = np.zeros((gates, gates)), np.zeros((gates, dim))
    _sums(V, X, B, G, A, d, np.require(length, np.int64, "CW"), states, mixed, within, ahead)
    here, after, lagged = states.reshape(3, dim, dim)
    return RegionalSums(here, after, mixed, within, lagged, ahead)


def regional_sums_plain(
    covariance: np.ndarray,
    cross: np.ndarray,
    slope: np.ndarray,
    length: np.ndarray,
    *,
    inner: np.ndarray | None = None,
) -> RegionalSums:
    """Computes the same as `regional_sums` with plain arrays."""
    inside = np.arange(slope.shape[1]) < (np.asarray(length) - 1)[:, None]
    V, after, X = covariance[:, :-1][inside], covariance[:, 1:][inside], cross[inside]
    d = slope[inside]
    weights = np.eye(V.shape[-1])[:, : d.shape[-1]].T if inner is None else inner
    B = V @ weights.T
    return RegionalSums(
        V.sum(0),
        after.sum(0),
        np.einsum("tij,tj->ij", B, d),
        np.einsum("tij,ti,tj->ij", weights @ B, d, d),
        X.sum(0),
        np.einsum("tij,ti->ij", weights @ X, d),
    )
