"""Which trials and steps go where: selections, splits, folds and held-out entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plssm.data.clock import TOLERANCE
from plssm.data.trial import Trial
from plssm.errors import DataError

__all__ = [
    "fold_indices",
    "hide",
    "reveal",
    "select",
    "split_time",
    "split_trials",
    "trial_indices",
]


def trial_indices(chosen: Any, names: Sequence[str]) -> list[int]:
    """Return the numbers of the chosen trials.

    Args:
        chosen: A number, a name, a slice, a boolean mask, or a list of numbers or of names.
        names: Names of all trials.

    Returns:
        Trial numbers in the order in which they were asked for.

    Raises:
        DataError: If there is no such trial.
    """
    count = len(names)
    if isinstance(chosen, slice):
        return list(range(count))[chosen]
    if isinstance(chosen, Iterable) and not isinstance(chosen, str):
        entries = list(chosen)
    else:
        entries = [chosen]
    if entries and all(isinstance(e, bool | np.bool_) for e in entries) and len(entries) == count:
        return list(np.flatnonzero(entries))
    found: list[int] = []
    for entry in entries:
        if isinstance(entry, str):
            matches = [i for i, name in enumerate(names) if name == entry]
        else:
            matches = [int(entry) % count] if -count <= int(entry) < count else []
        if not matches:
            raise DataError(
                "there is no such trial",
                axis="trial",
                got=repr(entry),
                wanted=f"a number below {count} or one of the names {_short(names)}",
                fix="look at trial_names",
            )
        found.extend(matches)
    return found


def split_trials(count: int, fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Return trial numbers of each part: shuffled by the seed, each part in ascending order."""
    sizes = np.diff(_boundaries(fractions, count, "trials", None))
    order = np.random.default_rng(seed).permutation(count)
    return [sorted(map(int, part)) for part in np.split(order, np.cumsum(sizes)[:-1])]


def split_time(trial: Trial, fractions: Sequence[float], dt: float) -> list[Trial]:
    """Return contiguous parts of one trial, in order, with these fractions of its steps."""
    cuts = _boundaries(fractions, trial.length, "steps", trial.name)
    return [trial.cut(int(a), int(b), dt) for a, b in zip(cuts[:-1], cuts[1:])]


def fold_indices(
    groups: Sequence[tuple[str, ...]], n: int | None, seed: int, by: str
) -> list[tuple[list[int], list[int]]]:
    """Return (train, test) trial numbers of each fold; a group is never torn apart.

    Args:
        groups: Group of each trial.
        n: Number of folds; None leaves one group out at a time, in order.
        seed: Shuffles the groups before they are dealt to n folds.
        by: Name of the groups, for error messages.

    Returns:
        One pair per fold.

    Raises:
        DataError: If there are fewer than two groups or fewer groups than folds.
    """
    unique = list(dict.fromkeys(groups))
    folds = len(unique) if n is None else n
    if not 2 <= folds <= len(unique):
        raise DataError(
            f"cannot make {folds} folds by {by}",
            got=f"{len(unique)} groups",
            wanted="at least 2 folds and at least one group in each",
            fix="choose another by= or a smaller n=",
        )
    order = np.arange(len(unique))
    if n is not None:
        order = np.random.default_rng(seed).permutation(len(unique))
    pairs = []
    for part in np.array_split(order, folds):
        held = {unique[i] for i in part}
        test = [i for i, group in enumerate(groups) if group in held]
        pairs.append(([i for i, group in enumerate(groups) if group not in held], test))
    return pairs


def select(
    trials: Sequence[Trial],
    dt: float,
    *,
    chosen: Any,
    subjects: str | Sequence[str] | None,
    sessions: str | Sequence[str] | None,
    time: tuple[float, float] | None,
) -> list[Trial]:
    """Return the trials that meet all conditions, cut to a window of time.

    Args:
        trials: All trials.
        dt: Seconds per latent step.
        chosen: What :func:`trial_indices` takes, or None for all.
        subjects: Subject or subjects to keep, None for all.
        sessions: Session or sessions to keep, None for all.
        time: Window (start, stop) in seconds from the trial start, None for all of time.

    Returns:
        At least one trial.

    Raises:
        DataError: If a name is unknown or nothing is left.
    """
    found = list(trials)
    if chosen is not None:
        found = [trials[i] for i in trial_indices(chosen, [t.name for t in trials])]
    if subjects is not None:
        allowed = _known_names(subjects, {t.subject for t in trials}, "subject")
        found = [t for t in found if t.subject in allowed]
    if sessions is not None:
        allowed = _known_names(sessions, {t.session for t in trials}, "session")
        found = [t for t in found if t.session in allowed]
    if time is not None:
        start, stop = _time_windows(time)[0]
        found = [w for t in found if (w := t.window(start, stop, dt)) is not None]
    if not found:
        raise DataError("no trial meets the conditions", got="0 trials", wanted="at least one")
    return found


