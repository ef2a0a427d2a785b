"""Reconstruction of dynamical systems by teacher forcing: rows R2, R3, R4, further systems.

Every setting is trained with several seeds from fresh start values on one training series, and a
free run from its last sample is compared with an independent series of the same system (for
recordings: the second half, unseen). Beside the measures stand floors (truth against truth), a
fixed point and white noise. Nothing but the training series is seen by the fit; its selection of
the best check is part of the time. ``--setting`` runs some of them and keeps the others' results.

- ``lorenz63`` (R2): shallow PLRNN, M=3, 50 hidden units, all defaults;
  ``lorenz63, Gauss-Newton``: the same by :class:`GaussNewton`.
- ``interval N`` (R3): Rosenstein's Lorenz, PLRNN with 30 states, all of them set anew from the
  data every N steps, by the published recipe: windows of N steps, about 3200 steps a batch and
  30,000 updates at a rate of 1e-3.
- ``interval N, seen states``: the same system, PLRNN with 30 states (mean-centred), sparse forcing
  of the three seen states every N steps; hidden states go on; rate and selection as by default.
- ``almost linear P`` (R4): Lorenz-63, AL-RNN with M=20 and P rectified units, sparse forcing
  every 16 steps, sequence 200.
- Lorenz-96 with 10 and 20 sites, bursting neuron, ECG and EEG, with 100,000 steps each. (The
  true exponents of Lorenz-96 come from pairs of orbits.)
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import plssm as ps
from plssm.data import synthetic
from plssm.inference import GTF, GaussNewton, SparseTF, TeacherForcing

LONG, DT = 100_000, 0.01
SHORTER = {"steps": LONG}  # a third of the default training
COMMAND = "python -m benchmarks reconstruction --out benchmarks/results"


@dataclass(frozen=True)
class Setting:
    """What is reconstructed, by which map, and how."""

    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    dynamics: Callable[[], ps.dynamics.LatentDynamics]
    engine: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    dt: float = DT
    bins: int = 30
    exponent: float | Callable[[], float] | None = None
    published: str = ""


@functools.cache
def lorenz(sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3) -> tuple:
    """Training and true orbit, standardised by the training orbit."""
    options = {"dt": DT, "sigma": sigma, "rho": rho, "beta": beta}
    return _standard(*(synthetic.lorenz63(LONG, seed=s, **options)[0] for s in (1, 2)))


@functools.cache
def lorenz96(dim: int) -> tuple:
    """Training and true orbit of the ring (dt .04)."""
    return _standard(*(synthetic.lorenz96(LONG, 0.04, dim=dim, seed=s)[0] for s in (1, 2)))


@functools.cache
def lorenz96_exponent(dim: int, pairs: int = 64, rounds: int = 4000, apart: float = 1e-7) -> float:
    """Largest exponent of the ring, from orbits brought together again every 0.1 time units."""

    def onwards(x: np.ndarray) -> np.ndarray:
        path = synthetic.lorenz96(2, 0.1, dim=dim, trials=pairs, start=x, transient=0.0)
        return path[:, -1]

    x = synthetic.lorenz96(1, 0.1, dim=dim, trials=pairs, seed=3)[:, 0]
    gap, growth = np.random.default_rng(0).normal(size=x.shape), []
    for _ in range(rounds):
        gap *= apart / np.linalg.norm(gap, axis=1, keepdims=True)
        x, other = onwards(x), onwards(x + gap)
        gap = other - x
        growth.append(np.log(np.linalg.norm(gap, axis=1) / apart).mean() / 0.1)
    return float(np.mean(growth[rounds // 5 :]))


@functools.cache
def neuron() -> tuple:
    """Two bursting orbits (the model also has a tonic one: voltages below -60 mV tell them)."""
    orbits, seed = [], 0
    while len(orbits) < 2:
        x = synthetic.bursting_neuron(LONG, seed=seed)[0]
        orbits += [x] if x[-20_000:, 0].min() < -60 else []
        seed += 1
    return _standard(*orbits)


@functools.cache
def recording(name: str) -> tuple:
    """First and second half of a recording."""
    data = ps.data.load_recording(name)
    if isinstance(data, ps.Recording):
        data = data.to_dataset(dt=1 / 160)
    values = data.values(data.names[0])[0]
    half = len(values) // 2
    return _standard(values[:half], values[half : 2 * half])


def _standard(train: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, sd = train.mean(0), train.std(0)
    return (train - mean) / sd, (truth - mean) / sd


INTERVALS = (5, 20, 30, 40, 60, 100, 200)


def _interval(steps: int) -> Setting:
    engine = {
        "scheme": SparseTF(0), "sequence": steps, "batch_size": 3200 // steps, "steps": 30_000,
        "learning_rate": (1e-3, 1e-3),
    }  # fmt: skip
    return Setting(
        lambda: lorenz(16.0, 45.92, 4.0),
        lambda: ps.dynamics.PLRNN(30),
        engine,
        seeds=5,
        exponent=1.5,
        published={5: "9.7", 30: ".89", 100: "10.9"}.get(steps, ""),
    )


def _interval_of_seen_states(steps: int) -> Setting:
    return Setting(
        lambda: lorenz(16.0, 45.92, 4.0),
        lambda: ps.dynamics.PLRNN(30, mean_centered=True),
        {"scheme": SparseTF(steps), "sequence": 200, "steps": 30_000},
        exponent=1.5,
    )


def _almost_linear(units: int) -> Setting:
    engine = {"scheme": SparseTF(16), "sequence": 200, "steps": LONG, "noise": 0.05}
    return Setting(
        lorenz,
        lambda: ps.dynamics.AlmostLinearRNN(20, units),
        engine,
        exponent=0.9056,
        published={2: "3.84, D_H .31", 5: "1.18, D_H .14", 10: ".23, D_H .079"}[units],
    )


SETTINGS = {
    "lorenz63": Setting(
        lorenz, lambda: ps.dynamics.ShallowPLRNN(3, 50), seeds=10, exponent=0.9056,
        published=".233-.26, D_H .081, exponent .905",
    ),
    "lorenz63, Gauss-Newton": Setting(
        lorenz, lambda: ps.dynamics.ShallowPLRNN(3, 50), {"optimiser": GaussNewton()}, seeds=10,
        exponent=0.9056, published=".233-.26, D_H .081, exponent .905",
    ),
    **{f"interval {n}": _interval(n) for n in INTERVALS},
    **{f"interval {n}, seen states": _interval_of_seen_states(n) for n in INTERVALS},
    **{f"almost linear {p}": _almost_linear(p) for p in (2, 5, 10)},
    "lorenz96 10": Setting(
        lambda: lorenz96(10), lambda: ps.dynamics.ShallowPLRNN(10, 200), SHORTER, dt=0.04,
        exponent=lambda: lorenz96_exponent(10),
    ),
    "lorenz96 20": Setting(
        lambda: lorenz96(20), lambda: ps.dynamics.ShallowPLRNN(20, 200), SHORTER, dt=0.04,
        exponent=lambda: lorenz96_exponent(20),
    ),
    "bursting neuron": Setting(
        neuron, lambda: ps.dynamics.ShallowPLRNN(3, 200), SHORTER | {"sequence": 200}, dt=0.05,
    ),
    "ecg": Setting(
        lambda: recording("ecg"), lambda: ps.dynamics.ShallowPLRNN(5, 250),
        SHORTER | {"scheme": GTF(0.3), "sequence": 200}, dt=1 / 700, bins=8,
        published="GTF, alpha .3",
    ),
    "eeg": Setting(
        lambda: recording("eeg"), lambda: ps.dynamics.ShallowPLRNN(16, 512),
        SHORTER | {"scheme": GTF(0.1), "sequence": 50}, dt=1 / 160, published="GTF, alpha .1",
    ),
}  # fmt: skip


def reconstruct(task: tuple[str, int, float]) -> dict:
    """One fit and its measures."""
    name, seed, share = task
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    train, truth = setting.data()
    dynamics, channels = setting.dynamics(), train.shape[1]
    readout = "identity" if channels <= dynamics.dim else "linear"
    model = ps.StateSpaceModel(
        dynamics, {"x": ps.observations.Gaussian(channels, readout=readout)}
    )
    engine = TeacherForcing(seed=seed, fit_noise=False, **setting.engine)
    engine.steps = max(int(engine.steps * share), 1)
    if engine.optimiser is not None:
        updates = max(int(engine.optimiser.updates * share), 1)
        engine.optimiser = replace(engine.optimiser, updates=updates)
    data = ps.Dataset.from_arrays({"x": train}, setting.dt)
    began = time.perf_counter()
    fit = engine.fit(model, data, progress=False)
    row = {"setting": name, "seed": seed, "minutes": (time.perf_counter() - began) / 60}
    row |= measure(fit, setting, train, truth)
    print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in row.items()), flush=True)  # fmt: skip
    return row


def measure(fit: ps.Fit, setting: Setting, train: np.ndarray, truth: np.ndarray) -> dict:
    """Measures of a free run from the end of the training series."""
    dynamics, kept = fit.model.dynamics, fit.history.loc[fit.history["score"].idxmin()]
    states = _states(fit, train[-200:])
    with torch.no_grad():
        path = dynamics.rollout(states[-1], len(truth) + 1000, noise=False)[1000:]
        run = fit.model.observations["x"].features(path).numpy()
    row = {"kept": int(kept["step"]), "alpha": float(kept["alpha"]), "loss": float(kept["loss"])}
    row |= {"score": float(kept["score"]), "last_score": float(fit.history["score"].iloc[-1])}
    if not np.isfinite(run).all():
        return row | {"d_stsp": np.inf, "d_h": 1.0, "collapsed": True, "exponent": np.nan}
    options = {"truth": truth, "pred": run, "floor": False}
    d_stsp = float(ps.metrics.state_space_divergence(bins=setting.bins, **options))
    row |= {
        "d_stsp": d_stsp,
        "d_h": float(ps.metrics.power_spectrum_distance(**options)),
        "collapsed": bool((run.std(0) < 0.2 * truth.std(0)).any()),
        "exponent": float(ps.analysis.lyapunov_spectrum(
            dynamics, steps=50_000, dt=setting.dt, start=path[-1])[0]),
    }  # fmt: skip
    if isinstance(dynamics, ps.dynamics.PiecewiseLinear):
        regions = dynamics.region(path[:: max(len(path) // 20_000, 1)]).numpy()
        row["regions"] = len(np.unique(regions, axis=0))
    if dynamics.dim == train.shape[1]:
        error = ps.metrics.n_step_error(dynamics, truth=truth[:20_000], steps=20, train=train)
        row |= {"error_20": float(error), "persistence_20": float(error.references["persistence"])}
    if setting.data is lorenz and dynamics.dim == 3:
        row |= fixed_points(dynamics)
    return row


def _states(fit: ps.Fit, end: np.ndarray) -> torch.Tensor:
    """States at the end of the training series: the samples, or means of the filter."""
    if fit.model.dim == end.shape[1]:
        return torch.from_numpy(end)
    return fit.posterior(ps.Dataset.from_arrays({"x": end}, fit.dt), causal=True).mean[0]


def fixed_points(dynamics: ps.dynamics.PiecewiseLinear) -> dict:
    """How many fixed points there are, and how many of Lorenz's three are among them."""
    raw = synthetic.lorenz63(LONG, dt=DT, seed=1)[0]
    mean, sd = raw.mean(0), raw.std(0)
    wing = np.sqrt(8 / 3 * 27)
    wanted = (np.array([[0, 0, 0], [wing, wing, 27], [-wing, -wing, 27]]) - mean) / sd
    found = ps.analysis.fixed_points(dynamics)
    points = np.array([c.points[0] for c in found]).reshape(-1, 3)
    near = [bool(len(points) and np.linalg.norm(points - w, axis=1).min() < 0.3) for w in wanted]
    return {"fixed_points": len(found), "lorenz_points": sum(near)}


