"""Damped Newton steps in the coefficients of linear predictors, many problems at a time."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from plssm.errors import PlssmError
from plssm.kernels.newton_steps import newton_steps
from plssm.observations.learning.expectation import Expansion, Expectation

__all__ = ["RIDGE", "Ascent", "climb", "fit_predictor"]

RIDGE = 1e-3
"""Strength of the ridge on the weights, in nats: the penalty is RIDGE / 2 times their squares.

That of a covariate is scaled by its mean square. Intercepts have none. The ridge keeps separable
data finite and the curvature positive definite; its effect on well determined weights is far below
their standard error.
"""

_ARMIJO = 1e-4
_SHORTEST = 1e-8
_ROUNDING = 1e-12
_FLATTEST = 1e-6
_REUSED = 2  # trials in a row that may do without a new curvature
_FAR = 4.0  # how much closer two steps with one curvature come than the cube of the distance
_SMALL = 64  # coefficients of a problem up to which the compiled solves are faster


class Ascent(NamedTuple):
    """Where the steps ended.

    Attributes:
        theta: ``[P, q]``.
        first: Objective at the start, without the ridge ``[P]``; minus infinity where useless.
        value: The same at the end.
        settled: Whether the gradient became small, bool ``[P]``.
        concave: Whether the curvature was positive definite at the end, bool ``[P]``.
        evaluations: Number of evaluations of the objective.
    """

    theta: Tensor
    first: Tensor
    value: Tensor
    settled: Tensor
    concave: Tensor
    evaluations: int


def _direction(gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Newton steps ``[P, q]``, uphill also where the curvature is indefinite, and where it is not.

    Coordinates are scaled to unit curvature; one without any moves by one. Where the scaled
    curvature is not positive definite its eigenvalues are replaced by their absolute values.
    """
    if gradient.shape[1] <= _SMALL:
        step, regular, curved = newton_steps(gradient.numpy(), curvature.numpy())
        if regular.all():
            return torch.from_numpy(step), torch.from_numpy(curved)
    size = torch.diagonal(curvature, dim1=-2, dim2=-1).abs()
    flat, slope = size <= 1e-200, gradient.abs()
    filled = torch.where(flat, torch.where(slope > 0, slope, 1.0), 0.0)
    curvature, size = curvature + torch.diag_embed(filled), size + filled
    scale = torch.maximum(size, 1e-14 * size.amax(-1, keepdim=True)).rsqrt()
    scaled = curvature * scale[:, :, None] * scale[:, None, :]
    scaled = scaled + 1e-13 * torch.eye(size.shape[1], dtype=scaled.dtype)
    right = gradient * scale
    factor, failed = torch.linalg.cholesky_ex(scaled)
    good = failed == 0
    step = right.clone()
    if bool(good.any()):
        step[good] = torch.cholesky_solve(right[good, :, None], factor[good])[..., 0]
    if not bool(good.all()):
        values, vectors = torch.linalg.eigh(scaled[~good])
        values = values.abs()
        values = torch.maximum(values, _FLATTEST * values.amax(-1, keepdim=True))
        turned = (vectors.mT @ right[~good, :, None]).squeeze(-1) / values
        step[~good] = (vectors @ turned[..., None]).squeeze(-1)
    return step * scale, good & ~(flat & (slope > 0)).any(-1)


class _Problems(Protocol):
    """Several independent functions of coefficients ``[P, q]``."""

    def __call__(self, theta: Tensor, *, curvature: bool) -> Expansion:
        """Values, gradients and, if wanted, curvatures."""


