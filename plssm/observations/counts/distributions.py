"""Distributions of counts, written in the logarithm of the mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

__all__ = [
    "NegativeBinomialCounts",
    "PoissonCounts",
    "ZeroInflatedCounts",
    "log_factorial",
    "log_rising",
]

LARGEST_RATE = 1e15
"""Rates are cut off here when counts are drawn, so that a draw is always finite."""

_TABLE = 4096  # counts up to here are looked up
_LARGE = 30.0  # dispersion from which Stirling's series is exact to machine precision


def log_factorial(y: Tensor) -> Tensor:
    """Logarithm of y! for whole numbers y >= 0, by table where the counts are small."""
    largest = int(y.max()) if y.numel() else 0
    if largest > _TABLE:
        return torch.lgamma(y + 1)
    table = torch.lgamma(torch.arange(largest + 1, dtype=y.dtype, device=y.device) + 1)
    return torch.take(table, y.long())


def log_rising(y: Tensor, log_dispersion: Tensor) -> Tensor:
    r"""Normaliser of the negative binomial, without cancellation for large dispersions.

    .. math:: \log\Gamma(y + k) - \log\Gamma(k) - y \log k

    Args:
        y: Counts ``[..., N]``.
        log_dispersion: Logarithm of k ``[N]``, or of any shape that broadcasts.

    Returns:
        The value, which goes to 0 for k to infinity; by table where the counts are small.
    """
    channels = y.shape[-1] if y.ndim else 0
    rows = int(y.max()) + 1 if y.numel() else 0
    if log_dispersion.shape != (channels,) or rows > _TABLE or rows * channels > y.numel():
        return _log_rising(y, log_dispersion)
    levels = torch.arange(rows, dtype=y.dtype, device=y.device)
    table = _log_rising(levels[:, None], log_dispersion)
    column = torch.arange(channels, device=y.device)
    return torch.take(table, y.long() * channels + column)


def _log_rising(y: Tensor, log_dispersion: Tensor) -> Tensor:
    """The same, entry by entry."""
    k = log_dispersion.exp()
    small, large = k.clamp_max(_LARGE), k.clamp_min(_LARGE)
    direct = torch.lgamma(y + small) - torch.lgamma(small) - y * small.log()
    by_series = (y + large - 0.5) * torch.log1p(y / large) - y
    by_series = by_series + _stirling(y + large) - _stirling(large)
    return torch.where(k < _LARGE, direct, by_series)


def _stirling(x: Tensor) -> Tensor:
    """Correction terms of Stirling's series for log Gamma at x >= 30."""
    inverse = 1 / x
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))


class _Counts(Distribution, ABC):
    """A distribution over whole numbers >= 0."""

    support = constraints.nonnegative_integer

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    @abstractmethod
    def _log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts that were checked."""

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts ``[*sample_shape, *batch_shape]``, finite for any rate."""
        with torch.no_grad():
            return self._sample(self._extended_shape(torch.Size(sample_shape)))

    @abstractmethod
    def _sample(self, shape: torch.Size) -> Tensor:
        """Counts of the given shape."""


class PoissonCounts(_Counts):
    r"""Poisson distribution.

    .. math:: \log p(y) = y \log\lambda - \lambda - \log y!

    Args:
        log_rate: Logarithm of the rate; finite also where the rate underflows.
        rate: The rate.

    Example:
        >>> rate = torch.tensor([2.0])
        >>> PoissonCounts(rate.log(), rate).log_prob(torch.tensor([0.0]))
        tensor([-2.])
    """

    arg_constraints: ClassVar = {"log_rate": constraints.real, "rate": constraints.nonnegative}

    def __init__(self, log_rate: Tensor, rate: Tensor) -> None:
        self.log_rate, self.rate = log_rate, rate
        super().__init__(rate.shape)

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """The rate."""
        return self.rate

    def _log_prob(self, value: Tensor) -> Tensor:
        return value * self.log_rate - self.rate - log_factorial(value)

    def _sample(self, shape: torch.Size) -> Tensor:
        return torch.poisson(self.rate.expand(shape).clamp_max(LARGEST_RATE))


