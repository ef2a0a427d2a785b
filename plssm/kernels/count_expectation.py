"""Expected log-density of Poisson counts with the exponential link, and its derivatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels._threads import even_ranges, side_by_side
from plssm.kernels.count_terms import add_log_factorials
from plssm.kernels.predictor_newton import BLOCK, copy_channels, tile

__all__ = [
    "CountSamples",
    "count_samples",
    "expected_counts",
    "expected_counts_curvature",
    "expected_counts_plain",
]

_LARGEST = 600.0  # exponents above are cut off
_ENOUGH = 2e7  # multiplications below which a second thread does not pay
_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads
_GROUP = 8  # channels whose products with the covariances are taken together
_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}


class CountSamples(NamedTuple):
    """S samples in blocks of equal size, filled up with zeros.

    Args:
        covariance: [blocks, M, M * BLOCK], rows of V_t, samples innermost.
        features: [blocks, Q + M (M + 1) / 2, BLOCK], regressors, then upper triangles of V_t.
        seen: [blocks, N, BLOCK], 1 where observed, else 0; of size 0 where all is observed.
        offset: Known part of the predictors [blocks, N, BLOCK], or of size 0.
        totals: [N, Q], sums of y x over what was observed.
        constant: [N], sums of y (log Delta + offset) - log y!.
        width: Delta, width of a bin.
        samples: S.
    """

    covariance: np.ndarray
    features: np.ndarray
    seen: np.ndarray
    offset: np.ndarray
    totals: np.ndarray
    constant: np.ndarray
    width: float
    samples: int

    def channels(self, rows: np.ndarray) -> CountSamples:
        """The same samples of some channels."""
        seen, offset = (
            np.ascontiguousarray(x[:, rows]) if x.size else x for x in (self.seen, self.offset)
        )
        return self._replace(
            seen=seen, offset=offset, totals=self.totals[rows], constant=self.constant[rows]
        )


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

    The counts themselves enter only through their sums with the regressors.

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
    covariance, regressors, counts = (
        np.require(x, np.float64, "CW") for x in (covariance, regressors, counts)
    )
    mask = np.require(mask, np.bool_, "CW")
    size, columns = covariance.shape[1], regressors.shape[1]
    blocks, channels = -(-len(counts) // BLOCK), counts.shape[1]
    V = np.empty((blocks, size * size, BLOCK))
    features = np.empty((blocks, columns + size * (size + 1) // 2, BLOCK))
    _lay_out(covariance.reshape(-1, size * size), regressors, V, features)
    full, none = bool(mask.all()), np.zeros((0, 0, 0))
    seen = none if full else np.empty((blocks, channels, BLOCK))
    shift = none if offset is None else np.empty((blocks, channels, BLOCK))
    _copy_blocks(mask, seen)
    if not full:
        counts = np.where(mask, counts, 0.0)
    totals, constant = np.zeros((channels, columns)), np.zeros(channels)
    _add_counts(counts, mask, full, regressors, math.log(width), totals, constant)
    if offset is not None:
        offset = np.require(offset, np.float64, "CW")
        _copy_blocks(offset, shift)
        constant += (counts * offset).sum(0)
    V = V.reshape(blocks, size, size * BLOCK)
    return CountSamples(V, features, seen, shift, totals, constant, float(width), len(counts))


@compiled
def _copy_blocks(source, out):
    """Copies samples [S, N] to blocks [blocks, N, BLOCK], zeros behind."""
    for k in range(out.shape[0]):
        copy_channels(source, k * out.shape[2], out[k])


@compiled
def _lay_out(covariance, regressors, V, features):
    """Copies covariances and regressors to blocks."""
    columns, size = regressors.shape[1], int(math.sqrt(covariance.shape[1]))
    for k in range(V.shape[0]):
        copy_channels(covariance, k * V.shape[2], V[k])
        copy_channels(regressors, k * V.shape[2], features[k, :columns])
        row = columns
        for i in range(size):
            for j in range(i, size):
                features[k, row] = V[k, i * size + j]
                row += 1


@compiled
def _add_counts(counts, mask, full, regressors, log_width, totals, constant):
    """Adds the sums of y x, and of y log width - log y!, in which y is 0 where unobserved."""
    samples, channels = counts.shape
    events, factorials = np.zeros(channels), np.zeros(channels)
    add_log_factorials(counts, mask, full, factorials)
    rows = max(1, _SMALL // (channels * regressors.shape[1]))
    for start in range(0, samples, rows):
        totals += np.dot(counts[start : start + rows].T, regressors[start : start + rows])
    for t in range(samples):
        for c in range(channels):
            events[c] += counts[t, c]
    for c in range(channels):
        constant[c] += log_width * events[c] - factorials[c]


@compiled(fastmath=_PRECISE)
def _rates(exponent, offset, width, rate):
    """Writes the expected counts of one channel."""
    if offset.size:
        for t in range(rate.size):
            exponent[t] += offset[t]
    for t in range(rate.size):
        x = exponent[t]
        rate[t] = width * exponential(_LARGEST if x > _LARGEST else x)


@compiled(fastmath=_LOOSE)
def _total(rate, seen):
    """Leaves out what was not observed; returns the sum of the rest."""
    total = 0.0
    if seen.size:
        for t in range(rate.size):
            rate[t] *= seen[t]
            total += rate[t]
    else:
        for t in range(rate.size):
            total += rate[t]
    return total


@compiled
def _sums(features, seen, offset, width, samples, weight, first, last, total, sums, rate):
    """Adds up the rates of some blocks and their products with the features; writes the rates."""
    channels, size = weight.shape[0], features.shape[2]
    group = max(1, _SMALL // (features.shape[1] * size))
    exponent, none = np.empty((group, size)), np.empty(0)
    for k in range(first, last):
        for start in range(0, channels, group):
            stop = min(start + group, channels)
            np.dot(weight[start:stop], features[k], exponent[: stop - start])
            for c in range(start, stop):
                _rates(
                    exponent[c - start], offset[k, c] if offset.size else none, width, rate[k, c]
                )
                rate[k, c, min(size, samples - k * size) :] = 0.0
                total[c] += _total(rate[k, c], seen[k, c] if seen.size else none)
            sums[start:stop] += np.dot(rate[k, start:stop], features[k].T)


@compiled(fastmath=_LOOSE)
def _weigh(X, b, rate, root, a):
    """Writes a = (x + b), weighed with the root of the rate."""
    for t in range(rate.size):
        root[t] = math.sqrt(rate[t])
    for j in range(b.shape[0]):
        for t in range(rate.size):
            a[j, t] = root[t] * (X[j, t] + b[j, t])
    for j in range(b.shape[0], X.shape[0]):
        for t in range(rate.size):
            a[j, t] = root[t] * X[j, t]


@compiled
def _squares(V, X, theta, rate, first, last, sums):
    """Adds rate a a' of some blocks to sums [N, rows, columns]; on and below the diagonal."""
    channels, size = theta.shape[0], V.shape[1]
    width = X.shape[2]
    root, a = np.empty(width), np.zeros((max(sums.shape[1], sums.shape[2]), width))
    weight = np.ascontiguousarray(theta[:, :size])
    b = np.empty((_GROUP, size * width))
    for k in range(first, last):
        for start in range(0, channels, _GROUP):
            count = min(_GROUP, channels - start)
            np.dot(weight[start : start + count], V[k], b[:count])
            for i in range(count):
                c = start + i
                moved = b[i].reshape(size, width)
                _weigh(X[k, : theta.shape[1]], moved, rate[k, c], root, a)
                for row in range(0, sums.shape[1], 4):
                    for column in range(0, min(row + 4, sums.shape[2]), 3):
                        tile(a, a, row, column, sums[c])


