"""Poisson counts with extra zeros."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plssm.observations.counts.base import CountModel, copy_into, known
from plssm.observations.counts.distributions import ZeroInflatedCounts, log_factorial
from plssm.observations.counts.history import HistoryBasis
from plssm.observations.counts.statistics import lognormal_moments

__all__ = ["ZeroInflatedPoisson"]


class ZeroInflatedPoisson(CountModel):
    r"""Counts that are zero more often than Poisson counts, with extra zeros for each channel.

    .. math:: p(y_i) = \pi \, [y_i = 0] + (1 - \pi) \, \mathrm{Poisson}(y_i \mid \lambda_i), \qquad
        \lambda_i = e^{\eta_i} \Delta, \quad \pi = \sigma(\text{zero logit})

    The log-density of a zero is not concave in the predictor. Newton steps take the curvature of
    the Poisson part weighted by its responsibility (the EM majoriser) instead; covariance and
    evidence take the exact one.

    Args:
        channels: Number N of channels.
        bin_seconds: Width Δ of a bin (see :class:`plssm.observations.counts.models.Poisson`).
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept b.
        history: Basis of the spike-history filters.
        coupling: Whether every channel is driven by the past of all channels, else by its own.

    References:
        Lambert 1992, doi:10.2307/1269547.

    Example:
        >>> model = ZeroInflatedPoisson.from_parameters([[1.0]], bias=[0.0], zero_logit=[0.0])
        >>> model.distribution(torch.zeros(1, dtype=torch.float64)).mean
        tensor([0.5000], dtype=torch.float64, grad_fn=<...>)
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
        self.zero_logit = nn.Parameter(torch.zeros(self.channels, dtype=torch.float64))

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        zero_logit: ArrayLike,
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance_weight: ArrayLike | None = None,
    ) -> ZeroInflatedPoisson:
        """Model with known parameters.

        Args:
            weight: W ``[N, M]``.
            bias: b ``[N]``; None starts it at zero.
            zero_logit: Log-odds of an extra zero ``[N]``, or one for all.
            bin_seconds: Width of a bin.
            readout: "linear", "relu" or "identity".
            nuisance_weight: J ``[N, R]``.

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite.
        """
        model = cls._known(weight, bias, nuisance_weight, bin_seconds=bin_seconds, readout=readout)
        logit = known("zero_logit", zero_logit)
        logit = logit.expand(model.channels) if logit.ndim == 0 else logit
        copy_into("zero_logit", model.zero_logit, logit)
        return model

    @property
    def concave(self) -> bool:
        """Whether the log-density is concave in the predictors: not at a zero."""
        return False

    def distribution(self, features: Tensor) -> ZeroInflatedCounts:
        """Zero-inflated Poisson distribution of the counts of a bin."""
        log_rate = self.link.log_rate(features) + math.log(self.bin_seconds)
        return ZeroInflatedCounts(
            log_rate, self.link.rate(features) * self.bin_seconds, self.zero_logit
        )

    def _terms(self, eta: Tensor, y: Tensor, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
        rate = self.link.terms(eta)
        mean, bend = rate.value * self.bin_seconds, rate.bend * self.bin_seconds
        slope = mean * rate.slope
        # responsibilities of the Poisson part and of the extra zeros for a zero
        poisson = torch.sigmoid(-self.zero_logit - mean)
        inflated = torch.sigmoid(self.zero_logit + mean)
        zero = y == 0
        log_rate = rate.log + math.log(self.bin_seconds)
        at_zero = logsigmoid(self.zero_logit) - logsigmoid(self.zero_logit + mean)
        some = logsigmoid(-self.zero_logit) + y * log_rate - mean - log_factorial(y)
        gradient = torch.where(zero, -poisson * slope, (y - mean) * rate.slope)
        bent = poisson * bend
        if not positive:
            bent = bent - poisson * inflated * slope.square()
        curvature = torch.where(zero, bent, y * rate.excess + bend)
        return torch.where(zero, at_zero, some), gradient, curvature

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the counts when the predictors are Gaussian (exact)."""
        with torch.no_grad():
            first, second = lognormal_moments(mean + math.log(self.bin_seconds), covariance)
            square = torch.diagonal(second, dim1=-2, dim2=-1) + first.square()
            kept, extra = torch.sigmoid(-self.zero_logit), torch.sigmoid(self.zero_logit)
            spread = second * kept[:, None] * kept
            return kept * first, spread + torch.diag_embed(kept * (first + extra * square))
