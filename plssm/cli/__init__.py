"""The command line: ``plssm demo | fit | compare | report | doctor``.

Only the parser is loaded here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]

REFUSED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0 when it worked, 2 when something was refused, 130 when it was interrupted.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from plssm import __version__

        print(f"plssm {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return REFUSED
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("plssm: interrupted; nothing more is written", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if args.traceback or not _ours(error):
            raise
        print(f"plssm: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED


def _run(args: argparse.Namespace) -> int:
    if args.command == "demo" and args.lorenz:
        from plssm.cli.lorenz import lorenz

        return lorenz(args)
    if args.command == "demo":
        from plssm.cli.demo import demo

        return demo(args)
    if args.command == "fit" and args.example_config:
        from plssm.cli.example import EXAMPLE

        print(EXAMPLE, end="")
        return 0
    if args.command == "fit":
        from plssm.cli.fit import fit

        return fit(args)
    if args.command == "compare":
        from plssm.cli.compare import compare

        return compare(args)
    if args.command == "report":
        from plssm.cli.report import report

        return report(args)
    from plssm.cli.doctor import doctor

    return doctor(args)


def _ours(error: Exception) -> bool:
    """Whether a message says all there is to say, so that a traceback would not help."""
    from plssm.errors import PlssmError

    return isinstance(error, (PlssmError, OSError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plssm",
        description="Piecewise-linear state-space models of neural recordings.",
        epilog="plssm COMMAND --help tells the options of a command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _demo_options(commands.add_parser("demo", help="fit a real recording and show the result"))
    _fit_options(commands.add_parser("fit", help="fit your own data as a TOML file says"))
    _compare_options(commands.add_parser("compare", help="put fits side by side in one table"))
    _report_options(commands.add_parser("report", help="write one HTML page about fits"))
    commands.add_parser("doctor", help="versions, devices, threads, caches and recordings found")
    for command in commands.choices.values():
        command.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where an error arose",
        )
    return parser


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fit a PLRNN to a real recording, score it on a part it has not seen, and write pictures "
        "and the fit to a folder."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--recording", metavar="NAME", help="which one (default: fMRI at rest); see --list"
    )
    which.add_argument(
        "--lorenz",
        action="store_true",
        help="learn a simulated chaotic system instead, and compare attractors (about a minute)",
    )
    parser.add_argument("--list", action="store_true", help="list the recordings and stop")
    parser.add_argument("--out", default="plssm-demo", help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--dim", type=_positive, help="latent size (default: by the data)")
    parser.add_argument(
        "--restarts", type=_positive, help="starts (default: 3; 1 with --recording or --lorenz)"
    )
    parser.add_argument(
        "--iterations",
        type=_positive,
        help="EM iterations per start (default: 100; 40 with --recording)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one start, few iterations: does it run?"
    )


def _fit_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Fit the model that a TOML file describes to a data file."
    parser.add_argument(
        "data", nargs="?", help=".npz as Dataset.save writes it, or .csv with one row per step"
    )
    parser.add_argument("--config", metavar="TOML", help="what to fit; see --example-config")
    parser.add_argument("--out", metavar="FOLDER", help="where the fit, scores and pictures go")
    parser.add_argument(
        "--steps",
        type=_positive,
        nargs="+",
        default=[1, 5, 10],
        help="horizons of the score in latent steps (default: 1 5 10)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument(
        "--example-config", action="store_true", help="print a commented configuration and stop"
    )


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure fits on the same held-out data: evidence by particles, forecasts beside "
        "persistence and VAR(1), free runs beside their floors, exponents, calibration."
    )
    parser.epilog = (
        "example: plssm compare runs/em runs/vi --csv table.csv, where runs/em and runs/vi are "
        "folders that plssm fit has written"
    )
    _run_options(parser)
    parser.add_argument("--csv", metavar="FILE", help="write the table to a file, too")


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one HTML page that needs no other file: data, comparison, and for each fit "
        "configuration, convergence, latent paths, predictions, free runs and dynamics."
    )
    parser.epilog = "example: plssm report runs/em runs/vi --out report.html"
    _run_options(parser)
    parser.add_argument(
        "--out", metavar="FILE", default="report.html", help="the page (default: %(default)s)"
    )
    parser.add_argument("--title", default="Report on fits", help="title of the page")
    parser.add_argument(
        "--trial", type=int, default=1, help="number of the trial that is drawn (default: 1)"
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run (or of a fit alone, with --data)"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="other data than the runs', read as theirs: the whole file"
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train", "all"),
        help="which part of the data (default: test; with --data: all)",
    )
    parser.add_argument(
        "--steps",
        type=_positive,
        nargs="+",
        default=[1, 5, 10],
        help="horizons in latent steps (default: 1 5 10)",
    )
    parser.add_argument(
        "--particles",
        type=_positive,
        default=1000,
        help="particles that estimate the evidence (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value
