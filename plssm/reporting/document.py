"""``ps.report``: one self-contained HTML page about one fit or several."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from plssm.comparison import compare
from plssm.comparison.measures import reason
from plssm.comparison.progress import progress_bar
from plssm.comparison.table import checked
from plssm.data import Dataset
from plssm.errors import PlssmError
from plssm.fit import Fit
from plssm.reporting import markup
from plssm.reporting.about_data import data_section
from plssm.reporting.about_fit import PARTS, Subject
from plssm.storage import environment

__all__ = ["report"]


def report(
    fits: Mapping[str, Fit] | Fit,
    data: Dataset,
    path: str | os.PathLike[str] = "report.html",
    *,
    title: str = "Report on fits",
    table: pd.DataFrame | None = None,
    trial: int = 0,
    steps: Sequence[int] = (1, 5, 10),
    level: float = 0.95,
    particles: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Path:
    """Write one HTML page about fits, which needs no other file and no network.

    It shows the data with their gaps, the table of :func:`plssm.compare`, and for each fit
    configuration, convergence, scores, latent paths with bands, predictions one step ahead, free
    runs beside the data, Lyapunov exponents and fixed points. A part that cannot be made is
    replaced by the reason. The file appears whole or not at all.

    Args:
        fits: Fits by name, or one fit.
        data: Held-out trials.
        path: The file; an existing one is replaced.
        title: Title of the page.
        table: What :func:`plssm.compare` returned for these fits; made where absent.
        trial: The trial that is drawn.
        steps: Horizons of the forecasts in latent steps.
        level: Probability of the bands.
        particles: Particles that estimate the evidence.
        seed: Seed of every draw.
        progress: Show a progress bar; None shows it where someone can see it.

    Returns:
        The file.

    Raises:
        PlssmError: If there is no such trial, or the file is a folder.
        DataError: If a fit does not fit the data; the message names it.
    """
    named = {"fit": fits} if isinstance(fits, Fit) else fits
    target = Path(path)
    if target.is_dir():
        raise PlssmError(f"report: {target} is a folder. Fix: name a file, such as report.html.")
    horizons = checked(named, data, steps, level, particles)
    if not 0 <= trial < len(data):
        raise PlssmError(f"report: got trial {trial}, wanted 0 to {len(data) - 1}.")
    options: dict[str, Any] = {"steps": steps, "level": level, "seed": seed}
    if table is None:
        table = compare(named, data, particles=particles, progress=progress, **options)
    sections = {"Data": data_section(data, trial), "Comparison": _comparison(table)}
    with progress_bar("report", progress) as bar:
        task = bar.add_task("", total=len(named) * len(PARTS))
        for name, fit in named.items():
            subject = Subject(fit, data, trial, horizons, level, seed)
            parts = []
            for heading, write in PARTS.items():
                bar.update(task, description=f"{name}: {heading.lower()}")
                parts.append(f"<h3>{heading}</h3>\n{_attempt(write, subject)}")
                bar.advance(task)
            sections[f"Fit: {name}"] = "".join(parts)
    return _write(target, _page(title, sections))


def _attempt(write: Any, subject: Subject) -> str:
    try:
        return write(subject)
    except Exception as error:  # the other parts are worth having
        return markup.note(f"Not available. {reason(error)}")


def _comparison(frame: pd.DataFrame) -> str:
    """The table of the comparison, fits side by side, and what there is to say about it."""
    caption = (
        "Evidence in nats in total, by particles; own_evidence is of the kind of each engine. "
        "Errors are z-scored mean squares. d_stsp and d_h belong beside their floors."
    )
    texts = [
        f"{name}: {text}" for name, found in frame.attrs.get("notes", {}).items() for text in found
    ]
    return markup.table(frame.T, caption) + markup.listed(texts)


def _page(title: str, sections: Mapping[str, str]) -> str:
    """Put the sections into the template."""
    template = Template(files("plssm.reporting").joinpath("page.html").read_text("utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in environment().items())
    body, contents = [], []
    for k, (heading, text) in enumerate(sections.items()):
        body.append(f'<section id="part-{k}">\n<h2>{escape(heading)}</h2>\n{text}</section>\n')
        contents.append(f'<a href="#part-{k}">{escape(heading)}</a>')
    return template.substitute(
        title=escape(title),
        made=escape(f"Made on {datetime.now():%Y-%m-%d %H:%M} with {versions}."),
        contents="\n".join(contents),
        body="".join(body),
    )


def _write(target: Path, text: str) -> Path:
    """Write a file that appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target
