"""``plssm report``: one HTML page about fits."""

from __future__ import annotations

import argparse

from rich.console import Console

from plssm.cli.runs import load_runs
from plssm.errors import PlssmError
from plssm.reporting import report as write_report

__all__ = ["report"]


def report(args: argparse.Namespace) -> int:
    """Write the page.

    Args:
        args: runs, data, split, steps, particles, seed, out, title, trial.

    Returns:
        0.

    Raises:
        PlssmError: If a run cannot be read, or the runs cannot be compared.
    """
    fits, data, words = load_runs(args)
    if not 1 <= args.trial <= len(data):
        raise PlssmError(f"--trial: got {args.trial}, wanted 1 to {len(data)}.")
    console = Console()
    console.print(f"data: {words}, {data!r}", markup=False)
    file = write_report(
        fits,
        data,
        args.out,
        title=args.title,
        trial=args.trial - 1,
        steps=args.steps,
        particles=args.particles,
        seed=args.seed,
    )
    console.print(f"the report is in {file.resolve()}", markup=False)
    return 0
