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
from plssm.errors import CapabilityError
from plssm.fit import Fit
from plssm.inference.base import Engine, working_copy
from plssm.inference.laplace import LaplaceResult, laplace_posterior
from plssm.inference.m_step import (
    pool_trial_means,
    transition_statistics,
    update_coefficients,
    update_initial,
    update_observations,
    update_process_noise,
)
from plssm.inference.progress import EMProgress
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, plain_stages
from plssm.inference.starts import start_path
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["LaplaceEM"]

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

    def __post_init__(self) -> None:
        if self.start not in ("auto", "data", "model"):
            raise ValueError(f"LaplaceEM: start is {self.start!r}, wanted auto, data or model.")
        for name in ("iterations", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"LaplaceEM: {name} is {getattr(self, name)}, wanted >= 1.")
        if self.stages is not None:
            self.stages = tuple(s if isinstance(s, Stage) else Stage(**s) for s in self.stages)

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
        return laplace_posterior(run.model, validation.batch()).evidence

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
        self.rows: list[dict] = []
        self.values = sum(int(m.mask.sum()) for m in batch.modalities.values())

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def go(self) -> None:
        self._start()
        for stage in self.engine._stages(self.model):
            if not self._stage(stage):
                break
        if self.trial_means is not None:
            pool_trial_means(self.model.dynamics, self.trial_means)

    # -- start ---------------------------------------------------------------------------------
    def _start(self) -> None:
        engine, model = self.engine, self.model
        if model.dynamics.initial.kind == "tied":
            mean = model.dynamics.initial.mean.detach().numpy()
            self.trial_means = np.tile(mean, (len(self.batch.length), 1))
        self.fresh_dynamics = engine._fresh(model.dynamics)
        fresh = [o for o in model.observations.values() if engine._fresh(o)]
        if not self.fresh_dynamics and not fresh:
            return
        rotate = None if self.restart == 0 and engine.seed == 0 else engine.seed * 1000 + self.restart
        path = start_path(model, self.batch, rotate=rotate)
        for name, observation in model.observations.items():
            if observation in fresh:
                observation.init_from(self.batch.modalities[name], torch.from_numpy(path))
        if self.fresh_dynamics:
            self.path = path
            self._start_dynamics(model.dynamics, path)

    def _start_dynamics(self, dynamics: PiecewiseLinear, path: np.ndarray) -> None:
        """Least squares on the start path, pulled towards stability."""
        certain = _CertainPath(path, self.batch.length.numpy())
        statistics = transition_statistics(dynamics, certain, self.batch)
        update_coefficients(dynamics, statistics, certain, self.batch)
        self.trial_means = update_initial(dynamics, certain, self.batch, 1e-2)
        update_process_noise(
            dynamics, statistics, certain, self.batch, self.trial_means, 1e-2
        )

    # -- stages --------------------------------------------------------------------------------
    def _stage(self, stage: Stage) -> bool:
        """Run one stage; False when the fit should end with the last good state."""
        dynamics = self.model.dynamics
        linear = stage.dynamics == "linear" and not isinstance(dynamics, LinearDynamics)
        if linear:
            self.model.dynamics = self._linear_stand_in(dynamics)
        if stage.process_noise is not None:
            _hold_noise(self.model.dynamics, stage.process_noise)
        go_on = self._iterate(stage)
        if linear:
            stand_in, self.model.dynamics = self.model.dynamics, dynamics
            if self.path is not None:
                self._take_over(dynamics, stand_in)
        return go_on

    def _linear_stand_in(self, dynamics: PiecewiseLinear) -> LinearDynamics:
        stand_in = LinearDynamics(
            dynamics.dim,
            dynamics.n_inputs,
            noise=dynamics.noise.kind,
            initial=dynamics.initial.kind,
            input_at_start=dynamics.input_at_start,
        )
        if self.path is None:
            self.path = start_path(self.model, self.batch)
        self._start_dynamics(stand_in, self.path)
        return stand_in

    def _take_over(self, dynamics: PiecewiseLinear, stand_in: LinearDynamics) -> None:
        """Fit the piecewise-linear map to the posterior under the linear one."""
        posterior = self._e_step(stand_in).posterior
        statistics = transition_statistics(dynamics, posterior, self.batch)
        with torch.no_grad():
            dynamics.noise.load_state_dict(stand_in.noise.state_dict())
            dynamics.initial.mean.copy_(stand_in.initial.mean)
        update_coefficients(dynamics, statistics, posterior, self.batch, self.trial_means)

    def _e_step(self, dynamics: PiecewiseLinear | None = None) -> LaplaceResult:
        own = self.model.dynamics
        self.model.dynamics = own if dynamics is None else dynamics
        try:
            return laplace_posterior(
                self.model,
                self.batch,
                start=self.path,
                trial_means=self.trial_means,
                max_solves=self.engine.max_solves,
            )
        finally:
            self.model.dynamics = own

    def _iterate(self, stage: Stage) -> bool:
        good, previous, idle = None, -np.inf, 0
        for iteration in range(stage.iterations + 1):
            began = time.perf_counter()
            result = self._e_step()
            objective = result.evidence - float(self.model.dynamics.penalty().detach())
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
        return True

    def _m_step(self, stage: Stage, result: LaplaceResult) -> None:
        dynamics, floor = self.model.dynamics, self.engine.floor
        posterior = result.posterior
        if {"dynamics", "process_noise"} & set(stage.learn):
            statistics = transition_statistics(dynamics, posterior, self.batch)
        if "dynamics" in stage.learn:
            update_coefficients(
                dynamics, statistics, posterior, self.batch, self.trial_means
            )
        if "initial" in stage.learn:
            self.trial_means = update_initial(dynamics, posterior, self.batch, floor)
        if "process_noise" in stage.learn and stage.process_noise is None:
            update_process_noise(
                dynamics, statistics, posterior, self.batch, self.trial_means, floor
            )
        if "observations" in stage.learn:
            update_observations(self.model, posterior, self.batch)

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


@dataclass
class _CertainPath:
    """A latent path taken as known: a chain with zero covariance."""

    path: np.ndarray
    steps: np.ndarray

    @property
    def mean(self) -> torch.Tensor:
        return torch.from_numpy(self.path)

    @property
    def length(self) -> torch.Tensor:
        return torch.from_numpy(self.steps)

    def covariance(self) -> torch.Tensor:
        return torch.zeros(*self.path.shape, self.path.shape[-1], dtype=torch.float64)

    def cross_covariance(self) -> torch.Tensor:
        return self.covariance()[:, 1:]
