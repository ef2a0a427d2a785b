"""The common form of the PLRNN family: a decay, and one layer of piecewise-linear units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plssm.dynamics.relu_form import ReluForm
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

    Each unit that is not linear has one gate per threshold, on where :math:`u_l > H_{lb}`, and,
    where the layer is clipped, a last one for :math:`u_l > 0`. Gates are counted unit by unit.

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
        if not 0 <= self.linear_units <= units:
            raise ShapeError(
                f"linear_units: got {self.linear_units}, wanted between 0 and the {units} units"
            )
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

    # ---- gates --------------------------------------------------------------------------------
    def hinges(self) -> tuple[Tensor, Tensor]:
        """Returns kinks [G, B'] and weights [B'] of the G units that are not linear.

        Clipping counts as one more basis, with its kink at zero and the negative sum of the
        weights.
        """
        kinks, weights = self.thresholds[self.linear_units :], self.weights
        if not self.clipped:
            return kinks, weights
        kinks = torch.cat([kinks, torch.zeros_like(kinks[:, :1])], dim=1)
        return kinks, torch.cat([weights, -weights.sum(0, keepdim=True)])

    def region(self, z: Tensor) -> Tensor:
        """Returns which gates are on: z [..., M] to bool [..., G B']."""
        u = self.units(z)[..., self.linear_units :]
        return (u[..., None] > self.hinges()[0]).flatten(-2)

    def affine(self, region: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the affine map of each region.

        .. math:: J = \mathrm{diag}(A) + W \mathrm{diag}(p)\, V, \qquad
            p_l = \sum_b \alpha_b d_{lb}, \qquad
            b = h - \sum_{lb} W_{\cdot l}\, \alpha_b d_{lb} H_{lb}

        Args:
            region: Gates d [..., G B'], boolean or any number between 0 and 1.

        Returns:
            J [..., M, M] and b [..., M].
        """
        kinks, weights = self.hinges()
        gates = region.to(weights.dtype).unflatten(-1, kinks.shape)
        slope, shift = gates @ weights, (gates * kinks) @ weights
        units = slope
        if self.linear_units:
            linear = slope.new_ones(*slope.shape[:-1], self.linear_units)
            units = torch.cat([linear, slope], dim=-1)
        outer = self.outer * units[..., None, :]
        jacobian = torch.diag(self.decay) + (outer if self.inner is None else outer @ self.inner)
        return jacobian, self.bias - shift @ self.outer[:, self.linear_units :].T

    def relu_form(self, inputs: Tensor) -> ReluForm:
        """Returns the map as ReLU gates, in the order of `region`.

        Args:
            inputs: Input matrix C [M, K].
        """
        tensors = (*self.hinges(), self.decay, self.outer, self.bias, inputs)
        kinks, weights, decay, outer, bias, C = (_array(x) for x in tensors)
        (units, bases), linear = kinks.shape, self.linear_units
        inner = np.eye(len(decay)) if self.inner is None else _array(self.inner)
        return ReluForm(
            linear=np.diag(decay) + outer[:, :linear] @ inner[:linear],
            bias=bias,
            outer=(outer[:, linear:, None] * weights).reshape(len(decay), units * bases),
            inner=inner[linear:].repeat(bases, axis=0),
            offset=-kinks.ravel(),
            inputs=C,
        )


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's values as a float64 array."""
    return tensor.detach().cpu().double().numpy()
