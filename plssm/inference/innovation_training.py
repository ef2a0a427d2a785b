"""What training through a filter changes and measures: the objective of random windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.dynamics import OneLayerDynamics
from plssm.errors import DataError
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.filter_form import filter_form
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.innovations import GIVEN_UP, innovations
from plssm.inference.kept_dynamics import KeptDynamics
from plssm.inference.laplace import laplace_posterior
from plssm.inference.model_coordinates import ModelCoordinates
from plssm.inference.objectives import WindowSteps
from plssm.inference.trainer import Problem
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from plssm.inference.ekf import EKF

__all__ = ["InnovationTraining", "refuse_short"]

STEPS = 2000  # scored latent steps of an update, about
CHECKED = 100  # windows on which an open-loop objective is measured


class InnovationTraining(Problem):
    """The objective per scored step.

    Args:
        engine: The settings.
        model: A working copy in float64; changed in place.
        batch: Training trials.
        check: Trials on which the objective is measured.
        path: A rough path [B, T, M], of which the units of the regressions come.
        known: Whether the map is known and trained on.
    """

    def __init__(
        self, engine: EKF, model: StateSpaceModel, batch: Batch, check: Batch, path: Tensor, *,
        known: bool = False,
    ) -> None:  # fmt: skip
        self.engine, self.model = engine, model
        self.objective = engine.objective
        history = max(_history(o, batch.dt) for o in model.observations.values())
        self.part = self.objective.steps(engine.window, max(engine.warmup, history))
        self.coordinates = ModelCoordinates(model, batch, path)
        self.head = self.objective.head(model)
        how = {"propagation": engine.propagation}
        self.states = FilteredStates(model, batch, start=engine.state, **how)
        same = check is batch
        start = "filtered" if self.part.closed else engine.state  # whole trials are checked
        self.checked = self.states if same else FilteredStates(model, check, start=start, **how)
        self.windows = _Windows(batch, self.part)
        self.check_windows = self.windows if same else _Windows(check, self.part)
        self.count = engine.batch_size or max(STEPS // min(self.part.scored, batch.steps), 1)
        self.total = int(batch.length.sum())
        known = known and self.part.closed
        self.kept = KeptDynamics(model, check, known=known, select=engine.select)
        self.by_path = engine.by_path(model)
        self.unsettled = 0
        self._penalised = bool(model.dynamics.penalty().requires_grad)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The model's free parameters, and the head of the objective where it has one."""
        head = [] if self.head is None else [self.head]
        return [p for p in [*self.coordinates.parameters(), *head] if p.numel()]

    def loss(self, progress: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Minus the objective of random windows, per scored step."""
        window = self.windows.draw(self.count, generator)
        model = self.coordinates.moving()
        loss = -self._value(model, window, self.states, generator, keep=True)
        if self.engine.ridge:
            loss = loss + self.engine.ridge * self.coordinates.ridge() / self.total
        if self._penalised:
            loss = loss + model.dynamics.penalty() / self.total
        return loss

    def _value(
        self, model: StateSpaceModel, window: BatchWindow, states: FilteredStates,
        generator: torch.Generator, *, keep: bool = False,
    ) -> Tensor:  # fmt: skip
        """The mean objective of the scored steps of windows that have settled."""
        joined = states.joined
        form = filter_form(model, window.batch, joined, propagation=self.engine.propagation)
        steps = window.batch.steps
        form = form.started(*states.first(window))
        updates = None
        if not self.part.closed:
            updates = torch.arange(steps) < self.part.before
        found = innovations(
            model, window.batch, joined, form, point=states.points(window), updates=updates
        )
        if keep:
            place = torch.arange(steps).expand_as(window.weight)
            inner = window.weight > 0
            open_loop = (place >= self.part.before // 2) & (place < self.part.before) & ~inner
            states.keep(window, found, inner if self.part.closed else open_loop)
        each = self.objective.value(found, model, self.head, window.batch, joined, generator)
        settled = found.moved <= GIVEN_UP
        weight = window.weight * settled[:, None]
        each = torch.where(weight > 0, each, 0.0)
        self.unsettled += int((~settled).sum())
        if not bool(found.moved.isfinite().any()):  # there is nothing to learn from
            return (each * math.nan).sum()
        return (each * weight).sum() / weight.sum().clamp_min(1.0)

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """The log-likelihood of the filter per step, what else is measured, and free runs.

        The score is infinite where free runs are worse than those of the start.
        """
        found = self.checked.refresh(self.model)
        if self.checked is not self.states:
            self.states.refresh(self.model)
        value = float(found.increment.sum()) / int(self.checked.batch.length.sum())
        value = value if bool(found.settled.all()) else math.nan
        measures = {"score": -value, "log_likelihood": value}
        measures["unsettled"] = self.unsettled
        if self.by_path:
            measures["path_evidence"] = self._path_evidence()
            measures["score"] = -measures["path_evidence"]
        if not self.part.closed:
            generator = torch.Generator().manual_seed(0)
            window = self.check_windows.draw(CHECKED, generator)
            own = self._value(self.model, window, self.checked, generator)
            measures["objective"] = float(own)
            measures["score"] = -measures["objective"]
        if self.head is not None:
            measures["spread"] = float(self.head.exp().mean())
        free = self.kept.measures(self.model, self.checked)
        measures |= free
        self.unsettled = 0
        good = math.isfinite(measures["score"]) and free.get("kept", True)
        return measures | {"score": measures["score"] if good else math.inf}

    def _path_evidence(self) -> float:
        """Log evidence per step by Laplace's method for whole paths, from the filtered ones."""
        batch, point = self.checked.batch, self.checked.point[..., : self.model.dim]
        start = np.ascontiguousarray(torch.nan_to_num(point).numpy())
        found = laplace_posterior(self.model, batch, start=start).posterior.log_evidence
        return float(found.sum()) / int(batch.length.sum())

    def went_back(self) -> None:
        """The filtered states are those of parameters that are gone."""
        with torch.no_grad():
            self.states.refresh(self.model)

    def state(self) -> dict[str, float | Tensor]:
        """The filtered states that windows start in, and what free runs are compared with."""
        held = {f"train.{k}": v for k, v in self.states.state().items()}
        held |= {f"kept.{k}": v for k, v in self.kept.state().items()}
        held |= {f"check.{k}": v for k, v in self.checked.state().items()}
        return held | {"unsettled": float(self.unsettled)}

    def restore(self, state: dict[str, float | Tensor]) -> None:
        """Takes back what `state` returned."""
        self.unsettled = int(state["unsettled"])
        parts = ((self.states, "train."), (self.checked, "check."), (self.kept, "kept."))
        for part, name in parts:
            part.restore({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})

    def project(self) -> None:
        """Writes the coordinates into the model, and keeps orbits of clipped maps bounded."""
        self.coordinates.write()
        dynamics = self.model.dynamics
        if self.engine.bounded and isinstance(dynamics, OneLayerDynamics):
            if "dynamics" not in self.coordinates.parts:
                dynamics.bound_orbits()


def _history(observation: ObservationModel, dt: float) -> int:
    """Earlier samples of its own that a sample depends on."""
    history = getattr(observation, "history", None)
    return 0 if history is None else history.lags(dt)


def refuse_short(part: WindowSteps, lengths: Sequence[int] | Tensor) -> None:
    """Refuse trials of which none has room for a window of an open loop.

    Raises:
        DataError: With what is too long.
    """
    longest = max(int(n) for n in lengths)
    if not part.closed and longest < part.before + part.scored:
        raise DataError(
            "no trial (of the training or the validation data) is long enough for the objective",
            got=f"trials of up to {longest} steps",
            wanted=f"at least {part.before + part.scored}",
            fix="a shorter horizon, or a shorter warmup",
        )


class _Windows:
    """Windows of training: steps that find the state, and scored ones."""

    def __init__(self, batch: Batch, part: WindowSteps) -> None:
        self.part, self.batch = part, batch
        self.windows = BatchWindows(batch, steps=part.scored, context=part.before, after=0)
        if part.closed:
            return
        refuse_short(part, batch.length)
        self.places = (batch.length - part.before - part.scored + 1).clamp_min(0)

    def draw(self, count: int, generator: torch.Generator) -> BatchWindow:
        """Draws windows; those of an open loop are whole."""
        if self.part.closed:
            return self.windows.draw(count, generator)
        end = self.places.cumsum(0)
        place = torch.randint(int(end[-1]), (count,), generator=generator)
        row = torch.searchsorted(end, place, right=True)
        return self.windows.cut(row, place - (end - self.places)[row] + self.part.before)
