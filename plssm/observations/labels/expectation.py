"""Expected log-likelihood of labels with a softmax over latent states, by compiled sums."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from plssm.kernels.softmax_expectation import (
    SoftmaxSamples,
    expected_softmax,
    softmax_residuals,
    softmax_samples,
)
from plssm.observations.learning.expectation import GRAPH, Expansion
from plssm.observations.learning.point_expectation import PointExpectation
from plssm.observations.learning.regressors import Regressors

__all__ = ["SoftmaxExpectation"]


class SoftmaxExpectation(PointExpectation):
    r"""The average over latent states for classes with linear predictors, compiled.

    .. math:: \frac{1}{C} \sum_{t,c} \log p_{y_t}(z_{tc}), \qquad
        p_k \propto e^{\eta_k}, \quad \eta_K = 0

    The same as the general class, in fewer passes and always in float64. Models say with
    ``reference`` which level has predictor zero. The general class takes over for regressors that
    differ between channels.

    Args:
        model: The observation model.
        m: The modality.
        centre: Latent mean of every sample ``[B, n, M]``.
        covariance: Latent covariance of every sample ``[B, n, M, M]``; None for a known path.
    """

    def expand(self, theta: Tensor, *, curvature: bool = True) -> Expansion:
        """Value, gradient and, if wanted, curvature of every problem."""
        if self.regressors.own is not None:
            return super().expand(theta, curvature=curvature)
        threads, coefficients = torch.get_num_threads(), theta.detach().numpy()
        found = [
            expected_softmax(samples, coefficients, curvature=curvature, threads=threads)
            for samples in self._pieces_laid_out()
        ]
        count = 1 if self._direct else len(self.points)
        value, gradient, bend = (
            None if x[0] is None else torch.from_numpy(sum(x)) / count
            for x in zip(*found, strict=True)
        )
        return Expansion(value, gradient.reshape(len(value), -1), bend)

    def values(self, theta: Tensor) -> Tensor:
        """Expected log-density of every problem ``[P]``."""
        return self.expand(theta, curvature=False).value

    def score(self) -> Tensor:
        """Expected gradient in the latent state of every sample ``[B, n, M]``."""
        if self.regressors.own is not None or not self.model.readout.affine:
            return super().score()
        theta = self.coefficients.read().detach().numpy()
        residuals = softmax_residuals(self._laid_out, theta)
        score = np.zeros(self.centre.shape)
        score[self._laid_out.rows] = residuals @ theta[:, : self.model.dim]
        return torch.from_numpy(score).view(*self.m.y.shape[:2], -1)

    @property
    def _direct(self) -> bool:
        """Whether the points lie in pairs around the regressors of the centre, or there."""
        return self.root is None or self.model.readout.affine

    @cached_property
    def _laid_out(self) -> SoftmaxSamples:
        half = self.points[: len(self.points) // 2]
        return self._lay_out(self.regressors, *self._classes, self.root, half)

    @cached_property
    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes ``[S, N]``, the level with predictor zero the last one, and the mask."""
        label, mask = (x[0].cpu().numpy() for x in (self._samples.y, self._samples.mask))
        label = np.where(mask, label, 0).astype(np.int64)
        return (label - 1 - self.model.reference) % self.model.levels, mask

    def _pieces_laid_out(self) -> Iterator[SoftmaxSamples]:
        """All samples, or one piece after the other with every point as a sample."""
        if self._direct:
            yield self._laid_out
            return
        for rows in self._slices(GRAPH):
            label, mask = (np.tile(x[rows], (len(self.points), 1)) for x in self._classes)
            yield self._lay_out(self._at(rows), label, mask)

    def _lay_out(
        self,
        regressors: Regressors,
        label: np.ndarray,
        mask: np.ndarray,
        root: Tensor | None = None,
        points: Tensor | None = None,
    ) -> SoftmaxSamples:
        given = (regressors.shared, root, points, regressors.offset)
        shared, root, points, offset = (None if x is None else x.numpy() for x in given)
        return softmax_samples(
            shared,
            label,
            mask,
            classes=self.model.levels,
            root=root,
            points=points,
            offset=offset,
        )
