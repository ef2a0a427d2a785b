"""Free-running simulation beside the data: attractors and time series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plssm.errors import PlssmError
from plssm.plot.canvas import (
    INK,
    MODEL,
    Picture,
    channel_label,
    channels_of,
    figure_of,
    panels,
    shared_labels,
    tidy,
    time_label,
    to_array,
)

__all__ = ["free_run"]


def free_run(
    *,
    truth: Any,
    pred: Any,
    kind: str = "auto",
    channels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    unit: str = "",
    dt: float | None = None,
    title: str = "Data and free-running simulation",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw a free-running simulation beside the data on the same scales.

    Args:
        truth: [T, N] or [T] data.
        pred: [T', N] or [T'] simulation; lengths may differ.
        kind: "series" (both over time, one panel a channel), "2d" or "3d" (trajectories side by
            side in two or three channels), or "auto": "3d" from three channels on, "2d" for two,
            "series" for one.
        channels: Which channels; default the first two, three or eight.
        names: [N] channel names.
        unit: Unit of the observations.
        dt: Seconds per step; None counts steps.
        title: Title.
        ax: Axes to draw in: one per channel for "series"; two for "2d"; two with projection="3d"
            for "3d". Default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: Different channels, or too few for the kind.
    """
    truth, pred = (_columns(to_array(x)) for x in (truth, pred))
    n = truth.shape[1]
    if pred.shape[1] != n:
        raise PlssmError(f"plot.free_run: got {pred.shape[1]} channels in pred, wanted {n}")
    if kind == "auto":
        kind = {1: "series", 2: "2d"}.get(n if channels is None else len(channels), "3d")
    if kind == "series":
        return _series(truth, pred, channels_of(n, channels), names, unit, dt, title, ax)
    if kind not in ("2d", "3d"):
        raise PlssmError(f"plot.free_run: got kind {kind!r}, wanted 'auto', 'series', '2d', '3d'")
    size = int(kind[0])
    chosen = channels_of(n, channels, most=size)
    if len(chosen) != size:
        raise PlssmError(f"plot.free_run: kind {kind!r} needs {size} channels, got {len(chosen)}")
    return _attractors(
        truth[:, chosen],
        pred[:, chosen],
        [channel_label(names, i, unit) for i in chosen],
        title,
        ax,
    )


def _series(
    truth: np.ndarray,
    pred: np.ndarray,
    chosen: list[int],
    names: Sequence[str] | None,
    unit: str,
    dt: float | None,
    title: str,
    ax: Axes | Sequence[Axes] | None,
) -> Figure:
    """Draw both over time, one panel a channel."""
    figure, axes = panels(len(chosen), ax, title=title)
    step = 1.0 if dt is None else dt
    for i, axis in zip(chosen, axes, strict=True):
        axis.plot(
            np.arange(len(truth)) * step, truth[:, i], color=INK, linewidth=0.9, label="data"
        )
        axis.plot(
            np.arange(len(pred)) * step, pred[:, i], color=MODEL, linewidth=1.1, label="simulation"
        )
        axis.set_ylabel(channel_label(names, i, unit))
        _keep_scale(axis, truth[:, i], pred[:, i])
    shared_labels(axes, time_label(dt))
    return figure


def _keep_scale(axis: Axes, truth: np.ndarray, pred: np.ndarray) -> None:
    """Keep the scale of the data where a simulation runs away, and say so."""
    low, high = np.nanmin(truth), np.nanmax(truth)
    room = 2.0 * (high - low)
    if np.isfinite(pred).all() and low - room <= pred.min() and pred.max() <= high + room:
        return
    axis.set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))
    axis.text(
        0.995,
        0.03,
        "the simulation leaves this range",
        transform=axis.transAxes,
        ha="right",
        va="bottom",
        fontsize=8,
        color=MODEL,
    )


def _attractors(
    truth: np.ndarray,
    pred: np.ndarray,
    labels: list[str],
    title: str,
    ax: Axes | Sequence[Axes] | None,
) -> Figure:
    """Draw both trajectories side by side with the limits of the data."""
    size = len(labels)
    if ax is None:
        figure: Figure = Picture(figsize=(8.4, 4.2), layout="constrained")
        keywords = {"projection": "3d"} if size == 3 else {}
        axes = list(figure.subplots(1, 2, subplot_kw=keywords))
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    else:
        axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != 2:
            raise PlssmError(f"plot.free_run: got {len(axes)} axes, wanted 2, or ax=None")
        figure = figure_of(axes[0])
    for axis, path, color, name in zip(
        axes, (truth, pred), (INK, MODEL), ("data", "simulation"), strict=True
    ):
        axis.plot(*path.T, color=color, linewidth=0.6, alpha=0.85, label=name)
        axis.plot(
            *path[-1:].T,
            color=color,
            marker="o",
            markersize=4,
            linestyle="none",
            label="last point",
        )
        axis.set_title(name, fontsize=10, color=color)
        _dress(axis, truth, labels)
    return figure


def _dress(axis: Any, truth: np.ndarray, labels: list[str]) -> None:
    """Set the limits of the data and the labels of one attractor panel."""
    low, high = np.nanmin(truth, axis=0), np.nanmax(truth, axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    for k, letter in enumerate("xyz"[: len(labels)]):
        getattr(axis, f"set_{letter}lim")(low[k] - margin[k], high[k] + margin[k])
        getattr(axis, f"set_{letter}label")(labels[k])
    if len(labels) == 2:
        tidy(axis)
        return
    axis.tick_params(labelsize=8, pad=0)
    axis.set_box_aspect(None, zoom=0.9)
    for pane in (axis.xaxis, axis.yaxis, axis.zaxis):
        pane.set_pane_color((1.0, 1.0, 1.0, 0.0))
        pane.set_major_locator(MaxNLocator(5))


def _columns(x: np.ndarray) -> np.ndarray:
    """Return [T, N]."""
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) == 0:
        raise PlssmError(f"plot.free_run: got shape {x.shape}, wanted [T, N]")
    return x
