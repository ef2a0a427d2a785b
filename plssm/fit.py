"""A fitted model: what a user holds after fitting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from plssm import storage
from plssm.data import Dataset
from plssm.errors import ShapeError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior
from plssm.prediction import Prediction
from plssm.scoring import score_forecasts, score_hidden

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plssm.inference.base import Engine

__all__ = ["Fit"]

DEFAULT_ENGINE = "plssm.inference.laplace_em.LaplaceEM"


class Fit:
    """A model with its parameters, the engine that fitted it, and how that went.

    ``Fit(model)`` wraps a known model, so that it can be used like a fitted one.

    Args:
        model: The model; a float64 copy is kept.
        engine: The engine that fitted it and infers with it; the Laplace engine where absent.
        history: One row per iteration.
        seconds: Duration of the fit.
        baselines: Training statistics by modality, for scores.
        dt: Seconds per latent step of the training data.

    Attributes:
        model: The fitted model.
        engine: The engine, or None for a known model.
        history: One row per iteration of every restart.
        seconds: Duration of the fit.
        dt: Seconds per latent step of the training data.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> fit = ps.Fit(model)
        >>> fit.simulate(10).values("x").shape
        (1, 10, 3)
    """

    def __init__(
        self,
        model: StateSpaceModel,
        engine: Engine | None = None,
        *,
        history: pd.DataFrame | None = None,
        seconds: float = float("nan"),
        baselines: dict[str, Baseline] | None = None,
        dt: float = 1.0,
    ) -> None:
        self.model = copy.deepcopy(model).to(torch.float64)
        for part in (self.model.dynamics, *self.model.observations.values()):
            part.initialised = True
        self.engine = engine
        self.history = pd.DataFrame() if history is None else history
        self.seconds = float(seconds)
        self.dt = float(dt)
        self._baselines = baselines

    @classmethod
    def after_training(
        cls,
        model: StateSpaceModel,
        engine: Engine,
        data: Dataset,
        *,
        history: pd.DataFrame,
        seconds: float,
    ) -> Fit:
        """The result of an engine: remembers the training statistics that scores need."""
        return cls(
            model,
            engine,
            history=history,
            seconds=seconds,
            baselines=_baselines(model, data),
            dt=data.dt,
        )

    # -- inference -----------------------------------------------------------------------------
    def posterior(self, data: Dataset, causal: bool = False) -> Posterior:
        """Posterior of the latent paths given data.

        Args:
            data: The trials.
            causal: Use only data up to each step.

        Returns:
            Mean, covariance, draws, intervals and the log evidence of every trial.
        """
        return self._engine().infer(self.model, data, causal=causal)

    def _engine(self) -> Engine:
        if self.engine is not None:
            return self.engine
        module, name = DEFAULT_ENGINE.rsplit(".", 1)
        return getattr(import_module(module), name)()

    def forecast(
        self,
        data: Dataset,
        steps: int,
        samples: int = 200,
        inputs: Any = None,
        *,
        nuisance: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> dict[str, Prediction]:
        r"""Predict what follows each trial.

        .. math:: p(y_{T+k} \mid y_{1:T}), \quad k = 1 \dots n

        Args:
            data: Trials to continue, each from its end.
            steps: Latent steps n ahead.
            samples: Latent draws.
            inputs: Inputs of the steps ahead ``[n, K]`` or ``[B, n, K]``.
            nuisance: Nuisance regressors of the samples ahead ``[n, R]`` or ``[B, n, R]`` by
                modality; their part is left out where absent.
            seed: Seed of the draws.

        Returns:
            By modality, a Prediction with ``.mean``, ``.interval()``, ``.samples [S, B, n, N]``
            and ``.times [n]``: seconds after the last latent step of a trial.
        """
        if steps < 1:
            raise ShapeError(f"forecast: steps is {steps}, wanted at least 1.")
        posterior = self.posterior(data)
        last = posterior.length - 1
        trial = torch.arange(len(last))
        mean, covariance = posterior.mean[trial, last], posterior.covariance()[trial, last]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((samples, *mean.shape), generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt()[:, None, :]
        start = mean + torch.einsum("bij,sbj->sbi", root, noise)
        future = self.model.stacked_inputs(inputs, steps, len(last))
        with torch.no_grad():
            z = self.model.dynamics.rollout(
                start,
                steps,
                inputs=None if future is None else future.expand(samples, *future.shape),
                generator=generator,
            )
        return self._predictions(data, z, nuisance or {}, seed)

    def _predictions(
        self, data: Dataset, z: Tensor, nuisance: dict[str, Any], seed: int
    ) -> dict[str, Prediction]:
        """Predictions of all modalities on latent draws ``[S, B, n, M]`` of the steps ahead."""
        out = {}
        for k, (name, observation) in enumerate(self.model.observations.items()):
            at = _samples_ahead(data, name, z.shape[2])
            r = nuisance.get(name)
            r = None if r is None else torch.as_tensor(np.asarray(r), dtype=torch.float64)
            with torch.no_grad():
                features = observation.features(z[:, :, at], r)
            times = (at + 1) * data.dt
            out[name] = Prediction(observation, features, times, seed=seed * 1013 + k)
        return out

    def simulate(
        self,
        steps: int,
        trials: int = 1,
        noise: bool = True,
        inputs: Any = None,
        seed: int = 0,
        *,
        nuisance: dict[str, Any] | None = None,
        dt: float | None = None,
    ) -> Dataset:
        """Draw new data from the fitted model; ``.latent`` holds the paths ``[B, T, M]``.

        Args:
            steps: Latent steps T.
            trials: Number of trials B.
            noise: Draw noise; otherwise the deterministic path and expected observations.
            inputs: External inputs ``[T, K]`` or ``[B, T, K]``.
            seed: Seed of all random draws.
            nuisance: Nuisance regressors by modality.
            dt: Seconds per latent step; those of the training data where absent.
        """
        return self.model.simulate(
            steps,
            trials=trials,
            noise=noise,
            inputs=inputs,
            nuisance=nuisance,
            dt=self.dt if dt is None else dt,
            seed=seed,
        )

    # -- scores --------------------------------------------------------------------------------
    def score(
        self,
        data: Dataset,
        steps: Sequence[int] = (1, 5, 10),
        *,
        warmup: int = 10,
        samples: int = 64,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Score the model on held-out data.

        Data with hidden entries (``Dataset.hold_out``) are scored on exactly those; otherwise
        n-step forecasts from filtered starts are scored beside persistence and VAR(1).

        Args:
            data: Held-out trials.
            steps: Horizons in latent steps.
            warmup: Latent steps before the first forecast.
            samples: Latent draws per forecast.
            seed: Seed of the draws.

        Returns:
            One row per modality. Forecasts: ``evidence`` and ``evidence_kind`` of all modalities
            together, ``values``, ``log_likelihood`` (nats per value, one step ahead), ``r2``,
            ``coverage_95``, and ``error_n``, ``persistence_n``, ``var1_n`` (mean squared,
            z-scored with the training statistics). Hidden entries: ``values``,
            ``log_likelihood``, ``r2``, ``error``, ``coverage_95``.
        """
        self.model.check(data)
        known = self._baselines is not None
        baselines = self._baselines if known else _baselines(self.model, data.reveal())
        smoothed = self.posterior(data)
        if any(len(trial.hidden) for trial in data.trials):
            return score_hidden(self.model, data, smoothed, baselines=baselines, seed=seed)
        table = score_forecasts(
            self.model,
            data,
            self.posterior(data, causal=True),
            steps=steps,
            baselines=baselines,
            known=known,
            warmup=warmup,
            samples=samples,
            seed=seed,
        )
        table.insert(0, "evidence", float(smoothed.log_evidence.sum()))
        table.insert(1, "evidence_kind", smoothed.evidence_kind)
        return table

    # -- files ---------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write the fit to a folder: tensors as safetensors, the rest as JSON and CSV.

        The folder appears whole or not at all; an earlier fit of that name is replaced only when
        the new one is complete.

        Args:
            path: The folder.

        Returns:
            The folder.
        """
        return storage.save_fit(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Fit:
        """Read a fit written by :meth:`save`.

        Args:
            path: The folder.

        Raises:
            DataError: If the folder is not a whole fit (missing, truncated, altered).
        """
        return storage.load_fit(cls, Path(path))

    # -- pictures ------------------------------------------------------------------------------
    def plot_latents(self, data: Dataset, trial: int = 0, **options: Any) -> Figure:
        """Draw the posterior of a latent path with its band.

        Args:
            data: The trials.
            trial: Which trial.
            **options: ``causal=``, ``level=``, and those of :func:`plssm.plot.latents`.
        """
        from plssm.plot import fits

        return fits.latents(self, data, trial, **options)

    def plot_observed(self, data: Dataset, modality: str | None = None, **options: Any) -> Figure:
        """Draw each sample beside its prediction from the data up to the step before it.

        Args:
            data: The trials.
            modality: Which modality; the first by default.
            **options: ``trial=``, ``level=``, ``samples=``, ``seed=``, and those of
                :func:`plssm.plot.observed_vs_predicted`.
        """
        from plssm.plot import fits

        return fits.one_step_ahead(self, data, modality, **options)

    def plot_forecast(
        self, data: Dataset, steps: int, modality: str | None = None, **options: Any
    ) -> Figure:
        """Draw what is expected after the end of a trial.

        Args:
            data: The trials.
            steps: Latent steps ahead.
            modality: Which modality; the first by default.
            **options: ``trial=``, ``truth=`` (a Dataset of what followed), ``past=`` (steps drawn
                before the end), ``samples=``, ``inputs=``, ``seed=``, and those of
                :func:`plssm.plot.forecast_fan`.
        """
        from plssm.plot import fits

        return fits.forecast(self, data, steps, modality, **options)

    def plot_free_run(self, data: Dataset, modality: str | None = None, **options: Any) -> Figure:
        """Draw a simulation that never sees the data beside a trial.

        Args:
            data: The trials.
            modality: Which modality; the first by default.
            **options: ``trial=``, ``noise=``, ``discard=`` (steps simulated first and not
                shown), ``seed=``, and those of :func:`plssm.plot.free_run`.
        """
        from plssm.plot import fits

        return fits.free_run(self, data, modality, **options)

    def plot_convergence(self, **options: Any) -> Figure:
        """Draw evidence and joint over iterations, with the stages named."""
        from plssm.plot import fits

        return fits.convergence(self, **options)

    def __repr__(self) -> str:
        engine = type(self.engine).__name__ if self.engine is not None else "known model"
        names = ", ".join(f"{n}: {o!r}" for n, o in self.model.observations.items())
        took = "" if np.isnan(self.seconds) else f", {self.seconds:.1f} s"
        return f"Fit({self.model.dynamics!r}, {{{names}}}, {engine}{took})"


def _baselines(model: StateSpaceModel, data: Dataset) -> dict[str, Baseline]:
    return {
        name: Baseline.of([trial.values[name] for trial in data.trials])
        for name in model.observations
    }


def _samples_ahead(data: Dataset, name: str, steps: int) -> np.ndarray:
    """Latent steps ahead (0 = first) at which a modality is sampled."""
    spacing = [np.diff(t.clock[name]) for t in data.trials if t.clock.get(name) is not None]
    if not spacing:
        return np.arange(steps)
    gaps = np.concatenate(spacing)
    every = max(int(np.median(gaps)) if len(gaps) else 1, 1)
    last = max(int(t.length - 1 - t.clock[name][-1]) for t in data.trials if len(t.clock[name]))
    return np.arange(max(every - last - 1, 0), steps, every)
