"""A latent map in coordinates in which gradient steps are well conditioned."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.inference.compiled_updates import copied_values

__all__ = ["WhitenedMap"]

LOADING = (
    1e-3  # of the mean second moment, added to all: steps stay bounded where data say nothing
)


class WhitenedMap(nn.Module):
    r"""Regression coefficients of a map as deviations in whitened regressors.

    .. math:: \theta_i = \theta^0_i + v_i L_i^{-1}, \qquad
        L_i L_i^\top = \langle \rho \rho^\top \rangle_i, \quad
        \rho = [z;\, \max(0, I z + o);\, 1;\, s]

    States of smooth systems and their rectified copies are nearly collinear: in the coefficients
    themselves an optimiser that scales each one by itself goes down narrow valleys, in v the
    valley is round at the start. The bracket is over the free coefficients of row i.

    Args:
        values: Deviations v of the free coefficients, one after the other [n].
        roots: For each row the inverse of L_i'.
        base: Start values of the free coefficients [n].
        places: Which number of which parameter a free coefficient is.
    """

    def __init__(
        self, values: Tensor, roots: list[Tensor], base: Tensor, places: dict[str, tuple]
    ) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.roots, self.base, self.places = roots, base, places

    @classmethod
    @torch.no_grad()
    def of(
        cls, dynamics: LatentDynamics, path: Tensor, inputs: Tensor | None, inside: Tensor
    ) -> Self | None:
        """The coordinates of a map along a path; None where it has no regression form.

        Args:
            dynamics: The map.
            path: A rough path [B, T, M].
            inputs: Inputs [B, T, K], or None.
            inside: Which steps exist [B, T], bool.
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
        moment = read.T @ read / len(read)
        moment += LOADING * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
        roots = []
        for row in free:
            root = torch.linalg.cholesky(moment[row][:, row])
            roots.append(torch.linalg.inv(root).to(theta))
        return cls(torch.zeros(int(free.sum())).to(theta), roots, theta[free], places)

    def coefficients(self) -> Tensor:
        """The free coefficients, row by row [n]."""
        sizes = [len(r) for r in self.roots]
        rows = [v @ r for v, r in zip(self.values.split(sizes), self.roots, strict=True)]
        return self.base + torch.cat(rows)

    def tensors(self, dynamics: LatentDynamics) -> dict[str, Tensor]:
        """Values of the parameters that the coefficients are part of, with gradients."""
        theta, out = self.coefficients(), {}
        for name, (mine, theirs) in self.places.items():
            parameter = dynamics.get_parameter(name)
            flat = parameter.detach().flatten()
            out[name] = flat.index_copy(0, theirs, theta[mine]).view_as(parameter)
        return out

    def applied(self, dynamics: LatentDynamics) -> LatentDynamics:
        """A copy of the map whose parameters follow from the coordinates, with gradients."""
        known = {id(p): p for p in dynamics.parameters()}
        for name, value in self.tensors(dynamics).items():
            known[id(dynamics.get_parameter(name))] = value
        return copy.deepcopy(dynamics, known)

    @torch.no_grad()
    def write(self, dynamics: LatentDynamics) -> None:
        """Writes the coordinates' coefficients into a map."""
        for name, value in self.tensors(dynamics).items():
            dynamics.get_parameter(name).copy_(value)


def _places(dynamics: LatentDynamics, free: Tensor) -> dict[str, tuple] | None:
    """For each parameter: which free coefficients are its numbers, and which numbers."""
    names = {n: p for n, p in dynamics.named_parameters() if p.numel() and p.requires_grad}
    trial = copy.deepcopy(dynamics)
    parts = [trial.get_parameter(n) for n in names]
    vector = torch.cat([p.detach().double().flatten() for p in parts])

    def read() -> Tensor:
        first = 0
        for p in parts:
            p.data = vector[first : first + p.numel()].view_as(p)
            first += p.numel()
        return trial.coefficients()[0][free]

    found = copied_values(vector, read)
    if found is None or (found.index < 0).any() or (found.sign <= 0).any():
        return None
    index, places, first = torch.from_numpy(found.index), {}, 0
    for name, p in names.items():
        mine = ((index >= first) & (index < first + p.numel())).nonzero()[:, 0]
        if len(mine):
            places[name] = (mine, index[mine] - first)
        first += p.numel()
    return places
