"""Teacher signals: the states that data point at, and how a path is compared with data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch, Modality
from plssm.dynamics import LatentDynamics
from plssm.inference.affine_readout import AffineReadout
from plssm.inference.forced_rollout import forced_error, forced_rollout
from plssm.inference.step_samples import on_grid
from plssm.model import StateSpaceModel

__all__ = [
    "AffineSignal",
    "ForcedRun",
    "StateTargets",
    "TeacherSignal",
    "moments",
    "on_clock",
    "squared_error",
]


class ForcedRun(NamedTuple):
    """Everything a forced path follows from.

    Attributes:
        dynamics: The map.
        start: First states [B, M].
        teacher: Teacher signal [B, T, M].
        weight: Share of the teacher, broadcasts to [B, T, M].
        inputs: Inputs of the steps arrived at [B, T, K], or None.
    """

    dynamics: LatentDynamics
    start: Tensor
    teacher: Tensor
    weight: Tensor
    inputs: Tensor | None


class StateTargets(NamedTuple):
    r"""What single states are compared with, each alone and through a fixed response.

    .. math:: \frac1n \sum_{t,m} \lambda_m^2 \Big(\sum_l r_{lm} z_{t-l,m} - y_{tm}\Big)^2

    Attributes:
        targets: y [N, M], NaN where nothing is compared.
        precision: lambda [M].
        response: r [L, M]; None is one lag with weight 1.
    """

    targets: Tensor
    precision: Tensor
    response: Tensor | None


class TeacherSignal(ABC):
    """What data say about the states, and how a path is compared with them.

    Attributes:
        y: What windows are cut from [B, T, C].
        mask: Where it is known [B, T, C], bool.
        data: Channels that predictions are compared with [B, T, N].
        seen: Where they are observed [B, T, N], bool.
        mean: Mean of each channel [N].
        sd: Its standard deviation [N].
        seen_states: Which states the data say something about [M], bool.
        lead: Steps of a path before the first one that can be compared.
    """

    y: Tensor
    mask: Tensor
    data: Tensor
    seen: Tensor
    mean: Tensor
    sd: Tensor
    seen_states: Tensor
    lead: int

    @abstractmethod
    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns the parameters of the observations that training changes."""

    @abstractmethod
    def teacher(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states that a window points at, and which of them are known.

        Args:
            y: Part of `y` [..., C].
            mask: Part of `mask`; None where everything is known.

        Returns:
            States [..., M] (0 where unknown) and where they are known, bool [..., M] or [M].
        """

    @abstractmethod
    def loss(self, run: ForcedRun, y: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the mean squared error of a forced path, every channel in units of its spread.

        Args:
            run: What the path follows from.
            y: Part of `y` at the steps the path arrives at [B, T, C].
            mask: Part of `mask`, or None.
        """

    def by_state(self, y: Tensor, mask: Tensor) -> StateTargets | None:  # noqa: ARG002 (default)
        """Returns what makes the loss a sum over states; None where it is not one.

        Args:
            y: Part of `y` [N, C].
            mask: Part of `mask` [N, C].
        """
        return None

    @abstractmethod
    def predict(self, z: Tensor) -> Tensor:
        """Returns what the channels would be: a path [..., T, M] to [..., T - lead, N]."""


@final
class AffineSignal(TeacherSignal):
    r"""Gaussian channels: the inverse of their read-out, and errors one step ahead.

    .. math:: \hat z_t = B^+ (x_t - b), \qquad
        \frac1n \sum_{t,i} (B z_t + b - x_t)_i^2 / \mathrm{sd}_i^2

    Args:
        model: The model.
        batch: Training trials, in the model's precision.
    """

    lead = 0

    def __init__(self, model: StateSpaceModel, batch: Batch) -> None:
        grids = [on_clock(batch.modalities[n], batch.steps) for n in model.observations]
        self.y, self.mask = (torch.cat(parts, dim=-1) for parts in zip(*grids, strict=True))
        self.data, self.seen = self.y, self.mask
        self.mean, self.sd = moments(self.y, self.mask)
        self.readout = AffineReadout(model, self.sd)
        self.seen_states = self.readout.seen_states

    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns weight and intercept of a mixing read-out; one that selects is held."""
        return self.readout.parameters()

    def teacher(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states that samples point at (see the base class)."""
        return self.readout.states(y, mask)

    def loss(self, run: ForcedRun, y: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the mean squared error (see the base class)."""
        if not self.readout.selects:
            return squared_error(self.predict(forced_rollout(*run)), y, mask, self.sd)
        target, known = self.readout.states(y, mask)
        count = y.numel()
        if mask is not None:
            target, count = torch.where(known, target, torch.nan), max(int(mask.sum()), 1)
        precision = self.readout.state_precision
        return forced_error(*run, target=target, precision=precision, count=count)

    def by_state(self, y: Tensor, mask: Tensor) -> StateTargets | None:
        """Returns the states that channels select (see the base class)."""
        if not self.readout.selects:
            return None
        states, known = self.readout.states(y, mask)
        targets = torch.where(known, states, torch.nan)
        return StateTargets(targets, self.readout.state_precision, None)

    def predict(self, z: Tensor) -> Tensor:
        """Returns what the channels would be (see the base class)."""
        return self.readout.predict(z)


def squared_error(pred: Tensor, y: Tensor, mask: Tensor | None, sd: Tensor) -> Tensor:
    """Mean squared error of the observed samples, every channel in units of its spread.

    Args:
        pred: Predictions [..., N].
        y: Samples [..., N].
        mask: Where they are observed [..., N]; None where all are.
        sd: Spread of the channels [N].
    """
    error = (pred - y) * (1.0 / sd)
    if mask is None:
        return error.square().mean()
    error = torch.where(mask, error, 0.0)
    return error.square().sum() / mask.sum().clamp_min(1)


def on_clock(m: Modality, steps: int) -> tuple[Tensor, Tensor]:
    """Samples on the latent clock [B, T, N], their mean where a step has several, and the mask."""
    if m.clock is None:
        return m.y, m.mask
    grid = on_grid(m, steps)
    count = grid.mask.sum(2)
    return (grid.y * grid.mask).sum(2) / count.clamp_min(1), count > 0


def moments(y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over its observed samples (1 where flat)."""
    values = np.where(mask.numpy(), y.double().numpy(), np.nan).reshape(-1, y.shape[-1])
    mean, sd = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    return torch.from_numpy(mean).to(y), torch.from_numpy(sd).to(y)
