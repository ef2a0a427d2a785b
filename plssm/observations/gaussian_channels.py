"""What models of channels with independent Gaussian noise share: density, moments, regression."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Normal

from plssm.errors import PlssmError, ShapeError
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["GaussianChannels", "Regression", "finite", "matrix", "whole_column"]

NOISE_FLOOR = 1e-5  # smallest noise an M-step gives, as a share of the channel's variance


class GaussianChannels(ObservationModel, ABC):
    r"""Continuous channels with independent Gaussian noise around their predictors.

    .. math:: x_i \sim N(\eta_i, \Gamma), \qquad \Gamma \text{ diagonal}

    Args:
        channels: Number N of channels.
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept.
    """

    def __init__(
        self, channels: int, *, readout: str = "linear", nuisance: int = 0, bias: bool = True
    ) -> None:
        super().__init__(channels, readout=readout, nuisance=nuisance, bias=bias)
        self.log_noise = nn.Parameter(torch.zeros(self.channels, dtype=torch.float64))

    @property
    def noise(self) -> Tensor:
        """Variance of each channel ``[N]``; may be set to ``[N]`` or to one number."""
        return self.log_noise.exp()

    @noise.setter
    def noise(self, value: ArrayLike) -> None:
        variance = _plain(value)
        if not bool((variance > 0).all() and torch.isfinite(variance).all()):
            raise PlssmError(f"noise variances must be positive and finite, got {value}")
        with torch.no_grad():
            if variance.ndim == 0:
                variance = variance.expand(self.channels)
            _copy("noise", self.log_noise, variance.log())

    def distribution(self, features: Tensor) -> Normal:
        """Normal distribution around the predictors."""
        return Normal(features, self.noise.sqrt())

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the observations when the predictors are Gaussian (exact)."""
        return mean, covariance + torch.diag(self.noise.detach())

    def masked_log_prob(self, features: Tensor, m: Modality) -> Tensor:
        """Log-density of each entry, zero where nothing was observed (see the base class)."""
        noise = self.noise
        residual = torch.where(m.mask, m.y - features, 0.0)
        return -0.5 * (residual.square() / noise + torch.log(2 * math.pi * noise) * m.mask)

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density and derivatives in the predictors (see the base class)."""
        with torch.no_grad():
            precision = m.mask / self.noise
            residual = torch.where(m.mask, m.y - features, 0.0)
            return self.masked_log_prob(features, m), residual * precision, precision

    def _take(
        self,
        weight: Tensor,
        bias: ArrayLike | None,
        nuisance: Tensor | None,
        noise: ArrayLike,
        *,
        names: tuple[str, str] = ("bias", "nuisance_weight"),
    ) -> None:
        """Take over known parameters of a bound model; names are those of the user's arguments."""
        with torch.no_grad():
            self.weight.copy_(weight)
            for name, target, value in zip(
                names, (self.bias, self.nuisance_weight), (bias, nuisance), strict=True
            ):
                if value is not None:
                    _copy(name, target, finite(name, value))
        self.noise = noise
        self.initialised = True

    def _coefficients(self) -> Tensor:
        return torch.cat([self.weight, self.bias[:, None], self.nuisance_weight], dim=1)

    def _update_coefficients(self, parts: Sequence[Regression]) -> None:
        """Fit the coefficients that are not frozen; parts are of consecutive channels."""
        sizes = ((self.weight, self.dim), (self.bias, 1), (self.nuisance_weight, self.nuisance))
        free = torch.cat([torch.full((size,), part.requires_grad) for part, size in sizes])
        if not bool(free.any()):
            return
        fitted = zip(parts, self._coefficients_of(parts), strict=True)
        theta = torch.cat([part.solve(known, free) for part, known in fitted])
        if bool(torch.isfinite(theta).all()):
            self.weight.copy_(theta[:, : self.dim])
            self.bias.copy_(theta[:, self.dim])
            self.nuisance_weight.copy_(theta[:, self.dim + 1 :])

    def _update_noise(self, parts: Sequence[Regression]) -> None:
        """Mean expected squared residual of each channel, with a floor; unless it is frozen."""
        if not self.log_noise.requires_grad:
            return
        known = zip(parts, self._coefficients_of(parts), strict=True)
        squares = torch.cat([part.squares(theta) for part, theta in known])
        y, mask = (torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("y", "mask"))
        count = mask.sum(0)
        centred = (y - (y * mask).sum(0) / count.clamp_min(1)) * mask
        spread_of_data = centred.square().sum(0) / count.clamp_min(1)
        spread_of_data = torch.where(spread_of_data > 0, spread_of_data, 1.0)
        floor = torch.minimum(self.noise, NOISE_FLOOR * spread_of_data)
        estimate = torch.maximum(squares / count.clamp_min(1), floor)
        self.noise = torch.where(count > 0, estimate, self.noise)

    def _coefficients_of(self, parts: Sequence[Regression]) -> Sequence[Tensor]:
        return self._coefficients().split([part.y.shape[1] for part in parts])

    def _regressors(self, m: Modality, centre: Tensor) -> Tensor:
        """Regressors [r; 1; n] of every sample, from r ``[B, n, ..., M]``."""
        nuisance = m.nuisance
        if nuisance is None:
            nuisance = centre.new_zeros((*m.y.shape[:-1], self.nuisance))
        nuisance = nuisance.to(centre.dtype)[..., : self.nuisance]
        while nuisance.ndim < centre.ndim:
            nuisance = nuisance.unsqueeze(-2)
        nuisance = nuisance.expand(*centre.shape[:-1], self.nuisance)
        one = centre.new_ones(*centre.shape[:-1], 1)
        return torch.cat([centre, one, nuisance], dim=-1)


