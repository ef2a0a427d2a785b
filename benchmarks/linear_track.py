"""Linear track: spikes of hidden units, and of the next bin, beside a linear model of the same M.

The running period (4397-5300 s) in bins of 20 ms; the last 20 % of time are held out. Both maps
are trained on the counts alone, in pieces of 10 s, with the same number of EM iterations in all
(the PLRNN spends half of them on its linear start). Bits per spike over the training mean rate of
each unit, all units together: co-smoothing (a quarter of the units hidden in all of the held-out
part, three random sets) and one step ahead from all units up to the bin before.

With an exponential link the mean of a rate under a Gaussian posterior, exp(m + v / 2), is ruled by
the tail for units that hardly fire; its median is exp(m). Both are given. Which one counts, and
the dimension, are chosen in the training part (its last fifth held out). Units with fewer than 20
spikes in the first four fifths of the training part are left out: two are silent there, five fire
1 to 6 times in ten minutes, and weights for these run away.

``--engine ekf`` trains the PLRNN of LaplaceEM on by innovations, with the dimension and the
estimates chosen before (it reads linear_track.json in the folder --out), and writes its rows
beside the others; both are scored with the same posteriors. Its learning rate was not tuned; its
seconds do not count those of LaplaceEM. States are compared once as EKF does for counts, by
Laplace's evidence of whole paths, and once by the likelihood of the filter
(``measure="filter"``). ``--engine evidence`` asks what that likelihood is worth: 200 updates with
every tenth piece held out for the choice, and log evidences by the filter, by Laplace's method for
whole paths, and by particles, of the test data and of every eighth piece of the training data.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.inference.stages import Stage
from plssm.metrics.counts import bits_per_spike

COMMAND = "python -m benchmarks linear_track --out benchmarks/results"
SEEDS = 2
BIN, PIECE, HELD_OUT = 0.02, 500, 0.2
DIMS, ITERATIONS, SETS, HIDDEN = (4, 6, 8), 30, 3, 0.25
LEAST_SPIKES = 20
UPDATES, RATE = 300, (1e-3, 1e-4)  # by innovations
INNOVATED = {"auto": "EKF from it", "filter": "EKF from it, by the filter"}
HALF = ITERATIONS // 2
STAGES = {
    "PLRNN": (Stage("linear", HALF, dynamics="linear"), Stage("free", ITERATIONS - HALF)),
    "LinearDynamics": (Stage("em", ITERATIONS),),
}
MAPS = {"PLRNN": ps.dynamics.PLRNN, "LinearDynamics": ps.dynamics.LinearDynamics}
TASKS = (*(f"co-smoothing {k}" for k in range(SETS)), "one step ahead")


def running() -> np.ndarray:
    """Counts of all units in the running period ``[T, N]``."""
    recording = ps.data.load_recording("linear_track")
    begin, end = recording.meta["running_seconds"]
    data = recording.to_dataset(dt=BIN, resample={"position": "mean"})
    return data.values("spikes")[0][: int((end - begin) / BIN)]


def pieces(counts: np.ndarray) -> ps.Dataset:
    """The series cut into trials of 10 s."""
    cut = [counts[i : i + PIECE] for i in range(0, len(counts), PIECE)]
    return ps.Dataset.from_arrays({"spikes": cut}, dt=BIN, kinds={"spikes": "count"})


def trained(name: str, dim: int, seed: int, counts: np.ndarray) -> ps.Fit:
    """One fit."""
    observation = ps.observations.Poisson(counts.shape[1], bin_seconds=BIN)
    model = ps.StateSpaceModel(MAPS[name](dim), {"spikes": observation})
    engine = ps.inference.LaplaceEM(seed=seed, stages=STAGES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return engine.fit(model, pieces(counts), progress=False)


def innovated(fit: ps.Fit, seed: int, counts: np.ndarray, measure: str) -> ps.Fit:
    """The same model trained on by innovations."""
    engine = ps.inference.EKF(
        seed=seed, steps=UPDATES, checks=5, learning_rate=RATE, measure=measure
    )
    return engine.fit(fit.model, pieces(counts), progress=False)


def evidences(model: ps.StateSpaceModel, data: ps.Dataset) -> dict[str, float]:
    """Log evidence by three approximations."""
    options = {"method": "particle", "particles": 200, "runs": 2, "draws": 1, "seed": 0}
    return {
        "filter": float(ps.inference.EKF(measure="filter").infer(model, data).log_evidence.sum()),
        "path": float(ps.smooth(model, data).log_evidence.sum()),
        "particles": float(ps.smooth(model, data, **options).log_evidence.sum()),
    }


def by_evidence(
    made: dict, train: np.ndarray, test: np.ndarray, seeds: int, out: Path | None
) -> None:
    """What innovations raise, beside what they should, into the rows there are."""
    rows, data = [], pieces(train)
    tenth = np.arange(len(data)) % 10 == 5
    parts = {"test": pieces(test), "training": data.select(trials=slice(0, None, 8))}
    for seed in range(seeds):
        fit = trained("PLRNN", made["dim"], seed, train)
        engine = ps.inference.EKF(
            seed=seed, steps=200, checks=10, learning_rate=RATE, measure="filter"
        )
        checked = data.select(trials=tenth)
        on = engine.fit(fit.model, data.select(trials=~tenth), validation=checked, progress=False)
        steps = int(sum(checked.lengths))
        held_out = (steps * on.history["log_likelihood"]).round(2).tolist()
        for name, one in (("LaplaceEM", fit), ("EKF from it", on)):
            row = {"engine": name, "seed": seed}
            row |= {part: evidences(one.model, some) for part, some in parts.items()}
            rows.append(row | {"held_out_filter": held_out if one is on else held_out[:1]})
            print(json.dumps(rows[-1]), flush=True)
    command = f"{COMMAND} --engine evidence --seeds {seeds}"
    made["evidence"] = {"command": command, "rows": rows}
    if out is not None:
        (out / "linear_track.json").write_text(json.dumps(made, indent=1) + "\n")


def by_innovations(
    made: dict, train: np.ndarray, test: np.ndarray, seeds: int, out: Path | None
) -> None:
    """LaplaceEM and what innovations make of it, beside each other, into the rows there are."""
    rows = []
    for seed in range(seeds):
        fit = trained("PLRNN", made["dim"], seed, train)
        fits = {"LaplaceEM": fit}
        for measure, name in INNOVATED.items():
            fits[name] = innovated(fit, seed, train, measure)
        for name, one in fits.items():
            row = summary(scored(one, test, train.mean(0)), made["estimates"]["PLRNN"])
            row |= {"engine": name, "seed": seed, "seconds": one.seconds}
            data = pieces(train)
            found = ps.inference.EKF(measure="filter").infer(one.model, data).log_evidence
            row["evidence_of_the_filter"] = float(found.sum())
            row["evidence"] = float(ps.smooth(one.model, data).log_evidence.sum())
            rows.append(row)
            print(json.dumps(row), flush=True)
    command = f"{COMMAND} --engine ekf --seeds {seeds}"
    made["ekf"] = {"command": command, "updates": UPDATES, "rows": rows}
    if out is not None:
        (out / "linear_track.json").write_text(json.dumps(made, indent=1) + "\n")


def rates(fit: ps.Fit, mean: np.ndarray, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Expected counts of all units where the state is N(mean, covariance), by estimate."""
    observation = fit.model.observations["spikes"]
    w, b = (p.detach().numpy() for p in (observation.weight, observation.bias))
    m, v = mean @ w.T + b, np.einsum("ni,btij,nj->btn", w, covariance, w, optimize=True)
    with np.errstate(over="ignore"):
        return {"median": BIN * np.exp(m), "mean": BIN * np.exp(m + v / 2)}


