"""The loops of `softmax_expectation`: samples in blocks, innermost in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels.predictor_newton import BLOCK, tile

if TYPE_CHECKING:  # the compiled code also depends on the order of its fields
    from plssm.kernels.softmax_expectation import SoftmaxSamples

__all__ = ["GROUP", "complete", "evaluate"]

GROUP = 4  # pairs of points that are handled together
_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}


@compiled(fastmath=_PRECISE)
def _probabilities(eta, seen, classes, count, p, total, loss, product):
    """Writes the probabilities of all classes at `count` points of BLOCK samples.

    The predictors of a channel stand below each other. Probabilities are zero where nothing was
    observed. The largest predictors are added to `loss` [N, BLOCK], and `product` [N, BLOCK] is
    multiplied by the sums of the exponentials relative to them.
    """
    width = count * BLOCK
    peak = np.empty(width)
    for n in range(seen.shape[0]):
        first, into, last = n * (classes - 1), n * classes, (n + 1) * classes - 1
        peak[:] = 0.0
        for k in range(classes - 1):
            for t in range(width):
                x = eta[first + k, t]
                peak[t] = peak[t] if peak[t] > x else x
        for t in range(width):
            total[t] = p[last, t] = exponential(-peak[t])
        for k in range(classes - 1):
            for t in range(width):
                x = exponential(eta[first + k, t] - peak[t])
                p[into + k, t] = x
                total[t] += x
        for start in range(0, width, BLOCK):
            for t in range(BLOCK):
                loss[n, t] += peak[start + t]
                product[n, t] *= total[start + t]
                total[start + t] = seen[n, t] / total[start + t]
        for k in range(into, last + 1):
            for t in range(width):
                p[k, t] *= total[t]


@compiled
def _take_logs(product, loss):
    """Adds the logarithms to the loss and leaves ones."""
    for n in range(loss.shape[0]):
        for t in range(BLOCK):
            loss[n, t] += math.log(product[n, t])
            product[n, t] = 1.0


@compiled
def _indicate(eta, label, seen, classes, times, residual, loss):
    """Writes indicators of the classes, and their predictors with a minus sign, some times."""
    for n in range(label.shape[0]):
        first = n * (classes - 1)
        for j in range(classes - 1):
            for t in range(BLOCK):
                residual[first + j, t] = times * seen[n, t] if label[n, t] == j else 0.0
        for t in range(BLOCK):
            k = label[n, t]
            loss[n, t] = -times * eta[first + k, t] if k < classes - 1 else 0.0


@compiled(fastmath=_LOOSE)
def _place(eta, shift, sign, count, out):
    """Writes the predictors at some points, from those of the centre."""
    for row in range(eta.shape[0]):
        for c in range(count):
            for t in range(BLOCK):
                out[row, c * BLOCK + t] = eta[row, t] + sign * shift[row, c * BLOCK + t]


@compiled(fastmath=_LOOSE)
def _subtract(p, q, classes, count, residual, tilt):
    """Subtracts the probabilities at pairs of points; writes the difference of a pair."""
    for row in range(residual.shape[0]):
        place = row // (classes - 1) * classes + row % (classes - 1)
        for c in range(count):
            for t in range(BLOCK):
                x, y = p[place, c * BLOCK + t], q[place, c * BLOCK + t]
                residual[row, t] -= x + y
                tilt[row, c * BLOCK + t] = y - x


@compiled(fastmath=_LOOSE)
def _weigh(p, q, channels, classes, count, even, odd, centre):
    """Writes sums and differences of products of two probabilities at pairs of points."""
    row = 0
    for n in range(channels):
        for k in range(n * classes, (n + 1) * classes):
            for i in range(k + 1, (n + 1) * classes):
                for c in range(count):
                    for t in range(BLOCK):
                        s = c * BLOCK + t
                        x, y = p[k, s] * p[i, s], q[k, s] * q[i, s]
                        even[row, s] = x + y
                        odd[row, s] = x - y
                        centre[row, t] += x + y
                row += 1


@compiled(fastmath=_LOOSE)
def _add_squares(weight, D, pair, sums):
    """Adds the weighted sums of d d' to sums [triples, rows, 3], three entries at a time."""
    size, width = D.shape
    at, triple = 0, 0
    for i in range(size):
        for j in range(i, size):
            for t in range(width):
                pair[at, t] = D[i, t] * D[j, t]
            at += 1
            if at == 3 or i == size - 1:
                pair[at:] = 0.0
                for row in range(0, weight.shape[0], 4):
                    tile(weight, pair, row, 0, sums[triple])
                at, triple = 0, triple + 1


