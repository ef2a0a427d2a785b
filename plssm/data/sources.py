"""What a user handed in, in any of the accepted forms, as one list per source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plssm.data.forms import names_per_trial, numbers, per_trial, times_per_trial
from plssm.data.validation import check_complete, check_known
from plssm.errors import DataError

__all__ = ["Sources"]

_Lists = Mapping[str, list[np.ndarray | None]]


@dataclass(frozen=True)
class Sources:
    """Everything a user handed in, as one list per source with one entry per trial.

    Args:
        values: Observations of each modality [n, N], None where a trial lacks it.
        times: Sample times [n] of the modalities with an own clock.
        nuisance: Nuisance regressors [n, R] of the modalities that have some.
        hidden: Held-out values [n, N] of the modalities that have some.
        inputs: Inputs [T, K] per trial, or None.
        latent: Latent path [T, M] per trial, or None.
        lengths: Latent steps per trial, or None to read them from the arrays.
        starts: Start of each trial in seconds.
        names: Name of each trial.
        subjects: Subject of each trial.
        sessions: Session of each trial.
    """

    values: _Lists
    times: _Lists
    nuisance: _Lists
    hidden: _Lists
    inputs: list[np.ndarray] | None
    latent: list[np.ndarray] | None
    lengths: list[int] | None
    starts: list[float]
    names: list[str]
    subjects: list[str]
    sessions: list[str]

    @classmethod
    def read(
        cls,
        arrays: Mapping[str, Any],
        *,
        times: Mapping[str, Any] | None,
        nuisance: Mapping[str, Any] | None,
        hidden: Mapping[str, Any] | None,
        inputs: Any,
        latent: Any,
        lengths: Any,
        starts: Any,
        trials: Any,
        subjects: Any,
        sessions: Any,
    ) -> Sources:
        """Read all accepted forms; raise DataError where the numbers of trials disagree."""
        values = {m: per_trial(v, m) for m, v in arrays.items()}
        count = len(next(iter(values.values())))
        for extra, what in ((times, "times"), (nuisance, "nuisance"), (hidden, "hidden")):
            check_known(extra or {}, values, what)
        clocks = {m: v for m, v in (times or {}).items() if v is not None}
        regressors = {m: v for m, v in (nuisance or {}).items() if v is not None}
        seconds = {m: times_per_trial(v, m, count) for m, v in clocks.items()}
        known = {m: _shared(per_trial(v, m), count) for m, v in regressors.items()}
        held = {m: per_trial(v, m) for m, v in (hidden or {}).items()}
        named = {"": values, "times": seconds, "nuisance": known, "hidden": held}
        for what, group in named.items():
            for modality, entries in group.items():
                _check_count(entries, count, modality, what)
        return cls(
            values=values,
            times=seconds,
            nuisance=known,
            hidden=held,
            inputs=_complete(inputs, count, "inputs"),
            latent=_complete(latent, count, "latent"),
            lengths=_integers(lengths, count),
            starts=_starts(starts, count),
            names=names_per_trial(trials, "trials", count, map(str, range(count))),
            subjects=names_per_trial(subjects, "subjects", count, ["0"] * count),
            sessions=names_per_trial(sessions, "sessions", count, ["0"] * count),
        )


def _shared(entries: list[np.ndarray | None], count: int) -> list[np.ndarray | None]:
    return entries * count if len(entries) == 1 else entries


def _check_count(entries: Sequence, count: int, modality: str, what: str) -> None:
    if len(entries) != count:
        raise DataError(
            f"the number of trials{f' of {what}' if what else ''} differs from the first modality",
            modality=modality,
            axis="trial",
            got=len(entries),
            wanted=count,
            fix="give every modality one array per trial, None where a trial lacks it",
        )


def _complete(value: Any, count: int, what: str) -> list[np.ndarray] | None:
    if value is None:
        return None
    entries = per_trial(value, what)
    if what == "inputs":  # one series may drive all trials alike
        entries = _shared(entries, count)
    _check_count(entries, count, what, "")
    found = [entry for entry in entries if entry is not None]
    for i, entry in enumerate(entries):
        if entry is None:
            raise DataError(
                f"a trial has no {what}",
                modality=what,
                trial=i,
                got="None",
                wanted="[T, K] numbers",
                fix=f"give zeros where there was none, or leave {what} out for all trials",
            )
    return found


def _integers(lengths: Any, count: int) -> list[int] | None:
    if lengths is None:
        return None
    values = np.atleast_1d(numbers(lengths, "lengths")).ravel()
    _check_count(list(values), count, "lengths", "")
    if (values < 1).any() or (values != np.floor(values)).any():
        raise DataError("lengths are not numbers of steps", got=values, wanted="integers >= 1")
    return [int(v) for v in values]


def _starts(starts: Any, count: int) -> list[float]:
    if starts is None:
        return [0.0] * count
    values = np.atleast_1d(numbers(starts, "starts")).ravel()
    _check_count(list(values), count, "starts", "")
    check_complete(values[:, None], "starts", "all")
    return [float(v) for v in values]
