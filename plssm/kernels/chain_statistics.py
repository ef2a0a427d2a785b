"""Expected sufficient statistics of a rectified-linear transition under a Gaussian chain."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._rectified_lanes import LANES, rectify_lanes, rectify_units
from plssm.kernels._threads import even_ranges, side_by_side
from plssm.kernels.gaussian_moments import (
    relu_cross_moments,
    relu_second_moments_plain,
)

__all__ = ["chain_statistics", "chain_statistics_plain"]

_LOOSE = {"contract", "reassoc", "nsz"}


@compiled(fastmath=_LOOSE)
def _sum_blocks(P, X, at, after, pair, sums):
    """Sums of P_{t-1}, P_t and X_{t-1} over the transitions; blocks are flat rows."""
    for n in range(at.size):
        here, there, cross = at[n], after[n], pair[n]
        for k in range(P.shape[1]):
            sums[0, k] += P[here, k]
            sums[1, k] += P[there, k]
            sums[2, k] += X[cross, k]


@compiled
def _to_lanes(blocks, rows, out):
    """Copies blocks[rows[x]] to out[:, x]."""
    for x in range(rows.size):
        block = blocks[rows[x]]
        for k in range(block.size):
            out[k, x] = block[k]


@compiled(fastmath=_LOOSE)
def _dot(x, y):
    """Inner product."""
    total = 0.0
    for k in range(x.size):
        total += x[k] * y[k]
    return total


@compiled(fastmath=_LOOSE)
def _combine(weights, rows, first, stride, out):
    """Writes the sum of weights[i] * rows[first + i * stride] into out."""
    for x in range(out.size):
        out[x] = weights[0] * rows[first, x]
    for i in range(1, weights.size):
        weight, row = weights[i], first + i * stride
        for x in range(out.size):
            out[x] += weight * rows[row, x]


@compiled
def _gate_covariances(inner, identity, blocks, rows):
    """Multiplies blocks[rows] by the gate weights from the left: [P M, lane]."""
    gates, size = inner.shape
    states = np.empty((size * size, rows.size))
    _to_lanes(blocks, rows, states)
    if identity:
        return states
    out = np.empty((gates * size, rows.size))
    for p in range(gates):
        for j in range(size):
            _combine(inner[p], states, j, size, out[p * size + j])
    return out


@compiled
def _pair_covariances(inner, identity, before, out):
    """Covariances of the pre-activations, pairs (p, q >= p); before is Cov(pre, z) [P M, lane]."""
    gates, size = inner.shape
    n = 0
    for p in range(gates):
        for q in range(p, gates):
            if identity:
                out[n] = before[p * size + q]
            else:
                _combine(inner[q], before, p * size, 1, out[n])
            n += 1


@compiled
def _gate_block(pre, P, X, inner, identity, at, pair, expected, to_gates, relu):
    """Adds the sums of one block of transitions, one per lane; see `_gate_sums`."""
    gates, size = inner.shape
    lanes = at.size
    shape = (gates, lanes)
    before = _gate_covariances(inner, identity, P, at)
    ahead = _gate_covariances(inner, identity, X, pair)
    packed = np.empty((gates * (gates + 1) // 2, lanes))
    _pair_covariances(inner, identity, before, packed)
    variance, mean = np.empty(shape), np.empty(shape)
    q = 0
    for i in range(gates):
        variance[i] = packed[q]
        mean[i] = pre[:, i]
        q += gates - i
    sd, a, cdf = np.empty(shape), np.empty(shape), np.empty(shape)
    pdf, centre, spread = np.empty(shape), np.empty(shape), np.empty(shape)
    rectify_units(
        mean.ravel(), variance.ravel(), sd.ravel(), a.ravel(), cdf.ravel(), pdf.ravel(),
        centre.ravel(), spread.ravel(),
    )  # fmt: skip
    rectify_lanes(packed, sd, a, cdf, pdf, spread)
    ones = np.ones(lanes)
    q = 0
    for i in range(gates):
        expected[:, i] = centre[i]
        for j in range(size):
            to_gates[0, i, j] += _dot(cdf[i], before[i * size + j])
            to_gates[1, i, j] += _dot(cdf[i], ahead[i * size + j])
        for j in range(i, gates):
            relu[i, j] += _dot(ones, packed[q])
            q += 1


@compiled
def _gate_sums(pre, P, X, inner, identity, at, pair, expected, to_gates, relu):
    """Covariance sums that involve the gates, LANES transitions at a time.

    Args:
        pre: [n, P], mean pre-activations of the transitions.
        P: [*, M M], covariances of the states.
        X: [*, M M], covariances of neighbouring states.
        inner: [P, M], gate weights.
        identity: Whether the gates are the states themselves.
        at: [n], row of P of the state that is left.
        pair: [n], row of X.
        expected: [n, P], receives E[relu].
        to_gates: [2, P, M], receives sums of Cov(relu_{t-1}, z_{t-1}) and Cov(relu_{t-1}, z_t).
        relu: [P, P], receives the sum of Cov(relu_{t-1}, relu_{t-1}), upper triangle.
    """
    for start in range(0, at.size, LANES):
        stop = min(start + LANES, at.size)
        _gate_block(
            pre[start:stop], P, X, inner, identity, at[start:stop], pair[start:stop],
            expected[start:stop], to_gates, relu,
        )  # fmt: skip


def _covariance_sums(pre, P, X, inner, identity, at, pair):
    """Runs `_gate_sums` on fresh arrays and returns them."""
    gates, size = inner.shape
    expected = np.empty((at.size, gates))
    to_gates, relu = np.zeros((2, gates, size)), np.zeros((gates, gates))
    _gate_sums(pre, P, X, inner, identity, at, pair, expected, to_gates, relu)
    return expected, to_gates, relu


def _split_covariance_sums(pre, P, X, inner, identity, at, pair, threads):
    """The same with the transitions shared among threads."""

    def run(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        some = slice(first, last)
        return _covariance_sums(pre[some], P, X, inner, identity, at[some], pair[some])

    ranges = even_ranges(at.size, at.size, threads=threads, enough=4 * LANES)
    results = side_by_side(run, ranges)
    expected = np.concatenate([r[0] for r in results])
    return expected, sum(r[1] for r in results), sum(r[2] for r in results)


def _transitions(length, steps, shared_P, shared_X):
    """Rows of means, covariances and cross-covariances of every transition."""
    trial = np.repeat(np.arange(length.size), np.maximum(length - 1, 0))
    first = np.cumsum(np.maximum(length - 1, 0)) - np.maximum(length - 1, 0)
    step = np.arange(trial.size) - first[trial]
    state = trial * steps + step
    at = step if shared_P else state
    pair = step if shared_X else trial * (steps - 1) + step
    return state, at, pair


def _regressors(mean, expected, inputs, state):
    """Means of [z_{t-1}; relu; 1; s_t] of every transition, [n, Rg]."""
    parts = [mean[state], expected, np.ones((state.size, 1))]
    if inputs is not None:
        parts.append(np.ascontiguousarray(inputs).reshape(-1, inputs.shape[-1])[state + 1])
    return np.concatenate(parts, axis=1)


def chain_statistics(
    mean: np.ndarray,
    P: np.ndarray,
    X: np.ndarray,
    inputs: np.ndarray | None,
    length: np.ndarray,
    *,
    inner: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    gates: bool = True,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    r"""Sums the expected products that the closed-form M-step of the dynamics needs.

    .. math::
        E_L = \sum_{t \ge 2} E[y_{t-1} y_{t-1}^\top], \quad
        E_R = \sum_{t \ge 2} E[z_t y_{t-1}^\top], \quad
        Z = \sum_{t \ge 2} E[z_t z_t^\top], \quad
        y_{t-1} = [z_{t-1};\, \phi(G z_{t-1} + g);\, 1;\, s_t]

    Args:
        mean: [B, T, M], posterior means.
        P: [B or 1, T, M, M], posterior covariances.
        X: [B or 1, T-1, M, M], Cov(z_t, z_{t+1}).
        inputs: [B, T, K], or None.
        length: [B], steps of each trial; what lies beyond is ignored.
        inner: [P, M], gate weights G; the gates are the states themselves when None.
        offset: [P], gate offsets g; zero when None.
        gates: False leaves the rectified regressors out (P = 0).
        threads: Number of threads.

    Returns:
        E_L [Rg, Rg], E_R [M, Rg], Z [M, M] with Rg = M + P + 1 + K, and the number of transitions.
    """
    mean, P, X = (np.require(x, dtype=np.float64, requirements=["C", "W"]) for x in (mean, P, X))
    length = np.asarray(length, dtype=np.int64)
    steps, size = mean.shape[1:]
    state, at, pair = _transitions(length, steps, len(P) < len(mean), len(X) < len(mean))
    mean = mean.reshape(-1, size)
    P, X = P.reshape(-1, size * size), X.reshape(-1, size * size)
    sums = np.zeros((3, size * size))
    _sum_blocks(P, X, at, at + 1, pair, sums)
    sums = sums.reshape(3, size, size)
    if gates:
        identity = inner is None
        pre = mean[state] if inner is None else mean[state] @ inner.T
        pre = pre if offset is None else pre + offset
        weights = np.array(np.eye(size) if inner is None else inner, dtype=np.float64, order="C")
        expected, to_gates, relu = _split_covariance_sums(
            pre, P, X, weights, identity, at, pair, threads
        )
    else:
        expected, to_gates = np.empty((state.size, 0)), np.zeros((2, 0, size))
        relu = np.zeros((0, 0))
    count = relu.shape[0]
    regressors = _regressors(mean, expected, inputs, state)
    arrived = mean[state + 1]
    left, right = regressors.T @ regressors, arrived.T @ regressors
    left[:size, :size] += sums[0]
    left[size : size + count, :size] += to_gates[0]
    left[:size, size : size + count] += to_gates[0].T
    left[size : size + count, size : size + count] += np.triu(relu) + np.triu(relu, 1).T
    right[:, :size] += sums[2].T
    right[:, size : size + count] += to_gates[1].T
    return left, right, arrived.T @ arrived + sums[1], state.size


def chain_statistics_plain(
    mean: np.ndarray,
    P: np.ndarray,
    X: np.ndarray,
    inputs: np.ndarray | None,
    length: np.ndarray,
    *,
    inner: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    gates: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Computes the same as `chain_statistics` in plain numpy, one transition after the other.

    Args:
        mean: [B, T, M], posterior means.
        P: [B, T, M, M], posterior covariances.
        X: [B, T-1, M, M], Cov(z_t, z_{t+1}).
        inputs: [B, T, K], or None.
        length: [B], steps of each trial.
        inner: [P, M], gate weights, or None.
        offset: [P], gate offsets, or None.
        gates: False leaves the rectified regressors out.

    Returns:
        E_L, E_R, Z and the number of transitions.
    """
    size = mean.shape[-1]
    inner = np.eye(size) if inner is None else inner
    inner, offset = (inner if gates else inner[:0]), (offset if gates else None)
    offset = np.zeros(len(inner)) if offset is None else offset
    width = size + len(inner) + 1 + (0 if inputs is None else inputs.shape[-1])
    left, right, count = np.zeros((width, width)), np.zeros((size, width)), 0
    square = np.zeros((size, size))
    for b, t in [(k, t) for k in range(len(mean)) for t in range(1, length[k])]:
        m, here, cross, new = mean[b, t - 1], P[b, t - 1], X[b, t - 1], mean[b, t]
        fixed = np.ones(1) if inputs is None else np.append(1.0, inputs[b, t])
        pre, spread = inner @ m + offset, inner @ here @ inner.T
        variance = np.diagonal(spread)
        with_old = relu_cross_moments(pre, here @ inner.T, m, variance=variance)
        with_new = relu_cross_moments(pre, cross.T @ inner.T, new, variance=variance)
        relu = relu_cross_moments(pre, np.zeros((1, len(pre))), np.ones(1), variance=variance)
        joint = relu_second_moments_plain(pre, spread)
        fixed_relu = np.outer(fixed, relu[0])
        left += np.block(
            [
                [here + np.outer(m, m), with_old, np.outer(m, fixed)],
                [with_old.T, joint, fixed_relu.T],
                [np.outer(fixed, m), fixed_relu, np.outer(fixed, fixed)],
            ]
        )
        right += np.hstack([cross.T + np.outer(new, m), with_new, np.outer(new, fixed)])
        square += P[b, t] + np.outer(new, new)
        count += 1
    return left, right, square, count
