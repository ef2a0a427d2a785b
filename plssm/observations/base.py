"""What every observation model has in common.

A new observation model is only its distribution: a subclass writes :meth:`distribution` (and its
own parameters, if any); missing entries, other clocks, derivatives, moments, sampling and the
M-step follow from it. A closed form overrides a default and must equal it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from plssm.errors import CapabilityError, DataError
from plssm.observations.clock import scatter
from plssm.observations.learning.expectation import GaussianExpectation, repeated
from plssm.observations.learning.expected_fit import make_expectation, raise_expectation
from plssm.observations.learning.point_expectation import PointExpectation
from plssm.observations.learning.quadrature import (
    ExpectedDerivatives,
    channelwise_moments,
    coupled_moments,
    expected_derivatives,
)
from plssm.observations.local import Local, autograd_derivatives, positive_part, pull_back
from plssm.observations.predictor import LinearPredictor

if TYPE_CHECKING:
    from plssm.data import Dataset
    from plssm.data.batch import Modality
    from plssm.observations.learning.regressors import Coefficients

__all__ = ["ObservationModel"]

NARROW = 1e-4  # share of a covariance over which second differences of the score are taken


class ObservationModel(LinearPredictor):
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
        channel_expectation: What the M-step maximises where channels have their own affine
            predictor; a model with a closed form may set its own class.
        point_expectation: The same for everything else and for known paths.
        initialised: Whether the parameters were set on purpose, False for a fresh model.
        dim: Number M of latent states, None until :meth:`bind`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("continuous",)
    fill: ClassVar[float] = 0.0
    channel_expectation: ClassVar[type[GaussianExpectation]] = GaussianExpectation
    point_expectation: ClassVar[type[PointExpectation]] = PointExpectation

    def __init__(
        self,
        channels: int,
        *,
        predictors: int | None = None,
        readout: str = "linear",
        nuisance: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(
            channels, predictors=predictors, readout=readout, nuisance=nuisance, bias=bias
        )
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

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities given the predictors, for models of labels.

        Args:
            features: Predictors ``[..., predictors]``.

        Returns:
            ``[..., N, K]`` class probabilities of the N channels.

        Raises:
            CapabilityError: When the observations are no labels.
        """
        raise CapabilityError(
            f"{type(self).__name__} has no class probabilities: its observations are not labels; "
            "use distribution(features)"
        )

    @property
    def coupled(self) -> bool:
        """Whether a channel depends on more than the one predictor that has its number."""
        return self.predictors != self.channels

    @property
    def quadratic(self) -> bool:
        """Whether the log-density is exactly quadratic in the latent states."""
        return False

    @property
    def concave(self) -> bool:
        """Whether the log-density is concave in the predictors, whatever the observation.

        Then the exact curvature is safe for Newton steps. The default says so of quadratic models
        only.
        """
        return self.quadratic

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

    def sample_sequence(
        self,
        features: Tensor,
        seed: int | torch.Generator = 0,
        *,
        past: Tensor | None = None,
        dt: float = 1.0,
    ) -> Tensor:
        """Draw observations of consecutive samples, which may depend on those drawn before.

        Args:
            features: ``[..., n, predictors]`` of consecutive samples.
            seed: Seed or generator.
            past: Observations before the first one ``[..., t, N]``, where they matter.
            dt: Seconds per latent step.

        Returns:
            ``[..., n, channels]``.
        """
        return self.sample(features, seed)

    @property
    def expected_kind(self) -> str:
        """Kind of data that expected observations are: those of counts and levels are numbers."""
        return self.kinds[0] if self.kinds[0] in ("continuous", "bold") else "continuous"

    def expected_sequence(self, features: Tensor, *, dt: float = 1.0) -> Tensor:  # noqa: ARG002
        """Expected observations of consecutive samples, what simulations without noise show.

        Args:
            features: ``[..., n, predictors]`` of consecutive samples.
            dt: Seconds per latent step.

        Returns:
            ``[..., n, channels]``.
        """
        return self.distribution(features).mean

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
            expectation = make_expectation(self, m, mean, covariance)
            return expectation.entries(expectation.coefficients.read()).sum((-2, -1))

    def expected_derivatives(
        self, mean: Tensor, variance: Tensor, m: Modality
    ) -> ExpectedDerivatives:
        """Expected log-density of each entry under Gaussian predictors, with its derivatives.

        For channels that depend on their own predictor only. The default is quadrature through
        :meth:`derivatives`; a closed form may override it.

        Args:
            mean: Mean of the predictors ``[B, n, N]``.
            variance: Variance of the predictors ``[B, n, N]``.
            m: The modality.

        Returns:
            Value and partial derivatives in mean and variance, each ``[B, n, N]`` and zero where
            nothing was observed.
        """

        def at(eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.derivatives(eta.flatten(0, 1), repeated(m, len(eta)))

        with torch.no_grad():
            return expected_derivatives(at, mean, variance)

    def score_correction(self, m: Modality, mean: Tensor, covariance: Tensor) -> Tensor:
        r"""How the mean gradient in a Gaussian latent path differs from that at its centre.

        .. math:: \tfrac12 \sum_{ij} P_{ij} \, \partial_i \partial_j \nabla \log p(y \mid z),
            \qquad q(z_t) = N(m_t, P_t)

        To second order in the deviations; a closed form may override it.

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``.

        Returns:
            The difference on the latent clock ``[B, T, M]``.

        Raises:
            CapabilityError: When the samples depend on several latent steps.
        """
        with torch.no_grad():
            expected = make_expectation(self, m, mean, NARROW * covariance).score()
            change = scatter(expected, m.clock, mean.shape[-2]) - self.local(m, mean).score
            return change / NARROW

    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Raise the expected log-density over the parameters that are not frozen.

        Newton steps in weights, intercepts and covariate weights, with a weak ridge on the weights
        (:data:`plssm.observations.learning.newton_fit.RIDGE`); L-BFGS for all other parameters.

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``; None for a known path. A model with
                memory w gets ``[B, T, w+1, M, M]`` with Cov(z_t, z_{t+l}).
        """
        raise_expectation(self, m, mean, covariance)

    def information(self, m: Modality, z: Tensor) -> tuple[Coefficients, Tensor] | None:
        """Information about weights, intercepts and covariate weights on a known latent path.

        Args:
            m: The modality (samples ``[B, n, N]``).
            z: Latent path ``[B, T, M]``.

        Returns:
            Where the coefficients stand, and the negative Hessian of the log-density in those of
            each channel ``[N, q, q]`` (of all together ``[1, K q, K q]`` where they are coupled).
            None for a model with memory that does not override this.
        """
        if self.memory(m.dt):
            return None
        expectation = make_expectation(self, m, z, None)
        theta = expectation.coefficients.read().detach()
        return expectation.coefficients, expectation.expand(theta).curvature

    def encoding(self, m: Modality) -> Tensor:
        """What an encoder reads of each sample ``[B, n, K]``, from this sample alone.

        K is a multiple of the number of channels, whose columns stand together (labels: one
        column a level). What is missing may hold anything.
        """
        return m.y

    def start_signal(self, m: Modality) -> Tensor:
        """Real-valued stand-in of the data ``[B, n, K]`` from which a fit can start.

        K need not be the number of channels (labels: one column a class). Columns of samples
        without an observed channel are ignored; with K = N, so are missing entries.
        """
        return m.y

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit the parameters to a known latent path ``[B, T, M]``."""
        raise_expectation(self, m, z, None, fresh=True, rounds=20, gain=1e-7, tolerance=1e-6)