class _State(NamedTuple):
    """Where the steps are, all with ridge: ``[P, q]``, ``[P]``, ``[P, q]``, ``[P, q, q]``."""

    theta: np.ndarray
    plain: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray

    @classmethod
    def at(
        cls,
        theta: np.ndarray,
        e: Expansion,
        free: np.ndarray,
        ridge: np.ndarray,
        old: np.ndarray | None = None,
    ) -> _State:
        """State from an expansion without the ridge, and an old curvature where it has none."""
        gradient = np.where(free, e.gradient.numpy() - ridge * theta, 0.0)
        plain, curvature = e.value.numpy(), old
        if e.curvature is not None:
            curvature = e.curvature.numpy().copy()
            if not free.all():
                curvature[~(free[:, :, None] & free[:, None, :])] = 0.0
            every = np.arange(free.shape[1])
            curvature[:, every, every] += ridge * free
        value = plain - 0.5 * (ridge * theta**2).sum(-1)
        return cls(theta, plain, value, gradient, curvature)

    @property
    def finite(self) -> np.ndarray:
        """Problems with finite value and derivatives, bool ``[P]``."""
        parts = (self.gradient, self.curvature.reshape(len(self.value), -1))
        return np.isfinite(self.value + sum(x.sum(-1) for x in parts))

    def where(self, chosen: np.ndarray, other: _State) -> _State:
        """This state for the chosen problems, the other one for the rest."""
        if chosen.all():
            return self
        shapes = (chosen.reshape(-1, *(1,) * (x.ndim - 1)) for x in self)
        return _State(*(np.where(c, a, b) for c, a, b in zip(shapes, self, other, strict=True)))

    def newton(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Newton steps ``[P, q]``, how steep the way is ``[P]``, and where it is concave."""
        parts = (torch.from_numpy(x) for x in (self.gradient, self.curvature))
        step, concave = (x.numpy() for x in _direction(*parts))
        return step, (self.gradient * step).sum(-1), concave


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def climb(
    expand: _Problems,
    start: Tensor,
    *,
    free: Tensor,
    ridge: Tensor,
    count: Tensor,
    tolerance: float = 1e-4,
    iterations: int = 25,
) -> Ascent:
    r"""Maximise several independent functions minus a ridge by damped Newton steps.

    Each problem has its own step length: where a trial is not uphill enough the step is shortened
    by a parabola through what is known, while the others go on. A problem is settled when

    .. math:: \sqrt{g^\top H^{-1} g / n} \le \text{tolerance}

    with g the gradient, H the curvature and n the number of observed entries: the gradient,
    relative to what one entry contributes, which no rescaling of the regressors changes. Where
    two steps with the present curvature should settle all problems, that of the next trial is not
    asked for: they leave about the cube of the distance.

    Args:
        expand: Map from coefficients ``[P, q]`` to value, gradient and curvature.
        start: ``[P, q]``, where the functions are finite (problems where they are not stay there).
        free: Which coefficients may change, bool ``[P, q]``.
        ridge: Strength of the ridge on each coefficient ``[P, q]``.
        count: n ``[P]``.
        tolerance: Relative gradient at which a problem is settled.
        iterations: Largest number of trials.

    Returns:
        The end of the steps; no problem has a lower penalised value than at the start.
    """
    free, ridge, n = (x.detach().numpy() for x in (free, ridge, count))
    begin = start.detach().numpy()
    here = _State.at(begin, expand(start, curvature=True), free, ridge)
    usable = here.finite
    here = here.where(usable, _State(begin, *(np.zeros_like(x) for x in here[1:])))
    first = np.where(usable, here.plain, -np.inf)
    step, slope, concave = here.newton()
    length, scale = np.ones_like(first), np.maximum(n, 1)
    limit = tolerance**2 * scale
    settled, stuck, trials, old = usable & (slope <= limit), ~usable, 1, 0
    while trials <= iterations and not (settled | stuck).all():
        active = ~(settled | stuck)
        trial = here.theta + np.where(active, length, 0.0)[:, None] * step
        near = (slope / _FAR) ** 3 <= limit * scale**2
        far = bool((active & ((length < 1) | ~near)).any())
        e = expand(torch.from_numpy(trial), curvature=far or old == _REUSED)
        old = 0 if e.curvature is not None else old + 1
        there = _State.at(trial, e, free, ridge, here.curvature)
        trials += 1
        rise = there.value - here.value
        noise = _ROUNDING * np.maximum(np.abs(here.value), 1.0)
        accepted = active & there.finite & (rise >= _ARMIJO * length * slope - noise)
        longer = np.minimum(8 * length, 1.0)
        if (accepted | ~active).all():
            length = longer
        else:
            length = np.where(accepted, longer, _shortened(rise, slope, length))
            stuck = stuck | (active & ~accepted & (length < _SHORTEST))
        here = there.where(accepted, here)
        step, slope, concave = here.newton()
        settled = settled | (accepted & (slope <= limit))
    ended = np.where(usable, here.plain, -np.inf)
    parts = (here.theta, first, ended, settled, concave)
    return Ascent(*(torch.from_numpy(x) for x in parts), trials)


def _shortened(rise: np.ndarray, slope: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Step length at the top of a parabola, within a tenth and a half of the last one."""
    share = 0.5 * slope * length / (slope * length - rise)
    return length * np.clip(np.nan_to_num(share, nan=0.1, posinf=0.1, neginf=0.1), 0.1, 0.5)


def fit_predictor(
    expectation: Expectation,
    *,
    fresh: bool = False,
    ridge: float = RIDGE,
    tolerance: float = 1e-4,
    iterations: int = 25,
) -> Ascent | None:
    """Raise an expected log-likelihood over weights, intercepts and covariate weights, in place.

    Frozen parameters and channels without an observation keep their values, and so does every
    problem that would end below the expectation (without the ridge) from which it started.

    Args:
        expectation: The expected log-likelihood.
        fresh: Also start from zero weights and from a regression on the start signal, and keep
            the best; otherwise only where the present values are useless.
        ridge: Strength of the ridge (see :data:`RIDGE`).
        tolerance: Relative gradient at which a problem is settled.
        iterations: Largest number of trials.

    Returns:
        Where the steps ended, None when nothing is free.
    """
    coefficients = expectation.coefficients
    present = coefficients.read().detach()
    problems = len(expectation.count)
    own = present.reshape(problems, -1)
    free = coefficients.free().reshape(problems, -1) & (expectation.count > 0)[:, None]
    if not bool(free.any()):
        return None
    penalty = ridge * expectation.ridge_scale().reshape(problems, -1)

    def expand(theta: Tensor, *, curvature: bool) -> Expansion:
        try:
            return expectation.expand(theta.reshape(present.shape), curvature=curvature)
        except PlssmError:
            raise
        except ValueError:  # a distribution refused its arguments: far outside
            nothing = torch.full_like(own, torch.nan)
            return Expansion(nothing.sum(-1), nothing, torch.diag_embed(nothing))

    start, before = own, None
    if fresh:
        start, before = _best_start(expectation, own, free, penalty)
    end = climb(
        expand, start, free=free, ridge=penalty, count=expectation.count,
        tolerance=tolerance, iterations=iterations,
    )  # fmt: skip
    before = end.first if before is None else before
    if not fresh and not bool(torch.isfinite(before).all()):
        return fit_predictor(
            expectation, fresh=True, ridge=ridge, tolerance=tolerance, iterations=iterations
        )
    better = end.value >= before - _ROUNDING * before.abs().clamp_min(1.0)
    better = torch.isfinite(end.value) & (better | ~torch.isfinite(before))
    coefficients.write(torch.where(better[:, None], end.theta, own).reshape(present.shape))
    return end._replace(value=torch.where(better, end.value, before))


def _best_start(
    expectation: Expectation, own: Tensor, free: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of the present coefficients, zeros and a regression on the start signal.

    Returns:
        Coefficients ``[P, q]``, and the expectation at the present ones ``[P]``.
    """
    shape = expectation.coefficients.read().shape
    zeros = torch.where(free, 0.0, own)
    starts = [own, zeros, _regression(expectation, zeros, free, penalty)]
    values = [_values(expectation, theta.reshape(shape)) for theta in starts]
    objective = torch.stack(
        [v - 0.5 * (penalty * t.square()).sum(-1) for v, t in zip(values, starts)]
    )
    best = torch.nan_to_num(objective, -torch.inf).argmax(0)
    return torch.stack(starts)[best, torch.arange(len(best))], values[0]


def _values(expectation: Expectation, theta: Tensor) -> Tensor:
    try:
        return expectation.values(theta)
    except PlssmError:
        raise
    except ValueError:  # a distribution refused its arguments: far outside
        return torch.full_like(expectation.count, -torch.inf)


def _regression(expectation: Expectation, zeros: Tensor, free: Tensor, penalty: Tensor) -> Tensor:
    """Weighted least squares of the start signal on the regressors, where it has their shape."""
    model, m = expectation.model, expectation.m
    signal = model.start_signal(m)
    if model.coupled or signal.shape != m.y.shape:
        return zeros
    seen = m.mask.flatten(0, 1).to("cpu", torch.float64)
    signal = signal.detach().flatten(0, 1).to("cpu", torch.float64)
    residual = torch.where(seen > 0, signal - expectation.regressors.predict(zeros), 0.0)
    curvature = expectation.regressors.products(seen)
    curvature = torch.where(free[:, :, None] & free[:, None, :], curvature, 0.0)
    gradient = torch.where(free, expectation.regressors.total(residual), 0.0)
    return zeros + _direction(gradient, curvature + torch.diag_embed(penalty * free))[0]
