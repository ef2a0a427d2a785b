"""Scores of given entries under a posterior of the latent path: hidden ones, decoded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from plssm.data import Dataset, Trial
from plssm.errors import DataError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior
from plssm.prediction.cross_modal import Infer, given_names, infer_given, predictors_of
from plssm.prediction.predictive import Prediction
from plssm.scoring.table import score_table
from plssm.scoring.tally import Tally
from plssm.scoring.yardsticks import yardsticks

__all__ = ["score_entries", "score_unseen"]


def score_unseen(
    model: StateSpaceModel,
    infer: Infer,
    data: Dataset,
    *,
    given: Sequence[str] | None,
    baselines: Mapping[str, Baseline],
    samples: int = 200,
    seed: int = 0,
    causal: bool = False,
) -> pd.DataFrame:
    """Scores of the hidden entries of the data, or of the modalities that are not given.

    Args:
        model: The model, float64.
        infer: Posterior of a model's latent paths given data.
        data: The trials. Where entries are hidden, exactly those are scored; otherwise all
            entries of the modalities that are not given.
        given: Modalities that the posterior may see; None for all.
        baselines: Training statistics by modality.
        samples: Latent draws.
        seed: Seed of the draws.
        causal: Use data up to each step only.

    Returns:
        The table of :func:`score_entries`.

    Raises:
        DataError: If a name is unknown or nothing is left to be scored.
    """
    names = given_names(model, data, given)
    shared = [name for name in model.observations if name in data.names]
    if any(len(trial.hidden) for trial in data.trials):
        truth = {n: [_hidden(t, n) for t in data.trials] for n in shared}
    else:
        truth = {n: [t.values[n] for t in data.trials] for n in shared if n not in names}
    if not any(np.isfinite(y).any() for entries in truth.values() for y in entries):
        raise DataError(
            "nothing is left to be scored",
            got=f"given={names}, and no observed entry besides",
            wanted="a modality with data that is not given, or hidden entries",
            fix="give fewer modalities, or hide entries with Dataset.hold_out",
        )
    for name in truth:
        StateSpaceModel(model.dynamics, {name: model.observations[name]}).check(data)
    return score_entries(
        model,
        data,
        infer_given(model, infer, data, names, causal=causal, targets=list(truth)),
        truth,
        given=names,
        baselines=baselines,
        samples=samples,
        seed=seed,
        causal=causal,
    )


def _hidden(trial: Trial, name: str) -> np.ndarray:
    values = trial.values[name]
    return trial.hidden.get(name, np.full(values.shape, np.nan))


def score_entries(
    model: StateSpaceModel,
    data: Dataset,
    posterior: Posterior | None,
    truth: Mapping[str, Sequence[np.ndarray]],
    *,
    given: Sequence[str],
    baselines: Mapping[str, Baseline],
    samples: int = 200,
    seed: int = 0,
    causal: bool = False,
) -> pd.DataFrame:
    """Scores of entries that the posterior has not seen.

    Args:
        model: The model, float64.
        data: The trials.
        posterior: Posterior of their latent paths; None is the prior.
        truth: By modality the entries of each trial to be scored ``[n, N]``, NaN elsewhere.
        given: Modalities whose visible values the posterior knows.
        baselines: Training statistics by modality.
        samples: Latent draws.
        seed: Seed of the draws.
        causal: Whether the posterior is a filter's.

    Returns:
        One row per modality with entries: ``values``, ``log_likelihood`` (nats per value), the
        scores of its kind, ``error``, and ``floor``: the error of the training mean, of the most
        frequent class or of the training frequencies of the levels.
    """
    sticks, rows = yardsticks(model, data), {}
    for name, entries in truth.items():
        index = [np.flatnonzero(np.isfinite(y).any(1)) for y in entries]
        if not any(len(i) for i in index):
            continue
        tally = Tally(sticks[name], baselines[name])
        source = predictors_of(
            model, posterior, data, name, seen=name in given, samples=samples, seed=seed,
            causal=causal, rows=index,
        )  # fmt: skip
        for b, (y, i) in enumerate(zip(entries, index, strict=True)):
            if not len(i):
                continue
            prediction = Prediction(
                model.observations[name], source.trial(b), np.zeros(0), seed=seed
            )
            floor = np.broadcast_to(baselines[name].mean, (len(i), len(baselines[name].mean)))
            tally.add(y[i], made=tally.add_details(y[i], prediction, seed=seed + b), floor=floor)
        rows[name] = {
            "values": tally.values,
            **tally.summary(),
            "error": tally.mean("made"),
            "floor": tally.mean("floor"),
        }
    return score_table(rows)
