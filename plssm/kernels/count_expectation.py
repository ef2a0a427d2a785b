"""Expected log-density of Poisson counts with the exponential link, and its derivatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels.count_terms import log_factorial
from plssm.kernels.predictor_newton import BLOCK, copy_channels, sample_blocks, tile

__all__ = [
    "CountSamples",
    "count_samples",
    "expected_counts",
    "expected_counts_curvature",
    "expected_counts_plain",
]

_LARGEST = 600.0  # exponents above are cut off
_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads
_GROUP = 8  # channels whose products with the covariances are taken together
_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}


class CountSamples(NamedTuple):
    """S samples in blocks of equal size, filled up with zeros.

    Args:
        covariance: [blocks, M, M * BLOCK], rows of V_t, samples innermost.
        packed: [blocks, M (M + 1) / 2, BLOCK], the upper triangles alone.
        regressors: [blocks, Q, BLOCK].
        counts: y, [blocks, N, BLOCK], zero where nothing was observed.
        seen: [blocks, N, BLOCK], 1 where observed, else 0.
        offset: Known part of the predictors [blocks, N, BLOCK], or of size 0.
        constant: [N], sum of y log Delta - log y!.
        width: Delta, width of a bin.
    """

    covariance: np.ndarray
    packed: np.ndarray
    regressors: np.ndarray
    counts: np.ndarray
    seen: np.ndarray
    offset: np.ndarray
    constant: np.ndarray
    width: float


def count_samples(
    covariance: np.ndarray,
    regressors: np.ndarray,
    counts: np.ndarray,
    mask: np.ndarray,
    offset: np.ndarray | None = None,
    *,
    width: float,
) -> CountSamples:
    """Lays the samples out for `expected_counts`.

    Args:
        covariance: V, [S, M, M], symmetric.
        regressors: X, [S, Q], the latent means first, with Q >= M.
        counts: y, [S, N].
        mask: [S, N], True where observed.
        offset: Known part of the predictors [S, N].
        width: Width of a bin.

    Returns:
        The samples.
    """
    V, X = sample_blocks(covariance, regressors)
    counts = np.require(counts, np.float64, "CW")
    mask = np.require(mask, np.bool_, "CW")
    shape = (len(V), counts.shape[1], BLOCK)
    y, seen, constant = np.zeros(shape), np.zeros(shape), np.zeros(counts.shape[1])
    _copy_counts(counts, mask, math.log(width), y, seen, constant)
    upper = np.flatnonzero(np.triu(np.ones(covariance.shape[1:])))
    packed = np.take(V.reshape(len(V), -1, BLOCK), upper, axis=1)
    shift = np.zeros((0, 0, 0))
    if offset is not None:
        offset, shift = np.require(offset, np.float64, "CW"), np.empty(shape)
        for k in range(len(shift)):
            copy_channels(offset, k * BLOCK, shift[k])
    return CountSamples(V, packed, X, y, seen, shift, constant, float(width))


@compiled
def _copy_counts(counts, mask, log_width, y, seen, constant):
    """Copies what was observed to blocks; adds y log Delta - log y! to the constants."""
    for t in range(counts.shape[0]):
        block, place = t // y.shape[2], t % y.shape[2]
        for c in range(counts.shape[1]):
            if mask[t, c]:
                n = counts[t, c]
                y[block, c, place], seen[block, c, place] = n, 1.0
                constant[c] += n * log_width - log_factorial(n)


@compiled(fastmath=_PRECISE)
def _rates(mean, variance, seen, offset, width, rate):
    """Writes the expected counts of one channel."""
    for t in range(rate.size):
        x = mean[t] + 0.5 * variance[t]
        if offset.size:
            x += offset[t]
        rate[t] = seen[t] * (width * exponential(_LARGEST if x > _LARGEST else x))


@compiled(fastmath=_LOOSE)
def _density(mean, y, offset, rate, residual):
    """Writes y - rate of one channel; returns the sum of y mean - rate."""
    total = 0.0
    for t in range(rate.size):
        x = mean[t]
        if offset.size:
            x += offset[t]
        total += y[t] * x - rate[t]
        residual[t] = y[t] - rate[t]
    return total


@compiled
def _sums(packed, X, y, seen, offset, width, theta, squares, value, gradient, spread, rate):
    """Adds up values, sums of residual x, and sums of rate V (packed); writes the rates."""
    channels, blocks = theta.shape[0], X.shape[0]
    group = max(1, _SMALL // (packed.shape[1] * packed.shape[2]))
    residual = np.empty((group, X.shape[2]))
    none = np.empty(0)
    for start in range(0, channels, group):
        stop = min(start + group, channels)
        count = stop - start
        for k in range(blocks):
            mean = np.dot(theta[start:stop], X[k])
            variance = np.dot(squares[start:stop], packed[k])
            for i in range(count):
                c = start + i
                o = offset[k, c] if offset.size else none
                _rates(mean[i], variance[i], seen[k, c], o, width, rate[k, c])
                value[c] += _density(mean[i], y[k, c], o, rate[k, c], residual[i])
            gradient[start:stop] += np.dot(residual[:count], X[k].T)
            spread[start:stop] += np.dot(rate[k, start:stop], packed[k].T)


@compiled(fastmath=_LOOSE)
def _shift(X, b, rate, moved, weighed):
    """Writes a = x + b, and a times the rate."""
    for j in range(X.shape[0]):
        for t in range(rate.size):
            a = X[j, t]
            if j < b.shape[0]:
                a += b[j, t]
            moved[j, t] = a
            weighed[j, t] = rate[t] * a


@compiled
def _squares(V, X, theta, rate, sums):
    """Adds the sums of rate a a' to sums [N, rows, columns], padded; on and below the diagonal."""
    channels, size = theta.shape[0], V.shape[1]
    width = X.shape[2]
    moved, weighed = np.zeros((sums.shape[2], width)), np.zeros((sums.shape[1], width))
    weight = np.ascontiguousarray(theta[:, :size])
    b = np.empty((_GROUP, size * width))
    for k in range(X.shape[0]):
        for start in range(0, channels, _GROUP):
            count = min(_GROUP, channels - start)
            np.dot(weight[start : start + count], V[k], b[:count])
            for i in range(count):
                c = start + i
                _shift(X[k], b[i].reshape(size, width), rate[k, c], moved, weighed)
                for row in range(0, sums.shape[1], 4):
                    for column in range(0, min(row + 4, sums.shape[2]), 3):
                        tile(weighed, moved, row, column, sums[c])


