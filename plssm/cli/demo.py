"""``plssm demo``: a real recording goes in, a fit with honest uncertainty comes out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from plssm.cli.results import forecast_errors, new_folder, score_table, write_pictures
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


@dataclass(frozen=True)
class _Material:
    """What the demo fits, and how it is called."""

    train: Dataset
    test: Dataset
    modality: str
    names: tuple[str, ...]
    story: str


def demo(args: argparse.Namespace) -> int:
    """Fit, score on the held-out stretch, print the table, write pictures and the fit.

    Args:
        args: out, seed, dim, restarts, iterations, quick.

    Returns:
        0.
    """
    began = time.perf_counter()
    console = Console()
    folder = new_folder(args.out)
    material = _material(console)
    console.print(material.story)
    fit = _fit(args, material, console)
    fit.save(folder / "fit")
    scores = fit.score(material.test, steps=STEPS)
    scores.to_csv(folder / "scores.csv")
    errors = forecast_errors(
        scores, material.modality, steps=STEPS, train=material.train, test=material.test
    )
    steps, dt = material.test.lengths[0], material.train.dt
    title = f"Held-out stretch: {steps} steps, {len(material.names)} channels"
    console.print(score_table(scores, material.modality, errors, title=title, fit=fit, dt=dt))
    console.print(_reading(errors, scores.loc[material.modality, "coverage_95"]))
    write_pictures(_pictures(fit, material, args.seed), folder, console)
    seconds = time.perf_counter() - began
    console.print(f"everything is in {folder.resolve()} ({seconds:.0f} s)", markup=False)
    console.print(f"again in Python: plssm.Fit.load({str(folder / 'fit')!r})", markup=False)
    return 0


def _fit(args: argparse.Namespace, material: _Material, console: Console) -> Fit:
    dim = DIM if args.dim is None else args.dim
    restarts, iterations = (1, 15) if args.quick else (args.restarts, args.iterations)
    chosen = args.dim is None and material.modality == "bold"
    note = ", chosen by validation inside the fitted scans" if chosen else ""
    starts = "1 start" if restarts == 1 else f"{restarts} starts"
    console.print(
        f"model: PLRNN with {dim} latent units{note}\n"
        "       Gaussian observations\n"
        f"engine: LaplaceEM, {starts}, {iterations} iterations each"
    )
    observation = Gaussian(len(material.names))
    model = StateSpaceModel(PLRNN(dim), {material.modality: observation})
    engine = LaplaceEM(seed=args.seed, restarts=restarts, iterations=iterations)
    return engine.fit(model, material.train)


def _material(console: Console) -> _Material:
    try:
        recording = load_recording(RECORDING)
    except DataError as error:
        console.print(f"{error}\nUntil then a simulated set serves.", markup=False)
        return _simulated()
    return _real(recording)


def _real(recording: Recording) -> _Material:
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
    return _Material(train, test, "bold", tuple(bold.names), story)


def _simulated() -> _Material:
    data = load_recording(FALLBACK)
    train, test = data.split(by="time", fractions=(1 - HELD_OUT, HELD_OUT))
    name = data.names[0]
    names = tuple(f"{name} {k + 1}" for k in range(data.channels[name]))
    story = f"data: SIMULATED, {FALLBACK}: a chaotic attractor seen through noise"
    return _Material(train, test, name, names, story)


def _reading(errors: pd.DataFrame, coverage: float) -> str:
    """What the numbers say, in words, better or worse."""
    lines = ["The model forecasts"]
    for rival in ("persistence", "VAR(1)", "mean"):
        won = [str(n) for n in errors.index if errors.loc[n, "model"] < errors.loc[n, rival]]
        where = f"at {', '.join(won)} of {', '.join(map(str, errors.index))} steps"
        lines.append(f"  better than {rival} {where if won else 'nowhere'}")
    if not (errors["model"] < errors["mean"]).all():
        lines += [
            "Where the mean of the fitted data forecasts best, the course of the signal is",
            "out of reach; the free run shows what the model still knows: its statistics.",
        ]
    if coverage < 0.93:
        lines += [
            "Coverage below 0.95: the bands take the parameters as known, and the end of a",
            "short recording is not quite like its start.",
        ]
    return "\n".join(lines)


def _pictures(fit: Fit, material: _Material, seed: int) -> dict[str, Callable[[], Figure]]:
    train, test = material.train, material.test
    channels = np.linspace(0, len(material.names) - 1, min(SHOWN, len(material.names)))
    look = {"channels": [int(c) for c in channels], "names": material.names}
    return {
        "latents": partial(fit.plot_latents, test),
        "observed": partial(fit.plot_observed, test, **look),
        "forecast": partial(fit.plot_forecast, train, 20, truth=test, **look),
        "free_run": partial(fit.plot_free_run, train, kind="series", seed=seed, **look),
        "convergence": fit.plot_convergence,
    }