@compiled
def _complete(sums, spread, curvature):
    """Writes lower triangles and their transpose, plus the spread of the first coefficients."""
    for c in range(curvature.shape[0]):
        for i in range(curvature.shape[1]):
            for j in range(i + 1):
                x = sums[c, i, j]
                if i < spread.shape[1]:
                    x += spread[c, i, j]
                curvature[c, i, j] = curvature[c, j, i] = x


def expected_counts(
    samples: CountSamples, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Expected log-density of every channel, its gradient, and the expected counts.

    .. math::
        F_n = \sum_t y_{tn} \mu_{tn} - e_{tn} + \ldots, \quad
        \mu_{tn} = \theta_n^\top x_t + o_{tn}, \quad
        e_{tn} = \Delta\, e^{\mu_{tn} + c_n^\top V_t c_n / 2}

    where c is the part of theta that belongs to the latent states. The exponent is linear in the
    regressors and the entries of V_t, and so is what the gradient needs of e. Expected counts are
    cut off at Delta exp(600); nothing else keeps them from becoming large.

    Args:
        samples: The samples.
        theta: [N, Q].

    Returns:
        F [N], its gradient in theta [N, Q], the sums of e V [N, M, M], and e in blocks
        [blocks, N, BLOCK].
    """
    theta = np.require(theta, np.float64, "CW")
    channels, size = len(theta), samples.covariance.shape[1]
    weight = _coefficients(theta, size)
    rate = np.empty((len(samples.features), channels, BLOCK))

    def run(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        total, sums = np.zeros(channels), np.zeros(weight.shape)
        _sums(
            samples.features, samples.seen, samples.offset, samples.width, samples.samples,
            weight, first, last, total, sums, rate,
        )  # fmt: skip
        return total, sums

    ranges = even_ranges(len(rate), 2 * rate.size * weight.shape[1], enough=_ENOUGH)
    total, sums = (sum(x) for x in zip(*side_by_side(run, ranges), strict=True))
    value = samples.constant + (theta * samples.totals).sum(1) - total
    gradient, spread = np.empty(theta.shape), np.empty((channels, size, size))
    _gradient(samples.totals, sums, theta, gradient, spread)
    return value, gradient, spread, rate


@compiled
def _coefficients(theta, size):
    """Coefficients of the exponents in the features."""
    channels, columns = theta.shape
    weight = np.empty((channels, columns + size * (size + 1) // 2))
    for c in range(channels):
        weight[c, :columns] = theta[c]
        at = columns
        for i in range(size):
            for j in range(i, size):
                weight[c, at] = (0.5 if i == j else 1.0) * theta[c, i] * theta[c, j]
                at += 1
    return weight


@compiled
def _gradient(totals, sums, theta, gradient, spread):
    """Writes gradients and the sums of e V from the sums of e times the features."""
    (channels, columns), size = theta.shape, spread.shape[1]
    for c in range(channels):
        for j in range(columns):
            gradient[c, j] = totals[c, j] - sums[c, j]
        at = columns
        for i in range(size):
            for j in range(i, size):
                spread[c, i, j] = spread[c, j, i] = sums[c, at]
                at += 1
        for i in range(size):
            for j in range(size):
                gradient[c, i] -= spread[c, i, j] * theta[c, j]


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
    (channels, columns), size = theta.shape, spread.shape[1]
    shape = (channels, -(-columns // 4) * 4, -(-columns // 3) * 3)

    def run(first: int, last: int) -> np.ndarray:
        sums = np.zeros(shape)
        _squares(samples.covariance, samples.features, theta, rate, first, last, sums)
        return sums

    ranges = even_ranges(len(rate), rate.size * (size**2 + columns**2 / 2), enough=_ENOUGH)
    sums = sum(side_by_side(run, ranges))
    curvature = np.empty((channels, columns, columns))
    _complete(sums, spread, curvature)
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