def bits(data: ps.Dataset, made: dict[str, np.ndarray], units: np.ndarray, null) -> dict:
    """Bits per spike of some units, by estimate of the rate."""
    y = np.concatenate(list(data.values("spikes")))
    rows = np.isfinite(y).all(1)
    out = {}
    for name, rate in made.items():
        flat = rate.reshape(-1, rate.shape[-1])[rows]
        given = {"counts": y[rows][:, units], "rates": flat[:, units], "null_rates": null[units]}
        out[name] = float(bits_per_spike(**given))
    return out


def scored(fit: ps.Fit, counts: np.ndarray, null: np.ndarray) -> dict[str, dict]:
    """Bits per spike of every task."""
    data, n = pieces(counts), counts.shape[1]
    out = {}
    for k in range(SETS):
        drawn = np.random.default_rng(k).choice(n, round(HIDDEN * n), replace=False)
        units = np.sort(drawn)
        post = ps.smooth(fit.model, data.hold_out("spikes", channels=units.tolist()))
        made = rates(fit, post.mean.numpy(), post.covariance().numpy())
        out[f"co-smoothing {k}"] = bits(data, made, units, null)
    ahead = ps.smooth(fit.model, data, causal=True)
    made = rates(fit, np.asarray(ahead.predicted_mean), np.asarray(ahead.predicted_covariance))
    out["one step ahead"] = bits(data, made, np.arange(n), null)
    return out


