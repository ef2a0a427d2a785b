"""The common form of the PLRNN family: a decay, and one layer of piecewise-linear units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plssm.errors import ShapeError

__all__ = ["HiddenLayer"]


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    r"""A map with one layer of units, in tensors that follow the parameters of its owner.

    .. math::
        F(z) = A \circ z + W \varphi(V z) + h, \qquad
        \varphi_l(u) = \sum_b \alpha_b \left[\max(0, u - H_{lb}) - \kappa \max(0, u)\right]

    with kappa 1 where the layer is clipped, otherwise 0. The first units may be linear instead,
    :math:`\varphi_l(u) = u`. Engines that differentiate the map compile this form once for the
    whole family.

    Args:
        decay: A [M].
        outer: W [M, L].
        bias: h [M].
        inner: V [L, M]; None where the units are the states themselves (L = M).
        thresholds: H [L, B], the kinks of the units.
        weights: alpha [B].
        clipped: Whether max(0, u) is subtracted, which bounds what a unit gives.
        linear_units: Number of leading units that are linear.

    Raises:
        ShapeError: If the shapes do not belong together.

    References:
        Brenner et al. 2022 (dendritic units), arXiv:2207.02542; Hess et al. 2023 (shallow PLRNN),
        arXiv:2306.04406; Brenner et al. 2024 (almost-linear RNN), arXiv:2410.14240.
    """

    decay: Tensor
    outer: Tensor
    bias: Tensor
    inner: Tensor | None
    thresholds: Tensor
    weights: Tensor
    clipped: bool = False
    linear_units: int = 0

    def __post_init__(self) -> None:
        """Checks that the tensors fit together."""
        (dim,), (units, bases) = self.decay.shape, self.thresholds.shape
        wanted = {"outer": (dim, units), "bias": (dim,), "weights": (bases,)}
        if self.inner is None:
            wanted["outer"] = (dim, dim)
        else:
            wanted["inner"] = (units, dim)
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ShapeError(
                    f"{name}: got shape {tuple(getattr(self, name).shape)}, wanted {shape}"
                )

    def units(self, z: Tensor) -> Tensor:
        """Returns what the units see, u = V z: z [..., M] to [..., L]."""
        return z if self.inner is None else z @ self.inner.T

    def activate(self, u: Tensor) -> Tensor:
        """Returns phi(u): u [..., L] to [..., L]."""
        if self.thresholds.shape[1] == 1:
            value = self.weights * (u - self.thresholds[:, 0]).relu()
        else:
            value = (u[..., None] - self.thresholds).relu() @ self.weights
        if self.clipped:
            value = value - self.weights.sum() * u.relu()
        if self.linear_units:
            value = torch.cat([u[..., : self.linear_units], value[..., self.linear_units :]], -1)
        return value

    def step(self, z: Tensor) -> Tensor:
        """Returns F(z): z [..., M] to [..., M]."""
        return z * self.decay + self.activate(self.units(z)) @ self.outer.T + self.bias
