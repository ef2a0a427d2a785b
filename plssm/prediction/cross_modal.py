"""One modality from others: decoding, cross-modal prediction, smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from plssm.data import Dataset
from plssm.errors import DataError
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import Posterior
from plssm.prediction.latent_draws import draw_histories, draw_paths, draw_prior_paths
from plssm.prediction.predictive import Prediction
from plssm.prediction.predictors import (
    GivenPredictors,
    PathPredictors,
    Predictors,
    last_features,
)

__all__ = ["Infer", "given_names", "infer_given", "predict", "predictors_of"]

Infer = Callable[..., Posterior]  # (model, data, causal=): what ``Engine.infer`` is


def predict(
    model: StateSpaceModel,
    infer: Infer,
    data: Dataset,
    modality: str,
    *,
    given: Sequence[str] | None = None,
    samples: int = 200,
    seed: int = 0,
    causal: bool = False,
) -> Prediction:
    r"""Predictive distribution of one modality given others, at its own samples.

    .. math:: p(y^{(m)}_i \mid Y^{(g)}, g \in \text{given}) =
        \int p(y^{(m)}_i \mid Z)\, p(Z \mid Y^{(g)}, g \in \text{given})\, dZ

    Args:
        model: The model.
        infer: Posterior of a model's latent paths given data.
        data: The trials; modalities that are not given are not looked at.
        modality: What to predict, at its own samples; at every latent step where the data do not
            have it.
        given: What is known; None is all other modalities, empty is the prior. The modality
            itself may be among them: its prediction then is its smoothed version.
        samples: Latent draws.
        seed: Seed of the draws.
        causal: Predict each sample from data up to its step only.

    Returns:
        The prediction, its times in seconds from the trial start, ``[B, n]``.

    Raises:
        DataError: If a name is unknown, or the data do not fit the model.
    """
    if modality not in model.observations:
        raise _unknown("there is no such modality to predict", [modality], model.observations)
    names = given_names(model, data, given, exclude=modality)
    posterior = infer_given(model, infer, data, names, causal=causal, targets=[modality])
    observation = model.observations[modality]
    if modality in data.names:
        StateSpaceModel(model.dynamics, {modality: observation}).check(data)
    times = [
        t.seconds(modality, data.dt) if modality in data.names else np.arange(t.length) * data.dt
        for t in data.trials
    ]
    padded = np.full((len(times), max(map(len, times))), np.nan)
    for row, each in zip(padded, times):
        row[: len(each)] = each
    source = predictors_of(
        model, posterior, data, modality, seen=modality in names, samples=samples, seed=seed,
        causal=causal,
    )  # fmt: skip
    return Prediction(observation, source, padded, seed=seed * 1013 + 1)


def given_names(
    model: StateSpaceModel,
    data: Dataset,
    given: Sequence[str] | None,
    *,
    exclude: str | None = None,
) -> list[str]:
    """Names of what is known: all but one where nothing is said.

    Raises:
        DataError: If a name is not a modality of the model, or the data do not have it.
    """
    if given is None:
        return [n for n in model.observations if n != exclude and n in data.names]
    names = [given] if isinstance(given, str) else list(given)
    known = [n for n in model.observations if n in data.names]
    wrong = [n for n in names if n not in known]
    if wrong:
        raise _unknown("there is no such modality to be given", wrong, known)
    return list(dict.fromkeys(names))


def infer_given(
    model: StateSpaceModel,
    infer: Infer,
    data: Dataset,
    names: Sequence[str],
    *,
    targets: Sequence[str],
    causal: bool = False,
) -> Posterior | None:
    """Posterior of the latent paths given some modalities only; None where there are none.

    A filter keeps as many states together as its model remembers: targets with memory take part
    in it with all their values missing.

    Args:
        model: The model.
        infer: Posterior of a model's latent paths given data.
        data: The trials.
        names: What is known.
        targets: What is to be predicted.
        causal: Filter.
    """
    if not names:
        return None
    kept = list(names)
    if causal:
        blind = [n for n in targets if n not in kept and model.observations[n].memory(data.dt)]
        data, kept = _blinded(model, data, blind), kept + blind
    part = StateSpaceModel(model.dynamics, {n: model.observations[n] for n in kept})
    return infer(part, data, causal=causal)


def _blinded(model: StateSpaceModel, data: Dataset, names: Sequence[str]) -> Dataset:
    """The data with all values of some modalities missing; new ones are on the latent clock."""
    if not names:
        return data
    trials, kinds = [], dict(data.kinds)
    for trial in data.trials:
        changes = {"values": dict(trial.values), "clock": dict(trial.clock)}
        changes["times"] = dict(trial.times)
        for name in names:
            shape = (trial.length, model.observations[name].channels)
            if name not in trial.values:
                changes["clock"][name] = changes["times"][name] = None
            else:
                shape = trial.values[name].shape
            changes["values"][name] = np.full(shape, np.nan)
        trials.append(replace(trial, **changes))
    kinds |= {n: kinds.get(n, model.observations[n].kinds[0]) for n in names}
    return Dataset(trials, data.dt, kinds)


def predictors_of(
    model: StateSpaceModel,
    posterior: Posterior | None,
    data: Dataset,
    modality: str,
    *,
    seen: bool,
    samples: int,
    seed: int = 0,
    causal: bool = False,
    rows: Sequence[np.ndarray] | None = None,
) -> Predictors:
    """Predictors of the samples of a modality for draws from a posterior of the latent paths.

    Args:
        model: The model.
        posterior: Posterior of the latent paths; None is the prior.
        data: The trials.
        modality: The modality.
        seen: Whether the posterior knows its visible values.
        samples: Latent draws.
        seed: Seed of the draws.
        causal: Whether the posterior is a filter's.
        rows: Samples wanted of each trial; all by default.
    """
    observation, dt = model.observations[modality], data.dt
    steps = [_steps(data, b, modality) for b in range(len(data))]
    known = covariates_of(observation, data, modality, seen=seen)
    if rows is not None:
        index = [torch.from_numpy(np.asarray(r, dtype=np.int64)) for r in rows]
        steps = [s[i] for s, i in zip(steps, index, strict=True)]
        known = [None if c is None else c[i] for c, i in zip(known, index, strict=True)]
    memory = observation.memory(dt)
    if causal and memory and posterior is not None:
        return _causal_predictors(observation, posterior, steps, known, samples, seed, dt)
    keep = None if memory else steps
    if posterior is None:
        paths = draw_prior_paths(
            model, samples, data.lengths.tolist(), data.batch().inputs, seed=seed, steps=keep
        )
    else:
        paths = draw_paths(posterior, samples, seed=seed, steps=keep)
    clocks = steps if memory else [None] * len(steps)
    return PathPredictors(observation, paths, clocks, known, dt=dt)


def _causal_predictors(
    observation: ObservationModel,
    posterior: Posterior,
    steps: list[Tensor],
    known: list[Tensor | None],
    samples: int,
    seed: int,
    dt: float,
) -> GivenPredictors:
    """Predictors of a modality with memory, each from what a filter knows of its last states."""
    histories = draw_histories(posterior, samples, observation.memory(dt) + 1, seed=seed)
    counts = [len(s) for s in steps]
    shape = (samples, len(steps), max(counts), observation.predictors)
    out = torch.zeros(shape, dtype=torch.float64)
    for b, (at, r) in enumerate(zip(steps, known, strict=True)):
        out[:, b, : len(at)] = last_features(observation, histories[:, b, at], r, dt)
    return GivenPredictors(out, counts)


def covariates_of(
    observation: ObservationModel, data: Dataset, modality: str, *, seen: bool
) -> list[Tensor | None]:
    """Covariates of the samples of each trial ``[n_b, R]``, None where there are none."""
    if observation.n_covariates == 0 or modality not in data.names:
        return [None] * len(data)
    m = data.batch().modalities[modality]
    if not seen:
        m = replace(m, y=torch.zeros_like(m.y), mask=torch.zeros_like(m.mask))
    with torch.no_grad():
        columns = observation.covariates(m)
    counts = [len(t.values[modality]) for t in data.trials]
    return [None if columns is None else columns[b, :n] for b, n in enumerate(counts)]


def _steps(data: Dataset, b: int, modality: str) -> Tensor:
    trial = data.trials[b]
    found = trial.steps(modality) if modality in data.names else np.arange(trial.length)
    return torch.from_numpy(np.asarray(found, dtype=np.int64))


def _unknown(what: str, wrong: Sequence[str], known: Sequence[str]) -> DataError:
    names = ", ".join(repr(n) for n in known)
    return DataError(
        what,
        got=", ".join(repr(n) for n in wrong),
        wanted=f"one of {names}" if names else "a modality that model and data share",
    )
