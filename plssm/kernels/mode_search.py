"""Mode of a chain with piecewise-linear dynamics and quadratic observation terms."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, final

import numpy as np

from plssm.kernels import _mode_loops as loops
from plssm.kernels._mode_revision import revise_trials, value_trials
from plssm.kernels._threads import over_trials
from plssm.kernels.chain import checked
from plssm.kernels.packed_prior import HingeMap, PackedPrior, pack_prior, with_terms
from plssm.linalg.block_tridiagonal import ChainFactor, empty_factor

__all__ = ["ModeSearch", "RegionMaxima", "maximise", "path_values", "search_modes"]


class ModeSearch(NamedTuple):
    """Result of `search_modes`.

    Attributes:
        path: [B, T, M], maximum for these slopes: the mode of a stationary trial; zero beyond a
            trial's end.
        visited: [B, T, M], best path that was visited, the one `value` belongs to.
        slope: [B, T-1, P], slope of every hinge there, between 0 and 1; zero beyond the end.
        value: [B], largest objective that was reached, without its constants; that of the
            stationary point, if there is one.
        factor: Factor of the negative Hessian for these slopes, with its `quadratic`; that of the
            last solve, without a log determinant, where the search was not finished.
        stationary: [B], whether the search ended at a stationary point.
        solves: [B], linear solves that were used.
        pinned: [B, T-1, P], bool, hinges that were held on their kinks where `value` was reached.
    """

    path: np.ndarray
    visited: np.ndarray
    slope: np.ndarray
    value: np.ndarray
    factor: ChainFactor
    stationary: np.ndarray
    solves: np.ndarray
    pinned: np.ndarray


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
    finish: bool = True,
    packed: PackedPrior | None = None,
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
        finish: Whether to end with a solve at the final slopes. Without it the path is the best
            that was visited, whose pinned gates are zero up to what the pins give way, and the
            factor is that of the last solve, with its pins, until the thread's next search.
        packed: The same form, drive, precisions, initial mean and length as `pack_prior` gives
            them, where they are used more than once.

    Returns:
        The mode, with a flag for trials where it is stationary.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    if packed is None:
        packed = pack_prior(form, drive, precision, initial_mean, initial_precision, length)
    hinge, chain, lengths = with_terms(packed, information, score, pin)
    n, steps, m = score.shape
    gates = form.outer.shape[1]
    slopes = np.zeros((n, steps - 1, len(hinge.offset)))
    slopes[..., :gates] = checked("slope", slope, (n, steps - 1, gates))
    pins = np.zeros(slopes.shape, dtype=np.uint8)
    if pinned is not None:
        pins[..., :gates] = pinned
        slopes[pins != 0] = 0.0
    factor = empty_factor(n, steps, m, lengths, quadratic=True, passing=not finish)
    found = _search(
        hinge, chain, factor, slopes, pins, flips=flips, max_solves=max_solves, finish=finish
    )
    slope, held = found.slope[..., :gates], found.pinned[..., :gates]
    if not finish and form.identity_gates:
        found.path[:, :-1][held] = 0.0
    return found._replace(slope=slope, pinned=held)


def maximise(
    packed: PackedPrior, information: np.ndarray, score: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, ChainFactor]:
    """Maximum of the objective of `search_modes` for fixed slopes.

    Args:
        packed: The prior.
        information: [B or 1, T or 1, M, M].
        score: [B, T, M].
        slope: [B, T-1, P].

    Returns:
        The path [B, T, M], zero beyond a trial's end, and the factor of the negative Hessian.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    hinge, chain, length = with_terms(packed, information, score, 0.0)
    n, steps, m = score.shape
    slopes = np.zeros((n, steps - 1, chain.hinges))
    slopes[..., : slope.shape[-1]] = slope
    factor = empty_factor(n, steps, m, length, quadratic=True)
    path, pinned = np.zeros((n, steps, m)), np.zeros(slopes.shape, dtype=np.uint8)
    every, memory = np.ones(n, dtype=np.bool_), _memory(hinge, score.shape)
    _maximise(hinge, chain, factor, path, memory, slopes, pinned, which=every)
    return path, factor


