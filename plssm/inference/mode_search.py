"""Mode of a piecewise-linear chain with quadratic observation terms, by a three-state active set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plssm.inference.active_set import (
    TOLERANCE,
    ActiveSet,
    ascend,
    clarke_slopes,
    one_sided_slopes,
)
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve
from plssm.linalg.block_tridiagonal import ChainFactor

__all__ = ["ChainMode", "find_mode"]

FAST = 12  # solves before a trial is handed to the guarded ascent
PIN = 1e8  # stiffness of a pin over that of the chain: holds a gate at 0 to about 1e-8 of its sd


@dataclass(frozen=True)
class ChainMode:
    """Result of a mode search.

    Args:
        path: The mode ``[B, T, M]``, zeros beyond a trial's end.
        slope: Slope of every hinge at the mode ``[B, T, P]``: 0, 1, or between them for a unit
            whose maximum lies exactly on its kink.
        value: Log joint density at the mode, ``[B]``.
        factor: Cholesky factor of the negative Hessian at ``slope``.
        status: ``"stationary"``, ``"max_solves"`` or ``"failed"`` for each trial.
        solves: Linear solves used by each trial ``[B]``.
        pinned: Units on their kink, by trial ``[B]``.
    """

    path: np.ndarray
    slope: np.ndarray
    value: np.ndarray
    factor: ChainFactor
    status: tuple[str, ...]
    solves: np.ndarray
    pinned: np.ndarray


def find_mode(
    prior: ChainPrior,
    terms: QuadraticTerms,
    start: np.ndarray | None = None,
    *,
    max_solves: int = 200,
    flips: int = 4,
) -> ChainMode:
    r"""Local maximum of a piecewise-quadratic log joint density over latent paths.

    Every linear region of the map makes the log joint quadratic, so a Newton step is one
    block-tridiagonal solve. Flipping regions until they agree with the solution does not end on
    long series, because some units have their maximum exactly on the kink :math:`a_p(z_t) = 0`
    (left slope > 0 > right slope). Units that still cross after ``flips`` solves are therefore
    pinned to their kink, and released when a one-sided slope says so. A trial on which this does
    not settle within a dozen solves, or ends below its start, goes on by a guarded ascent that
    never moves downhill. At the end a pinned hinge gets the slope between 0 and 1 that makes the
    gradient vanish (its Clarke multiplier), so the returned Gaussian has exactly the mode as its
    mean.

    Args:
        prior: The latent prior of B trials.
        terms: Observation terms, quadratic in the path.
        start: Path the search starts from ``[B, T, M]``; every hinge half on where absent.
        max_solves: Give up on a trial after about this many linear solves.
        flips: Plain region flips before units are pinned.

    Returns:
        The mode with its stop reason for every trial. With a start, the log joint at a
        stationary mode is not below that of the start.
    """
    slope = _initial_slopes(prior, start)
    trials = len(terms.constant)
    solves, late = np.ones(trials, dtype=np.int64), np.zeros(trials, dtype=bool)
    if slope.shape[2]:
        rho = PIN * _stiffness(prior, terms)
        search = _Search(prior, terms, slope, rho)
        settled = search.sweep(min(FAST, max_solves), flips)
        worse = np.zeros(trials, dtype=bool)
        if start is not None:
            before = prior.log_prob(start) + terms.value(start)
            worse = search.value < before - 1e-9 * (1 + np.abs(before))
            search.path[worse] = start[worse]
        for b in np.flatnonzero(~settled | worse):
            late[b] = not search.guard(b, max_solves)
        slope, solves = search.slope, search.solves + 1
    path, factor = linear_solve(prior, terms, slope)
    failed = np.asarray(factor.status) != 0
    status = tuple(
        "failed" if bad else "max_solves" if slow else "stationary"
        for bad, slow in zip(failed, late, strict=True)
    )
    value = prior.log_prob(path) + terms.value(path)
    pinned = ((slope > 0) & (slope < 1)).sum((1, 2))
    return ChainMode(path, slope, value, factor, status, solves, pinned)


class _Search:
    """The search for all trials: best path and slopes seen so far of each."""

    def __init__(
        self, prior: ChainPrior, terms: QuadraticTerms, slope: np.ndarray, rho: float
    ) -> None:
        self.prior, self.terms, self.rho = prior, terms, rho
        trials = len(terms.constant)
        self.slope = slope
        self.path = np.zeros(terms.score.shape)
        self.value = np.full(trials, -np.inf)
        self.solves = np.zeros(trials, dtype=np.int64)

    def sweep(self, max_solves: int, flips: int) -> np.ndarray:
        """Flip, then pin, all trials at once; which of them became stationary."""
        slope, pinned = self.slope.copy(), np.zeros(self.slope.shape, dtype=bool)
        active = np.arange(len(self.value))
        for solve in range(max_solves):
            prior, terms = _part(self.prior, self.terms, active)
            z, _ = linear_solve(prior, terms, slope, pins=pinned, rho=self.rho)
            slope, pinned, moved, fraction = _revise(
                prior, z, slope, pinned, rho=self.rho, pinning=solve + 1 >= flips
            )
            self.solves[active] += 1
            value = prior.log_prob(z) + terms.value(z)
            take = ~moved | (value > self.value[active])
            chosen = active[take]
            self.slope[chosen], self.path[chosen] = fraction[take], z[take]
            self.value[chosen] = value[take]
            active, slope, pinned = active[moved], slope[moved], pinned[moved]
            if not len(active):
                break
        settled = np.ones(len(self.value), dtype=bool)
        settled[active] = False
        return settled

    def guard(self, b: int, max_solves: int) -> bool:
        """Guarded ascent of one trial from the best path seen; whether it became stationary."""
        prior, terms = self.prior.select([b]), self.terms.select([b])
        state = ActiveSet.at(prior, self.path[[b]])
        state, stationary, solves = ascend(
            prior, terms, state, rho=self.rho, max_solves=max_solves
        )
        self.solves[b] += solves
        self.path[b] = state.path[0]
        self.slope[b] = clarke_slopes(prior, state.path, state.pinned, self.rho)[0]
        return stationary


def _revise(
    prior: ChainPrior,
    z: np.ndarray,
    slope: np.ndarray,
    pinned: np.ndarray,
    *,
    rho: float,
    pinning: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Next slopes and pins, which trials moved, and the slopes to report for this path."""
    on = prior.form.gates(z[:, :-1]) > 0
    crossed = prior.inside()[..., None] & ~pinned & (on != slope)
    left, right = one_sided_slopes(prior, z, pinned, rho)
    up = pinned & (right > TOLERANCE * rho) & (right >= -left)
    down = pinned & (left < -TOLERANCE * rho) & ~up
    fraction = clarke_slopes(prior, z, pinned, rho)
    moved = (crossed | up | down).any((1, 2))
    slope = np.where(crossed, on, np.where(up, 1.0, np.where(down, 0.0, slope)))
    pinned = pinned & ~up & ~down
    if pinning:
        pinned = pinned | crossed
        slope = np.where(pinned, 0.0, slope)
    return slope, pinned, moved, fraction


def _initial_slopes(prior: ChainPrior, start: np.ndarray | None) -> np.ndarray:
    trials, steps, _ = prior.drive.shape
    gates = prior.form.outer.shape[1]
    if start is None or not gates:
        return np.full((trials, steps, gates), 0.5) * prior.inside()[..., None]
    on = (prior.form.gates(start[:, :-1]) > 0) & prior.inside()[..., None]
    return on.astype(np.float64)


def _stiffness(prior: ChainPrior, terms: QuadraticTerms) -> float:
    """Typical precision along a unit gate direction, the scale of the pinning penalty."""
    information = np.trace(terms.information, axis1=-2, axis2=-1).mean()
    normal = np.mean(prior.form.inner**2) * prior.dim
    return float((np.trace(prior.precision) + information) / prior.dim / max(normal, 1e-300))


def _part(
    prior: ChainPrior, terms: QuadraticTerms, active: np.ndarray
) -> tuple[ChainPrior, QuadraticTerms]:
    if len(active) == len(terms.constant):
        return prior, terms
    return prior.select(active), terms.select(active)
