"""Poisson and negative binomial counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plssm.errors import PlssmError
from plssm.kernels.count_correction import poisson_correction
from plssm.kernels.count_terms import poisson_terms
from plssm.observations.clock import gather, scatter
from plssm.observations.counts.base import CountModel, copy_into, known
from plssm.observations.counts.distributions import (
    NegativeBinomialCounts,
    PoissonCounts,
    log_factorial,
    log_rising,
)
from plssm.observations.counts.expectation import CountExpectation
from plssm.observations.counts.history import HistoryBasis
from plssm.observations.counts.rates import LOG_RATE_BOUND
from plssm.observations.counts.statistics import lognormal_moments
from plssm.observations.learning.quadrature import ExpectedDerivatives
from plssm.observations.local import Local

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["NegativeBinomial", "Poisson"]


class Poisson(CountModel):
    r"""Counts with a Poisson distribution, such as binned spikes.

    .. math:: y_i \sim \mathrm{Poisson}(\mathrm{link}(\eta_i) \, \Delta), \qquad
        \eta_i = W r(z_{k(i)}) + b + J n_i + \sum_{l \ge 1} K_l \, y_{i-l}

    The log-density is concave in the predictor for both links. From a log-rate of 30 on, the
    exponential link goes on as a parabola, so that nothing overflows.

    Args:
        channels: Number N of channels.
        link: "exp", or "softplus" for rates that grow linearly.
        bin_seconds: Width Δ of a bin. With 1 rates are expected counts per bin; with the true
            width they are in Hz, and fits at two widths have comparable parameters.
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept b.
        history: Basis of the spike-history filters K, such as ``RaisedCosine(functions=3)``.
        coupling: Whether every channel is driven by the past of all channels, else by its own.

    References:
        Truccolo et al. 2005, doi:10.1152/jn.00697.2004;
        Pillow et al. 2008, doi:10.1038/nature07140.

    Example:
        >>> model = Poisson.from_parameters([[0.5, -1.0]], bias=[1.0], bin_seconds=0.02)
        >>> model.distribution(torch.tensor([0.0])).mean
        tensor([0.0200])
    """

    def __init__(
        self,
        channels: int,
        *,
        link: str = "exp",
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance: int = 0,
        bias: bool = True,
        history: HistoryBasis | None = None,
        coupling: bool = False,
    ) -> None:
        super().__init__(
            channels,
            link=link,
            bin_seconds=bin_seconds,
            readout=readout,
            nuisance=nuisance,
            bias=bias,
            history=history,
            coupling=coupling,
        )

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        link: str = "exp",
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance_weight: ArrayLike | None = None,
        history: HistoryBasis | None = None,
        coupling: bool = False,
        history_weight: ArrayLike | None = None,
    ) -> Poisson:
        """Model with known parameters.

        Args:
            weight: W ``[N, M]``.
            bias: b ``[N]``; None starts it at zero.
            link: "exp" or "softplus".
            bin_seconds: Width of a bin.
            readout: "linear", "relu" or "identity".
            nuisance_weight: J ``[N, R]``.
            history: Basis of J functions of the spike history.
            coupling: Whether the history goes between channels.
            history_weight: ``[N, J]``, with coupling ``[N target, N source, J]``.

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite.
        """
        return cls._known(
            weight,
            bias,
            nuisance_weight,
            history_weight,
            link=link,
            bin_seconds=bin_seconds,
            readout=readout,
            history=history,
            coupling=coupling,
        )

    channel_expectation = CountExpectation

    @property
    def concave(self) -> bool:
        """Whether the log-density is concave in the predictors: always."""
        return True

    def distribution(self, features: Tensor) -> PoissonCounts:
        """Poisson distribution of the counts of a bin."""
        log_rate = self.link.log_rate(features) + math.log(self.bin_seconds)
        return PoissonCounts(log_rate, self.link.rate(features) * self.bin_seconds)

    def _terms(self, eta: Tensor, y: Tensor, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
        rate = self.link.terms(eta)
        mean = rate.value * self.bin_seconds
        value = y * (rate.log + math.log(self.bin_seconds)) - mean - log_factorial(y)
        return value, (y - mean) * rate.slope, y * rate.excess + rate.bend * self.bin_seconds

    def local(self, m: Modality, z: Tensor, *, positive: bool = False) -> Local:
        """Log-density, gradient and negative Hessian in the latent path (see the base class).

        Compiled for the exp link of latent states in float64.
        """
        if not (self.readout.affine and self.compilable(z)):
            return super().local(m, z, positive=positive)
        self._check(m)
        with torch.no_grad():
            steps = z.shape[-2]
            states = gather(z, m.clock, m.y.shape[-2])
            parts = poisson_terms(
                m.y.numpy(),
                m.mask.numpy(),
                states.numpy(),
                self.weight.numpy(),
                self.bias.numpy(),
                width=self.bin_seconds,
                bound=LOG_RATE_BOUND,
                known=self._known_part(m, z),
            )
            value, score, curvature = (torch.from_numpy(x) for x in parts)
            return Local(value, scatter(score, m.clock, steps), scatter(curvature, m.clock, steps))

    def _known_part(self, m: Modality, z: Tensor) -> np.ndarray | None:
        """What covariates add to the predictors ``[B, n, N]``, in the type of the states."""
        given = self.covariates(m) if self.n_covariates else None
        return None if given is None else (given.to(z) @ self._covariate_weight().mT).numpy()

    def compilable(self, values: Tensor) -> bool:
        """Whether the compiled passes serve this model with these values (float64, exp link)."""
        places = (values, self.weight)
        ready = all(x.dtype == torch.float64 and x.device.type == "cpu" for x in places)
        return ready and self.link.name == "exp"

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the counts when the predictors are Gaussian (exact for the exp link)."""
        if self.link.name != "exp":
            return super().moments(mean, covariance)
        with torch.no_grad():
            first, second = lognormal_moments(mean + math.log(self.bin_seconds), covariance)
            return first, second + torch.diag_embed(first)

    def score_correction(self, m: Modality, mean: Tensor, covariance: Tensor) -> Tensor:
        r"""Second-order change of the mean gradient, in closed form for the exp link.

        .. math:: -\tfrac12 \sum_i \Delta e^{\eta_i} \, (w_i^\top P_t w_i) \, w_i
        """
        if not (self.readout.affine and self.compilable(mean)):
            return super().score_correction(m, mean, covariance)
        with torch.no_grad():
            known = self._known_part(m, mean)
            correction = poisson_correction(
                m.mask.numpy(),
                self.at_samples(mean, m).numpy(),
                self.at_samples(covariance, m, event=2).numpy(),
                self.weight.numpy(),
                self.bias.numpy(),
                width=self.bin_seconds,
                known=known,
            )
            return scatter(torch.from_numpy(correction), m.clock, mean.shape[-2])

    def expected_derivatives(
        self, mean: Tensor, variance: Tensor, m: Modality
    ) -> ExpectedDerivatives:
        r"""Expected log-density under Gaussian predictors, in closed form for the exp link.

        .. math:: E[\log p(y \mid \eta)] = y \mu - e^{\mu + v / 2} - \log y!, \qquad
            \eta \sim N(\mu, v)
        """
        if self.link.name != "exp":
            return super().expected_derivatives(mean, variance, m)
        with torch.no_grad():
            seen = m.mask.to(mean.dtype)
            eta = torch.where(m.mask, mean, 0.0)
            y = torch.where(m.mask, m.y, self.fill).to(eta.dtype)
            rate = self.link.terms(torch.where(m.mask, mean + 0.5 * variance, 0.0))
            expected, bend = (x * self.bin_seconds * seen for x in (rate.value, rate.bend))
            slope = expected * rate.slope
            constant = y * math.log(self.bin_seconds) - log_factorial(y)
            return ExpectedDerivatives(
                value=y * eta + constant - expected,
                mean=y - slope,
                variance=-0.5 * slope,
                mean_mean=-bend,
                mean_variance=-0.5 * bend,
                variance_variance=-0.25 * bend,
            )


