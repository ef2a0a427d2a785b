"""Labels beside noisy Lorenz-63 (rows R5, R6, R7): matched fits with and without them.

Every net has its own trajectory (T=1000, dt .02, process noise 1e-3, transient dropped) and the
same start for both fits (map and read-out from the linear stage of the Gaussian channels):
Gaussian channels alone, and Gaussian channels with class labels of the noise-free state.
``octants``: three channels and the octant of (x, y, z) - mean; ``octants .5``: the same with
observation noise of sd .5; ``missing``: the channel y is not observed, the label is the sign of y.
Free runs of 1e5 steps are compared with an independent true orbit, and smoothed states with the
true ones. The published fits have at most 51 iterations; ``--iterations 204`` shows what four
times as many do. ``--engine "em free runs"`` keeps the iteration of the last stage whose
noise-free runs are closest to the smoothed path of the training data, ``em`` that with the best
evidence; ``newton free runs`` and ``newton`` are the same with Newton steps on the map, as
``held_stages`` has them by default. ``--engine variational`` goes on from the latter by
variational inference (the evidence lower bound of an amortised guide, 300 updates at the process
noise that EM ended with, the ridge of EM, learning rate 3e-4 to 3e-5: chosen on net 100 of
``missing``, after nets 0 to 19 had been run without a ridge at 3e-3); ``--engine "variational
alone"`` starts from the linear stage like EM does (600 updates). ``--engine ekf`` goes on from the
fits by innovations (300 updates, the process noise that EM ended with held, the ridge of EM, the
same rate, not tuned; the best likelihood is kept), and ``--engine "ekf free runs"`` keeps the best
one among free runs like those of EM's map.
A run of some settings only replaces these in the file and keeps the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63

DT, STEPS, DIM, RUN, TRANSIENT = 0.02, 1000, 15, 100_000, 1000
COMMAND = "python -m benchmarks multimodal_lorenz --out benchmarks/results"
SETTINGS = {"octants": (0.1, False), "octants .5": (0.5, False), "missing": (0.1, True)}
RIDGE = 10.0
MEASURES = ("raw", "d_stsp", "d_h", "state_error")
KEPT = ("em free runs", "newton free runs")  # engines of EM that keep the best free runs
START = ps.inference.Stage("start", 0)  # the start alone, no iteration
ENGINES = (
    "em", "em free runs", "newton", "newton free runs", "variational", "variational alone", "ekf",
    "ekf free runs",
)  # fmt: skip


def orbit(steps: int, *, seed: int, noise: float = 0.0) -> np.ndarray:
    """A trajectory [steps, 3] in the units of the system."""
    return lorenz63(steps, dt=DT, seed=seed, process_noise=noise)[0]


def scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the system, from one long orbit."""
    x = orbit(RUN, seed=99)
    return x.mean(0), x.std(0)


def states(seed: int) -> np.ndarray:
    """The states [T, 3] behind the training data of one net, z-scored."""
    mean, sd = scale()
    return (orbit(STEPS, seed=seed, noise=1e-3) - mean) / sd


def dataset(seed: int, noise: float, missing: bool, *, labels: bool) -> ps.Dataset:
    """Training data of one net."""
    z = states(seed)
    rng = np.random.default_rng(seed)
    x = z + noise * rng.standard_normal(z.shape)
    above = z > 0
    label = above[:, 1].astype(float) if missing else above @ np.array([1.0, 2.0, 4.0])
    arrays = {"x": x[:, [0, 2]] if missing else x}
    kinds = {}
    if labels:
        arrays["label"], kinds = label, {"label": "label"}
    return ps.Dataset.from_arrays(arrays, DT, kinds=kinds)


def raw_divergence(truth: np.ndarray, pred: np.ndarray) -> float:
    """Divergence on bins of width 1 on [-4, 4], smoothing 1e-6, as published.

    Steps outside the box count in the total, so that a run that leaves it matches no bin (22
    nats) instead of the uniform density (3 nats).
    """
    edges = [np.arange(-4.0, 5.0)] * truth.shape[1]
    far = {"nan": 1e9, "posinf": 1e9, "neginf": -1e9}
    p, q = (
        (np.histogramdd(v, edges)[0].ravel() + 1e-6) / (len(v) + 1e-6 * 8 ** v.shape[1])
        for v in (np.nan_to_num(w, **far) for w in (truth, pred))
    )
    return float((p * np.log(p / q)).sum())


