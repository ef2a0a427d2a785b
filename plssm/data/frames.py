"""From a long pandas table, one row per time step, to the arguments of ``Dataset.from_arrays``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from plssm.data.clock import nearest_step
from plssm.data.validation import check_dt, check_increasing
from plssm.errors import DataError

__all__ = ["frame_arguments"]


def frame_arguments(
    frame: pd.DataFrame,
    columns: Mapping[str, str | Sequence[str]] | None,
    *,
    dt: float | None,
    time: str | None,
    trial: str | None,
    subject: str | None,
    session: str | None,
    inputs: str | Sequence[str] | None,
) -> dict[str, Any]:
    """Return the keyword arguments of ``Dataset.from_arrays`` that a table holds.

    Rows go to the latent steps nearest to their times; steps without a row are missing.

    Args:
        frame: One row per time step.
        columns: Columns of each modality; None takes all other numeric columns as "x".
        dt: Seconds per latent step; None reads it from the time column (1.0 without one).
        time: Column of times in seconds.
        trial: Column that tells trials apart.
        subject: Column of subjects.
        session: Column of sessions.
        inputs: Columns of the inputs.

    Returns:
        Keyword arguments.

    Raises:
        DataError: If columns are absent, times are unsorted or do not lie on a grid of dt.
    """
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise DataError("there is no row", got=type(frame).__name__, wanted="a filled DataFrame")
    keys = [k for k in (subject, session, trial) if k is not None]
    driving = [inputs] if isinstance(inputs, str) else list(inputs or [])
    chosen = _modalities(frame, columns, [*keys, *driving, *([time] if time else [])])
    _check_columns(frame, [*keys, *driving, *([time] if time else []), *sum(chosen.values(), [])])
    pieces = list(frame.groupby(keys, sort=False, dropna=False)) if keys else [((), frame)]
    shown = [", ".join(map(str, k)) if keys else "0" for k, _ in pieces]
    seconds = [None if time is None else _seconds(p, time, n) for n, (_, p) in zip(shown, pieces)]
    dt = _step(seconds) if dt is None else check_dt(dt)
    rows = [_grid(s, len(p), dt, n) for s, n, (_, p) in zip(seconds, shown, pieces)]
    labels = [dict(zip(keys, k)) for k, _ in pieces]
    numbered = [str(i) for i in range(len(pieces))]
    return {
        "arrays": {
            m: [_placed(p, c, r) for (_, p), r in zip(pieces, rows)] for m, c in chosen.items()
        },
        "dt": dt,
        "inputs": [_placed(p, driving, r) for (_, p), r in zip(pieces, rows)] if driving else None,
        "trials": numbered if trial is None else [str(v[trial]) for v in labels],
        "subjects": None if subject is None else [str(v[subject]) for v in labels],
        "sessions": None if session is None else [str(v[session]) for v in labels],
        "starts": None if time is None else [float(s[0]) for s in seconds if s is not None],
    }


def _modalities(
    frame: pd.DataFrame, columns: Mapping[str, str | Sequence[str]] | None, used: list[str]
) -> dict[str, list[str]]:
    if columns is None:
        numeric = frame.select_dtypes("number").columns
        columns = {"x": [c for c in numeric if c not in used]}
    if not columns or not all(len(c) for c in columns.values()):
        raise DataError(
            "there is no modality",
            got=f"columns {list(frame.columns)}",
            wanted="columns={'x': [...]} with at least one column each",
        )
    return {m: [c] if isinstance(c, str) else list(c) for m, c in columns.items()}


def _check_columns(frame: pd.DataFrame, wanted: list[str]) -> None:
    absent = [c for c in wanted if c not in frame.columns]
    if absent:
        raise DataError(
            "the table lacks columns",
            got=list(frame.columns),
            wanted=absent,
            fix="spell the names as in the table",
        )


def _seconds(piece: pd.DataFrame, time: str, trial: str) -> np.ndarray:
    seconds = piece[time].to_numpy(dtype=np.float64, na_value=np.nan)
    check_increasing(seconds, time, trial)
    return seconds


def _step(seconds: list[np.ndarray | None]) -> float:
    gaps = [np.diff(s) for s in seconds if s is not None and len(s) > 1]
    # The lower median: a gap where rows are missing is never taken for the step.
    return float(np.quantile(np.concatenate(gaps), 0.5, method="lower")) if gaps else 1.0


def _grid(seconds: np.ndarray | None, rows: int, dt: float, trial: str) -> np.ndarray:
    if seconds is None:
        return np.arange(rows)
    relative = seconds - seconds[0]
    steps = nearest_step(relative, dt)
    off = np.abs(relative - steps * dt)
    if (np.diff(steps) < 1).any() or off.max() > 0.25 * dt:
        raise DataError(
            "times do not lie on a grid of dt",
            trial=trial,
            axis="time",
            got=f"a deviation of {off.max():g} s, smallest gap {np.diff(seconds).min():g} s",
            wanted=f"multiples of {dt:g} s from the first row of the trial",
            fix="use Recording(...).to_dataset(dt, resample=...) for irregular or faster samples",
        )
    return steps


def _placed(piece: pd.DataFrame, columns: list[str], steps: np.ndarray) -> np.ndarray:
    try:
        values = piece[columns].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            "columns do not hold numbers",
            axis=f"columns {columns}",
            got=str(error),
            wanted="numeric columns",
            fix="encode labels as 0..K-1",
        ) from error
    placed = np.full((steps[-1] + 1, len(columns)), np.nan)
    placed[steps] = values
    return placed
