"""The linear predictor of an observation model: read-out, intercept and covariates."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.errors import ShapeError
from plssm.observations.clock import gather
from plssm.observations.masks import complete
from plssm.observations.readout import make_readout

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["LinearPredictor"]


class LinearPredictor(Configurable, nn.Module, ABC):
    r"""Predictors of the samples of one modality: an affine map of regressors of the latent path.

    .. math:: \eta_i = W \, r(z_{k(i)}) + b + J n_i

    with r the read-out, k(i) the latent step of sample i and n_i its covariates. The base of
    :class:`plssm.observations.ObservationModel`.

    Args:
        channels: Number N of observed channels.
        predictors: Number of predictors; default one for each channel.
        readout: "linear" r(z) = z, "relu" r(z) = max(0, z), or "identity" (the first N latent
            states are the predictors).
        nuisance: Number R of nuisance regressors.
        bias: Whether the predictors have an intercept (never with an identity read-out).

    Attributes:
        weight: W ``[predictors, M]``, from :meth:`bind` on.
        bias: b ``[predictors]``.
        nuisance_weight: J ``[predictors, n_covariates]``.
        dim: Number M of latent states, None until :meth:`bind`.
    """

    def __init__(
        self,
        channels: int,
        *,
        predictors: int | None = None,
        readout: str = "linear",
        nuisance: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, count, least in (("channels", channels, 1), ("nuisance", nuisance, 0)):
            if int(count) != count or count < least:
                raise ShapeError(
                    f"{type(self).__name__}: {name} is {count!r}, wanted a whole number >= {least}"
                )
        self.channels = int(channels)
        self.predictors = self.channels if predictors is None else int(predictors)
        self.nuisance = int(nuisance)
        self.readout = make_readout(readout)
        self.has_bias = bool(bias) and self.readout.trainable
        self.dim: int | None = None

    @property
    def n_covariates(self) -> int:
        """Number of columns of the covariate weight: the nuisance regressors come first."""
        return self.nuisance

    @property
    def covariate_mask(self) -> Tensor | None:
        """Which entries of ``nuisance_weight`` are free, bool; None where all are."""
        return None

    def memory(self, dt: float) -> int:
        """Number of earlier latent steps a sample depends on, besides its own.

        Args:
            dt: Seconds per latent step.
        """
        return 0

    def interval(self, dt: float) -> int:
        """Latent steps between the samples of simulated data.

        Args:
            dt: Seconds per latent step.
        """
        return 1

    def lag_weights(self, dt: float) -> Tensor:
        """Weights of the present and earlier latent states ``[K, memory + 1, M]``, newest first.

        Args:
            dt: Seconds per latent step.
        """
        return self.weight[:, None, :]

    def bind(self, dim: int) -> Self:
        """Create the parameters of the predictor for a given number of latent states.

        Args:
            dim: Number M of latent states. Binding to the same number again changes nothing.

        Returns:
            The model itself.

        Raises:
            ShapeError: When the model is already bound to another number.
        """
        if self.dim is not None:
            if dim != self.dim:
                raise ShapeError(
                    f"{type(self).__name__} is bound to {self.dim} latent states, not {dim}; "
                    "make a new observation model for another latent size"
                )
            return self
        weight = self.readout.start_weight(self.predictors, int(dim))
        self._attach("weight", weight, self.readout.trainable)
        self._attach("bias", weight.new_zeros(self.predictors), self.has_bias)
        shape = (self.predictors, self.n_covariates)
        self._attach("nuisance_weight", weight.new_zeros(shape), self.n_covariates > 0)
        self.dim = int(dim)
        return self

    def _attach(self, name: str, value: Tensor, trainable: bool) -> None:
        if trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def features(self, z: Tensor, nuisance: Tensor | None = None) -> Tensor:
        """Predictors at latent states.

        Args:
            z: Latent states ``[..., n, M]``.
            nuisance: Covariates ``[..., n, R]`` (see :meth:`covariates`); None leaves their part
                out.

        Returns:
            ``[..., n, predictors]``.

        Raises:
            ShapeError: When the latent states or the regressors have another size.
        """
        if self.dim is None:
            raise ShapeError(f"{type(self).__name__} has no latent size yet; call bind(dim)")
        if z.shape[-1] != self.dim:
            raise ShapeError(
                f"{type(self).__name__} reads {self.dim} latent states, got {z.shape[-1]}"
            )
        eta = nn.functional.linear(self.readout(z), self.weight, self.bias)
        if self.n_covariates == 0 or nuisance is None:
            return eta
        if nuisance.shape[-1] != self.n_covariates:
            raise ShapeError(
                f"{type(self).__name__} has {self.n_covariates} nuisance regressors, the data "
                f"have {nuisance.shape[-1]}"
            )
        return eta + nuisance.to(eta.dtype) @ self.nuisance_weight.mT

    def covariates(self, m: Modality) -> Tensor | None:
        """Known regressors of every sample ``[B, n, n_covariates]``: the nuisance regressors.

        A model whose predictors also depend on the observations themselves (spike history)
        appends those terms here and counts them in :attr:`n_covariates`.
        """
        return m.nuisance

    def features_at(self, m: Modality, z: Tensor) -> Tensor:
        """Predictors of the samples of a modality.

        Args:
            m: The modality (samples ``[B, n, N]``).
            z: Latent path ``[..., B, T, M]``; may be NaN where nothing is observed.

        Returns:
            ``[..., B, n, predictors]``.
        """
        return self.features(self.at_samples(z, m), self.covariates(m))

    def features_along(
        self,
        z: Tensor,
        *,
        clock: Tensor | None = None,
        nuisance: Tensor | None = None,
        dt: float = 1.0,
    ) -> Tensor:
        """Predictors at some steps of latent paths, for simulations and predictions.

        Args:
            z: Latent paths ``[..., T, M]`` of consecutive steps.
            clock: Steps of the samples ``[n]``; None means every step.
            nuisance: Nuisance regressors ``[..., n, R]``; None leaves their part out.
            dt: Seconds per latent step.

        Returns:
            ``[..., n, predictors]``.
        """
        return self.features(z if clock is None else z[..., clock, :], nuisance)

    def feature_moments(
        self, mean: Tensor, covariance: Tensor, nuisance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the predictors under a Gaussian latent state.

        Args:
            mean: ``[..., M]``.
            covariance: ``[..., M, M]``.
            nuisance: Nuisance regressors ``[..., R]``.

        Returns:
            ``[..., predictors]`` and ``[..., predictors, predictors]``, exact also for the
            rectified read-out.
        """
        with torch.no_grad():
            centre, spread = self.readout.moments(mean, covariance)
            eta = centre @ self.weight.mT + self.bias
            if self.n_covariates and nuisance is not None:
                eta = eta + nuisance.to(eta.dtype) @ self.nuisance_weight.mT
            return eta, self.weight @ spread @ self.weight.mT

    def gather(self, z: Tensor, m: Modality) -> Tensor:
        """Latent state of each sample: ``[..., B, T, M]`` to ``[..., B, n, M]``."""
        return gather(z, m.clock, m.y.shape[-2])

    def at_samples(self, values: Tensor, m: Modality, *, event: int = 1) -> Tensor:
        """As :meth:`gather`, with zeros where a sample has no observed channel.

        Args:
            values: ``[..., B, T, *event]``; may be NaN where nothing is observed.
            m: The modality.
            event: Number of axes after the time axis.

        Returns:
            ``[..., B, n, *event]``.
        """
        self._check(m)
        taken = gather(values, m.clock, m.y.shape[-2], event=event)
        if complete(m.mask):
            return taken
        seen = m.mask.any(-1)
        return torch.where(seen[(...,) + (None,) * event], taken, 0.0)

    def _check(self, m: Modality) -> None:
        if m.y.shape[-1] != self.channels or m.mask.shape != m.y.shape:
            raise ShapeError(
                f"{type(self).__name__} has {self.channels} channels, got observations "
                f"{tuple(m.y.shape)} with mask {tuple(m.mask.shape)}"
            )
