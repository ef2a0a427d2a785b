"""What comes next: forecasts after the end of each trial, and one step ahead within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plssm.data import Dataset
from plssm.errors import ShapeError
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import Posterior
from plssm.prediction.latent_draws import draw_histories, draw_last_states
from plssm.prediction.predictive import Prediction
from plssm.prediction.predictors import last_features
from plssm.prediction.spike_history import driven_by_own_draws, has_history, recent_counts

__all__ = ["features_ahead", "forecast", "one_step_ahead"]


def forecast(
    model: StateSpaceModel,
    posterior: Posterior,
    data: Dataset,
    steps: int,
    *,
    samples: int = 200,
    inputs: Any = None,
    nuisance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Prediction]:
    r"""Predict what follows each trial.

    .. math:: p(y_{T+k} \mid y_{1:T}), \quad k = 1 \dots n

    A modality with memory sees the last states of the trial, drawn jointly, before the run ahead.

    Args:
        model: The model.
        posterior: Smoothed posterior of the trials.
        data: Trials to continue, each from its end.
        steps: Latent steps n ahead.
        samples: Latent draws.
        inputs: Inputs of the steps ahead ``[n, K]`` or ``[B, n, K]``.
        nuisance: Nuisance regressors of the samples ahead ``[n, R]`` or ``[B, n, R]`` by
            modality; their part is left out where absent.
        seed: Seed of the draws.

    Returns:
        A prediction by modality, its times in seconds after the last latent step of a trial.

    Raises:
        ShapeError: If ``steps`` is not at least 1.
    """
    if steps < 1:
        raise ShapeError(f"forecast: steps is {steps}, wanted at least 1.")
    generator = torch.Generator().manual_seed(seed)
    past = max(o.memory(data.dt) for o in model.observations.values()) + 1
    before = (
        _draw_ends(posterior, samples, generator)
        if past == 1
        else draw_last_states(posterior, samples, past, seed=seed)
    )
    future = model.stacked_inputs(inputs, steps, len(data))
    if future is not None:
        future = future.expand(samples, *future.shape)
    with torch.no_grad():
        z = model.dynamics.rollout(before[:, :, -1], steps, inputs=future, generator=generator)
    path, out = torch.cat([before, z], dim=2), {}
    for k, (name, observation) in enumerate(model.observations.items()):
        at = samples_ahead(data, name, steps)
        r = (nuisance or {}).get(name)
        r = None if r is None else torch.as_tensor(np.asarray(r), dtype=torch.float64)
        with torch.no_grad():
            features = observation.features_along(
                path, clock=torch.from_numpy(at) + past, nuisance=r, dt=data.dt
            )
        if has_history(observation):
            ends = [
                recent_counts(observation, t, name, np.array([t.length - 1]), data.dt)
                for t in data.trials
            ]
            features = driven_by_own_draws(
                observation, features, torch.cat(ends), generator, data.dt
            )
        out[name] = Prediction(observation, features, (at + 1) * data.dt, seed=seed * 1013 + k)
    return out


def one_step_ahead(
    model: StateSpaceModel,
    filtered: Posterior,
    data: Dataset,
    name: str,
    *,
    samples: int = 400,
    seed: int = 0,
) -> Prediction:
    r"""Predict each sample of one trial from all data up to the step before it.

    .. math:: p(y_i \mid y_{1:t-1}), \quad t = k(i) > 1

    Args:
        model: The model.
        filtered: Causal posterior of the trial.
        data: One trial of at least two steps.
        name: The modality.
        samples: Latent draws.
        seed: Seed of the draws.

    Returns:
        The prediction of the samples after the first step ``[1, n, N]``.
    """
    trial, observation = data.trials[0], model.observations[name]
    past = observation.memory(data.dt) + 1
    before = draw_histories(filtered, samples, past, seed=seed)[:, 0, :-1]
    inputs = trial.inputs
    driven = None if inputs is None else torch.from_numpy(inputs[1:]).expand(samples, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        start = before[:, :, -1]
        noise = model.dynamics.noise.sample(tuple(start.shape[:-1]), generator=generator)
        after = model.dynamics.step(start, driven) + noise
    steps = trial.steps(name)
    later = np.flatnonzero(steps > 0)
    origin = steps[later] - 1
    path = torch.cat([before, after[:, :, None]], dim=2)[:, origin]
    regressors = trial.nuisance.get(name)
    r = None if regressors is None else torch.from_numpy(regressors[later])
    features = features_ahead(observation, path, past, 1, r, data.dt)
    if has_history(observation):
        counts = recent_counts(observation, trial, name, origin, data.dt)
        features = driven_by_own_draws(
            observation, features[:, :, None], counts, generator, data.dt
        )[:, :, 0]
    seconds = trial.seconds(name, data.dt)[later]
    return Prediction(observation, features[:, None], seconds, seed=seed)


def features_ahead(
    observation: ObservationModel,
    path: Tensor,
    past: int,
    n: int,
    nuisance: Tensor | None,
    dt: float,
) -> Tensor:
    """Predictors of samples n steps after their origins.

    Args:
        observation: The observation model.
        path: States of each origin ``[S, origins, past + reach, M]``: those of the ``past`` steps
            up to it, zeros before the trial, and those after it.
        past: Number of states up to the origin, more than the model's memory.
        n: Steps ahead.
        nuisance: Nuisance regressors of the samples ``[origins, R]``.
        dt: Seconds per latent step.

    Returns:
        ``[S, origins, predictors]``.
    """
    memory, last = observation.memory(dt), past + n - 1
    window = path[:, :, last - memory : last + 1]
    return last_features(observation, window, nuisance, dt)


def _draw_ends(posterior: Posterior, n: int, generator: torch.Generator) -> Tensor:
    """Draws of the last state of every trial from its marginal, ``[n, B, 1, M]``."""
    last = posterior.length - 1
    trial = torch.arange(len(last))
    mean, covariance = posterior.mean[trial, last], posterior.covariance()[trial, last]
    noise = torch.randn((n, *mean.shape), generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return (mean + torch.einsum("bij,sbj->sbi", root, noise))[:, :, None]


def samples_ahead(data: Dataset, name: str, steps: int) -> np.ndarray:
    """Latent steps ahead (0 = first) at which a modality is sampled."""
    spacing = [np.diff(t.clock[name]) for t in data.trials if t.clock.get(name) is not None]
    if not spacing:
        return np.arange(steps)
    gaps = np.concatenate(spacing)
    every = max(int(np.median(gaps)) if len(gaps) else 1, 1)
    ends = [int(t.length - 1 - t.clock[name][-1]) for t in data.trials if len(t.clock[name])]
    last = max(ends, default=every - 1)
    return np.arange(max(every - last - 1, 0), steps, every)
