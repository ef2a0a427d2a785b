"""Teacher signals from BOLD: deconvolved once before training, compared through the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from plssm.data import Batch, Modality
from plssm.inference.affine_readout import AffineReadout
from plssm.inference.forced_rollout import forced_rollout
from plssm.inference.teacher_signal import (
    ForcedRun,
    StateTargets,
    TeacherSignal,
    moments,
    on_clock,
    squared_error,
)
from plssm.model import StateSpaceModel
from plssm.observations import BOLD
from plssm.observations.bold.wiener import sources

__all__ = ["ConvolvedSignal", "activity", "without_nuisance"]


@final
class ConvolvedSignal(TeacherSignal):
    r"""BOLD, alone or with Gaussian channels: the teacher is deconvolved, the loss convolved.

    .. math:: \hat z_t = B^+ (\hat u_t - b), \qquad
        \frac1n \sum_{t \ge L} \sum_i (B (h * z)_t + b - x_t)_i^2 / \mathrm{sd}_i^2

    The activity u is deconvolved channel by channel (see
    :func:`plssm.observations.bold.wiener.sources`); where it is not reliable, at the edges and at
    missing scans, nothing is forced. What nuisance regressors explain is taken away first. A
    predicted sample depends on the L states up to its own step, so that the first L - 1 steps of
    a path are not compared. Read-out and teacher are those of :class:`AffineReadout`: a state for
    every channel is held, a mixing read-out and a learnable response are learned.

    Args:
        model: The model.
        batch: Training trials, in the model's precision.
    """

    def __init__(self, model: StateSpaceModel, batch: Batch) -> None:
        self.parts, self.dt = list(model.observations.values()), batch.dt
        own = [without_nuisance(o, batch.modalities[n]) for n, o in model.observations.items()]
        grids = [on_clock(m, batch.steps) for m in own]
        found = [activity(o, m, batch.steps) for o, m in zip(self.parts, own, strict=True)]
        self.data, self.seen = (torch.cat(x, dim=-1) for x in zip(*grids, strict=True))
        hidden, known = (torch.cat(x, dim=-1) for x in zip(*found, strict=True))
        self.y = torch.cat([self.data, hidden.to(self.data)], dim=-1)
        self.mask = torch.cat([self.seen, known], dim=-1)
        self.channels = self.data.shape[-1]
        self.mean, self.sd = moments(self.data, self.seen)
        self.readout = AffineReadout(model, self.sd)
        self.seen_states = self.readout.seen_states
        self.lead = max(o.memory(batch.dt) for o in self.parts)

    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns a mixing read-out, and what is learned of the responses."""
        bold = [o for o in self.parts if isinstance(o, BOLD)]
        learned = [p for o in bold for p in o.hrf.parameters() if p.requires_grad]
        return [*self.readout.parameters(), *learned]

    def teacher(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states that the deconvolved signals point at (see the base class)."""
        known = None if mask is None else mask[..., self.channels :]
        return self.readout.states(y[..., self.channels :], known)

    def loss(self, run: ForcedRun, y: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the mean squared error of the convolved path (see the base class)."""
        pred, n = self.predict(forced_rollout(*run)), self.channels
        seen = None if mask is None else mask[:, self.lead :, :n]
        return squared_error(pred, y[:, self.lead :, :n], seen, self.sd)

    def by_state(self, y: Tensor, mask: Tensor) -> StateTargets | None:
        """Returns samples and responses, where each channel sees a state of its own.

        Only for responses that are not learned (see the base class).
        """
        if not self.readout.selects or self.parameters():
            return None
        state, steps = self.readout.column, self.lead + 1
        impulse = y.new_zeros(2 * self.lead + 1, len(self.seen_states))
        rest = self.predict(impulse[None])[0, :1]
        impulse[self.lead] = 1.0
        response = y.new_zeros(steps, len(self.seen_states))
        response[:, state] = self.predict(impulse[None])[0] - rest
        targets = y.new_full((len(y), len(self.seen_states)), torch.nan)
        samples = torch.where(mask, y, torch.nan)[:, : self.channels]
        targets[:, state] = samples - rest
        precision = torch.zeros_like(response[0])
        precision[state] = 1.0 / self.sd
        return StateTargets(targets, precision, response)

    def predict(self, z: Tensor) -> Tensor:
        """Returns what the scanner would see (see the base class)."""
        found = [o.features_along(z, dt=self.dt) for o in self.parts]
        return torch.cat(found, dim=-1)[..., self.lead :, :].to(z.dtype)


def without_nuisance(observation: nn.Module, m: Modality) -> Modality:
    """A modality without what its nuisance regressors explain."""
    if not observation.nuisance or m.nuisance is None:
        return m
    part = m.nuisance.to(m.y.dtype) @ observation.nuisance_weight.detach().to(m.y.dtype).mT
    return replace(m, y=torch.where(m.mask, m.y - part, 0.0))


@torch.no_grad()
def activity(observation: nn.Module, m: Modality, steps: int) -> tuple[Tensor, Tensor]:
    """What the channels say about their activity on the latent clock, and where they do.

    Args:
        observation: Their model.
        m: The modality, without nuisance.
        steps: Latent steps T.

    Returns:
        ``[B, T, N]``, and bool ``[B, T, N]``.
    """
    if not isinstance(observation, BOLD):
        return on_clock(m, steps)
    tr = observation.tr_seconds
    return sources(m, observation.hrf.kernel(tr), tr_seconds=tr, steps=steps)
