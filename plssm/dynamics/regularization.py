"""Quadratic priors on the coefficients of piecewise-linear dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plssm.errors import PlssmError

__all__ = ["ManifoldAttractor"]


@dataclass(frozen=True)
class ManifoldAttractor:
    r"""Pulls part of the units towards a line of fixed points, for long memory.

    .. math::
        -\tfrac{\tau}{2} \sum_{i \le n} \Big(\sum_{j \ne i} w_{ij}^2 + h_i^2\Big)
        -\tfrac{\lambda}{2} \sum_{i \le n} (a_{ii} - 1)^2

    Args:
        tau: Strength of the pull of w and h to zero.
        lam: Strength of the pull of a to one; default tau.
        units: How many units (the first ones), or their indices; default the first half,
            ceil(M/2).

    Example:
        >>> weight, target = ManifoldAttractor(10.0).quadratic(dim=4)
        >>> weight.shape
        torch.Size([4, 9])

    References:
        Schmidt et al. 2021, Identifying nonlinear dynamical systems with multiple time scales and
        long-range dependencies, ICLR; Koppe et al. 2019, doi:10.1371/journal.pcbi.1007263.
    """

    tau: float
    lam: float | None = None
    units: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses negative strengths; keeps indices as a tuple."""
        for name, value in (("tau", self.tau), ("lam", self.lam)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise PlssmError(f"{name}: got {value!r}, wanted a finite number of at least 0")
        if self.units is not None and not isinstance(self.units, int):
            object.__setattr__(self, "units", tuple(int(i) for i in self.units))

    def rows(self, dim: int) -> list[int]:
        """Returns the indices of the regularised units among `dim`.

        Raises:
            PlssmError: If a unit does not exist.
        """
        units = -(-dim // 2) if self.units is None else self.units
        rows = list(range(units)) if isinstance(units, int) else list(units)
        if any(not 0 <= i < dim for i in rows) or (isinstance(units, int) and units < 0):
            raise PlssmError(f"units: got {self.units!r}, wanted units between 0 and {dim - 1}")
        return rows

    def quadratic(self, *, dim: int, inputs: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the prior as weights and targets of the coefficients [A, W, h, C].

        Args:
            dim: Number of units M (and gates).
            inputs: Number of inputs K.

        Returns:
            weight [M, 2M+1+K] and target [M, 2M+1+K] of the penalty
            sum(weight * (theta - target)**2) / 2.
        """
        lam = self.tau if self.lam is None else self.lam
        weight = torch.zeros(dim, 2 * dim + 1 + inputs, dtype=torch.float64)
        target = torch.zeros_like(weight)
        for i in self.rows(dim):
            weight[i, dim : 2 * dim + 1] = self.tau
            weight[i, dim + i] = 0.0
            weight[i, i], target[i, i] = lam, 1.0
        return weight, target
