"""The progress bar of an EM fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plssm.inference.stages import Stage

__all__ = ["EMProgress"]


class EMProgress:
    """Shows restart, stage, iteration and evidence while a fit runs.

    Args:
        stages: The stages of one restart.
        restarts: Number of restarts.
        show: True or False; None shows the bar when standard error is a terminal.
    """

    def __init__(
        self, stages: Sequence[Stage], restarts: int, *, show: bool | None = None
    ) -> None:
        visible = sys.stderr.isatty() if show is None else show
        self._progress = Progress(
            TextColumn("EM"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not visible,
        )
        starts = [sum(s.iterations for s in stages[:i]) for i in range(len(stages))]
        self._before = {s.name: n for s, n in zip(stages, starts, strict=True)}
        self._each = sum(s.iterations for s in stages)
        self._restarts = restarts
        self._task = self._progress.add_task("start", total=self._each * restarts)

    def __enter__(self) -> EMProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, restart: int, stage: Stage, iteration: int, evidence: float) -> None:
        """Report one E-step."""
        done = None
        if stage.name in self._before:
            done = restart * self._each + self._before[stage.name] + iteration
        again = f"restart {restart + 1}/{self._restarts}, " if self._restarts > 1 else ""
        text = f"{again}{stage.name}: evidence {evidence:.1f}"
        self._progress.update(self._task, completed=done, description=text)