@dataclass(frozen=True, eq=False)
class Regression:
    """Regression of some channels on regressors of which the first M are uncertain.

    Args:
        y: Observations ``[n, N]``.
        mask: 1 where observed, else 0 ``[n, N]``.
        centre: Means of the regressors ``[n, Q]``.
        spread: Covariance of the first M regressors, summed over the observed samples of each
            channel, ``[N or 1, M, M]``.
    """

    y: Tensor
    mask: Tensor
    centre: Tensor
    spread: Tensor

    def solve(self, theta: Tensor, free: Tensor) -> Tensor:
        """Normal equations of each channel: one Newton step, exact for a quadratic.

        Args:
            theta: Coefficients so far ``[N, Q]``; those that are not free act as known.
            free: Which columns may change, bool ``[Q]``.

        Returns:
            New coefficients ``[N, Q]``.
        """
        theta, dim, centre = theta.clone(), self.spread.shape[-1], self.centre
        gradient = ((self.y - centre @ theta.mT) * self.mask).mT @ centre
        gradient[:, :dim] -= (self.spread @ theta[:, :dim, None]).squeeze(-1)
        gram = self.gram()
        theta[:, free] += _solve(gram[:, free][:, :, free], gradient[:, free])
        return theta

    def gram(self) -> Tensor:
        """Expected sums of products of two regressors, of each channel ``[N, Q, Q]``."""
        centre, dim = self.centre, self.spread.shape[-1]
        gram = whole_column(self.mask).mT @ (centre[:, :, None] * centre[:, None, :]).flatten(1)
        gram = gram.unflatten(-1, (centre.shape[1], centre.shape[1])).contiguous()
        gram[:, :dim, :dim] += self.spread
        return gram

    def squares(self, theta: Tensor) -> Tensor:
        """Expected sum of squared residuals of each channel ``[N]``."""
        weight = theta[:, : self.spread.shape[-1]]
        total = ((self.y - self.centre @ theta.mT) * self.mask).square().sum(0)
        return total + ((weight[:, None] @ self.spread).squeeze(1) * weight).sum(-1)


def whole_column(mask: Tensor) -> Tensor:
    """One column ``[..., 1]`` of a mask ``[..., N]`` when samples are whole or absent."""
    return mask[..., :1] if bool((mask == mask[..., :1]).all()) else mask


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Least-squares solution of smallest norm of one system per channel."""
    scale = torch.diagonal(gram, dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    inverse = torch.linalg.pinv(scaled, hermitian=True, rtol=1e-11)
    return (inverse @ (right * scale)[..., None]).squeeze(-1) * scale


def _plain(value: ArrayLike | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(torch.float64)
    return torch.from_numpy(np.array(np.asarray(value), dtype=np.float64))


def finite(name: str, value: ArrayLike | Tensor) -> Tensor:
    """A parameter as a float64 tensor.

    Raises:
        PlssmError: When a value is not finite.
    """
    tensor = _plain(value)
    if not bool(torch.isfinite(tensor).all()):
        raise PlssmError(f"{name}: got NaN or infinite values, wanted finite numbers")
    return tensor


def matrix(name: str, value: ArrayLike | Tensor) -> Tensor:
    """A weight ``[channels, dim]`` as a float64 tensor.

    Raises:
        ShapeError: When it has another number of axes.
        PlssmError: When a value is not finite.
    """
    weight = finite(name, value)
    if weight.ndim != 2:
        raise ShapeError(f"{name} is [channels, dim], got shape {tuple(weight.shape)}")
    return weight


def _copy(name: str, target: Tensor, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ShapeError(f"{name}: wanted shape {tuple(target.shape)}, got {tuple(value.shape)}")
    target.copy_(value)
