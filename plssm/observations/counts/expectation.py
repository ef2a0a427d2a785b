"""Expected log-likelihood of Poisson counts with the exp link, by compiled sums."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from plssm.kernels.count_expectation import (
    CountSamples,
    count_samples,
    expected_counts,
    expected_counts_curvature,
)
from plssm.observations.counts.base import CountModel
from plssm.observations.counts.rates import LOG_RATE_BOUND
from plssm.observations.learning.expectation import Expansion, GaussianExpectation
from plssm.observations.learning.regressors import Regressors

__all__ = ["CountExpectation"]


class CountExpectation(GaussianExpectation):
    r"""The closed form of a channel-wise expectation for Poisson counts with the exp link.

    .. math:: E[\log p(y_{tn} \mid z_t)] = y_{tn} \mu_{tn}
        - \Delta\, e^{\mu_{tn} + c_n^\top V_t c_n / 2} + \text{const}

    The same as the general class, in fewer passes. The general class takes over for other links,
    other types, regressors that differ between channels, and far outside, where the link goes on
    as a parabola.

    Args:
        model: The observation model.
        m: The modality.
        centre: Latent mean of every sample ``[B, n, M]``.
        covariance: Latent covariance of every sample ``[B, n, M, M]``.
    """

    _last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def _with_offset(
        self, regressors: Regressors, centre: Tensor, covariates: Tensor | None
    ) -> Regressors:
        """The regressors; without covariates they explain all of the predictors."""
        if covariates is None and type(self.model).features is CountModel.features:
            return regressors
        return super()._with_offset(regressors, centre, covariates)

    @cached_property
    def _counts(self) -> CountSamples:
        offset, m = self.regressors.offset, self.m
        return count_samples(
            self.covariance.numpy(),
            self.regressors.shared.numpy(),
            m.y.flatten(0, 1).numpy(),
            m.mask.flatten(0, 1).numpy(),
            None if offset is None else offset.numpy(),
            width=self.model.bin_seconds,
        )

    def expand(self, theta: Tensor, *, curvature: bool = True) -> Expansion:
        """Value, gradient and, if wanted, curvature of every channel."""
        if self.regressors.own is not None or not self.model.compilable(theta):
            return super().expand(theta, curvature=curvature)
        coefficients = theta.detach().numpy()
        known = None if curvature else self._moved(coefficients)
        if known is not None:
            return known
        value, gradient, spread, rate = expected_counts(self._counts, coefficients)
        if not self._usual(rate):
            return super().expand(theta, curvature=curvature)
        self._last = coefficients.copy(), value, gradient
        hessian = None
        if curvature:
            hessian = expected_counts_curvature(self._counts, coefficients, spread, rate)
            hessian = torch.from_numpy(hessian)
        return Expansion(torch.from_numpy(value), torch.from_numpy(gradient), hessian)

    def _usual(self, rate: np.ndarray) -> bool:
        """Whether all rates are on the exponential part of the link."""
        limit = self.model.bin_seconds * math.exp(LOG_RATE_BOUND)
        return bool(rate.size and rate.max() <= limit)

    def _moved(self, theta: np.ndarray) -> Expansion | None:
        """Value and gradient where only some channels moved since the last time, else None."""
        if self._last is None or self._last[0].shape != theta.shape:
            return None
        rows = np.flatnonzero((theta != self._last[0]).any(1))
        if 2 * len(rows) > len(theta):
            return None
        value, gradient = self._last[1].copy(), self._last[2].copy()
        if len(rows):
            some = self._counts.channels(rows)
            value[rows], gradient[rows], _, rate = expected_counts(some, theta[rows])
            if not self._usual(rate):
                return None
        self._last = theta.copy(), value, gradient
        return Expansion(torch.from_numpy(value), torch.from_numpy(gradient), None)
