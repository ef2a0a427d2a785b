"""What data say about the filtered states, to second order, with gradients in the parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plssm.data import Batch, Modality
from plssm.inference.augmented_states import AugmentedStates
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.clock import gather, scatter

__all__ = ["FilterTerms", "filter_terms"]


class FilterTerms(NamedTuple):
    r"""Observation terms around points of the joined states.

    .. math:: \log p(y_t \mid z_t) \approx c_t + q_t^\top z_t - \tfrac12 z_t^\top R_t z_t

    Attributes:
        constant: c [B, T].
        score: q [B, T, D].
        information: R [B or 1, T or 1, D, D].
        third: How R changes with the point, dR_ij/dz_k [B, T, D, D, D]; None where it does not.
    """

    constant: Tensor
    score: Tensor
    information: Tensor
    third: Tensor | None


def filter_terms(
    model: StateSpaceModel, batch: Batch, states: AugmentedStates, point: Tensor, *, exact: bool
) -> FilterTerms:
    """Expansion of all observation terms, differentiable in the model's parameters.

    Args:
        model: The model.
        batch: The trials.
        states: The joined states.
        point: Where to expand, joined states [B, T, D]; no gradients go to it.
        exact: Take the exact curvature everywhere; otherwise negative one counts as zero.
    """
    parts = [
        _expanded(o, batch, batch.modalities[name], states, point.detach(), exact=exact)
        for name, o in model.observations.items()
    ]
    third = [p.third for p in parts if p.third is not None]
    return FilterTerms(
        sum(p.constant for p in parts), sum(p.score for p in parts),
        sum(p.information for p in parts), sum(third) if third else None,
    )  # fmt: skip


def _expanded(
    observation: ObservationModel, batch: Batch, m: Modality, states: AugmentedStates,
    point: Tensor, *, exact: bool,
) -> FilterTerms:  # fmt: skip
    """Terms of one modality, samples of the same step added up."""
    steps = batch.steps
    z = gather(point, m.clock, m.y.shape[-2])
    rows, eta = _predictors(observation, m, states, z)
    exact = exact or observation.concave
    value, slope, bent, third = _safe_derivatives(observation, m, eta, exact=exact)
    power = observation.tempering.to(value)
    constant_rows = rows.ndim == 2
    whole = bool((m.mask | ~_within(m, batch)[..., None]).all())
    shared = constant_rows and whole and m.clock is None and observation.quadratic
    if shared:  # the same at every step
        bent = bent[:1, :1].expand_as(bent)
    pulled = slope @ rows if constant_rows else (slope[..., None, :] @ rows)[..., 0, :]
    blocks = _between(rows, bent[:1, :1] if shared else bent)
    curved = (blocks @ z[..., None])[..., 0]
    constant = value.sum(-1) - (pulled * z).sum(-1) - 0.5 * (curved * z).sum(-1)
    return FilterTerms(
        scatter(power * constant, m.clock, steps),
        scatter(power * (pulled + curved), m.clock, steps),
        power * (blocks if shared else scatter(blocks, m.clock, steps)),
        None if third is None else scatter(power.detach() * _cubed(rows, third), m.clock, steps),
    )


def _within(m: Modality, batch: Batch) -> Tensor:
    """Which samples of a modality on the latent clock belong to a trial [B, n]."""
    return torch.arange(m.y.shape[-2]) < batch.length[:, None]


def _predictors(
    observation: ObservationModel, m: Modality, states: AugmentedStates, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights of the joined states [K, D] or [B, n, K, D], and the predictors [B, n, K]."""
    rows = states.weights(observation).to(z)
    dim = states.dim
    slope = observation.readout.slope(z[..., :dim])
    if observation.memory(m.dt):
        eta = z @ rows.T + observation.bias
        covariates = observation.covariates(m)
        if covariates is not None and observation.n_covariates:
            eta = eta + covariates.to(eta) @ observation.nuisance_weight.T
        return rows, eta
    eta = observation.features(z[..., :dim], observation.covariates(m))
    if slope is not None:
        rows = rows * torch.nn.functional.pad(slope, (0, rows.shape[1] - dim))[..., None, :]
    return rows, eta


def _safe_derivatives(
    observation: ObservationModel, m: Modality, eta: Tensor, *, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As :func:`_derivatives`; NaN where predictors are beyond what a density is defined for."""
    try:
        return _derivatives(observation, m, eta, exact=exact)
    except ValueError:
        nothing = torch.nan * eta
        bent = nothing[..., None] * eta[..., None, :] if observation.coupled else nothing
        value = (torch.nan * eta.sum(-1, keepdim=True)).expand(m.y.shape)
        return value, nothing, bent, None


def _derivatives(
    observation: ObservationModel, m: Modality, eta: Tensor, *, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-density, gradient, negative Hessian and its gradient in the predictors.

    The first three follow the parameters.
    """
    keep = torch.is_grad_enabled()
    if not keep:
        value, slope, bent = observation.derivatives(eta, m, positive=not exact)
        return value, slope, bent, None
    eta = eta if eta.requires_grad else eta.detach().requires_grad_()
    value = observation.masked_log_prob(eta, m)
    slope = _gradient(value, eta, keep=True)
    if not observation.coupled:
        bent = -_gradient(slope, eta, keep=True)
        third = None if observation.quadratic else _gradient(bent, eta, keep=False)
        if not exact:
            third = torch.where(bent > 0, third, 0.0)
            bent = bent.clamp_min(0.0)
        return value, slope, bent, third
    rows = [-_gradient(part, eta, keep=True) for part in slope.unbind(-1)]
    bent = torch.stack(rows, dim=-2)
    if observation.quadratic:
        return value, slope, bent, None
    third = [[_gradient(b, eta, keep=False) for b in row.unbind(-1)] for row in rows]
    third = torch.stack([torch.stack(row, dim=-2) for row in third], dim=-3)
    return value, slope, bent, third


def _gradient(value: Tensor, eta: Tensor, *, keep: bool) -> Tensor:
    """Gradient of a sum; zeros where nothing depends."""
    if not value.requires_grad:
        return torch.zeros_like(eta)
    (found,) = torch.autograd.grad(
        value.sum(), eta, create_graph=keep, retain_graph=True, allow_unused=True
    )
    found = torch.zeros_like(eta) if found is None else found
    return found if keep else found.detach()


def _between(rows: Tensor, bent: Tensor) -> Tensor:
    """C' Lambda C [B, n, D, D]."""
    if bent.ndim == 4:
        return rows.mT @ bent @ rows
    if rows.ndim == 2:
        flat = (rows[:, :, None] * rows[:, None, :]).flatten(1)
        return (bent @ flat).unflatten(-1, (rows.shape[1], rows.shape[1]))
    return (rows * bent[..., None]).mT @ rows


def _cubed(rows: Tensor, third: Tensor) -> Tensor:
    """Third derivatives in the joined states [B, n, D, D, D]."""
    rows = rows.detach()
    where = "kd" if rows.ndim == 2 else "bnkd"
    if third.ndim == 3:
        spec = f"bnk,{where},{where.replace('d', 'e')},{where.replace('d', 'f')}->bndef"
        return torch.einsum(spec, third, rows, rows, rows)
    a, b, c = (where.replace("k", k).replace("d", d) for k, d in ("id", "je", "kf"))
    return torch.einsum(f"bnijk,{a},{b},{c}->bndef", third, rows, rows, rows)
