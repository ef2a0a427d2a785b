"""Active-set search for the mode of a chain whose negative Hessian is block-banded."""

from __future__ import annotations

import numpy as np

from plssm.inference.active_set import one_sided_slopes
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve, log_joint
from plssm.kernels.mode_search import ModeSearch

__all__ = ["search_banded"]

SLOPE = 1e-14  # slopes below this times the stiffness of the pins count as zero


def search_banded(
    prior: ChainPrior,
    terms: QuadraticTerms,
    slope: np.ndarray,
    *,
    pin: float,
    pinned: np.ndarray | None = None,
    flips: int = 4,
    max_solves: int = 60,
) -> ModeSearch:
    """Flip hinges, then pin those that keep crossing; trials are searched one by one.

    The same search as :func:`plssm.kernels.mode_search.search_modes`, with banded solves: there
    the solves cost so much more than everything else that plain arrays are fast enough.

    Args:
        prior: The latent prior of B trials.
        terms: Observation terms with a banded part.
        slope: Slopes to start from ``[B, T-1, P]``.
        pin: Stiffness of the springs that hold a pinned gate at zero.
        pinned: Hinges that start pinned, bool ``[B, T-1, P]``.
        flips: Solves before hinges are pinned.
        max_solves: Solves of a trial after which its search gives up.

    Returns:
        The best slopes found with their path and factor.
    """
    trials = len(terms.constant)
    best, visited = slope.astype(np.float64), np.zeros_like(terms.score)
    value, stationary = np.full(trials, -np.inf), np.zeros(trials, dtype=bool)
    solves, held = np.zeros(trials, dtype=np.int64), np.zeros(slope.shape, dtype=bool)
    for b in range(trials):
        search = _Search(prior.select([b]), terms.select([b]), pin, flips, max_solves)
        search.run(slope[[b]], None if pinned is None else pinned[[b]])
        best[b], visited[b], value[b] = search.best[0], search.visited[0], search.value
        stationary[b], solves[b], held[b] = search.stationary, search.solves, search.held[0]
    path, factor = linear_solve(prior, terms, best)
    stationary &= factor.status == 0
    return ModeSearch(path, visited, best, value, factor, stationary, solves + 1, held)


class _Search:
    """Search of one trial."""

    def __init__(
        self, prior: ChainPrior, terms: QuadraticTerms, pin: float, flips: int, max_solves: int
    ) -> None:
        self.prior, self.terms, self.pin = prior, terms, pin
        self.flips, self.max_solves = flips, max_solves
        self.value, self.stationary, self.solves = -np.inf, False, 0

    def run(self, slope: np.ndarray, pinned: np.ndarray | None) -> None:
        """Search from given slopes and pins; results are left in the attributes."""
        slope = slope.astype(np.float64)
        pins = np.zeros(slope.shape, dtype=bool) if pinned is None else pinned.copy()
        slope[pins] = 0.0
        self.best, self.visited = slope.copy(), np.zeros_like(self.terms.score)
        self.held = pins
        while self.solves < self.max_solves and not self.stationary:
            z, factor = linear_solve(self.prior, self.terms, slope, pins=pins, rho=self.pin)
            self.solves += 1
            if factor.status[0]:
                return
            slope, pins = self._revise(z, slope, pins)

    def _revise(
        self, z: np.ndarray, slope: np.ndarray, pins: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keep the path if it is the best so far; slopes and pins to try next."""
        inside = self.prior.inside()[..., None]
        on = ((self.prior.form.gates(z[:, :-1]) > 0) & inside).astype(np.float64)
        left, right = one_sided_slopes(self.prior, z, pins, self.pin)
        up = pins & (right > SLOPE * self.pin) & (right >= -left)
        down = pins & (left < -SLOPE * self.pin) & ~up
        crossed = ~pins & inside & (on != slope)
        self.stationary = not (crossed | up | down).any()
        value = float(log_joint(self.prior, self.terms, z)[0])
        if self.stationary or value > self.value:
            drop = np.where(pins & (left > right), left - right, 1.0)
            self.best = np.where(pins, np.clip(left / drop, 0.0, 1.0), on)
            self.visited, self.value, self.held = z, value, pins
        slope = np.where(crossed, on, np.where(up, 1.0, np.where(down, 0.0, slope)))
        pins = pins & ~up & ~down
        if self.solves >= self.flips:
            pins = pins | crossed
            slope = np.where(pins, 0.0, slope)
        return slope, pins
