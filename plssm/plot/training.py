"""How a training by gradients went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plssm.plot.canvas import INK, MODEL, OTHER, panels, shared_labels

__all__ = ["is_training", "training"]

PANELS = {
    "loss": "loss",
    "elbo": "bound\n(nats per step)",
    "d_stsp": "$D_{stsp}$ (nats)",
    "d_h": "$D_H$",
    "score": "score",
}
LOGARITHMIC = ("loss", "d_stsp", "score")


def is_training(history: Any) -> bool:
    """Say whether a history is that of a training by gradients."""
    return "step" in history and "score" in history


def training(
    history: Any, *, title: str = "Training", ax: Axes | Sequence[Axes] | None = None
) -> Figure:
    """Draw the loss and the measures of free runs over the steps of a training.

    Every restart is a line, the selected one (the first, where none is) stands out, and the check
    with the smallest score, whose parameters are kept, is marked. Checks whose free runs diverged
    are crosses at the top.

    Args:
        history: DataFrame with columns `step` and `score`, and optionally `loss`, `elbo`,
            `d_stsp`, `d_h`, `restart` and `selected`; one row per check. A score that is the bound
            with its sign turned is not drawn twice.
        title: Title.
        ax: Axes to draw in, one per column that is drawn; default a new figure.

    Returns:
        The figure.
    """
    drawn = [name for name in PANELS if name in history and history[name].notna().any()]
    if "elbo" in drawn and np.array_equal(history["score"], -history["elbo"], equal_nan=True):
        drawn.remove("score")  # it is the bound upside down
    figure, axes = panels(len(drawn), ax, title=title)
    groups = "restart" if "restart" in history else np.zeros(len(history))
    restarts = [rows for _, rows in history.groupby(groups, sort=False)]
    chosen = next((r for r in restarts if "selected" in r and r["selected"].any()), restarts[0])
    kept = chosen.loc[chosen["score"].idxmin()]
    for name, axis in zip(drawn, axes, strict=True):
        for rows in restarts:
            several = "selected" if len(restarts) > 1 else None
            _line(axis, rows, name, label=several, best=rows is chosen)
        axis.axvline(kept["step"], color="0.7", linewidth=0.8, linestyle=":")
        if np.isfinite(kept[name]):
            mark: dict[str, Any] = {
                "marker": "o",
                "markersize": 6,
                "linestyle": "none",
                "label": "kept",
            }
            axis.plot([kept["step"]], [kept[name]], color=OTHER[0], **mark)
        _scale(axis, history[name].to_numpy(dtype=np.float64), name)
        axis.set_ylabel(PANELS[name])
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    shared_labels(axes, "step")
    return figure


def _line(axis: Axes, rows: Any, name: str, *, label: str | None, best: bool) -> None:
    """Draw one column of one restart, with crosses at the top where it is infinite."""
    steps, values = (rows[column].to_numpy(dtype=np.float64) for column in ("step", name))
    seen = np.isfinite(values)
    look: dict[str, Any] = {"color": MODEL, "alpha": 1.0 if best else 0.25}
    look |= {"label": label} if best else {}
    axis.plot(steps, np.where(seen, values, np.nan), linewidth=1.3, **look)
    gone = steps[np.isinf(values)]
    if len(gone):
        axis.plot(
            gone, np.full(len(gone), 0.95), marker="x", markersize=4, linestyle="none",
            transform=axis.get_xaxis_transform(), color=INK, alpha=look["alpha"],
        )  # fmt: skip


def _scale(axis: Axes, values: np.ndarray, name: str) -> None:
    """Take a logarithmic scale where all values are above zero and span much."""
    seen = values[np.isfinite(values)]
    if name in LOGARITHMIC and len(seen) and seen.min() > 0 and seen.max() > 3 * seen.min():
        axis.set_yscale("log")
    else:
        axis.ticklabel_format(axis="y", useOffset=False)
