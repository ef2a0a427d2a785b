"""Mode of a chain with piecewise-linear dynamics and quadratic observation terms."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from plssm.kernels import _mode_loops as loops
from plssm.kernels._threads import over_trials
from plssm.kernels.chain import checked, joint_bases, strides
from plssm.linalg.block_tridiagonal import ChainFactor, dense, empty_factor, trial_lengths

__all__ = ["ModeSearch", "path_values", "search_modes"]


class HingeMap(Protocol):
    """F(z) = linear z + bias + outer relu(inner z + offset), float64 arrays."""

    linear: np.ndarray
    bias: np.ndarray
    outer: np.ndarray
    inner: np.ndarray
    offset: np.ndarray
    identity_gates: bool


class ModeSearch(NamedTuple):
    """Result of `search_modes`.

    Attributes:
        path: [B, T, M], maximum for these slopes: the mode of a stationary trial; zero beyond a
            trial's end.
        visited: [B, T, M], best path that was visited, the one `value` belongs to.
        slope: [B, T-1, P], slope of every hinge there, between 0 and 1; zero beyond the end.
        value: [B], largest objective that was reached, without its constants; that of the
            stationary point, if there is one.
        factor: Factor of the negative Hessian for these slopes, with its `quadratic`.
        stationary: [B], whether the search ended at a stationary point.
        solves: [B], linear solves that were used.
    """

    path: np.ndarray
    visited: np.ndarray
    slope: np.ndarray
    value: np.ndarray
    factor: ChainFactor
    stationary: np.ndarray
    solves: np.ndarray


def search_modes(
    form: HingeMap,
    drive: np.ndarray,
    precision: np.ndarray,
    initial_mean: np.ndarray,
    initial_precision: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    slope: np.ndarray,
    length: np.ndarray | None = None,
    *,
    pin: float,
    pinned: np.ndarray | None = None,
    flips: int = 4,
    max_solves: int = 60,
) -> ModeSearch:
    r"""Searches a local maximum of a piecewise-quadratic log joint density, trial by trial.

    .. math::
        -\tfrac12 \|z_1 - \mu_1\|^2_{\Sigma_0^{-1}}
        - \tfrac12 \sum_t \|z_{t+1} - F(z_t) - u_t\|^2_{\Sigma^{-1}}
        + \sum_t \left( q_t^\top z_t - \tfrac12 z_t^\top R_t z_t \right)

    After `flips` solves a hinge that still crosses its kink is pinned there, and released when a
    one-sided slope of the objective says so. At the end, a pinned hinge gets the slope between 0
    and 1 that makes the gradient vanish.

    Args:
        form: The map F, P hinges.
        drive: [B, T-1, M], u_t, inputs of the step arrived at.
        precision: [M, M], inverse of the process noise covariance.
        initial_mean: [B, M], mean of the first state.
        initial_precision: [M, M], inverse of the covariance of the first state.
        information: [B or 1, T or 1, M, M], R_t.
        score: [B, T, M], q_t.
        slope: [B, T-1, P], slopes to start from.
        length: [B], number of steps of each trial; all T when None.
        pin: Stiffness of the springs that hold a pinned gate at zero.
        pinned: [B, T-1, P], hinges that start pinned, as known from an earlier search; whatever
            their slope says.
        flips: Solves before hinges are pinned.
        max_solves: Solves after which the search gives up.

    Returns:
        The mode, with a flag for trials where it is stationary.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    hinge, chain, lengths = _pack(
        form, drive, precision, initial_mean, initial_precision, information, score, length, pin
    )
    n, steps, m = score.shape
    gates = form.outer.shape[1]
    slopes = np.zeros((n, steps - 1, len(hinge.offset)))
    slopes[..., :gates] = checked("slope", slope, (n, steps - 1, gates))
    pins = np.zeros(slopes.shape, dtype=np.uint8)
    if pinned is not None:
        pins[..., :gates] = pinned
        slopes[pins != 0] = 0.0
    factor = empty_factor(n, steps, m, lengths, quadratic=True)
    found = _search(hinge, chain, factor, slopes, pins, flips=flips, max_solves=max_solves)
    return found._replace(slope=found.slope[..., :gates])


