"""Putting datasets together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from plssm.data.trial import Trial
from plssm.errors import DataError

if TYPE_CHECKING:
    from plssm.data.dataset import Dataset

__all__ = ["concatenate"]


def concatenate(datasets: Sequence[Dataset]) -> tuple[list[Trial], float, dict[str, str]]:
    """Return the trials, dt and kinds of several datasets taken together.

    A modality that one dataset lacks is missing in its trials.

    Args:
        datasets: At least one dataset.

    Returns:
        Trials, dt and kinds.

    Raises:
        DataError: If they differ in dt, or in kind or shape of a modality they share.
    """
    datasets = list(datasets)
    if not datasets:
        raise DataError("there is nothing to put together", got="no dataset", wanted="one or more")
    first = datasets[0]
    kinds: dict[str, str] = {}
    channels: dict[str, int] = {}
    regressors: dict[str, int] = {}
    for i, data in enumerate(datasets):
        _check_equal("dt", data.dt, first.dt, i)
        _check_equal("number of inputs", data.n_inputs, first.n_inputs, i)
        for m, kind in data.kinds.items():
            nuisance = data.trials[0].nuisance.get(m)
            width = 0 if nuisance is None else nuisance.shape[1]
            _check_equal("kind", kind, kinds.setdefault(m, kind), i, m)
            count = data.channels[m]
            _check_equal("number of channels", count, channels.setdefault(m, count), i, m)
            _check_equal("number of regressors", width, regressors.setdefault(m, width), i, m)
    own_clock = {
        m: any(t.times.get(m) is not None for data in datasets for t in data.trials) for m in kinds
    }
    blank = partial(_completed, channels=channels, regressors=regressors, own_clock=own_clock)
    trials = [blank(t) for data in datasets for t in data.trials]
    return trials, first.dt, kinds


def _completed(
    trial: Trial,
    *,
    channels: dict[str, int],
    regressors: dict[str, int],
    own_clock: dict[str, bool],
) -> Trial:
    values, times, clock, nuisance = {}, {}, {}, {}
    for m, count in channels.items():
        present = m in trial.values
        rows = 0 if own_clock[m] else trial.length
        values[m] = trial.values[m] if present else np.full((rows, count), np.nan)
        times[m] = trial.times[m] if present else (np.zeros(0) if own_clock[m] else None)
        absent = np.zeros(0, dtype=np.int64) if own_clock[m] else None
        clock[m] = trial.clock[m] if present else absent
        if regressors[m]:
            nuisance[m] = trial.nuisance[m] if present else np.zeros((rows, regressors[m]))
    return replace(trial, values=values, times=times, clock=clock, nuisance=nuisance)


def _check_equal(
    what: str, got: object, wanted: object, number: int, modality: str | None = None
) -> None:
    if got != wanted:
        raise DataError(
            f"dataset {number} cannot be joined: its {what} differs",
            modality=modality,
            got=got,
            wanted=wanted,
            fix="make the datasets alike before joining them",
        )
