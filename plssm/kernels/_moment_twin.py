"""Exact moments of a map of hinges in plain torch, for automatic differentiation."""

from __future__ import annotations

import math

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

__all__ = ["matched_moments"]

_NODES, _WEIGHTS = leggauss(64)
_SMALLEST = 1e-24  # variance


def matched_moments(
    linear: Tensor, bias: Tensor, outer: Tensor, inner: Tensor, offset: Tensor, mean: Tensor,
    covariance: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Mean and covariance of a rectified-linear map of Gaussian states, differentiable.

    .. math::
        \mathrm{Cov}[F] = E[J] P E[J]^\top + O (\mathrm{Cov}[\phi] - D I P I^\top D) O^\top

    with D the probabilities that hinges are open (see
    :func:`plssm.kernels.moment_filter.propagate_moments`). Covariances of pairs by Gauss-Legendre
    quadrature over the correlation: exact to rounding where these are below .95, to 1e-3 of the
    product of two standard deviations at 1.

    Args:
        linear: L [D, D] of F(z) = L z + b + O max(0, I z + o).
        bias: [D].
        outer: [D, P].
        inner: [P, D].
        offset: [P].
        mean: [B, D].
        covariance: [B, D, D].

    Returns:
        [B, D] and [B, D, D].
    """
    gate, spread = mean @ inner.T + offset, inner @ covariance @ inner.T
    variance = spread.diagonal(dim1=-2, dim2=-1).clamp_min(_SMALLEST)
    sd = variance.sqrt()
    a = gate / sd
    opened = torch.special.ndtr(a)
    density = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    first = gate * opened + sd * density
    closed = 1 - opened
    own = opened * closed * (1 + a * a) + a * density * (closed - opened) - density * density
    own = variance * own
    scale = sd[..., :, None] * sd[..., None, :]
    other = ~torch.eye(len(offset), dtype=torch.bool, device=mean.device)
    largest = 1 - 16 * torch.finfo(mean.dtype).eps  # the arcsine has a slope there
    rho = torch.where(other, spread / scale, 0.0).clamp(-largest, largest)
    rest = torch.where(other, scale * _bent(a[..., :, None], a[..., None, :], rho), 0.0)
    rest = rest + torch.diag_embed(own)
    jacobian = linear + (outer * opened[..., None, :]) @ inner
    after = mean @ linear.T + bias + first @ outer.T
    return after, jacobian @ covariance @ jacobian.mT + outer @ rest @ outer.T


def _bent(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """Integral from 0 to rho of (rho - r) phi2(a, b; r) dr, with r = sin(angle)."""
    nodes = torch.from_numpy(_NODES).to(rho)
    angle = 0.5 * torch.asin(rho)[..., None]
    sine = torch.sin(angle * (1 + nodes))
    a, b = a[..., None], b[..., None]
    height = torch.exp((sine * a * b - 0.5 * (a * a + b * b)) / (1 - sine * sine))
    weights = torch.from_numpy(_WEIGHTS).to(rho)
    return ((rho[..., None] - sine) * height * angle) @ weights / (2 * math.pi)
