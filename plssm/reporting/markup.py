"""Tables, pictures and text as HTML; everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from plssm.comparison.measures import reason

__all__ = ["code", "listed", "note", "number", "paragraph", "picture", "table"]

DPI = 110


def number(value: Any) -> str:
    """A number as text, with four digits; a dash where there is none."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:d}"
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def table(frame: pd.DataFrame, caption: str = "") -> str:
    """A table with the index as its first column; numbers to the right, texts to the left.

    Args:
        frame: The table.
        caption: What stands below it.
    """
    head = "".join(f"<th>{escape(str(c))}</th>" for c in ["", *frame.columns])
    rows = []
    for label, row in zip(frame.index, frame.itertuples(index=False)):
        cells = "".join(_cell(value) for value in row)
        rows.append(f"<tr><th>{escape(str(label))}</th>{cells}</tr>")
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{below}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _cell(value: Any) -> str:
    kind = ' class="text"' if isinstance(value, str) else ""
    return f"<td{kind}>{escape(number(value))}</td>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>\n"


def note(text: str) -> str:
    """A paragraph in small grey print."""
    return f'<p class="note">{escape(text)}</p>\n'


def code(text: str) -> str:
    """Text as it stands, in letters of one width."""
    return f"<pre>{escape(text)}</pre>\n"


def listed(texts: Iterable[str]) -> str:
    """A list; empty without texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>\n" if items else ""


def picture(draw: Callable[[], Figure], caption: str) -> str:
    """A picture inside the page, or the reason why there is none.

    Args:
        draw: What draws it.
        caption: What it shows.
    """
    buffer = io.BytesIO()
    try:
        draw().savefig(buffer, format="png", dpi=DPI)
    except Exception as error:  # one picture less is no reason to lose the page
        return note(f"{caption}: no picture. {reason(error)}")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )
