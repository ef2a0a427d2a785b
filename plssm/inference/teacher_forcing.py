"""Training by teacher forcing: how the field reconstructs chaotic dynamics."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from plssm.data import Dataset
from plssm.errors import PlssmError
from plssm.inference.base import Engine, Run, best_of, working_copy
from plssm.inference.checkpoint import identity
from plssm.inference.forcing import GTF, ForcingScheme, make_scheme
from plssm.inference.gauss_newton import GaussNewton, make_optimiser
from plssm.inference.parts import part_settings
from plssm.inference.smoothers import smooth
from plssm.inference.trainer import Trainer, Training
from plssm.inference.training_progress import TrainingProgress
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["TeacherForcing"]


@dataclass
class TeacherForcing(Engine):
    r"""Training by gradients along sequences that are drawn to the data.

    .. math:: \min_\theta \sum_t \| x_{t+1} - B\, F_\theta(\tilde z_t) - b \|^2, \qquad
        \tilde z_t = (1 - \alpha_t) z_t + \alpha_t \hat z_t, \quad \hat z_t = B^+ (x_t - b)

    The map is deterministic in training; afterwards process and observation noise are fitted
    with the map held, so that posteriors, forecasts and scores work as after any other engine.
    What is kept is the state whose free runs are closest to the training data.

    Args:
        seed: Seed of start values and batches.
        modality_weights: See :class:`Engine`; must be None.
        scheme: :class:`GTF`, :class:`SparseTF`, or :class:`MTF` for observations of any kind. The
            default draws strongly at first, when long free runs mean nothing yet, and weakly at
            the end, when the loss should see whether an orbit spirals outwards over many steps.
        optimiser: :class:`GaussNewton` trains maps with some hundred parameters on clean data, in
            half the time or less, with updates of its own number and size (`steps`, `batch_size`,
            `learning_rate`, `clip` and `dtype` are not asked); None is RAdam.
        steps: Number of updates.
        sequence: Steps of a training sequence that are compared with data; the memory of BOLD
            comes before them.
        batch_size: Sequences in a batch.
        learning_rate: At the start and at the end (exponential decay, RAdam).
        noise: Standard deviation of the noise added to the teacher and the first states, in units
            of the spread of the states; the targets stay clean.
        shrink: Weight of the quadratic penalty on the map's parameters.
        bounded: Whether clipped maps keep max|A| below 1, so that no orbit can escape.
        clip: Largest norm of a gradient.
        checks: How many times free runs are compared with the data.
        patience: Checks without improvement after which training ends; 0 never ends early.
        restarts: Number of trainings from different start values; the best score wins.
        workers: Processes that restarts are shared between; a script that asks for several needs
            the usual ``if __name__ == "__main__":``.
        start: ``"auto"`` draws start values for fresh dynamics and keeps known ones;
            ``"data"`` and ``"model"`` force one of the two.
        fit_noise: Whether process and observation noise are fitted after training.
        dtype: Precision of training, "float32" or "float64".
        checkpoint: File an interrupted training goes on from (one restart only); it is there
            until the training has come to its end.
        checkpoint_seconds: Seconds between two writes of it, at least; they come with checks.

    References:
        Hess et al. 2023, Generalized teacher forcing for learning chaotic dynamics,
        arXiv:2306.04406; Mikhaeil, Monfared and Durstewitz 2022, On the difficulty of learning
        chaotic dynamics with RNNs, arXiv:2110.07238.
    """

    scheme: ForcingScheme = field(default_factory=lambda: GTF(0.3, final_alpha=0.05))
    optimiser: GaussNewton | None = None
    steps: int = 300_000
    sequence: int = 75
    batch_size: int = 16
    learning_rate: tuple[float, float] = (3e-3, 1e-5)
    noise: float = 0.0
    shrink: float = 0.0
    bounded: bool = True
    clip: float = 10.0
    checks: int = 25
    patience: int = 0
    restarts: int = 1
    workers: int = 1
    start: str = "auto"
    fit_noise: bool = True
    dtype: str = "float32"
    checkpoint: str | None = None
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scheme = make_scheme(self.scheme)
        self.optimiser = make_optimiser(self.optimiser)
        self.learning_rate = tuple(self.learning_rate)
        self.training()
        for name in ("sequence", "batch_size", "restarts", "workers"):
            if getattr(self, name) < 1:
                raise PlssmError(f"TeacherForcing: {name} is {getattr(self, name)}, wanted >= 1.")
        if self.start not in ("auto", "data", "model"):
            raise PlssmError(
                f"TeacherForcing: start is {self.start!r}, wanted auto, data or model."
            )
        if self.dtype not in ("float32", "float64"):
            raise PlssmError(
                f"TeacherForcing: dtype is {self.dtype!r}, wanted float32 or float64."
            )
        if self.noise < 0 or self.shrink < 0:
            raise PlssmError("TeacherForcing: noise and shrink must not be negative.")
        if self.modality_weights is not None:
            raise PlssmError("TeacherForcing has no posterior to temper: modality_weights=None.")
        if self.optimiser is not None and not self.scheme.least_squares:
            name = type(self.scheme).__name__
            raise PlssmError(f"TeacherForcing: {name} is not least squares; set optimiser=None.")
        if self.checkpoint and self.restarts > 1:
            raise PlssmError("TeacherForcing: a checkpoint serves one restart; set restarts=1.")

    def training(self) -> Training:
        """Length and speed of the training."""
        steps = self.steps if self.optimiser is None else self.optimiser.updates
        return Training(
            steps, self.learning_rate, self.clip, self.checks, self.patience,
            self.checkpoint, self.checkpoint_seconds,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters as plain JSON-able values; scheme and optimiser tell their class."""
        optimiser = None if self.optimiser is None else part_settings(self.optimiser)
        parts = {"scheme": part_settings(self.scheme), "optimiser": optimiser}
        return super().settings() | parts

    def check(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse data that do not match and models that the scheme cannot train."""
        super().check(model, data)
        self.scheme.refuse(model)

    def infer(
        self, model: StateSpaceModel, data: Dataset, *, causal: bool = False,
        recognition: nn.Module | None = None,  # noqa: ARG002 (the model alone is asked)
    ) -> Posterior:  # fmt: skip
        """Posterior of the latent paths: Laplace smoothing, or causal filtering."""
        return smooth(model, data, method="laplace", causal=causal)

    def trainings(
        self,
        model: StateSpaceModel,
        data: Dataset,
        validation: Dataset | None,
        progress: bool | None,
    ) -> list[Run]:
        """All restarts; the best one learns its noise at the end.

        They are compared by their free runs, or by the loss where these say nothing.
        """
        with TrainingProgress(self.training().steps, self.restarts, show=progress) as bar:
            runs = self._all_restarts((model, data, validation), bar)
            if self.fit_noise:
                best = best_of(runs)
                bar.say("fitting the noise")
                self.scheme.fit_noise(
                    best.model, data, seed=self.seed, recognition=best.recognition
                )
        if self.checkpoint and not any(run.interrupted for run in runs):
            Path(self.checkpoint).unlink(missing_ok=True)
        return runs

    def _all_restarts(self, problem: tuple, bar: TrainingProgress) -> list[Run]:
        """All trainings, one after the other or in processes; Ctrl-C ends them."""
        runs = []
        if min(self.workers, self.restarts) == 1:
            for restart in range(self.restarts):
                runs.append(self._train(*problem, restart, bar))
                if runs[-1].interrupted:
                    break
            return runs
        count = min(self.workers, self.restarts)
        threads = max(torch.get_num_threads() // count, 1)
        with ProcessPoolExecutor(
            count, get_context("spawn"), torch.set_num_threads, (threads,)
        ) as pool:
            waiting = [
                pool.submit(self._train, *problem, restart) for restart in range(self.restarts)
            ]
            for done in as_completed(waiting):
                runs.append(done.result())
                bar.finish(runs[-1].restart, runs[-1].score)
        return sorted(runs, key=lambda run: run.restart)

    def _train(
        self, model: StateSpaceModel, data: Dataset, validation: Dataset | None, restart: int,
        bar: TrainingProgress | None = None,
    ) -> Run:  # fmt: skip
        """One training from its own start values."""
        dtype = getattr(torch, self.dtype if self.optimiser is None else "float64")
        seed = self.seed * 1000 + restart
        whole, batch = working_copy(model), data.batch()
        known, generator = model.dynamics.initialised, torch.Generator().manual_seed(seed)
        fresh = self.start == "data" or (self.start == "auto" and not known)
        if fresh:
            whole.dynamics.draw_start(generator)
        scheme = self.scheme.for_data(data)
        scheme.start(whole, batch)
        if fresh and self.optimiser is not None:
            self.optimiser.start(whole, batch, generator)
        copy = working_copy(whole, dtype)
        check = (data if validation is None else validation).batch().to(dtype=dtype)
        engine = replace(self, scheme=scheme)
        problem = scheme.problem(engine, copy, batch.to(dtype=dtype), check, seed=seed)
        if not list(problem.parameters()):
            return Run(restart, math.nan, whole, pd.DataFrame({"restart": [restart]}))
        told = identity(self, model, batch)
        trainer = Trainer(problem, self.training(), seed=seed, identity=told)
        report = None if bar is None else partial(bar.advance, restart)
        rows = trainer.run(report)
        rows.insert(0, "restart", restart)
        with torch.no_grad():
            for mine, theirs in zip(whole.parameters(), copy.parameters(), strict=True):
                if mine.requires_grad:
                    mine.copy_(theirs)
        return Run(
            restart, trainer.best_score, whole, rows, problem.recognition, trainer.interrupted
        )
