"""Dynamics with a diagonal linear part and one layer of piecewise-linear units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from plssm.dynamics.base import PiecewiseLinear
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import PlssmError

__all__ = ["CoupledUnits", "OneLayerDynamics", "centring", "check_centring", "empty"]

LARGEST_DECAY = 0.999


class OneLayerDynamics(PiecewiseLinear, ABC):
    r"""The PLRNN family: a decay and one layer of piecewise-linear units.

    .. math:: F(z, s) = A \circ z + W \varphi(V z) + h + C s

    A subclass writes `layer`, its parameters in the form of :class:`HiddenLayer`; the step, its
    regions and its ReLU form follow, and so does whatever engines compile for that form.

    Args:
        dim: Number of states M.
        inputs: Number of inputs K.
        **options: As for :class:`LatentDynamics`.
    """

    A: nn.Parameter
    mean_centered = False

    @abstractmethod
    def layer(self) -> HiddenLayer:
        """Returns the map without its inputs, in tensors that carry gradients."""

    def region(self, z: Tensor) -> Tensor:
        """Returns which gates are on: z [..., M] to bool [..., P], unit by unit."""
        return self.layer().region(z)

    def affine(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the affine map of each region.

        Args:
            region: Gates [..., P], boolean or any number between 0 and 1.

        Returns:
            J [..., M, M] and b [..., M].
        """
        return self.layer().affine(region)

    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns the expected next state: z [..., M] and s [..., K] to [..., M]."""
        return self.layer().step(z) + self.drive(s)

    def relu_form(self) -> ReluForm:
        """Returns the map as ReLU gates, in the order of `region`."""
        return self.layer().relu_form(self.C)

    @property
    def decay_limit(self) -> float:
        """Largest abs(A) with which no orbit can escape: 0.999 where the layer is clipped.

        Without clipping there is no such simple bound (infinity).
        """
        return LARGEST_DECAY if getattr(self, "clipped", False) else math.inf

    def bound_orbits(self) -> None:
        """Moves A within `decay_limit`; a frozen A stays."""
        if self.decay_limit < math.inf and self.A.requires_grad:
            with torch.no_grad():
                self.A.clamp_(-self.decay_limit, self.decay_limit)

    def _sizes(self) -> dict[str, int | bool]:
        return {"mean_centered": True} if self.mean_centered else {}


class CoupledUnits(OneLayerDynamics, ABC):
    """One unit per state, coupled by a matrix W without self-couplings.

    Args:
        dim: Number of states M.
        inputs: Number of inputs K.
        mean_centered: Whether the units see z minus its mean over the M states.
        **options: As for :class:`LatentDynamics`.
    """

    W: nn.Parameter

    def __init__(
        self, dim: int, inputs: int = 0, *, mean_centered: bool = False, **options: Any
    ) -> None:
        super().__init__(dim, inputs, **options)
        self.mean_centered = check_centring(mean_centered, self.dim)

    @property
    def couplings(self) -> Tensor:
        """W [M, M] as it acts: without a diagonal, so that no gradient can give it one."""
        own = torch.eye(self.dim, dtype=torch.bool, device=self.W.device)
        return self.W.masked_fill(own, 0.0)

    def check_parameter(self, name: str, value: Tensor) -> None:
        """Refuses a non-zero diagonal of W.

        Raises:
            PlssmError: If W [M, M] has one.
        """
        if name == "W" and value.diagonal().any():
            raise PlssmError(
                "W: the diagonal must be zero, got "
                f"{[round(x, 6) for x in value.diagonal().tolist()]}; units act on other states "
                "only, so move self-couplings to A (add the diagonal of W to A)"
            )

    def _seen(self) -> Tensor | None:
        """What makes the states into what the units see [M, M]; None is the states themselves."""
        return centring(self.W) if self.mean_centered else None


def centring(like: Tensor) -> Tensor:
    """Returns the matrix [M, M] that subtracts the mean over the states; `like` is [..., M]."""
    dim = like.shape[-1]
    return torch.eye(dim, dtype=like.dtype, device=like.device) - 1.0 / dim


def check_centring(mean_centered: bool, dim: int) -> bool:
    """Returns the option.

    Raises:
        PlssmError: If a single state were centred.
    """
    if mean_centered and dim < 2:
        raise PlssmError(
            "mean_centered: a single state minus its mean is always 0; use dim of at least 2 or "
            "mean_centered=False"
        )
    return bool(mean_centered)


def empty(*shape: int) -> nn.Parameter:
    """Returns a float64 parameter [shape] of zeros."""
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))
