"""Calibration of lambda_max: 90 % intervals of the parameter posterior and of restarts.

Simulated PLRNNs with a limit cycle and with chaos, process noise variance .01, five Gaussian
channels with noise variance .1, T=1000. "cycle" (M=2) and "chaos" (M=3) are one system each, of
which every data set is another realisation; "any cycle" and "any chaos" (M=3) are another random
system in every set. Each data set is fitted twice: from the true parameters ("truth") and from the
data, several restarts ("data"); both by LaplaceEM and, from the (best) result, by EKF, whose
filter is linearised or matches moments. Intervals by "information" are taken under the likelihood
of that filter (for LaplaceEM: with matched moments) around these fits as they are, after Newton
steps to the mode, and with importance weights as well; the ensemble are the EM restarts from the
data, of which the interval is the 5 to 95 % range. Of the intervals around fits as they are there
are all kinds that `Uncertain.interval` has.

"above_truth" is by how many nats the filter's log-likelihood of a fit is above that of the truth:
at the maximum half a chi-square variable with as many degrees of freedom as there are parameters
that the data tell ("rank"), so that the true parameters are in a 90 % likelihood region in 90 % of
the sets ("in_region"). Shares are of all sets; one without an interval counts as not covered.

``--around-truth`` asks what estimates can do: exponents of parameters drawn around the true ones
with the posterior covariance there, into the file that there is in the folder --out.
``--bootstrap 16 --system chaos --updates 200`` fits 16 data sets drawn from each fit again (EM
with one start, then EKF) and writes how the intervals of these cover, for each system that was
asked for, into that file as well.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi2

import plssm as ps

SYSTEMS = {
    "cycle": {"A": [0.61, 0.94], "W": [[0.0, 1.28], [-1.49, 0.0]], "h": [-0.82, 0.91]},
    "chaos": {
        "A": [-0.11, -0.23, -0.65],
        "W": [[0.0, 0.22, -1.48], [-1.37, 0.0, 0.6], [0.58, 1.34, 0.0]],
        "h": [0.94, 0.91, -0.48],
    },
}
RANDOM = ("any cycle", "any chaos")
NOISE, CHANNELS, LEVEL, ORBIT = 0.01, 5, 0.9, 10_000
KINDS = ("percentile", "basic")
APART = ("out", "around_truth", "bootstrap", "system")
ALIKE, LEAST_MOTION, LARGEST = 0.005, 0.1, 20.0  # of random systems
COMMAND = "python -m benchmarks dynamics_uncertainty --out benchmarks/results"


def truth_of(kind: str, seed: int = 0) -> ps.StateSpaceModel:
    """The true model; one of its own for every seed where it is random."""
    if kind in RANDOM:
        return random_system(kind, seed)
    dim = len(SYSTEMS[kind]["A"])
    dynamics = ps.dynamics.PLRNN.from_parameters(**SYSTEMS[kind], process_noise=[NOISE] * dim)
    weight = np.random.default_rng(0).normal(size=(CHANNELS, dim))
    return observed(dynamics, weight)


def observed(dynamics: ps.dynamics.PLRNN, weight: np.ndarray) -> ps.StateSpaceModel:
    """The system behind its five channels."""
    seen = ps.observations.Gaussian.from_parameters(weight, noise=[0.1] * CHANNELS)
    return ps.StateSpaceModel(dynamics, {"x": seen})


def random_system(kind: str, seed: int, dim: int = 3) -> ps.StateSpaceModel:
    """The first of random systems that is wanted: bounded, at work, one exponent everywhere."""
    rng = np.random.default_rng((seed, RANDOM.index(kind)))
    while True:
        coupling = rng.normal(size=(dim, dim)) * (1 - np.eye(dim))
        drawn = {"A": rng.uniform(-0.9, 0.9, dim), "W": coupling, "h": rng.normal(size=dim)}
        dynamics = ps.dynamics.PLRNN.from_parameters(**drawn, process_noise=[NOISE] * dim)
        truth = observed(dynamics, rng.normal(size=(CHANNELS, dim)))
        starts = rng.normal(size=(4, dim))
        try:
            largest = [
                ps.analysis.lyapunov_spectrum(dynamics, steps=ORBIT, start=one)[0]
                for one in starts
            ]
        except ps.errors.PlssmError:
            continue
        low, high = (0.02, np.inf) if kind == "any chaos" else (-np.inf, -0.005)
        if np.ptp(largest) > ALIKE or not low < np.mean(largest) < high:
            continue
        try:
            free = truth.simulate(1000, noise=False).latent[0, -100:]
            noisy = truth.simulate(5000, seed=seed).latent[0]
        except ps.errors.PlssmError:
            continue
        if free.var(0).max() > LEAST_MOTION and abs(noisy).max() < LARGEST:
            return truth


def described(known: ps.analysis.Uncertain, true: float) -> dict:
    """Intervals, whether they cover, and what is known about the draws."""
    row = {"method": known.method, "failed": known.failed_share}
    for kind in KINDS if len(known.values) else ():
        if kind == "percentile" or known.estimate is not None:
            low, high = known.interval(LEVEL, kind=kind)
            row[kind] = {"low": low, "high": high, "covers": bool(low <= true <= high)}
    if len(known.values):
        row |= {"median": known.median, "sd": known.sd}
    return row | {"estimate": known.estimate, "report": known.report}


def likelihood(model: ps.StateSpaceModel, data: ps.Dataset, propagation: str) -> float:
    """Log-likelihood of the filter."""
    engine = ps.inference.EKF(propagation=propagation)
    return float(engine.infer(model, data).log_evidence.sum())


def by_information(
    fit: ps.Fit, data: ps.Dataset, truth: ps.StateSpaceModel, true: float, draws: int, label: str
) -> list:
    """Intervals from the parameter posterior: as fitted, at the mode, with importance weights."""
    rows = []
    how = getattr(fit.engine, "propagation", "moments")
    above = likelihood(fit.model, data, how) - likelihood(truth, data, how)
    for name, options in (
        ("as fitted", {"newton_steps": 0}),
        ("newton", {"newton_steps": 20, "importance": True}),
    ):
        row = {"start": label, "engine": engine_of(fit), "variant": name}
        try:
            drawn = fit.parameter_draws(
                draws, data=data, propagation=how, progress=False, **options
            )
        except ps.errors.PlssmError as error:
            rows.append(row | {"method": "information", "error": str(error)})
            continue
        even = replace(drawn, weights=np.full(draws, 1.0 / draws))
        known = quantity(even)
        if name == "as fitted":
            row["above_truth"] = above
            row["in_region"] = bool(2 * above <= chi2.ppf(LEVEL, drawn.report["rank"]))
        else:
            known = replace(known, estimate=None)
        rows.append(row | described(known, true))
        if name == "newton":
            weighted = row | {"variant": "newton, weighted"}
            rows.append(weighted | described(quantity(drawn), true))
    return rows


def engine_of(fit: ps.Fit) -> str:
    """LaplaceEM, or EKF and how its filter carries a state on."""
    return f"{type(fit.engine).__name__} {getattr(fit.engine, 'propagation', '')}".strip()


def quantity(source: object) -> ps.analysis.Uncertain:
    """The largest exponent over draws."""
    return ps.analysis.uncertainty(source, "lyapunov_max", steps=ORBIT, progress=False)


def one_set(kind: str, seed: int, given: argparse.Namespace) -> list:
    """All intervals of one data set."""
    truth = truth_of(kind, seed)
    true = float(ps.analysis.lyapunov_spectrum(truth.dynamics, steps=50 * ORBIT)[0])
    data = truth.simulate(given.steps, seed=seed)
    em = ps.inference.LaplaceEM(iterations=given.iterations)
    stage = ps.inference.Stage("em", given.iterations, accelerated=True)
    start = replace(em, stages=(stage,)).fit(truth, data, progress=False)
    rows = by_engines(start, data, truth, true, given, "truth")
    fits = from_data(truth.dim, data, given)
    evidence = [float(fit.posterior(data).log_evidence.sum()) for fit in fits]
    known = quantity(fits)
    rows.append(
        {"start": "data", "engine": "LaplaceEM", "variant": "ensemble"} | described(known, true)
    )
    rows[-1] |= {"evidence": evidence, "values": np.asarray(known.values).tolist()}
    rows[-1] |= {"evidence_from_truth": float(start.posterior(data).log_evidence.sum())}
    best = fits[int(np.argmax(evidence))]
    rows += by_engines(best, data, truth, true, given, "data")
    return [{"system": kind, "set": seed, "true": true} | row for row in rows]


def by_engines(
    em: ps.Fit, data: ps.Dataset, truth: ps.StateSpaceModel, true: float,
    given: argparse.Namespace, label: str,
) -> list:  # fmt: skip
    """Intervals of a fit by EM, and of those that EKF makes of it."""
    fits = [em] + [
        innovations(given, how).fit(em.model, data, progress=False)
        for how in ("linearised", "moments")
    ]
    return [
        row for fit in fits for row in by_information(fit, data, truth, true, given.draws, label)
    ]


def from_data(dim: int, data: ps.Dataset, given: argparse.Namespace) -> list[ps.Fit]:
    """Restarts of EM."""
    seen = {"x": ps.observations.Gaussian(CHANNELS)}
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(dim), seen)
    engines = [
        ps.inference.LaplaceEM(seed=restart, iterations=given.iterations)
        for restart in range(given.restarts)
    ]
    return [engine.fit(fresh, data, progress=False) for engine in engines]


def innovations(given: argparse.Namespace, how: str = "linearised") -> ps.inference.EKF:
    """EKF from where EM has ended."""
    return ps.inference.EKF(
        start="model", steps=given.updates, learning_rate=(1e-2, 1e-4), propagation=how
    )


def bootstrapped(kind: str, given: argparse.Namespace) -> Iterator[dict]:
    """Intervals of one system from fits of data that were drawn from fits, set by set."""
    rows = []
    for seed in range(given.sets):
        truth = truth_of(kind, seed)
        true = float(ps.analysis.lyapunov_spectrum(truth.dynamics, steps=50 * ORBIT)[0])
        data = truth.simulate(given.steps, seed=seed)
        fits = from_data(truth.dim, data, given)
        best = max(fits, key=lambda fit: float(fit.posterior(data).log_evidence.sum()))  # noqa: B023
        fit = innovations(given).fit(best.model, data, progress=False)
        options = {"method": "bootstrap", "draws": given.bootstrap, "data": data, "seed": seed}
        known = ps.analysis.uncertainty(
            fit, "lyapunov_max", steps=ORBIT, progress=False, **options
        )
        row = {"set": seed, "true": true} | described(known, true)
        rows.append(row | {"values": np.asarray(known.values).round(5).tolist()})
        print(kind, json.dumps(rows[-1], default=float), flush=True)
        yield reflected(rows) | {"updates": given.updates, "rows": rows}


def reflected(rows: list) -> dict:
    """How bootstraps cover, errors of the fits, and what is left when these are reflected."""
    table = {k: shares([(r[k], r["true"]) for r in rows if k in r], len(rows)) for k in KINDS}
    table["error"] = quartiles([r["estimate"] - r["true"] for r in rows])
    middle = [2 * r["estimate"] - r["median"] - r["true"] for r in rows]
    return {"sets": len(rows), "summary": table | {"corrected": quartiles(middle)}}


def around_truth(sets: int, draws: int, steps: int) -> list:
    """Exponents of parameters as far from the true ones as estimates are, by system."""
    table = []
    for kind in (*SYSTEMS, *RANDOM):
        away, below = [], []
        for seed in range(sets):
            truth = truth_of(kind, seed)
            true = float(ps.analysis.lyapunov_spectrum(truth.dynamics, steps=50 * ORBIT)[0])
            data = truth.simulate(steps, seed=seed)
            drawn = ps.Fit(truth).parameter_draws(draws, data=data, newton_steps=0, progress=False)
            values = np.asarray(quantity(drawn).values)
            away.append(float(np.median(values)) - true)
            below.append(float((values < true).mean()))
        row = {"system": kind, "sets": sets, "median_minus_true": quartiles(away)}
        table.append(row | {"share_below_true": quartiles(below)})
        print(json.dumps(table[-1]), flush=True)
    return table


def quartiles(values: list) -> list:
    """Lower quartile, median, upper quartile."""
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


def summarise(rows: list) -> list:
    """Share of sets covered and median widths, by system, start and variant."""
    keys = ("system", "start", "engine", "variant")
    table = []
    for key in sorted({tuple(r[k] for k in keys) for r in rows}):
        mine = [r for r in rows if tuple(r[k] for k in keys) == key]
        row = dict(zip(keys, key, strict=True)) | {"sets": len(mine)}
        for kind in KINDS:
            found = [(r[kind], r["true"]) for r in mine if kind in r]
            if found:
                row[kind] = shares(found, len(mine))
        error = [r["estimate"] - r["true"] for r in mine if r.get("estimate") is not None]
        row |= {"error": np.median(np.abs(error)), "bias": np.median(error)} if error else {}
        above = np.array([r["above_truth"] for r in mine if "above_truth" in r])
        if len(above):
            row["above_truth"] = quartiles(above)
            row["in_region"] = float(np.mean([r["in_region"] for r in mine if "in_region" in r]))
            row["below_truth"] = float((above < 0).mean())
        reports = [r.get("report", {}) for r in mine]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("distance", "effective_draws", "pareto_shape", "negative", "weak"):
                row[name] = float(np.nanmedian([r.get(name, np.nan) for r in reports]))
        row |= {"failed": float(np.mean([r.get("failed", 1.0) for r in mine]))}
        table.append(row)
    return table


def shares(found: list, sets: int) -> dict:
    """How many intervals cover, how many lie on either side, quartiles of their widths."""
    width = [one["high"] - one["low"] for one, _ in found]
    return {
        "covered": sum(one["covers"] for one, _ in found) / sets,
        "below": sum(one["high"] < true for one, true in found) / sets,
        "above": sum(one["low"] > true for one, true in found) / sets,
        "width": quartiles(width),
    }


def shown(table: list) -> None:
    """Prints the summary."""
    print(
        "system    start engine         variant          kind       sets covered below above  "
        "width    bias "
        "in region"
    )
    for r in table:
        for kind in (k for k in KINDS if k in r):
            one = r[kind]
            print(
                f"{r['system']:9s} {r['start']:5s} {r['engine']:14s} {r['variant']:16s} "
                f"{kind:10s} {r['sets']:4d} {one['covered']:7.2f} "
                f"{one['below']:5.2f} {one['above']:5.2f} {one['width'][1]:7.4f} "
                f"{r.get('bias', np.nan):7.4f} "
                f"{r.get('in_region', np.nan):9.2f}",
                flush=True,
            )


def add(given: argparse.Namespace) -> None:
    """What else was asked for, into the file that there is."""
    file = given.out / "dynamics_uncertainty.json"
    made = json.loads(file.read_text())
    if given.around_truth:
        table = around_truth(given.sets, given.draws, given.steps)
        made["around_truth"] = {"command": f"{COMMAND} --around-truth", "summary": table}
    for kind in (given.system or (*SYSTEMS, *RANDOM)) if given.bootstrap else ():
        asked = f'--bootstrap {given.bootstrap} --system "{kind}" --updates {given.updates}'
        for found in bootstrapped(kind, given):
            command = {"command": f"{COMMAND} --sets {found['sets']} {asked}"}
            made.setdefault("bootstrap", {})[kind] = command | found
            file.write_text(json.dumps(made, indent=1, default=float) + "\n")
    file.write_text(json.dumps(made, indent=1, default=float) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run all data sets, print the table, write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--around-truth", action="store_true")
    parser.add_argument("--bootstrap", type=int, default=0, help="draws; 0: none")
    parser.add_argument("--system", choices=(*SYSTEMS, *RANDOM), action="append")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    if given.around_truth or given.bootstrap:
        add(given)
        return 0
    began, rows = time.perf_counter(), []
    cpu = time.process_time()
    for seed in range(given.sets):
        for kind in given.system or (*SYSTEMS, *RANDOM):
            rows += one_set(kind, seed, given)
            print(f"set {seed} {kind}: {time.perf_counter() - began:.0f} s", flush=True)
        table = summarise(rows)
        if given.out is not None:
            made = {
                "command": COMMAND,
                "settings": {k: v for k, v in vars(given).items() if k not in APART},
                "summary": table,
                "rows": rows,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
            }
            text = json.dumps(made, indent=1, default=float)
            (given.out / "dynamics_uncertainty.json").write_text(text + "\n")
    shown(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
