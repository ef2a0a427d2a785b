"""Regression coefficients in coordinates in which gradient steps are well conditioned."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Modality
from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.observations.base import ObservationModel
from plssm.observations.learning.regressors import Coefficients

__all__ = ["FisherCoordinates", "MapCoordinates", "ReadoutCoordinates", "applied"]

LOADING = 1e-3  # added to correlations of regressors: steps stay bounded where data say nothing
ROUNDING = 1e-9
FAINT, FAINTER = 1e-4, 1e-6  # least information, as shares of the most in a problem, and of all

Part = TypeVar("Part", bound=nn.Module)


class FisherCoordinates(nn.Module, ABC):
    r"""Coefficients as deviations in units in which their Fisher information is the same.

    .. math:: \theta_p = \theta^0_p + v_p R_p, \qquad R_p^\top R_p = I_p^{-1}

    with I the information of problem p about its coefficients, per latent step, at the start. An
    optimiser that scales every parameter by itself goes down narrow valleys in coefficients of
    collinear regressors, and steps of one size are coarse for some and fine for others; in v the
    valley is round at the start, and a posterior standard deviation is :math:`1/\sqrt T`
    wherever data determine it: information below :data:`FAINT` of the most in a problem, below
    :data:`FAINTER` of the most of all, or along combinations of regressors with less than
    :data:`LOADING` of their correlation counts as that much, so that steps stay bounded.

    Args:
        base: Start values of the coefficients [P, q].
        roots: R [P, q, q]; rows and columns of coefficients that are held are zero.
    """

    def __init__(self, base: Tensor, roots: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros_like(base))
        self.base, self.roots = base, roots

    def deviations(self) -> Tensor:
        """How far the coefficients have moved [P, q]."""
        return (self.values[:, None] @ self.roots)[:, 0]

    def coefficients(self) -> Tensor:
        """The coefficients [P, q]."""
        return self.base + self.deviations()

    @abstractmethod
    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Values of the parameters that the coefficients are part of, with gradients."""

    def replaced(self, module: nn.Module) -> dict[int, Tensor]:
        """What takes the place of a module's parameters, by their identity."""
        found = self.tensors(module).items()
        return {id(module.get_parameter(name)): value for name, value in found}

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Writes the coordinates' coefficients into a module."""
        for name, value in self.tensors(module).items():
            module.get_parameter(name).copy_(value)


def applied(module: Part, parts: Mapping[str, FisherCoordinates]) -> Part:
    """A copy of a module whose parameters follow from coordinates, with gradients.

    Args:
        module: The module.
        parts: Coordinates by the names of its submodules ("" is the module itself).
    """
    known = {id(p): p for p in module.parameters()}
    for name, part in parts.items():
        known |= part.replaced(module.get_submodule(name))
    return copy.deepcopy(module, known)


class MapCoordinates(FisherCoordinates):
    r"""The coefficients of a latent map, row by row.

    .. math:: I_i = \langle \rho \rho^\top \rangle / \Sigma_{ii}, \qquad
        \rho = [z;\, \max(0, I z + o);\, 1;\, s]

    States of smooth systems and their rectified copies are nearly collinear.
    """

    def __init__(self, base: Tensor, roots: Tensor, places: dict[str, _Place]) -> None:
        super().__init__(base, roots)
        self.places = places

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        dynamics: LatentDynamics,
        path: Tensor,
        inputs: Tensor | None,
        inside: Tensor,
        noise: Tensor | None = None,
    ) -> Self | None:
        """The coordinates of a map along a path; None where it has no regression form.

        Args:
            dynamics: The map.
            path: A rough path [B, T, M].
            inputs: Inputs [B, T, K], or None.
            inside: Which steps exist [B, T], bool.
            noise: Variances of the process noise [M]; None takes the map's.
        """
        found = dynamics.coefficients() if isinstance(dynamics, PiecewiseLinear) else None
        if found is None or not bool(found[1].any()):
            return None
        theta, free = found
        places = _places(dynamics, free)
        if places is None:
            return None
        before, later = path[:, :-1], inside[:, 1:]
        z = (before[later] if bool(later.any()) else path[inside]).double()
        parts = [z, torch.from_numpy(np.maximum(dynamics.relu_form().gates(z.numpy()), 0.0))]
        parts.append(torch.ones(len(z), 1, dtype=torch.float64))
        if dynamics.n_inputs:
            s = torch.zeros(len(z), dynamics.n_inputs, dtype=torch.float64)
            parts.append(s if inputs is None or not bool(later.any()) else inputs[:, 1:][later])
        read = torch.cat(parts, dim=1)
        variance = dynamics.noise.variance if noise is None else noise
        information = (read.T @ read / len(read)) / variance.double()[:, None, None]
        return cls(theta.clone(), _roots(information, free).to(theta), places)

    def tensors(self, module: LatentDynamics) -> dict[str, Tensor]:
        """Values of the parameters that the coefficients are part of, with gradients."""
        moved, out = self.deviations().flatten(), {}
        for name, place in self.places.items():
            parameter = module.get_parameter(name)
            numbers = place.start + moved[place.coefficients]
            flat = parameter.detach().flatten().index_copy(0, place.numbers, numbers)
            out[name] = flat.view_as(parameter)
        return out


