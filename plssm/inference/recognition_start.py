"""Where a recognition model begins: the model itself, expanded around a rough path."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Batch, Modality
from plssm.inference.encoders import Encoder, ModalityEncoder, StepSamples, on_steps
from plssm.inference.recognition import Recognition
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["refresh_chain", "refresh_typical", "start_encoder", "start_recognition"]

RIDGE = 1e-9  # relative; keeps a regression solvable whose columns depend on each other
SMALL = 1e-2  # size of factors that would be zero, where no gradient reaches them
LEAST = 1e-3  # smallest share of the prior variance that lagged data are taken to leave open


@torch.no_grad()
def start_recognition(
    recognition: Recognition, model: StateSpaceModel, batch: Batch, path: Tensor
) -> None:
    r"""Writes start values into a recognition model, the best for linear-Gaussian models.

    .. math:: (A_q, b_q) = \arg\min \sum_t \| F(\bar z_t) - A_q \bar z_t - b_q \|^2, \qquad
        Q = \Sigma + \langle e e^\top \rangle, \quad e = F(\bar z_t) - A_q \bar z_t - b_q

    Args:
        recognition: Changed in place; float64.
        model: The model, float64.
        batch: Training trials, float64.
        path: A rough latent path [B, T, M].
    """
    if isinstance(recognition.encoder, Encoder):
        start_encoder(recognition.encoder, model, batch, path)
    refresh_chain(recognition, model, batch.inputs, path, batch.time_mask)


@torch.no_grad()
def refresh_chain(
    recognition: Recognition, model: StateSpaceModel, inputs: Tensor | None, path: Tensor,
    inside: Tensor,
) -> None:  # fmt: skip
    r"""Writes the linear chain that is closest to the model's map along some paths.

    Args:
        recognition: Changed in place.
        model: The model.
        inputs: Inputs [B, T, K], or None.
        path: Paths [B, T, M].
        inside: Which of their steps exist [B, T], bool.
    """
    dynamics, kind = model.dynamics, path.dtype
    z = path[inside]
    refresh_typical(recognition, model, z)
    recognition.initial_mean.copy_(dynamics.initial.mean)
    recognition.initial_factor.copy_(_raw(dynamics.initial.noise.precision))
    before = path[:, :-1][inside[:, 1:]]
    before = before if len(before) else z
    rest = None if inputs is None else torch.zeros(len(before), dynamics.n_inputs, dtype=kind)
    after = dynamics.step(before, rest).double()
    read = torch.cat([before, torch.ones_like(before[:, :1])], dim=1).double()
    weights = _regression(read, after)
    residual = after - read @ weights.T
    recognition.A.copy_(weights[:, :-1])
    recognition.b.copy_(weights[:, -1])
    recognition.C.copy_(dynamics.C)
    noise = dynamics.noise.covariance.double() + residual.T @ residual / len(residual)
    recognition.factor.copy_(_raw(torch.linalg.inv(noise)))


@torch.no_grad()
def refresh_typical(recognition: Recognition, model: StateSpaceModel, z: Tensor) -> None:
    """Writes mean and precision of states, which windows inside a recording begin with.

    Args:
        recognition: Changed in place.
        model: The model.
        z: States [n, M].
    """
    centred = z - z.mean(0)
    spread = centred.T @ centred / len(z) + model.dynamics.noise.covariance
    recognition.typical_mean.copy_(z.mean(0))
    recognition.typical_precision.copy_(torch.linalg.inv(spread.double()))


def _raw(precision: Tensor) -> Tensor:
    """What `cholesky_factor` turns into the factor of a precision."""
    root = torch.linalg.cholesky(precision)
    return root.tril(-1) + torch.diag(root.diagonal().log())


@torch.no_grad()
def start_encoder(encoder: Encoder, model: StateSpaceModel, batch: Batch, path: Tensor) -> None:
    r"""Writes into the linear parts what the observation models themselves say around a path.

    .. math:: r_t \approx g_t + \Lambda_t \bar z_t, \qquad
        \Lambda_t = \sum_n c_{nt} \langle R_n \rangle

    with the score g of a modality at the path, the mean curvature R of a sample and numbers c of
    samples: exact for Gaussian channels. Observations with memory (BOLD) are inverted by a
    regression of the path on later samples.

    Args:
        encoder: Changed in place.
        model: The model in float64; its observation parameters are used.
        batch: Training trials, float64.
        path: A rough latent path [B, T, M].
    """
    for name, part in encoder.modalities.items():
        observation, m = model.observations[name], batch.modalities[name]
        found = part.standardised(on_steps(observation, m, batch.inputs, batch.steps))
        if observation.memory(batch.dt):
            _from_regression(part, found, path, batch.time_mask)
        else:
            _from_expansion(part, found, observation, m, path)
        part.hold(path[batch.time_mask], model.dynamics.noise.covariance)


def _from_expansion(
    part: ModalityEncoder, found: StepSamples, observation: ObservationModel, m: Modality,
    path: Tensor,
) -> None:  # fmt: skip
    """Score of the observation model along the path, with the mean curvature of a sample."""
    eta = observation.features_at(m, path)
    bend = observation.derivatives(eta, m, positive=True)[2] * observation.tempering
    weight, own = observation.weight, part.size.channels * part.rank
    if observation.coupled:
        mean = bend[m.mask.any(-1)].mean(0)
        values, vectors = torch.linalg.eigh(weight.T @ mean @ weight)
        factors = (vectors * values.clamp_min(0).sqrt()).T.flip(0)[:own]
    else:
        mean = bend.sum((0, 1)) / m.mask.sum((0, 1)).clamp_min(1)
        factors = mean.clamp_min(0).sqrt()[:, None] * weight
    part.factors[: len(factors)] = _nowhere_zero(factors)
    count = found.count.repeat_interleave(part.rank, dim=-1)
    curvature = torch.einsum("btf,fm,fn->btmn", count, part.factors[:own], part.factors[:own])
    score = observation.local(m, path, positive=True).score * observation.tempering
    target = score + (curvature @ path[..., None])[..., 0]
    seen = found.seen[..., 0] > 0
    part.linear.copy_(_regression(part.regressors(found)[seen], target[seen]))


def _from_regression(
    part: ModalityEncoder, found: StepSamples, path: Tensor, inside: Tensor
) -> None:  # fmt: skip
    """What later samples tell about a step: mean and residual of a regression, less the prior."""
    seen = (found.seen[..., 0] > 0) & inside
    read, z = part.regressors(found)[seen], path[seen]
    centre = z.mean(0)
    weights = _regression(read, z - centre, ridge=1e-3)
    residual = z - centre - read @ weights.T
    prior, left = ((x.T @ x) / len(x) for x in (z - centre, residual))
    prior = prior + 1e-9 * prior.diagonal().mean() * torch.eye(len(prior), dtype=prior.dtype)
    left = left + LEAST * prior
    known, before = torch.linalg.inv(left), torch.linalg.inv(prior)
    values, vectors = torch.linalg.eigh(known - before)
    factors = (vectors * values.clamp_min(0).sqrt()).T
    target = (read @ weights.T + centre) @ known - before @ centre
    part.linear.copy_(_regression(read, target, ridge=1e-6))
    own = part.size.channels * part.rank
    part.factors[:own] = SMALL * torch.eye(own, part.dim, dtype=torch.float64)
    part.factors[own:] = _nowhere_zero(factors)
    part.log_weight[own:] = 0.0


def _regression(x: Tensor, y: Tensor, ridge: float = RIDGE) -> Tensor:
    """Weights [Y, X] of a least-squares regression."""
    gram = x.T @ x
    gram = gram + ridge * (gram.diagonal().mean() + 1e-12) * torch.eye(len(gram), dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y).T


def _nowhere_zero(factors: Tensor) -> Tensor:
    """Factors with a small constant in place of rows of zeros."""
    size = factors.norm(dim=1, keepdim=True)
    return torch.where(size > 1e-12, factors, SMALL)
