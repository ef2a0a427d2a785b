"""Expected log-likelihood under a Gaussian latent path, and its maximisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plssm.observations.local import khatri_rao
from plssm.observations.quadrature import gauss_hermite, square_root

if TYPE_CHECKING:
    from plssm.data.batch import Modality
    from plssm.observations.base import ObservationModel

__all__ = ["expectation_terms", "maximise"]

NODES = 10
DRAWS = 16
_FAR = 1e10


def expectation_terms(
    model: ObservationModel,
    m: Modality,
    mean: Tensor,
    covariance: Tensor | None,
    *,
    seed: int = 0,
) -> list[Callable[[], Tensor]]:
    """Prepare the expected log-likelihood of a modality as a function of the parameters.

    Channels with their own, affine predictor use Gauss-Hermite quadrature along that predictor.
    Everything else averages over antithetic draws of the latent states that stay the same
    between calls (common random numbers).

    Args:
        model: The observation model; its parameters are read at every call.
        m: The modality (samples ``[B, n, N]``).
        mean: Posterior mean ``[B, T, M]``.
        covariance: Posterior covariance ``[B, T, M, M]``, None for a known path.
        seed: Seed of the draws.

    Returns:
        Functions without arguments, each giving ``[B]``, whose sum is the expectation. One term
        is one node or draw, so that memory does not grow with their number.
    """
    centre = model.at_samples(mean, m)
    if covariance is None:
        return [partial(_at_states, model, m, centre, 1.0)]
    blocks = model.at_samples(covariance, m, event=2)
    if model.readout.affine and not model.coupled:
        return [
            partial(_at_node, model, m, centre, blocks.flatten(-2), float(x), float(w))
            for x, w in zip(*gauss_hermite(NODES), strict=True)
        ]
    generator = torch.Generator().manual_seed(seed)
    root = square_root(blocks)
    terms = []
    for _ in range(DRAWS):
        xi = torch.randn(centre.shape, generator=generator, dtype=torch.float64).to(centre)
        shift = (root @ xi[..., None]).squeeze(-1)
        for z in (centre + shift, centre - shift):
            terms.append(partial(_at_states, model, m, z, 0.5 / DRAWS))
    return terms


def _at_states(model: ObservationModel, m: Modality, z: Tensor, weight: float) -> Tensor:
    return weight * model.masked_log_prob(model.features(z, model.covariates(m)), m).sum((-2, -1))


def _at_node(
    model: ObservationModel, m: Modality, mean: Tensor, covariance: Tensor, x: float, weight: float
) -> Tensor:
    variance = covariance @ khatri_rao(model.weight).mT
    deviation = variance.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
    eta = model.features(mean, model.covariates(m)) + x * deviation
    return weight * model.masked_log_prob(eta, m).sum((-2, -1))


def maximise(
    terms: Sequence[Callable[[], Tensor]],
    parameters: Sequence[nn.Parameter],
    *,
    count: float,
    penalised: Sequence[nn.Parameter] = (),
    ridge: float = 1e-3,
    iterations: int = 20,
) -> None:
    """Raise a sum of terms over parameters by L-BFGS, in place.

    The parameters are left as they were when no better, finite point was found.

    Args:
        terms: Functions of the parameters whose summed value is to be made large.
        parameters: What may change.
        count: Number of observed entries (the objective is scaled by it).
        penalised: Parameters that carry the ridge, so that separable data stay finite.
        ridge: Strength of the penalty ridge / 2 * sum of squares, in nats.
        iterations: Largest number of L-BFGS iterations.
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
    if not (finite and math.isfinite(after) and after >= before):
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


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
