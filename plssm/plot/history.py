"""How a fit converged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plssm.errors import PlssmError
from plssm.plot.canvas import INK, MODEL, OTHER, panels, shared_labels
from plssm.plot.training import is_training, training

__all__ = ["convergence"]


def convergence(
    history: Any, *, title: str = "Convergence", ax: Axes | Sequence[Axes] | None = None
) -> Figure:
    """Draw how a fit went: the evidence over iterations, or loss and measures over steps.

    The selected restart (the first, where none is) stands out.

    Args:
        history: DataFrame, rows in the order they were computed. Of EM: columns `iteration` and
            `evidence` (nats), and optionally `stage`, `joint`, `restart` and `selected`; evidence
            and joint are drawn, the stages named, and what is kept by its free runs is marked
            (column `kept`). Of a training by gradients: `step` and `score`, and optionally
            `loss`, `d_stsp`, `d_h`, `restart` and `selected`; one panel each, and the check whose
            parameters are kept is marked.
        title: Title.
        ax: Axes to draw in, as many as there are panels; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: There are no rows, or it is neither kind of history.
    """
    if len(history) and "evidence" in history:
        return _evidence(history, title, ax)
    if len(history) and is_training(history):
        return training(history, title=title, ax=ax)
    raise PlssmError(
        f"plot.convergence: got columns {list(history.columns)} and {len(history)} rows, "
        "wanted a column evidence, or step and score, and at least one row"
    )


def _evidence(history: Any, title: str, ax: Axes | Sequence[Axes] | None) -> Figure:
    """Draw the evidence, and the joint beside it, over iterations, with the stages named."""
    figure, (axis,) = panels(1, ax, title=title, row_height=2.8)
    restarts = [history]
    if "restart" in history:
        restarts = [rows for _, rows in history.groupby("restart", sort=False)]
    best = max(range(len(restarts)), key=lambda k: _chosen(restarts[k]))
    for k, rows in enumerate(restarts):
        _lines(axis, rows, best=k == best)
    _limits(axis, restarts)
    _mark_stages(axis, restarts[best])
    axis.set_ylabel("log evidence (nats)" if "joint" not in history else "nats")
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared_labels([axis], "iteration")
    return figure


def _chosen(rows: Any) -> bool:
    """Say whether these rows are of the selected restart."""
    return "selected" in rows and bool(rows["selected"].any())


def _lines(axis: Axes, rows: Any, *, best: bool) -> None:
    """Draw the lines of one restart over its own iterations."""
    iteration = np.arange(1, len(rows) + 1)
    alpha = 1.0 if best else 0.25
    marker = "o" if len(rows) <= 30 else None
    for column, color, style in (("joint", INK, "--"), ("evidence", MODEL, "-")):
        if column in rows:
            values = rows[column].to_numpy(dtype=np.float64)
            axis.plot(
                iteration,
                values,
                color=color,
                linestyle=style,
                linewidth=1.3,
                alpha=alpha,
                marker=marker,
                markersize=2.5,
                label=column if best else None,
            )
    kept = np.flatnonzero(rows["kept"].to_numpy(bool)) if best and "kept" in rows else []
    if len(kept):  # of a fit whose free runs were compared
        mark = {"marker": "o", "markersize": 6, "fillstyle": "none", "linestyle": "none"}
        axis.plot(
            kept + 1, rows["evidence"].to_numpy()[kept], color=OTHER[0], label="kept", **mark
        )


def _limits(axis: Axes, restarts: list[Any]) -> None:
    """Leave the first values of a restart or stage, which may be far off, out of the scale."""
    settled = []
    for rows in restarts:
        new = np.ones(len(rows), dtype=bool)
        if "stage" in rows:
            stage = rows["stage"].to_numpy()
            new[1:] = stage[1:] != stage[:-1]
        else:
            new[1:] = False
        keep = ~(new | np.roll(new, 1))
        for column in {"evidence", "joint"} & set(rows):
            values = rows[column].to_numpy(dtype=np.float64)[keep]
            settled.append(values[np.isfinite(values)])
    values = np.concatenate(settled)
    if len(values) > 2 and values.max() > values.min():
        margin = 0.08 * (values.max() - values.min())
        axis.set_ylim(values.min() - margin, values.max() + margin)


def _mark_stages(axis: Axes, rows: Any) -> None:
    """Draw a line where a new stage begins and write its name."""
    if "stage" not in rows:
        return
    stages = rows["stage"].to_numpy()
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.15 * (high - low), high)
    begins = [0, *(np.flatnonzero(stages[1:] != stages[:-1]) + 1)]
    for k, begin in enumerate(begins):
        if begin:
            axis.axvline(begin + 0.5, color="0.7", linewidth=0.8, linestyle=":")
        axis.text(
            max(begin + 0.6, axis.get_xlim()[0] + 0.1),
            0.02 + 0.07 * (k % 2),
            str(stages[begin]),
            fontsize=8,
            color="0.35",
            transform=axis.get_xaxis_transform(),
            ha="left",
            va="bottom",
        )
