"""The progress bar of a training by gradients."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Shows restart, step and the current measures while a training runs.

    Args:
        steps: Steps of one restart.
        restarts: Number of restarts.
        show: True or False; None shows the bar when standard error is a terminal.
    """

    def __init__(self, steps: int, restarts: int, *, show: bool | None = None) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if show is None else show),
        )
        self._steps, self._restarts = steps, restarts
        self._task = self._progress.add_task("compiling", total=steps * restarts)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Says what is being done."""
        self._progress.update(self._task, description=text)

    def advance(self, restart: int, step: int, row: dict) -> None:
        """Reports a check; the one at the start leaves what the bar says, as kernels come next."""
        if step == 0:
            return
        again = f"restart {restart + 1}/{self._restarts}, " if self._restarts > 1 else ""
        shown = [f"{k} {row[k]:.3g}" for k in ("loss", "elbo", "d_stsp", "d_h") if k in row]
        text = again + ", ".join(shown)
        self._progress.update(
            self._task,
            completed=restart * self._steps + step,
            description=text,
        )

    def finish(self, restart: int, score: float) -> None:
        """Reports a restart that ended in a process of its own."""
        text = f"restart {restart + 1}/{self._restarts}: score {score:.3g}"
        self._progress.update(self._task, advance=self._steps, description=text)
