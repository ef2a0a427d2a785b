"""Calibration of lambda_max: 90 % intervals of the parameter posterior and of restarts.

Simulated PLRNNs with a limit cycle (M=2) and with chaos (M=3), process noise variance .01, five
Gaussian channels with noise variance .1, T=1000. Each data set is fitted twice: from the true
parameters ("truth") and from the data, several restarts ("data"); both by LaplaceEM and, from the
(best) result, by EKF. Intervals by "information" are taken around these fits as they are, after
Newton steps to the mode, and with importance weights as well; the ensemble are the EM restarts
from the data, of which the interval is the 5 to 95 % range. "basic" reflects the interval around
the fit at the fit's own exponent.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import plssm as ps

SYSTEMS = {
    "cycle": {"A": [0.61, 0.94], "W": [[0.0, 1.28], [-1.49, 0.0]], "h": [-0.82, 0.91]},
    "chaos": {
        "A": [-0.11, -0.23, -0.65],
        "W": [[0.0, 0.22, -1.48], [-1.37, 0.0, 0.6], [0.58, 1.34, 0.0]],
        "h": [0.94, 0.91, -0.48],
    },
}
NOISE, CHANNELS, LEVEL, ORBIT = 0.01, 5, 0.9, 10_000
COMMAND = "python -m benchmarks dynamics_uncertainty --out benchmarks/results"


def truth_of(kind: str) -> ps.StateSpaceModel:
    """The true model."""
    dim = len(SYSTEMS[kind]["A"])
    dynamics = ps.dynamics.PLRNN.from_parameters(**SYSTEMS[kind], process_noise=[NOISE] * dim)
    weight = np.random.default_rng(0).normal(size=(CHANNELS, dim))
    seen = ps.observations.Gaussian.from_parameters(weight, noise=[0.1] * CHANNELS)
    return ps.StateSpaceModel(dynamics, {"x": seen})


def described(known: ps.analysis.Uncertain, true: float) -> dict:
    """Interval, whether it covers, and what is known about the draws."""
    row = {"method": known.method, "failed": known.failed_share}
    if len(known.values):
        low, high = known.interval(LEVEL)
        row |= {"low": low, "high": high, "median": known.median, "sd": known.sd}
        row |= {"covers": bool(low <= true <= high)}
    else:
        row |= {"covers": False, "low": np.nan, "high": np.nan}
    return row | {"report": known.report}


def by_information(fit: ps.Fit, data: ps.Dataset, true: float, draws: int, label: str) -> list:
    """Intervals from the parameter posterior: as fitted, at the mode, with importance weights."""
    rows = []
    for name, options in (
        ("as fitted", {}),
        ("newton", {"newton_steps": 20, "importance": True}),
    ):
        row = {"start": label, "variant": name}
        try:
            drawn = fit.parameter_draws(draws, data=data, progress=False, **options)
        except ps.errors.PlssmError as error:
            rows.append(row | {"method": "information", "covers": False, "error": str(error)})
            continue
        even = replace(drawn, weights=np.full(draws, 1.0 / draws))
        rows.append(row | described(quantity(even), true))
        if options:
            weighted = row | {"variant": "newton, weighted"}
            rows.append(weighted | described(quantity(drawn), true))
    own = quantity([fit.model]).values
    return [row | {"estimate": float(own[0]) if len(own) else None} for row in rows]


def quantity(source: object) -> ps.analysis.Uncertain:
    """The largest exponent over draws."""
    return ps.analysis.uncertainty(source, "lyapunov_max", steps=ORBIT, progress=False)


def one_set(kind: str, seed: int, given: argparse.Namespace) -> list:
    """All intervals of one data set."""
    truth = truth_of(kind)
    true = float(ps.analysis.lyapunov_spectrum(truth.dynamics, steps=50 * ORBIT)[0])
    data = truth.simulate(given.steps, seed=seed)
    em = ps.inference.LaplaceEM(iterations=given.iterations)
    ekf = ps.inference.EKF(start="model", steps=given.updates, learning_rate=(1e-3, 1e-4))
    stage = ps.inference.Stage("em", given.iterations, accelerated=True)
    start = replace(em, stages=(stage,)).fit(truth, data, progress=False)
    near = ekf.fit(start.model, data, progress=False)
    rows = by_information(near, data, true, given.draws, "truth")
    fits = []
    for restart in range(given.restarts):
        seen = {"x": ps.observations.Gaussian(CHANNELS)}
        fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(truth.dim), seen)
        engine = ps.inference.LaplaceEM(seed=restart, iterations=given.iterations)
        fits.append(engine.fit(fresh, data, progress=False))
    evidence = [float(fit.posterior(data).log_evidence.sum()) for fit in fits]
    known = quantity(fits)
    rows.append({"start": "data", "variant": "ensemble"} | described(known, true))
    rows[-1] |= {"evidence": evidence, "values": np.asarray(known.values).tolist()}
    rows[-1] |= {"evidence_from_truth": float(start.posterior(data).log_evidence.sum())}
    best = fits[int(np.argmax(evidence))]
    best = ekf.fit(best.model, data, progress=False)
    rows += by_information(best, data, true, given.draws, "data")
    return [{"system": kind, "set": seed, "true": true} | row for row in rows]


def summarise(rows: list) -> list:
    """Share of sets covered and median widths, by system, start and variant."""
    keys = sorted({(r["system"], r["start"], r["variant"]) for r in rows})
    table = []
    for key in keys:
        mine = [r for r in rows if (r["system"], r["start"], r["variant"]) == key]
        width = np.array([r.get("high", np.nan) - r.get("low", np.nan) for r in mine])
        error = np.array([(r.get("estimate") or np.nan) - r["true"] for r in mine], dtype=float)
        reports = [r.get("report", {}) for r in mine]
        basic = [
            2 * r["estimate"] - r["high"] <= r["true"] <= 2 * r["estimate"] - r["low"]
            for r in mine
            if r["variant"] == "as fitted" and r.get("estimate") is not None
        ]
        row = dict(zip(("system", "start", "variant"), key, strict=True))
        row |= {"sets": len(mine), "covered": float(np.mean([r["covers"] for r in mine]))}
        row |= {"covered_basic": sum(basic) / len(mine) if basic else None}
        row |= {"below": float(np.mean([r.get("high", np.nan) < r["true"] for r in mine]))}
        row |= {"above": float(np.mean([r.get("low", np.nan) > r["true"] for r in mine]))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row |= {"width": np.nanquantile(width, (0.25, 0.5, 0.75)).tolist()}
            row |= {"error": float(np.nanmedian(np.abs(error)))}
            for name in ("distance", "effective_draws", "pareto_shape", "negative", "weak"):
                row[name] = float(np.nanmedian([r.get(name, np.nan) for r in reports]))
        row |= {"failed": float(np.mean([r.get("failed", 1.0) for r in mine]))}
        table.append(row)
    return table


def shown(table: list) -> None:
    """Prints the summary."""
    print("system start variant            sets covered below above  width   |error| distance")
    for r in table:
        print(
            f"{r['system']:6s} {r['start']:5s} {r['variant']:18s} {r['sets']:4d} "
            f"{r['covered']:7.2f} {r['below']:5.2f} {r['above']:5.2f} {r['width'][1]:7.4f} "
            f"{r['error']:7.4f} {r['distance']:8.3g}",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    """Run all data sets, print the table, write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--updates", type=int, default=300)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    began, rows = time.perf_counter(), []
    cpu = time.process_time()
    for seed in range(given.sets):
        for kind in SYSTEMS:
            rows += one_set(kind, seed, given)
            print(f"set {seed} {kind}: {time.perf_counter() - began:.0f} s", flush=True)
        table = summarise(rows)
        if given.out is not None:
            made = {
                "command": COMMAND,
                "settings": {k: v for k, v in vars(given).items() if k != "out"},
                "summary": table,
                "rows": rows,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
            }
            text = json.dumps(made, indent=2, default=float)
            (given.out / "dynamics_uncertainty.json").write_text(text + "\n")
    shown(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
