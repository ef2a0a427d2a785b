"""Gaussian observations with diagonal noise, everything in closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Normal

from plssm.errors import PlssmError, ShapeError
from plssm.kernels.gaussian_terms import gaussian_terms
from plssm.observations.base import ObservationModel
from plssm.observations.clock import gather, scatter
from plssm.observations.local import Local, khatri_rao

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["Gaussian"]

NOISE_FLOOR = 1e-5  # smallest noise an M-step gives, as a share of the channel's variance


class Gaussian(ObservationModel):
    r"""Continuous channels with independent Gaussian noise.

    .. math:: x_t = B \, r(z_t) + b + J n_t + \varepsilon_t, \qquad
        \varepsilon_t \sim N(0, \Gamma), \quad \Gamma \text{ diagonal}

    All quantities are in the units of the data; the noise is a variance.

    Args:
        channels: Number N of channels.
        readout: "linear" r(z) = z; "relu" r(z) = max(0, z); "identity": the first N latent
            states are observed directly (B = [I 0]).
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept b.

    References:
        Durstewitz 2017, doi:10.1371/journal.pcbi.1005542;
        Koppe et al. 2019, doi:10.1371/journal.pcbi.1007263.

    Example:
        >>> model = Gaussian.from_parameters([[1.0, 0.5]], noise=[0.1])
        >>> model.channels, model.dim
        (1, 2)
    """

    kinds: ClassVar[tuple[str, ...]] = ("continuous", "bold")

    def __init__(
        self, channels: int, *, readout: str = "linear", nuisance: int = 0, bias: bool = True
    ) -> None:
        super().__init__(channels, readout=readout, nuisance=nuisance, bias=bias)
        self.log_noise = nn.Parameter(torch.zeros(self.channels, dtype=torch.float64))

    @classmethod
    def from_parameters(
        cls,
        B: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        noise: ArrayLike,
        readout: str = "linear",
        nuisance_weight: ArrayLike | None = None,
    ) -> Gaussian:
        """Model with known parameters.

        Args:
            B: Weight ``[N, M]`` ([I 0] for the identity read-out).
            bias: Intercept ``[N]``; None starts it at zero.
            noise: Variance of each channel ``[N]`` or one for all.
            readout: "linear", "relu" or "identity".
            nuisance_weight: J ``[N, R]``.

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree or B is not [I 0] with an identity read-out.
            PlssmError: When a value is not finite or a variance is not positive.
        """
        weight = _tensor("B", B)
        if weight.ndim != 2:
            raise ShapeError(f"B is [channels, dim], got shape {tuple(weight.shape)}")
        J = None if nuisance_weight is None else _tensor("nuisance_weight", nuisance_weight)
        model = cls(len(weight), readout=readout, nuisance=0 if J is None else J.shape[-1])
        model.bind(weight.shape[1])
        if not model.readout.trainable and not torch.equal(weight, model.weight):
            raise ShapeError("with an identity read-out B must be [I 0]; use readout='linear'")
        with torch.no_grad():
            model.weight.copy_(weight)
            for name, value in (("bias", bias), ("nuisance_weight", J)):
                if value is not None:
                    _copy(name, getattr(model, name), _tensor(name, value))
        model.noise = noise
        model.initialised = True
        return model

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

    @property
    def quadratic(self) -> bool:
        """True unless the read-out is rectified."""
        return self.readout.affine

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

    def local(self, m: Modality, z: Tensor, *, positive: bool = False) -> Local:
        """Log-density, gradient and negative Hessian in the latent path (see the base class).

        The curvature is one block ``[1, 1, M, M]`` when every step has one sample, no entry is
        missing and the read-out is not rectified; otherwise it costs one matrix product.
        """
        steps = z.shape[-2]
        self._check(m)
        with torch.no_grad():
            z_n = gather(z, m.clock, m.y.shape[-2])
            squares, count, score = (
                torch.from_numpy(x).to(self.weight.dtype) for x in self._terms(m, z_n)
            )
            complete = bool((count == m.y.shape[1]).all())
            constant = (count * torch.log(2 * math.pi * self.noise)).sum(-1)
            slope = self.readout.slope(z_n)
            if slope is not None:
                score = torch.where(m.mask.any(-1, keepdim=True), score * slope, 0.0)
            if slope is None and complete and m.clock is None and m.y.shape[-2] == steps:
                block = self._information()[None, None]
            else:
                block = scatter(self._blocks(m.mask, complete, slope), m.clock, steps)
            return Local(-0.5 * (squares + constant), scatter(score, m.clock, steps), block)

    def _terms(self, m: Modality, z: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squares, counts and gradient at the samples' latent states, by one compiled pass."""
        known = None
        if self.nuisance and m.nuisance is not None:
            known = (m.nuisance @ self.nuisance_weight.mT).numpy()
        bias = torch.zeros(self.channels) if self.bias is None else self.bias.detach()
        return gaussian_terms(
            m.y.numpy(),
            m.mask.numpy(),
            self.readout(z).numpy(),
            self.weight.detach().numpy(),
            bias.numpy(),
            (1 / self.noise).numpy(),
            known=known,
        )

    def _information(self) -> Tensor:
        """B' G^-1 B ``[M, M]``, the curvature of one complete sample."""
        return (self.weight.mT / self.noise) @ self.weight

    def _blocks(self, mask: Tensor, complete: bool, slope: Tensor | None) -> Tensor:
        """Curvature of every sample ``[B, n, M, M]``."""
        if complete or bool((mask == mask[..., :1]).all()):  # samples are whole or absent
            block = mask[..., :1, None] * self._information()
        else:
            information = khatri_rao(self.weight) / self.noise[:, None]
            block = (mask.to(information.dtype) @ information).unflatten(-1, (self.dim, self.dim))
        if slope is None:
            return block
        return block * slope[..., :, None] * slope[..., None, :]

    def expected_log_prob(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> Tensor:
        """Expected log-density under Gaussian latent states, in closed form."""
        with torch.no_grad():
            centre, spread = self._regressor_moments(m, mean, covariance)
            eta = centre @ self._coefficients().mT
            second = torch.where(m.mask, m.y - eta, 0.0).square()
            if spread is not None:
                second = second + spread.flatten(-2) @ khatri_rao(self.weight).mT * m.mask
            entries = -0.5 * (second / self.noise + torch.log(2 * math.pi * self.noise))
            return torch.where(m.mask, entries, 0.0).sum((-2, -1))

    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Closed-form maximum over weight, intercept, nuisance weight and noise.

        Each channel has its own normal equations over the entries that were observed; frozen
        parameters keep their values and act as known. The noise has a floor of 1e-5 of the
        channel's variance (lower where it started lower).

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``; None for a known path.
        """
        with torch.no_grad():
            centre, spread = self._regressor_moments(m, mean, covariance)
            centre = centre.flatten(0, 1)
            mask = m.mask.flatten(0, 1).to(centre.dtype)
            y = m.y.flatten(0, 1).to(centre.dtype)
            # one column is enough for all channels when samples are whole or absent
            column = mask[:, :1] if bool((mask == mask[:, :1]).all()) else mask
            spread_sum = self._spread_sum(column, spread)
            self._update_coefficients(y, mask, centre, spread_sum, column)
            if self.log_noise.requires_grad:
                self._update_noise(y, mask, centre, spread_sum)

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Least-squares fit of the parameters to a known latent path ``[B, T, M]``."""
        self.m_step(m, z, None)

    def _coefficients(self) -> Tensor:
        return torch.cat([self.weight, self.bias[:, None], self.nuisance_weight], dim=1)

    def _regressor_moments(
        self, m: Modality, mean: Tensor, covariance: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Means of the regressors [r(z); 1; n] ``[B, n, Q]`` and Cov[r(z)] ``[B, n, M, M]``."""
        centre = self.at_samples(mean, m)
        spread = None if covariance is None else self.at_samples(covariance, m, event=2)
        if spread is None:
            centre = self.readout(centre)
        else:
            centre, spread = self.readout.moments(centre, spread)
        nuisance = m.nuisance
        if nuisance is None:
            nuisance = centre.new_zeros((*centre.shape[:-1], self.nuisance))
        one = torch.ones_like(centre[..., :1])
        parts = [centre, one, nuisance.to(centre.dtype)[..., : self.nuisance]]
        return torch.cat(parts, dim=-1), spread

    def _spread_sum(self, column: Tensor, spread: Tensor | None) -> Tensor:
        """Sum of Cov[r(z)] over the observed samples of each channel ``[N or 1, M, M]``."""
        if spread is None:
            return self.weight.new_zeros((1, self.dim, self.dim))
        flat = spread.flatten(0, 1).flatten(-2)
        return (column.mT @ flat).unflatten(-1, (self.dim, self.dim))

    def _update_coefficients(
        self, y: Tensor, mask: Tensor, centre: Tensor, spread: Tensor, column: Tensor
    ) -> None:
        """One Newton step, exact for a quadratic, in the coefficients that are free."""
        sizes = ((self.weight, self.dim), (self.bias, 1), (self.nuisance_weight, self.nuisance))
        free = torch.cat([torch.full((size,), part.requires_grad) for part, size in sizes])
        if not bool(free.any()):
            return
        theta, dim, size = self._coefficients(), self.dim, centre.shape[1]
        gradient = ((y - centre @ theta.mT) * mask).mT @ centre
        gradient[:, :dim] -= (spread @ self.weight[..., None]).squeeze(-1)
        gram = column.mT @ (centre[:, :, None] * centre[:, None, :]).flatten(1)
        gram = gram.unflatten(-1, (size, size))
        gram[:, :dim, :dim] += spread
        theta[:, free] += _solve(gram[:, free][:, :, free], gradient[:, free])
        if bool(torch.isfinite(theta).all()):
            self.weight.copy_(theta[:, :dim])
            self.bias.copy_(theta[:, dim])
            self.nuisance_weight.copy_(theta[:, dim + 1 :])

    def _update_noise(self, y: Tensor, mask: Tensor, centre: Tensor, spread: Tensor) -> None:
        residual = (y - centre @ self._coefficients().mT) * mask
        count = mask.sum(0)
        total = residual.square().sum(0)
        total = total + ((self.weight[:, None] @ spread).squeeze(1) * self.weight).sum(-1)
        centred = (y - (y * mask).sum(0) / count.clamp_min(1)) * mask
        spread_of_data = centred.square().sum(0) / count.clamp_min(1)
        spread_of_data = torch.where(spread_of_data > 0, spread_of_data, 1.0)
        floor = torch.minimum(self.noise, NOISE_FLOOR * spread_of_data)
        estimate = torch.maximum(total / count.clamp_min(1), floor)
        self.noise = torch.where(count > 0, estimate, self.noise)


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


def _tensor(name: str, value: ArrayLike) -> Tensor:
    tensor = _plain(value)
    if not bool(torch.isfinite(tensor).all()):
        raise PlssmError(f"{name}: got NaN or infinite values, wanted finite numbers")
    return tensor


def _copy(name: str, target: Tensor, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ShapeError(f"{name}: wanted shape {tuple(target.shape)}, got {tuple(value.shape)}")
    target.copy_(value)
