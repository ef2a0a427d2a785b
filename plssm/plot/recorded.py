"""What was recorded, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plssm.errors import PlssmError
from plssm.plot.canvas import panels, shared_labels

__all__ = ["recorded"]

GAP = "#cccccc"


def recorded(
    data: Any, trial: int = 0, *, title: str | None = None, ax: Axes | Sequence[Axes] | None = None
) -> Figure:
    """Draw all channels of one trial as shades over time, one panel a modality; gaps are grey.

    Channels are z-scored, each by itself, and shades end at two standard deviations.

    Args:
        data: A Dataset.
        trial: Which trial.
        title: Title; the name of the trial by default.
        ax: Axes to draw in, one per modality; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: There is no such trial.
    """
    if not 0 <= trial < len(data):
        raise PlssmError(f"plot.recorded: got trial {trial}, wanted 0 to {len(data) - 1}")
    one = data.trials[trial]
    figure, axes = panels(len(data.names), ax, row_height=1.4)
    heading = f"Trial {one.name}; grey: missing" if title is None else title
    axes[0].set_title(heading, loc="left", fontsize=11, parse_math=False)
    for name, axis in zip(data.names, axes, strict=True):
        y, times = one.values[name], one.seconds(name, data.dt)
        axis.set_facecolor(GAP)
        axis.set_ylabel(f"{name}\nchannel", parse_math=False)
        if len(times):
            channels = np.arange(1, y.shape[1] + 1)
            axis.pcolormesh(
                *_edges(times, channels), np.ma.masked_invalid(_scores(y)).T,
                vmin=-2, vmax=2, cmap="RdBu_r", rasterized=True,
            )  # fmt: skip
            axis.set_yticks(channels if len(channels) <= 4 else [1, len(channels)])
    shared_labels(axes, "time (s)", legend=False)
    return figure


def _edges(times: np.ndarray, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Borders of the cells between sample times [n + 1], and between channels [N + 1]."""
    step = np.median(np.diff(times)) if len(times) > 1 else 1.0
    middle = (times[1:] + times[:-1]) / 2
    edges = np.concatenate([times[:1] - step / 2, middle, times[-1:] + step / 2])
    return edges, np.append(channels - 0.5, channels[-1] + 0.5)


def _scores(y: np.ndarray) -> np.ndarray:
    """Z-scores of each channel over what was observed; 0 where it does not vary."""
    seen = np.isfinite(y)
    count = np.maximum(seen.sum(0), 1)
    centred = y - np.where(seen, y, 0.0).sum(0) / count
    sd = np.sqrt(np.where(seen, centred**2, 0.0).sum(0) / count)
    return np.where(seen, centred / np.where(sd > 0, sd, 1.0), np.nan)