def path_values(
    form: HingeMap,
    drive: np.ndarray,
    precision: np.ndarray,
    initial_mean: np.ndarray,
    initial_precision: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    path: np.ndarray,
    length: np.ndarray | None = None,
) -> np.ndarray:
    """Objective of `search_modes` at given paths.

    Args:
        form: The map F.
        drive: [B, T-1, M].
        precision: [M, M].
        initial_mean: [B, M].
        initial_precision: [M, M].
        information: [B or 1, T or 1, M, M].
        score: [B, T, M].
        path: [B, T, M].
        length: [B], number of steps of each trial; all T when None.

    Returns:
        [B], the log joint density without its constants.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    hinge, chain, lengths = _pack(
        form, drive, precision, initial_mean, initial_precision, information, score, length, 0.0
    )
    path, value = checked("path", path, score.shape), np.zeros(len(score))
    over_trials(
        loops.value_trials,
        (path.reshape(-1), value, hinge, chain, lengths),
        length=lengths,
        m=score.shape[-1],
    )
    return value


def _pack(
    form: HingeMap,
    drive: np.ndarray,
    precision: np.ndarray,
    initial_mean: np.ndarray,
    initial_precision: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    length: np.ndarray | None,
    pin: float,
) -> tuple[loops.Hinges, loops.Chain, np.ndarray]:
    """Checks the model and makes its arrays flat; also returns the lengths."""
    score = dense(score)
    if score.ndim != 3:
        raise ValueError(f"score must be [B, T, M], got {score.shape}")
    n, steps, m = score.shape
    hinge = _hinges(form, m)
    drift = checked("drive", drive, (n, steps - 1, m)) + form.bias
    precision = checked("precision", precision, (m, m))
    initial_precision = checked("initial_precision", initial_precision, (m, m))
    information = checked("information", information, (n, steps, m, m), shared=True)
    trial_stride, step_stride = strides(information, n, steps)
    chain = loops.Chain(
        joint_bases(precision, initial_precision).reshape(-1),
        precision.reshape(-1),
        initial_precision.reshape(-1),
        checked("initial_mean", initial_mean, (n, m)).reshape(-1),
        drift.reshape(-1),
        score.reshape(-1),
        information.reshape(-1),
        trial_stride,
        step_stride,
        steps,
        len(hinge.offset),
        float(pin),
    )
    return hinge, chain, trial_lengths(length, n, steps)


def _search(
    hinge: loops.Hinges,
    chain: loops.Chain,
    factor: ChainFactor,
    slope: np.ndarray,
    pinned: np.ndarray,
    *,
    flips: int,
    max_solves: int,
) -> ModeSearch:
    """Runs the search of all trials side by side."""
    n, length, m = len(slope), factor.length, factor.dim
    path, now = np.zeros((n, chain.steps, m)), np.zeros(n)
    fraction, warm = np.zeros(slope.shape), bool(pinned.any())
    active, changes = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    solves = np.zeros(n, dtype=np.int64)
    best, visited, value = slope.copy(), path.copy(), np.full(n, -np.inf)

    def maximise(at: np.ndarray, pins: bool, which: np.ndarray) -> None:
        solves[which] += 1
        over_trials(
            loops.maximise_trials,
            (
                factor.flat,
                path.reshape(-1),
                factor.quadratic,
                at.reshape(-1),
                pinned.reshape(-1),
                pins,
                which,
                hinge,
                chain,
                length,
                factor.logdet,
                factor.status,
            ),
            length=length,
            m=m,
        )

    for count in range(max_solves):
        maximise(slope, warm or count >= flips, active)
        over_trials(
            loops.revise_trials,
            (
                path.reshape(-1),
                slope.reshape(-1),
                pinned.reshape(-1),
                fraction.reshape(-1),
                count + 1 >= flips,
                active,
                now,
                changes,
                hinge,
                chain,
                length,
            ),
            length=length,
            m=m,
        )
        take = active & (factor.status == 0) & ((changes == 0) | (now > value))
        best[take], visited[take], value[take] = fraction[take], path[take], now[take]
        active &= (factor.status == 0) & (changes != 0)
        if not active.any():
            break
    stationary = ~active & (factor.status == 0)
    maximise(best, False, np.ones(n, dtype=np.bool_))
    return ModeSearch(path, visited, best, value, factor, stationary, solves)


def _hinges(form: HingeMap, m: int) -> loops.Hinges:
    """Packs the map into flat blocks of M hinges."""
    gates = form.outer.shape[1]
    blocks = max(1, -(-gates // m))
    inner, outer, offset = np.zeros((blocks * m, m)), np.zeros((m, blocks * m)), None
    inner[:gates], outer[:, :gates] = form.inner, form.outer
    offset = np.zeros(blocks * m)
    offset[:gates] = form.offset
    offset[gates:] = -1.0
    inner_t = inner.reshape(blocks, m, m).transpose(0, 2, 1)
    by_hinge = np.ascontiguousarray(outer.T).reshape(blocks, m, m)
    return loops.Hinges(
        np.array(form.linear, dtype=np.float64).reshape(-1),
        np.array(form.linear.T, dtype=np.float64, order="C").reshape(-1),
        inner.reshape(-1),
        np.ascontiguousarray(inner_t).reshape(-1),
        np.ascontiguousarray(by_hinge.transpose(0, 2, 1)).reshape(-1),
        by_hinge.reshape(-1),
        offset,
        bool(form.identity_gates) and gates == m,
    )
