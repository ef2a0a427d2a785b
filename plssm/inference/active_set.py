"""Guarded ascent to the mode of a piecewise-quadratic chain: never downhill, always ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plssm.inference.chain_prior import ChainPrior
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve
from plssm.kernels.mode_search import RegionMaxima
from plssm.kernels.ray_slopes import ray_slopes

__all__ = ["TOLERANCE", "ActiveSet", "ascend", "clarke_slopes", "one_sided_slopes"]

ON_KINK = 1e-9  # a gate closer to 0 than this, relative to the path's size, lies on its kink
TOLERANCE = 1e-12  # slopes below this times the stiffness of the pins count as 0
WINDOW = 8  # pinned units this many steps apart hardly influence each other


@dataclass
class ActiveSet:
    """A point of the search: path, slopes of the hinges, and which units sit on their kink.

    Args:
        path: Latent path ``[1, T, M]``.
        slope: 0 or 1 for every hinge ``[1, T-1, P]``.
        pinned: Units held on their kink, bool ``[1, T-1, P]``; their slope is 0.
    """

    path: np.ndarray
    slope: np.ndarray
    pinned: np.ndarray

    @classmethod
    def at(cls, prior: ChainPrior, path: np.ndarray) -> ActiveSet:
        """The active set of a path: units on their kink are pinned there."""
        gate = prior.form.gates(path[:, :-1])
        inside = prior.inside()[..., None]
        pinned = inside & (np.abs(gate) < ON_KINK * (1.0 + np.abs(path).max()))
        return cls(path, (inside & ~pinned & (gate > 0)).astype(np.float64), pinned)


def one_sided_slopes(
    prior: ChainPrior, path: np.ndarray, pinned: np.ndarray, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the log joint to the left and right of each pinned unit's kink.

    Args:
        prior: The prior.
        path: Maximum with the pins held, ``[B, T, M]``.
        pinned: Units on their kink ``[B, T-1, P]``.
        rho: Stiffness of the pins; the force a pin bears is the slope on its left.

    Returns:
        Slopes along each gate, ``[B, T-1, P]`` each; the left one is 0 where nothing is pinned.
    """
    left = np.where(pinned, rho * prior.form.gates(path[:, :-1]), 0.0)
    kink = (prior.residual(path) @ prior.precision) @ prior.form.outer
    return left, left + kink


def clarke_slopes(
    prior: ChainPrior, path: np.ndarray, pinned: np.ndarray, rho: float
) -> np.ndarray:
    """Slopes of all hinges at a path; pinned ones get the slope that makes the gradient vanish."""
    on = (prior.form.gates(path[:, :-1]) > 0) & prior.inside()[..., None]
    if not pinned.any():
        return on.astype(np.float64)
    left, right = one_sided_slopes(prior, path, pinned, rho)
    drop = np.where(pinned & (left > right), left - right, 1.0)
    return np.where(pinned, np.clip(left / drop, 0.0, 1.0), on)


def ascend(
    prior: ChainPrior, terms: QuadraticTerms, state: ActiveSet, *, rho: float, max_solves: int
) -> tuple[ActiveSet, bool, int]:
    r"""Primal active-set ascent of one trial.

    Each step goes towards the maximum of the current linear region with pinned units held on
    their kinks, up to the first local maximum of the log joint along the way. Where that is a
    kink, the unit is pinned; where the region's maximum is reached, pinned units whose one-sided
    slope points uphill are released, one per neighbourhood. The log joint never falls and no
    active set comes twice, so the search ends at a point where all one-sided slopes are
    :math:`\le 0`.

    Args:
        prior: Prior of one trial.
        terms: Its observation terms.
        state: Where to start.
        rho: Stiffness of the pins.
        max_solves: Give up after this many linear solves.

    Returns:
        The last state, whether it is stationary, and the number of solves.
    """
    maximum = _maxima(prior, terms, rho)
    for solve in range(1, max_solves + 1):
        target = maximum(state.slope, state.pinned)
        ray = _Ray(prior, terms, state, target - state.path)
        wrong = ray.on_kink & (ray.slope(0.0, after=True) != state.slope)
        if wrong.any() and not ray.begins_uphill:
            state = ActiveSet(state.path, np.where(wrong, 0.0, state.slope), state.pinned | wrong)
            continue
        step, hit = ray.first_maximum()
        arrived = step == 1.0 and not hit.any()
        path = target if arrived else state.path + step * ray.direction
        slope = ray.slope(step, after=False)
        same = arrived and np.array_equal(slope, state.slope)
        pinned = state.pinned | hit
        state = ActiveSet(path, np.where(pinned, 0.0, slope), pinned)
        if same:
            state, released = _release(prior, state, rho)
            if not released:
                return state, True, solve
    return state, False, max_solves


