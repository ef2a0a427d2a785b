"""``plssm demo``: a real recording goes in, a fit with honest uncertainty comes out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from plssm.cli.listing import print_recordings
from plssm.cli.materials import Material, recording_material
from plssm.cli.results import (
    forecast_errors,
    new_folder,
    reading,
    score_table,
    write_pictures,
)
from plssm.data import Dataset, Recording, load_recording
from plssm.dynamics import PLRNN
from plssm.errors import DataError
from plssm.fit import Fit
from plssm.inference import LaplaceEM
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian

__all__ = ["demo"]

RECORDING, FALLBACK = "nitime_bold", "simulated_lorenz63"
HELD_OUT = 0.2
STEPS = (1, 2, 5, 10)
DIM = 8
SHOWN = 4
AHEAD = 20
SEARCH, SHORT_SEARCH, QUICK = (3, 100), (1, 40), (1, 15)
"""Restarts and iterations: of the chosen recording, of any other, of a trial run."""


def demo(args: argparse.Namespace) -> int:
    """Fit, score on the held-out part, print the tables, write pictures and the fit.

    Args:
        args: out, recording, list, seed, dim, restarts, iterations, quick.

    Returns:
        0.
    """
    if args.list:
        return print_recordings()
    began = time.perf_counter()
    console = Console()
    if args.recording is None:
        folder = new_folder(args.out)
        material = _chosen_material(console, args.dim)
    else:
        material = recording_material(args.recording, args.dim)
        folder = new_folder(args.out)
    console.print(material.story, markup=False)
    fit = _fit(args, material, console)
    fit.save(folder / "fit")
    _score(fit, material, folder, console)
    write_pictures(_pictures(fit, material, args.seed), folder, console)
    seconds = time.perf_counter() - began
    console.print(f"everything is in {folder.resolve()} ({seconds:.0f} s)", markup=False)
    console.print(f"again in Python: plssm.Fit.load({str(folder / 'fit')!r})", markup=False)
    return 0


def _fit(args: argparse.Namespace, material: Material, console: Console) -> Fit:
    usual = SEARCH if args.recording is None else SHORT_SEARCH
    restarts, iterations = QUICK if args.quick else usual
    if not args.quick:
        restarts, iterations = args.restarts or restarts, args.iterations or iterations
    model = material.model
    driven = model.dynamics.n_inputs
    inputs = f", driven by {_counted(driven, 'input')}" if driven else ""
    lines = [f"model: PLRNN with {model.dim} latent units{inputs}{material.note}"]
    for name, observation in model.observations.items():
        kind, channels = type(observation).__name__, _counted(observation.channels, "channel")
        lines.append(f"       {kind} observations of {name}, {channels}")
    starts = _counted(restarts, "start")
    lines.append(f"engine: LaplaceEM, {starts}, {iterations} iterations each")
    console.print("\n".join(lines), markup=False)
    engine = LaplaceEM(seed=args.seed, restarts=restarts, iterations=iterations)
    return engine.fit(model, material.train)


def _chosen_material(console: Console, dim: int | None) -> Material:
    """The recording that was chosen for the demo, or a simulated set where it is not there."""
    try:
        recording = load_recording(RECORDING)
    except DataError as error:
        console.print(f"{error}\nUntil then a simulated set serves.", markup=False)
        return _simulated(dim)
    return _real(recording, dim)


def _real(recording: Recording, dim: int | None = None) -> Material:
    """The fMRI recording: one step is one scan, regions are z-scored by the training stretch."""
    bold = recording.signals["bold"]
    tr = recording.meta["tr_seconds"]
    scans, regions = bold.values.shape
    kept = round((1 - HELD_OUT) * scans)
    before = bold.values[:kept]
    values = (bold.values - before.mean(0)) / before.std(0)
    data = Dataset.from_arrays({"bold": values}, tr)
    train, test = data.split(by="time", fractions=(1 - HELD_OUT, HELD_OUT))
    fitted, held_out = train.lengths[0], test.lengths[0]
    story = (
        f"data: human fMRI at rest, from the package nitime\n"
        f"      {regions} regions, {scans} scans, one every {tr} s\n"
        f"      the first {fitted} scans are fitted, the last {held_out} are held out\n"
        "      regions are z-scored by the fitted scans\n"
        "      the BOLD signal is taken as it is, without a haemodynamic model"
    )
    note = ", chosen by validation inside the fitted scans" if dim is None else ""
    model = StateSpaceModel(PLRNN(DIM if dim is None else dim), {"bold": Gaussian(regions)})
    return Material(model, train, test, {"bold": tuple(bold.names)}, story, note)


def _simulated(dim: int | None = None) -> Material:
    data = load_recording(FALLBACK)
    train, test = data.split(by="time", fractions=(1 - HELD_OUT, HELD_OUT))
    name = data.names[0]
    names = tuple(f"{name} {k + 1}" for k in range(data.channels[name]))
    story = f"data: SIMULATED, {FALLBACK}: a chaotic attractor seen through noise"
    observations = {name: Gaussian(data.channels[name])}
    model = StateSpaceModel(PLRNN(DIM if dim is None else dim), observations)
    return Material(model, train, test, {name: names}, story)


def _score(fit: Fit, material: Material, folder: Path, console: Console) -> None:
    train, test = material.train, material.test
    scores = fit.score(test, steps=STEPS)
    scores.to_csv(folder / "scores.csv")
    for name in scores.index:
        errors = forecast_errors(fit, scores, name, steps=STEPS, train=train, test=test)
        title = (
            f"Held out: {name}, {_size(test)}, {_counted(len(material.names[name]), 'channel')}"
        )
        console.print(score_table(scores, name, errors, title=title, fit=fit, dt=train.dt))
        console.print(reading(errors, scores.loc[name], train.kinds[name]))


def _size(data: Dataset) -> str:
    trials = "" if len(data) == 1 else f"{len(data)} trials, "
    return f"{trials}{_counted(int(data.lengths.sum()), 'step')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _pictures(fit: Fit, material: Material, seed: int) -> dict[str, Callable[[], Figure]]:
    train, test = material.train, material.test
    past, future = _cut(test)
    pictures: dict[str, Callable[[], Figure]] = {"latents": partial(fit.plot_latents, test)}
    drawn = [name for name in fit.model.observations if train.kinds[name] != "label"]
    for name in drawn:
        end = f"_{name}" if len(drawn) > 1 else ""
        names = material.names[name]
        channels = np.linspace(0, len(names) - 1, min(SHOWN, len(names)))
        look = {"channels": [int(c) for c in channels], "names": names}
        steps = min(AHEAD, int(future.lengths[0]))
        pictures[f"observed{end}"] = partial(fit.plot_observed, test, name, **look)
        pictures[f"forecast{end}"] = partial(
            fit.plot_forecast, past, steps, name, truth=future, **look
        )
        pictures[f"free_run{end}"] = partial(
            fit.plot_free_run, train, name, kind="series", seed=seed, **look
        )
    pictures["convergence"] = fit.plot_convergence
    return pictures


def _cut(test: Dataset) -> tuple[Dataset, Dataset]:
    """The first held-out trial, and its end for a forecast to be compared with."""
    one = test.select(trials=[0])
    ahead = min(AHEAD, int(one.lengths[0]) // 2)
    border = (int(one.lengths[0]) - max(ahead, 1)) * one.dt
    return one.select(time=(0.0, border)), one.select(time=(border, np.inf))
