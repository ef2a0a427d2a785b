"""From what a user handed in to checked trials: the border of every in-memory dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plssm.data.clock import own_clock, steps_in
from plssm.data.sources import Sources
from plssm.data.trial import Trial
from plssm.data.validation import (
    check_complete,
    check_increasing,
    check_inside,
    check_same_length,
    check_values,
)
from plssm.errors import DataError

__all__ = ["trials_from_sources"]


def trials_from_sources(
    sources: Sources, dt: float, kinds: Mapping[str, str]
) -> tuple[Trial, ...]:
    """Return one checked trial per entry of the sources.

    Args:
        sources: What the user handed in.
        dt: Seconds per latent step.
        kinds: Kind of each modality.

    Returns:
        The trials.

    Raises:
        DataError: If anything is wrong; the message names modality, trial and axis.
    """
    columns = {m: _columns(v, m, "channels") for m, v in sources.values.items()}
    regressors = {m: _columns(v, m, "nuisance regressors") for m, v in sources.nuisance.items()}
    for rows, what in ((sources.inputs, "inputs"), (sources.latent, "latent")):
        if rows is not None:
            _columns(rows, what, "columns")
    count = len(sources.names)
    return tuple(_one_trial(sources, i, dt, kinds, columns, regressors) for i in range(count))


def _one_trial(
    sources: Sources,
    i: int,
    dt: float,
    kinds: Mapping[str, str],
    columns: Mapping[str, int],
    regressors: Mapping[str, int],
) -> Trial:
    name = sources.names[i]
    times = {m: _own_times(sources, m, i, name) for m in sources.values}
    length = _length(sources, i, times, dt)
    samples = {m: length if t is None else len(t) for m, t in times.items()}
    values, hidden, nuisance = {}, {}, {}
    clock: dict[str, np.ndarray | None] = {}
    for m in sources.values:
        values[m] = _rows(sources.values[m][i], samples[m], columns[m], m, name, np.nan)
        check_values(values[m], kinds[m], m, name)
        if m in sources.hidden:
            hidden[m] = _rows(sources.hidden[m][i], samples[m], columns[m], m, name, np.nan)
            check_values(hidden[m], kinds[m], m, name)
        if m in sources.nuisance:
            nuisance[m] = _rows(sources.nuisance[m][i], samples[m], regressors[m], m, name, 0.0)
            check_complete(nuisance[m], m, name)
        clock[m] = None
        if (seconds := times[m]) is not None:
            check_inside(seconds, length, dt, m, name)
            clock[m] = own_clock(seconds, length, dt)
    inputs = None if sources.inputs is None else sources.inputs[i]
    latent = None if sources.latent is None else sources.latent[i]
    if inputs is not None:
        check_complete(inputs, "inputs", name)
    return Trial(
        values=values,
        clock=clock,
        times=times,
        nuisance=nuisance,
        hidden=hidden,
        inputs=inputs,
        length=length,
        start=sources.starts[i],
        name=name,
        subject=sources.subjects[i],
        session=sources.sessions[i],
        latent=latent,
    )


def _own_times(sources: Sources, modality: str, i: int, name: str) -> np.ndarray | None:
    if modality not in sources.times:
        return None
    times, values = sources.times[modality][i], sources.values[modality][i]
    if times is None and values is None:
        return np.zeros(0)
    wanted = len(values) if values is not None else len(times) if times is not None else 0
    if times is None or len(times) != wanted:
        raise DataError(
            "times and values disagree",
            modality=modality,
            trial=name,
            axis="time",
            got="no times" if times is None else f"{len(times)} times",
            wanted=f"{wanted}, one per sample",
            fix="give one time in seconds from the trial start for each sample",
        )
    check_increasing(times, modality, name)
    return times


def _length(sources: Sources, i: int, times: Mapping[str, np.ndarray | None], dt: float) -> int:
    name = sources.names[i]
    rows = {} if sources.lengths is None else {"lengths": sources.lengths[i]}
    for m, values in sources.values.items():
        rows_here = values[i]
        if times[m] is None and rows_here is not None:
            rows[m] = len(rows_here)
    for what, entries in (("inputs", sources.inputs), ("latent", sources.latent)):
        if entries is not None:
            rows[what] = len(entries[i])
    if rows:
        return check_same_length(rows, name)
    last = [t[-1] for t in times.values() if t is not None and len(t)]
    if not last:
        raise DataError(
            "the trial has no sample of any modality",
            trial=name,
            axis="time",
            got="0 samples",
            wanted="at least 1",
            fix="leave the trial out, or give its number of latent steps as lengths=",
        )
    return max(steps_in(max(last), dt) + 1, 1)


def _rows(
    array: np.ndarray | None, rows: int, columns: int, modality: str, name: str, fill: float
) -> np.ndarray:
    if array is None:
        return np.full((rows, columns), fill)
    if array.shape != (rows, columns):
        raise DataError(
            "an array that belongs to the samples has another shape than they have",
            modality=modality,
            trial=name,
            got=f"shape {array.shape}",
            wanted=f"[{rows}, {columns}]",
            fix="give one row per sample of the modality, on its own clock if it has one",
        )
    return array


def _columns(entries: Sequence[np.ndarray | None], modality: str, what: str) -> int:
    widths = {a.shape[1]: i for i, a in reversed(list(enumerate(entries))) if a is not None}
    if not widths or 0 in widths:
        raise DataError(
            f"there are no {what}" if widths else "every trial is None",
            modality=modality,
            axis="channel",
            wanted="at least one trial with at least one column",
            fix="leave the modality out",
        )
    if len(widths) > 1:
        (a, i), (b, j) = sorted(widths.items(), key=lambda item: item[1])[:2]
        raise DataError(
            f"trials differ in their number of {what}",
            modality=modality,
            trial=j,
            axis="channel",
            got=f"{b} here, {a} in trial '{i}'",
            wanted=f"the same {what} in every trial",
            fix="fill channels that a trial lacks with NaN",
        )
    return next(iter(widths))
