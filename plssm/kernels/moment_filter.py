"""Filter of a rectified-linear map that carries a Gaussian's exact moments through every step."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._rectified_lanes import rectify_lanes, rectify_units
from plssm.kernels._relu_step import dense
from plssm.kernels.gaussian_filter import FilterResult, is_zero, update_step
from plssm.kernels.gaussian_moments import (
    open_probability,
    relu_covariance,
    relu_moments,
    relu_second_moments_plain,
)

__all__ = ["moment_filter", "moment_filter_plain", "propagate_moments"]

_LOOSE = {"contract", "reassoc", "nsz"}


def propagate_moments(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Exact mean and covariance of a rectified-linear map of Gaussian states.

    .. math::
        E[F] = L m + b + O \, E[\phi], \quad E[J] = L + O D I, \quad
        \mathrm{Cov}[F] = E[J] P E[J]^\top
        + O \left( \mathrm{Cov}[\phi] - D I P I^\top D \right) O^\top

    with :math:`\phi = \max(0, I z + o)`, D the diagonal matrix of the probabilities that the
    hinges are open, and :math:`\mathrm{Cov}(z, F) = P E[J]^\top` (Stein's lemma). The last term is
    what no linear map of z explains; it is added to the process noise.

    Args:
        linear: [M, M], L of F(z) = L z + b + O max(0, I z + o).
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        mean: [..., M], m.
        covariance: [..., M, M], P; may be singular.

    Returns:
        E[F] [..., M], E[J] [..., M, M] and the covariance beyond the linear part [..., M, M].

    References:
        Stein 1981, doi:10.1214/aos/1176345632.
    """
    after = mean @ linear.T + bias
    if not len(offset):
        jacobian = np.broadcast_to(linear, covariance.shape).copy()
        return after, jacobian, np.zeros_like(covariance)
    gates = mean @ inner.T + offset
    spread = inner @ covariance @ inner.T
    spread = 0.5 * (spread + spread.swapaxes(-1, -2))
    expected, rectified = relu_covariance(gates, spread)
    opened = open_probability(gates, np.diagonal(spread, axis1=-2, axis2=-1))
    jacobian = linear + (outer * opened[..., None, :]) @ inner
    rest = rectified - opened[..., :, None] * spread * opened[..., None, :]
    return after + expected @ outer.T, jacobian, outer @ rest @ outer.T


@compiled(fastmath=_LOOSE)
def _gate_moments(inner, offset, mean, covariance, along, gates, spread):
    """Means, variances and packed covariances (i, j >= i) of the hinges' arguments."""
    hinges, size = inner.shape
    packed = 0
    for i in range(hinges):
        gates[i] = offset[i]
        for k in range(size):
            gates[i] += inner[i, k] * mean[k]
            along[k] = 0.0
        for k in range(size):
            if inner[i, k] != 0.0:
                for j in range(size):
                    along[j] += inner[i, k] * covariance[k, j]
        for j in range(i, hinges):
            value = 0.0
            for k in range(size):
                value += inner[j, k] * along[k]
            spread[packed] = value
            packed += 1


