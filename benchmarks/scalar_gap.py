"""Consistency gap of a scalar map (row R10): what innovations and open-loop predictions teach.

::

    python -m benchmarks scalar_gap --out benchmarks/results

Data: z' = 1 - 1.7 |z| + N(0, 1e-4), x = z + N(0, 1e-3), T = 2000; exponent ln 1.7, errors saturate
after 5.7 steps. For every seed, slope and process variance (the observation variance is known) are
found twice: as the best point of a grid, by an independent scalar recursion in numpy, and by
gradients with the EKF engine, whose map has a free slope on either side and starts wrong (slope
1.4, process variance .01). "Slope" is the geometric mean of both sides. Objectives: innovations,
and open-loop predictions up to several horizons from one observed state.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.inference import EKF, Innovation, OpenLoop

SLOPE, PROCESS, OBSERVED, STEPS = 1.7, 1e-4, 1e-3, 2000
HORIZONS = (1, 5, 8, 10, 12, 20, 40)
SLOPES, VARIANCES = np.linspace(0.6, 2.0, 141), np.logspace(-6, -0.5, 45)


def series(seed: int) -> np.ndarray:
    """One recording [T]."""
    rng = np.random.default_rng(seed)
    z, out = 0.3, np.empty(STEPS + 100)
    for t in range(len(out)):
        z = 1 - SLOPE * abs(z) + np.sqrt(PROCESS) * rng.standard_normal()
        out[t] = z
    return out[100:] + np.sqrt(OBSERVED) * rng.standard_normal(STEPS)


def innovation_grid(x: np.ndarray) -> np.ndarray:
    """Mean log-density of innovations at every point of the grid."""
    slope, q = np.meshgrid(SLOPES, VARIANCES, indexing="ij")
    m, p, total = np.full_like(slope, x[0]), np.full_like(slope, OBSERVED), 0.0
    for y in x[1:]:
        m, p = 1 - slope * np.abs(m), slope**2 * p + q
        s, v = p + OBSERVED, y - m
        total = total - 0.5 * (np.log(2 * np.pi * s) + v**2 / s)
        m, p = m + p / s * v, p * OBSERVED / s
    return total / (len(x) - 1)


def open_loop_grid(x: np.ndarray, horizon: int, stride: int = 5) -> np.ndarray:
    """Mean log-density of predictions up to a horizon at every point of the grid."""
    origins = np.arange(0, len(x) - horizon, stride)
    slope, q = (g[..., None] for g in np.meshgrid(SLOPES, VARIANCES, indexing="ij"))
    m, total = np.broadcast_to(x[origins], (*slope.shape[:2], len(origins))), 0.0
    p = np.full(slope.shape, OBSERVED)
    for k in range(1, horizon + 1):
        m, p = 1 - slope * np.abs(m), slope**2 * p + q
        s = p + OBSERVED
        error = ((x[origins + k] - m) ** 2).mean(-1, keepdims=True)
        total = total - 0.5 * (np.log(2 * np.pi * s) + error / s)
    return total[..., 0] / horizon


def best(values: np.ndarray) -> dict[str, float]:
    """Slope and process variance of the best point."""
    i, j = np.unravel_index(np.argmax(values), values.shape)
    return {"slope": float(SLOPES[i]), "process": float(VARIANCES[j])}


def trained(x: np.ndarray, objective: object, seed: int) -> dict[str, float]:
    """Slope and process variance after a training by gradients."""
    wrong = 1.4
    dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
        A=[wrong], W1=[[-2 * wrong]], W2=[[1.0]], h1=[1.0], clipped=False,
        process_noise=[1e-2], initial_mean=[float(x.mean())], initial_noise=[float(x.var())],
    )  # fmt: skip
    for name in ("W2", "h1", "h2"):
        dynamics.get_parameter(name).requires_grad_(False)
    dynamics.initial.requires_grad_(False)
    observed = ps.observations.Gaussian.from_parameters(
        B=[[1.0]], noise=[OBSERVED], readout="identity"
    )
    observed.requires_grad_(False)
    engine = EKF(
        objective=objective, seed=seed, steps=1500, learning_rate=(0.03, 1e-3), warmup=1,
        window=50, state="data", ridge=0.0, checks=6, start="model",
    )  # fmt: skip
    data = ps.Dataset.from_arrays({"x": x[:, None]})
    fit = engine.fit(ps.StateSpaceModel(dynamics, {"x": observed}), data, progress=False)
    learned = fit.model.dynamics
    left = float(learned.A.detach())
    right = left + float(learned.W1.detach() @ learned.W2.detach())
    return {
        "slope": float(np.sqrt(abs(left * right))), "left": left, "right": right,
        "process": float(learned.noise.variance.detach()), "seconds": fit.seconds,
    }  # fmt: skip


def right(found: dict[str, float]) -> bool:
    """Whether the slope, on both sides where they are free, is that of the map."""
    sides = (found.get("left", found["slope"]), -found.get("right", -found["slope"]))
    return all(1.6 <= side <= 1.8 for side in sides)


def table(rows: list[dict]) -> list[dict]:
    """Medians, ranges and the share within the row's bounds, for each objective and method."""
    out = []
    for objective in dict.fromkeys(r["objective"] for r in rows):
        for method in ("grid", "gradients"):
            found = [r[method] for r in rows if r["objective"] == objective and r[method]]
            if not found:
                continue
            slope = np.array([f["slope"] for f in found])
            process = np.array([f["process"] for f in found])
            out.append({
                "objective": objective, "method": method, "seeds": len(found),
                "slope": float(np.median(slope)), "slope_range": [slope.min(), slope.max()],
                "process": float(np.median(process)),
                "process_range": [process.min(), process.max()],
                "share_slope_1.6_to_1.8": float(np.mean([right(f) for f in found])),
                "share_contracting_and_noisy": float(((slope < 1) & (process >= 0.03)).mean()),
            })  # fmt: skip
    return out


def main(argv: list[str] | None = None) -> int:
    """Run all seeds and write scalar_gap.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--no-gradients", action="store_true", help="the grid only")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        x, began = series(seed), time.perf_counter()
        objectives = {"innovations": (Innovation(), innovation_grid(x))}
        for k in HORIZONS:
            objectives[f"open loop, horizon {k}"] = OpenLoop(horizon=k), open_loop_grid(x, k)
        for name, (objective, values) in objectives.items():
            learned = None if given.no_gradients else trained(x, objective, seed)
            rows.append({"seed": seed, "objective": name, "grid": best(values),
                         "gradients": learned})  # fmt: skip
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    summary = table(rows)
    for row in summary:
        print({k: np.round(v, 4) if not isinstance(v, str) else v for k, v in row.items()})
    if given.out is not None:
        found = {
            "machine": platform.machine(), "python": platform.python_version(),
            "torch": torch.__version__, "threads": 1, "summary": summary, "rows": rows,
        }  # fmt: skip
        (given.out / "scalar_gap.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0
