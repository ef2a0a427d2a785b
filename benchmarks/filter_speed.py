"""Filters and smoothers beside each other: linearised, matched moments, iterated, by scans.

::

    OMP_NUM_THREADS=1 python -m benchmarks filter_speed --out benchmarks/results

Posteriors of simulated PLRNNs with M states and 2M Gaussian channels, and the likelihood with its
gradient in all parameters, float64, one thread, by processor time, all options alternately; the
median of the rounds and its ratio to the first row, the extended Kalman filter (filters,
gradients) or Laplace's method (smoothers). Scans do more arithmetic, in
few large steps: they are for graphics processors, and what they cost without one is said here.
The iterated filter and smoother are loops over time in numpy (the latter of up to 50 passes); they
are there for the record, and for observations with memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.inference.filter_likelihood import FilterLikelihood

SIZES = ((3, 8, 300), (10, 8, 300), (10, 1, 1000))  # M, trials, steps
FILTERS = {
    "extended Kalman filter": {},
    "moments": {"propagation": "moments"},
    "twice iterated": {"iterations": 2},
    "by scans": {"parallel": True},
}
SMOOTHERS = {
    "Laplace": {"method": "laplace"},
    "iterated extended Kalman": {"method": "ekf"},
    "moments": {"method": "ekf", "propagation": "moments"},
    "by scans": {"method": "ekf", "parallel": True},
}
GRADIENTS = {"extended Kalman filter": "linearised", "moments": "moments"}


def problem(m: int, trials: int, steps: int) -> tuple[ps.StateSpaceModel, ps.Dataset]:
    """A bounded map, and data of it."""
    rng = np.random.default_rng(m)
    turn = np.linalg.qr(rng.normal(size=(m, m)))[0]
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=rng.uniform(0.3, 0.6, m), W=0.5 * (turn - np.diag(np.diag(turn))),
        h=0.3 * rng.normal(size=m), process_noise=[0.02] * m,
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(2 * m, m)), noise=[0.1] * 2 * m
    )
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    return model, model.simulate(steps, trials=trials, seed=0)


def posterior(model: ps.StateSpaceModel, data: ps.Dataset, **options) -> torch.Tensor:
    """The mean; posteriors may be lazy."""
    return ps.smooth(model, data, **options).mean


def calls(model: ps.StateSpaceModel, data: ps.Dataset, kind: str) -> dict[str, Callable]:
    """What is timed, by name."""
    if kind == "gradient":
        found = {k: FilterLikelihood(model, data, propagation=v) for k, v in GRADIENTS.items()}
        return {k: lambda p=p: p.slope(p.origin).likelihood for k, p in found.items()}
    options = FILTERS if kind == "filter" else SMOOTHERS
    common = {"causal": True} if kind == "filter" else {}
    return {k: partial(posterior, model, data, **common, **v) for k, v in options.items()}


def timed(model: ps.StateSpaceModel, data: ps.Dataset, kind: str, rounds: int) -> list[dict]:
    """Milliseconds of all filters, all smoothers, or all gradients."""
    options = calls(model, data, kind)
    took: dict[str, list[float]] = {name: [] for name in options}
    for number in range(rounds + 1):
        for name, call in options.items():
            began = time.process_time()
            ends = call()
            if number:  # the first call compiles
                took[name].append(1e3 * (time.process_time() - began))
            assert bool(torch.isfinite(ends).all())
    first = next(iter(options))
    rows = []
    for name, values in took.items():
        ratio = [v / w for v, w in zip(values, took[first], strict=True)]
        row = {"kind": kind, "option": name, "milliseconds": statistics.median(values)}
        row |= {"ratio": statistics.median(ratio), "least": min(ratio), "most": max(ratio)}
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Time all, print and write filter_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for m, trials, steps in SIZES:
        model, data = problem(m, trials, steps)
        for kind in ("filter", "smoother", "gradient"):
            for row in timed(model, data, kind, given.rounds):
                rows.append({"states": m, "trials": trials, "steps": steps} | row)
                shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                         for k, v in rows[-1].items())  # fmt: skip
                print("  ".join(shown), flush=True)
    found = {
        "command": "OMP_NUM_THREADS=1 python -m benchmarks filter_speed --out benchmarks/results",
        "machine": platform.machine(), "torch": torch.__version__, "threads": 1, "rows": rows,
    }  # fmt: skip
    if given.out is not None:
        (given.out / "filter_speed.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
