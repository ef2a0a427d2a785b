"""Mode of a piecewise-linear chain with quadratic observation terms (three-state active set)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plssm.inference.active_set import ActiveSet, ascend, clarke_slopes
from plssm.inference.banded_search import search_banded
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve, log_constant, log_joint
from plssm.kernels.mode_search import ModeSearch, search_modes
from plssm.linalg.banded import BandedFactor
from plssm.linalg.block_tridiagonal import ChainFactor

__all__ = ["ChainMode", "find_mode", "pin_stiffness"]

SWEEPS = 24  # compiled solves before a trial is handed to the guarded ascent
PIN = 1e8  # stiffness of a pin over that of the chain: holds a gate at 0 to about 1e-8 of its sd


@dataclass(frozen=True)
class ChainMode:
    """Result of a mode search.

    Args:
        path: The mode ``[B, T, M]``, zeros beyond a trial's end.
        slope: Slope of every hinge at the mode ``[B, T, P]``: 0, 1, or between them for a unit
            whose maximum lies exactly on its kink.
        value: Log joint density at the mode, ``[B]``.
        factor: Cholesky factor of the negative Hessian at ``slope``; that of the last solve where
            the search was not finished.
        status: ``"stationary"``, ``"max_solves"`` or ``"failed"`` for each trial.
        solves: Linear solves used by each trial ``[B]``.
        pinned: Units on their kink, by trial ``[B]``.
        held: The same by unit, bool ``[B, T-1, P]``.
    """

    path: np.ndarray
    slope: np.ndarray
    value: np.ndarray
    factor: ChainFactor | BandedFactor
    status: tuple[str, ...]
    solves: np.ndarray
    pinned: np.ndarray
    held: np.ndarray


def find_mode(
    prior: ChainPrior,
    terms: QuadraticTerms,
    start: np.ndarray | None = None,
    *,
    max_solves: int = 200,
    flips: int = 4,
    before: np.ndarray | None = None,
    begin: ActiveSet | None = None,
    finish: bool = True,
) -> ChainMode:
    r"""Local maximum of a piecewise-quadratic log joint density over latent paths.

    Every linear region of the map makes the log joint quadratic, so a Newton step is one
    block-tridiagonal solve. Flipping regions until they agree with the solution does not end on
    long series, because some units have their maximum exactly on the kink :math:`a_p(z_t) = 0`
    (left slope > 0 > right slope). Units that still cross after ``flips`` solves are therefore
    pinned to their kink, and released when a one-sided slope says so. A trial on which this does
    not settle, or ends below its start, goes on by a guarded ascent that
    never moves downhill. At the end a pinned hinge gets the slope between 0 and 1 that makes the
    gradient vanish (its Clarke multiplier), so the returned Gaussian has exactly the mode as its
    mean.

    Args:
        prior: The latent prior of B trials.
        terms: Observation terms, quadratic in the path.
        start: Path the search starts from ``[B, T, M]``; every hinge half on where absent.
        max_solves: Give up on a trial after about this many linear solves.
        flips: Plain region flips before units are pinned.
        before: Log joint at the start, where it is known, ``[B]``.
        begin: Slopes and pins at the start, where they are known.
        finish: Whether the factor at ``slope`` is needed; without it the result has that of the
            last solve, pins included, until the thread's next search.

    Returns:
        The mode with its stop reason for every trial. With a start, the log joint at a
        stationary mode is not below that of the start.
    """
    trials = len(terms.constant)
    late = np.zeros(trials, dtype=bool)
    if not prior.form.outer.shape[1]:
        slope = np.zeros((*prior.drive.shape[:2], 0))
        path, factor = linear_solve(prior, terms, slope)
        return _result(prior, terms, path, slope, factor, np.ones(trials, dtype=np.int64), late)
    rho = pin_stiffness(prior, terms)
    if begin is None and start is not None:
        begin = ActiveSet.at(prior, start)
    found = _search(prior, terms, begin, rho, flips, min(SWEEPS, max_solves), finish)
    path, slope, factor, solves = found.path, found.slope, found.factor, found.solves
    value = found.value + log_constant(prior, terms) if terms.banded is None else found.value
    from_start = np.zeros(trials, dtype=bool)
    if start is not None:
        before = log_joint(prior, terms, start) if before is None else before
        from_start = value < before - 1e-9 * (1 + np.abs(before))
    astray = ~found.stationary | from_start
    if not (astray.any() or finish):
        status, none = ("stationary",) * trials, found.pinned.sum((1, 2))
        return ChainMode(path, slope, value, factor, status, solves, none, found.pinned)
    if astray.any():
        slope, solves = slope.copy(), solves.copy()
        for b in np.flatnonzero(astray):
            best = start[[b]] if from_start[b] else found.visited[[b]]
            slope[b], stationary, more = _guard(prior, terms, b, best, rho, max_solves)
            solves[b] += more
            late[b] = not stationary
        path, factor = linear_solve(prior, terms, slope)
    return _result(prior, terms, path, slope, factor, solves, late)


def _search(
    prior: ChainPrior,
    terms: QuadraticTerms,
    begin: ActiveSet | None,
    rho: float,
    flips: int,
    max_solves: int,
    finish: bool,
) -> ModeSearch:
    """Flip and pin; compiled where the negative Hessian is block-tridiagonal."""
    slope = _halfway(prior) if begin is None else begin.slope
    pinned = None if begin is None else begin.pinned
    settings = {"pin": rho, "flips": flips if begin is None else 1, "max_solves": max_solves}
    if terms.banded is not None:
        return search_banded(prior, terms, slope, pinned=pinned, **settings)
    return search_modes(
        prior.form,
        prior.drive,
        prior.precision,
        prior.initial_mean,
        prior.initial_precision,
        terms.information,
        terms.score,
        slope,
        prior.length,
        pinned=pinned,
        finish=finish,
        packed=prior.packed,
        **settings,
    )


def _result(
    prior: ChainPrior,
    terms: QuadraticTerms,
    path: np.ndarray,
    slope: np.ndarray,
    factor: ChainFactor | BandedFactor,
    solves: np.ndarray,
    late: np.ndarray,
) -> ChainMode:
    failed = np.asarray(factor.status) != 0
    status = tuple(
        "failed" if bad else "max_solves" if slow else "stationary"
        for bad, slow in zip(failed, late, strict=True)
    )
    value = log_joint(prior, terms, path)
    held = (slope > 0) & (slope < 1)
    return ChainMode(path, slope, value, factor, status, solves, held.sum((1, 2)), held)


def _halfway(prior: ChainPrior) -> np.ndarray:
    """Every hinge half on, where no path is known to start from."""
    trials, steps, _ = prior.drive.shape
    inside = np.broadcast_to(prior.inside()[..., None], (trials, steps, prior.form.outer.shape[1]))
    return np.where(inside, 0.5, 0.0)


def _guard(
    prior: ChainPrior,
    terms: QuadraticTerms,
    b: int,
    path: np.ndarray,
    rho: float,
    max_solves: int,
) -> tuple[np.ndarray, bool, int]:
    """Guarded ascent of one trial: slopes, whether it is stationary, solves."""
    prior, terms = prior.select([b]), terms.select([b])
    state, stationary, solves = ascend(
        prior, terms, ActiveSet.at(prior, path), rho=rho, max_solves=max_solves
    )
    return clarke_slopes(prior, state.path, state.pinned, rho)[0], stationary, solves


def pin_stiffness(prior: ChainPrior, terms: QuadraticTerms) -> float:
    """Stiffness of pins: many times a typical precision along a unit gate direction."""
    diagonals = terms.information.reshape(-1, prior.dim**2)[:, :: prior.dim + 1]
    information = diagonals.sum() / len(diagonals)
    if terms.banded is not None:
        information += np.trace(terms.banded[:, :, 0], axis1=-2, axis2=-1).mean()
    normal = np.mean(prior.form.inner**2) * prior.dim
    typical = (np.trace(prior.precision) + information) / prior.dim / max(normal, 1e-300)
    return PIN * float(typical)
