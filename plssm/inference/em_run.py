"""One start of EM: a model on its way through the stages."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from plssm.data import Batch
from plssm.dynamics.linear import LinearDynamics
from plssm.errors import PlssmError
from plssm.inference.acceleration import Acceleration, Maximised, acceleration_of
from plssm.inference.batch_windows import BatchWindow
from plssm.inference.denoised_path import denoised_path
from plssm.inference.em_history import history, row_of
from plssm.inference.em_parameters import EMParameters
from plssm.inference.frames import best_frames
from plssm.inference.free_selection import FREE_SCORE, FreeSelection
from plssm.inference.hinge_placement import lifted
from plssm.inference.laplace import LaplaceResult, laplace_posterior
from plssm.inference.m_step import (
    hold_process_noise,
    moments_for,
    pool_trial_means,
    ridge_penalty,
    update_coefficients,
    update_initial,
    update_observations,
    update_process_noise,
)
from plssm.inference.mean_correction import mean_corrected
from plssm.inference.progress import EMProgress
from plssm.inference.stages import Stage
from plssm.inference.start_map import known_path, start_dynamics
from plssm.inference.start_search import LONG, best_start, searched_part, too_short
from plssm.inference.starts import (
    StartPath,
    first_state,
    linear_model,
    state_dim,
    turn,
)
from plssm.inference.statistics import transition_statistics
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from plssm.inference.laplace_em import LaplaceEM

__all__ = ["EMRun"]

PATIENCE = 3  # iterations without gain that end a stage
SLACK = 1e-10  # nats per observed value by which rounding may lower the evidence
E_STEP = 1e-6  # gain of a Newton step, relative to the log joint, that ends an E-step
BREAKDOWNS = (np.linalg.LinAlgError, torch.linalg.LinAlgError, ValueError, PlssmError)
NEARBY = ((-1, 1), (-1,))  # neighbours in time by which the data are cleaned of noise
HALVINGS = 4  # shorter steps that are tried where an EM step lowers the Laplace evidence


class EMRun:
    """One start of the engine: a model on its way through the stages.

    Args:
        engine: The settings.
        model: A working copy; changed in place.
        batch: The training trials, float64.
        restart: Number of this start.
        bar: The progress bar.

    Attributes:
        model: The model; in the end with the parameters of the best evidence of the last stage,
            or of its best free runs where the engine selects by them.
        evidence: Their evidence in nats.
        selection: What compares free runs; None where the evidence decides.
    """

    def __init__(
        self, engine: LaplaceEM, model: StateSpaceModel, batch: Batch, restart: int,
        bar: EMProgress,
    ) -> None:  # fmt: skip
        self.engine, self.model, self.batch = engine, model, batch
        self.restart, self.bar = restart, bar
        self.path: np.ndarray | None = None
        self.trial_means: np.ndarray | None = None
        self.evidence = -np.inf
        self.quiet, self.number = False, 0
        self.best: dict | None = None
        self.good: dict | None = None
        self.selection: FreeSelection | None = None
        self.rows: list[dict] = []
        self.values = sum(int(m.mask.sum()) for m in batch.modalities.values())

    def table(self) -> pd.DataFrame:
        """One row per E-step so far."""
        return history(self.rows, self.selection)

    def go(self) -> None:
        """Start what is fresh and run all stages."""
        stages, initial = self.engine.stages_for(self.model), self.model.dynamics.initial
        if self.engine.select == "free_runs":
            driven = self.model.dynamics.n_inputs > 0 and self.batch.inputs is not None
            self.selection = FreeSelection(self.batch, driven=driven)
        if initial.kind == "tied":
            self.trial_means = np.tile(initial.mean.detach().numpy(), (len(self.batch.length), 1))
        begins = self.engine.begins_on_part(self.model)
        part = searched_part(self.batch, beyond=LONG) if begins else None
        if part is not None and self._begin_on(part):
            stages = stages[-1:]
        else:
            first = stages[0] if stages and stages[0].dynamics == "linear" else None
            self._start(first and self._linear_state(first))
        for number, stage in enumerate(stages):
            if stage.dynamics == "model" and not self._stage(stage, number):
                break
        self._choose()
        if self.trial_means is not None:
            pool_trial_means(self.model.dynamics, self.trial_means)

    # -- start ---------------------------------------------------------------------------------
    def _fresh_observations(self) -> dict[str, ObservationModel]:
        return {n: o for n, o in self.model.observations.items() if self.engine.starts_fresh(o)}

    def _start(self, state: StartPath | None) -> None:
        """Start what is fresh from a path: the lifted linear state, or what is observed."""
        model, batch = self.model, self.batch
        fresh = self._fresh_observations()
        new_map = self.engine.starts_fresh(model.dynamics)
        if not new_map and not fresh:
            return
        seed = self.engine.seed * 1000 + self.restart
        if len(fresh) < len(model.observations):
            means = self.trial_means
            path = known_path(model, batch, fresh, known_map=not new_map, trial_means=means)
        elif isinstance(model.dynamics, LinearDynamics):
            path = turn(first_state(model, batch, model.dim), seed=seed)
        else:
            state = first_state(model, batch, state_dim(model)) if state is None else state
            if self.engine.searches(model) and self._search(state, seed):
                return
            path = lifted(state, batch.time_mask.numpy(), model.dim, seed=seed)
        self._adopt(path)

    def _adopt(self, path: StartPath) -> None:
        """Parameters of what is fresh from a path."""
        for name, observation in self._fresh_observations().items():
            modality = self.batch.modalities[name]
            observation.init_from(modality, torch.from_numpy(path.mean))
            observation.m_step(modality, *moments_for(observation, path, self.batch))
        if self.engine.starts_fresh(self.model.dynamics):
            self.path = path.mean
            self.trial_means = start_dynamics(
                self.model, self.batch, path, ridge=self.engine.ridge
            )

    # -- long data, and search -----------------------------------------------------------------
    def _begin_on(self, part: BatchWindow) -> bool:
        """All stages on a part of long data; False where they gave nothing to go on from."""
        first = self._like(part.batch, None)
        try:
            with contextlib.suppress(*BREAKDOWNS):
                first.go()
        finally:
            known = first.recover()
            if known:
                self._follow(first, whole=False)
        return known

    def _like(self, batch: Batch, means: np.ndarray | None) -> EMRun:
        """A quiet run from a copy of the model as it is."""
        run = EMRun(self.engine, copy.deepcopy(self.model), batch, self.restart, self.bar)
        run.trial_means = None if means is None else means.copy()
        run.quiet = True
        return run

    def _search(self, state: StartPath, seed: int) -> bool:
        """Go on from the best of many starts; False where none could be had, or asked for."""
        model, rng = self.model, np.random.default_rng(seed)
        part, batch, means = searched_part(self.batch), self.batch, self.trial_means
        quick = all(o.quadratic for o in model.observations.values())
        if too_short(batch, model.dim) or not (quick or part is None):
            return False
        options = {"candidates": self.engine.candidates, "rng": rng}
        if part is not None:
            batch, state = part.batch, state.within(part)
            means = None if means is None else means[part.row.numpy()]

        made: list[EMRun] = []

        def entrants(path: StartPath, count: int) -> Iterator[EMRun]:
            with contextlib.suppress(*BREAKDOWNS):
                for frame in best_frames(path, batch, model.dynamics, count=count, **options):
                    made.append(self._contender(frame, batch, means))
                    yield made[-1]

        paths = [state, *(denoised_path(model, batch, model.dim, neighbours=n) for n in NEARBY)]
        plain = None
        if not quick:
            with contextlib.suppress(*BREAKDOWNS):
                path = lifted(state, batch.time_mask.numpy(), model.dim, seed=seed)
                made.append(plain := self._contender(path, batch, means))
        try:
            best = best_start(paths, entrants, plain=plain, steps=int(batch.length.sum()))
        except KeyboardInterrupt:
            if good := [run for run in made if run.recover()]:
                self._follow(max(good, key=lambda run: run.evidence), whole=part is None)
            raise
        if best is not None:
            self._follow(best, whole=part is None)
        return best is not None

    def _follow(self, best: EMRun, *, whole: bool) -> None:
        """Go on from another run, of all the data or of a part of them."""
        self.model.load_state_dict(best.model.state_dict())
        if whole:
            self.path, self.trial_means, self.evidence = best.path, best.trial_means, best.evidence
            self.rows += best.rows
        elif self.trial_means is not None:
            self.trial_means[:] = best.trial_means.mean(0)
            pool_trial_means(self.model.dynamics, best.trial_means)
        here = {"parameters": self._parameters(), "path": self.path}
        self.best = self.good = here | {"evidence": self.evidence, "objective": self.evidence}

    def _contender(self, path: StartPath, batch: Batch, means: np.ndarray | None) -> EMRun:
        """A start of its own from a path."""
        run = self._like(batch, means)
        with contextlib.suppress(*BREAKDOWNS):
            run._adopt(path)
        return run

    def advance(self, iterations: int) -> None:
        """EM iterations with all parameters free; the evidence stays -inf where they fail."""
        try:
            self._iterate(Stage("search", iterations, accelerated=True))
        except BREAKDOWNS:
            if self.good is not None:
                self._restore(self.good)

    def smoothed(self) -> StartPath:
        """The posterior of the path under the present parameters."""
        return StartPath.of(self._e_step().posterior, self.model, self.batch)

    def _linear_state(self, stage: Stage) -> StartPath | None:
        """Smoothed state of a linear stand-in, fitted for one stage; None where that failed."""
        run = EMRun(self.engine, linear_model(self.model), self.batch, self.restart, self.bar)
        run._start(None)
        state = None
        if run._iterate(stage):
            state = StartPath.of(run._e_step().posterior, run.model, run.batch)
        self.rows += run.rows
        return state

    # -- stages --------------------------------------------------------------------------------
    def _stage(self, stage: Stage, number: int) -> bool:
        """Run one stage; False when the fit should end with the last good state."""
        self.number = number
        if "dynamics" not in stage.learn:  # the map is what free runs choose
            self._choose()
        if stage.begin == "best" and self.best is not None:
            self._restore(self.best)
        if stage.process_noise is not None:
            hold_process_noise(self.model.dynamics, stage.process_noise)
        goes_on = self._iterate(stage)
        self._compare(stage, self.good)  # where it ended
        return goes_on

    def _e_step(self, *, guarded: bool = False) -> LaplaceResult | None:
        """The posterior; where guarded, None for parameters that make no sense."""
        try:
            return laplace_posterior(
                self.model, self.batch, start=self.path, trial_means=self.trial_means,
                max_solves=self.engine.max_solves, tolerance=E_STEP,
            )  # fmt: skip
        except BREAKDOWNS:
            if not guarded:
                raise
            return None

    def _iterate(self, stage: Stage) -> bool:
        """EM of one stage; a step that lowers the penalised evidence is halved."""
        good, idle, iteration, halved = None, 0, 0, 0
        if self.evidence > -np.inf and stage.accelerated:
            self._renew_path()
        self.good, plain = None, None
        further, began = acceleration_of(stage, self.values), time.perf_counter()
        while True:
            result = self._e_step(guarded=plain is not None)
            objective = self._objective(result)
            if plain is not None and not objective >= good["objective"]:
                self._set(plain)
                self.path, plain = good["path"], further.forget()
                continue
            if result.failed:
                return self._keep(good, stage, f"the E-step ended {set(result.status)}")
            if good is not None and objective < good["objective"] - SLACK * self.values:
                if halved == HALVINGS:
                    break
                halved += 1
                self._go_halfway_back(good)
                further.forget()
                continue
            gained = np.inf if good is None else objective - good["objective"]
            idle = idle + 1 if gained < self.engine.tolerance * self.values else 0
            further.gained(gained)
            good = self._snapshot(objective, result)
            self.good, halved = good, 0
            self._record(stage, iteration, result, began)
            if FreeSelection.is_due(iteration, stage.iterations):
                self._compare(stage, good)
            if iteration == stage.iterations or idle >= PATIENCE:
                break
            iteration, began = iteration + 1, time.perf_counter()
            self.path = result.path
            try:
                plain = self._move_on(further, self._m_step(stage, result))
            except (np.linalg.LinAlgError, torch.linalg.LinAlgError, ValueError) as error:
                return self._keep(good, stage, f"the M-step failed ({error})")
        self._restore(good)
        if self.best is None or good["evidence"] > self.best["evidence"]:
            self.best = good
        return True

    def _compare(self, stage: Stage, good: dict | None) -> None:
        """Compare free runs of the last good state, which the model has now, once."""
        off = self.selection is None or "dynamics" not in stage.learn
        if off or good is None or FREE_SCORE in self.rows[-1]:
            return
        self.selection.consider(self.model.dynamics, good, self.rows[-1], self.number)

    def _choose(self) -> None:
        """Take the state with the best free runs, where there is one, for good."""
        if self.selection is not None and self.selection.state is not None:
            self._restore(self.selection.state)
            self.selection.state = None

    def _objective(self, result: LaplaceResult | None) -> float:
        """The penalised evidence; -inf where the E-step failed."""
        return -np.inf if result is None or result.failed else result.evidence - self._penalty()

    def _renew_path(self) -> None:
        """Take a path that is found anew where it is better.

        A search from the last path can stay at a mode that is no longer the best: EM believes it.
        """
        last, found = self.path, self._e_step(guarded=True)
        self.path = None
        anew = self._e_step(guarded=True)
        self.path = anew.path if self._objective(anew) > self._objective(found) else last

    def _move_on(self, further: Acceleration, made: Maximised) -> EMParameters | None:
        """Move on from the M-step's parameters; these, or None where nothing was moved."""
        plain = self._parameters()
        moved = further.after(self.model, plain, made, self.batch)
        if moved is None:
            return None
        self._set(moved.parameters)
        if moved.shift is not None:
            self.path = self.path + moved.shift
        return plain

    def _go_halfway_back(self, good: dict) -> None:
        """Parameters half-way between where they are and the last good ones."""
        here = self._parameters()
        self._set(here.at(0.5 * (here.vector() + good["parameters"].vector())))

    def _parameters(self) -> EMParameters:
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        return EMParameters(state, None if self.trial_means is None else self.trial_means.copy())

    def _set(self, parameters: EMParameters) -> None:
        self.model.load_state_dict(parameters.state)
        self.trial_means = parameters.trial_means

    def _m_step(self, stage: Stage, result: LaplaceResult) -> Maximised:
        dynamics, floor, equations = self.model.dynamics, self.engine.floor, None
        posterior = mean_corrected(self.model, self.batch, result)
        if {"dynamics", "process_noise"} & set(stage.learn):
            exact = self.engine.moments == "exact"
            statistics = transition_statistics(
                dynamics, posterior, self.batch, result.slope, exact=exact
            )
        if "dynamics" in stage.learn:
            equations = update_coefficients(
                dynamics, statistics, posterior, self.batch, self.trial_means,
                ridge=self.engine.ridge,
            )  # fmt: skip
        if "initial" in stage.learn:
            self.trial_means = update_initial(dynamics, posterior, self.batch, floor)
        if "process_noise" in stage.learn and stage.process_noise is None:
            update_process_noise(
                dynamics, statistics, posterior, self.batch, self.trial_means, floor
            )
        if "observations" in stage.learn:
            update_observations(self.model, posterior, self.batch)
        return Maximised(self.good["parameters"], posterior, result.slope, equations)

    def _penalty(self) -> float:
        dynamics = self.model.dynamics
        own = float(dynamics.penalty().detach())
        return own + ridge_penalty(dynamics, self.engine.ridge)

    # -- the last good state -------------------------------------------------------------------
    def _snapshot(self, objective: float, result: LaplaceResult) -> dict:
        return {
            "parameters": self._parameters(),
            "objective": objective,
            "evidence": result.evidence,
            "path": result.path,
            "mean": result.posterior.mean,
        }

    def recover(self) -> bool:
        """After an interruption, return to the best parameters so far; whether there are any."""
        states = [s for s in (self.best, self.good) if s is not None]
        if states:
            self._restore(max(states, key=lambda s: s["evidence"]))
            self._choose()
        return bool(states)

    def _restore(self, good: dict) -> None:
        self._set(good["parameters"])
        self.path, self.evidence = good["path"], good["evidence"]

    def _keep(self, good: dict | None, stage: Stage, reason: str) -> bool:
        if good is not None:
            self._restore(good)
        if self.quiet:
            return False
        kept = "the last good parameters are kept" if good else "no parameters were learned in it"
        message = f"LaplaceEM, restart {self.restart}, stage {stage.name!r}: {reason}; {kept}."
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False

    def _record(self, stage: Stage, iteration: int, result: LaplaceResult, began: float) -> None:
        noise, seconds = self.model.dynamics.noise.variance, time.perf_counter() - began
        self.rows.append(row_of(self.restart, stage, iteration, result, noise, seconds))
        self.bar.advance(self.restart, stage, iteration, result.evidence)