@compiled(fastmath=_LOOSE)
def _predict(maps, noise, mean, covariance, work, new_mean, new_covariance):
    """Moments of the next state: F's exact ones, and the process noise."""
    linear, bias, outer, inner, offset = maps
    along, gates, packed, raw, units, jacobian, left = work
    hinges, size = inner.shape
    for i in range(size):
        new_mean[i] = bias[i]
        for k in range(size):
            new_mean[i] += linear[i, k] * mean[k]
            jacobian[i, k] = linear[i, k]
    sd, a, cdf, pdf, spread = units[0], units[1], units[2], units[3], units[4]
    opened, expected, variance = cdf.reshape(hinges), units[5].reshape(hinges), units[6]
    if hinges > 0:
        _gate_moments(inner, offset, mean, covariance, along, gates, raw)
        pair = 0
        for i in range(hinges):
            variance[i, 0] = raw[pair]
            pair += hinges - i
        packed[:, 0] = raw
        rectify_units(
            gates, variance.reshape(hinges), sd.reshape(hinges), a.reshape(hinges), opened,
            pdf.reshape(hinges), expected, spread.reshape(hinges),
        )  # fmt: skip
        rectify_lanes(packed, sd, a, cdf, pdf, spread)
    for p in range(hinges):
        for i in range(size):
            new_mean[i] += outer[i, p] * expected[p]
            weight = outer[i, p] * opened[p]
            for k in range(size):
                jacobian[i, k] += weight * inner[p, k]
    for i in range(size):
        for k in range(size):
            left[i, k] = 0.0
        for j in range(size):
            for k in range(size):
                left[i, k] += jacobian[i, j] * covariance[j, k]
        for j in range(i + 1):
            value = 0.5 * (noise[i, j] + noise[j, i])
            for k in range(size):
                value += left[i, k] * jacobian[j, k]
            new_covariance[i, j] = value
    pair = 0
    for p in range(hinges):
        for q in range(p, hinges):
            rest = packed[pair, 0] - opened[p] * raw[pair] * opened[q]
            pair += 1
            if rest != 0.0:
                for i in range(size):
                    for j in range(i + 1):
                        both = outer[i, p] * outer[j, q]
                        if p != q:
                            both += outer[i, q] * outer[j, p]
                        new_covariance[i, j] += rest * both
    for i in range(size):
        for j in range(i):
            new_covariance[j, i] = new_covariance[i, j]


@compiled
def _filter_trials(maps, noise, first_mean, first_cov, information, score, drive, length, out):
    """Filters every trial; out holds the arrays of a FilterResult."""
    before, before_cov, after, after_cov, increments, status = out
    hinges, size = maps[3].shape
    pairs = hinges * (hinges + 1) // 2
    work = (
        np.empty(size), np.empty(hinges), np.empty((pairs, 1)), np.empty(pairs),
        np.empty((7, hinges, 1)), np.empty((size, size)), np.empty((size, size)),
    )  # fmt: skip
    room = np.empty((4, size, size))
    for b in range(length.size):
        rows = information[b if information.shape[0] > 1 else 0]
        for t in range(length[b]):
            if t == 0:
                before[b, 0] = first_mean[b]
                before_cov[b, 0] = first_cov
            else:
                _predict(
                    maps, noise, after[b, t - 1], after_cov[b, t - 1], work, before[b, t],
                    before_cov[b, t],
                )  # fmt: skip
                for i in range(size):
                    before[b, t, i] += drive[b, t, i]
            block = rows[t if rows.shape[0] > 1 else 0]
            mean, covariance = before[b, t], before_cov[b, t]
            done = False
            if not is_zero(block, score[b, t]):
                increments[b, t], done = update_step(
                    mean, covariance, block, score[b, t], room, after[b, t], after_cov[b, t]
                )
                if not done and status[b] == 0:
                    status[b] = t + 1
            if not done:
                after[b, t] = mean
                after_cov[b, t] = covariance


