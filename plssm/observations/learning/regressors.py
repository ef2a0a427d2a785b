"""The regressors of linear predictors, sums over samples of their products, and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from plssm.observations.predictor import LinearPredictor

__all__ = ["Coefficients", "Regressors", "pack_symmetric", "unpack_symmetric"]

_KEPT = 2**22  # products of regressors that are kept; more are formed again each time


def _pairs(size: int) -> tuple[Tensor, Tensor]:
    i, j = torch.triu_indices(size, size)
    return i, j


def pack_symmetric(matrix: Tensor) -> Tensor:
    """Upper triangle of symmetric matrices ``[..., Q, Q]`` as ``[..., Q (Q + 1) / 2]``."""
    i, j = _pairs(matrix.shape[-1])
    return matrix[..., i, j]


def unpack_symmetric(packed: Tensor, size: int) -> Tensor:
    """Symmetric matrices ``[..., Q, Q]`` from what :func:`pack_symmetric` gives."""
    i, j = _pairs(size)
    place = torch.empty(size, size, dtype=torch.long)
    place[i, j] = place[j, i] = torch.arange(len(i))
    return packed[..., place]


def _outer(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Products of two columns ``[Q (Q + 1) / 2, S]`` of regressors ``[S, Q]``."""
    samples, count = x.shape
    pairs = count * (count + 1) // 2
    out = x.new_empty(pairs, samples) if out is None else out[: pairs * samples].view(pairs, -1)
    columns, start = x.mT.contiguous(), 0
    for i in range(count):
        torch.mul(columns[i], columns[i:], out=out[start : start + count - i])
        start += count - i
    return out


