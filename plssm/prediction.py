"""Predictive distributions of observations, as mixtures over latent draws."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from plssm.errors import PlssmError
from plssm.observations.base import ObservationModel

__all__ = ["Prediction"]


class Prediction:
    r"""Predictive distribution of one modality: a mixture over latent draws.

    .. math:: p(y_i) = \frac1S \sum_{s=1}^S p(y_i \mid \eta_i^{(s)})

    Args:
        observation: The observation model.
        features: Its predictors for each latent draw ``[S, B, n, K]``.
        times: Times of the n samples, in seconds.
        seed: Seed of the draws of y.
    """

    def __init__(
        self, observation: ObservationModel, features: Tensor, times: np.ndarray, *, seed: int = 0
    ) -> None:
        self._observation = observation
        self._features = features.detach()
        self._seed = seed
        self.times = np.asarray(times, dtype=np.float64)
        self._samples: Tensor | None = None

    @property
    def samples(self) -> Tensor:
        """One draw of y for each latent draw, ``[S, B, n, N]``."""
        if self._samples is None:
            self._samples = self.sample(len(self._features), seed=self._seed)
        return self._samples

    @property
    def mean(self) -> Tensor:
        """Mean of the predictive distribution, ``[B, n, N]``."""
        return self.moments()[0]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance by the laws of total expectation and variance, each ``[B, n, N]``."""
        with torch.no_grad():
            y = self._observation.distribution(self._features)
            mean, variance = y.mean, y.variance
            spread = mean.var(0, correction=0)
            return mean.mean(0), variance.mean(0) + spread

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` observations ``[n, B, steps, N]``, cycling through the latent draws."""
        index = torch.arange(n) % len(self._features)
        return self._observation.sample(self._features[index], seed=seed)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central band from quantiles of the draws, lower and upper edge ``[B, n, N]`` each.

        Raises:
            PlssmError: If ``level`` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise PlssmError(f"interval: level must lie between 0 and 1, got {level}.")
        tail = (1 - level) / 2
        draws = self.sample(max(len(self._features), 400), seed=self._seed).to(torch.float64)
        return draws.quantile(tail, dim=0), draws.quantile(1 - tail, dim=0)

    def log_prob(self, y: Tensor | np.ndarray) -> Tensor:
        """Log predictive density of observations ``[B, n, N]``, entry by entry; NaN stays NaN."""
        value = torch.from_numpy(np.asarray(y).astype(np.float64))
        seen = torch.isfinite(value)
        with torch.no_grad():
            filled = torch.where(seen, value, self._observation.fill)
            each = self._observation.distribution(self._features).log_prob(filled)
            mixed = torch.logsumexp(each, 0) - math.log(len(self._features))
        return torch.where(seen, mixed, torch.nan)

    def __repr__(self) -> str:
        draws, trials, steps, _ = self._features.shape
        name = type(self._observation).__name__
        return f"Prediction({name}, trials={trials}, samples={steps}, draws={draws})"