def hide(
    trials: Sequence[Trial], dt: float, modality: str, *, channels: Any, times: Any
) -> list[Trial]:
    """Return the trials with observed entries moved from values to hidden.

    Args:
        trials: All trials.
        dt: Seconds per latent step.
        modality: The modality.
        channels: Channel number or numbers, None for all.
        times: Half-open window or windows in seconds from the trial start, None for all of time.

    Returns:
        Trials with NaN in the hidden entries of values, and those entries in hidden.

    Raises:
        DataError: If a channel is unknown or no observed entry would be hidden.
    """
    numbers = _channel_numbers(channels, trials[0].values[modality].shape[1], modality)
    windows = _time_windows(times)
    chosen = [_chosen(t, modality, numbers, windows, dt) for t in trials]
    if not any(c.any() for c in chosen):
        raise DataError(
            "no observed entry would be hidden",
            modality=modality,
            got=f"channels={channels!r}, times={times!r}",
            wanted="a choice that holds observed entries",
            fix="check times against the trial lengths, in seconds",
        )
    return [_moved(t, modality, c) for t, c in zip(trials, chosen)]


def reveal(trial: Trial) -> Trial:
    """Return the trial with its hidden entries put back."""
    back = {m: np.where(np.isnan(h), trial.values[m], h) for m, h in trial.hidden.items()}
    return replace(trial, values={**trial.values, **back}, hidden={})


def _chosen(
    trial: Trial, modality: str, channels: np.ndarray, windows: np.ndarray, dt: float
) -> np.ndarray:
    seconds = trial.seconds(modality, dt)[:, None] + TOLERANCE * dt
    rows = ((seconds >= windows[:, 0]) & (seconds < windows[:, 1])).any(axis=1)
    chosen = np.zeros(trial.values[modality].shape, dtype=bool)
    chosen[np.ix_(rows, channels)] = True
    return chosen & ~np.isnan(trial.values[modality])


def _moved(trial: Trial, modality: str, chosen: np.ndarray) -> Trial:
    values = trial.values[modality]
    before = trial.hidden.get(modality, np.full(values.shape, np.nan))
    return replace(
        trial,
        values={**trial.values, modality: np.where(chosen, np.nan, values)},
        hidden={**trial.hidden, modality: np.where(chosen, values, before)},
    )


def _channel_numbers(channels: Any, count: int, modality: str) -> np.ndarray:
    numbers = np.arange(count) if channels is None else np.atleast_1d(np.asarray(channels))
    whole = numbers.dtype.kind in "iu" and numbers.size > 0
    if not whole or (numbers < -count).any() or (numbers >= count).any():
        raise DataError(
            "there is no such channel",
            modality=modality,
            axis="channel",
            got=repr(channels),
            wanted=f"whole numbers below {count}",
        )
    return numbers % count


def _known_names(wanted: Any, known: set[str], what: str) -> set[str]:
    names = {str(wanted)} if isinstance(wanted, str | int) else {str(w) for w in wanted}
    if not names <= known:
        raise DataError(
            f"there is no such {what}",
            got=repr(sorted(names - known)[0]),
            wanted=f"some of {_short(sorted(known))}",
        )
    return names


def _time_windows(times: Any) -> np.ndarray:
    try:
        windows = np.array([-np.inf, np.inf] if times is None else times, dtype=float)
    except (TypeError, ValueError):
        windows = np.zeros(0)
    windows = np.atleast_2d(windows)
    if windows.ndim != 2 or windows.shape[1] != 2 or not (windows[:, 0] < windows[:, 1]).all():
        raise DataError(
            "times are not windows",
            axis="time",
            got=repr(times),
            wanted="(start, stop) or a list of such pairs, in seconds, start < stop",
        )
    return windows


def _boundaries(
    fractions: Sequence[float], count: int, what: str, trial: str | None
) -> np.ndarray:
    shares = np.asarray(fractions, dtype=float)
    if shares.ndim != 1 or (shares <= 0).any() or not np.isclose(shares.sum(), 1.0, atol=1e-6):
        raise DataError(
            "fractions do not make a whole",
            got=f"{tuple(np.ravel(shares))}",
            wanted="positive numbers that sum to 1",
            fix="for example fractions=(.7, .1, .2)",
        )
    cuts = np.rint(np.cumsum(np.concatenate([[0.0], shares])) * count).astype(int)
    if (np.diff(cuts) < 1).any():
        raise DataError(
            "a part would be empty",
            trial=trial,
            got=f"{count} {what} for fractions {tuple(shares)}",
            wanted=f"at least one of the {what} in each part",
            fix="use fewer parts, larger fractions or another by=",
        )
    return cuts


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
