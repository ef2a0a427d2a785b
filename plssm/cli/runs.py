"""What ``plssm compare`` and ``plssm report`` read: fits of runs, and data none of them saw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from plssm.config import DataSection, RunConfig
from plssm.data import Dataset
from plssm.errors import DataError, PlssmError
from plssm.fit import Fit

__all__ = ["load_runs"]

FIT, CONFIG, SETTINGS = "fit", "config.toml", "fit.json"
PARTS = ("train", "validation", "test")


def load_runs(args: argparse.Namespace) -> tuple[dict[str, Fit], Dataset, str]:
    """Read fits and the data they are to be measured on.

    Args:
        args: runs, data, split.

    Returns:
        The fits by name, the data, and what these are in words.

    Raises:
        PlssmError: If a folder is missing or is no run, or the runs hold out different data.
        DataError: If a fit or the data cannot be read.
    """
    folders = [Path(run) for run in args.runs]
    for folder in folders:
        _check(folder)
    names = _names(folders)
    configs = {
        name: RunConfig.read(folder / CONFIG)
        for name, folder in zip(names, folders)
        if (folder / CONFIG).is_file()
    }
    data, words = _data(names, configs, args.data, args.split)
    fits = {name: Fit.load(_fit_folder(folder)) for name, folder in zip(names, folders)}
    return fits, data, words


def _check(folder: Path) -> None:
    """Refuse what is no run and no fit."""
    if not folder.exists():
        raise PlssmError(f"{folder}: there is no such folder. Fix: check the path.")
    if not folder.is_dir() or not (_fit_folder(folder) / SETTINGS).is_file():
        raise PlssmError(
            f"{folder}: this is no run. Fix: name a folder that `plssm fit --out` or Fit.save has "
            "written."
        )


def _fit_folder(folder: Path) -> Path:
    return folder if (folder / SETTINGS).is_file() else folder / FIT


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or as many more as it takes to tell them apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(f for f, p in zip(folders, paths) if paths.count(p) > 1)
        raise PlssmError(f"{twice}: this run is named twice. Fix: name each run once.")
    for k in range(1, max(len(p.parts) for p in paths)):
        names = ["/".join(p.parts[-k:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]


def _data(
    names: Sequence[str],
    configs: dict[str, RunConfig],
    file: str | os.PathLike[str] | None,
    split: str | None,
) -> tuple[Dataset, str]:
    """The data and what they are."""
    first = next(iter(configs), None)
    if file is None and len(configs) < len(names):
        bare = next(name for name in names if name not in configs)
        raise PlssmError(
            f"{bare}: there is no {CONFIG} that says what was held out. Fix: name data the fits "
            "have not seen with --data FILE."
        )
    if file is None:
        _require_one_split(configs)
    section = configs[first].data if first else DataSection()
    whole = section.load(file)
    source = Path(file or section.file or "").name
    part = split or ("all" if file is not None else "test")
    if part == "all":
        seen = ", TRAINING data among them" if file is None else ""
        return whole, f"all of {source}{seen}"
    if first is None:
        raise PlssmError(f"--split {part}: there is no {CONFIG} that says how. Fix: leave it out.")
    parts = configs[first].split.apply(whole)
    chosen = dict(zip(PARTS, parts))[part]
    if chosen is None and part == "test":
        return whole, f"all of {source} (TRAINING data: nothing was held out)"
    if chosen is None:
        raise DataError(f"--split {part}: the runs have no such part", fix="choose another part")
    return chosen, f"the {part} part of {source}"


def _require_one_split(configs: dict[str, RunConfig]) -> None:
    """Refuse runs that were trained on parts that others would be tested on."""
    name, first = next(iter(configs.items()))
    for other, config in configs.items():
        for table in ("data", "split"):
            if getattr(config, table) != getattr(first, table):
                raise PlssmError(
                    f"{name} and {other} hold out different data: their tables [{table}] differ. "
                    "Fix: name data that none of them has seen with --data FILE."
                )