@final
class RegionMaxima:
    """Maxima of the objective of `search_modes` for slopes and pins that change little by little.

    A call solves anew only what the changes since the last call reach.

    Args:
        packed: The prior.
        information: [B or 1, T or 1, M, M].
        score: [B, T, M].
        pin: Stiffness of the springs that hold a pinned gate at zero.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    def __init__(
        self, packed: PackedPrior, information: np.ndarray, score: np.ndarray, pin: float
    ) -> None:
        self._hinge, self._chain, length = with_terms(packed, information, score, pin)
        n, steps, m = score.shape
        self._factor = empty_factor(n, steps, m, length, quadratic=True)
        self._path, self._memory = np.zeros(score.shape), _memory(self._hinge, score.shape)
        shape = (n, steps - 1, self._chain.hinges)
        self._slope, self._pinned = np.zeros(shape), np.zeros(shape, dtype=np.uint8)
        self._fresh, self._every = True, np.ones(n, dtype=np.bool_)

    def __call__(self, slope: np.ndarray, pinned: np.ndarray) -> np.ndarray:
        """The maximum [B, T, M] for slopes and pins [B, T-1, P]; zero where a factor fails."""
        gates = slope.shape[2]
        switched = (self._slope[..., :gates] != slope) | (self._pinned[..., :gates] != pinned)
        marks = self._memory.switched.reshape(len(slope), -1)
        marks[:, : slope.shape[1]] = switched.any(2)
        self._slope[..., :gates], self._pinned[..., :gates] = slope, pinned
        _maximise(
            self._hinge, self._chain, self._factor, self._path, self._memory, self._slope,
            self._pinned, pins=True, fresh=self._fresh, which=self._every,
        )  # fmt: skip
        self._fresh = bool(self._factor.status.any())
        return self._path.copy()


def _memory(hinge: loops.Hinges, shape: tuple[int, ...]) -> loops.Memory:
    """Memory for solves of paths of a shape, before the first."""
    size = int(np.prod(shape))
    marks = np.zeros((2, size // shape[2]), dtype=np.uint8)
    carry = np.zeros(0 if hinge.identity else size)
    return loops.Memory(np.empty(size), carry, *marks, np.empty(marks.shape[1]))


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
    *,
    packed: PackedPrior | None = None,
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
        packed: The prior as `pack_prior` gives it, where it is used more than once.

    Returns:
        [B], the log joint density without its constants.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    if packed is None:
        packed = pack_prior(form, drive, precision, initial_mean, initial_precision, length)
    hinge, chain, lengths = with_terms(packed, information, score, 0.0)
    path, value = checked("path", path, score.shape), np.zeros(len(score))
    over_trials(
        value_trials,
        (path.reshape(-1), value, hinge, chain, lengths),
        length=lengths,
        m=score.shape[-1],
    )
    return value


def _search(
    hinge: loops.Hinges,
    chain: loops.Chain,
    factor: ChainFactor,
    slope: np.ndarray,
    pinned: np.ndarray,
    *,
    flips: int,
    max_solves: int,
    finish: bool,
) -> ModeSearch:
    """Runs the search of all trials side by side."""
    n, length, m = len(slope), factor.length, factor.dim
    path, now = np.zeros((n, chain.steps, m)), np.zeros(n)
    fraction, warm = np.zeros(slope.shape), bool(pinned.any())
    active, changes = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    solves = np.zeros(n, dtype=np.int64)
    best, visited, value = slope.copy(), path.copy(), np.full(n, -np.inf)
    held, holds = np.zeros_like(pinned), np.zeros_like(pinned)
    memory = _memory(hinge, path.shape)
    solve = partial(_maximise, hinge, chain, factor, path, memory)
    for count in range(max_solves):
        solves[active] += 1
        pins = warm or count >= flips
        solve(slope, pinned, pins=pins, fresh=count == 0, which=active)
        np.copyto(holds, pinned)
        over_trials(
            revise_trials,
            (
                path.reshape(-1),
                slope.reshape(-1),
                pinned.reshape(-1),
                fraction.reshape(-1),
                count + 1 >= flips,
                active,
                memory,
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
        for into, found in ((best, fraction), (visited, path), (value, now), (held, holds)):
            _take(into, found, take)
        active &= (factor.status == 0) & (changes != 0)
        if not active.any():
            break
    stationary = ~active & (factor.status == 0)
    if finish:
        solves += 1
        solve(best, pinned, which=np.ones(n, dtype=np.bool_))
    return ModeSearch(
        path if finish else visited, visited, best, value, factor, stationary, solves, held != 0
    )


def _take(into: np.ndarray, found: np.ndarray, take: np.ndarray) -> None:
    """Copies the entries of some trials."""
    if take.all():
        np.copyto(into, found)
    elif take.any():
        into[take] = found[take]


def _maximise(
    hinge: loops.Hinges,
    chain: loops.Chain,
    factor: ChainFactor,
    path: np.ndarray,
    memory: loops.Memory,
    slope: np.ndarray,
    pinned: np.ndarray,
    *,
    pins: bool = False,
    fresh: bool = True,
    which: np.ndarray,
) -> None:
    """Writes path and factor of some trials for fixed slopes, with gates held at zero if pins.

    Where it is not fresh, only those steps are solved again that what was switched reaches; log
    determinants are NaN then.
    """
    over_trials(
        loops.maximise_trials,
        (
            factor.flat,
            path.reshape(-1),
            memory,
            factor.quadratic,
            slope.reshape(-1),
            pinned.reshape(-1),
            pins,
            fresh,
            which,
            hinge,
            chain,
            factor.length,
            factor.logdet,
            factor.status,
        ),
        length=factor.length,
        m=factor.dim,
    )
