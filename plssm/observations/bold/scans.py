"""Whether the scans of a dataset are what a BOLD model with a repetition time can describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plssm.errors import DataError

if TYPE_CHECKING:
    from plssm.data import Dataset
    from plssm.data.trial import Trial

__all__ = ["check_runs", "check_scans"]

SLACK = 0.05  # share of the repetition time by which scans may lie off


def check_scans(data: Dataset, name: str, *, tr_seconds: float) -> None:
    """Refuse a latent clock slower than the scans, and other scan times.

    Args:
        data: The dataset.
        name: The modality in it.
        tr_seconds: Seconds between scans.

    Raises:
        DataError: With the reason and the fix.
    """
    if data.dt > tr_seconds * (1 + 1e-6):
        raise DataError(
            "the TR is shorter than dt",
            modality=name,
            axis="time",
            got=f"TR {tr_seconds:g} s, dt = {data.dt:g} s",
            wanted="at most one scan per latent step",
            fix=f"to_dataset(dt={tr_seconds:g}) or a smaller dt",
        )
    spacing = _spacing(data, name, tr_seconds)
    if spacing is not None and abs(spacing / tr_seconds - 1) > SLACK:
        raise DataError(
            "the scans do not come at the repetition time",
            modality=name,
            axis="time",
            got=f"a scan every {spacing:.6g} s",
            wanted=f"one every {tr_seconds:g} s",
            fix=f"BOLD(..., tr_seconds={spacing:.6g}), or check the times of the scans",
        )


def check_runs(data: Dataset, name: str, *, length_seconds: float) -> None:
    """Refuse to learn from runs that are all shorter than the haemodynamic response.

    Args:
        data: The dataset.
        name: The modality in it.
        length_seconds: Length of the response.

    Raises:
        DataError: With the reason and the fix.
    """
    longest = max(trial.length for trial in data.trials) * data.dt
    if longest < length_seconds * (1 - 1e-6):
        raise DataError(
            "the HRF is longer than the run",
            modality=name,
            axis="time",
            got=f"a response of {length_seconds:g} s, the longest trial of {longest:g} s",
            wanted="a trial as long as the response",
            fix="use longer trials, or BOLD(..., hrf=DoubleGamma(length_seconds=...))",
        )


def _spacing(data: Dataset, name: str, tr_seconds: float) -> float | None:
    """Seconds between scans; None where no two are seen.

    Missing scans leave gaps of several repetition times. They are not held against the data as
    long as there are rows for the scans in between.
    """
    gaps = [_gaps(trial, name, data.dt) for trial in data.trials]
    seen = np.concatenate([own for own, _ in gaps])
    if not seen.size:
        return None
    spacing = _typical(seen)
    count = round(spacing / tr_seconds)
    rows = np.concatenate([every for _, every in gaps])
    if count > 1 and rows.min() < 1.5 * tr_seconds:
        return spacing / count
    return spacing


def _gaps(trial: Trial, name: str, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds between the samples of a channel that were seen, all channels; and between rows."""
    seconds = np.asarray(trial.seconds(name, dt))
    seen = ~np.isnan(trial.values[name])
    if name in trial.hidden:
        seen = seen | ~np.isnan(trial.hidden[name])
    own = [np.diff(seconds[column]) for column in seen.T]
    return np.concatenate(own), np.diff(seconds)


def _typical(gaps: np.ndarray) -> float:
    """Median of the gaps that are about as long as the shortest."""
    return float(np.median(gaps[gaps < 1.5 * gaps.min()]))