class ReadoutCoordinates(FisherCoordinates):
    """Weights, intercepts and covariate weights of an observation model, channel by channel.

    Of labels, whose predictors depend on each other, all together.
    """

    def __init__(self, base: Tensor, roots: Tensor, places: Coefficients) -> None:
        super().__init__(base, roots)
        self.places = places

    @classmethod
    @torch.no_grad()
    def of(
        cls, observation: ObservationModel, m: Modality, path: Tensor, inside: Tensor
    ) -> Self | None:
        """The coordinates of an observation model along a path; None where they are unknown.

        Args:
            observation: The model.
            m: Its data, float64.
            path: A rough path [B, T, M], float64.
            inside: Which steps exist [B, T], bool.
        """
        found = copy.deepcopy(observation).double().information(m, path)
        if found is None or not bool(found[0].free().any()):
            return None
        places, information = found
        problems, size = information.shape[:2]
        base, free = (x.reshape(problems, size) for x in (places.read(), places.free()))
        if not bool((information != 0).any()) or not observation.tempering:
            return None
        information = float(observation.tempering) * information / inside.sum()
        roots = _roots(information, free)
        kind = observation.weight.dtype
        return cls(base.to(kind), roots.to(kind), places)

    def tensors(self, module: ObservationModel) -> dict[str, Tensor]:
        """Values of the parameters that the coefficients are part of, with gradients."""
        theta = self.coefficients().reshape(module.predictors, -1)
        return self.places.tensors(theta, module)


def _roots(information: Tensor, free: Tensor) -> Tensor:
    """Inverse roots R [P, q, q] of the information [P, q, q] of the free coefficients [P, q]."""
    both = free[:, :, None] & free[:, None, :]
    information = torch.where(both, information, 0.0)
    scale = information.diagonal(dim1=1, dim2=2).clamp_min(0.0)
    scale = scale + FAINT * scale.amax(1, keepdim=True) + FAINTER * scale.max()
    half = scale.clamp_min(torch.finfo(scale.dtype).tiny).rsqrt()
    values, vectors = torch.linalg.eigh(half[:, :, None] * information * half[:, None])
    scaled = (vectors * (values.clamp_min(0.0) + LOADING).rsqrt()[:, None]) @ vectors.mT
    return torch.where(both, scaled * half[:, None], 0.0)


class _Place(NamedTuple):
    """Which coefficients are which numbers of a parameter, and where these start."""

    coefficients: Tensor
    numbers: Tensor
    start: Tensor


def _places(dynamics: LatentDynamics, free: Tensor) -> dict[str, _Place] | None:
    """For each parameter its place, found by trying; None where a coefficient is not its own.

    Of several numbers that are added to one coefficient the first one moves. Numbers of the same
    parameter that are part of no coefficient stay where they are.
    """
    names = {n: p for n, p in dynamics.named_parameters() if p.numel() and p.requires_grad}
    trial = copy.deepcopy(dynamics).double()
    parts = [trial.get_parameter(n) for n in names]
    vector = torch.cat([p.detach().flatten() for p in parts])

    def read(values: Tensor) -> Tensor:
        for p, part in zip(parts, values.split([p.numel() for p in parts]), strict=True):
            p.data = part.view_as(p)
        return trial.coefficients()[0].flatten().double()

    origin = read(torch.zeros_like(vector))
    owner, total = torch.full(origin.shape, -1), origin.clone()
    unit = torch.zeros_like(vector)
    for k in range(len(vector)):
        unit[k] = 1.0
        change = read(unit) - origin
        unit[k] = 0.0
        hit = (change.abs() > ROUNDING).nonzero()[:, 0]
        if len(hit) > 1 or not bool(((change[hit] - 1).abs() < ROUNDING).all()):
            return None
        total[hit] += vector[k]
        owner[hit] = torch.where(owner[hit] < 0, k, owner[hit])
    if bool((owner[free.flatten()] < 0).any()) or not torch.allclose(read(vector), total):
        return None
    places, first = {}, 0
    for name, p in names.items():
        mine = ((owner >= first) & (owner < first + p.numel())).nonzero()[:, 0]
        if len(mine):
            numbers = owner[mine] - first
            places[name] = _Place(mine, numbers, p.detach().flatten()[numbers].clone())
        first += p.numel()
    return places
