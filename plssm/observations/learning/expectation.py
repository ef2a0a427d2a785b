"""Expected log-likelihood of a modality under a Gaussian latent path, in the coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from plssm.kernels.predictor_newton import SampleBlocks, predictor_products, sample_blocks
from plssm.observations.learning.quadrature import NODES, gauss_hermite
from plssm.observations.learning.regressors import (
    Coefficients,
    Regressors,
    pack_symmetric,
    unpack_symmetric,
)
from plssm.observations.masks import observed_counts, observed_samples

if TYPE_CHECKING:
    from plssm.data.batch import Modality
    from plssm.observations.base import ObservationModel

__all__ = [
    "GRAPH",
    "PIECE",
    "Expansion",
    "Expectation",
    "GaussianExpectation",
    "flat",
    "in_a_row",
    "repeated",
]

PIECE = 12_000  # numbers that are worked on at the same time: they stay in the cache
GRAPH = 48_000  # the same for automatic differentiation, where a call costs more
_ALL = slice(None)


def repeated(m: Modality, times: int) -> Modality:
    """A modality whose trials come several times, one batch after the other."""
    if times == 1:
        return m
    fields = {name: getattr(m, name) for name in ("y", "mask", "clock", "nuisance")}
    known = {name: v for name, v in fields.items() if v is not None}
    return replace(m, **{k: v.repeat(times, *(1,) * (v.ndim - 1)) for k, v in known.items()})


def in_a_row(m: Modality) -> Modality:
    """A modality whose samples stand in one trial, without a clock."""
    nuisance = None if m.nuisance is None else m.nuisance.flatten(0, 1)[None]
    y, mask = m.y.flatten(0, 1)[None], m.mask.flatten(0, 1)[None]
    return replace(m, y=y, mask=mask, clock=None, nuisance=nuisance)


def flat(values: Tensor) -> Tensor:
    """Values of the samples in a row ``[S, ...]`` in float64, without their graph."""
    return values.detach().flatten(0, 1).to("cpu", torch.float64)


class Expansion(NamedTuple):
    """Value and derivatives of several independent problems.

    Attributes:
        value: ``[P]``.
        gradient: ``[P, q]``.
        curvature: Negative Hessians ``[P, q, q]``; None where nobody asked for them.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor | None


