"""What a run leaves behind: the table on the screen, and a folder of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from plssm.data import Dataset
from plssm.errors import PlssmError
from plssm.fit import Fit

__all__ = ["forecast_errors", "new_folder", "score_table", "write_pictures"]

OURS = ("fit", "config.toml", "scores.csv")


def new_folder(path: str | Path) -> Path:
    """Return a folder for results; an earlier run there may be replaced, nothing else.

    Raises:
        PlssmError: If it holds other files.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise PlssmError(f"--out: {folder} is a file. Fix: name a folder.")
    if folder.exists() and any(folder.iterdir()) and not any((folder / n).exists() for n in OURS):
        raise PlssmError(
            f"--out: {folder} holds something other than an earlier run. Fix: name a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def forecast_errors(
    scores: pd.DataFrame,
    modality: str,
    *,
    steps: Sequence[int],
    train: Dataset,
    test: Dataset,
    warmup: int = 10,
) -> pd.DataFrame:
    """Errors of one modality by horizon, beside those of simple forecasts.

    Args:
        scores: What ``fit.score`` returned for ``test``.
        modality: The modality.
        steps: Horizons in latent steps.
        train: What was fitted.
        test: What was scored.
        warmup: Latent steps before the first forecast, as in ``fit.score``.

    Returns:
        One row per horizon: model, persistence, VAR(1), mean; z-scored mean squares.
    """
    row = scores.loc[modality]
    seen = np.concatenate([t.values[modality] for t in train.trials])
    mean, sd = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0)
    errors = {}
    for n in steps:
        targets = [t.values[modality][t.steps(modality) >= warmup + n] for t in test.trials]
        scaled = (np.concatenate(targets) - mean) / np.where(sd > 0, sd, 1.0)
        known = scaled[np.isfinite(scaled)]
        errors[n] = {
            "model": row[f"error_{n}"],
            "persistence": row[f"persistence_{n}"],
            "VAR(1)": row[f"var1_{n}"],
            "mean": float((known**2).mean()) if len(known) else np.nan,
        }
    return pd.DataFrame.from_dict(errors, orient="index")


def score_table(
    scores: pd.DataFrame, modality: str, errors: pd.DataFrame, *, title: str, fit: Fit, dt: float
) -> Table:
    """A table of one modality: errors beside the baselines, calibration, evidence, seconds.

    Args:
        scores: What ``fit.score`` returned.
        modality: The row of it.
        errors: What :func:`forecast_errors` returned.
        title: Title.
        fit: The fit.
        dt: Seconds per latent step.
    """
    row = scores.loc[modality]
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "errors: mean squares, z-scored by the training data"
    table.add_column("")
    for column in errors.columns:
        name = type(fit.model.dynamics).__name__ if column == "model" else column
        table.add_column(name, justify="right")
    for n, values in errors.iterrows():
        table.add_row(f"error {n} step{'s' * (n > 1)} ahead ({n * dt:.4g} s)", *_marked(values))
    table.add_section()
    table.add_row("coverage of the 95 % band", f"{row['coverage_95']:.3f}")
    table.add_row("R² one step ahead", f"{row['r2']:.3f}")
    table.add_row("log likelihood, nats per sample", f"{row['log_likelihood']:.3f}")
    table.add_row(f"log evidence ({row['evidence_kind']}), nats", f"{row['evidence']:.1f}")
    table.add_row("seconds of fitting", f"{fit.seconds:.1f}")
    return table


def _marked(errors: Sequence[float]) -> list[str]:
    """Errors as text, the smallest in bold."""
    best = min((e for e in errors if e == e), default=None)
    texts = [f"{e:.3f}" if e == e else "–" for e in errors]
    return [f"[bold green]{t}[/]" if e == best else t for t, e in zip(texts, errors)]


def write_pictures(
    pictures: Mapping[str, Callable[[], Figure]], folder: Path, console: Console, *, dpi: int = 130
) -> None:
    """Draw and write figures as PNG files; one that cannot be drawn is named with the reason.

    Args:
        pictures: What draws each figure, by file name.
        folder: Where to.
        console: Where to say what was written.
        dpi: Dots per inch.
    """
    written = []
    for name, draw in pictures.items():
        try:
            draw().savefig(folder / f"{name}.png", dpi=dpi)
        except PlssmError as error:
            console.print(f"no {name}.png: {error}", markup=False)
            continue
        written.append(f"{name}.png")
    console.print(f"pictures: {', '.join(written)}", markup=False)
