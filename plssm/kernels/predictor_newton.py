"""Sums of products of predictor weights' regressors, for Newton steps under a Gaussian path."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._threads import even_ranges, side_by_side

__all__ = [
    "BLOCK",
    "SampleBlocks",
    "copy_channels",
    "predictor_products",
    "predictor_products_plain",
    "sample_blocks",
    "tile",
]

BLOCK = 128  # samples that are handled together, innermost in memory
_GROUP = 8  # channels whose products with the covariances are taken together
_TILE = (4, 3)  # rows and columns of the sums that stay in registers
_ENOUGH = 3e7  # multiplications below which a second thread does not pay
_LOOSE = {"contract", "reassoc", "nsz"}


class SampleBlocks(NamedTuple):
    """Samples in blocks of equal size, filled up with zeros.

    Args:
        covariance: [blocks, M, M * BLOCK], rows of V_t, samples innermost.
        regressors: [blocks, Q, BLOCK].
    """

    covariance: np.ndarray
    regressors: np.ndarray


def sample_blocks(covariance: np.ndarray, regressors: np.ndarray) -> SampleBlocks:
    """Lays the samples out for `predictor_products`.

    Args:
        covariance: V, [S, M, M], symmetric.
        regressors: X, [S, Q] with Q >= M.

    Returns:
        The blocks.
    """
    covariance, regressors = (np.require(x, np.float64, "CW") for x in (covariance, regressors))
    samples, size = covariance.shape[:2]
    count, columns = -(-samples // BLOCK), regressors.shape[1]
    V, X = np.empty((count, size * size, BLOCK)), np.empty((count, columns, BLOCK))
    covariance = covariance.reshape(samples, size * size)
    for k in range(count):
        copy_channels(covariance, k * BLOCK, V[k])
        copy_channels(regressors, k * BLOCK, X[k])
    return SampleBlocks(V.reshape(count, size, size * BLOCK), X)


@compiled(fastmath=_LOOSE)
def _weigh(p, q, X, b, left, right):
    """Writes b to the rows of left and p X + q b to those of right."""
    size = b.shape[0]
    for j in range(size):
        for t in range(p.size):
            right[j, t] = p[t] * X[j, t] + q[t] * b[j, t]
            left[j, t] = b[j, t]
    for j in range(size, X.shape[0]):
        for t in range(p.size):
            right[j, t] = p[t] * X[j, t]


@compiled(fastmath=_LOOSE)
def tile(left, right, i, j, sums):
    """Adds the inner products of four rows of left and three of right."""
    a00 = a01 = a02 = a10 = a11 = a12 = 0.0
    a20 = a21 = a22 = a30 = a31 = a32 = 0.0
    for t in range(left.shape[1]):
        x, y, z = right[j, t], right[j + 1, t], right[j + 2, t]
        w = left[i, t]
        a00, a01, a02 = a00 + w * x, a01 + w * y, a02 + w * z
        w = left[i + 1, t]
        a10, a11, a12 = a10 + w * x, a11 + w * y, a12 + w * z
        w = left[i + 2, t]
        a20, a21, a22 = a20 + w * x, a21 + w * y, a22 + w * z
        w = left[i + 3, t]
        a30, a31, a32 = a30 + w * x, a31 + w * y, a32 + w * z
    rows = ((a00, a01, a02), (a10, a11, a12), (a20, a21, a22), (a30, a31, a32))
    for k in range(4):
        sums[i + k, j] += rows[k][0]
        sums[i + k, j + 1] += rows[k][1]
        sums[i + k, j + 2] += rows[k][2]


@compiled
def copy_channels(source, first, out):
    """Copies samples first, ... of source [S, N] to the rows of out [N, BLOCK], zeros behind."""
    count = min(out.shape[1], source.shape[0] - first)
    for c in range(out.shape[0]):
        for t in range(count):
            out[c, t] = source[first + t, c]
        for t in range(count, out.shape[1]):
            out[c, t] = 0.0


@compiled
def _products(V, X, weight, p, q, first, last, sums):
    """Adds the products of blocks first, ..., last - 1 to sums [N, rows, columns], padded."""
    channels, size = weight.shape
    width = X.shape[2]
    p_block, q_block = np.empty((channels, width)), np.empty((channels, width))
    left, right = np.zeros((sums.shape[1], width)), np.zeros((sums.shape[2], width))
    b = np.empty((_GROUP, size * width))
    for k in range(first, last):
        copy_channels(p, k * width, p_block)
        copy_channels(q, k * width, q_block)
        for start in range(0, channels, _GROUP):
            count = min(_GROUP, channels - start)
            np.dot(weight[start : start + count], V[k], b[:count])
            for i in range(count):
                c = start + i
                _weigh(p_block[c], q_block[c], X[k], b[i].reshape(size, width), left, right)
                for row in range(0, left.shape[0], 4):
                    for column in range(0, right.shape[0], 3):
                        tile(left, right, row, column, sums[c])


def predictor_products(
    blocks: SampleBlocks, weight: np.ndarray, p: np.ndarray, q: np.ndarray, *, threads: int = 1
) -> np.ndarray:
    r"""Sums over samples of the products that involve V_t c.

    .. math:: A_n = \sum_t b_{tn} \left(p_{tn} x_t + q_{tn} b_{tn}\right)^\top, \qquad
        b_{tn} = [V_t c_n; 0]

    so that A + A' is what the curvature of an expectation in the weights c needs besides plain
    Gram matrices (see `plssm.observations.learning.expectation`).

    Args:
        blocks: Covariances and regressors of S samples.
        weight: c, [N, M].
        p: [S, N].
        q: [S, N].
        threads: Largest number of threads.

    Returns:
        A, [N, M, Q].
    """
    weight, p, q = (np.require(x, np.float64, "CW") for x in (weight, p, q))
    V, X = blocks
    channels, size = weight.shape
    count, columns = X.shape[:2]
    shape = (channels, -(-size // _TILE[0]) * _TILE[0], -(-columns // _TILE[1]) * _TILE[1])
    work = p.size * size * (size + columns)

    def run(first: int, last: int) -> np.ndarray:
        sums = np.zeros(shape)
        _products(V, X, weight, p, q, first, last, sums)
        return sums

    ranges = even_ranges(count, work, threads=threads, enough=_ENOUGH)
    total = sum(side_by_side(run, ranges))
    return total[:, :size, :columns]


def predictor_products_plain(
    covariance: np.ndarray,
    regressors: np.ndarray,
    weight: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
) -> np.ndarray:
    """Computes the same as `predictor_products` one sample and one channel after the other.

    Args:
        covariance: V, [S, M, M].
        regressors: X, [S, Q].
        weight: c, [N, M].
        p: [S, N].
        q: [S, N].

    Returns:
        A, [N, M, Q].
    """
    size = weight.shape[1]
    sums = np.zeros((*weight.shape, regressors.shape[1]))
    for t, n in np.ndindex(p.shape):
        b = covariance[t] @ weight[n]
        right = p[t, n] * regressors[t]
        right[:size] += q[t, n] * b
        sums[n] += np.outer(b, right)
    return sums
