"""Labels and ordinal levels: probabilities over time beside what was observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from plssm.errors import PlssmError
from plssm.plot.canvas import (
    INK,
    MODEL,
    channel_label,
    channels_of,
    panels,
    shared_labels,
    to_array,
)

__all__ = ["class_probabilities"]

SHADES = LinearSegmentedColormap.from_list("probability", ["white", MODEL])


def class_probabilities(
    times: Any,
    probabilities: Any,
    observed: Any = None,
    *,
    channels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    title: str = "Observed labels and their probabilities",
    xlabel: str = "time (s)",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw the probability of each class as a strip, and dots at the classes that were observed.

    Args:
        times: [n] seconds, increasing.
        probabilities: [n, N, K], or [n, K] for one channel; a NaN row is left white.
        observed: [n, N] or [n] classes 0 ... K-1; NaN = missing, left out. None draws no dots.
        channels: Which channels; default the first eight.
        names: [N] channel names.
        classes: [K] class names.
        title: Title.
        xlabel: Label of the time axis.
        ax: Axes to draw in, one per channel; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: The arrays do not fit each other.
    """
    times, p = to_array(times), to_array(probabilities)
    p = p[:, None] if p.ndim == 2 else p
    if p.ndim != 3 or len(p) != len(times) or not len(times):
        raise PlssmError(
            f"plot.class_probabilities: got probabilities {p.shape}, wanted [{len(times)}, N, K]"
        )
    seen = None if observed is None else to_array(observed).reshape(len(times), -1)
    if seen is not None and seen.shape != p.shape[:2]:
        raise PlssmError(
            f"plot.class_probabilities: got observed {seen.shape}, wanted {p.shape[:2]}"
        )
    chosen, rows = channels_of(p.shape[1], channels), p.shape[2]
    figure, axes = panels(len(chosen), ax, title=title, row_height=0.6 + 0.22 * rows)
    for i, axis in zip(chosen, axes, strict=True):
        strip = axis.pcolormesh(
            _edges(times), np.arange(rows + 1) - 0.5, p[:, i].T, cmap=SHADES, vmin=0, vmax=1
        )
        if seen is not None:
            axis.plot(times, seen[:, i], ".", color=INK, markersize=4, label="observed")
        axis.set_yticks(np.arange(rows), labels=None if classes is None else list(classes))
        named = names is not None or p.shape[1] > 1
        axis.set_ylabel(channel_label(names, i) if named else "class")
    figure.colorbar(strip, ax=axes, label="probability", fraction=0.04, pad=0.01)
    shared_labels(axes, xlabel)
    return figure


def _edges(times: np.ndarray) -> np.ndarray:
    """Edges of cells around times, halfway between neighbours."""
    if len(times) == 1:
        return times[0] + np.array([-0.5, 0.5])
    middle = (times[1:] + times[:-1]) / 2
    first, last = 2 * times[0] - middle[0], 2 * times[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])
