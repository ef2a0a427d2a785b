"""From seconds to latent steps: counting events, resampling, placing and holding samples.

Everywhere a trial starts at ``start`` seconds and has ``steps`` steps of ``dt`` seconds; step k
covers [start + k dt, start + (k + 1) dt).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from plssm.data.clock import TOLERANCE, covering_step, nearest_step, own_clock

__all__ = [
    "count_events",
    "hold",
    "place",
    "resample",
    "spread_delays",
    "supported_steps",
]


def count_events(times: Sequence[np.ndarray], start: float, steps: int, dt: float) -> np.ndarray:
    """Return how many events of each unit fall into each step.

    Args:
        times: Event times of each unit in seconds.
        start: Start of the trial in seconds.
        steps: Latent steps.
        dt: Seconds per latent step.

    Returns:
        Counts [steps, units], float64.
    """
    unit = np.repeat(np.arange(len(times)), [len(t) for t in times])
    step = covering_step(np.concatenate([np.zeros(0), *times]) - start, dt)
    inside = (step >= 0) & (step < steps)
    flat = np.bincount(unit[inside] + len(times) * step[inside], minlength=steps * len(times))
    return flat.reshape(steps, len(times)).astype(np.float64)


def supported_steps(support: np.ndarray, start: float, steps: int, dt: float) -> np.ndarray:
    """Return which steps lie wholly inside the support.

    Args:
        support: Intervals (start, stop) in seconds [k, 2]; they may touch or overlap, and there
            may be none.
        start: Start of the trial in seconds.
        steps: Latent steps.
        dt: Seconds per latent step.

    Returns:
        True where a step is supported [steps], bool.
    """
    merged: list[list[float]] = []
    for low, high in support[np.argsort(support[:, 0])]:
        if merged and low <= merged[-1][1] + TOLERANCE * dt:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    edges = np.array(merged).reshape(-1, 2)
    begin = start + np.arange(steps) * dt
    slack = TOLERANCE * dt
    inside = (begin[:, None] >= edges[:, 0] - slack) & (begin[:, None] + dt <= edges[:, 1] + slack)
    return np.asarray(inside.any(axis=1))


def resample(
    values: np.ndarray,
    times: np.ndarray,
    start: float,
    steps: int,
    dt: float,
    *,
    how: str,
    interval: float,
) -> np.ndarray:
    """Return one value per step of a signal that is sampled faster.

    Args:
        values: Samples [n, N], NaN = missing.
        times: Sample times in seconds [n].
        start: Start of the trial in seconds.
        steps: Latent steps.
        dt: Seconds per latent step.
        how: "mean" or "last" of the observed samples of a step, or "sum", which is missing
            where a sample of the step is missing.
        interval: Seconds between samples, which tells how many a step has.

    Returns:
        Values [steps, N], NaN where a step has no observed sample.
    """
    step = covering_step(times - start, dt)
    inside = (step >= 0) & (step < steps)
    groups = pd.DataFrame(values[inside]).groupby(step[inside])
    if how == "sum":
        expected = int(np.floor(dt / interval + TOLERANCE))
        merged = groups.sum(min_count=1)
        seen = groups.count()
        merged = merged.where((seen >= expected) & seen.eq(groups.size(), axis=0))
    else:
        merged = groups.mean() if how == "mean" else groups.last()
    return merged.reindex(range(steps)).to_numpy(dtype=np.float64)


def place(
    values: np.ndarray, times: np.ndarray, start: float, steps: int, dt: float
) -> np.ndarray | None:
    """Return each sample at the nearest step, NaN where there is none.

    Args:
        values: Samples [n, N].
        times: Sample times in seconds [n].
        start: Start of the trial in seconds.
        steps: Latent steps.
        dt: Seconds per latent step.

    Returns:
        Values [steps, N], or None if two samples fall into one step.
    """
    step = nearest_step(times - start, dt)
    inside = (step >= 0) & (step < steps)
    if (np.diff(step[inside]) < 1).any():
        return None
    placed = np.full((steps, values.shape[1]), np.nan)
    placed[step[inside]] = values[inside]
    return placed


def hold(
    values: np.ndarray, times: np.ndarray, start: float, steps: int, dt: float
) -> np.ndarray | None:
    """Return the last sample before the end of each step.

    Args:
        values: Samples [n, K].
        times: Sample times in seconds [n], increasing.
        start: Start of the trial in seconds.
        steps: Latent steps.
        dt: Seconds per latent step.

    Returns:
        Values [steps, K], or None if a step ends before the first sample.
    """
    ends = start + (np.arange(steps) + 1) * dt
    last = np.searchsorted(times, ends - TOLERANCE * dt, side="left") - 1
    return None if last[0] < 0 else values[last]


def spread_delays(
    values: np.ndarray, times: np.ndarray, delays: np.ndarray, length: int, dt: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return samples whose channels are taken one after another (slice timing) as rows.

    The channels of one sample that fall into the same latent step share a row; the others of
    that row are NaN. So every entry belongs to the step that is nearest to its own time.

    Args:
        values: Samples [n, N].
        times: Sample times in seconds from the trial start [n].
        delays: Delay of each channel in seconds [N].
        length: Latent steps of the trial.
        dt: Seconds per latent step.

    Returns:
        Rows [r, N], their times in seconds (mean over the channels present) [r], and the sample
        each row comes from [r]. Entries outside the trial are left out.
    """
    exact = times[:, None] + delays
    slack = TOLERANCE * dt
    sample, channel = np.nonzero((exact >= -slack) & (exact < length * dt - slack))
    step = own_clock(exact[sample, channel], length, dt)
    keys, row = np.unique(np.stack([sample, step], axis=1), axis=0, return_inverse=True)
    row = row.ravel()
    rows = np.full((len(keys), values.shape[1]), np.nan)
    rows[row, channel] = values[sample, channel]
    origin = keys[:, 0]
    delay = np.bincount(row, weights=delays[channel]) / np.bincount(row)
    return rows, times[origin] + delay, origin
