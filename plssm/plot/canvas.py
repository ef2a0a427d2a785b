"""Figures, colours and small helpers that every picture shares."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from plssm.errors import PlssmError

__all__ = [
    "INK",
    "MODEL",
    "OTHER",
    "Picture",
    "band",
    "channel_label",
    "channels_of",
    "figure_of",
    "lighter",
    "panels",
    "shared_labels",
    "time_label",
    "to_array",
]

INK = "#222222"
"""Colour of what was measured or is true."""
MODEL = "#0072B2"
"""Colour of what the model says (Okabe-Ito blue, safe for colour-blind readers)."""
OTHER = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Further colours, same palette."""
MOST_PANELS = 8


class Picture(Figure):
    """A figure that needs no global state and shows itself in a notebook."""

    def _repr_png_(self) -> bytes:
        """Return the picture for a notebook cell."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def panels(
    n: int,
    ax: Axes | Sequence[Axes] | None,
    *,
    title: str | None = None,
    row_height: float | None = None,
    width: float = 7.5,
) -> tuple[Figure, list[Axes]]:
    """Return n axes below each other with a common time axis, new or the given ones.

    Args:
        n: Number of panels.
        ax: None for a new figure, one Axes (n = 1) or n of them.
        title: Title over the first panel.
        row_height: Height of a new row, inches; by default lower where there are many.
        width: Width of a new figure, inches.

    Returns:
        The figure and the n axes.

    Raises:
        PlssmError: `ax` holds another number of axes.
    """
    if ax is None:
        each = (1.3 if n <= 4 else 0.95) if row_height is None else row_height
        size = (width, max(each * n + 0.9, 2.6))
        figure: Figure = Picture(figsize=size, layout="constrained")
        axes = list(figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0])
    else:
        axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != n:
            raise PlssmError(f"plot: got {len(axes)} axes for {n} panels; pass {n}, or ax=None")
        figure = figure_of(axes[0])
    for a in axes:
        tidy(a)
    if title:
        axes[0].set_title(title, loc="left", fontsize=11)
    return figure, axes


def figure_of(ax: Axes) -> Figure:
    """Return the figure that axes belong to."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise PlssmError("plot: these axes belong to no figure; make them with a figure")
    return figure


def tidy(ax: Axes) -> None:
    """Remove the frame lines that carry nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.margins(x=0.01)


def band(
    ax: Axes,
    times: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    label: str | None = None,
    color: Any = MODEL,
    alpha: float = 0.25,
) -> None:
    """Draw a band between two lines."""
    ax.fill_between(times, low, high, color=color, alpha=alpha, linewidth=0, label=label)


def lighter(color: str, share: float) -> tuple[float, float, float]:
    """Return the colour mixed with a share of white."""
    red, green, blue = (share + (1 - share) * part for part in to_rgb(color))
    return red, green, blue


def shared_labels(axes: Sequence[Axes], xlabel: str, *, legend: bool = True) -> None:
    """Label the time axis once, below the last panel, and put one legend above the first."""
    axes[-1].set_xlabel(xlabel)
    handles, labels = axes[0].get_legend_handles_labels()
    if legend and handles:
        axes[0].legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(labels),
            frameon=False,
            fontsize=9,
            borderaxespad=0.1,
            handlelength=1.6,
        )
    figure_of(axes[0]).align_ylabels(list(axes))


def to_array(x: Any) -> np.ndarray:
    """Return a float64 array from numpy, pandas or torch."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    return np.asarray(x, dtype=np.float64)


def time_label(dt: float | None) -> str:
    """Return the label of a time axis: seconds when the step is known."""
    return "latent step" if dt is None else "time (s)"


def channel_label(names: Sequence[str] | None, i: int, unit: str = "", default: str = "x") -> str:
    """Return the axis label of a channel: its name, or its number, with the unit."""
    name = names[i] if names is not None and i < len(names) else f"{default}$_{{{i + 1}}}$"
    return f"{name} ({unit})" if unit else str(name)


def channels_of(n: int, chosen: Sequence[int] | None, most: int = MOST_PANELS) -> list[int]:
    """Return the panels to draw: the chosen channels, or the first few.

    Raises:
        PlssmError: A chosen channel does not exist.
    """
    if chosen is None:
        return list(range(min(n, most)))
    wrong = [i for i in chosen if not 0 <= i < n]
    if wrong or len(chosen) == 0:
        raise PlssmError(f"plot: got channels {list(chosen)}, wanted some of 0 to {n - 1}")
    return [int(i) for i in chosen]
