"""Extended Kalman filter of a rectified-linear map, with observation terms in canonical form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._relu_step import (
    add_matrix_vector,
    dense,
    form_arrays,
    mean_step,
    region_jacobian,
)

__all__ = ["FilterResult", "gaussian_filter", "gaussian_filter_plain", "is_zero", "update_step"]

_LOOSE = {"contract", "reassoc", "nsz"}


@dataclass(frozen=True, eq=False)
class FilterResult:
    """What a Gaussian filter knows at every step; zeros beyond a trial's end.

    Attributes:
        predicted_mean: [B, T, M], given the data before t (at t = 1: the initial distribution).
        predicted_covariance: [B, T, M, M].
        filtered_mean: [B, T, M], given the data up to t.
        filtered_covariance: [B, T, M, M].
        log_increment: [B, T], log of the integral of exp(q'z - z'Rz/2) under the prediction.
        status: [B], 0, or 1 + the first step whose update was left out because the posterior
            precision was not positive definite.
    """

    predicted_mean: np.ndarray
    predicted_covariance: np.ndarray
    filtered_mean: np.ndarray
    filtered_covariance: np.ndarray
    log_increment: np.ndarray
    status: np.ndarray


@compiled(fastmath=_LOOSE)
def _cholesky(a, out, semidefinite):
    """Lower factor of a into out; zero columns where a semidefinite matrix has no rank left.

    Returns whether the factor exists.
    """
    size = a.shape[0]
    for i in range(size):
        for j in range(i + 1):
            total = a[i, j]
            for k in range(j):
                total -= out[i, k] * out[j, k]
            if i > j:
                out[i, j] = total / out[j, j] if out[j, j] > 0.0 else 0.0
            elif total > 1e-15 * a[i, i]:
                out[i, i] = math.sqrt(total)
            elif semidefinite and total <= 1e-15 * a[i, i]:
                out[i, i] = 0.0
            else:
                return False
        for j in range(i + 1, size):
            out[i, j] = 0.0
    return True


@compiled(fastmath=_LOOSE)
def _product(a, b, out, transposed):
    """Writes A B, or A' B, into out."""
    size = a.shape[0]
    for i in range(size):
        for k in range(size):
            out[i, k] = 0.0
        for j in range(size):
            weight = a[j, i] if transposed else a[i, j]
            for k in range(size):
                out[i, k] += weight * b[j, k]


@compiled(fastmath=_LOOSE)
def _predict_covariance(jacobian, covariance, noise, work, out):
    """Writes J P J' + Q into out, for the transposed Jacobian."""
    size = noise.shape[0]
    _product(jacobian, covariance, work, True)
    _product(work, jacobian, out, False)
    for i in range(size):
        for j in range(i + 1):
            value = 0.5 * (out[i, j] + out[j, i] + noise[i, j] + noise[j, i])
            out[i, j] = value
            out[j, i] = value


@compiled(fastmath=_LOOSE)
def update_step(mean, covariance, information, score, work, new_mean, new_covariance):
    """One update in canonical form, with covariance = L L' and I + L'RL = K K'.

    P = Y Y' with Y = L K'^-1 is symmetric and positive semidefinite by construction.

    Returns:
        The log increment, and whether the update was possible.
    """
    size = mean.size
    lower, other, inverse = work[0], work[1], work[2]
    if not _cholesky(covariance, lower, True):
        return 0.0, False
    _product(information, lower, other, False)
    _product(lower, other, inverse, True)
    for i in range(size):
        inverse[i, i] += 1.0
    if not _cholesky(inverse, other, False):
        return 0.0, False
    logdet = 0.0
    for i in range(size):  # rows of inverse: K^-1 L'
        for k in range(size):
            inverse[i, k] = lower[k, i]
        for j in range(i):
            for k in range(size):
                inverse[i, k] -= other[i, j] * inverse[j, k]
        for k in range(size):
            inverse[i, k] /= other[i, i]
        logdet += math.log(other[i, i])
    _product(inverse, inverse, new_covariance, True)
    increment = -logdet
    gradient = work[3, 0]
    for i in range(size):
        pull = 0.0
        for j in range(size):
            pull += information[i, j] * mean[j]
        gradient[i] = score[i] - pull
        increment += mean[i] * (score[i] - 0.5 * pull)
        new_mean[i] = mean[i]
    for i in range(size):
        along = 0.0
        for j in range(size):
            along += inverse[i, j] * gradient[j]
        increment += 0.5 * along * along
        for j in range(size):
            new_mean[j] += inverse[i, j] * along
    return increment, True


@compiled
def is_zero(information, score):
    """Whether a step has no data: information and score are zero."""
    for value in score.flat:
        if value != 0.0:
            return False
    for value in information.flat:
        if value != 0.0:
            return False
    return True


@compiled
def _filter_trials(form, noise, first_mean, first_cov, information, score, drive, length, out):
    """Filters every trial; out holds the arrays of a FilterResult."""
    before, before_cov, after, after_cov, increments, status = out
    size = noise.shape[0]
    pre, jacobian = np.empty(form[6].size), np.empty((size, size))
    work = np.empty((4, size, size))
    for b in range(length.size):
        rows = information[b if information.shape[0] > 1 else 0]
        for t in range(length[b]):
            if t == 0:
                before[b, 0] = first_mean[b]
                before_cov[b, 0] = first_cov
            else:
                here = after[b, t - 1]
                region_jacobian(form, here, pre, jacobian)
                _predict_covariance(
                    jacobian, after_cov[b, t - 1], noise, work[0], before_cov[b, t]
                )
                mean_step(form, here, pre, before[b, t])
                if drive.shape[1] > 0:
                    add_matrix_vector(form[7], drive[b, t], before[b, t])
            block = rows[t if rows.shape[0] > 1 else 0]
            mean, covariance = before[b, t], before_cov[b, t]
            done = False
            if not is_zero(block, score[b, t]):
                increments[b, t], done = update_step(
                    mean, covariance, block, score[b, t], work, after[b, t], after_cov[b, t]
                )
                if not done and status[b] == 0:
                    status[b] = t + 1
            if not done:
                after[b, t] = mean
                after_cov[b, t] = covariance


