"""Observed information of a model's parameters: its curvature, rank and what it leaves open."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plssm.errors import CapabilityError, PlssmError
from plssm.inference.filter_likelihood import FilterLikelihood

__all__ = ["Information", "mode_information", "newton_ascent", "observed_information"]

STEP = 1e-4  # of the differences, over the square root of the number of steps
INERT = 1e-24  # information of a parameter that nothing depends on, as a share of the most
GAUGE = 1e-10  # share of the scores' variance below which a direction changes no step's density
ROUNDS, NEAR = 4, 0.1  # measurements of curvature, and the distance to a mode that ends them
RISE = 1e-4  # nats that a Newton step must promise


@dataclass(frozen=True, eq=False)
class Information:
    r"""A Gaussian posterior of parameters from the curvature at a point.

    .. math:: \theta \sim \mathcal N(\hat\theta, R R^\top), \qquad
        R R^\top = U (U^\top H U)^{+} U^\top, \quad
        H = -\nabla^2 \log p_\theta(Y) - \nabla^2 \log p(\theta)

    U spans what the data can tell: without directions along which no step's density changes
    (gauge freedoms of the latent space). The pseudo-inverse leaves out directions with little or
    negative curvature.

    Attributes:
        point: Where it was taken [P].
        likelihood: Minus the Hessian of the log-likelihood [P, P].
        prior: Minus the Hessian of the log prior [P, P].
        gradient: Of the log posterior density [P].
        value: The log posterior density, up to a constant.
        roots: R [P, rank].
        climb: R beside directions with negative curvature, in units of its size
            [P, rank + negative].
        inert: Parameters that no density depends on.
        gauge: Directions along which no step's density changes.
        weak: Other directions that are held, because their curvature is below the share asked for.
        negative: Directions that are held because the density curves upwards.
    """

    point: Tensor
    likelihood: Tensor
    prior: Tensor
    gradient: Tensor
    value: float
    roots: Tensor
    climb: Tensor
    inert: int
    gauge: int
    weak: int
    negative: int

    @property
    def rank(self) -> int:
        """Number of directions that are drawn."""
        return self.roots.shape[1]

    @property
    def covariance(self) -> Tensor:
        """Posterior covariance R R' [P, P]."""
        return self.roots @ self.roots.T

    @property
    def newton_step(self) -> Tensor:
        """From the point to the maximum of the quadratic [P]."""
        return self.roots @ (self.roots.T @ self.gradient)

    @property
    def distance(self) -> float:
        """Length of that step in posterior standard deviations: 0 at a mode."""
        return float((self.roots.T @ self.gradient).norm())

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws parameters.

        Args:
            draws: Their number n.
            generator: Source of randomness.

        Returns:
            Points [n, P], and their log-densities [n] up to a constant.
        """
        xi = torch.randn(draws, self.rank, generator=generator, dtype=self.point.dtype)
        return self.point + xi @ self.roots.T, -0.5 * xi.square().sum(1)


def observed_information(
    problem: FilterLikelihood,
    *,
    share: float = 1e-4,
    report: Callable[[float], None] | None = None,
) -> Information:
    """Measures curvature at the point where the parameters are.

    The Hessian comes from central differences of the exact gradient, the scores of single steps
    from differences of their densities. Steps are far below the distance at which the path
    crosses kinks, where the filter's density jumps.

    Args:
        problem: The likelihood.
        share: Directions are held whose curvature is below this share of that of the single
            parameters.
        report: Called with the share of the work that is done.

    Raises:
        PlssmError: If the likelihood is not finite there.
    """
    point = problem.vector()
    here = problem.slope(point)
    gradient = here.likelihood + here.prior
    if not bool(torch.isfinite(here.increments).all() and torch.isfinite(gradient).all()):
        raise PlssmError(
            "the likelihood of these data is not finite under the fitted model, so it has no "
            "curvature; are these the training data?"
        )
    scores, likelihood, prior = _differences(problem, point, len(here.increments), report)
    values = _solved(scores, likelihood, prior, share)
    value = float(here.increments.sum()) + here.log_prior
    return Information(point, likelihood, prior, gradient, value, **values)


def _differences(
    problem: FilterLikelihood, point: Tensor, steps: int, report: Callable | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of single steps [N, P], and minus both Hessians [P, P], symmetric."""
    size, h = len(point), STEP / math.sqrt(steps)
    columns = []
    for k in range(size):
        step = torch.zeros_like(point)
        step[k] = h
        up, down = problem.slope(point + step), problem.slope(point - step)
        columns.append([(a - b) / (2.0 * h) for a, b in zip(up[:3], down[:3], strict=True)])
        if report is not None:
            report((k + 1) / size)
    problem.move(point)
    scores, likelihood, prior = (torch.stack(c, 1) for c in zip(*columns, strict=True))
    if not bool(torch.isfinite(likelihood).all()):
        raise CapabilityError(
            "the filter breaks down beside the fitted parameters, so the likelihood has no "
            "curvature there; train longer, or use an ensemble (method='restarts')"
        )
    return scores, -0.5 * (likelihood + likelihood.T), -0.5 * (prior + prior.T)


