"""Arithmetic of the latent clock: step k covers the seconds [k dt, (k + 1) dt) of a trial."""

from __future__ import annotations

import numpy as np

__all__ = [
    "TOLERANCE",
    "covering_step",
    "first_step_from",
    "nearest_step",
    "own_clock",
    "steps_in",
]

TOLERANCE = 1e-6
"""Rounding slack, in steps: times are read from files and are sums of many dt."""


def covering_step(times: np.ndarray, dt: float) -> np.ndarray:
    """Return the step whose interval holds each time.

    Args:
        times: Seconds from the trial start, any shape.
        dt: Seconds per latent step.

    Returns:
        Steps, int64, the same shape.
    """
    return np.floor(np.asarray(times) / dt + TOLERANCE).astype(np.int64)


def nearest_step(times: np.ndarray, dt: float) -> np.ndarray:
    """Return the step whose start is nearest to each time; ties go to the earlier step.

    Args:
        times: Seconds from the trial start, any shape.
        dt: Seconds per latent step.

    Returns:
        Steps, int64, the same shape.
    """
    return np.ceil(np.asarray(times) / dt - 0.5 - TOLERANCE).astype(np.int64)


def own_clock(times: np.ndarray, length: int, dt: float) -> np.ndarray:
    """Return the latent step of each sample: the nearest among the steps that exist.

    Args:
        times: Seconds from the trial start [n].
        length: Latent steps of the trial.
        dt: Seconds per latent step.

    Returns:
        Steps [n], int64, between 0 and length - 1.
    """
    return np.clip(nearest_step(times, dt), 0, length - 1)


def first_step_from(time: float, dt: float) -> int:
    """Return the first step that starts at or after a time (seconds)."""
    return int(np.ceil(time / dt - TOLERANCE))


def steps_in(duration: float, dt: float) -> int:
    """Return how many whole steps fit into a duration (seconds)."""
    return int(np.floor(duration / dt + TOLERANCE))
