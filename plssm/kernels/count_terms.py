"""Poisson counts with the exponential link: density, gradient and curvature in one pass."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels._threads import even_ranges, side_by_side

__all__ = [
    "SMALL",
    "add_log_factorials",
    "add_predictors",
    "log_factorial",
    "poisson_terms",
    "poisson_terms_plain",
]

_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}
_ENOUGH = 2e7  # multiplications below which a second thread does not pay
SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads
_LOG_FACTORIAL = gammaln(np.arange(1.0, 1025.0))


@compiled
def log_factorial(n):
    """Logarithm of n!, by table where n is small."""
    if n < _LOG_FACTORIAL.size:
        return _LOG_FACTORIAL[int(n)]
    return math.lgamma(n + 1.0)


@compiled
def add_log_factorials(y, mask, full, sums):
    """Adds log y! of the observed entries of samples [n, N] to sums [N]."""
    for t in range(y.shape[0]):
        largest = 0.0
        for c in range(y.shape[1]):
            largest = max(largest, y[t, c])
        if full and largest < _LOG_FACTORIAL.size:
            for c in range(y.shape[1]):
                sums[c] += _LOG_FACTORIAL[np.uintp(y[t, c])]
            continue
        for c in range(y.shape[1]):
            if mask[t, c]:
                sums[c] += log_factorial(y[t, c])


@compiled
def add_predictors(states, weight_t, offset, known, eta):
    """Writes the predictors of a piece of samples."""
    np.dot(states, weight_t, eta)
    for t in range(eta.shape[0]):
        for c in range(eta.shape[1]):
            eta[t, c] += offset[c]
    if known.size:
        for t in range(eta.shape[0]):
            for c in range(eta.shape[1]):
                eta[t, c] += known[t, c]


@compiled(fastmath=_PRECISE)
def _rates(eta, width, bound, rate):
    """Writes the rates of a piece."""
    for i in range(eta.size):
        x = eta[i]
        rate[i] = width * exponential(bound if x > bound else x)


@compiled(fastmath=_LOOSE)
def _residuals(eta, y, rate, gradient):
    """Writes the gradients of a piece.

    Returns:
        Its log-density without y log width - log y!, the number of events, and the largest
        predictor.
    """
    total, events, largest = 0.0, 0.0, -np.inf
    for i in range(y.size):
        gradient[i] = y[i] - rate[i]
        total += y[i] * eta[i] - rate[i]
        events += y[i]
        largest = max(largest, eta[i])
    return total, events, largest


@compiled
def _masked(eta, y, mask, rate, gradient):
    """The same, with zeros for what was not observed."""
    total, events, largest = 0.0, 0.0, -np.inf
    for i in range(y.size):
        if mask[i]:
            gradient[i] = y[i] - rate[i]
            total += y[i] * eta[i] - rate[i]
            events += y[i]
            largest = max(largest, eta[i])
        else:
            rate[i] = gradient[i] = 0.0
    return total, events, largest


@compiled
def _continued(eta, y, mask, bound, rate, gradient):
    """Goes on with a parabola beyond the bound; returns the change of the log-density."""
    change = 0.0
    for i in range(y.size):
        if not mask[i] or eta[i] <= bound:
            continue
        d = eta[i] - bound
        growth = 1.0 + d + 0.5 * d * d
        slope = (1.0 + d) / growth
        mean = rate[i] * growth
        change += y[i] * (bound + math.log(growth) - eta[i]) - (mean - rate[i])
        gradient[i] = (y[i] - mean) * slope
        rate[i] += y[i] * (slope * slope - 1.0 / growth)
    return change


@compiled
def _pair_products(weight):
    """Products of two columns, [N, M (M + 1) / 2], and their places in a row of M * M."""
    channels, dim = weight.shape
    pairs = np.empty((channels, dim * (dim + 1) // 2))
    place = np.empty(dim * dim, dtype=np.int64)
    k = 0
    for i in range(dim):
        for j in range(i, dim):
            place[i * dim + j] = place[j * dim + i] = k
            for c in range(channels):
                pairs[c, k] = weight[c, i] * weight[c, j]
            k += 1
    return pairs, place


@compiled
def _unpack(packed, place, out):
    """Writes symmetric matrices from their upper triangles."""
    for t in range(out.shape[0]):
        for k in range(place.size):
            out[t, k] = packed[t, place[k]]


@compiled
def _terms(
    y, mask, states, weight, offset, known, width, bound, first, last, value, score, curvature
):
    """Goes through samples first, ..., last - 1 in pieces that stay in the cache."""
    trials, _, channels = y.shape
    weight_t = np.ascontiguousarray(weight.T)
    pairs, place = _pair_products(weight)
    piece = max(1, min(last - first, SMALL // pairs.size))
    workspace, packed = np.empty((3, piece, channels)), np.empty((piece, pairs.shape[1]))
    log_width, factorials = math.log(width), np.empty(channels)
    for b in range(trials):
        full = mask[b, first:last].all()
        factorials[:] = 0.0
        add_log_factorials(y[b, first:last], mask[b, first:last], full, factorials)
        value[b] -= factorials.sum()
        for start in range(first, last, piece):
            stop = min(start + piece, last)
            count = stop - start
            eta, rate, gradient = workspace[0, :count], workspace[1, :count], workspace[2, :count]
            given = known[b, start:stop] if known.size else known[0:0, 0]
            add_predictors(states[b, start:stop], weight_t, offset, given, eta)
            n, seen = y[b, start:stop].reshape(-1), mask[b, start:stop].reshape(-1)
            x, r, g = eta.reshape(-1), rate.reshape(-1), gradient.reshape(-1)
            _rates(x, width, bound, r)
            if full:
                here, events, largest = _residuals(x, n, r, g)
            else:
                here, events, largest = _masked(x, n, seen, r, g)
            if largest > bound:
                here += _continued(x, n, seen, bound, r, g)
            value[b] += here + log_width * events
            np.dot(gradient, weight, score[b, start:stop])
            np.dot(rate, pairs, packed[:count])
            _unpack(packed[:count], place, curvature[b, start:stop])


def poisson_terms(
    y: np.ndarray,
    mask: np.ndarray,
    states: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    *,
    width: float,
    bound: float,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Log-density of Poisson counts and its derivatives in the latent states.

    .. math::
        \eta = C z + d + k, \quad \lambda = \Delta e^\eta, \quad
        \ell = \sum_{t,c} y \log\lambda - \lambda - \log y!, \quad
        g_t = C^\top (y_t - \lambda_t), \quad R_t = C^\top \mathrm{diag}(\lambda_t)\, C

    over observed entries; beyond the bound exp goes on as its second-order expansion (see
    `plssm.observations.counts.rates.Exponential`).

    Args:
        y: [B, n, N].
        mask: [B, n, N], True where observed.
        states: z, [B, n, M]; may be NaN where no channel of a sample is observed.
        weight: C, [N, M].
        offset: d, [N].
        width: Delta, width of a bin.
        bound: Predictor beyond which exp is continued, at most 700.
        known: k, [B, n, N], known part of the predictor, as from nuisance regressors.

    Returns:
        Log-density [B], g [B, n, M], and R [B, n, M, M].
    """
    y, states, weight, offset = (
        np.require(x, np.float64, "CW") for x in (y, states, weight, offset)
    )
    known = np.zeros((0, 0, 0)) if known is None else np.require(known, np.float64, "CW")
    mask = np.require(mask, np.bool_, "CW")
    trials, samples, _ = y.shape
    dim = weight.shape[1]
    score, curvature = np.empty(states.shape), np.empty((trials, samples, dim * dim))

    def run(first: int, last: int) -> np.ndarray:
        value = np.zeros(trials)
        _terms(
            y, mask, states, weight, offset, known, float(width), float(bound), first, last,
            value, score, curvature,
        )  # fmt: skip
        return value

    ranges = even_ranges(samples, y.size * dim * (dim + 5) / 2, enough=_ENOUGH)
    value = sum(side_by_side(run, ranges))
    return value, score, curvature.reshape(trials, samples, dim, dim)


def poisson_terms_plain(
    y: np.ndarray,
    mask: np.ndarray,
    states: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    *,
    width: float,
    bound: float,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the same as `poisson_terms` with plain arrays."""
    eta = states @ weight.T + offset + (0.0 if known is None else known)
    eta, y = np.where(mask, eta, 0.0), np.where(mask, y, 0.0)
    beyond = np.maximum(eta - bound, 0.0)
    base, growth = width * np.exp(np.minimum(eta, bound)), 1 + beyond + 0.5 * beyond**2
    slope = (1 + beyond) / growth
    log_rate = np.minimum(eta, bound) + np.log(growth) + math.log(width)
    value = y * log_rate - base * growth - gammaln(y + 1)
    gradient = (y - base * growth) * slope
    rate = base + y * (slope**2 - 1 / growth)
    value, gradient, rate = (np.where(mask, x, 0.0) for x in (value, gradient, rate))
    curvature = np.einsum("btc,ci,cj->btij", rate, weight, weight)
    return value.sum((1, 2)), gradient @ weight, curvature