def summary(row: dict[str, dict], estimates: dict[str, str]) -> dict[str, float]:
    """Mean over the sets of units, and one step ahead, by the chosen estimates."""
    sets = [row[t][estimates["co-smoothing"]] for t in TASKS[:-1]]
    ahead = row["one step ahead"][estimates["one step ahead"]]
    return {"co-smoothing": float(np.mean(sets)), "one step ahead": ahead}


def best_estimates(row: dict[str, dict]) -> dict[str, str]:
    """The better estimate of the rate in each of the two tasks."""
    kinds = ("median", "mean")
    pairs = {k: summary(row, {"co-smoothing": k, "one step ahead": k}) for k in kinds}
    return {t: max(kinds, key=lambda k: pairs[k][t]) for t in ("co-smoothing", "one step ahead")}


def run(name: str, dim: int, seed: int, train: np.ndarray, test: np.ndarray) -> dict:
    """Fit, score and time one model."""
    began = time.perf_counter()
    fit = trained(name, dim, seed, train)
    last = fit.history[fit.history["stage"] == fit.history["stage"].iloc[-1]]
    found = scored(fit, test, train.mean(0))
    row = {
        "model": name,
        "dim": dim,
        "seed": seed,
        "bits": found,
        "evidence": float(last["evidence"].iloc[-1]),
        "fit_seconds": fit.seconds,
        "e_step_seconds": float(last["seconds"].median()),
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(row), flush=True)
    return row


def chosen(train: np.ndarray) -> tuple[int, dict, list[dict]]:
    """Dimension (by the PLRNN) and estimates of the rate, from the training part."""
    border = int((1 - HELD_OUT) * len(train))
    tried = [run(n, dim, 0, train[:border], train[border:]) for n in MAPS for dim in DIMS]
    for row in tried:
        row["estimates"] = best_estimates(row["bits"])
        row["score"] = sum(summary(row["bits"], row["estimates"]).values())
    best = max((r for r in tried if r["model"] == "PLRNN"), key=lambda r: r["score"])
    same = {r["model"]: r["estimates"] for r in tried if r["dim"] == best["dim"]}
    return best["dim"], same, tried


def main(argv: list[str] | None = None) -> int:
    """Choose, fit and score both maps, print and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--engine", choices=("em", "ekf", "evidence"), default="em")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.perf_counter()
    counts = running()
    border = int((1 - HELD_OUT) * len(counts))
    known = counts[: int((1 - HELD_OUT) * border)].sum(0) >= LEAST_SPIKES
    train, test = counts[:border, known], counts[border:, known]
    if given.engine != "em":
        known_choices = json.loads((given.out / "linear_track.json").read_text())
        by = by_innovations if given.engine == "ekf" else by_evidence
        by(known_choices, train, test, given.seeds, given.out)
        return 0
    dim, estimates, tried = chosen(train)
    made = {
        "command": COMMAND if given.seeds == SEEDS else f"{COMMAND} --seeds {given.seeds}",
        "units": int(known.sum()),
        "spikes": {"train": int(train.sum()), "test": int(test.sum())},
        "iterations": ITERATIONS,
        "null": "training mean rate of each unit: 0 bits",
        "dim": dim,
        "estimates": estimates,
        "tried": tried,
        "rows": [],
    }
    for seed in range(given.seeds):
        for name in MAPS:
            made["rows"].append(run(name, dim, seed, train, test))
            report(made, given.out, time.perf_counter() - began)
    return 0


def report(made: dict, out: Path | None, seconds: float) -> None:
    """Print the medians over seeds so far, and write everything."""
    made["seconds"] = seconds
    made["median_over_seeds"] = {}
    for name in {r["model"]: None for r in made["rows"]}:
        rows = [r["bits"] for r in made["rows"] if r["model"] == name]
        each = [summary(r, made["estimates"][name]) for r in rows]
        medians = {t: float(np.median([e[t] for e in each])) for t in each[0]}
        made["median_over_seeds"][name] = medians
    print(json.dumps(made["median_over_seeds"]), flush=True)
    if out is not None:
        (out / "linear_track.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
