"""What multimodal teacher forcing trains: an encoder, the map and the decoders, by one bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.dynamics import OneLayerDynamics
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.forced_rollout import forced_rollout
from plssm.inference.free_runs import FreeRuns
from plssm.inference.latent_signal import LatentSignal
from plssm.inference.shrinkage import shrinkage
from plssm.inference.teacher_encoder import Belief, TeacherEncoder
from plssm.inference.trainer import Problem
from plssm.model import StateSpaceModel
from plssm.observations.clock import gather

if TYPE_CHECKING:
    from plssm.inference.multimodal_forcing import MTF
    from plssm.inference.teacher_forcing import TeacherForcing

__all__ = ["MultimodalTraining", "first_known"]


class MultimodalTraining(Problem):
    r"""The joint loss of multimodal teacher forcing, in nats per step.

    .. math:: -\log p(x_t \mid \hat z_t) - \log p(x_t \mid z_t)
        - \log N(\hat z_t; z_t, R) - H(q_t), \qquad \hat z_t \sim q_t

    q comes from the encoder; z is the path of the map that is replaced by the sample at intervals.
    Where the encoder says nothing, at steps without data and of states that are not forced, the
    path stands in for the teacher; the path is compared from the first step on that follows one
    with data. Decoders do not see states that are not forced, unless they did from the start.

    Args:
        engine: The settings of the training.
        scheme: Those of the forcing and the encoder.
        model: A working copy in the precision of the training; changed in place.
        batch: Training trials in that precision.
        check: Trials that free runs are compared with.
        seed: Seed of the start values.
    """

    def __init__(
        self, engine: TeacherForcing, scheme: MTF, model: StateSpaceModel, batch: Batch,
        check: Batch, *, seed: int,
    ) -> None:  # fmt: skip
        self.engine, self.scheme, self.model, self.check = engine, scheme, model, check
        states = scheme.states or model.dim
        encoder = TeacherEncoder.for_model(
            model, batch, states, hidden=scheme.hidden, causal=scheme.causal, seed=seed
        )
        kind = next(iter(batch.modalities.values())).y.dtype
        self.encoder, self.states = encoder.to(kind), states
        self.features = self.encoder.features(model, batch)
        memory = max(o.memory(batch.dt) for o in model.observations.values())
        context = max(encoder.reach, memory)
        self.windows = BatchWindows(batch, steps=engine.sequence, context=context)
        self.total = int(batch.length.sum())
        self.forcing = scheme.begin()
        self.visible = {n: _seen(o.weight, states) for n, o in model.observations.items()}
        generator = torch.Generator().manual_seed(seed)
        bound = (6.0 / model.dim) ** 0.5
        values = (2 * torch.rand(model.dim - states, states, generator=generator) - 1) * bound
        self.first_state = nn.Parameter(values.to(kind))
        self.log_spread = nn.Parameter(torch.full((states,), math.log(0.1), dtype=kind))
        self._penalised = bool(model.dynamics.penalty().requires_grad)
        self.samples = max(sum(int(m.mask.sum()) for m in batch.modalities.values()), 1)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The map, the decoders, the encoder, the first state and the spread R."""
        dynamics = self.model.dynamics
        fixed = {*dynamics.noise.parameters(), *dynamics.initial.parameters()}
        found = [p for p in self.model.parameters() if p.requires_grad and p not in fixed]
        found += [*self.encoder.parameters(), self.first_state, self.log_spread]
        return [p for p in found if p.numel()]

    # ---- the loss -----------------------------------------------------------------------------
    def loss(self, progress: float, generator: torch.Generator) -> Tensor:
        """The joint loss of a batch of windows."""
        window = self.windows.draw(self.engine.batch_size, generator)
        belief = self.belief(window)
        draws = torch.randn(
            (2 if self.engine.noise else 1, *belief.mean.shape),
            generator=generator, dtype=belief.mean.dtype,
        )  # fmt: skip
        teacher = belief.sample(draws[0])
        share = self.forcing.shares(teacher.shape[1], progress, generator).to(teacher)
        parts = self.parts(window, belief, teacher, share, jitter=draws[1:])
        weights = self.scheme.weights(progress)
        total = sum(weights[name] * part for name, part in parts.items() if weights[name])
        return total + self.penalty()

    def belief(self, window: BatchWindow) -> Belief:
        """What the encoder says about windows of the training trials."""
        at = window.start[:, None] + torch.arange(window.batch.steps)
        row, at = window.row[:, None], at.clamp_max(self.windows.batch.steps - 1)
        found = {name: x[row, at] for name, x in self.features.items()}
        return self.encoder.believe(found, window.batch.time_mask)

    def parts(
        self, window: BatchWindow, belief: Belief, teacher: Tensor, share: Tensor, *,
        jitter: Tensor | tuple = (),
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of the loss, each a mean over the steps of the training data, in nats.

        Args:
            window: The data.
            belief: What the encoder says about them.
            teacher: A sample of that [B, T, K].
            share: Share of the teacher at every step [T].
            jitter: Unit noise for the teacher of the path [1, B, T, K], or nothing.
        """
        weight, known = window.weight, belief.known
        informed, begin = first_known(known)
        shown = teacher
        if len(jitter):
            shown = shown + self.engine.noise * belief.mean.detach().std((0, 1)) * jitter[0]
        path = self.path(shown, known, share, begin, window.batch.inputs)
        own, rest = path.split([self.states, self.model.dim - self.states], dim=-1)
        seen = torch.where(known[..., None], teacher, own)
        both = torch.stack([torch.cat([seen, rest], dim=-1), path])
        reconstruction, observation = self.log_prob(window.batch, both, weight, informed)
        compared = weight * (informed & known)
        variance = self.log_spread.exp()
        squares = (teacher - own).square() / variance
        constant = self.log_spread.sum() + self.states * math.log(2 * math.pi)
        consistency = 0.5 * (compared * (squares.sum(-1) + constant)).sum()
        entropy = (weight * known * belief.entropy()).sum()
        scale = self.windows.scale(len(window.row)) / self.total
        return {
            "reconstruction": -scale * reconstruction,
            "observation": -scale * observation,
            "consistency": scale * consistency,
            "entropy": -scale * entropy,
        }

    def path(
        self, teacher: Tensor, known: Tensor, share: Tensor, begin: Tensor, inputs: Tensor | None
    ) -> Tensor:
        """The path of the map under sparse forcing, before each replacement [B, T, M].

        The teacher takes the place of the first K states at the first step with data of each
        interval. At the first one of all the others follow from it, by a learned linear map.

        Args:
            teacher: [B, T, K].
            known: Steps with data [B, T], bool.
            share: Share of the teacher [T], 0 between the ends of intervals.
            begin: The first step with data [B, T], bool.
            inputs: [B, T, K], or None.
        """
        whole = self.extended(teacher)
        if teacher.shape[1] == 1:
            return whole
        forced = forced_steps(known, share)
        forced = torch.where(begin, 1.0, forced)[..., None].expand(whole.shape)
        if self.states < self.model.dim:
            forced = torch.cat(
                [forced[..., : self.states], begin[..., None] * forced[..., self.states :]], dim=-1
            )
        inputs = None if inputs is None or not self.model.dynamics.n_inputs else inputs[:, 1:]
        rest = forced_rollout(
            self.model.dynamics, whole[:, 0], whole[:, :-1], forced[:, :-1], inputs
        )
        return torch.cat([whole[:, :1], rest], dim=1)

    def extended(self, teacher: Tensor) -> Tensor:
        """States [..., M] of which the first K are given; the others are a linear map of them."""
        if self.states == self.model.dim:
            return teacher
        return torch.cat([teacher, teacher @ self.first_state.T], dim=-1)

    def log_prob(
        self, batch: Batch, z: Tensor, weight: Tensor, informed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-densities of all data given the teacher and given the path, summed.

        Args:
            batch: The data.
            z: Teacher and path [2, B, T, M].
            weight: Weight of each step [B, T].
            informed: Steps that follow one with data [B, T], bool.
        """
        counted = torch.stack([weight, weight * informed])
        totals = z.new_zeros(2)
        for name, observation in self.model.observations.items():
            m, visible = batch.modalities[name], self.visible[name]
            shown = z if visible is None else torch.where(visible, z, 0.0)
            entries = observation.log_prob_entries(m, shown).sum(-1)
            at = gather(counted[..., None], m.clock, m.y.shape[1])[..., 0]
            totals = totals + (entries * at).sum((1, 2))
        return totals[0], totals[1]

    def penalty(self) -> Tensor | float:
        """Shrinkage and the map's own penalty."""
        total, dynamics = 0.0, self.model.dynamics
        if self.engine.shrink:
            own = self.first_state.square().sum()
            total = total + self.engine.shrink * (shrinkage(dynamics) + own)
        if self._penalised:
            total = total + dynamics.penalty() / self.samples
        return total

    # ---- what it is worth ---------------------------------------------------------------------
    @property
    def recognition(self) -> TeacherEncoder:
        """A copy of the encoder in float64, as models of fits are."""
        return copy.deepcopy(self.encoder).to(torch.float64)

    def project(self) -> None:
        """Keeps the orbits of clipped maps bounded, if wanted."""
        if self.engine.bounded and isinstance(self.model.dynamics, OneLayerDynamics):
            self.model.dynamics.bound_orbits()

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """How close free runs are to what the encoder makes of the data (:class:`FreeRuns`).

        Where trials are short or driven the score is NaN and the loss decides: an encoder that
        has learned nothing can make data that any run resembles.
        """
        belief = self.encoder(self.model, self.check)
        signal = LatentSignal(belief, self.model.dim)
        free = FreeRuns(signal, self.check, inputs=self.model.dynamics.n_inputs > 0)
        found = free.measures(self.model.dynamics, lambda z: self.extended(z[:, : self.states]))
        return found if free.long else found | {"score": math.nan}


def _seen(weight: Tensor, states: int) -> Tensor | None:
    """States that a decoder sees [M], bool; None where it sees all."""
    forced = torch.arange(weight.shape[1]) < states
    seen = forced | (weight.detach() != 0).any(0)
    return None if bool(seen.all()) else seen


def first_known(known: Tensor) -> tuple[Tensor, Tensor]:
    """Steps that follow one with data, and the first step with data of each trial.

    Args:
        known: Steps with data [B, T], bool.

    Returns:
        Two masks [B, T], bool.
    """
    count = known.to(torch.int64).cumsum(1)
    begin = known & (count == 1)
    return (count > 0) & ~begin, begin


def forced_steps(known: Tensor, share: Tensor) -> Tensor:
    """Share of the teacher at the first step with data of each interval [B, T].

    Args:
        known: Steps with data [B, T], bool.
        share: Share of the teacher [T]; intervals begin where it is not zero.
    """
    count = known.to(torch.int64).cumsum(1)
    starts = (share > 0).to(torch.int64)
    starts[0] = 1
    interval = starts.cumsum(0) - 1
    before = torch.cat([torch.zeros_like(count[:, :1]), count[:, :-1]], dim=1)
    earlier = before[:, starts.nonzero()[:, 0]][:, interval]
    strength = share[starts.nonzero()[:, 0]][interval]
    return strength * (known & (count == earlier + 1))