def _solved(scores: Tensor, likelihood: Tensor, prior: Tensor, share: float) -> dict:
    """Roots of the covariance, and how many directions are held for which reason."""
    each = scores.square().sum(0).maximum(likelihood.diagonal().abs())
    alive = each > INERT * each.max()
    unit = torch.where(alive, each, 1.0).rsqrt()[alive]
    seen = scores[:, alive] * unit
    spread, axes = torch.linalg.eigh(seen.T @ seen)
    informed = spread > GAUGE * spread[-1]
    basis = axes[:, informed]
    whole = (likelihood + prior)[alive][:, alive] * unit * unit[:, None]
    curvature, directions = torch.linalg.eigh(basis.T @ whole @ basis)
    told = curvature.abs() > share
    climb = likelihood.new_zeros(len(alive), int(told.sum()))
    climb[alive] = unit[:, None] * (basis @ directions[:, told]) * curvature[told].abs().rsqrt()
    kept, negative = curvature > share, int((curvature < -share).sum())
    return {
        "roots": climb[:, curvature[told] > 0], "climb": climb, "inert": int((~alive).sum()),
        "gauge": int((~informed).sum()), "negative": negative,
        "weak": int((~kept).sum()) - negative,
    }  # fmt: skip


def mode_information(
    problem: FilterLikelihood, *, steps: int, share: float = 1e-4,
    report: Callable[[float], None] | None = None,
) -> tuple[Information, float]:  # fmt: skip
    """Goes to a nearby mode and measures the curvature there.

    Newton steps hold the curvature of where they start; where they end away from a mode, they
    start anew, a few times.

    Args:
        problem: The likelihood; its parameters are moved.
        steps: Steps at most, each time; none leave the parameters where they are.
        share: See :func:`observed_information`.
        report: Called with the share of the work that is done, for every measurement.

    Returns:
        The curvature, and the rise of the log posterior density in nats.
    """
    information, rise = observed_information(problem, share=share, report=report), 0.0
    for _ in range(ROUNDS if steps else 0):
        gained = newton_ascent(problem, information, steps)
        if not gained > RISE:
            problem.move(information.point)
            break
        try:
            there = observed_information(problem, share=share, report=report)
        except PlssmError:  # no curvature there: stay where there is
            problem.move(information.point)
            break
        rise, information = rise + gained, there
        if information.distance < NEAR and not information.negative:
            break
    return information, rise


def newton_ascent(problem: FilterLikelihood, information: Information, steps: int) -> float:
    r"""Goes uphill by Newton steps that never go downhill, with the curvature held.

    .. math:: \theta \leftarrow \theta + a\, R R^\top g(\theta), \quad a = 1, \tfrac12, \dots

    where negative curvature counts by its size, so that saddles are left.

    Args:
        problem: The likelihood; its parameters are moved.
        information: The curvature, at the point where the parameters are.
        steps: Steps at most.

    Returns:
        The rise of the log posterior density in nats.
    """
    point, value = information.point, information.value
    for _ in range(steps):
        here = problem.slope(point)
        ahead = information.climb.T @ (here.likelihood + here.prior)
        if not float(ahead.square().sum()) > 2.0 * RISE:
            break
        move = information.climb @ ahead
        lengths = (0.5**k for k in range(8))
        tried = ((point + a * move, problem.value(point + a * move)) for a in lengths)
        better = next((found for found in tried if found[1] > value), None)
        if better is None:
            break
        point, value = better
    problem.move(point)
    return value - information.value
