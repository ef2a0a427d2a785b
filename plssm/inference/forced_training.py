"""What teacher forcing trains: windows of data, forced paths, and free runs as the measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.dynamics import OneLayerDynamics
from plssm.errors import DataError
from plssm.inference.compiled_updates import CompiledUpdates
from plssm.inference.forced_readouts import teacher_signal
from plssm.inference.forcing_strength import EVERY
from plssm.inference.free_runs import FreeRuns
from plssm.inference.gauss_newton import LeastSquaresUpdates
from plssm.inference.shrinkage import shrinkage
from plssm.inference.teacher_signal import ForcedRun
from plssm.inference.trainer import Problem
from plssm.inference.updates import FastUpdates, OwnUpdates
from plssm.inference.windows import Windows
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.teacher_forcing import TeacherForcing

__all__ = ["ForcedTraining"]


class ForcedTraining(Problem):
    """Predictions one step ahead along forced sequences.

    Args:
        engine: The settings.
        model: A working copy in the precision of the training; changed in place.
        batch: Training trials in that precision.
        check: Trials that free runs are compared with.
        seed: Seed of the start values.
    """

    def __init__(
        self, engine: TeacherForcing, model: StateSpaceModel, batch: Batch, check: Batch, *,
        seed: int,
    ) -> None:  # fmt: skip
        self.engine, self.model = engine, model
        self.signal = teacher_signal(model, batch)
        length, inputs = batch.length, batch.inputs if model.dynamics.n_inputs else None
        states, known = self.signal.teacher(self.signal.y, self.signal.mask)
        self.windows = Windows(
            self.signal.y, self.signal.mask, length, inputs,
            steps=engine.sequence + 1 + self.signal.lead, least=self.signal.lead + 1,
            first=known[..., self.signal.seen_states],
        )  # fmt: skip
        self._refuse_short()
        self.forcing = engine.scheme.begin()
        self.hidden = (~self.signal.seen_states).nonzero()[:, 0]
        seen, generator = model.dim - len(self.hidden), torch.Generator().manual_seed(seed)
        bound = (6.0 / max(model.dim, 1)) ** 0.5
        values = (2 * torch.rand(len(self.hidden), seen, generator=generator) - 1) * bound
        self.first_state = nn.Parameter(values.to(self.signal.y))
        self.steps_done = 0
        self.free = FreeRuns(
            teacher_signal(model, check), check, inputs=model.dynamics.n_inputs > 0
        )
        self.samples = max(int(self.signal.seen.sum()), 1)
        self._penalised = bool(model.dynamics.penalty().requires_grad)
        self.jitter = engine.noise * _spread(states, known)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The map, a mixing read-out, and the map to the hidden part of the first state."""
        dynamics = self.model.dynamics
        fixed = {*dynamics.noise.parameters(), *dynamics.initial.parameters()}
        found = [p for p in dynamics.parameters() if p.requires_grad and p not in fixed]
        found += self.signal.parameters()
        return [p for p in [*found, self.first_state] if p.numel()]

    def loss(self, progress: float, generator: torch.Generator) -> Tensor:
        """Mean squared error of the un-forced predictions in a batch of windows."""
        engine, signal, dynamics = self.engine, self.signal, self.model.dynamics
        y, mask, inputs = self.windows.draw(engine.batch_size, generator)
        before, after = (None, None) if mask is None else (mask[:, :-1], mask[:, 1:])
        teacher, known = signal.teacher(y[:, :-1], before)
        if engine.noise:
            draws = torch.randn(teacher.shape, generator=generator, dtype=teacher.dtype)
            teacher = torch.addcmul(teacher, draws, self.jitter)
        share = self.forcing.shares(teacher.shape[1], progress, generator).to(teacher)
        first, inputs = self.start(teacher[:, 0]), None if inputs is None else inputs[:, 1:]
        run = ForcedRun(dynamics, first, teacher, known * share[:, None], inputs)
        total = signal.loss(run, y[:, 1:], after)
        self.adapt(teacher)
        penalty = self.penalty()
        return total if penalty is None else total + penalty

    def penalty(self) -> Tensor | None:
        """What is added to the error: shrinkage, and the map's own penalty; None without."""
        total, dynamics = None, self.model.dynamics
        if self.engine.shrink:
            own = self.first_state.square().sum()
            total = self.engine.shrink * (shrinkage(dynamics) + own)
        if self._penalised:
            prior = dynamics.penalty() / self.samples
            total = prior if total is None else total + prior
        return total

    def fast(self, vector: nn.Parameter) -> FastUpdates | None:
        """Many steps in one compiled call, for maps of the family and channels of one state."""
        return CompiledUpdates.of(self, vector)

    def own_updates(self, vector: nn.Parameter) -> OwnUpdates | None:
        """Gauss-Newton steps, where the engine wants them.

        Raises:
            CapabilityError: If it does and there are none for this problem.
        """
        if self.engine.optimiser is None:
            return None
        return LeastSquaresUpdates(self, vector, self.engine.optimiser)

    def project(self) -> None:
        """Keeps the orbits of clipped maps bounded, if wanted."""
        if self.engine.bounded and isinstance(self.model.dynamics, OneLayerDynamics):
            self.model.dynamics.bound_orbits()

    def _refuse_short(self) -> None:
        lead, steps = self.signal.lead, self.windows.steps
        if lead and steps <= lead + 1:
            raise DataError(
                "trials are too short for the memory of the observations",
                axis="time",
                got=f"at most {steps} steps from the first known state on",
                wanted=f"more than {lead + 1}",
                fix="use longer trials, a shorter response, or LaplaceEM",
            )

    def start(self, teacher: Tensor) -> Tensor:
        """First states [B, M] from the teacher's: the hidden part is a learned linear map."""
        if not len(self.hidden):
            return teacher
        seen = teacher[:, self.signal.seen_states]
        return teacher.index_copy(1, self.hidden, seen @ self.first_state.T)

    @torch.no_grad()
    def adapt(self, teacher: Tensor) -> None:
        """Counts an update; an adaptive forcing looks at the Jacobians now and then.

        Args:
            teacher: States of the update's windows [B, T, M].
        """
        scheme = self.engine.scheme
        if scheme.adaptive and self.steps_done % EVERY == 0:
            scheme.adapt(self.model.dynamics.jacobian(teacher), self.forcing)
        self.steps_done += 1

    def measures(self) -> dict[str, float]:
        """How close free runs are to the data (see :class:`FreeRuns`), and the forcing."""
        found = self.free.measures(self.model.dynamics, self.start)
        return found | {"alpha": self.forcing.alpha}

    def state(self) -> dict[str, float]:
        """The strength of the forcing, which follows the training."""
        return {"alpha": self.forcing.alpha, "steps_done": self.steps_done}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back the strength of the forcing."""
        self.forcing.alpha, self.steps_done = state["alpha"], int(state["steps_done"])


def _spread(states: Tensor, known: Tensor) -> Tensor:
    """Standard deviation of the forced states [M]."""
    count = known.sum((0, 1)).clamp_min(1)
    mean = states.sum((0, 1)) / count
    return (torch.where(known, states - mean, 0.0).square().sum((0, 1)) / count).sqrt()
