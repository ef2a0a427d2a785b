"""Growth of the E-step with time steps and trials: seconds and peak memory of arrays."""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.inference.laplace import laplace_posterior

DIM, CHANNELS = 10, 20
STEPS, TRIALS = (1000, 2000, 4000, 8000, 16000), (1, 2, 4, 8, 16)
COMMAND = "python -m benchmarks scaling --out benchmarks/results"


def make_model(seed: int = 0) -> ps.StateSpaceModel:
    """A stable PLRNN with 20 Gaussian channels."""
    rng = np.random.default_rng(seed)
    coupling = 0.1 * rng.standard_normal((DIM, DIM))
    np.fill_diagonal(coupling, 0.0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=rng.uniform(0.5, 0.9, DIM),
        W=coupling,
        h=0.3 * rng.standard_normal(DIM),
        process_noise=np.full(DIM, 0.1),
    )
    observation = ps.observations.Gaussian.from_parameters(
        B=rng.standard_normal((CHANNELS, DIM)), noise=np.full(CHANNELS, 0.5)
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def measure(model: ps.StateSpaceModel, steps: int, trials: int, repeats: int) -> dict:
    """Median seconds and peak bytes of one warm E-step with its covariances."""
    batch = model.simulate(steps, trials=trials, seed=1).batch()
    start = laplace_posterior(model, batch).path
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = laplace_posterior(model, batch, start=start)
        result.posterior.arrays()
        seconds.append(time.perf_counter() - began)
    tracemalloc.start()
    laplace_posterior(model, batch, start=start).posterior.arrays()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "steps": steps,
        "trials": trials,
        "seconds": float(np.median(seconds)),
        "peak_megabytes": peak / 1e6,
        "solves": result.solves,
    }


def slope(rows: list[dict], size: str, figure: str) -> float:
    """Exponent of growth: the slope of log figure on log size (1 = linear)."""
    return float(
        np.polyfit(np.log([r[size] for r in rows]), np.log([r[figure] for r in rows]), 1)[0]
    )


def main(argv: list[str] | None = None) -> int:
    """Measure both sweeps, print them with their exponents, write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    model = make_model()
    sweeps = {
        "steps": [measure(model, t, 1, given.repeats) for t in STEPS],
        "trials": [measure(model, 1000, b, given.repeats) for b in TRIALS],
    }
    exponents = {}
    for size, rows in sweeps.items():
        for row in rows:
            print("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
        exponents[size] = {f: slope(rows, size, f) for f in ("seconds", "peak_megabytes")}
        print(f"growth with {size}:", exponents[size])
    if given.out is not None:
        made = {
            "command": COMMAND,
            "threads": given.threads,
            "exponents": exponents,
            "sweeps": sweeps,
        }
        (given.out / "scaling.json").write_text(json.dumps(made, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
