"""Expected log-density of labels (softmax) over points around every state, and its derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from plssm.kernels._compile import compiled
from plssm.kernels._softmax_loops import GROUP, complete, evaluate
from plssm.kernels._threads import even_ranges, side_by_side
from plssm.kernels.predictor_newton import BLOCK, copy_channels

__all__ = [
    "SoftmaxSamples",
    "expected_softmax",
    "expected_softmax_plain",
    "softmax_residuals",
    "softmax_samples",
]

_ENOUGH = 3e7  # multiplications below which a second thread does not pay


class SoftmaxSamples(NamedTuple):
    """Observed samples in blocks of equal size, filled up with zeros.

    Args:
        regressors: [blocks, Q, BLOCK], those of the centre.
        moves: [blocks, groups, M, GROUP * BLOCK], how far the first point of each pair moves the
            first M regressors; without groups the centre is the only point.
        label: [blocks, N, BLOCK], classes.
        seen: [blocks, N, BLOCK], 1 where observed, else 0.
        offset: Known part of the predictors [blocks, N (K - 1), BLOCK], or of size 0.
        pairs: Number of pairs of points.
        classes: K.
        rows: Which of the given samples they are.
    """

    regressors: np.ndarray
    moves: np.ndarray
    label: np.ndarray
    seen: np.ndarray
    offset: np.ndarray
    pairs: int
    classes: int
    rows: np.ndarray

    @property
    def count(self) -> int:
        """Number of points of a sample."""
        return max(2 * self.pairs, 1)


def softmax_samples(
    regressors: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray,
    *,
    classes: int,
    root: np.ndarray | None = None,
    points: np.ndarray | None = None,
    offset: np.ndarray | None = None,
) -> SoftmaxSamples:
    """Lays the samples out for `expected_softmax`; those without an observation are left out.

    Args:
        regressors: X, [S, Q], the latent means first, with Q >= M.
        label: Classes 0 .. K-1 [S, N], the last of which has predictor zero.
        mask: [S, N], True where observed.
        classes: K.
        root: R, [S, M, M], roots of the latent covariances; None when the states are known.
        points: xi, [P, M]; the states R xi and -R xi are added to the mean.
        offset: Known part of the predictors [S, N (K - 1)].

    Returns:
        The samples.
    """
    rows = np.flatnonzero(mask.any(1))
    whole = slice(None) if len(rows) == len(mask) else rows
    blocks, none = -(-len(rows) // BLOCK), np.zeros((0, 0, 0))

    def laid_out(values: np.ndarray, kind: type = np.float64) -> np.ndarray:
        out = np.empty((blocks, values.shape[1], BLOCK), dtype=kind)
        _copy_blocks(np.require(values[whole], kind, "CW"), out)
        return out

    X, seen = laid_out(regressors), laid_out(mask)
    classed = laid_out(np.where(mask, label, 0), np.int64)
    shift = none if offset is None else laid_out(offset)
    if root is None or points is None:
        moves = np.zeros((blocks, 0, 0, GROUP * BLOCK))
        return SoftmaxSamples(X, moves, classed, seen, shift, 0, classes, rows)
    pairs, size = points.shape
    moves = np.zeros((blocks, -(-pairs // GROUP), size, GROUP * BLOCK))
    root, points = (np.require(x, np.float64, "CW") for x in (root[whole], points))
    _move(root, points, moves)
    return SoftmaxSamples(X, moves, classed, seen, shift, pairs, classes, rows)


@compiled
def _copy_blocks(source, out):
    """Copies samples [S, N] to blocks [blocks, N, BLOCK], zeros behind."""
    for k in range(out.shape[0]):
        copy_channels(source, k * out.shape[2], out[k])


@compiled
def _move(root, points, moves):
    """Writes R xi of every sample to its place."""
    pairs, size = points.shape
    turned = np.ascontiguousarray(points.T)
    for s in range(root.shape[0]):
        k, t = s // BLOCK, s % BLOCK
        moved = np.dot(root[s], turned)
        for c in range(pairs):
            for j in range(size):
                moves[k, c // GROUP, j, c % GROUP * BLOCK + t] = moved[j, c]


def expected_softmax(
    samples: SoftmaxSamples, theta: np.ndarray, *, curvature: bool = True, threads: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    r"""Expected log-density of every channel, its gradient and its negative second derivative.

    .. math::
        F = \frac{1}{C} \sum_{t,c} \log p_{y_t}(\Theta x_{tc}), \quad
        \nabla_k F = \frac{1}{C} \sum_{t,c} (1_{y_t = k} - p_k) x_{tc}, \quad
        -\nabla^2 F = \frac{1}{C} \sum_{k<l} E_{kl} \otimes
            \sum_{t,c} p_k p_l \, x_{tc} x_{tc}^\top

    with softmax probabilities p of the classes k = 1 .. K, the last of which has predictor zero,
    E_kl = (e_k - e_l)(e_k - e_l)' and e_K = 0. Points come in pairs m + d, m - d around the
    regressors m of a sample; with u, v the values of p_k p_l there, both together give

    .. math:: (u + v) (m m^\top + d d^\top) + (u - v) (m d^\top + d m^\top)

    so that only the products of the moves are needed at every pair.

    Args:
        samples: The samples.
        theta: [N (K - 1), Q], predictors of a channel below each other.
        curvature: Whether the second derivative is wanted.
        threads: Largest number of threads.

    Returns:
        [N], [N (K - 1), Q], and [N, (K - 1) Q, (K - 1) Q] or None.
    """
    theta = np.require(theta, np.float64, "CW")
    blocks, columns = samples.regressors.shape[:2]
    channels, classes, size = samples.label.shape[1], samples.classes, samples.moves.shape[2]
    weights = channels * classes * (classes - 1) // 2
    rows = -(-weights // 4) * 4 if curvature else 0
    shapes = [
        (channels,),
        theta.shape,
        (-(-columns * (columns + 1) // 6), rows, 3),
        (-(-size * (size + 1) // 6), rows, 3),
        (rows, -(-columns // 4) * 4, -(-size // 3) * 3),
    ]
    work = blocks * BLOCK * (rows + len(theta)) * (columns**2 + samples.pairs * size**2)

    def run(first: int, last: int) -> list[np.ndarray]:
        sums = [np.zeros(shape) for shape in shapes]
        evaluate(samples, theta, first, last, np.zeros((0, 0, 0)), *sums)
        return sums

    ranges = even_ranges(blocks, work, threads=threads, enough=_ENOUGH)
    sums = [sum(x) for x in zip(*side_by_side(run, ranges), strict=True)]
    value, gradient = sums[0] / samples.count, sums[1] / samples.count
    if not curvature:
        return value, gradient, None
    hessian = np.zeros((channels, (classes - 1) * columns, (classes - 1) * columns))
    complete(*sums[2:], classes, size, hessian)
    hessian /= samples.count
    return value, gradient, hessian


def softmax_residuals(samples: SoftmaxSamples, theta: np.ndarray) -> np.ndarray:
    r"""Expected gradient in the predictors of every observed sample.

    .. math:: \frac{1}{C} \sum_c (1_{y_t = k} - p_k), \quad k < K

    Args:
        samples: The samples.
        theta: [N (K - 1), Q].

    Returns:
        [len(samples.rows), N (K - 1)], zero for channels that were not observed.
    """
    theta = np.require(theta, np.float64, "CW")
    residuals, none = np.empty((len(samples.label), len(theta), BLOCK)), np.zeros((0, 0, 0))
    value, gradient = np.zeros(samples.label.shape[1]), np.zeros(theta.shape)
    evaluate(samples, theta, 0, len(residuals), residuals, value, gradient, none, none, none)
    found = residuals.transpose(0, 2, 1).reshape(-1, len(theta))[: len(samples.rows)]
    return found / samples.count


def expected_softmax_plain(
    regressors: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray,
    theta: np.ndarray,
    *,
    classes: int,
    root: np.ndarray | None = None,
    points: np.ndarray | None = None,
    offset: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the same as `expected_softmax` point by point with plain arrays.

    Args:
        regressors: X, [S, Q].
        label: [S, N].
        mask: [S, N].
        theta: [N (K - 1), Q].
        classes: K.
        root: R, [S, M, M] or None.
        points: xi, [P, M] or None.
        offset: [S, N (K - 1)] or None.

    Returns:
        [N], [N (K - 1), Q] and [N, (K - 1) Q, (K - 1) Q].
    """
    (samples, channels), columns = label.shape, theta.shape[1]
    moves = np.zeros((1, samples, 0))
    if root is not None and points is not None:
        moves = np.einsum("sij,cj->csi", root, np.concatenate([points, -points]))
    value, gradient = np.zeros(channels), np.zeros((channels, classes - 1, columns))
    curvature = np.zeros((channels, classes - 1, columns, classes - 1, columns))
    hits = label[..., None] == np.arange(classes)
    for move in moves:
        x = regressors.copy()
        x[:, : move.shape[1]] += move
        eta = x @ theta.T + (0.0 if offset is None else offset)
        eta = np.pad(eta.reshape(samples, channels, -1), ((0, 0), (0, 0), (0, 1)))
        logits = eta - logsumexp(eta, axis=-1, keepdims=True)
        p = np.exp(logits) * mask[..., None]
        value += np.where(mask[..., None] & hits, logits, 0.0).sum((0, 2))
        gap = np.where(mask[..., None], hits - p, 0.0)[..., :-1]
        p = p[..., :-1]
        bend = p[..., None] * (np.eye(classes - 1) - p[..., None, :])
        gradient += np.einsum("snk,sq->nkq", gap, x)
        curvature += np.einsum("snkl,si,sj->nkilj", bend, x, x, optimize=True)
    size = (classes - 1) * columns
    parts = value, gradient.reshape(-1, columns), curvature.reshape(channels, size, size)
    return tuple(x / len(moves) for x in parts)
