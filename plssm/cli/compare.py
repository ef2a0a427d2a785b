"""``plssm compare``: fits side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plssm.cli.runs import load_runs
from plssm.comparison import compare as compare_fits
from plssm.errors import PlssmError

__all__ = ["compare", "print_comparison"]

MEANING = {
    "evidence": "log evidence by particles, nats",
    "evidence_se": "  its standard error",
    "own_evidence": "log evidence by its own engine",
    "evidence_kind": "  of the kind",
    "d_stsp": "state-space divergence, nats",
    "d_stsp_floor": "  data against data",
    "d_h": "power-spectrum distance",
    "d_h_floor": "  data against data",
    "lyapunov_max": "largest exponent per second",
    "coverage_95": "coverage of the 95 % band",
    "nis": "normalised innovations, 1 is right",
    "seconds": "seconds of fitting",
}
KINDS = {"error": "error {n} ahead", "persistence": "  persistence", "var1": "  VAR(1)"}


def compare(args: argparse.Namespace) -> int:
    """Compare runs, print the table, and write it where it is asked for.

    Args:
        args: runs, data, split, steps, particles, seed, csv.

    Returns:
        0.

    Raises:
        PlssmError: If a run cannot be read, or the runs cannot be compared.
    """
    if args.csv is not None and Path(args.csv).is_dir():
        raise PlssmError(f"--csv: {args.csv} is a folder. Fix: name a file.")
    fits, data, words = load_runs(args)
    console = Console()
    console.print(f"data: {words}, {data!r}", markup=False)
    table = compare_fits(fits, data, steps=args.steps, particles=args.particles, seed=args.seed)
    print_comparison(table, console)
    if args.csv is not None:
        file = Path(args.csv)
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(file)
        console.print(f"the table is in {file.resolve()}", markup=False)
    return 0


def print_comparison(table: pd.DataFrame, console: Console) -> None:
    """Print a comparison with one column per fit, errors beside what simple forecasts make.

    Args:
        table: What :func:`plssm.compare` returned.
        console: Where to.
    """
    shown = Table(title="Comparison", title_justify="left", caption_justify="left")
    shown.caption = "errors: mean squares, z-scored by the training data"
    shown.add_column("")
    for name in table.index:
        shown.add_column(escape(str(name)), justify="right")
    horizons = [c.removeprefix("error_") for c in table.columns if c.startswith("error_")]
    errors = [(f"{k}_{n}", t.format(n=n)) for n in horizons for k, t in KINDS.items()]
    forecasts = {column for column, _ in errors}
    others = [c for c in table.columns if c not in forecasts]
    rows = [(c, MEANING.get(c, c)) for c in others]
    for column, label in [*rows[:4], *errors, *rows[4:]]:
        shown.add_row(label, *(_text(value) for value in table[column]))
        if column in ("evidence_kind", errors[-1][0], "d_h_floor"):
            shown.add_section()
    console.print(shown)
    for name, found in table.attrs.get("notes", {}).items():
        for text in found:
            console.print(f"{name}: {text}", markup=False, highlight=False)


def _text(value: object) -> str:
    if isinstance(value, str):
        return escape(value)
    number = float(value)  # type: ignore[arg-type]
    if number != number:
        return "–"
    return f"{number:.1f}" if abs(number) >= 100 else f"{number:.3f}"
