"""``plssm demo --list``: the recordings, and which of them are on this machine."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plssm.data.catalogue import Source, is_available, recordings

__all__ = ["print_recordings"]


def print_recordings() -> int:
    """Print the table of the recordings.

    Returns:
        0.
    """
    table = Table(title="Recordings", title_justify="left", caption_justify="left")
    for column in ("name", "what", "licence", "here"):
        table.add_column(column, overflow="fold")
    for source in recordings():
        here = "yes" if is_available(source) else _missing(source)
        table.add_row(source.name, escape(source.title), escape(source.licence), escape(here))
    table.caption = (
        "plssm demo --recording NAME fits one. Those with PLSSM_DATA need the converted file in\n"
        "the folder which that environment variable names; see datasets/README.md."
    )
    Console().print(table)
    return 0


def _missing(source: Source) -> str:
    return "pip install plssm[data]" if source.place == "nitime" else "no: PLSSM_DATA"