def summarise(rows: list[dict], setting: Setting) -> dict:
    """Medians with quartiles over seeds, and how many collapsed."""
    out: dict[str, Any] = {"seeds": len(rows), "published": setting.published}
    for key in ("d_stsp", "d_h", "exponent", "minutes", "regions", "error_20", "persistence_20",
                "score", "last_score"):  # fmt: skip
        values = [r[key] for r in rows if key in r]
        if values:
            out[key] = [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]
    far = 3.0 if rows[0]["setting"].startswith("lorenz63") else np.inf
    out["collapsed"] = sum(r["collapsed"] or r["d_stsp"] > far for r in rows)
    if setting.exponent:
        true = setting.exponent() if callable(setting.exponent) else setting.exponent
        off = np.array([abs(r["exponent"] / true - 1) for r in rows])
        out["true_exponent"] = true
        out["exponent_within_15_percent"] = int((off < 0.15).sum())
    train, truth = setting.data()
    options = {"truth": truth, "pred": train, "bins": setting.bins, "references": True}
    level = ps.metrics.state_space_divergence(floor=False, **options)
    out["train_against_truth"] = float(level)
    out["references"] = {k: float(v) for k, v in level.references.items()}
    spectra = ps.metrics.power_spectrum_distance(truth=truth, pred=train, floor=False)
    out["train_against_truth_d_h"] = float(spectra)
    return out


def main(argv: list[str] | None = None) -> int:
    """Fit and measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--setting", choices=list(SETTINGS), action="append")
    parser.add_argument("--seeds", type=int, help="instead of each setting's own number")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training steps")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    names = given.setting or list(SETTINGS)
    tasks = [
        (name, given.first + s, given.share)
        for name in names
        for s in range(given.seeds or SETTINGS[name].seeds)
    ]
    with ProcessPoolExecutor(given.workers) as pool:
        rows = list(pool.map(reconstruct, tasks))
    file = None if given.out is None else given.out / "reconstruction.json"
    made = json.loads(file.read_text()) if file is not None and file.exists() else {}
    made["command"] = COMMAND
    made["rows"] = [r for r in made.get("rows", []) if r["setting"] not in names] + rows
    for name in names:
        made[name] = summarise([r for r in rows if r["setting"] == name], SETTINGS[name])
        print(name, json.dumps(made[name]))
    if file is not None:
        file.write_text(json.dumps(made, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
