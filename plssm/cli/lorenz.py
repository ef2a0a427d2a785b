"""``plssm demo --lorenz``: a chaotic system is learned from one orbit and compared with itself."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from plssm.analysis import Cycles, fixed_points, lyapunov_spectrum
from plssm.cli.results import (
    forecast_errors,
    new_folder,
    reading,
    score_table,
    write_pictures,
)
from plssm.data import Dataset
from plssm.data.synthetic import lorenz63
from plssm.dynamics import ShallowPLRNN
from plssm.errors import PlssmError
from plssm.fit import Fit
from plssm.inference import TeacherForcing
from plssm.inference.residual_noise import fit_noise
from plssm.metrics import power_spectrum_distance, state_space_divergence
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian
from plssm.plot import free_run, power_spectrum
from plssm.plot.canvas import OTHER

__all__ = ["lorenz"]

DT, STEPS, HIDDEN = 0.01, 100_000, 50
EXPONENT = 0.9056
"""Largest Lyapunov exponent of the system, per unit of time."""
WING = math.sqrt(8 / 3 * 27)
POINTS = np.array([[-WING, -WING, 27.0], [0.0, 0.0, 0.0], [WING, WING, 27.0]])
"""Its fixed points; all three are saddles."""
HORIZONS = (1, 10, 50, 100)
NEAR = 0.5
"""Distance, in standard deviations, up to which a fixed point counts as found."""
SHOWN, BEYOND = 10_000, 1e3
"""Steps of an orbit that are drawn, and the size from which they are not."""
SCORED, MEASURED = (2000, 120), (100_000, 5000)
"""Steps that are forecast, and along which the exponent is measured, in full and quick."""
QUICK_STEPS, QUICK_NOISE = 300, 50
"""Updates of a quick training, and the steps to which its noise is fitted."""


@dataclasses.dataclass(frozen=True)
class _System:
    """Orbits of the system, z-scored by the one that is fitted.

    Args:
        fitted: The orbit that is fitted [T, 3].
        truth: An independent orbit [T, 3], which everything is compared with.
        other: A third one, which shows what a perfect model scores.
        mean: What was subtracted [3].
        sd: What was divided by [3].
    """

    fitted: np.ndarray
    truth: np.ndarray
    other: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def simulated(cls, seed: int) -> _System:
        """Orbits from three random starts."""
        orbits = lorenz63(STEPS, DT, trials=3, seed=seed)
        mean, sd = orbits[0].mean(0), orbits[0].std(0)
        fitted, truth, other = (orbits - mean) / sd
        return cls(fitted, truth, other, mean, sd)

    def original(self, states: np.ndarray) -> np.ndarray:
        """States in the units of the equations."""
        return states * self.sd + self.mean


def lorenz(args: argparse.Namespace) -> int:
    """Train on one orbit, compare a free run with another one, write tables, pictures, the fit.

    Args:
        args: out, seed, quick, restarts; dim and iterations must be absent.

    Returns:
        0.

    Raises:
        PlssmError: If an option does not go with it.
    """
    if args.dim is not None or args.iterations is not None:
        raise PlssmError("--dim and --iterations do not go with --lorenz. Fix: leave them out.")
    began, console = time.perf_counter(), Console()
    folder = new_folder(args.out)
    system = _System.simulated(args.seed)
    fit = _train(system, args, console)
    fit.save(folder / "fit")
    run = _free_run(fit, system)
    measures = compare(system.truth, run, system.other)
    measures.to_csv(folder / "reconstruction.csv")
    _print_measures(measures, console)
    exponent = _exponent(fit, system, MEASURED[args.quick])
    points = fixed_points(fit.model.dynamics, progress=False)
    partners = nearest(_states(points, system) / system.sd, POINTS / system.sd)
    _print_invariants(exponent, points, partners, system, console)
    console.print(words(measures, exponent, [d for _, d in partners]), markup=False)
    _score(fit, system, SCORED[args.quick], folder, console)
    pictures: dict[str, Callable[[], Figure]] = {
        "attractors": partial(_attractors, system, run, points),
        "spectra": partial(
            power_spectrum, truth=system.truth, pred=_drawable(run), dt=DT, names=list("xyz")
        ),
        "convergence": fit.plot_convergence,
    }
    if not np.isfinite(run).all():
        del pictures["spectra"]
    write_pictures(pictures, folder, console)
    seconds = time.perf_counter() - began
    console.print(f"everything is in {folder.resolve()} ({seconds:.0f} s)", markup=False)
    console.print(f"again in Python: plssm.Fit.load({str(folder / 'fit')!r})", markup=False)
    return 0


def _train(system: _System, args: argparse.Namespace, console: Console) -> Fit:
    restarts = 1 if args.quick else args.restarts or 1
    engine = TeacherForcing(seed=args.seed, restarts=restarts)
    if args.quick:
        engine = dataclasses.replace(engine, steps=QUICK_STEPS, checks=3, fit_noise=False)
    console.print(
        f"data: SIMULATED, Lorenz-63, {STEPS:,} steps of {DT}, z-scored, without noise\n"
        f"model: ShallowPLRNN with 3 latent units, which are x, y and z, {HIDDEN} hidden units\n"
        f"engine: TeacherForcing, {engine.steps:,} steps, {engine.scheme}\n"
        "the first step compiles, once; in the end the noise is fitted with the map held",
        markup=False,
    )
    data = Dataset.from_arrays({"x": system.fitted}, DT)
    dynamics = ShallowPLRNN(3, HIDDEN)
    model = StateSpaceModel(dynamics, {"x": Gaussian(3, readout="identity")})
    fit = engine.fit(model, data)
    if args.quick:
        fit.model.dynamics.initialised = False  # the noise is still that of a fresh model
        fit_noise(fit.model, data.select(time=(0.0, QUICK_NOISE * DT)), seed=args.seed)
        fit.model.dynamics.initialised = True
    return fit


def _free_run(fit: Fit, system: _System) -> np.ndarray:
    """The map on its own from the first state of the independent orbit [T, 3]."""
    start = torch.from_numpy(system.truth[:1])
    with torch.no_grad():
        return fit.model.dynamics.rollout(start, STEPS, noise=False)[0].numpy()


def compare(truth: np.ndarray, run: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    """Divergences of a free run from a true orbit, beside those of runs that need no model.

    Args:
        truth: The true orbit [T, N].
        run: The free run [T, N].
        other: An independent true orbit [T, N]: what a perfect model scores.

    Returns:
        One row per measure; columns model, "true orbit", "fixed point", "white noise".
    """
    rows = {}
    for name, measure in (("D_stsp", state_space_divergence), ("D_H", power_spectrum_distance)):
        score = measure(truth=truth, pred=run, floor=False, references=True)
        floor = float(measure(truth=truth, pred=other, floor=False))
        rows[name] = {"model": float(score), "true orbit": floor, **score.references}
    return pd.DataFrame.from_dict(rows, orient="index")


def _exponent(fit: Fit, system: _System, steps: int) -> float:
    """Largest Lyapunov exponent of the map per unit of time; NaN where its orbit diverges."""
    try:
        found = lyapunov_spectrum(fit.model.dynamics, steps=steps, dt=DT, start=system.truth[0])
    except PlssmError:
        return math.nan
    return float(found[0])


def _states(points: Cycles, system: _System) -> np.ndarray:
    """Fixed points of the model in the units of the equations [n, 3]."""
    return system.original(np.array([c.points[0] for c in points]).reshape(-1, 3))


def nearest(found: np.ndarray, wanted: np.ndarray) -> list[tuple[int | None, float]]:
    """Match points one to one, so that the sum of the squared distances is smallest.

    Args:
        found: [n, M].
        wanted: [k, M].

    Returns:
        For each wanted point the index of its partner and their distance; None and infinity for
        those that have none because n < k.
    """
    distance = np.linalg.norm(wanted[:, None] - found[None], axis=-1)
    pairs = dict(zip(*linear_sum_assignment(distance**2), strict=True))
    return [
        (int(pairs[k]), float(distance[k, pairs[k]])) if k in pairs else (None, math.inf)
        for k in range(len(wanted))
    ]


# ---- what is printed ---------------------------------------------------------------------------


def _print_measures(measures: pd.DataFrame, console: Console) -> None:
    table = Table(title=f"A free run of {STEPS:,} steps beside an independent true orbit")
    table.title_justify = table.caption_justify = "left"
    table.caption = "smaller is better; another true orbit scores what a perfect model would"
    table.add_column("")
    for column in ("ShallowPLRNN", "another true orbit", *measures.columns[2:]):
        table.add_column(column, justify="right")
    for name, row in measures.iterrows():
        table.add_row(str(name), *(f"{value:.3f}" for value in row))
    console.print(table)


def _print_invariants(
    exponent: float,
    points: Cycles,
    partners: Sequence[tuple[int | None, float]],
    system: _System,
    console: Console,
) -> None:
    table = Table(title="The map as a dynamical system, in the units of the equations")
    table.title_justify = table.caption_justify = "left"
    more = len(points) - sum(k is not None for k, _ in partners)
    table.caption = f"distance in standard deviations; {more} further fixed points of the model"
    for column in ("", "Lorenz-63", "ShallowPLRNN", "distance"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("largest Lyapunov exponent", f"{EXPONENT}", f"{exponent:.3f}", "")
    states = _states(points, system)
    for number, (wanted, (k, distance)) in enumerate(zip(POINTS, partners, strict=True), 1):
        row = ["none", "–"]
        if k is not None:
            row = [f"{_listed(states[k])} {points[k].stability}", f"{distance:.3f}"]
        table.add_row(f"fixed point {number}", f"{_listed(wanted)} saddle", *row)
    console.print(table)


def _listed(state: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in state) + ")"


def words(measures: pd.DataFrame, exponent: float, distances: Sequence[float]) -> str:
    """What the numbers mean, better or worse.

    Args:
        measures: What :func:`compare` returned.
        exponent: Largest Lyapunov exponent of the model; NaN where its orbit diverges.
        distances: Distance of the model's nearest fixed point from each of the system's, in
            standard deviations; infinite where there is none.
    """
    about = {"D_stsp": "where the orbit spends its time", "D_H": "its rhythms"}
    lines = []
    for name, row in measures.iterrows():
        model, floor, *rest = row
        if model <= 2 * floor:
            how = "about as a true orbit would"
        elif model < min(rest):
            how = f"{model / floor:.1f} times what a true orbit scores, better than no dynamics"
        else:
            how = "WORSE than a run without dynamics: the attractor is not this one"
        lines += [f"{name}, {about[str(name)]}:", f"  {how}"]
    if math.isnan(exponent):
        lines.append("Lyapunov exponent: none, the free run DIVERGES")
    elif exponent <= 0:
        lines.append("Lyapunov exponent: not positive, the model is NOT chaotic")
    else:
        change = exponent / EXPONENT - 1
        side = "faster" if change > 0 else "slower"
        lines.append(
            f"Lyapunov exponent: nearby states part {abs(change):.0%} {side} than in the system"
        )
    near = [d for d in distances if d <= NEAR]
    off = f", off by up to {max(near):.2f} sd" if near else ""
    lines.append(f"fixed points: {len(near)} of {len(distances)} are there{off}")
    return "\n".join(lines)


def _score(fit: Fit, system: _System, steps: int, folder: Path, console: Console) -> None:
    train = Dataset.from_arrays({"x": system.fitted}, DT)
    test = Dataset.from_arrays({"x": system.truth[:steps]}, DT)
    scores = fit.score(test, steps=HORIZONS)
    scores.to_csv(folder / "scores.csv")
    errors = forecast_errors(fit, scores, "x", steps=HORIZONS, train=train, test=test)
    title = f"Forecasts with the fitted noise on the independent orbit, {steps:,} steps"
    console.print(score_table(scores, "x", errors, title=title, fit=fit, dt=DT))
    console.print(reading(errors, scores.loc["x"], "continuous"))
    noise = fit.model.dynamics.noise.covariance.detach().diagonal().sqrt().mean()
    observed = fit.model.observations["x"].noise.detach().sqrt().mean()
    console.print(
        f"fitted noise, sd in units of the data: {float(noise):.2g} a step of the map, "
        f"{float(observed):.2g} of an observation",
        highlight=False,
    )


# ---- what is drawn -----------------------------------------------------------------------------


def _drawable(run: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(run) & (np.abs(run) < BEYOND), run, np.nan)


def _attractors(system: _System, run: np.ndarray, points: Cycles) -> Figure:
    """Both attractors with the fixed points of the system and of the map."""
    truth, pred = (system.original(x[:SHOWN]) for x in (system.truth, _drawable(run)))
    figure = free_run(
        truth=truth, pred=pred, kind="3d", names=list("xyz"),
        title="Lorenz-63 and a free run of the model; crosses are fixed points",
    )  # fmt: skip
    low, high = truth.min(0), truth.max(0)
    margin = 0.25 * (high - low)
    cross: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2}
    cross |= {"color": OTHER[0], "linestyle": "none", "label": "fixed points", "zorder": 10}
    for axis, places in zip(figure.axes, (POINTS, _states(points, system)), strict=True):
        inside = ((places > low - margin) & (places < high + margin)).all(1)
        axis.plot(*places[inside].T, **cross)
    return figure
