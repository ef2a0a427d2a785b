"""The forms in which a user may hand in arrays, turned into one float64 array per trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from plssm.errors import DataError

__all__ = ["names_per_trial", "numbers", "per_trial", "times_per_trial"]


def numbers(value: Any, modality: str, trial: str | int | None = None) -> np.ndarray:
    """Return anything array-like as a new float64 array; missing values become NaN.

    Args:
        value: Array, tensor, DataFrame, Series, masked array or nested sequence of numbers.
        modality: Name used in error messages.
        trial: Trial used in error messages.

    Returns:
        A float64 array that shares no memory with the value.

    Raises:
        DataError: If the value does not hold real numbers or is ragged.
    """
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        elif isinstance(value, pd.DataFrame | pd.Series):
            value = value.to_numpy(dtype=np.float64, na_value=np.nan)
        elif isinstance(value, np.ma.MaskedArray):
            value = np.ma.filled(value.astype(np.float64), np.nan)
        array = np.asarray(value)
        if array.dtype.kind not in "fiubO":
            raise TypeError(f"dtype {array.dtype}")
        return np.array(array, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise DataError(
            "the array does not hold real numbers, or its rows differ in length",
            modality=modality,
            trial=trial,
            got=str(error),
            wanted="a rectangular array of real numbers",
            fix="encode labels as 0..K-1, and give trials of different length as a list of arrays",
        ) from error


def per_trial(value: Any, modality: str) -> list[np.ndarray | None]:
    """Return the arrays of each trial.

    Args:
        value: Array [T, N], [T] (one channel) or [trials, T, N], or a list with one [T, N] or
            [T] array per trial, where None stands for a trial without the modality.
        modality: Name used in error messages.

    Returns:
        A list with an array [T, N] (or None) per trial.

    Raises:
        DataError: If the value has another form.
    """
    if _is_list_of_trials(value):
        return [_two_axes(v, modality, i) for i, v in enumerate(value)]
    array = numbers(value, modality)
    if array.ndim == 3:
        return list(array)
    return [_two_axes(array, modality, None)]


def times_per_trial(value: Any, modality: str, trials: int) -> list[np.ndarray | None]:
    """Return the sample times of each trial.

    Args:
        value: Seconds [n] for all trials, [trials, n], or a list with one array (or None) each.
        modality: Name used in error messages.
        trials: Number of trials.

    Returns:
        A list with an array [n] (or None) per trial.

    Raises:
        DataError: If the value has another form.
    """
    if value is None:
        return [None] * trials
    if _is_list_of_trials(value):
        lists = [None if v is None else numbers(v, modality, i) for i, v in enumerate(value)]
    else:
        array = numbers(value, modality)
        lists = [array] * trials if array.ndim == 1 else list(np.atleast_1d(array))
    for i, times in enumerate(lists):
        if times is not None and times.ndim != 1:
            raise DataError(
                "times have the wrong number of axes",
                modality=modality,
                trial=i,
                axis="time",
                got=f"shape {times.shape}",
                wanted="one time in seconds per sample, shape [n]",
                fix="give one array for all trials or a list with one array per trial",
            )
    return lists


def names_per_trial(value: Any, what: str, trials: int, default: Iterable[str]) -> list[str]:
    """Return a name for each trial from one name for all, a list, or None (the default)."""
    if value is None:
        return list(default)
    array = np.asarray(value)
    if array.ndim == 0:
        return [str(array.item())] * trials
    names = [str(v) for v in array.ravel()]
    if len(names) != trials:
        raise DataError(
            f"{what} do not match the trials",
            got=f"{len(names)} {what}",
            wanted=f"{trials}, one per trial",
            fix=f"give {what}= a list with one entry per trial",
        )
    return names


def _is_list_of_trials(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == object and value.ndim == 1 and any(map(_is_array, value))
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if any(v is None or _is_array(v) for v in value):
        return True
    sized = [len(v) for v in value if isinstance(v, Sequence) and not isinstance(v, str)]
    return len(sized) == len(value) and len(set(sized)) > 1


def _is_array(value: Any) -> bool:
    tables = np.ndarray | torch.Tensor | pd.DataFrame | pd.Series
    return value is None or (isinstance(value, tables) and np.ndim(value) > 0)


def _two_axes(value: Any, modality: str, trial: int | None) -> np.ndarray | None:
    if value is None:
        return None
    array = numbers(value, modality, trial)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(
            "the array has the wrong number of axes",
            modality=modality,
            trial=trial,
            got=f"shape {array.shape}",
            wanted="[T, N], [T], [trials, T, N], or a list with one [T, N] per trial",
            fix="put time on the first axis of a trial and channels on the last",
        )
    return array