class NegativeBinomialCounts(_Counts):
    r"""Negative binomial distribution by mean and dispersion.

    .. math:: p(y) = \frac{\Gamma(y + k)}{\Gamma(k)\, y!}
        \Big(\frac{k}{k + \mu}\Big)^k \Big(\frac{\mu}{k + \mu}\Big)^y

    Args:
        log_mean: Logarithm of the mean.
        mean: The mean.
        log_dispersion: Logarithm of k, which broadcasts against the mean.

    Example:
        >>> mean = torch.tensor([2.0])
        >>> NegativeBinomialCounts(mean.log(), mean, torch.zeros(1)).variance
        tensor([6.])
    """

    arg_constraints: ClassVar = {
        "log_mean": constraints.real,
        "mean": constraints.nonnegative,
        "log_dispersion": constraints.real,
    }

    def __init__(self, log_mean: Tensor, mean: Tensor, log_dispersion: Tensor) -> None:
        self.log_mean, self._mean, self.log_dispersion = log_mean, mean, log_dispersion
        super().__init__(mean.shape)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Mean plus squared mean over dispersion."""
        return self._mean + self._mean.square() * (-self.log_dispersion).exp()

    def _log_prob(self, value: Tensor) -> Tensor:
        ratio = self.log_mean - self.log_dispersion
        rest = logsigmoid(-ratio)  # log of k / (k + mean)
        bulk = value * self.log_mean + (value + self.log_dispersion.exp()) * rest
        return bulk + log_rising(value, self.log_dispersion) - log_factorial(value)

    def _sample(self, shape: torch.Size) -> Tensor:
        k = self.log_dispersion.exp().expand(shape)
        rate = torch.distributions.Gamma(k, torch.ones_like(k)).sample() / k * self._mean
        return torch.poisson(rate.clamp_max(LARGEST_RATE))


class ZeroInflatedCounts(_Counts):
    r"""Poisson distribution with extra zeros.

    .. math:: p(y) = \pi \, [y = 0] + (1 - \pi) \, \mathrm{Poisson}(y \mid \lambda), \qquad
        \pi = \sigma(\text{zero logit})

    Args:
        log_rate: Logarithm of the rate.
        rate: The rate.
        zero_logit: Log-odds of an extra zero, which broadcast against the rate.

    Example:
        >>> rate = torch.tensor([4.0])
        >>> ZeroInflatedCounts(rate.log(), rate, torch.zeros(1)).mean
        tensor([2.])
    """

    arg_constraints: ClassVar = {
        "log_rate": constraints.real,
        "rate": constraints.nonnegative,
        "zero_logit": constraints.real,
    }

    def __init__(self, log_rate: Tensor, rate: Tensor, zero_logit: Tensor) -> None:
        self.log_rate, self.rate, self.zero_logit = log_rate, rate, zero_logit
        super().__init__(rate.shape)

    @property
    def mean(self) -> Tensor:
        """(1 - pi) times the rate."""
        return torch.sigmoid(-self.zero_logit) * self.rate

    @property
    def variance(self) -> Tensor:
        """Mean times (1 + pi times the rate)."""
        return self.mean * (1 + torch.sigmoid(self.zero_logit) * self.rate)

    def _log_prob(self, value: Tensor) -> Tensor:
        zero = logsigmoid(self.zero_logit) - logsigmoid(self.zero_logit + self.rate)
        some = (
            logsigmoid(-self.zero_logit) + value * self.log_rate - self.rate - log_factorial(value)
        )
        return torch.where(value == 0, zero, some)

    def _sample(self, shape: torch.Size) -> Tensor:
        counts = torch.poisson(self.rate.expand(shape).clamp_max(LARGEST_RATE))
        extra = torch.bernoulli(torch.sigmoid(self.zero_logit).expand(shape))
        return counts * (1 - extra)
