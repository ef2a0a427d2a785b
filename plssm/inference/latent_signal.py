"""States as an encoder sees them, in the form in which free runs are compared with data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from plssm.errors import CapabilityError
from plssm.inference.teacher_encoder import Belief
from plssm.inference.teacher_signal import ForcedRun, TeacherSignal

__all__ = ["LatentSignal"]

AXES = 3  # principal components that are compared
FLAT = 1e-3  # share of the first one's variance below which an axis is left out


@final
class LatentSignal(TeacherSignal):
    r"""Means of an encoder as states that free runs are compared with.

    What is compared are the leading principal components :math:`P^\top z` of the means, at most
    three: a histogram of all K states would be empty. So runs can be compared whatever the
    observations are.

    Args:
        belief: What the encoder says about the trials.
        dim: Number of states M of the map.
    """

    lead = 0

    def __init__(self, belief: Belief, dim: int) -> None:
        mean, known = belief.mean, belief.known
        states = mean.shape[-1]
        rest = mean.new_zeros(*mean.shape[:2], dim - states)
        self.y = torch.cat([mean, rest], dim=-1)
        self.mask = known[..., None].expand(self.y.shape)
        self.seen_states = torch.arange(dim) < states
        inside = mean[known].double()
        self.axes = _principal(inside).to(mean) if len(inside) else mean.new_zeros(states, 1)
        self.data = mean @ self.axes
        self.seen = known[..., None].expand(self.data.shape)
        flat = self.data[known]
        self.mean = flat.mean(0) if len(flat) else self.data.new_zeros(1)
        self.sd = flat.std(0, unbiased=False) if len(flat) else self.data.new_ones(1)
        self.sd = torch.where(self.sd > 0, self.sd, 1.0)

    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns nothing: the means are given."""
        return []

    def teacher(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the means themselves (see the base class)."""
        known = self.seen_states if mask is None else mask & self.seen_states
        return torch.where(known, y, 0.0), known

    def loss(self, run: ForcedRun, y: Tensor, mask: Tensor | None) -> Tensor:
        """Refused: the loss of multimodal forcing is the data's.

        Raises:
            CapabilityError: Always.
        """
        raise CapabilityError("states as an encoder sees them are compared with, never trained on")

    def predict(self, z: Tensor) -> Tensor:
        """Returns the components of a path [..., M] (see the base class)."""
        return z[..., : len(self.axes)] @ self.axes


def _principal(x: Tensor) -> Tensor:
    """Leading principal axes [K, A] of rows [n, K], each of unit variance."""
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, vectors = values.flip(0)[:AXES], vectors.flip(1)[:, :AXES]
    kept = max(int((values > FLAT * values[0]).sum()), 1)
    return vectors[:, :kept] * values[:kept].clamp_min(1e-12).rsqrt()
