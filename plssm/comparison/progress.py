"""The progress bar of comparisons and reports."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["progress_bar"]


def progress_bar(what: str, show: bool | None) -> Progress:
    """Return a bar; it shows where it stands while it is entered as a context.

    Args:
        what: What is going on.
        show: True or False; None shows the bar when standard error is a terminal.
    """
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not (sys.stderr.isatty() if show is None else show),
    )
