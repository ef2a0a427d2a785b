"""``plssm fit``: your own data, as a TOML file says."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from plssm.cli.results import (
    CHECKPOINT,
    forecast_errors,
    new_folder,
    score_table,
    write_pictures,
)
from plssm.config import ConfigError, RunConfig
from plssm.data import Dataset
from plssm.fit import Fit
from plssm.inference import Engine

__all__ = ["fit"]


def fit(args: argparse.Namespace) -> int:
    """Fit, score, and write fit, resolved configuration, scores and pictures.

    Args:
        args: data, config, out, steps, no_pictures, example_config.

    Returns:
        0.

    Raises:
        ConfigError: If something is missing or wrong in the configuration.
        DataError: If the data cannot be used.
    """
    for name in ("config", "out"):
        if getattr(args, name) is None:
            raise ConfigError(f"plssm fit: --{name} is missing. Fix: see plssm fit --help.")
    config = RunConfig.read(args.config)
    data = config.data.load(args.data)
    source = Path(args.data or config.data.file).resolve()
    model, engine = config.make_model(data), config.make_engine()
    train, validation, test = config.split.apply(data)
    engine.check(model, train)
    folder = new_folder(args.out)
    console = Console()
    console.print(f"data: {source.name}, {data!r}", markup=False)
    keeping = _with_checkpoint(engine, folder / CHECKPOINT, console)
    done = keeping.fit(model, train, validation=validation)
    done.engine = engine
    if keeping is not engine and Path(keeping.settings()["checkpoint"]).exists():
        text = "the training is not at its end; the same command goes on from the checkpoint"
        console.print(text, markup=False)
    done.save(folder / "fit")
    (folder / "config.toml").write_text(config.resolved(data, source).to_toml(), encoding="utf-8")
    _score(done, train, test, args.steps, folder, console)
    if not args.no_pictures:
        write_pictures(_pictures(done, train, test), folder, console)
    console.print(f"fit, configuration and scores are in {folder.resolve()}", markup=False)
    return 0


def _with_checkpoint(engine: Engine, file: Path, console: Console) -> Engine:
    """The engine with a checkpoint in the folder, where it can keep one and is not told where."""
    settings = engine.settings()
    named = settings.get("checkpoint", "")
    if named == "":
        return engine
    if named is None and settings["restarts"] > 1:
        text = f"no checkpoint, as it serves one start only and restarts = {settings['restarts']}"
        console.print(text, markup=False)
        return engine
    file = Path(named or file)
    if file.exists():
        text = f"going on from the checkpoint of an interrupted run, {file}"
    else:
        text = f"checkpoint: {file}; after an interruption the same command goes on from it"
    console.print(text, markup=False)
    return dataclasses.replace(engine, **{"checkpoint": str(file)})


def _score(
    done: Fit,
    train: Dataset,
    test: Dataset | None,
    steps: list[int],
    folder: Path,
    console: Console,
) -> None:
    held_out = train if test is None else test
    what = "Training data (nothing is held out)" if test is None else "Held-out data"
    scores = done.score(held_out, steps=steps)
    scores.to_csv(folder / "scores.csv")
    for modality in scores.index:
        title = f"{what}: {modality}, {len(held_out)} trial{'s' * (len(held_out) > 1)}"
        errors = forecast_errors(done, scores, modality, steps=steps, train=train, test=held_out)
        console.print(score_table(scores, modality, errors, title=title, fit=done, dt=train.dt))


def _pictures(done: Fit, train: Dataset, test: Dataset | None) -> dict[str, Callable[[], Figure]]:
    shown = train if test is None else test
    pictures: dict[str, Callable[[], Figure]] = {
        "latents": partial(done.plot_latents, shown),
        "convergence": done.plot_convergence,
    }
    for name in done.model.observations:
        pictures[f"observed_{name}"] = partial(done.plot_observed, shown, name)
        pictures[f"free_run_{name}"] = partial(done.plot_free_run, shown, name)
    return pictures