def _maxima(
    prior: ChainPrior, terms: QuadraticTerms, rho: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The maximum of a region, as a function of slopes and pins."""
    if terms.banded is None:
        return RegionMaxima(prior.packed, terms.information, terms.score, rho)
    return lambda slope, pinned: linear_solve(prior, terms, slope, pins=pinned, rho=rho)[0]


def _release(prior: ChainPrior, state: ActiveSet, rho: float) -> tuple[ActiveSet, bool]:
    """Free the worst of the pinned units whose one-sided slope points uphill, locally."""
    left, right = one_sided_slopes(prior, state.path, state.pinned, rho)
    uphill = np.where(state.pinned, np.maximum(right, -left), -np.inf)
    worst = uphill.max(2)[0]
    pinned, slope = state.pinned.copy(), state.slope.copy()
    near = np.zeros(len(worst), dtype=bool)
    for t in np.argsort(-worst, kind="stable"):
        if worst[t] <= TOLERANCE * rho:
            break
        if near[t]:
            continue
        p = int(uphill[0, t].argmax())
        pinned[0, t, p] = False
        slope[0, t, p] = float(right[0, t, p] >= -left[0, t, p])
        near[max(t - WINDOW, 0) : t + WINDOW + 1] = True
    return ActiveSet(state.path, slope, pinned), bool(near.any())


class _Ray:
    """The log joint along a straight line of paths: piecewise quadratic in the step length."""

    def __init__(
        self, prior: ChainPrior, terms: QuadraticTerms, state: ActiveSet, direction: np.ndarray
    ) -> None:
        self.prior, self.terms, self.state, self.direction = prior, terms, state, direction
        gate, size = prior.form.gates(state.path[:, :-1]), 1.0 + np.abs(state.path).max()
        identity, ahead = prior.form.identity_gates, direction[:, :-1]
        self.along = ahead if identity else ahead @ prior.form.inner.T
        free = prior.inside()[..., None] & ~state.pinned
        self.on_kink = free & (np.abs(gate) < ON_KINK * size)
        self.gate = np.where(self.on_kink, 0.0, gate)
        moving = free & (self.along != 0)
        self.rising = self.along > 0
        self.start_on = free & (self.gate > 0)
        self.crossing = np.where(moving, -self.gate / np.where(moving, self.along, 1.0), np.inf)
        self.crossing[self.crossing < 0] = np.inf
        self.still = self.crossing == np.inf

    def slope(self, step: float, *, after: bool) -> np.ndarray:
        """Slopes just before or just after a step length."""
        passed = self.crossing <= step if after else self.crossing < step
        return np.where(self.still, self.start_on, passed == self.rising).astype(np.float64)

    @cached_property
    def rises(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step lengths 0, kinks, 1, and one-sided derivatives of the log joint there.

        Returns:
            Step lengths ``[K+2]``; derivatives just before them, the first not known; and just
            after them, the last not known.
        """
        prior, terms, p, z = self.prior, self.terms, self.direction, self.state.path
        form, first = prior.form, p[:, 0] @ prior.initial_precision
        moved = p[:, :-1] @ form.linear.T
        moved += (self.slope(0.0, after=True) * self.along) @ form.outer.T
        change = np.where(prior.inside()[..., None], p[:, 1:] - moved, 0.0)
        start = ((terms.score - terms.curved(z)) * p).sum()
        start -= ((z[:, 0] - prior.initial_mean) * first).sum()
        turn = -(terms.curved(p) * p).sum() - (p[:, 0] * first).sum()
        at, hinge = np.nonzero((self.crossing[0] > 0) & (self.crossing[0] < 1))
        order = np.argsort(self.crossing[0, at, hinge], kind="stable")
        at, hinge = at[order], hinge[order]
        length = self.crossing[0, at, hinge]
        begin, before, after, end = ray_slopes(
            prior.residual(z)[0], change[0], prior.precision, form.outer, length, at, hinge,
            self.gate[0, at, hinge], self.along[0, at, hinge], start=start, turn=turn,
        )  # fmt: skip
        kinks, opens = np.unique(length, return_index=True)
        closes = np.append(opens[1:], len(length)) - 1 if len(kinks) else opens
        return (
            np.concatenate([[0.0], kinks, [1.0]]),
            np.concatenate([[np.nan], before[opens], [end]]),
            np.concatenate([[begin], after[closes], [np.nan]]),
        )

    @property
    def begins_uphill(self) -> bool:
        """Whether the log joint rises just after the start."""
        return bool(self.rises[2][0] > 0)

    def first_maximum(self) -> tuple[float, np.ndarray]:
        """Step length of a local maximum on (0, 1], and the units whose kink it lies on."""
        none = np.zeros(self.crossing.shape, dtype=bool)
        length, before, after = self.rises
        low, high = 0, len(length) - 1
        if before[high] >= 0 or not (self.crossing < 1).any():
            return 1.0, none
        while high - low > 1:
            middle = (low + high) // 2
            if before[middle] < 0:
                high = middle
            elif after[middle] < 0:
                return float(length[middle]), self.crossing == length[middle]
            else:
                low = middle
        first, last = after[low], before[high]
        share = first / (first - last) if first > last else 0.0
        return float(length[low] + (length[high] - length[low]) * min(max(share, 0.0), 1.0)), none
