"""Expectation maximisation with a global Laplace approximation of the latent path."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from plssm.data import Batch, Dataset
from plssm.dynamics.base import PiecewiseLinear
from plssm.dynamics.linear import LinearDynamics
from plssm.errors import CapabilityError, PlssmError
from plssm.fit import Fit
from plssm.inference.base import Engine, working_copy
from plssm.inference.laplace import LaplaceResult, laplace_posterior
from plssm.inference.m_step import (
    pool_trial_means,
    ridge_penalty,
    update_coefficients,
    update_initial,
    update_observations,
    update_process_noise,
)
from plssm.inference.progress import EMProgress
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, plain_stages
from plssm.inference.starts import (
    StartPath,
    lift,
    observed_path,
    state_dim,
    state_path,
    turn,
)
from plssm.inference.statistics import (
    TransitionStatistics,
    exact_statistics,
    regional_statistics,
)
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import Posterior

__all__ = ["LaplaceEM"]

START_FLOOR = 1e-3  # smallest variance of a start, for latents of unit variance
HISTORY = [
    "restart",
    "stage",
    "iteration",
    "evidence",
    "joint",
    "logdet",
    "process_noise",
    "solves",
    "pinned",
    "status",
    "seconds",
]
PATIENCE = 3  # iterations without gain that end a stage (the Laplace evidence may dip)


@dataclass
class LaplaceEM(Engine):
    r"""EM whose E-step is the global Laplace approximation of the whole latent path.

    .. math:: \theta \leftarrow \arg\max_\theta\; E_{q(Z)} [\log p_\theta(Y, Z)], \qquad
              q(Z) = \mathcal N(Z^*, U(Z^*)^{-1})

    Exact EM for a linear-Gaussian model. For piecewise-linear dynamics the moments of the hinges
    under q are exact, the M-step is closed-form, and the evidence is the Laplace evidence.

    Args:
        seed: Seed of the restarts.
        iterations: EM iterations in total.
        restarts: Number of starts; the best evidence (on the validation data where given) wins.
        start: ``"auto"`` starts parameters that were set (``from_parameters``, a Fit) where they
            are and fresh ones from the data; ``"data"`` and ``"model"`` force one of the two.
        stages: The stages of the fit; None chooses them (annealed process noise for a fresh
            piecewise-linear map, plain EM otherwise).
        tolerance: A stage ends after three iterations that each gained less than this many
            nats per observed value.
        floor: Smallest process and initial-state variance.
        max_solves: Linear solves of one mode search at most.
        ridge: Precision of a zero-mean Gaussian prior on the weights of the hinges, for latents of
            about unit variance. It is weak beside the data, and keeps the weights of hinges finite
            that the data hardly ever open.
        moments: Moments of the hinges in the M-step. ``"regional"`` uses the linearisation that
            defines the Laplace covariance: the Laplace evidence then rises steadily. ``"exact"``
            uses the exact moments under the Gaussian (bivariate normal cdf, the published form),
            which overrates the process noise where the posterior spans several regions.

    References:
        Durstewitz (2017), PLoS Comput Biol 13:e1005542, doi:10.1371/journal.pcbi.1005542.
        Koppe et al. (2019), PLoS Comput Biol 15:e1007263, doi:10.1371/journal.pcbi.1007263.
    """

    iterations: int = 50
    restarts: int = 1
    start: str = "auto"
    stages: tuple[Stage, ...] | None = None
    tolerance: float = 1e-6
    floor: float = 1e-5
    max_solves: int = 60
    ridge: float = 1.0
    moments: str = "regional"

    def __post_init__(self) -> None:
        if self.start not in ("auto", "data", "model"):
            raise PlssmError(f"LaplaceEM: start is {self.start!r}, wanted auto, data or model.")
        if self.moments not in ("regional", "exact"):
            raise PlssmError(f"LaplaceEM: moments is {self.moments!r}, wanted regional or exact.")
        for name in ("iterations", "restarts"):
            if getattr(self, name) < 1:
                raise PlssmError(f"LaplaceEM: {name} is {getattr(self, name)}, wanted >= 1.")
        if self.stages is not None:
            self.stages = tuple(s if isinstance(s, Stage) else Stage(**s) for s in self.stages)
            if any(s.dynamics == "linear" for s in self.stages[1:]):
                raise PlssmError("LaplaceEM: only the first stage may be linear.")

    def check(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse data that do not match and dynamics without a ReLU form."""
        super().check(model, data)
        if not isinstance(model.dynamics, PiecewiseLinear):
            raise CapabilityError(
                f"LaplaceEM needs piecewise-linear dynamics, got {type(model.dynamics).__name__}; "
                "derive from PiecewiseLinear or use an engine that differentiates the map."
            )
        model.dynamics.relu_form()
        if model.dynamics.coefficients() is None:
            raise CapabilityError(
                f"{type(model.dynamics).__name__} has no closed-form M-step (coefficients() is "
                "None), which LaplaceEM needs to fit it; smooth(method='laplace') works."
            )

    def infer(self, model: StateSpaceModel, data: Dataset, *, causal: bool = False) -> Posterior:
        """Posterior of the latent paths: Laplace smoothing, or causal filtering."""
        return smooth(model, data, method="laplace", causal=causal)

    def fit(
        self,
        model: StateSpaceModel,
        data: Dataset,
        *,
        validation: Dataset | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Fit a copy of ``model`` to ``data``.

        Args:
            model: The model; never changed.
            data: Training trials.
            validation: Trials on which restarts are compared; the training data where absent.
            progress: Show a progress bar; None shows it where someone can see it.

        Returns:
            The fit with the best evidence over the restarts.

        Raises:
            DataError: If the data do not match the model.
            CapabilityError: If the dynamics are not piecewise linear.
        """
        self.check(model, data)
        if validation is not None:
            self.check(model, validation)
        began = time.perf_counter()
        batch = data.batch()
        runs = []
        with EMProgress(self._stages(model), self.restarts, show=progress) as bar:
            for restart in range(self.restarts):
                run = _Run(self, working_copy(model), batch, restart, bar)
                run.go()
                runs.append((self._selection(run, validation), run))
        best = max(runs, key=lambda pair: pair[0])[1]
        history = pd.concat([run.table() for _, run in runs], ignore_index=True)
        history["selected"] = history["restart"] == best.restart
        for part in (best.model.dynamics, *best.model.observations.values()):
            part.initialised = True
        return Fit.after_training(
            best.model, self, data, history=history, seconds=time.perf_counter() - began
        )

    def _selection(self, run: _Run, validation: Dataset | None) -> float:
        if not np.isfinite(run.evidence):
            return -np.inf
        if validation is None:
            return run.evidence
        result = laplace_posterior(run.model, validation.batch())
        return -np.inf if result.failed else result.evidence

    def _stages(self, model: StateSpaceModel) -> tuple[Stage, ...]:
        if self.stages is not None:
            return self.stages
        fresh = self._fresh(model.dynamics)
        hinged = model.dynamics.relu_form().outer.shape[1] > 0
        return (annealed_stages if fresh and hinged else plain_stages)(self.iterations)

    def _fresh(self, part: torch.nn.Module) -> bool:
        return {"data": True, "model": False}.get(self.start, not part.initialised)


class _Run:
    """One start of the engine: a model on its way through the stages."""

    def __init__(
        self,
        engine: LaplaceEM,
        model: StateSpaceModel,
        batch: Batch,
        restart: int,
        bar: EMProgress,
    ) -> None:
        self.engine, self.model, self.batch = engine, model, batch
        self.restart, self.bar = restart, bar
        self.path: np.ndarray | None = None
        self.trial_means: np.ndarray | None = None
        self.evidence = -np.inf
        self.best: dict | None = None
        self.rows: list[dict] = []
        self.values = sum(int(m.mask.sum()) for m in batch.modalities.values())

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=HISTORY)

    def go(self) -> None:
        stages = self.engine._stages(self.model)
        state = None
        if stages and stages[0].dynamics == "linear":
            state = self._linear_state(stages[0])
        self._start(state)
        for stage in stages:
            if stage.dynamics == "model" and not self._stage(stage):
                break
        if self.trial_means is not None:
            pool_trial_means(self.model.dynamics, self.trial_means)

    # -- start ---------------------------------------------------------------------------------
    def _fresh_observations(self) -> dict[str, ObservationModel]:
        return {n: o for n, o in self.model.observations.items() if self.engine._fresh(o)}

    def _start(self, state: StartPath | None) -> None:
        """Start what is fresh from a path: the lifted linear state, or what is observed."""
        model, batch = self.model, self.batch
        if model.dynamics.initial.kind == "tied":
            mean = model.dynamics.initial.mean.detach().numpy()
            self.trial_means = np.tile(mean, (len(batch.length), 1))
        fresh = self._fresh_observations()
        new_map = self.engine._fresh(model.dynamics)
        if not new_map and not fresh:
            return
        seed = self.engine.seed * 1000 + self.restart
        if len(fresh) < len(model.observations):
            known = {n: o for n, o in model.observations.items() if n not in fresh}
            path = observed_path(StateSpaceModel(model.dynamics, known), batch)
        elif isinstance(model.dynamics, LinearDynamics):
            path = turn(state_path(model, batch, model.dim), seed=seed)
        else:
            state = state_path(model, batch, state_dim(model)) if state is None else state
            path = lift(state, batch.time_mask.numpy(), model.dim, seed=seed)
        for name, observation in fresh.items():
            observation.init_from(batch.modalities[name], torch.from_numpy(path.mean))
            observation.m_step(
                batch.modalities[name],
                torch.from_numpy(path.mean),
                torch.from_numpy(np.ascontiguousarray(path.covariance)),
            )
        if new_map:
            self.path = path.mean
            self._start_dynamics(path)

    def _start_dynamics(self, path: StartPath) -> None:
        """One M-step from the start path, with every hinge on its side of the kink."""
        dynamics, batch, engine = self.model.dynamics, self.batch, self.engine
        slope = (dynamics.relu_form().gates(path.mean[:, :-1]) > 0).astype(np.float64)
        if not dynamics.relu_form().outer.shape[1]:
            slope = slope[..., :0]
        statistics = regional_statistics(dynamics, path, batch, slope)
        update_coefficients(dynamics, statistics, path, batch, ridge=engine.ridge)
        self.trial_means = update_initial(dynamics, path, batch, START_FLOOR)
        update_process_noise(dynamics, statistics, path, batch, self.trial_means, START_FLOOR)

    def _linear_state(self, stage: Stage) -> StartPath:
        """Smoothed state of a linear stand-in for the whole model, fitted for one stage."""
        model = self.model
        own, dynamics = (model, self.path, self.trial_means), model.dynamics
        dim = state_dim(model)
        stand_in = LinearDynamics(dim, dynamics.n_inputs, input_at_start=dynamics.input_at_start)
        copies = {n: type(o).from_config(o.config()) for n, o in model.observations.items()}
        self.model = StateSpaceModel(stand_in, copies)
        self._start(None)
        self._iterate(stage)
        posterior = self._e_step().posterior
        state = StartPath(*posterior.arrays(), self.batch.length)
        self.evidence, self.best = -np.inf, None
        self.model, self.path, self.trial_means = own
        return state

    # -- stages --------------------------------------------------------------------------------
    def _stage(self, stage: Stage) -> bool:
        """Run one stage; False when the fit should end with the last good state."""
        if stage.begin == "best" and self.best is not None:
            self._restore(self.best)
        if stage.process_noise is not None:
            _hold_noise(self.model.dynamics, stage.process_noise)
        return self._iterate(stage)

    def _e_step(self) -> LaplaceResult:
        return laplace_posterior(
            self.model,
            self.batch,
            start=self.path,
            trial_means=self.trial_means,
            max_solves=self.engine.max_solves,
        )

    def _iterate(self, stage: Stage) -> bool:
        good, previous, idle = None, -np.inf, 0
        for iteration in range(stage.iterations + 1):
            began = time.perf_counter()
            result = self._e_step()
            objective = result.evidence - self._penalty()
            if result.failed:
                return self._keep(good, stage, f"the E-step ended {set(result.status)}")
            if good is None or objective > good["objective"]:
                good = self._snapshot(objective, result)
            self._record(stage, iteration, result, began)
            gained = objective - previous
            idle = idle + 1 if gained < self.engine.tolerance * self.values else 0
            if iteration == stage.iterations or idle >= PATIENCE:
                break
            previous, self.path = objective, result.path
            try:
                self._m_step(stage, result)
            except (np.linalg.LinAlgError, torch.linalg.LinAlgError, ValueError) as error:
                return self._keep(good, stage, f"the M-step failed ({error})")
        self._restore(good)
        if self.best is None or good["evidence"] > self.best["evidence"]:
            self.best = good
        return True

    def _m_step(self, stage: Stage, result: LaplaceResult) -> None:
        dynamics, floor = self.model.dynamics, self.engine.floor
        posterior = result.posterior
        if {"dynamics", "process_noise"} & set(stage.learn):
            statistics = self._statistics(result)
        if "dynamics" in stage.learn:
            update_coefficients(
                dynamics,
                statistics,
                posterior,
                self.batch,
                self.trial_means,
                ridge=self.engine.ridge,
            )
        if "initial" in stage.learn:
            self.trial_means = update_initial(dynamics, posterior, self.batch, floor)
        if "process_noise" in stage.learn and stage.process_noise is None:
            update_process_noise(
                dynamics, statistics, posterior, self.batch, self.trial_means, floor
            )
        if "observations" in stage.learn:
            update_observations(self.model, posterior, self.batch)

    def _penalty(self) -> float:
        dynamics = self.model.dynamics
        own = float(dynamics.penalty().detach())
        return own + ridge_penalty(dynamics, self.engine.ridge)

    def _statistics(self, result: LaplaceResult) -> TransitionStatistics:
        arguments = (self.model.dynamics, result.posterior, self.batch)
        if self.engine.moments == "exact" or not result.slope.shape[2]:
            return exact_statistics(*arguments)
        return regional_statistics(*arguments, result.slope)

    # -- the last good state -------------------------------------------------------------------
    def _snapshot(self, objective: float, result: LaplaceResult) -> dict:
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        means = None if self.trial_means is None else self.trial_means.copy()
        return {
            "objective": objective,
            "evidence": result.evidence,
            "state": state,
            "path": result.path,
            "trial_means": means,
        }

    def _restore(self, good: dict) -> None:
        self.model.load_state_dict(good["state"])
        self.path, self.trial_means = good["path"], good["trial_means"]
        self.evidence = good["evidence"]

    def _keep(self, good: dict | None, stage: Stage, reason: str) -> bool:
        if good is not None:
            self._restore(good)
        kept = "the last good parameters are kept" if good else "no parameters were learned in it"
        warnings.warn(
            f"LaplaceEM, restart {self.restart}, stage {stage.name!r}: {reason}; {kept}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    def _record(self, stage: Stage, iteration: int, result: LaplaceResult, began: float) -> None:
        dynamics = self.model.dynamics
        self.rows.append(
            {
                "restart": self.restart,
                "stage": stage.name,
                "iteration": iteration,
                "evidence": result.evidence,
                "joint": float(result.joint.sum()),
                "logdet": float(result.logdet.sum()),
                "process_noise": float(dynamics.noise.variance.detach().mean()),
                "solves": result.solves,
                "pinned": result.pinned,
                "status": "+".join(sorted(set(result.status))),
                "seconds": time.perf_counter() - began,
            }
        )
        self.bar.advance(self.restart, stage, iteration, result.evidence)


def _hold_noise(dynamics: PiecewiseLinear, variance: float) -> None:
    eye = torch.eye(dynamics.dim, dtype=torch.float64)
    if not dynamics.noise.frozen:
        dynamics.noise.covariance = variance * eye