def gaussian_filter(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    process_noise: np.ndarray,
    initial_mean: np.ndarray,
    initial_covariance: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    length: np.ndarray | None = None,
    *,
    drive: np.ndarray | None = None,
) -> FilterResult:
    r"""Filters trials with the piecewise-linear extended Kalman filter.

    .. math::
        m^-_t = F(m_{t-1}, s_t), \quad P^-_t = J P_{t-1} J^\top + \Sigma, \quad
        P_t = \left( (P^-_t)^{-1} + R_t \right)^{-1}, \quad
        m_t = m^-_t + P_t (q_t - R_t m^-_t)

    with J the Jacobian of F at m_{t-1}. Exact for a linear map. The logarithm of the predictive
    density of an observation term exp(c_t + q_t'z - z'R_t z / 2) is c_t plus

    .. math::
        q_t^\top m^-_t - \tfrac12 m^{-\top}_t R_t m^-_t + \tfrac12 g_t^\top P_t g_t
        - \tfrac12 \log |I + P^-_t R_t|, \qquad g_t = q_t - R_t m^-_t

    which is `log_increment`. For y = B z + d + N(0, Gamma): q = B'Gamma^-1 (y - d),
    R = B'Gamma^-1 B and c = -(log |2 pi Gamma| + (y - d)'Gamma^-1 (y - d)) / 2.

    Args:
        linear: [M, M], of F(z, s) = linear z + bias + outer relu(inner z + offset) + inputs s.
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].
        process_noise: [M, M], Sigma.
        initial_mean: [B, M], mean of the first state of each trial.
        initial_covariance: [M, M], covariance of the first state.
        information: [B or 1, T or 1, M, M], R_t; zero where nothing is observed.
        score: [B, T, M], q_t; zero where nothing is observed.
        length: [B], steps of each trial; all T when None.
        drive: [B, T, K], inputs s_t; the first one is not used.

    Returns:
        Predicted and filtered moments and the log increments.

    Raises:
        ValueError: If the shapes do not fit together.

    References:
        Anderson and Moore 1979, Optimal Filtering, chapters 6 and 8.
    """
    trials, steps, size = np.shape(score)
    score = dense("score", score, (trials, steps, size))
    form = form_arrays(linear, bias, outer, inner, offset, inputs)
    if length is None:
        length = np.full(trials, steps)
    if drive is None:
        drive = np.empty((trials, 0, form[7].shape[0]))
    else:
        drive = dense("drive", drive, (trials, steps, form[7].shape[0]))
    square = (size, size)
    out = (
        np.zeros((trials, steps, size)), np.zeros((trials, steps, *square)),
        np.zeros((trials, steps, size)), np.zeros((trials, steps, *square)),
        np.zeros((trials, steps)), np.zeros(trials, dtype=np.int64),
    )  # fmt: skip
    _filter_trials(
        form, dense("process_noise", process_noise, square),
        dense("initial_mean", initial_mean, (trials, size)),
        dense("initial_covariance", initial_covariance, square),
        dense("information", information, (trials, steps, *square), shared=2),
        score, drive, np.minimum(np.asarray(length, dtype=np.int64), steps), out,
    )  # fmt: skip
    return FilterResult(*out)


def gaussian_filter_plain(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    process_noise: np.ndarray,
    initial_mean: np.ndarray,
    initial_covariance: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    length: np.ndarray | None = None,
    *,
    drive: np.ndarray | None = None,
) -> FilterResult:
    """Computes the same as `gaussian_filter` in plain numpy, with explicit inverses.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].
        process_noise: [M, M].
        initial_mean: [B, M].
        initial_covariance: [M, M].
        information: [B or 1, T or 1, M, M].
        score: [B, T, M].
        length: [B], or None.
        drive: [B, T, K], or None.

    Returns:
        Predicted and filtered moments and the log increments.
    """
    trials, steps, size = score.shape
    information = np.broadcast_to(information, (trials, steps, size, size))
    before, after = np.zeros((2, trials, steps, size))
    before_cov, after_cov = np.zeros((2, trials, steps, size, size))
    increments = np.zeros((trials, steps))
    for b in range(trials):
        mean, cov = initial_mean[b], initial_covariance
        for t in range(steps if length is None else int(length[b])):
            if t > 0:
                pre = inner @ mean + offset
                jacobian = linear + (outer * (pre > 0)) @ inner
                mean = linear @ mean + bias + outer @ np.maximum(pre, 0.0)
                mean = mean if drive is None else mean + inputs @ drive[b, t]
                cov = jacobian @ cov @ jacobian.T + process_noise
            before[b, t], before_cov[b, t] = mean, cov
            q, r = score[b, t], information[b, t]
            increments[b, t] = q @ mean - 0.5 * mean @ r @ mean
            increments[b, t] -= 0.5 * np.linalg.slogdet(np.eye(size) + cov @ r)[1]
            cov = np.linalg.inv(np.linalg.inv(cov) + r)
            increments[b, t] += 0.5 * (q - r @ mean) @ cov @ (q - r @ mean)
            mean = mean + cov @ (q - r @ mean)
            after[b, t], after_cov[b, t] = mean, cov
    return FilterResult(
        before, before_cov, after, after_cov, increments, np.zeros(trials, dtype=np.int64)
    )
