"""Expected log joint density under a Gaussian path, where it is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Batch, Modality
from plssm.dynamics import LinearDynamics
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.clock import gather

__all__ = ["expected_log_joint", "is_closed"]


def is_closed(model: StateSpaceModel, dt: float) -> bool:
    """Whether a model is linear and Gaussian, each sample depending on one latent step."""
    return isinstance(model.dynamics, LinearDynamics) and all(
        o.quadratic and o.readout.affine and not o.coupled and not o.memory(dt)
        for o in model.observations.values()
    )


def expected_log_joint(
    model: StateSpaceModel, batch: Batch, mean: Tensor, covariance: Tensor, cross: Tensor,
    weight: Tensor,
) -> Tensor:  # fmt: skip
    r"""Expected log joint density of a linear-Gaussian model under a Gaussian path.

    .. math:: E \log p(Y, Z) = \log p(Y, \bar Z)
        - \tfrac12 \sum_t \mathrm{tr}\, \Sigma^{-1} \mathrm{Cov}(z_t - A z_{t-1})
        - \tfrac12 \sum_t \mathrm{tr}\, B^\top G^{-1} B\, \mathrm{Cov}(z_t)

    Args:
        model: The model, see :func:`is_closed`.
        batch: The trials.
        mean: Mean of the path [B, T, M].
        covariance: Cov(z_t) [B, T, M, M].
        cross: Cov(z_t, z_{t+1}) [B, T-1, M, M].
        weight: Weight of the terms of each step [B, T]; 0 beyond the ends.

    Returns:
        In nats [B], differentiable.
    """
    dynamics = model.dynamics
    total = dynamics.log_prob(mean, batch.inputs, batch.length, weight=weight)
    first = (dynamics.initial.noise.precision * covariance[:, 0]).sum((-2, -1))
    total = total - 0.5 * weight[:, 0] * first
    after = dynamics.A @ cross
    spread = covariance[:, 1:] - after - after.mT
    spread = spread + dynamics.A @ covariance[:, :-1] @ dynamics.A.T
    terms = (dynamics.noise.precision * spread).sum((-2, -1))
    total = total - 0.5 * (torch.where(weight[:, 1:] > 0, terms, 0.0) * weight[:, 1:]).sum(1)
    for name, observation in model.observations.items():
        m = batch.modalities[name]
        total = total + _expected(observation, m, mean, covariance, weight)
    return total


def _expected(
    observation: ObservationModel, m: Modality, mean: Tensor, covariance: Tensor, weight: Tensor
) -> Tensor:
    """Of the observations [B]: parabolas are averaged exactly by two points a deviation away."""
    eta = observation.features_at(m, mean)
    spread = gather(covariance, m.clock, m.y.shape[-2], event=2)
    rows = observation.weight
    variance = torch.einsum("km,bnml,kl->bnk", rows, spread, rows)
    deviation = variance.clamp_min(1e-30).sqrt()
    both = [observation.masked_log_prob(eta + s * deviation, m) for s in (1.0, -1.0)]
    at = gather(weight[..., None], m.clock, m.y.shape[-2])
    return 0.5 * ((both[0] + both[1]) * at).sum((-2, -1)) * observation.tempering
