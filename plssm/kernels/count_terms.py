"""Poisson counts with the exponential link: density, gradient and curvature in one pass."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential

__all__ = ["log_factorial", "poisson_terms", "poisson_terms_plain"]

_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}
_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads
_LOG_FACTORIAL = gammaln(np.arange(1.0, 1025.0))


@compiled
def log_factorial(n):
    """Logarithm of n!, by table where n is small."""
    if n < _LOG_FACTORIAL.size:
        return _LOG_FACTORIAL[int(n)]
    return math.lgamma(n + 1.0)


@compiled
def _normaliser(y, mask, full, log_width):
    """Sum of y log width - log y! over the observed entries of one sample."""
    total, count = 0.0, 0.0
    for c in range(y.size):
        if full or mask[c]:
            count += y[c]
            total -= log_factorial(y[c])
    return total + log_width * count


@compiled(fastmath=_PRECISE)
def _rates(eta, offset, width, bound, rate):
    """Writes predictors and rates of one sample."""
    for c in range(eta.size):
        x = eta[c] + offset[c]
        eta[c] = x
        rate[c] = width * exponential(bound if x > bound else x)


@compiled(fastmath=_LOOSE)
def _residuals(eta, y, rate, gradient):
    """Writes the gradient of one sample; returns its log-density and largest predictor."""
    total, largest = 0.0, -np.inf
    for c in range(y.size):
        gradient[c] = y[c] - rate[c]
        total += y[c] * eta[c] - rate[c]
        largest = max(largest, eta[c])
    return total, largest


@compiled
def _masked(eta, y, mask, rate, gradient):
    """Leaves out the unobserved entries of a sample; returns the rest as `_residuals` does."""
    total, largest = 0.0, -np.inf
    for c in range(y.size):
        if mask[c]:
            total += y[c] * eta[c] - rate[c]
            largest = max(largest, eta[c])
        else:
            rate[c] = gradient[c] = 0.0
    return total, largest


@compiled
def _continued(eta, y, mask, bound, rate, gradient):
    """Goes on with a parabola beyond the bound; returns the change of the log-density."""
    change = 0.0
    for c in range(y.size):
        if not mask[c] or eta[c] <= bound:
            continue
        d = eta[c] - bound
        growth = 1.0 + d + 0.5 * d * d
        slope = (1.0 + d) / growth
        mean = rate[c] * growth
        change += y[c] * (bound + math.log(growth) - eta[c]) - (mean - rate[c])
        gradient[c] = (y[c] - mean) * slope
        rate[c] += y[c] * (slope * slope - 1.0 / growth)
    return change


@compiled
def _terms(y, mask, states, weight, offset, known, width, bound, value, score, curvature):
    """Goes through the samples in pieces that stay in the cache."""
    trials, samples, channels = y.shape
    dim = weight.shape[1]
    weight_t = np.ascontiguousarray(weight.T)
    pairs = np.empty((channels, dim * dim))
    for c in range(channels):
        for i in range(dim):
            for j in range(dim):
                pairs[c, i * dim + j] = weight[c, i] * weight[c, j]
    piece = max(1, _SMALL // pairs.size)
    rate, gradient = np.empty((piece, channels)), np.empty((piece, channels))
    shift, log_width = offset.copy(), math.log(width)
    for b in range(trials):
        for start in range(0, samples, piece):
            stop = min(start + piece, samples)
            eta = np.dot(states[b, start:stop], weight_t)
            for i in range(stop - start):
                t = start + i
                if known.size:
                    shift[:] = offset + known[b, t]
                seen, n = mask[b, t], y[b, t]
                full = seen.all()
                _rates(eta[i], shift, width, bound, rate[i])
                here, largest = _residuals(eta[i], n, rate[i], gradient[i])
                if not full:
                    here, largest = _masked(eta[i], n, seen, rate[i], gradient[i])
                if largest > bound:
                    here += _continued(eta[i], n, seen, bound, rate[i], gradient[i])
                value[b] += here + _normaliser(n, seen, full, log_width)
            count = stop - start
            score[b, start:stop] = np.dot(gradient[:count], weight)
            curvature[b, start:stop] = np.dot(rate[:count], pairs)


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
    `plssm.observations.rates.Exponential`). Runs on one thread.

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
    trials, samples, _ = y.shape
    dim = weight.shape[1]
    value, score = np.zeros(trials), np.empty((trials, samples, dim))
    curvature = np.empty((trials, samples, dim * dim))
    _terms(
        y,
        np.require(mask, np.bool_, "CW"),
        states,
        weight,
        offset,
        known,
        float(width),
        float(bound),
        value,
        score,
        curvature,
    )
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