def expected_counts(
    samples: CountSamples, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Expected log-density of every channel, its gradient, and the expected counts.

    .. math::
        F_n = \sum_t y_{tn} \mu_{tn} - e_{tn} + \ldots, \quad
        \mu_{tn} = \theta_n^\top x_t + o_{tn}, \quad
        e_{tn} = \Delta\, e^{\mu_{tn} + c_n^\top V_t c_n / 2}

    where c is the part of theta that belongs to the latent states. Expected counts are cut off at
    Delta exp(600); nothing else keeps them from becoming large.

    Args:
        samples: The samples.
        theta: [N, Q].

    Returns:
        F [N], its gradient in theta [N, Q], the sums of e V [N, M, M], and e in blocks
        [blocks, N, BLOCK].
    """
    V, packed, X = samples[:3]
    size, channels = V.shape[1], len(theta)
    theta = np.require(theta, np.float64, "CW")
    i, j = np.triu_indices(size)
    c = theta[:, :size]
    squares = np.where(i == j, 1.0, 2.0) * c[:, i] * c[:, j]
    value, gradient = samples.constant.copy(), np.zeros(theta.shape)
    half, rate = np.zeros((channels, len(i))), np.empty((len(X), channels, BLOCK))
    _sums(
        packed,
        X,
        samples.counts,
        samples.seen,
        samples.offset,
        samples.width,
        theta,
        np.ascontiguousarray(squares),
        value,
        gradient,
        half,
        rate,
    )
    spread = np.empty((channels, size, size))
    spread[:, i, j] = spread[:, j, i] = half
    gradient[:, :size] -= (spread @ c[..., None])[..., 0]
    return value, gradient, spread, rate


def expected_counts_curvature(
    samples: CountSamples, theta: np.ndarray, spread: np.ndarray, rate: np.ndarray
) -> np.ndarray:
    r"""Negative second derivative of `expected_counts`.

    .. math::
        -\nabla^2 F_n = \sum_t e_{tn} (a_{tn} a_{tn}^\top + V_t), \qquad
        a_{tn} = x_t + [V_t c_n; 0]

    Args:
        samples: The samples.
        theta: [N, Q].
        spread: [N, M, M], from `expected_counts` at theta.
        rate: [blocks, N, BLOCK], from there, too.

    Returns:
        [N, Q, Q].
    """
    theta = np.require(theta, np.float64, "CW")
    channels, columns = theta.shape
    size = spread.shape[1]
    sums = np.zeros((channels, -(-columns // 4) * 4, -(-columns // 3) * 3))
    _squares(samples.covariance, samples.regressors, theta, rate, sums)
    lower = np.tril(sums[:, :columns, :columns])
    curvature = lower + np.tril(lower, -1).swapaxes(1, 2)
    curvature[:, :size, :size] += spread
    return curvature


def expected_counts_plain(
    covariance: np.ndarray,
    regressors: np.ndarray,
    counts: np.ndarray,
    mask: np.ndarray,
    theta: np.ndarray,
    offset: np.ndarray | None = None,
    *,
    width: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes value, gradient and curvature as `expected_counts` with plain arrays.

    Args:
        covariance: V, [S, M, M].
        regressors: X, [S, Q].
        counts: [S, N].
        mask: [S, N].
        theta: [N, Q].
        offset: [S, N].
        width: Width of a bin.

    Returns:
        [N], [N, Q] and [N, Q, Q].
    """
    size, y = covariance.shape[1], np.where(mask, counts, 0.0)
    b = np.zeros((*counts.shape, theta.shape[1]))
    b[..., :size] = np.einsum("tij,nj->tni", covariance, theta[:, :size])
    mean = regressors @ theta.T + (0.0 if offset is None else offset)
    variance = np.einsum("tni,ni->tn", b, theta)
    e = np.where(mask, width * np.exp(mean + 0.5 * variance), 0.0)
    value = np.where(mask, y * (mean + math.log(width)) - e - gammaln(y + 1), 0.0)
    a = regressors[:, None] + b
    gradient = y.T @ regressors - np.einsum("tn,tni->ni", e, a)
    curvature = np.einsum("tn,tni,tnj->nij", e, a, a)
    curvature[:, :size, :size] += np.einsum("tn,tij->nij", e, covariance)
    return value.sum(0), gradient, curvature
