"""Expected log-likelihood where no single integral does: an average over latent states."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plssm.observations.learning.expectation import (
    GRAPH,
    PIECE,
    Expansion,
    Expectation,
    flat,
    in_a_row,
    repeated,
)
from plssm.observations.learning.quadrature import matched_points, square_root
from plssm.observations.learning.regressors import Regressors

if TYPE_CHECKING:
    from plssm.data.batch import Modality
    from plssm.observations.base import ObservationModel

__all__ = ["PointExpectation"]

POINTS = 32  # latent states that stand for a Gaussian


class PointExpectation(Expectation):
    """Everything else: an average over latent states whose moments match those of the Gaussian.

    A weighted regression on pseudo-data: every sample counts once at each of its points, which
    stay the same between calls.

    Args:
        model: The observation model.
        m: The modality.
        centre: Latent mean of every sample ``[B, n, M]``.
        covariance: Latent covariance of every sample ``[B, n, M, M]``; None for a known path.
    """

    def __init__(
        self, model: ObservationModel, m: Modality, centre: Tensor, covariance: Tensor | None
    ) -> None:
        super().__init__(model, m, centre)
        self.centre = flat(centre)
        self.points, self.root = torch.zeros(1, model.dim, dtype=torch.float64), None
        if covariance is not None:
            self.points = matched_points(POINTS, model.dim)
            self.root = square_root(flat(covariance))

    @cached_property
    def _workspace(self) -> Tensor:
        count = self.regressors.shared.shape[1]
        rows = self._slices()[0].stop
        return torch.empty(count * (count + 1) // 2 * rows * len(self.points)).double()

    def _slices(self, limit: int = PIECE) -> list[slice]:
        return self._pieces(len(self.points) * self.model.predictors, limit)

    def _states(self, rows: slice) -> Tensor:
        """Latent states that stand for the Gaussian of some samples ``[c, s, M]``."""
        states = self.centre[rows].expand(len(self.points), -1, -1)
        if self.root is None:
            return states
        return states + torch.einsum("sij,cj->csi", self.root[rows], self.points)

    def _at(self, rows: slice, workspace: Tensor | None = None) -> Regressors:
        """Regressors of some samples at all points."""
        return self.regressors.moved(self.model.readout(self._states(rows)), rows, workspace)

    def score(self) -> Tensor:
        """Expected gradient in the latent state of every sample ``[B, n, M]``."""
        theta, count = self.coefficients.read().detach(), len(self.points)
        weight, pieces = theta[:, : self.model.dim], []
        for rows in self._slices():
            eta = self._like_data(self._at(rows).predict(theta)[None])
            many = in_a_row(repeated(self._rows(rows), count))
            gradient = self.model.derivatives(eta, many)[1].unflatten(1, (count, -1))[0]
            score, slope = (
                gradient.to(weight) @ weight,
                self.model.readout.slope(self._states(rows)),
            )
            pieces.append((score if slope is None else score * slope).mean(0)[None])
        return self._per_trial(pieces)

    @property
    def parts(self) -> int:
        """Number of pieces for :meth:`features`."""
        return len(self._slices(GRAPH))

    def features(self, theta: Tensor, part: int) -> tuple[Tensor, Tensor, Modality]:
        """Predictors at the points (see the base class)."""
        rows = self._slices(GRAPH)[part]
        count = len(self.points)
        eta = self._like_data(self._at(rows).predict(theta)).unflatten(0, (count, 1, -1))
        return eta.new_full((count,), 1 / count), eta, self._rows(rows)

    def entries(self, theta: Tensor) -> Tensor:
        """Expected log-density of every entry ``[B, n, N]``."""
        pieces = []
        for part in range(self.parts):
            weights, eta, m = self.features(theta, part)
            pieces.append(torch.tensordot(weights, self.model.masked_log_prob(eta, m), dims=1))
        return self._per_trial(pieces)

    def expand(self, theta: Tensor, *, curvature: bool = True) -> Expansion:
        """Value, gradient and, if wanted, curvature of every problem."""
        parts = zip(*self._expansions(theta, curvature), strict=True)
        value, gradient, curved = (
            None if x[0] is None else sum(x) / len(self.points) for x in parts
        )
        return Expansion(value, gradient, curved)

    def _expansions(self, theta: Tensor, curvature: bool) -> Iterator[Expansion]:
        """What the pieces of the samples add up to."""
        problems, size = len(self.count), theta.numel() // len(self.count)
        for rows in self._slices():
            regressors = self._at(rows, self._workspace)
            eta = self._like_data(regressors.predict(theta)[None])
            many = in_a_row(repeated(self._rows(rows), len(self.points)))
            value, gradient, bend = (flat(x) for x in self.model.derivatives(eta, many))
            value = value.sum() if self.model.coupled else value.sum(0)
            products = None
            if curvature:
                form = regressors.coupled_products if self.model.coupled else regressors.products
                products = form(bend).reshape(problems, size, size)
            total = regressors.total(gradient).reshape(problems, size)
            yield Expansion(value.reshape(problems), total, products)