def moment_filter(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    process_noise: np.ndarray,
    initial_mean: np.ndarray,
    initial_covariance: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    drive: np.ndarray,
    length: np.ndarray,
) -> FilterResult:
    r"""Filters trials with the assumed-density filter of a rectified-linear map.

    .. math::
        m^-_t = E[F(z)] + s_t, \quad P^-_t = \mathrm{Cov}[F(z)] + \Sigma, \qquad
        z \sim \mathcal N(m_{t-1}, P_{t-1})

    exactly (see :func:`propagate_moments`); updates are those of `gaussian_filter`.

    Args:
        linear: [M, M], L of F(z) = L z + b + O max(0, I z + o).
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        process_noise: [M, M], Sigma.
        initial_mean: [B, M].
        initial_covariance: [M, M].
        information: [B or 1, T or 1, M, M], R_t; zero where nothing is observed.
        score: [B, T, M], q_t; zero where nothing is observed.
        drive: [B, T, M], s_t; the first one is not used.
        length: [B], steps of each trial.

    Returns:
        Predicted and filtered moments and the log increments.

    Raises:
        ValueError: If the shapes do not fit together.

    References:
        Maybeck 1982, Stochastic Models, Estimation and Control 2, chapter 12.
    """
    trials, steps, size = np.shape(score)
    hinges, square = np.size(offset), (size, size)
    maps = (
        dense("linear", linear, square), dense("bias", bias, (size,)),
        dense("outer", outer, (size, hinges)), dense("inner", inner, (hinges, size)),
        dense("offset", offset, (hinges,)),
    )  # fmt: skip
    out = _empty(trials, steps, size)
    _filter_trials(
        maps, dense("process_noise", process_noise, square),
        dense("initial_mean", initial_mean, (trials, size)),
        dense("initial_covariance", initial_covariance, square),
        dense("information", information, (trials, steps, *square), shared=2),
        dense("score", score, (trials, steps, size)), dense("drive", drive, (trials, steps, size)),
        np.minimum(np.asarray(length, dtype=np.int64), steps), out,
    )  # fmt: skip
    return FilterResult(*out)


def _empty(trials: int, steps: int, size: int) -> tuple[np.ndarray, ...]:
    """Zeros for the arrays of a FilterResult."""
    vector, square = (trials, steps, size), (trials, steps, size, size)
    return (
        np.zeros(vector), np.zeros(square), np.zeros(vector), np.zeros(square),
        np.zeros((trials, steps)), np.zeros(trials, dtype=np.int64),
    )  # fmt: skip


def moment_filter_plain(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    process_noise: np.ndarray,
    initial_mean: np.ndarray,
    initial_covariance: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    drive: np.ndarray,
    length: np.ndarray,
) -> FilterResult:
    """Computes the same as `moment_filter` in plain numpy, with explicit inverses.

    Exact to rounding where hinges' arguments correlate by less than .95.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        process_noise: [M, M].
        initial_mean: [B, M].
        initial_covariance: [M, M].
        information: [B or 1, T or 1, M, M].
        score: [B, T, M].
        drive: [B, T, M].
        length: [B].

    Returns:
        Predicted and filtered moments and the log increments.
    """
    trials, steps, size = score.shape
    information = np.broadcast_to(information, (trials, steps, size, size))
    out = _empty(trials, steps, size)
    before, before_cov, after, after_cov, increments, _ = out
    for b in range(trials):
        mean, cov = initial_mean[b], initial_covariance
        for t in range(int(length[b])):
            if t > 0:
                gates, spread = inner @ mean + offset, inner @ cov @ inner.T
                first = relu_moments(gates, np.diagonal(spread))[0]
                second = relu_second_moments_plain(gates, spread) - np.outer(first, first)
                opened = open_probability(gates, np.diagonal(spread))
                mean = linear @ mean + bias + outer @ first + drive[b, t]
                crossed = linear @ cov @ (outer * opened @ inner).T  # Cov(L z, O relu)
                cov = linear @ cov @ linear.T + outer @ second @ outer.T + process_noise
                cov = cov + crossed + crossed.T
            before[b, t], before_cov[b, t] = mean, cov
            q, r = score[b, t], information[b, t]
            increments[b, t] = q @ mean - 0.5 * mean @ r @ mean
            increments[b, t] -= 0.5 * np.linalg.slogdet(np.eye(size) + cov @ r)[1]
            cov = np.linalg.inv(np.linalg.inv(cov) + r)
            increments[b, t] += 0.5 * (q - r @ mean) @ cov @ (q - r @ mean)
            mean = mean + cov @ (q - r @ mean)
            after[b, t], after_cov[b, t] = mean, cov
    return FilterResult(*out)
