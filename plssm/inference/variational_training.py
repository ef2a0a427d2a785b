"""What variational inference trains: the bound of random windows, and of fixed ones as measure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.closed_bound import expected_log_joint, is_closed
from plssm.inference.model_coordinates import ModelCoordinates
from plssm.inference.path_bound import PathBound, PathGuide
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.pyro_bridge import PyroModel
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import refresh_chain, refresh_typical
from plssm.inference.trainer import Problem
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from plssm.inference.variational import VariationalInference

__all__ = ["PathTraining", "window_steps"]

CHECKED = 20_000  # latent steps, about, of the windows on which the bound is measured
TWICE = 2  # passes over the data that these windows make at most
STEPS = 1000  # latent steps of an update, about
EXTRA = 20  # steps of context beside those that a network or an observation reaches


class PathTraining(Problem):
    """The evidence lower bound per latent step.

    Args:
        engine: The settings.
        model: A working copy in the precision of the training; changed in place.
        recognition: The recognition model in that precision; changed in place.
        batch: Training trials in that precision.
        check: Trials on which the bound is measured.
        learn_model: Whether the model's free parameters are learned beside the recognition.
    """

    def __init__(
        self, engine: VariationalInference, model: StateSpaceModel, recognition: Recognition,
        batch: Batch, check: Batch, *, learn_model: bool = True, path: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.model, self.recognition = engine, model, recognition
        self.learn_model = learn_model
        self.bound = PathBound(engine.bound)
        noise = engine.process_noise
        if noise is not None and path is not None:  # between the two, where it falls
            noise = path.new_full((model.dim,), (noise[0] * noise[1]) ** 0.5)
        self.coordinates = ModelCoordinates(model, batch, path if learn_model else None, noise)
        steps, context = window_steps(engine, model, recognition, batch)
        self.windows = BatchWindows(batch, steps=steps, context=context)
        self.count = engine.batch_size or max(STEPS // min(steps, batch.steps), 1)
        self.total = int(batch.length.sum())
        single = recognition.experts == "product"
        self.closed = engine.bound == "elbo" and single and is_closed(model, batch.dt)
        self._fixed = self._fixed_windows(check, steps, context, check is batch)
        self._held: StateSpaceModel | None = None
        self.progress = 0.0
        self._falling = engine.noise_falls and learn_model
        if engine.process_noise is not None and learn_model:
            model.dynamics.noise.requires_grad_(False)
            self._hold_noise(0.0)
        self._penalised = bool(model.dynamics.penalty().requires_grad)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The model's free parameters and the recognition model's."""
        mine = self.coordinates.parameters() if self.learn_model else []
        return [p for p in [*mine, *self.recognition.parameters()] if p.numel()]

    def loss(self, progress: float, generator: torch.Generator) -> Tensor:
        """Minus the bound of random windows, per latent step."""
        engine = self.engine
        self._hold_noise(progress)
        window = self.windows.draw(self.count, generator)
        if engine.drop and self.learn_model and len(self.model.observations) > 1:
            window = self._without_some(window, generator)
        warm = progress >= engine.warmup
        model = self.coordinates.moving() if warm else self._held_model()
        annealed = progress < engine.anneal
        beta = max(progress / engine.anneal, 0.01) if annealed else 1.0
        each = self.values(model, window, engine.samples, generator, beta)
        loss = -each.sum() * (self.windows.scale(len(window.batch)) / self.total)
        return loss + self._penalty(model)

    def _penalty(self, model: StateSpaceModel) -> Tensor | float:
        """The map's own penalty and the ridge on the weights of its hinges, per latent step."""
        total = 0.0
        if self._penalised and self.learn_model:
            total = total + model.dynamics.penalty() / self.total
        if self.engine.ridge:
            ridge = self.coordinates.ridge(held=model is self._held)
            total = total + self.engine.ridge * ridge / self.total
        return total

    def values(
        self, model: StateSpaceModel, window: BatchWindow, samples: int,
        generator: torch.Generator, beta: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """The bound of the inner steps of each window [B], in nats."""
        if self.closed and beta == 1.0:
            return self._closed(model, window)
        guide = PathGuide(self.recognition, model, samples=samples, generator=generator)
        return self.bound.bound(
            PyroModel(model, tempered=True), guide, window.batch, weight=window.weight,
            start=window.start, row=window.row, beta=beta,
        )  # fmt: skip

    def _closed(self, model: StateSpaceModel, window: BatchWindow) -> Tensor:
        terms = self.recognition(model, window.batch, window.start, window.row)
        path, weight = GaussianPath(*terms), window.weight
        moments = path.mean, path.covariance(), path.cross_covariance()
        expected = expected_log_joint(model, window.batch, *moments, weight)
        return expected + (path.entropy_terms() * weight).sum(-1)

    def _hold_noise(self, progress: float) -> None:
        """Sets the process noise to what it is held at, where it is."""
        self.progress = progress
        if self.engine.process_noise is not None and self.learn_model:
            first, last = self.engine.process_noise
            self.model.dynamics.noise.variance = first * (last / first) ** progress

    def project(self) -> None:
        """Writes the coordinates into the model."""
        self.coordinates.write()

    def state(self) -> dict[str, float]:
        """How far the noise has fallen."""
        return {"progress": self.progress}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back what `state` returned."""
        self._hold_noise(state["progress"])

    def _held_model(self) -> StateSpaceModel:
        """The model as it is, without gradients; follows the parameters."""
        if self._held is None:
            known = {id(p): p.detach() for p in self.model.parameters()}
            self._held = copy.deepcopy(self.model, known)
        return self._held

    def _without_some(self, window: BatchWindow, generator: torch.Generator) -> BatchWindow:
        """Hides modalities of some windows at random, from encoder and likelihood alike."""
        modalities, count = window.batch.modalities, len(window.batch)
        hidden = torch.rand(len(modalities), count, generator=generator) < self.engine.drop
        hidden[:, hidden.all(0)] = False
        shown = {
            name: replace(m, mask=m.mask & ~gone[:, None, None])
            for (name, m), gone in zip(modalities.items(), hidden, strict=True)
        }
        return window._replace(batch=replace(window.batch, modalities=shown))

    def _fixed_windows(
        self, check: Batch, steps: int, context: int, same: bool
    ) -> tuple[BatchWindow, float]:
        windows = self.windows if same else BatchWindows(check, steps=steps, context=context)
        wanted = min(CHECKED, TWICE * int(check.length.sum()))
        count = max(wanted // min(steps, check.steps), 1)
        drawn = windows.draw(count, torch.Generator().manual_seed(0))
        return drawn, windows.scale(len(drawn.batch)) / int(check.length.sum())

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """The bound per latent step on fixed windows, with the same draws at every check."""
        window, scale = self._fixed
        self._refresh(window)
        generator = torch.Generator().manual_seed(0)
        samples = 1 if self.engine.bound == "elbo" else self.engine.samples
        each = self.values(self.model, window, samples, generator)
        value = float(each.sum()) * scale
        score = -self.progress if self._falling else -value  # other noise, other bounds
        return {"score": score if value == value else float("inf"), "elbo": value}

    def _refresh(self, window: BatchWindow) -> None:
        """Keeps the first guess of path and first state near the model that has changed since."""
        guide, batch = self.recognition, window.batch
        if not self.learn_model:
            return
        evidence = guide.evidence(self.model, batch, window.row)
        path = guide.point(self.model, batch, evidence, window.start)
        if guide.chain == "learned":  # it is trained itself
            refresh_typical(guide, self.model, path[batch.time_mask])
            return
        refresh_chain(guide, self.model, batch.inputs, path, batch.time_mask)


def window_steps(
    engine: VariationalInference, model: StateSpaceModel, recognition: Recognition, batch: Batch
) -> tuple[int, int]:
    """Inner steps and context of a window; whole trials where they are not much longer."""
    network = getattr(recognition.encoder, "reach", None)
    whole = engine.bound == "importance" or recognition.experts == "mixture"
    if network is None or whole or batch.steps <= 1.5 * engine.window:
        return batch.steps, 0
    past = max(_past(o, batch.dt) for o in model.observations.values())
    return engine.window, max(network, past) + EXTRA


def _past(observation: ObservationModel, dt: float) -> int:
    """Earlier steps that a sample depends on, by its states or by its own history."""
    history = getattr(observation, "history", None)
    return max(observation.memory(dt), 0 if history is None else history.lags(dt))
