"""A progress bar for work of many equal parts."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["WorkBar"]

PATIENCE_SECONDS = 2.0


class WorkBar:
    """Shows the share that is done, once work has taken two seconds.

    Args:
        label: What is being done.
        show: True or False; None shows the bar when standard error is a terminal.
    """

    def __init__(self, label: str, *, show: bool | None = None) -> None:
        self._label = label
        self._visible = sys.stderr.isatty() if show is None else show
        self._progress: Progress | None = None
        self._began = time.perf_counter()

    def __enter__(self) -> WorkBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def report(self, share: float, text: str = "") -> None:
        """Shows the share done.

        Args:
            share: Between 0 and 1.
            text: What is to be said beside it.
        """
        if not self._visible or time.perf_counter() - self._began < PATIENCE_SECONDS:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn(self._label), BarColumn(bar_width=24),
                TextColumn("{task.description}"), TimeElapsedColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._progress.start()
            self._progress.add_task(text, total=1.0)
        self._progress.update(self._progress.task_ids[0], completed=share, description=text)