def fate(truth: np.ndarray, run: np.ndarray) -> str:
    """Whether a run leaves for good, or ends without the spread of the truth."""
    if not np.isfinite(run).all() or np.abs(run).max() > 50:
        return "diverged"
    return "collapsed" if (run[-5000:].std(0) < 0.2 * truth.std(0)).any() else "runs"


def figures(fit: ps.Fit, data: ps.Dataset, truth: np.ndarray, hidden: np.ndarray) -> dict:
    """Measures of one free run from the last state, without process noise, and of the states.

    ``state_error`` is the mean squared error of the smoothed channels beside the true ones without
    noise; the channels' own noise would score its variance.
    """
    posterior, x = fit.posterior(data), fit.model.observations["x"]
    with torch.no_grad():
        start = posterior.mean[0, -1]
        z = fit.model.dynamics.rollout(start, RUN + TRANSIENT, noise=False)[TRANSIENT:]
        run, smoothed = x.features(z).numpy(), x.features(posterior.mean[0]).numpy()
    if run.shape[1] == 2:
        truth, hidden = truth[:, [0, 2]], hidden[:, [0, 2]]
    finite = bool(np.isfinite(run).all())
    d_stsp = ps.metrics.state_space_divergence(truth=truth, pred=run, floor=False)
    return {
        "raw": raw_divergence(truth, run),
        "fate": fate(truth, run),
        "d_stsp": float(d_stsp),
        "d_h": float(ps.metrics.power_spectrum_distance(truth=truth, pred=run)) if finite else 1.0,
        "state_error": float(((smoothed - hidden) ** 2).mean()),
        "evidence": float(posterior.log_evidence.sum()),
        "seconds": fit.seconds,
    }


def variational(model: ps.StateSpaceModel, data: ps.Dataset, seed: int, *, alone: bool) -> ps.Fit:
    """Variational inference from where a model is."""
    options = {"steps": 600, "process_noise": (3e-2, 1e-3), "checks": 4}
    if not alone:  # near the end already
        options = {"steps": 300, "process_noise": (1e-3, 1e-3), "checks": 6}
        options |= {"learning_rate": (3e-4, 3e-5)}
    engine = ps.inference.VariationalInference(seed=seed, ridge=RIDGE, **options)
    return engine.fit(model, data, progress=False)


def innovated(model: ps.StateSpaceModel, data: ps.Dataset, seed: int, *, keep: bool) -> ps.Fit:
    """Innovations from where a model is, with its process noise."""
    model = copy.deepcopy(model)
    for held in model.dynamics.noise.parameters():
        held.requires_grad_(False)
    engine = ps.inference.EKF(
        seed=seed, steps=300, checks=15, learning_rate=(3e-4, 3e-5), ridge=RIDGE,
        select="free_runs" if keep else "likelihood",
    )  # fmt: skip
    return engine.fit(model, data, progress=False)


def net(task: tuple[str, int, int, str]) -> list[dict]:
    """Both fits of one net."""
    setting, seed, iterations, method = task
    torch.set_num_threads(1)
    noise, missing = SETTINGS[setting]
    mean, sd = scale()
    truth = (orbit(RUN, seed=5000 + seed) - mean) / sd
    newton = method.startswith("newton")
    linear, *held = ps.inference.held_stages(iterations, newton=newton)
    options = {"seed": seed, "ridge": RIDGE, "tolerance": -1.0}
    data = dataset(seed, noise, missing, labels=False)
    model = ps.StateSpaceModel(
        ps.dynamics.PLRNN(DIM), {"x": ps.observations.Gaussian(data.channels["x"])}
    )
    engine = ps.inference.LaplaceEM(stages=(linear, START), **options)
    start = engine.fit(model, data, progress=False).model
    rows = []
    for labels in (False, True):
        data = dataset(seed, noise, missing, labels=labels)
        observations = dict(start.observations.items())
        if labels:
            observations["label"] = ps.observations.Categorical(2 if missing else 8)
        model = ps.StateSpaceModel(start.dynamics, observations)
        began = time.perf_counter()
        if method != "variational alone":
            select = "free_runs" if method in KEPT else "evidence"
            engine = ps.inference.LaplaceEM(stages=tuple(held), select=select, **options)
            fit = engine.fit(model, data, progress=False)
            model = fit.model
        if method.startswith("ekf"):
            fit = innovated(model, data, seed, keep=method != "ekf")
        elif method.startswith("variational"):
            fit = variational(model, data, seed, alone=method == "variational alone")
        fit.seconds = time.perf_counter() - began
        row = {"setting": named(setting, iterations, method), "net": seed, "labels": labels}
        row |= figures(fit, data, truth, states(seed))
        if labels:
            hidden = fit.predict(data, "label", given=["x"])
            shown = data.values("label")[0, :, 0]
            row["accuracy"] = float((hidden.labels[0].numpy().ravel() == shown).mean())
        rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return rows


