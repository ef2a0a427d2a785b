"""A fitted model: what a user holds after fitting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from plssm import storage
from plssm.data import Dataset
from plssm.errors import CapabilityError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior
from plssm.prediction import Infer, Prediction, forecast, predict
from plssm.scoring import score, training_baselines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plssm.inference.base import Engine
    from plssm.inference.parameter_posterior import ParameterDraws

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
        recognition: What the engine has learned beside the model to infer with (an encoder).

    Attributes:
        model: The fitted model.
        engine: The engine, or None for a known model.
        history: One row per iteration of every restart.
        seconds: Duration of the fit.
        dt: Seconds per latent step of the training data.
        recognition: The recognition model, or None.

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
        recognition: nn.Module | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).to(torch.float64)
        for part in (self.model.dynamics, *self.model.observations.values()):
            part.initialised = True
        self.engine = engine
        self.history = pd.DataFrame() if history is None else history
        self.seconds = float(seconds)
        self.dt = float(dt)
        self.recognition = recognition
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
        recognition: nn.Module | None = None,
    ) -> Fit:
        """The result of an engine: remembers the training statistics that scores need."""
        return cls(
            model,
            engine,
            history=history,
            seconds=seconds,
            baselines=training_baselines(model, data),
            dt=data.dt,
            recognition=recognition,
        )

    # -- inference -----------------------------------------------------------------------------
    def posterior(self, data: Dataset, causal: bool = False, **options: Any) -> Posterior:
        """Posterior of the latent paths given data.

        Args:
            data: The trials.
            causal: Use only data up to each step.
            **options: Those of the engine's ``infer``, such as ``bound="importance"`` and
                ``draws=`` of variational inference.

        Returns:
            Mean, covariance, draws, intervals and the log evidence of every trial.
        """
        if options:
            self._check_options(options)
        return self._infer(self.model, data, causal=causal, **options)

    def _check_options(self, options: dict[str, Any]) -> None:
        """Refuses options that the engine's ``infer`` does not have."""
        known = set(signature(self._infer).parameters) - {"model", "data", "recognition"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise CapabilityError(
                f"posterior: {type(self.engine).__name__} has no option {unknown[0]!r}; it takes "
                f"{sorted(known)}."
            )

    @property
    def _infer(self) -> Infer:
        """Posterior of a model with these parameters, or of a part of it, given data."""
        engine = self.engine
        if engine is None:
            module, name = DEFAULT_ENGINE.rsplit(".", 1)
            engine = getattr(import_module(module), name)()
        if self.recognition is None:
            return engine.infer
        return partial(engine.infer, recognition=self.recognition)

    def predict(
        self,
        data: Dataset,
        modality: str,
        given: Sequence[str] | None = None,
        *,
        samples: int = 200,
        seed: int = 0,
        causal: bool = False,
    ) -> Prediction:
        r"""Predict one modality from others: decoding, cross-modal prediction.

        .. math:: p(y^{(m)}_i \mid Y^{(g)}, g \in \text{given})

        Hidden entries (``Dataset.hold_out``) stay hidden. Draws are of whole latent paths (held:
        S times latent steps times M numbers), so that modalities with memory are predicted
        rightly.

        Args:
            data: The trials; modalities that are not given are not looked at.
            modality: What to predict, at its own samples; at every latent step where the data do
                not have it.
            given: What is known; None is all other modalities, ``[]`` is nothing (the prior). The
                modality itself may be among them, which smooths it.
            samples: Latent draws S.
            seed: Seed of the draws.
            causal: Predict each sample from data up to its step only.

        Returns:
            ``.mean [B, n, N]``, ``.interval()``, ``.log_prob(y)``, ``.times [B, n]`` in seconds
            from the trial start, and for labels and levels ``.probabilities`` and ``.labels``;
            NaN beyond the samples of a trial.

        Raises:
            DataError: If a name is unknown, or the data do not fit the model.
        """
        return predict(
            self.model, self._infer, data, modality, given=given, samples=samples, seed=seed,
            causal=causal,
        )  # fmt: skip

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
        return forecast(
            self.model,
            self.posterior(data),
            data,
            steps,
            samples=samples,
            inputs=inputs,
            nuisance=nuisance,
            seed=seed,
        )

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
        every: dict[str, int] | None = None,
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
            every: Latent steps between the samples of some modalities.
        """
        return self.model.simulate(
            steps, trials=trials, noise=noise, inputs=inputs, nuisance=nuisance,
            dt=self.dt if dt is None else dt, seed=seed, every=every,
        )  # fmt: skip

    # -- parameters ----------------------------------------------------------------------------
    def parameter_draws(self, draws: int = 100, **options: Any) -> ParameterDraws:
        """Draw whole models from what the training data leave open about the parameters.

        Args:
            draws: How many.
            **options: ``data=`` (the training data, which a fit does not hold), ``seed=`` and
                others of :func:`plssm.inference.parameter_posterior.parameter_draws`.
        """
        module = import_module("plssm.inference.parameter_posterior")
        return module.parameter_draws(self, draws, **options)

    # -- scores --------------------------------------------------------------------------------
    def score(
        self,
        data: Dataset,
        steps: Sequence[int] = (1, 5, 10),
        *,
        given: Sequence[str] | None = None,
        warmup: int = 10,
        samples: int | None = None,
        seed: int = 0,
        causal: bool = False,
    ) -> pd.DataFrame:
        """Score the model on held-out data.

        With ``given=["spikes"]`` every other modality is decoded from those given. Data with
        hidden entries (``Dataset.hold_out``) are scored on exactly those. Otherwise n-step
        forecasts from filtered starts are scored beside persistence and VAR(1).

        Args:
            data: Held-out trials.
            steps: Horizons in latent steps.
            given: Modalities that may be looked at; ``[]`` for none (the prior).
            warmup: Latent steps before the first forecast.
            samples: Latent draws; by default 64 per forecast and 200 otherwise.
            seed: Seed of the draws.
            causal: Decode and fill in from data up to each step only.

        Returns:
            One row per modality, NaN where a column does not apply. All: ``values``,
            ``log_likelihood`` (nats per value). Numbers: ``r2``, ``coverage_95``, ``pit_ks``
            (Kolmogorov-Smirnov distance of the PIT from uniform); counts also ``bits_per_spike``
            over the training mean rates (their bands cover more than .95). Labels: ``accuracy``,
            ``balanced_accuracy``, ``majority`` (accuracy of the most frequent training class),
            ``brier``. Ordinal: ``accuracy``, ``majority``, ``rps``, ``coverage_95``, ``pit_ks``.

            Errors are mean squares, z-scored with the training statistics; of labels the share of
            wrong most probable classes; of ordinal levels the ranked probability score. Forecasts
            (other scores one step ahead) add ``error_n``, ``persistence_n``, ``var1_n`` (of labels
            and levels a Markov chain), and ``evidence``, ``evidence_kind`` of all modalities
            together. Hidden and decoded entries add ``error`` and ``floor`` (that of the training
            mean, of the most frequent class, of the training frequencies of the levels).

        Raises:
            DataError: If the data do not fit the model, or nothing is left to be scored.
        """
        return score(
            self.model,
            self._infer,
            data,
            trained=self._baselines,
            steps=steps,
            given=given,
            warmup=warmup,
            samples=samples,
            seed=seed,
            causal=causal,
        )

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
                :func:`plssm.plot.prediction`.
        """
        from plssm.plot import fits

        return fits.one_step_ahead(self, data, modality, **options)

    def plot_prediction(
        self,
        data: Dataset,
        modality: str | None = None,
        given: Sequence[str] | None = None,
        **options: Any,
    ) -> Figure:
        """Draw one modality as it is predicted from others, beside what it was.

        Args:
            data: The trials.
            modality: Which modality; the first by default.
            given: What it is predicted from; all others by default.
            **options: Those of :func:`plssm.plot.fits.decoded` and :func:`plssm.plot.prediction`.
        """
        from plssm.plot import fits

        return fits.decoded(self, data, modality, given=given, **options)

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
        """Draw the evidence over iterations, or loss and measures over the steps of a training.

        Args:
            **options: Those of :func:`plssm.plot.convergence`.
        """
        from plssm.plot import fits

        return fits.convergence(self, **options)

    def __repr__(self) -> str:
        engine = type(self.engine).__name__ if self.engine is not None else "known model"
        names = ", ".join(f"{n}: {o!r}" for n, o in self.model.observations.items())
        took = "" if np.isnan(self.seconds) else f", {self.seconds:.1f} s"
        return f"Fit({self.model.dynamics!r}, {{{names}}}, {engine}{took})"
