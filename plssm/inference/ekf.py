"""Training through a differentiable extended Kalman filter: the likelihood of its innovations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from plssm.data import Batch, Dataset
from plssm.dynamics import PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import Engine, Run, all_restarts, working_copy
from plssm.inference.checkpoint import identity
from plssm.inference.filter_form import PROPAGATIONS, check_propagation
from plssm.inference.filtered_states import STARTS
from plssm.inference.innovation_training import InnovationTraining, refuse_short
from plssm.inference.kept_dynamics import SELECT
from plssm.inference.laplace import laplace_posterior
from plssm.inference.modality_weights import temper
from plssm.inference.objectives import Innovation, Objective
from plssm.inference.parts import make_part, part_settings
from plssm.inference.rts_smoother import filter_posterior, filtered_posterior
from plssm.inference.smoothers import smooth
from plssm.inference.trainer import Trainer, Training
from plssm.inference.training_progress import TrainingProgress
from plssm.inference.variational_start import rough_path, started_model
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["EKF"]

MEASURES = ("auto", "filter", "path")


@dataclass
class EKF(Engine):
    r"""Gradients of the likelihood of one-step innovations, through an extended Kalman filter.

    .. math:: \max_\theta \sum_t \log p_\theta(y_t | y_{1:t-1}), \qquad
        m^-_t = F_\theta(m_{t-1}), \quad P^-_t = J P_{t-1} J^\top + \Sigma

    The filtered state follows the data, as a forced one does in teacher forcing, with the gain
    that model and noise ask for; covariances are carried by the map's own Jacobians (or its exact
    moments, ``propagation``), so that map, process and observation noise are learned together and
    stay consistent. Observations that are
    not Gaussian are filtered by Laplace updates of every step. Where the filter of a window does
    not settle (ReLU read-outs at their kink, log-densities that are not concave), or is thrown so
    far that rounding errors rule, the window is left out of the update; the history counts them
    as "unsettled". Where none is left, training returns to its last good state.

    Args:
        seed: Seed of start values and windows.
        modality_weights: See :class:`Engine`.
        objective: :class:`Innovation`, or :class:`OpenLoop` for comparison.
        steps: Number of updates. The first five gather the optimiser's moments and move nothing.
        window: Scored latent steps of a training window.
        warmup: Steps before them that are filtered, but not scored.
        batch_size: Windows of an update; None takes as many as have about 2000 scored steps.
        state: Where a window within a trial starts: "filtered": in the state that the filter had
            there when it last went by; "observed": where the observations before it say, under
            the read-outs and a process without dynamics that has the moments of the states;
            "encoder": where a network says that has learned from the filter to read the last 17
            steps of observations (:class:`EncoderStarts`);
            "data": anywhere (mean and covariance of all states), so that the warm-up must find it.
        learning_rate: At the start and at the end (exponential decay, RAdam).
        ridge: Precision of a zero-mean Gaussian prior on the weights of the hinges, of maps that
            are regressions.
        bounded: Whether clipped maps that are no regressions keep max|A| below 1, so that no orbit
            can escape.
        clip: Largest norm of a gradient.
        checks: How many times the likelihood of all data is measured.
        measure: The likelihood by which states and restarts are compared: "filter": the one that
            training raises; "path": Laplace's method for whole paths (as LaplaceEM has it; maps
            made of hinges, innovations only); "auto": the latter where observations are not all
            Gaussian, whose errors of single updates training can exploit. Posteriors of smoothed
            paths come by the same method.
        select: What a state must have, at a check, to be kept: "likelihood": a better likelihood
            than all before; "free_runs": noise-free runs of the map that are not worse than those
            of the start, too (divergence and spectral distance from the filtered states together
            at most 1.25 times as large, and .05); "auto": the latter where a known map is trained
            on by innovations (``start="auto"``) along recordings of 1000 steps or more without
            inputs, and its free runs do not come to rest, so that no attractor is lost.
        patience: Checks without improvement after which training ends; 0 never ends early.
        restarts: Number of trainings from different start values; the best likelihood wins.
        start: ``"auto"`` starts fresh parts from the data and keeps known ones (a fit by any other
            engine); ``"data"`` and ``"model"`` force one of the two.
        start_iterations: EM iterations that a fresh map with a closed-form M-step starts from; of
            more than 20,000 steps of Gaussian data on a stretch of 5000, followed by two on all.
        checkpoint: File an interrupted training goes on from (one restart only).
        checkpoint_seconds: Seconds between two writes of it, at least; they come with checks.
        propagation: How the filter carries a state on: "linearised" by the map's Jacobian at the
            mean; "moments" by the exact mean and covariance of the map's values, for maps that are
            one layer of hinges. Where states spread over kinks, estimates of the first are off by
            a share of their standard deviation that grows with the square root of the number of
            samples; those of the second hardly are. A gradient takes about twice as long with ten
            hinges, more with many (it treats all pairs), most of all where they are parallel.

    References:
        Herz, Pals, Durstewitz and Koppe 2026, arXiv:2605.31547.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> data = model.simulate(50, seed=0)
        >>> fit = ps.inference.EKF(steps=8, checks=2, start="model").fit(model, data)
        >>> fit.history["step"].tolist(), fit.posterior(data).evidence_kind
        ([0, 4, 8], 'ekf')
    """

    objective: Objective = field(default_factory=Innovation)
    steps: int = 2000
    window: int = 100
    warmup: int = 20
    batch_size: int | None = None
    state: str = "filtered"
    learning_rate: tuple[float, float] = (3e-3, 1e-4)
    ridge: float = 1.0
    bounded: bool = True
    clip: float = 10.0
    checks: int = 25
    measure: str = "auto"
    select: str = "auto"
    patience: int = 0
    restarts: int = 1
    start: str = "auto"
    start_iterations: int = 50
    checkpoint: str | None = None
    checkpoint_seconds: float = 20.0
    propagation: str = "linearised"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learning_rate = tuple(self.learning_rate)
        self.training()
        wanted = f"EKF: objective is {self.objective!r}, wanted Innovation() or OpenLoop()."
        self.objective = make_part(self.objective, Objective, wanted)
        known = {
            "start": ("auto", "data", "model"), "state": STARTS, "select": SELECT,
            "measure": MEASURES, "propagation": PROPAGATIONS,
        }  # fmt: skip
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise PlssmError(
                    f"EKF: {name} is {getattr(self, name)!r}, wanted one of {choices}."
                )
        for name, least in (("window", 1), ("restarts", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise PlssmError(f"EKF: {name} is {getattr(self, name)}, wanted >= {least}.")
        if not self.ridge >= 0:
            raise PlssmError(f"EKF: ridge is {self.ridge}, wanted >= 0.")
        if self.checkpoint and self.restarts > 1:
            raise PlssmError("EKF: a checkpoint serves one restart.")

    def training(self) -> Training:
        """Length and speed of the training."""
        return Training(
            self.steps, self.learning_rate, self.clip, self.checks, self.patience,
            self.checkpoint, self.checkpoint_seconds, raw_start=False,
        )  # fmt: skip

    def by_path(self, model: StateSpaceModel) -> bool:
        """Whether states are compared by Laplace's method for whole paths (``measure``)."""
        quadratic = all(o.quadratic for o in model.observations.values())
        wanted = self.measure == "path" or (self.measure == "auto" and not quadratic)
        closed = self.objective.steps(self.window, self.warmup).closed
        return wanted and closed and isinstance(model.dynamics, PiecewiseLinear)

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters as plain JSON-able values; the objective tells its class."""
        return super().settings() | {"objective": part_settings(self.objective)}

    def check(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse data that do not match and models that the objective is not defined for."""
        super().check(model, data)
        self.objective.refuse(model, data)
        check_propagation("EKF", model, self.propagation)
        remembers = any(o.memory(data.dt) for o in model.observations.values())
        if remembers and not isinstance(model.dynamics, PiecewiseLinear):
            raise CapabilityError(
                "EKF: observations with memory (BOLD) need piecewise-linear dynamics, "
                f"{type(model.dynamics).__name__} is not; derive it from PiecewiseLinear."
            )

    def check_training(self, model: StateSpaceModel, data: Dataset) -> None:
        """As :meth:`check`, and refuse trials that are too short for the objective."""
        super().check_training(model, data)
        refuse_short(self.objective.steps(self.window, self.warmup), data.lengths)

    def infer(self, model: StateSpaceModel, data: Dataset, *, causal: bool = False) -> Posterior:
        """Posterior of the latent paths: extended Kalman smoothing, or filtering.

        Its evidence is that of the filter, which training maximises. Where training compares
        states by whole paths (``measure``), these are inferred by Laplace's method; so they are
        where observations with memory (BOLD) meet matched moments.
        """
        self.check(model, data)
        matched = self.propagation == "moments"
        memory = any(o.memory(data.dt) for o in model.observations.values())
        if not causal and (self.by_path(model) or (matched and memory)):
            found = laplace_posterior(working_copy(model), data.batch())
            if not found.failed:
                return found.posterior
        if matched:
            method = {} if causal else {"method": "ekf"}
            return smooth(model, data, causal=causal, propagation="moments", **method)
        if causal and isinstance(model.dynamics, PiecewiseLinear):
            return smooth(model, data, causal=True)
        infer = filtered_posterior if causal else filter_posterior
        return infer(working_copy(model), data.batch())

    def trainings(
        self,
        model: StateSpaceModel,
        data: Dataset,
        validation: Dataset | None,
        progress: bool | None,
    ) -> list[Run]:
        """All restarts; they are compared as states are (``measure``)."""
        whole = working_copy(model)
        temper(whole, data, self.modality_weights)
        check = None if validation is None else validation.batch()
        told = identity(self, model, data.batch())
        with TrainingProgress(self.steps, self.restarts, show=progress) as bar:
            runs = all_restarts(
                "EKF", self.restarts,
                lambda restart: self._run(whole, data, check, restart, told, bar),
            )  # fmt: skip
        if self.checkpoint and not runs[-1].interrupted:
            Path(self.checkpoint).unlink(missing_ok=True)
        return runs

    def _run(
        self, whole: StateSpaceModel, data: Dataset, check: Batch | None, restart: int, told: str,
        bar: TrainingProgress,
    ) -> Run:  # fmt: skip
        """One restart."""
        seed, batch = self.seed * 1000 + restart, data.batch()
        begun = started_model(
            whole, data, start=self.start, seed=seed, iterations=self.start_iterations
        )
        known = self.start == "auto" and whole.dynamics.initialised
        problem = InnovationTraining(
            self, begun, batch, batch if check is None else check, rough_path(begun, data),
            known=known,
        )  # fmt: skip
        if not list(problem.parameters()):
            return Run(restart, math.nan, begun, pd.DataFrame({"restart": [restart]}))
        trainer = Trainer(problem, self.training(), seed=seed, identity=told)
        rows = trainer.run(partial(bar.advance, restart))
        rows.insert(0, "restart", restart)
        return Run(restart, trainer.best_score, begun, rows, None, trainer.interrupted)