def named(setting: str, iterations: int, method: str = "em") -> str:
    """A setting's name in the file."""
    name = setting if iterations == 51 else f"{setting}, {iterations} iterations"
    return name if method == "em" else f"{name}, {method}"


def summarise(rows: list[dict], setting: str) -> dict:
    """Medians with quartiles of both kinds of fit, and how often labels help."""
    pairs = {}
    for row in (r for r in rows if r["setting"] == setting):
        pairs.setdefault(row["net"], {})[row["labels"]] = row
    out = {"nets": len(pairs)}
    known = [m for m in MEASURES if all(m in r for p in pairs.values() for r in p.values())]
    for measure in known:
        for labels, name in ((False, "gaussian"), (True, "multimodal")):
            values = [p[labels][measure] for p in pairs.values()]
            out[f"{measure}_{name}"] = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        won = [p[True][measure] < p[False][measure] for p in pairs.values()]
        out[f"{measure}_multimodal_lower"] = float(np.mean(won))
    for labels, name in ((False, "gaussian"), (True, "multimodal")):
        fates = [p[labels]["fate"] for p in pairs.values()]
        out[f"fates_{name}"] = {f: fates.count(f) for f in ("runs", "collapsed", "diverged")}
    return out


def floors(missing: bool) -> dict:
    """Medians of the measures between independent true orbits.

    ``raw_training``: of as many steps of a true orbit as a net is trained on, from the long orbit.
    """
    mean, sd = scale()
    values = []
    for seed in range(5):
        a, b = ((orbit(RUN, seed=7000 + 2 * seed + k) - mean) / sd for k in (0, 1))
        a, b = (v[:, [0, 2]] if missing else v for v in (a, b))
        d_stsp = float(ps.metrics.state_space_divergence(truth=a, pred=b, floor=False))
        d_h = float(ps.metrics.power_spectrum_distance(truth=a, pred=b))
        values.append((raw_divergence(a, b), d_stsp, d_h, raw_divergence(a, b[:STEPS])))
    names = ("raw", "d_stsp", "d_h", "raw_training")
    return dict(zip(names, np.median(values, 0).tolist(), strict=True))


def main(argv: list[str] | None = None) -> int:
    """Fit all nets of all settings, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=51)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, default="em")
    parser.add_argument("--setting", choices=list(SETTINGS), action="append")
    given = parser.parse_args(argv)
    began = time.perf_counter()
    settings = given.setting or list(SETTINGS)
    nets = range(given.first, given.first + given.nets)
    tasks = [(s, n, given.iterations, given.engine) for s in settings for n in nets]
    with ProcessPoolExecutor(given.workers) as pool:
        rows = [row for pair in pool.map(net, tasks) for row in pair]
    file = None if given.out is None else given.out / "multimodal_lorenz.json"
    made = {} if file is None or not file.exists() else json.loads(file.read_text())
    made |= {"command": COMMAND}
    made.pop("iterations", None)
    names = {named(s, given.iterations, given.engine): s for s in settings}
    rows = [r for r in made.pop("rows", []) if r["setting"] not in names] + rows
    seconds = time.perf_counter() - began
    for name, setting in names.items():
        made[name] = {
            **summarise(rows, name),
            "floor": floors(SETTINGS[setting][1]),
            "seconds": seconds,
        }
        print(name, json.dumps(made[name], indent=1))
    if file is not None:
        file.write_text(json.dumps(made | {"rows": rows}, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