class Expectation(ABC):
    """Expected log-likelihood of a modality as a function of the coefficients.

    Every channel is a problem of its own; with coupled predictors all of them are one problem.
    Other parameters are read from the model at every call. The S = B n samples are worked on in
    pieces that stay in the cache.

    Args:
        model: The observation model.
        m: The modality (samples ``[B, n, N]``).
        centre: Latent mean of every sample ``[B, n, M]``.
    """

    def __init__(self, model: ObservationModel, m: Modality, centre: Tensor) -> None:
        self.model, self.m = model, m
        self._samples = in_a_row(m)
        covariates = model.covariates(m) if model.n_covariates else None
        seen = observed_samples(m.mask)
        self.coefficients = Coefficients(model, covariates=covariates is not None)
        with torch.no_grad():
            rows = None if covariates is None else flat(covariates) * seen[:, None]
            regressors = self.coefficients.regressors(flat(model.readout(centre)), rows)
            self.regressors = self._with_offset(regressors, centre, covariates)
        count = observed_counts(m.mask)
        self.count = count.sum()[None] if model.coupled else count

    def _with_offset(
        self, regressors: Regressors, centre: Tensor, covariates: Tensor | None
    ) -> Regressors:
        """The regressors with the part of the predictors that they do not explain."""
        eta = flat(self.model.features(centre, covariates))
        offset = eta - regressors.predict(self.coefficients.read())
        seen = observed_samples(self.m.mask)
        offset = torch.where(seen[:, None], offset, 0.0)
        tolerance = 10 * torch.finfo(self.model.weight.dtype).eps ** 0.5
        if bool((offset.abs() > tolerance * (1 + eta.abs())).any()):
            return replace(regressors, offset=offset)
        return regressors

    @abstractmethod
    def expand(self, theta: Tensor, *, curvature: bool = True) -> Expansion:
        """Value, gradient and, if wanted, curvature of every problem at ``[K, q]``."""

    @abstractmethod
    def entries(self, theta: Tensor) -> Tensor:
        """Expected log-density of every entry ``[B, n, N]``."""

    @abstractmethod
    def score(self) -> Tensor:
        """Expected gradient in the latent state of every sample ``[B, n, M]``."""

    @property
    @abstractmethod
    def parts(self) -> int:
        """Number of pieces for :meth:`features`."""

    @abstractmethod
    def features(self, theta: Tensor, part: int) -> tuple[Tensor, Tensor, Modality]:
        """Predictors over which the expectation averages, differentiable in the coefficients.

        Args:
            theta: ``[K, q]``.
            part: Number of a piece of the samples.

        Returns:
            Weights ``[c]``, predictors ``[c, 1, s, K]`` and the s samples as a modality.
        """

    def values(self, theta: Tensor) -> Tensor:
        """Expected log-density of every problem ``[P]``."""
        values = flat(self.entries(theta)).sum(0)
        return values.sum()[None] if self.model.coupled else values

    def ridge_scale(self) -> Tensor:
        """Share of the ridge of every coefficient ``[K, q]``: mean squares of the covariates."""
        rows, dim = self.model.predictors, self.model.dim
        seen = observed_samples(self.m.mask).sum().clamp_min(1)
        squares = self.regressors.shared.square().sum(0) / seen
        squares[:dim], squares[dim] = 1.0, 0.0
        if self.regressors.own is None:
            return squares.expand(rows, -1)
        own = self.regressors.own.square().sum(0) / seen
        return torch.cat([squares.expand(rows, -1), own], dim=1)

    def _pieces(self, numbers: int, limit: int = PIECE) -> list[slice]:
        """Pieces of the samples, for so many numbers a sample."""
        samples = self._samples.y.shape[1]
        step = max(1, limit // numbers)
        return [slice(start, min(start + step, samples)) for start in range(0, samples, step)]

    def _rows(self, rows: slice) -> Modality:
        s = self._samples
        nuisance = None if s.nuisance is None else s.nuisance[:, rows]
        return replace(s, y=s.y[:, rows], mask=s.mask[:, rows], nuisance=nuisance)

    def _like_data(self, values: Tensor) -> Tensor:
        """Values in the type in which the model takes them."""
        return values.to(self.model.weight)

    def _per_trial(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces, dim=1).view(*self.m.y.shape[:2], -1)


class GaussianExpectation(Expectation):
    r"""Channels with their own affine predictor: an integral along that predictor.

    With F the expected log-density of an entry as a function of mean and variance of its
    predictor, c the weights, x the regressors and b = [V c; 0] with V the latent covariance,

    .. math::
        \nabla = \sum_t F_\mu x + 2 F_v b, \qquad
        -\nabla^2 = -\sum_t F_{\mu\mu} x x^\top + 2 F_{\mu v} (x b^\top + b x^\top)
            + 4 F_{vv} b b^\top + 2 F_v V.

    Args:
        model: The observation model.
        m: The modality.
        centre: Latent mean of every sample ``[B, n, M]``.
        covariance: Latent covariance of every sample ``[B, n, M, M]``.
    """

    def __init__(
        self, model: ObservationModel, m: Modality, centre: Tensor, covariance: Tensor
    ) -> None:
        super().__init__(model, m, centre)
        self.covariance = flat(covariance)

    @cached_property
    def _packed(self) -> Tensor:
        return pack_symmetric(self.covariance)

    @cached_property
    def _blocks(self) -> SampleBlocks:
        return sample_blocks(self.covariance.numpy(), self.regressors.shared.numpy())

    @cached_property
    def _derivatives(self) -> Tensor:
        return torch.empty(5, *self.regressors.shared.shape[:1], self.model.predictors).double()

    def _moments(self, theta: Tensor, rows: slice = _ALL) -> tuple[Tensor, Tensor]:
        """Mean and variance of the predictors of some samples ``[1, s, N]``."""
        weight = theta[:, : self.model.dim]
        outer = weight[:, :, None] * weight[:, None, :]
        squares = pack_symmetric(2 * outer - torch.diag_embed(weight.square()))
        mean = self.regressors.predict(theta, rows)
        variance = self._packed[rows] @ squares.mT
        return self._like_data(mean[None]), self._like_data(variance[None]).clamp_min(0.0)

    def entries(self, theta: Tensor) -> Tensor:
        """Expected log-density of every entry ``[B, n, N]``."""
        mean, variance = self._moments(theta)
        return self._per_trial(
            [
                self.model.expected_derivatives(mean[:, r], variance[:, r], self._rows(r)).value
                for r in self._pieces(self.model.predictors)
            ]
        )

    def score(self) -> Tensor:
        """Expected gradient in the latent state of every sample ``[B, n, M]``."""
        theta = self.coefficients.read().detach()
        mean, variance = self._moments(theta)
        weight = theta[:, : self.model.dim]
        pieces = []
        for r in self._pieces(self.model.predictors):
            d = self.model.expected_derivatives(mean[:, r], variance[:, r], self._rows(r))
            pieces.append(d.mean.to(weight) @ weight)
        return self._per_trial(pieces)

    @property
    def parts(self) -> int:
        """Number of pieces for :meth:`features`."""
        return len(self._pieces(NODES * self.model.predictors, GRAPH))

    def features(self, theta: Tensor, part: int) -> tuple[Tensor, Tensor, Modality]:
        """Predictors at the nodes of the quadrature (see the base class)."""
        rows = self._pieces(NODES * self.model.predictors, GRAPH)[part]
        mean, variance = self._moments(theta, rows)
        deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        x, w = (torch.from_numpy(a).to(mean) for a in gauss_hermite(NODES))
        return w, mean + x.view(-1, 1, 1, 1) * deviation, self._rows(rows)

    def expand(self, theta: Tensor, *, curvature: bool = True) -> Expansion:
        """Value, gradient and, if wanted, curvature of every channel."""
        dim, weight = self.model.dim, theta[:, : self.model.dim]
        mean, variance = self._moments(theta)
        value = torch.zeros(len(theta), dtype=torch.float64)
        for r in self._pieces(self.model.predictors):
            d = self.model.expected_derivatives(mean[:, r], variance[:, r], self._rows(r))
            value += flat(d.value).sum(0)
            for into, values in zip(self._derivatives, d[1:], strict=True):
                into[r] = values[0]
        by_mean, by_variance, *second = self._derivatives
        spread = 2 * unpack_symmetric(by_variance.mT @ self._packed, dim)
        gradient = self.regressors.total(by_mean)
        gradient[:, :dim] += (spread @ weight[..., None]).squeeze(-1)
        return Expansion(
            value, gradient, self._curvature(weight, spread, *second) if curvature else None
        )

    def _curvature(
        self,
        weight: Tensor,
        spread: Tensor,
        mean_mean: Tensor,
        mixed: Tensor,
        variance_two: Tensor,
    ) -> Tensor:
        dim = self.model.dim
        curvature = -self.regressors.products(mean_mean)
        curvature[:, :dim, :dim] -= spread
        cross = self._cross(weight, mixed, variance_two)
        curvature[:, :dim] -= cross
        curvature[:, :, :dim] -= cross.mT
        return curvature

    def _cross(self, weight: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """Twice the sums of b (p x + q b)' ``[N, M, q]``."""
        sums = predictor_products(
            self._blocks, weight.numpy(), p.numpy(), q.numpy(), threads=torch.get_num_threads()
        )
        parts = [torch.from_numpy(sums)]
        if self.regressors.own is not None:
            for own in self.regressors.own.unbind(-1):
                spread = unpack_symmetric((p * own).mT @ self._packed, self.model.dim)
                parts.append(spread @ weight[..., None])
        return 2 * torch.cat(parts, dim=-1)
