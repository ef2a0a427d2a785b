"""Power spectra of data and simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plssm.metrics.power_spectrum import power_spectra, power_spectrum_distance
from plssm.plot.canvas import (
    INK,
    MODEL,
    channel_label,
    channels_of,
    panels,
    shared_labels,
    to_array,
)

__all__ = ["power_spectrum"]


def power_spectrum(
    *,
    truth: Any,
    pred: Any,
    dt: float | None = None,
    smoothing: float = 20.0,
    channels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    title: str = "Power spectra",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the smoothed spectra that the power-spectrum distance compares, one panel a channel.

    Args:
        truth: [T, N] or [T] data.
        pred: [T', N] or [T'] simulation; the longer one is cut, as for the distance.
        dt: Seconds per step; None gives the frequency in cycles per step.
        smoothing: Standard deviation of the smoothing in frequency bins.
        channels: Which channels; default the first eight.
        names: [N] channel names.
        title: Title.
        ax: Axes to draw in, one per channel; default a new figure.

    Returns:
        The figure; each panel names its channel's distance.
    """
    truth, pred = (x[:, None] if x.ndim == 1 else x for x in (to_array(truth), to_array(pred)))
    score = power_spectrum_distance(truth=truth, pred=pred, smoothing=smoothing, floor=False)
    length = score.settings["steps"]
    frequency = np.fft.rfftfreq(length, d=1.0 if dt is None else dt)
    spectra = [power_spectra([x[:length]], smoothing=smoothing) for x in (truth, pred)]
    distances = np.asarray(score.per_dimension)
    chosen = channels_of(truth.shape[1], channels)
    figure, axes = panels(len(chosen), ax, title=title, row_height=1.7)
    for i, axis in zip(chosen, axes, strict=True):
        for values, color, label in zip(
            spectra, (INK, MODEL), ("data", "simulation"), strict=True
        ):
            axis.loglog(frequency[1:], values[1:, i], color=color, linewidth=1.2, label=label)
        axis.set_ylabel(f"{channel_label(names, i)}\nrelative power")
        axis.text(
            0.99,
            0.93,
            f"$D_H$ = {distances[i]:.3f}",
            fontsize=8,
            ha="right",
            va="top",
            transform=axis.transAxes,
        )
    shared_labels(axes, "frequency (cycles per step)" if dt is None else "frequency (Hz)")
    return figure
