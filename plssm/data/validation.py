"""Checks at the border: data are looked at once, when they come in, and refused with reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from plssm.data.clock import TOLERANCE
from plssm.data.trial import KINDS, Trial
from plssm.errors import DataError

__all__ = [
    "check_channels",
    "check_complete",
    "check_dt",
    "check_increasing",
    "check_inside",
    "check_known",
    "check_same_length",
    "check_values",
    "resolve_kinds",
]


def check_dt(dt: float) -> float:
    """Return dt as a float; raise DataError unless it is a positive finite number."""
    try:
        value = float(dt)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError("dt is not a step length", got=repr(dt), wanted="seconds, dt > 0")
    return value


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise DataError for the first name that is no modality."""
    known = list(known)
    for name in names:
        if name not in known:
            raise DataError(
                f"{what} names an unknown modality",
                got=repr(name),
                wanted=f"one of {known}",
                fix=f"spell the names in {what} like the modalities",
            )


def resolve_kinds(kinds: Mapping[str, str] | None, modalities: Iterable[str]) -> dict[str, str]:
    """Return the kind of each modality ("continuous" where none is named)."""
    modalities, kinds = list(modalities), dict(kinds or {})
    check_known(kinds, modalities, "kinds")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise DataError("unknown kind", modality=name, got=repr(kind), wanted=KINDS)
    return {m: str(kinds.get(m, "continuous")) for m in modalities}


def check_values(values: np.ndarray, kind: str, modality: str, trial: str) -> None:
    """Raise DataError if values [n, N] are infinite or impossible for their kind.

    Args:
        values: Observations [n, N], NaN = missing.
        kind: One of KINDS.
        modality: Name used in error messages.
        trial: Trial used in error messages.
    """
    finite = "replace infinite values by NaN (missing) or by the true value"
    _refuse(np.isinf(values), values, "infinite value", "finite, or NaN", finite, modality, trial)
    if kind in ("continuous", "bold"):
        return
    noun = {"count": "a count", "label": "a label", "ordinal": "an ordinal level"}[kind]
    fix = {
        "count": "hand in raw counts per step, or kind 'continuous' for rates",
        "label": "encode the K classes as 0..K-1",
        "ordinal": "encode the K levels as 0..K-1",
    }[kind]
    whole = "a whole number >= 0"
    _refuse(values < 0, values, f"{noun} is negative", whole, fix, modality, trial)
    broken = np.isfinite(values) & (values != np.floor(values))
    _refuse(broken, values, f"{noun} is not a whole number", whole, fix, modality, trial)


def check_complete(values: np.ndarray, modality: str, trial: str) -> None:
    """Raise DataError unless all entries of an array [n, K] (inputs, nuisance) are finite."""
    _refuse(
        ~np.isfinite(values),
        values,
        "a known regressor is missing or infinite",
        "finite numbers",
        "interpolate it, or set it to zero where nothing was given",
        modality,
        trial,
    )


def check_increasing(times: np.ndarray, modality: str, trial: str | None = None) -> None:
    """Raise DataError unless times [n] are finite and strictly increasing."""
    if not np.isfinite(times).all():
        at = int(np.flatnonzero(~np.isfinite(times))[0])
        raise DataError(
            f"time of sample {at} is not finite",
            modality=modality,
            trial=trial,
            axis="time",
            got=times[at],
            wanted="seconds",
            fix="leave out samples of unknown time",
        )
    falls = np.flatnonzero(np.diff(times) <= 0)
    if falls.size:
        at = int(falls[0])
        twice = times[at] == times[at + 1]
        raise DataError(
            "two samples have the same time" if twice else "times are not sorted",
            modality=modality,
            trial=trial,
            axis="time",
            got=f"{times[at]:g} s then {times[at + 1]:g} s (samples {at} and {at + 1})",
            wanted="strictly increasing seconds",
            fix="merge the repeated samples" if twice else "sort times and values together",
        )


def check_inside(times: np.ndarray, length: int, dt: float, modality: str, trial: str) -> None:
    """Raise DataError if a sample time [n] lies outside the trial of length steps of dt."""
    low, high = -0.5 * dt - TOLERANCE * dt, length * dt + TOLERANCE * dt
    outside = np.flatnonzero((times < low) | (times > high))
    if outside.size:
        raise DataError(
            "a sample lies outside the trial",
            modality=modality,
            trial=trial,
            axis="time",
            got=f"{times[outside[0]]:g} s (sample {outside[0]})",
            wanted=f"seconds from the trial start, between 0 and {length * dt:g} "
            f"({length} steps of {dt:g} s)",
            fix="count times from the start of the trial, in seconds, and check dt",
        )


def check_same_length(rows: Mapping[str, int], trial: str) -> int:
    """Return the common number of steps; raise DataError where the sources of a trial differ.

    Args:
        rows: Number of rows of each source on the latent clock.
        trial: Trial used in error messages.

    Returns:
        Latent steps of the trial.
    """
    names = list(rows)
    for name in names[1:]:
        if rows[name] != rows[names[0]]:
            raise DataError(
                f"its length differs from {names[0]!r} on the same latent clock",
                modality=name,
                trial=trial,
                axis="time",
                got=f"{rows[name]} steps",
                wanted=f"{rows[names[0]]} steps",
                fix="cut or pad with NaN to one length, or give a modality its own times=",
            )
    length = rows[names[0]]
    if length < 1:
        raise DataError(
            "the trial is empty",
            modality=names[0],
            trial=trial,
            axis="time",
            got="0 steps",
            wanted="at least 1 step",
            fix="leave empty trials out",
        )
    return length


def check_channels(trials: Sequence[Trial], kinds: Mapping[str, str]) -> None:
    """Raise DataError for channels that are never observed or never vary in the whole dataset.

    Args:
        trials: All trials of the dataset.
        kinds: Kind of each modality; only "continuous" and "bold" channels have to vary.
    """
    optional = "or pass check_channels=False"
    for modality, kind in kinds.items():
        low, high, count = _ranges(trials, modality)
        for channel in np.flatnonzero(count == 0)[:1]:
            raise DataError(
                "the channel is NaN in every trial",
                modality=modality,
                axis=f"channel {channel}",
                got="no observed value",
                wanted="at least one",
                fix=f"drop the channel {optional}",
            )
        flat = (count > 1) & (low == high)
        if kind in ("continuous", "bold") and flat.any():
            channel = int(np.flatnonzero(flat)[0])
            raise DataError(
                "the channel never varies (zero variance)",
                modality=modality,
                axis=f"channel {channel}",
                got=f"{low[channel]:g} at all {count[channel]} observed samples",
                wanted="a channel that varies",
                fix=f"drop the channel {optional}",
            )


def _ranges(trials: Sequence[Trial], modality: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = []
    for trial in trials:
        arrays.append(trial.values[modality])
        arrays.extend([trial.hidden[modality]] if modality in trial.hidden else [])
    values = np.concatenate(arrays)
    seen = ~np.isnan(values)
    low = np.where(seen, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(seen, values, -np.inf).max(axis=0, initial=-np.inf)
    return low, high, seen.sum(axis=0)


def _refuse(
    bad: np.ndarray,
    values: np.ndarray,
    what: str,
    wanted: str,
    fix: str,
    modality: str,
    trial: str,
) -> None:
    if bad.any():
        row, channel = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            what,
            modality=modality,
            trial=trial,
            axis=f"channel {channel}, sample {row}",
            got=f"{values[row, channel]:g} ({int(bad.sum())} such entries)",
            wanted=wanted,
            fix=fix,
        )
