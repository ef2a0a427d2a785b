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
from plssm.scoring.yardsticks import yardsticks

__all__ = [
    "CHECKPOINT",
    "forecast_errors",
    "new_folder",
    "reading",
    "score_table",
    "write_pictures",
]

CHECKPOINT = "checkpoint.safetensors"
WILD = 3.0
"""Errors this many times those of a constant rate need an explanation."""
OURS = ("fit", "config.toml", "scores.csv", CHECKPOINT)
CONSTANT = {"label": "majority", "ordinal": "frequencies"}
MEANING = {
    "mean": "errors: mean squares, z-scored by the training data",
    "majority": "errors: share of wrong answers",
    "frequencies": "errors: ranked probability score",
}
SHOWN = {
    "coverage_95": "coverage of the 95 % band",
    "r2": "R² one step ahead",
    "bits_per_spike": "bits per spike one step ahead",
    "accuracy": "accuracy one step ahead",
    "balanced_accuracy": "balanced accuracy",
    "majority": "accuracy of the most frequent class",
    "brier": "Brier score",
    "rps": "ranked probability score",
    "pit_ks": "distance of ranks from uniform",
    "log_likelihood": "log likelihood, nats per value",
}
"""Scores that are shown where a modality has them."""


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
    fit: Fit,
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
        fit: The fit.
        scores: What ``fit.score`` returned for ``test``.
        modality: The modality.
        steps: Horizons in latent steps.
        train: What was fitted.
        test: What was scored.
        warmup: Latent steps before the first forecast, as in ``fit.score``.

    Returns:
        One row per horizon: model, persistence, VAR(1), and what a constant forecast from the
        fitted data gives ("mean", "majority" of labels, "frequencies" of ordinal levels).
    """
    row, constant = scores.loc[modality], CONSTANT.get(train.kinds[modality], "mean")
    yardstick = yardsticks(fit.model, test)[modality]
    baseline = yardstick.baseline([trial.values[modality] for trial in train.trials])
    errors = {}
    for n in steps:
        targets = [t.values[modality][t.steps(modality) >= warmup + n] for t in test.trials]
        y = np.concatenate(targets)
        columns = np.broadcast_to(baseline.mean, (len(y), len(baseline.mean)))
        found = yardstick.errors(y, columns, baseline)[np.isfinite(y)]
        errors[n] = {
            "model": row[f"error_{n}"],
            "persistence": row[f"persistence_{n}"],
            "VAR(1)": row[f"var1_{n}"],
            constant: float(found.mean()) if len(found) else np.nan,
        }
    return pd.DataFrame.from_dict(errors, orient="index")


def score_table(
    scores: pd.DataFrame, modality: str, errors: pd.DataFrame, *, title: str, fit: Fit, dt: float
) -> Table:
    """A table of one modality: errors beside the baselines, scores of its kind, evidence, seconds.

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
    table.caption = MEANING.get(errors.columns[-1], MEANING["mean"])
    table.add_column("")
    for column in errors.columns:
        name = type(fit.model.dynamics).__name__ if column == "model" else column
        table.add_column(name, justify="right")
    for n, values in errors.iterrows():
        table.add_row(f"error {n} step{'s' * (n > 1)} ahead ({n * dt:.4g} s)", *_marked(values))
    table.add_section()
    for column, label in SHOWN.items():
        if np.isfinite(row.get(column, np.nan)):
            table.add_row(label, f"{row[column]:.3f}")
    table.add_row(f"log evidence ({row['evidence_kind']}), nats", f"{row['evidence']:.1f}")
    table.add_row("seconds of fitting", f"{fit.seconds:.1f}")
    return table


def _number(error: float) -> str:
    return f"{error:.3f}" if error == 0 or 0.001 <= abs(error) < 1000 else f"{error:.1e}"


def _marked(errors: Sequence[float]) -> list[str]:
    """Errors as text, the smallest in bold."""
    best = min((e for e in errors if e == e), default=None)
    texts = [_number(e) if e == e else "–" for e in errors]
    return [f"[bold green]{t}[/]" if e == best else t for t, e in zip(texts, errors)]


def reading(errors: pd.DataFrame, scores: pd.Series, kind: str) -> str:
    """What the numbers of one modality say, in words, better or worse.

    Args:
        errors: What :func:`forecast_errors` returned.
        scores: Its row of what ``fit.score`` returned.
        kind: Its kind.
    """
    known = errors.dropna(subset="model")
    if known.empty:
        return "Nothing of it was seen where forecasts could be scored."
    lines = ["The model forecasts"]
    for rival in known.columns.drop("model"):
        won = [str(n) for n in known.index if known.loc[n, "model"] < known.loc[n, rival]]
        where = f"at {', '.join(won)} of {', '.join(map(str, known.index))} steps"
        lines.append(f"  better than {rival} {where if won else 'nowhere'}")
    if kind in ("continuous", "bold") and not (known["model"] < known["mean"]).all():
        lines += [
            "Where the mean of the fitted data forecasts best, the course of the signal is",
            "out of reach; the free run shows what the model still knows: its statistics.",
        ]
    if kind == "count" and (known["model"] > WILD * known["mean"]).any():
        lines += [
            "Mean rates many steps ahead are ruled by a few draws with enormous rates, as the",
            'link is exponential; Poisson(..., link="softplus") tames them, and takes longer.',
        ]
    if scores.get("coverage_95", 1.0) < 0.93:
        lines += [
            "Coverage below 0.95: the bands take the parameters as known, and what was held",
            "out is not quite like what was fitted.",
        ]
    return "\n".join(lines)


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
