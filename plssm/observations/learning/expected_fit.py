"""The M-step: raising the expected log-likelihood over all free parameters of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plssm.errors import CapabilityError
from plssm.observations.learning.channel_fit import belong_to_channels, fit_channel_parameters
from plssm.observations.learning.expectation import Expectation
from plssm.observations.learning.newton_fit import RIDGE, fit_predictor
from plssm.observations.masks import observed_counts

if TYPE_CHECKING:
    from plssm.data.batch import Modality
    from plssm.observations.base import ObservationModel

__all__ = ["make_expectation", "maximise", "raise_expectation"]

_PREDICTOR = ("weight", "bias", "nuisance_weight")
_FAR = 1e10


def make_expectation(
    model: ObservationModel, m: Modality, mean: Tensor, covariance: Tensor | None
) -> Expectation:
    """Prepare the expected log-likelihood of a modality.

    Channels with their own, affine predictor use quadrature along that predictor; everything else
    an average over points in the latent space.

    Args:
        model: The observation model.
        m: The modality (samples ``[B, n, N]``).
        mean: Latent mean ``[B, T, M]``; may be NaN where nothing is observed.
        covariance: Latent covariance ``[B, T, M, M]``, None for a known path.

    Returns:
        The expectation.

    Raises:
        CapabilityError: When the samples depend on several latent steps.
    """
    if model.memory(m.dt):
        raise CapabilityError(
            f"{type(model).__name__}: samples depend on {model.memory(m.dt)} earlier latent "
            "steps, for which there is no default; the model must override expected_log_prob, "
            "m_step and init_from"
        )
    centre = model.at_samples(mean, m)
    spread = None if covariance is None else model.at_samples(covariance, m, event=2)
    if spread is None or not _nonzero(spread):
        return model.point_expectation(model, m, centre, None)
    if model.readout.affine and not model.coupled:
        return model.channel_expectation(model, m, centre, spread)
    return model.point_expectation(model, m, centre, spread)


def _nonzero(values: Tensor) -> bool:
    """Whether any number is not zero; looks at the first block of numbers first."""
    numbers = values.detach().cpu().numpy()
    return bool(numbers[:1, :1].any() or numbers.any())


def raise_expectation(
    model: ObservationModel,
    m: Modality,
    mean: Tensor,
    covariance: Tensor | None,
    *,
    fresh: bool = False,
    rounds: int = 3,
    gain: float = 1e-5,
    tolerance: float = 1e-4,
) -> None:
    """Raise the expected log-likelihood of a modality over the free parameters, in place.

    Newton steps for the predictor's coefficients (:func:`fit_predictor`) and steps for the other
    parameters with the predictors held (Newton where they belong to channels, else L-BFGS) take
    turns until a turn of the latter gains little.
    Where Newton steps cannot settle because the log-density is not concave or has kinks, L-BFGS
    over all parameters follows.

    Args:
        model: The observation model.
        m: The modality (samples ``[B, n, N]``).
        mean: Latent mean ``[B, T, M]``.
        covariance: Latent covariance ``[B, T, M, M]``, None for a known path.
        fresh: Also try other starts than the present parameters.
        rounds: Largest number of turns.
        gain: Gain of a turn, in nats an entry, from which on another one follows.
        tolerance: Relative gradient at which Newton steps end.
    """
    count = int(observed_counts(m.mask).sum())
    free = [p for p in model.parameters() if p.requires_grad]
    if not (count and free):
        return
    with torch.no_grad():
        expectation = make_expectation(model, m, mean, covariance)
    others = [
        p for name, p in model.named_parameters() if p.requires_grad and name not in _PREDICTOR
    ]
    rough = False
    for turn in range(rounds):
        with torch.no_grad():
            first = fresh and turn == 0
            end = fit_predictor(expectation, fresh=first, tolerance=tolerance)
        rough = end is not None and bool((~end.settled & ~end.concave).any())
        if not others or _fit_others(expectation, others, count) <= gain * count:
            break
    if rough:
        terms = [partial(_average, expectation, None, part) for part in range(expectation.parts)]
        penalised = [model.weight] if model.weight.requires_grad else []
        maximise(terms, free, count=count, penalised=penalised)


def _fit_others(expectation: Expectation, others: Sequence[nn.Parameter], count: int) -> float:
    """Raise the expectation over parameters with the predictors held still; returns the gain."""
    if belong_to_channels(expectation, others):
        return fit_channel_parameters(expectation, others)
    theta = expectation.coefficients.read().detach()
    terms = [partial(_average, expectation, theta, part) for part in range(expectation.parts)]
    return maximise(terms, others, count=count)


def _average(expectation: Expectation, theta: Tensor | None, part: int) -> Tensor:
    """A part of the expectation; without coefficients those of the model, with their graph."""
    theta = expectation.coefficients.read() if theta is None else theta
    weights, eta, m = expectation.features(theta, part)
    values = expectation.model.masked_log_prob(eta, m)
    return weights @ values.flatten(1).sum(1)


def maximise(
    terms: Sequence[Callable[[], Tensor]],
    parameters: Sequence[nn.Parameter],
    *,
    count: float,
    penalised: Sequence[nn.Parameter] = (),
    ridge: float = RIDGE,
    iterations: int = 20,
) -> float:
    """Raise a sum of terms over parameters by L-BFGS, in place.

    The parameters are left as they were when no better, finite point was found.

    Args:
        terms: Functions of the parameters whose summed value is to be made large.
        parameters: What may change.
        count: Number of observed entries (the objective is scaled by it).
        penalised: Parameters that carry the ridge, so that separable data stay finite.
        ridge: Strength of the penalty ridge / 2 * sum of squares, in nats.
        iterations: Largest number of L-BFGS iterations.

    Returns:
        By how much the sum of the terms rose.
    """
    kept = [p.detach().clone() for p in parameters]
    before = _value(terms)
    optimiser = torch.optim.LBFGS(
        list(parameters),
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _backward(terms, penalised, ridge, count)
        for p in parameters:
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    optimiser.zero_grad()
    finite = all(bool(torch.isfinite(p).all()) for p in parameters)
    after = _value(terms)
    if finite and math.isfinite(after) and after >= before:
        return after - before
    with torch.no_grad():
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
    return 0.0


def _backward(
    terms: Sequence[Callable[[], Tensor]],
    penalised: Sequence[nn.Parameter],
    ridge: float,
    count: float,
) -> Tensor:
    """Scaled negative objective; gradients are left in the parameters."""
    total = 0.0
    try:
        for term in terms:
            loss = -term().sum() / count
            loss.backward()
            total += float(loss.detach())
    except ValueError:  # a distribution refused its arguments: far outside
        return torch.tensor(_FAR, dtype=torch.float64)
    for p in penalised:
        loss = 0.5 * ridge / count * p.square().sum()
        loss.backward()
        total += float(loss.detach())
    return torch.tensor(total, dtype=torch.float64).nan_to_num(_FAR, _FAR, -_FAR)


def _value(terms: Sequence[Callable[[], Tensor]]) -> float:
    with torch.no_grad():
        try:
            return sum(float(term().sum()) for term in terms)
        except ValueError:
            return -float("inf")