class NegativeBinomial(CountModel):
    r"""Counts that vary more than Poisson counts, with a dispersion for each channel.

    .. math:: E[y_i] = \mu_i = e^{\eta_i} \Delta, \qquad
        \mathrm{Var}[y_i] = \mu_i + \mu_i^2 / k

    A large dispersion k means nearly Poisson. The log-density is concave in the predictor.

    Args:
        channels: Number N of channels.
        bin_seconds: Width Δ of a bin (see :class:`Poisson`).
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept b.
        history: Basis of the spike-history filters.
        coupling: Whether every channel is driven by the past of all channels, else by its own.

    References:
        Pillow & Scott 2012, NeurIPS 25, "Fully Bayesian inference for neural models with
        negative-binomial spiking".

    Example:
        >>> model = NegativeBinomial.from_parameters([[0.5, 1.0]], bias=[1.0], dispersion=[2.0])
        >>> model.distribution(torch.zeros(1, dtype=torch.float64)).variance
        tensor([1.5000], dtype=torch.float64, grad_fn=<...>)
    """

    def __init__(
        self,
        channels: int,
        *,
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance: int = 0,
        bias: bool = True,
        history: HistoryBasis | None = None,
        coupling: bool = False,
    ) -> None:
        super().__init__(
            channels,
            bin_seconds=bin_seconds,
            readout=readout,
            nuisance=nuisance,
            bias=bias,
            history=history,
            coupling=coupling,
        )
        self.log_dispersion = nn.Parameter(torch.zeros(self.channels, dtype=torch.float64))

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        dispersion: ArrayLike,
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance_weight: ArrayLike | None = None,
    ) -> NegativeBinomial:
        """Model with known parameters.

        Args:
            weight: W ``[N, M]``.
            bias: b ``[N]``; None starts it at zero.
            dispersion: k of each channel ``[N]``, or one for all.
            bin_seconds: Width of a bin.
            readout: "linear", "relu" or "identity".
            nuisance_weight: J ``[N, R]``.

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite or a dispersion not positive.
        """
        model = cls._known(weight, bias, nuisance_weight, bin_seconds=bin_seconds, readout=readout)
        model.dispersion = dispersion
        return model

    @property
    def dispersion(self) -> Tensor:
        """Dispersion k of each channel ``[N]``; may be set to ``[N]`` or to one number."""
        return self.log_dispersion.exp()

    @dispersion.setter
    def dispersion(self, value: ArrayLike) -> None:
        k = known("dispersion", value)
        if not bool((k > 0).all()):
            raise PlssmError(f"dispersions must be positive, got {value}")
        k = k.expand(self.channels) if k.ndim == 0 else k
        copy_into("dispersion", self.log_dispersion, k.log())

    @property
    def concave(self) -> bool:
        """Whether the log-density is concave in the predictors: always."""
        return True

    def distribution(self, features: Tensor) -> NegativeBinomialCounts:
        """Negative binomial distribution of the counts of a bin."""
        log_mean = features + math.log(self.bin_seconds)
        mean = self.link.rate(features) * self.bin_seconds
        return NegativeBinomialCounts(log_mean, mean, self.log_dispersion)

    def _terms(self, eta: Tensor, y: Tensor, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
        log_mean, total = eta + math.log(self.bin_seconds), y + self.dispersion
        ratio = log_mean - self.log_dispersion
        share = torch.sigmoid(ratio)  # of the mean in mean + dispersion
        value = y * log_mean + total * logsigmoid(-ratio)
        value = value + log_rising(y, self.log_dispersion) - log_factorial(y)
        # y - total * share, without cancellation for a large dispersion
        gradient = y * torch.sigmoid(-ratio) - self.dispersion * share
        return value, gradient, total * share * torch.sigmoid(-ratio)

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the counts when the predictors are Gaussian (exact)."""
        with torch.no_grad():
            first, second = lognormal_moments(mean + math.log(self.bin_seconds), covariance)
            square = torch.diagonal(second, dim1=-2, dim2=-1) + first.square()
            return first, second + torch.diag_embed(first + square / self.dispersion)
