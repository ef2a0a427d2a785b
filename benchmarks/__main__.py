"""Run benchmarks: ``python -m benchmarks NAME|all [--out DIR]``.

Every module of this folder that has a ``main(argv)`` is a benchmark. It runs plssm and its peer in
one process, one after the other, prints both times and their ratio, and exits.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the benchmarks beside this file."""
    files = sorted(HERE.glob("*.py"))
    return [f.stem for f in files if not f.stem.startswith("_") and "def main(" in f.read_text()]


def summary(name: str) -> str:
    """Return the first line of a benchmark's docstring, without importing it."""
    first = (HERE / f"{name}.py").read_text().lstrip().splitlines()[0]
    return first.strip('" ')


def environment() -> str:
    """Return the machine and the versions that belong to every number."""
    versions = []
    for package in ("plssm", "torch", "numpy", "numba", "dynamax", "jax"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{machine}; {', '.join(versions)}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks that are named.

    Args:
        argv: Arguments; None takes those of the command line.

    Returns:
        0, or 1 if a benchmark failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="a benchmark, or 'all'; none lists them")
    parser.add_argument("--out", type=Path, help="folder for result files")
    given, rest = parser.parse_known_args(argv)
    known = names()
    if given.name is None:
        for name in known:
            print(f"{name:<24} {summary(name)}")
        return 0
    if given.name != "all" and given.name not in known:
        parser.error(f"no benchmark {given.name!r}; there are: {', '.join(known) or 'none'}")
    print(environment())
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        rest = [*rest, "--out", str(given.out)]
    failed = []
    for name in known if given.name == "all" else [given.name]:
        print(f"\n== {name}: {summary(name)}", flush=True)
        try:
            if importlib.import_module(f"benchmarks.{name}").main(rest):
                failed.append(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
