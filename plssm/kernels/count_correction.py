"""How the spread of latent states changes the mean gradient of Poisson counts (exp link)."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels._threads import even_ranges, side_by_side
from plssm.kernels.count_terms import SMALL, add_predictors

__all__ = ["poisson_correction", "poisson_correction_plain"]

_ENOUGH = 2e7  # multiplications below which a second thread does not pay
_LARGEST = 700.0  # predictors above are cut off


@compiled
def _pairs(weight):
    """Coefficients of w'Pw in the upper triangle of P, [M (M + 1) / 2, N]."""
    channels, dim = weight.shape
    pairs = np.empty((dim * (dim + 1) // 2, channels))
    k = 0
    for i in range(dim):
        for j in range(i, dim):
            for c in range(channels):
                pairs[k, c] = (1.0 if i == j else 2.0) * weight[c, i] * weight[c, j]
            k += 1
    return pairs


@compiled
def _pack(matrices, packed):
    """Copies upper triangles of matrices [n, M, M] to rows."""
    for t in range(matrices.shape[0]):
        k = 0
        for i in range(matrices.shape[1]):
            for j in range(i, matrices.shape[1]):
                packed[t, k] = matrices[t, i, j]
                k += 1


@compiled(fastmath={"contract", "nsz"})
def _weigh(eta, variance, mask, width, out):
    """Writes -1/2 of rates times variances, 0 where nothing was observed."""
    for i in range(out.size):
        x = eta[i]
        rate = width * exponential(_LARGEST if x > _LARGEST else x)
        out[i] = -0.5 * rate * variance[i] if mask[i] else 0.0


@compiled
def _corrections(mask, states, covariance, weight, offset, known, width, first, last, score):
    """Goes through samples first, ..., last - 1 in pieces that stay in the cache."""
    trials, _, channels = mask.shape
    weight_t, pairs = np.ascontiguousarray(weight.T), _pairs(weight)
    piece = max(1, min(last - first, SMALL // pairs.size))
    workspace, packed = np.empty((3, piece, channels)), np.empty((piece, pairs.shape[0]))
    for b in range(trials):
        for start in range(first, last, piece):
            stop = min(start + piece, last)
            count = stop - start
            eta, variance, rate = workspace[0, :count], workspace[1, :count], workspace[2, :count]
            given = known[b, start:stop] if known.size else known[0:0, 0]
            add_predictors(states[b, start:stop], weight_t, offset, given, eta)
            _pack(covariance[b, start:stop], packed[:count])
            np.dot(packed[:count], pairs, variance)
            seen = mask[b, start:stop].reshape(-1)
            _weigh(eta.reshape(-1), variance.reshape(-1), seen, width, rate.reshape(-1))
            np.dot(rate, weight, score[b, start:stop])


def poisson_correction(
    mask: np.ndarray,
    states: np.ndarray,
    covariance: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    *,
    width: float,
    known: np.ndarray | None = None,
) -> np.ndarray:
    r"""Second-order change of the mean gradient in the latent states.

    .. math::
        -\tfrac12 \sum_c \lambda_{tc} \, (C_c^\top P_t C_c) \, C_c, \qquad
        \lambda = \Delta e^{C z + d + k}

    over observed entries.

    Args:
        mask: [B, n, N], True where observed.
        states: z, [B, n, M]; may be NaN where no channel of a sample is observed.
        covariance: P, [B, n, M, M], symmetric.
        weight: C, [N, M].
        offset: d, [N].
        width: Delta, width of a bin.
        known: k, [B, n, N], known part of the predictor.

    Returns:
        [B, n, M].
    """
    states, covariance, weight, offset = (
        np.require(x, np.float64, "CW") for x in (states, covariance, weight, offset)
    )
    mask = np.require(mask, np.bool_, "CW")
    known = np.zeros((0, 0, 0)) if known is None else np.require(known, np.float64, "CW")
    score, dim = np.empty(states.shape), states.shape[2]

    def run(first: int, last: int) -> None:
        _corrections(
            mask, states, covariance, weight, offset, known, float(width), first, last, score
        )

    work = mask.size * dim * (dim + 5) / 2
    side_by_side(run, even_ranges(mask.shape[1], work, enough=_ENOUGH))
    return score


def poisson_correction_plain(
    mask: np.ndarray,
    states: np.ndarray,
    covariance: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    *,
    width: float,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Computes the same as `poisson_correction` with plain arrays."""
    eta = states @ weight.T + offset + (0.0 if known is None else known)
    rate = width * np.exp(np.minimum(np.where(mask, eta, -np.inf), _LARGEST))
    variance = np.einsum("ci,btij,cj->btc", weight, covariance, weight)
    return (-0.5 * rate * variance) @ weight
