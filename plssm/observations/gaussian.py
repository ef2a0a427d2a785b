"""Gaussian observations with diagonal noise, everything in closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from plssm.errors import ShapeError
from plssm.kernels.gaussian_terms import gaussian_terms
from plssm.observations.clock import gather, scatter
from plssm.observations.gaussian_channels import (
    GaussianChannels,
    Regression,
    finite,
    matrix,
    whole_column,
)
from plssm.observations.local import Local, khatri_rao

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["Gaussian"]


class Gaussian(GaussianChannels):
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
        weight = matrix("B", B)
        J = None if nuisance_weight is None else finite("nuisance_weight", nuisance_weight)
        model = cls(len(weight), readout=readout, nuisance=0 if J is None else J.shape[-1])
        model.bind(weight.shape[1])
        if not model.readout.trainable and not torch.equal(weight, model.weight):
            raise ShapeError("with an identity read-out B must be [I 0]; use readout='linear'")
        model._take(weight, bias, J, noise)
        return model

    @property
    def quadratic(self) -> bool:
        """True unless the read-out is rectified."""
        return self.readout.affine

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
            y, mask = (part.flatten(0, 1).to(centre.dtype) for part in (m.y, m.mask))
            parts = [Regression(y, mask, centre, self._spread_sum(whole_column(mask), spread))]
            self._update_coefficients(parts)
            self._update_noise(parts)

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Least-squares fit of the parameters to a known latent path ``[B, T, M]``."""
        self.m_step(m, z, None)

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
        return self._regressors(m, centre), spread

    def _spread_sum(self, column: Tensor, spread: Tensor | None) -> Tensor:
        """Sum of Cov[r(z)] over the observed samples of each channel ``[N or 1, M, M]``."""
        if spread is None:
            return self.weight.new_zeros((1, self.dim, self.dim))
        flat = spread.flatten(0, 1).flatten(-2)
        return (column.mT @ flat).unflatten(-1, (self.dim, self.dim))
