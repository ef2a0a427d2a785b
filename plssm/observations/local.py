"""Local quadratic expansion of an observation model around a latent path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Local", "autograd_derivatives", "khatri_rao", "positive_part", "pull_back"]


@dataclass(frozen=True)
class Local:
    """Log-density of a modality and its first two derivatives in the latent path.

    Attributes:
        log_prob: ``[B]``.
        score: Gradient in z ``[B, T, M]``.
        curvature: Negative Hessian in z, one block per latent step ``[B, T, M, M]``; the first
            two axes have length 1 when all blocks are equal. Of a model with memory w it is
            banded, ``[B, T, w+1, M, M]``, block l of step t for the pair (z_t, z_{t+l}).
    """

    log_prob: Tensor
    score: Tensor
    curvature: Tensor


def positive_part(curvature: Tensor, *, coupled: bool) -> Tensor:
    """Nearest positive semi-definite curvature, by clipping eigenvalues at zero.

    Args:
        curvature: ``[..., K]`` (diagonal) or, when coupled, ``[..., K, K]``.
        coupled: Whether the curvature is a full matrix.

    Returns:
        The same shape.
    """
    if not coupled:
        return curvature.clamp_min(0.0)
    values, vectors = torch.linalg.eigh(curvature)
    return (vectors * values.clamp_min(0.0)[..., None, :]) @ vectors.mT


def autograd_derivatives(
    log_density: Callable[[Tensor], Tensor], features: Tensor, *, coupled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density and its derivatives in the predictors, by automatic differentiation.

    Samples are independent given their predictors, so the Hessian of every sample comes out of
    one backward pass per predictor, and of a single one when channels are independent too.

    Args:
        log_density: Map from predictors ``[..., K]`` to log-densities ``[..., N]``.
        features: Predictors ``[..., K]``.
        coupled: Whether a channel depends on more than its own predictor.

    Returns:
        Log-density ``[..., N]``, gradient ``[..., K]`` and negative Hessian ``[..., K]``
        (diagonal) or, when coupled, ``[..., K, K]``.
    """
    with torch.enable_grad():
        eta = features.detach().clone().requires_grad_()
        value = log_density(eta)
        (gradient,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
        parts = gradient.unbind(-1) if coupled else (gradient,)
        rows = [_gradient_or_zero(part, eta) for part in parts]
    hessian = torch.stack(rows, dim=-2) if coupled else rows[0]
    if coupled:
        hessian = 0.5 * (hessian + hessian.mT)
    return value.detach(), gradient.detach(), -hessian


def _gradient_or_zero(value: Tensor, eta: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(eta)
    (row,) = torch.autograd.grad(value.sum(), eta, retain_graph=True, allow_unused=True)
    return torch.zeros_like(eta) if row is None else row


def khatri_rao(weight: Tensor) -> Tensor:
    """Outer product of every row of a matrix with itself, ``[K, M]`` to ``[K, M * M]``."""
    return (weight[:, :, None] * weight[:, None, :]).flatten(1)


def pull_back(
    gradient: Tensor, curvature: Tensor, weight: Tensor, slope: Tensor | None, *, coupled: bool
) -> tuple[Tensor, Tensor]:
    r"""Carry derivatives in the predictors over to the latent states.

    .. math:: g_z = D W' g, \qquad \Lambda_z = D W' \Lambda W D

    Args:
        gradient: ``[..., K]``.
        curvature: ``[..., K]`` or, when coupled, ``[..., K, K]``.
        weight: W ``[K, M]``.
        slope: Diagonal of D, the slope of the read-out ``[..., M]``; None stands for ones.
        coupled: Whether the curvature is a full matrix.

    Returns:
        Score ``[..., M]`` and curvature ``[..., M, M]``.
    """
    dim = weight.shape[1]
    score = gradient @ weight
    if coupled:
        block = weight.mT @ curvature @ weight
    else:
        block = (curvature @ khatri_rao(weight)).unflatten(-1, (dim, dim))
    if slope is None:
        return score, block
    return score * slope, block * slope[..., :, None] * slope[..., None, :]
