"""What every observation model has in common.

A new observation model is only its distribution: a subclass writes :meth:`distribution` (and its
own parameters, if any); missing entries, other clocks, derivatives, moments, sampling and the
M-step follow from it. A closed form overrides a default and must equal it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from plssm._config_capture import Configurable
from plssm.errors import DataError, ShapeError
from plssm.observations.clock import gather, scatter
from plssm.observations.expected_fit import expectation_terms, maximise
from plssm.observations.local import Local, autograd_derivatives, positive_part, pull_back
from plssm.observations.quadrature import channelwise_moments, coupled_moments
from plssm.observations.readout import make_readout

if TYPE_CHECKING:
    from plssm.data import Dataset
    from plssm.data.batch import Modality

__all__ = ["ObservationModel"]


class ObservationModel(Configurable, nn.Module, ABC):
    r"""Distribution of the observations of one modality given the latent path.

    .. math:: y_i \sim p(\cdot \mid \eta_i), \qquad
        \eta_i = W \, r(z_{k(i)}) + b + J n_i

    with r the read-out, k(i) the latent step of sample i and n_i its nuisance regressors.

    Args:
        channels: Number N of observed channels.
        predictors: Number of predictors; default one for each channel.
        readout: "linear" r(z) = z, "relu" r(z) = max(0, z), or "identity" (the first N latent
            states are the predictors).
        nuisance: Number R of nuisance regressors.
        bias: Whether the predictors have an intercept (never with an identity read-out).

    Attributes:
        kinds: Kinds of data the model is for.
        tempering: Exponent (a number) on this modality's likelihood in the posterior of the latent
            path; 1 is the proper likelihood. Log-densities and scores are never tempered.
        fill: Value in the support of the distribution that stands in for missing entries.
        initialised: Whether the parameters were set on purpose, False for a fresh model.
        dim: Number M of latent states, None until :meth:`bind`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("continuous",)
    fill: ClassVar[float] = 0.0

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
        self.initialised = False
        self.register_buffer("tempering", torch.ones((), dtype=torch.float64))

    @abstractmethod
    def distribution(self, features: Tensor) -> Distribution:
        """Distribution of the observations given their predictors.

        Args:
            features: Predictors ``[..., n, predictors]``, any real number.

        Returns:
            A distribution with batch shape ``[..., n, channels]``.
        """

    @property
    def coupled(self) -> bool:
        """Whether a channel depends on more than the one predictor that has its number."""
        return self.predictors != self.channels

    @property
    def quadratic(self) -> bool:
        """Whether the log-density is exactly quadratic in the latent states."""
        return False

    @property
    def n_covariates(self) -> int:
        """Number of columns of the covariate weight: the nuisance regressors come first."""
        return self.nuisance

    def memory(self, dt: float) -> int:
        """Number of earlier latent steps a sample depends on, besides its own.

        Args:
            dt: Seconds per latent step.
        """
        return 0

    def check(self, data: Dataset, name: str) -> None:
        """Refuse data that this model cannot describe (beyond kind and sizes).

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: With the reason and the fix.
        """

    def check_training(self, data: Dataset, name: str) -> None:
        """Refuse data from which this model cannot be learned.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: When the modality is missing in every trial.
        """
        if all(bool(np.isnan(trial.values[name]).all()) for trial in data.trials):
            raise DataError(
                "the modality is missing in every trial",
                modality=name,
                got="no observed value",
                wanted="at least one",
                fix="leave it out of the model, or give it data",
            )

    def bind(self, dim: int) -> ObservationModel:
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
        if bool(m.mask.all()):
            return taken
        seen = m.mask.any(-1)
        return torch.where(seen[(...,) + (None,) * event], taken, 0.0)

    def _check(self, m: Modality) -> None:
        if m.y.shape[-1] != self.channels or m.mask.shape != m.y.shape:
            raise ShapeError(
                f"{type(self).__name__} has {self.channels} channels, got observations "
                f"{tuple(m.y.shape)} with mask {tuple(m.mask.shape)}"
            )

    def masked_log_prob(self, features: Tensor, m: Modality) -> Tensor:
        """Log-density of each entry given the predictors, zero where nothing was observed.

        Predictors and observations of missing entries are filled before the density and its
        value is masked after it, so that gradients stay finite.

        Args:
            features: ``[..., B, n, predictors]``.
            m: The modality.

        Returns:
            ``[..., B, n, channels]``.
        """
        seen = m.mask.any(-1, keepdim=True) if self.coupled else m.mask
        eta = torch.where(seen, features, 0.0)
        y = torch.where(m.mask, m.y, self.fill).to(eta.dtype)
        return torch.where(m.mask, self.distribution(eta).log_prob(y), 0.0)

    def log_prob_entries(self, m: Modality, z: Tensor) -> Tensor:
        """Log-density of each entry given a latent path.

        Args:
            m: The modality (samples ``[B, n, N]``).
            z: Latent path ``[..., B, T, M]``.

        Returns:
            ``[..., B, n, N]``, zero where nothing was observed.
        """
        return self.masked_log_prob(self.features_at(m, z), m)

    def log_prob(self, m: Modality, z: Tensor) -> Tensor:
        """Log-density of a modality given a latent path ``[..., B, T, M]``, as ``[..., B]``."""
        return self.log_prob_entries(m, z).sum((-2, -1))

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density of each entry and its derivatives in the predictors.

        Args:
            features: ``[B, n, predictors]``.
            m: The modality.
            positive: Give a positive semi-definite curvature that is safe for Newton steps.

        Returns:
            Log-density ``[B, n, N]``, gradient ``[B, n, predictors]`` and negative Hessian
            ``[B, n, predictors]`` (diagonal) or, when coupled, ``[B, n, predictors, predictors]``.
        """
        value, gradient, curvature = autograd_derivatives(
            lambda eta: self.masked_log_prob(eta, m), features, coupled=self.coupled
        )
        if positive:
            curvature = positive_part(curvature, coupled=self.coupled)
        return value, gradient, curvature

    def local(self, m: Modality, z: Tensor, *, positive: bool = False) -> Local:
        """Log-density, gradient and negative Hessian in the latent path.

        Args:
            m: The modality (samples ``[B, n, N]``).
            z: Latent path ``[B, T, M]`` (a rectified read-out is expanded in the region of z).
            positive: Give a positive semi-definite curvature that is safe for Newton steps
                instead of the exact one.

        Returns:
            The local expansion on the latent clock; samples of the same step add up. A model with
            memory gives a banded curvature (see :class:`Local`).
        """
        steps = z.shape[-2]
        with torch.no_grad():
            z_n = self.at_samples(z, m)
            eta = self.features(z_n, self.covariates(m))
        value, gradient, curvature = self.derivatives(eta, m, positive=positive)
        score, block = pull_back(
            gradient,
            curvature,
            self.weight.detach(),
            self.readout.slope(z_n),
            coupled=self.coupled,
        )
        return Local(
            log_prob=value.sum((-2, -1)),
            score=scatter(score, m.clock, steps),
            curvature=scatter(block, m.clock, steps),
        )

    def sample(self, features: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Draw observations given their predictors.

        Args:
            features: ``[..., n, predictors]``.
            seed: Seed or generator; the global random state is left alone.

        Returns:
            ``[..., n, channels]``.
        """
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.distribution(features).sample()

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the observations when the predictors are Gaussian.

        Args:
            mean: Mean of the predictors ``[..., predictors]``.
            covariance: Covariance of the predictors ``[..., predictors, predictors]``.

        Returns:
            Mean ``[..., N]`` and covariance ``[..., N, N]``.
        """
        rule = coupled_moments if self.coupled else channelwise_moments
        with torch.no_grad():
            return rule(self.distribution, mean, covariance)

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

    def predictive(
        self, mean: Tensor, covariance: Tensor, nuisance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean ``[..., N]`` and covariance ``[..., N, N]`` of y under a Gaussian latent state.

        Args:
            mean: Latent mean ``[..., M]``.
            covariance: Latent covariance ``[..., M, M]``.
            nuisance: Nuisance regressors ``[..., R]``.

        Returns:
            The moments of the observations.
        """
        return self.moments(*self.feature_moments(mean, covariance, nuisance))

    def expected_log_prob(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> Tensor:
        """Expected log-density under Gaussian latent states.

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``; None for a known path. A model with
                memory w gets ``[B, T, w+1, M, M]`` with Cov(z_t, z_{t+l}).

        Returns:
            ``[B]``.
        """
        with torch.no_grad():
            return sum(term() for term in expectation_terms(self, m, mean, covariance))

    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Raise the expected log-density over the parameters that are not frozen.

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``; None for a known path. A model with
                memory w gets ``[B, T, w+1, M, M]`` with Cov(z_t, z_{t+l}).
        """
        self._raise_expectation(m, mean, covariance, iterations=20)

    def _raise_expectation(
        self, m: Modality, mean: Tensor, covariance: Tensor | None, *, iterations: int
    ) -> None:
        free = [p for p in self.parameters() if p.requires_grad]
        count = int(m.mask.sum())
        if free and count:
            penalised = [self.weight] if self.weight.requires_grad else []
            terms = expectation_terms(self, m, mean, covariance)
            maximise(terms, free, count=count, penalised=penalised, iterations=iterations)

    def start_signal(self, m: Modality) -> Tensor:
        """Real-valued stand-in of the data ``[B, n, K]`` from which a fit can start.

        K need not be the number of channels (labels: one column a class). Columns of samples
        without an observed channel are ignored; with K = N, so are missing entries.
        """
        return m.y

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit the parameters to a known latent path ``[B, T, M]``."""
        self._raise_expectation(m, z, None, iterations=200)