@dataclass(frozen=True)
class Regressors:
    r"""Regressors of S samples.

    .. math:: \eta_{sk} = \sum_j x_{sj} \theta_{kj} + \sum_i o_{ski} \theta_{k,Q+i} + d_{sk}

    Attributes:
        shared: x, those that all predictors have ``[S, Q]``.
        own: o, those that differ between predictors ``[S, K, J]``, or None.
        offset: d, known part of the predictors ``[S, K]``, or None.
        workspace: Memory for products of regressors, or None to take new memory.
    """

    shared: Tensor
    own: Tensor | None = None
    offset: Tensor | None = None
    workspace: Tensor | None = None

    def predict(self, theta: Tensor, rows: slice = slice(None)) -> Tensor:
        """Predictors of some samples ``[s, K]`` for coefficients ``[K, Q + J]``."""
        count = self.shared.shape[1]
        eta = self.shared[rows] @ theta[:, :count].mT
        if self.own is not None:
            eta = eta + (self.own[rows] * theta[:, count:]).sum(-1)
        return eta if self.offset is None else eta + self.offset[rows]

    def total(self, weight: Tensor) -> Tensor:
        """Weighted sums of the regressors ``[K, Q + J]``, for weights ``[S, K]``."""
        sums = weight.mT @ self.shared
        if self.own is None:
            return sums
        return torch.cat([sums, (weight[..., None] * self.own).sum(0)], dim=1)

    def products(self, weight: Tensor) -> Tensor:
        """Weighted sums of products of two regressors ``[K, q, q]``, for weights ``[S, K]``."""
        shared = unpack_symmetric(self._pair_sums(weight), self.shared.shape[1])
        if self.own is None:
            return shared
        scaled = weight[..., None] * self.own
        cross = torch.einsum("ski,sj->kij", scaled, self.shared)
        own = torch.einsum("ski,skj->kij", scaled, self.own)
        above = torch.cat([shared, cross.mT], dim=2)
        return torch.cat([above, torch.cat([cross, own], dim=2)], dim=1)

    def coupled_products(self, weight: Tensor) -> Tensor:
        """The same between predictors ``[K, Q, K, Q]``, for symmetric weights ``[S, K, K]``."""
        predictors, count = weight.shape[1], self.shared.shape[1]
        sums = unpack_symmetric(self._pair_sums(pack_symmetric(weight)), count)
        return unpack_symmetric(sums.permute(1, 2, 0), predictors).permute(2, 0, 3, 1)

    def moved(self, states: Tensor, rows: slice, workspace: Tensor | None) -> Regressors:
        """Regressors of some samples at several latent states.

        Args:
            states: Regressors of the latent states ``[c, s, M]`` that take the first places.
            rows: The s samples.
            workspace: Memory for products of regressors, or None.

        Returns:
            Those of c s samples.
        """
        count = len(states)
        rest = self.shared[rows, states.shape[-1] :].expand(count, -1, -1)
        return Regressors(
            torch.cat([states, rest], dim=-1).flatten(0, 1),
            None if self.own is None else self.own[rows].repeat(count, 1, 1),
            None if self.offset is None else self.offset[rows].repeat(count, 1),
            workspace,
        )

    @cached_property
    def _outer_products(self) -> Tensor:
        return _outer(self.shared, self.workspace)

    def _pair_sums(self, weight: Tensor) -> Tensor:
        """Weighted sums of the products of two shared regressors, packed."""
        samples, count = self.shared.shape
        rows = max(1, _KEPT // (count * (count + 1) // 2))
        if samples <= rows:
            return (self._outer_products @ weight).mT
        parts = zip(weight.split(rows), self.shared.split(rows), strict=True)
        return sum((_outer(x) @ w).mT for w, x in parts)


class Coefficients:
    """Where the weights of the regressors stand in a model.

    Columns are [weight; intercept; covariates that all predictors have; own covariates]. With a
    ``covariate_mask`` the entries that only some predictors have are gathered into few columns.

    Args:
        model: The model.
        covariates: Whether the samples have covariates.
    """

    def __init__(self, model: LinearPredictor, *, covariates: bool) -> None:
        self.model = model
        rows, count = model.predictors, model.n_covariates if covariates else 0
        mask = model.covariate_mask if covariates else None
        allowed = torch.ones(rows, count, dtype=torch.bool) if mask is None else mask.cpu()
        shared = allowed.all(0) | model.coupled
        self.shared = shared.nonzero()[:, 0]
        alone = allowed & ~shared
        width = int(alone.sum(1).max()) if count else 0
        order = torch.argsort(alone.to(torch.int8), dim=1, descending=True, stable=True)
        self.own = order[:, :width]
        self.valid = torch.take_along_dim(alone, self.own, 1)
        self._allowed = torch.cat([allowed[:, self.shared], self.valid], dim=1)

    def regressors(self, states: Tensor, covariates: Tensor | None) -> Regressors:
        """Regressors without offset.

        Args:
            states: Regressors of the latent states ``[S, M]``.
            covariates: ``[S, R]`` or None.
        """
        parts = [states, torch.ones_like(states[:, :1])]
        if covariates is None:
            return Regressors(torch.cat(parts, dim=1))
        shared = torch.cat([*parts, covariates[:, self.shared]], dim=1)
        if not self.own.shape[1]:
            return Regressors(shared)
        return Regressors(shared, covariates[:, self.own] * self.valid)

    def read(self) -> Tensor:
        """Coefficients ``[K, q]``, differentiable in the parameters of the model."""
        model = self.model
        parts = [model.weight, model.bias[:, None]]
        if len(self.shared) + self.own.shape[1]:
            J = model.nuisance_weight
            parts.append(J[:, self.shared])
            parts.append(torch.take_along_dim(J, self.own.to(J.device), 1) * self.valid.to(J))
        return torch.cat(parts, dim=1).to("cpu", torch.float64)

    def tensors(self, theta: Tensor, model: LinearPredictor | None = None) -> dict[str, Tensor]:
        """Values of the parameters that are not frozen, differentiable in the coefficients.

        Args:
            theta: ``[K, q]``.
            model: Another model of the same sizes, or None.
        """
        model = self.model if model is None else model
        dim, out = model.dim, {}
        if model.weight.requires_grad:
            out["weight"] = theta[:, :dim].to(model.weight)
        if model.bias.requires_grad:
            out["bias"] = theta[:, dim].to(model.bias)
        J = model.nuisance_weight
        if J.requires_grad and theta.shape[1] > dim + 1:
            end = dim + 1 + len(self.shared)
            value = J.detach().clone().index_copy(1, self.shared, theta[:, dim + 1 : end].to(J))
            rows, places = self.valid.nonzero(as_tuple=True)
            own = theta[:, end:][rows, places].to(J)
            out["nuisance_weight"] = value.index_put((rows, self.own[rows, places]), own)
        return out

    @torch.no_grad()
    def write(self, theta: Tensor) -> None:
        """Set the parameters of the model that are not frozen to coefficients ``[K, q]``."""
        for name, value in self.tensors(theta).items():
            self.model.get_parameter(name).copy_(value)

    def free(self) -> Tensor:
        """Which coefficients may change, bool ``[K, q]``."""
        model = self.model
        parts = [
            torch.full((model.predictors, model.dim), model.weight.requires_grad),
            torch.full((model.predictors, 1), model.bias.requires_grad),
            self._allowed & model.nuisance_weight.requires_grad,
        ]
        return torch.cat(parts, dim=1)
