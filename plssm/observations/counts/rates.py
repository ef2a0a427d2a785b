"""Links between a predictor and the rate of a count, safe at any real predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plssm.errors import PlssmError

__all__ = ["LOG_RATE_BOUND", "Exponential", "Link", "Rate", "Softplus", "make_link"]

LOG_RATE_BOUND = 30.0
"""Predictor beyond which exp is continued by a parabola, so that every rate stays finite."""

_LOW = -7.0  # below it log softplus is a power series in exp(eta), exact to machine precision
_SERIES = (-1 / 2, 5 / 24, -1 / 8, 251 / 2880, -19 / 288, 19087 / 362880)


class Rate(NamedTuple):
    """A rate and what a count density needs of its derivatives in the predictor.

    Attributes:
        log: Logarithm of the rate.
        value: The rate.
        slope: First derivative of ``log``.
        bend: Second derivative of ``value``, never negative.
        excess: Minus the second derivative of ``log``, never negative.
    """

    log: Tensor
    value: Tensor
    slope: Tensor
    bend: Tensor
    excess: Tensor


class Link(ABC):
    """Increasing, convex and log-concave map from a predictor to a rate.

    Attributes:
        name: The word by which a constructor selects the link.
    """

    name: ClassVar[str]

    @abstractmethod
    def log_rate(self, eta: Tensor) -> Tensor:
        """Logarithm of the rate, differentiable."""

    @abstractmethod
    def rate(self, eta: Tensor) -> Tensor:
        """The rate, differentiable."""

    @abstractmethod
    def terms(self, eta: Tensor) -> Rate:
        """The rate and its derivatives in closed form."""

    @abstractmethod
    def predictor(self, rate: Tensor) -> Tensor:
        """The predictor that has a given positive rate."""


class Exponential(Link):
    r"""Canonical link of counts.

    .. math:: \lambda = e^{\min(\eta, c)} (1 + d + d^2 / 2), \qquad
        d = \max(\eta - c, 0), \quad c = 30

    which is exp for all rates that occur, and beyond its second-order continuation: value, slope
    and curvature are continuous, the Poisson density stays concave, nothing overflows.
    """

    name = "exp"

    def log_rate(self, eta: Tensor) -> Tensor:
        """Return the logarithm of the rate."""
        return eta.clamp_max(LOG_RATE_BOUND) + _parabola(eta).log()

    def rate(self, eta: Tensor) -> Tensor:
        """Return the rate."""
        return eta.clamp_max(LOG_RATE_BOUND).exp() * _parabola(eta)

    def terms(self, eta: Tensor) -> Rate:
        """Return the rate and its derivatives."""
        base = eta.clamp_max(LOG_RATE_BOUND).exp()
        if not bool((eta > LOG_RATE_BOUND).any()):
            one = eta.new_ones(())
            return Rate(eta, base, one, base, torch.zeros_like(one))
        beyond, growth = torch.relu(eta - LOG_RATE_BOUND), _parabola(eta)
        slope = (1 + beyond) / growth
        excess = slope.square() - 1 / growth
        return Rate(self.log_rate(eta), base * growth, slope, base, excess)

    def predictor(self, rate: Tensor) -> Tensor:
        """Return log(rate)."""
        return rate.log()


def _parabola(eta: Tensor) -> Tensor:
    beyond = torch.relu(eta - LOG_RATE_BOUND)
    return 1 + beyond + 0.5 * beyond.square()


class Softplus(Link):
    r"""Link that is exponential for small and linear for large rates.

    .. math:: \lambda = \log(1 + e^{\eta})

    Far below zero its logarithm is the series of log(log(1 + u) / u) in u = exp(eta) plus eta, so
    that densities and derivatives stay exact where the rate itself underflows.
    """

    name = "softplus"

    def log_rate(self, eta: Tensor) -> Tensor:
        """Return the logarithm of the rate."""
        low, series = _series(eta, 0)
        direct = self.rate(eta.clamp_min(_LOW)).log()
        return torch.where(eta < _LOW, low + series, direct)

    def rate(self, eta: Tensor) -> Tensor:
        """Return the rate."""
        return -logsigmoid(-eta)

    def terms(self, eta: Tensor) -> Rate:
        """Return the rate and its derivatives."""
        value, logistic = self.rate(eta), torch.sigmoid(eta)
        bend = logistic * torch.sigmoid(-eta)
        safe = self.rate(eta.clamp_min(_LOW))
        far = eta < _LOW
        low, series = _series(eta, 0)
        slope = torch.where(far, 1 + _series(eta, 1)[1], logistic / safe)
        excess = torch.where(far, -_series(eta, 2)[1], slope.square() - bend / safe)
        log = torch.where(far, low + series, safe.log())
        return Rate(log, value, slope, bend, excess.clamp_min(0.0))

    def predictor(self, rate: Tensor) -> Tensor:
        """Return log(exp(rate) - 1)."""
        return rate + torch.log(-torch.expm1(-rate))


def _series(eta: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Predictor clamped from above, and the given derivative of log(softplus) - eta there."""
    low = eta.clamp_max(_LOW)
    u = low.exp()
    total = torch.zeros_like(u)
    for n in range(len(_SERIES), 0, -1):
        total = (total + _SERIES[n - 1] * n**order) * u
    return low, total


def make_link(name: str) -> Link:
    """Link with the given name.

    Args:
        name: "exp" or "softplus".

    Returns:
        The link.

    Raises:
        PlssmError: For any other name.
    """
    known = {kind.name: kind for kind in (Exponential, Softplus)}
    if name not in known:
        raise PlssmError(f"unknown link {name!r}; choose one of {sorted(known)}")
    return known[name]()
