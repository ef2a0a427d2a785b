"""Latent paths with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plssm.errors import PlssmError
from plssm.plot.canvas import (
    INK,
    MODEL,
    band,
    channel_label,
    channels_of,
    panels,
    shared_labels,
    time_label,
    to_array,
)

__all__ = ["latents"]


def latents(
    posterior: Any,
    trial: int = 0,
    *,
    level: float = 0.95,
    dt: float | None = None,
    units: Sequence[int] | None = None,
    truth: Any = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the posterior mean of each latent unit with its band, one panel a unit.

    Args:
        posterior: Anything with `mean` [B, T, M], `interval(level)` and `length` [B].
        trial: Which trial.
        level: Probability of the band.
        dt: Seconds per step; None counts steps.
        units: Which latent units; default the first eight.
        truth: [T, M] true path, if it is known.
        ax: Axes to draw in, one per unit; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: There is no such trial or unit.
    """
    mean = to_array(posterior.mean)
    if not 0 <= trial < len(mean):
        raise PlssmError(f"plot.latents: got trial {trial}, wanted 0 to {len(mean) - 1}")
    steps = int(posterior.length[trial])
    low, high = (to_array(edge)[trial, :steps] for edge in posterior.interval(level))
    mean = mean[trial, :steps]
    chosen = channels_of(mean.shape[1], units)
    title = "Latent path" + ("" if len(posterior.length) == 1 else f", trial {trial + 1}")
    figure, axes = panels(len(chosen), ax, title=title)
    times = np.arange(steps) * (1.0 if dt is None else dt)
    for i, axis in zip(chosen, axes, strict=True):
        band(axis, times, low[:, i], high[:, i], label=f"{level:.0%} band")
        axis.plot(times, mean[:, i], color=MODEL, linewidth=1.2, label="posterior mean")
        if truth is not None:
            true = to_array(truth)[:steps, i]
            axis.plot(
                times[: len(true)], true, color=INK, linewidth=0.9, linestyle="--", label="truth"
            )
        axis.set_ylabel(channel_label(None, i, default="z"))
    shared_labels(axes, time_label(dt))
    return figure