@compiled(fastmath=_LOOSE)
def _add_means(odd, D, mean):
    """Adds the sums over GROUP points of weight times move to mean [rows, M, BLOCK]."""
    for row in range(odd.shape[0]):
        a, b = odd[row, :BLOCK], odd[row, BLOCK : 2 * BLOCK]
        c, d = odd[row, 2 * BLOCK : 3 * BLOCK], odd[row, 3 * BLOCK :]
        for j in range(D.shape[0]):
            e, f = D[j, :BLOCK], D[j, BLOCK : 2 * BLOCK]
            g, h = D[j, 2 * BLOCK : 3 * BLOCK], D[j, 3 * BLOCK :]
            for t in range(BLOCK):
                mean[row, j, t] += a[t] * e[t] + b[t] * f[t] + c[t] * g[t] + d[t] * h[t]


@compiled
def _add_crosses(X, mean, sums):
    """Adds the sums of x mean' to sums [rows, Q, M], all padded."""
    for row in range(mean.shape[0]):
        for i in range(0, X.shape[0], 4):
            for j in range(0, mean.shape[1], 3):
                tile(X, mean[row], i, j, sums[row])


@compiled
def evaluate(
    samples: SoftmaxSamples, theta, first, last, residuals, value, gradient, squares, spreads,
    crosses,
):  # fmt: skip
    """Adds what blocks first, ..., last - 1 contribute; no second order where sums are empty.

    Writes the sums over the points of indicators minus probabilities unless `residuals` is empty.
    """
    X, moves, label, seen, offset, pairs, classes, _ = samples
    channels, columns, size, wide = label.shape[1], X.shape[1], moves.shape[2], moves.shape[3]
    predictors, curved, rows = len(theta), crosses.shape[0] > 0, squares.shape[1]
    weight = np.ascontiguousarray(theta[:, :size])
    eta, shift = np.empty((predictors, BLOCK)), np.empty((predictors, wide))
    placed, tilt = np.empty((predictors, wide)), np.zeros((predictors, wide))
    p, q = np.zeros((channels * classes, wide)), np.zeros((channels * classes, wide))
    total, product = np.empty(wide), np.ones((channels, BLOCK))
    residual, loss = np.empty((predictors, BLOCK)), np.empty((channels, BLOCK))
    even, odd, pair = np.zeros((rows, wide)), np.zeros((rows, wide)), np.zeros((3, wide))
    centre, one = np.zeros((rows, BLOCK)), np.zeros((3, BLOCK))
    mean, padded = np.zeros((rows, crosses.shape[2], BLOCK)), np.zeros((crosses.shape[1], BLOCK))
    for k in range(first, last):
        np.dot(theta, X[k], eta)
        if offset.size:
            eta += offset[k]
        _indicate(eta, label[k], seen[k], classes, max(2 * pairs, 1), residual, loss)
        centre[:], mean[:] = 0.0, 0.0
        if not pairs:
            _probabilities(eta, seen[k], classes, 1, p, total, loss, product)
            _take_logs(product, loss)
            q[:] = 0.0
            _subtract(p, q, classes, 1, residual, tilt)
            if curved:
                _weigh(p, q, channels, classes, 1, even, odd, centre)
        for g in range(moves.shape[1]):
            count, D = min(GROUP, pairs - g * GROUP), moves[k, g]
            np.dot(weight, D, shift)
            _place(eta, shift, 1.0, count, placed)
            _probabilities(placed, seen[k], classes, count, p, total, loss, product)
            _place(eta, shift, -1.0, count, placed)
            _probabilities(placed, seen[k], classes, count, q, total, loss, product)
            _take_logs(product, loss)
            _subtract(p, q, classes, count, residual, tilt)
            gradient[:, :size] += np.dot(tilt, D.T)
            if curved:
                _weigh(p, q, channels, classes, count, even, odd, centre)
                _add_squares(even, D, pair, spreads)
                _add_means(odd, D, mean)
        if residuals.size:
            residuals[k] = residual
        gradient += np.dot(residual, X[k].T)
        value -= (seen[k] * loss).sum(1)
        if curved:
            padded[:columns] = X[k]
            _add_squares(centre, X[k], one, squares)
            _add_crosses(padded, mean, crosses)


@compiled
def complete(squares, spreads, crosses, classes, size, curvature):
    """Adds up what belongs to two classes, and writes it to the blocks of their predictors."""
    row, columns = 0, curvature.shape[1] // (classes - 1)
    for n in range(curvature.shape[0]):
        H = curvature[n]
        for k in range(classes):
            for i in range(k + 1, classes):
                at, into = 0, 0
                for a in range(columns):
                    for b in range(a, columns):
                        x = squares[at // 3, row, at % 3]
                        at += 1
                        if b < size:
                            x += spreads[into // 3, row, into % 3] + crosses[row, a, b]
                            into += 1
                        if a < size:
                            x += crosses[row, b, a]
                        _put(H, k * columns, i * columns, a, b, x)
                        if a < b:
                            _put(H, k * columns, i * columns, b, a, x)
                row += 1


@compiled
def _put(H, k, i, a, b, x):
    """Adds an entry to the blocks of two predictors, the second of which may be none."""
    H[k + a, k + b] += x
    if i < H.shape[0]:
        H[i + a, i + b] += x
        H[k + a, i + b] -= x
        H[i + a, k + b] -= x
