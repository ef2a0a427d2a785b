"""Damped Newton search for the mode where observation terms are not quadratic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.active_set import ActiveSet
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import cold_mode
from plssm.inference.mode_search import ChainMode, find_mode, pin_stiffness
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve
from plssm.kernels.mode_search import maximise
from plssm.kernels.recentre import recentre
from plssm.linalg.banded import BandedFactor
from plssm.linalg.block_tridiagonal import ChainFactor
from plssm.model import StateSpaceModel
from plssm.observations.local import Local

__all__ = ["expand", "newton_mode"]

STALLED = 1e-6  # a Newton step that promises more than this, relative, and gains nothing
HALVINGS = 30
NEARLY = 1e-9  # a move smaller than this is none
ROUNDING = 1e-13  # share of the log joint that rounding may cost a step
SURE = 1.5  # power of the tolerance below which the gain of a further step is not worth it


def expand(
    model: StateSpaceModel,
    batch: Batch,
    z: np.ndarray,
    *,
    positive: bool = False,
    quadratic: bool = False,
) -> QuadraticTerms:
    """Second-order expansion of the observation terms at a path.

    Args:
        model: The model.
        batch: Its data.
        z: The path ``[B, T, M]``.
        positive: Whether the curvature has to be positive semi-definite.
        quadratic: Whether to leave out modalities whose terms are not quadratic.

    Returns:
        The sum of the terms of all of these modalities.
    """
    return _expanded(model, batch, z, positive=positive, quadratic=quadratic)[0]


def _expanded(
    model: StateSpaceModel,
    batch: Batch,
    z: np.ndarray,
    *,
    positive: bool = False,
    quadratic: bool = False,
) -> tuple[QuadraticTerms, np.ndarray]:
    """Expansion of observation terms at a path, and their value there ``[B]``."""
    path = torch.from_numpy(z)
    total, value = None, 0.0
    for name, observation in model.observations.items():
        if quadratic and not observation.quadratic:
            continue
        local = observation.local(batch.modalities[name], path, positive=positive)
        power = float(observation.tempering)
        terms = _about(local, z, power)
        total = terms if total is None else _add(total, terms)
        value = value + power * local.log_prob.detach().numpy()
    return replace(total, information=np.ascontiguousarray(total.information)), value


def _about(local: Local, z: np.ndarray, power: float) -> QuadraticTerms:
    """Coefficients of the expansion of one modality, to a power, around a path."""
    slope, curvature = local.score.detach().numpy(), local.curvature.detach().numpy()
    if power != 1.0:
        slope, curvature = power * slope, power * curvature
    value = power * local.log_prob.detach().numpy()
    if curvature.shape == (*z.shape, z.shape[2]):
        score, constant = recentre(slope, curvature, z)
        return QuadraticTerms(value + constant, score, curvature)
    flat = np.zeros((1, 1, *z.shape[2:] * 2))
    banded = curvature if curvature.ndim == 5 else None
    terms = QuadraticTerms(0.0, slope, curvature if banded is None else flat, banded)
    curved = terms.curved(z)
    constant = value - ((slope + 0.5 * curved) * z).sum((1, 2))
    return replace(terms, constant=constant, score=slope + curved)


def _add(one: QuadraticTerms, two: QuadraticTerms) -> QuadraticTerms:
    """Sum of two expansions."""
    banded = [k for k in (one.banded, two.banded) if k is not None]
    if len(banded) == 2:  # the longer memory holds the shorter
        short, long = sorted(banded, key=lambda k: k.shape[2])
        long = long.copy()
        long[:, :, : short.shape[2]] += short
        banded = [long]
    return QuadraticTerms(
        one.constant + two.constant,
        one.score + two.score,
        one.information + two.information,
        banded[0] if banded else None,
    )


class _Point:
    """A path with the expansion of the observation terms there."""

    def __init__(
        self, prior: ChainPrior, model: StateSpaceModel, batch: Batch, z: np.ndarray
    ) -> None:
        self.prior, self.model, self.batch, self.z = prior, model, batch, z
        with np.errstate(over="ignore", invalid="ignore"):
            self.terms, value = _expanded(model, batch, z)
            value = value + prior.log_prob(z)
        self.value = np.where(np.isfinite(value), value, -np.inf)

    def region(self, mode: ChainMode) -> ActiveSet:
        """Slopes and pins of the path: those of a mode on the trials whose path it is."""
        if self.z is mode.path:
            return ActiveSet(self.z, mode.slope, mode.held)
        here, there = ActiveSet.at(self.prior, self.z), (self.z == mode.path).all((1, 2))
        known = there[:, None, None]
        slope = np.where(known, mode.slope, here.slope)
        return ActiveSet(self.z, slope, np.where(known, mode.held, here.pinned))

    def moved(self, target: np.ndarray, trials: np.ndarray) -> _Point:
        """Go towards a target as far as each of the trials gains; the others stay."""
        step = trials.astype(np.float64)
        best = self
        for _ in range(HALVINGS):
            move = step[:, None, None] * (target - self.z)
            if np.abs(move).max() < NEARLY:
                break
            whole = step == 1.0
            path = target
            if not whole.all():
                path = np.where(whole[:, None, None], target, self.z + move)
            tried = _Point(self.prior, self.model, self.batch, path)
            worse = trials & ~(tried.value >= self.value - ROUNDING * np.abs(self.value))
            if not worse.any():
                return tried
            z = np.where((trials & ~worse)[:, None, None], tried.z, self.z)
            step = np.where(worse, 0.5 * step, step)
            best = z
        return self if best is self else _Point(self.prior, self.model, self.batch, best)


def newton_mode(
    prior: ChainPrior,
    model: StateSpaceModel,
    batch: Batch,
    start: np.ndarray | None,
    *,
    steps: int,
    max_solves: int,
    tolerance: float,
) -> tuple[ChainMode, str]:
    """Damped Newton on the observation terms; each step is a region search of its own.

    Args:
        prior: The latent prior of B trials.
        model: The model.
        batch: Their data.
        start: Path the search starts from ``[B, T, M]``; zeros where absent.
        steps: Newton steps at most.
        max_solves: Linear solves of one region search.
        tolerance: A trial is done when a step gained less than this share of its log joint. As a
            step that gains a share g leaves one of about its square, it is also done where the
            next one promises less than ``tolerance**1.5``.

    Returns:
        The mode, its factor at the exact negative Hessian, and the kind of its evidence.
    """
    trials = len(prior.length)
    z = np.zeros((trials, batch.steps, prior.dim)) if start is None else start.copy()
    here = _Point(prior, model, batch, z)
    every = np.ones(trials, dtype=bool)
    concave = all(o.concave for o in model.observations.values())
    if start is None:
        terms = here.terms if concave else here.terms.steering(z)
        here = here.moved(cold_mode(prior, terms, max_solves=max_solves).path, every)
    solves, done = np.zeros(trials, dtype=np.int64), np.zeros(trials, dtype=bool)
    begin, near = None, np.zeros(trials, dtype=bool)
    for _ in range(steps):
        terms = here.terms if concave else here.terms.steering(here.z)
        mode = find_mode(
            prior, terms, here.z, max_solves=max_solves, before=here.value, begin=begin,
            finish=False,
        )  # fmt: skip
        solves += np.where(done, 0, mode.solves)
        promised = mode.value - here.value
        after = here.moved(mode.path, ~done)  # trials do not wait for each other
        gained, here, size = after.value - here.value, after, 1 + np.abs(after.value)
        ended = ~done & ~(gained > tolerance * size)
        near |= ended & (promised <= STALLED * size)
        done |= ended
        if concave and not done.all():
            sure = ~done & (_further(here, terms, mode) <= tolerance**SURE * size)
            near, done = near | sure, done | sure
        if done.all():
            break
        begin = after.region(mode)
    status = tuple(
        s if s != "stationary" else "max_solves" if not d else "stationary" if n else "stalled"
        for s, d, n in zip(mode.status, done, near, strict=True)
    )
    factor, kind = _true_curvature(here, mode.slope)
    found = ChainMode(
        here.z, mode.slope, here.value, factor, status, solves, mode.pinned, mode.held
    )
    return found, kind


@np.errstate(over="ignore", invalid="ignore")
def _further(here: _Point, terms: QuadraticTerms, mode: ChainMode) -> np.ndarray:
    r"""What a further Newton step promises to gain ``[B]``; infinite where that is not known.

    .. math:: \tfrac12 \, g^\top U^{-1} g, \qquad
        g = \nabla \log p(Y \mid Z) - \nabla q(Z)

    At the maximum of the expansion q with the prior, the gradient is what the observation terms
    add to that of q; the curvature U is that of the last solve, in which units on their kinks are
    held (where no trial needed the guarded ascent). It is not known where the step would take a
    unit over its kink or a held one off it.
    """
    arrived = np.array([s == "stationary" for s in mode.status])
    if here.z is not mode.path:
        arrived &= (here.z == mode.path).all((1, 2))
    if terms.banded is not None or not arrived.any():
        return np.full(len(arrived), np.inf)
    change = here.terms.score - terms.score
    change -= replace(terms, information=here.terms.information - terms.information).curved(here.z)
    step = mode.factor.solve(change)
    gain = 0.5 * (change * step).sum((1, 2))
    known = arrived & np.isfinite(gain) & ~_leaves_region(here, terms, mode, step)
    return np.where(known, gain, np.inf)


def _leaves_region(
    here: _Point, terms: QuadraticTerms, mode: ChainMode, step: np.ndarray
) -> np.ndarray:
    """Whether a step takes a unit over its kink or a held one off it, bool ``[B]``."""
    prior = here.prior
    form, held = prior.form, mode.held
    if not form.outer.shape[1]:
        return np.zeros(len(step), dtype=bool)
    gate, ahead = form.gates(here.z[:, :-1]), step[:, :-1]
    along = ahead if form.identity_gates else ahead @ form.inner.T
    leaves = ~held & ((gate > 0) != (gate + along > 0)) & prior.inside()[..., None]
    if held.any():
        kink = (prior.residual(here.z) @ prior.precision) @ form.outer
        left = pin_stiffness(prior, terms) * along - mode.slope * kink  # force on the pins
        leaves |= held & ((left < 0) | (left + kink > 0))
    return leaves.any((1, 2))


def _true_curvature(here: _Point, slope: np.ndarray):  # noqa: ANN202
    """Factor at the exact negative Hessian; where it is indefinite, at the step curvature."""
    factor = _factor(here.prior, here.terms, slope)
    indefinite = np.asarray(factor.status) != 0
    if not indefinite.any():
        return factor, "laplace"
    safe = expand(here.model, here.batch, here.z, positive=True)
    chosen = np.where(indefinite[:, None, None, None], safe.information, here.terms.information)
    factor = _factor(here.prior, replace(here.terms, information=chosen), slope)
    return factor, "laplace (majorised)"


def _factor(
    prior: ChainPrior, terms: QuadraticTerms, slope: np.ndarray
) -> ChainFactor | BandedFactor:
    """Factor of the negative Hessian at given slopes."""
    if terms.banded is not None or not slope.shape[2]:
        return linear_solve(prior, terms, slope)[1]
    return maximise(prior.packed, terms.information, terms.score, slope)[1]
