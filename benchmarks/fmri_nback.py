"""fMRI n-back, 13 people: task stage from BOLD of unknown onset, PLRNN with BOLD and labels.

The label order is the same in all runs of a subject, so that a model that counts scans is right on
whole runs. Tested are therefore stretches of 30 scans cut at random from the left-out run (20 per
run, fixed seed). A stretch is a trial of 40 latent steps: its first 10 (the length of the
haemodynamic response) have no data, they stand for the unknown past. Its first state has the mean
and covariance of the posterior states of the training runs, its labels are masked. No stimulus
inputs anywhere.

For each left-out run r the size of the latent state, the weight of the labels and the decision
rule are those with the best balanced accuracy in an inner leave-one-run-out that never sees run r
of any subject: every subject is fitted without one pair of runs (which pair changes from subject
to subject), each choice of the grid is scored on stretches of the pair, and r takes the scores of
the other run of the pairs r is in. The left-out run is scored once, with a fit to the four others.
What is not in the grid (harmonics, iterations, clock noise, canonical response) is not chosen so:
it was set by hand on inner fits of some subjects, and the idea of a clock came after the reference
that is told the order had been seen on the left-out runs. The grid as a whole is thus not blind.

Two starts of the PLRNN are in the grid. "free" is the engine's own. "clock" starts some states as
sines and cosines of scan time in the training runs, rotations of constant speed, beside states
that carry the rest of the BOLD signal: the label order then is in the dynamics, and the stretch of
BOLD has to tell the phase. EM goes on from there, and last the label read-out is fitted to what
BOLD alone says about stretches of the training runs.

Strict: trained on the subjects of five block orders (two runs of each), tested on the subjects of
the sixth; the free start only, because a clock would carry the orders of the training subjects.
The logistic regressions have all five runs there. Logistic regression does not know the label
order within a subject, a clock does: "told_the_order" is the reference that knows it, too.

``--engine variational`` adds variational inference beside LaplaceEM (`_nback_variational.py`).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import plssm as ps
from benchmarks._nback import (
    CLASSES,
    LAGS,
    LENGTH,
    ORDERS,
    PAIRS,
    PAST,
    REGIONS,
    RUNS,
    SCANS,
    SUBJECTS,
    Memory,
    Regression,
    confusion,
    counter,
    cut,
    majority,
    recording,
    scores,
    summary,
    with_past,
)
from plssm.inference.stages import Stage
from plssm.metrics.labels import brier_score

COMMAND = "python -m benchmarks fmri_nback --out benchmarks/results"
FREE = tuple(
    {"start": "free", "dim": m, "label_weight": w}
    for m, w in ((8, 0.1), (8, 0.3), (10, 0.1), (10, 0.3), (10, 1.0))
)
GRID = (*FREE, {"start": "clock", "own": 9, "label_weight": 1.0})
HARMONICS, CLOCK_NOISE, SHIFT = (1, 2, 3, 4, 6), 1e-3, 4.0
CLOCK_STAGES = (Stage("read-outs", 1, learn=("observations", "initial")), Stage("all", 2))
STRICT_RUNS = (0, 1)
RULES = ("argmax", "by_frequency")
STAGES = (Stage("linear", 15, dynamics="linear"), Stage("free", 8))
METRICS = ("accuracy", "balanced_accuracy")
HORIZONS = (1, 5, 10)
KINDS = {"bold": "bold", "stage": "label"}
TR = 3.0


def dataset(bold: np.ndarray, labels: np.ndarray) -> ps.Dataset:
    """Runs or stretches ``[run, scan, ...]`` as trials; NaN = unknown."""
    return ps.Dataset.from_arrays(
        {"bold": bold, "stage": labels[..., None]}, TR, kinds=KINDS, check_channels=False
    )


def observations() -> dict[str, ps.observations.ObservationModel]:
    """BOLD with the canonical response, and labels."""
    return {
        "bold": ps.observations.BOLD(REGIONS, tr_seconds=TR),
        "stage": ps.observations.Categorical(CLASSES),
    }


def clock_path(data: ps.Dataset, own: int) -> np.ndarray:
    """Path ``[run, scan, M]`` of a start: scan time, and what BOLD does besides.

    Sines and cosines of scan time (periods of 72 scans and fractions of it), and the ``own``
    leading principal components of what is left of the deconvolved BOLD; variances are one.
    """
    turns = 2 * np.pi * np.arange(SCANS)[:, None] * np.array(HARMONICS) / SCANS
    clock = np.sqrt(2) * np.stack([np.cos(turns), np.sin(turns)], -1).reshape(SCANS, -1)
    clock = np.tile(clock, (len(data), 1))
    signal = observations()["bold"].bind(1).start_signal(data.batch().modalities["bold"])
    signal = signal.numpy().reshape(-1, REGIONS)
    known = np.column_stack([clock, np.ones(len(clock))])
    rest = signal - known @ np.linalg.lstsq(known, signal, rcond=None)[0]
    components = np.linalg.svd(rest, full_matrices=False)[0][:, :own] * np.sqrt(len(rest))
    return np.concatenate([clock, components], 1).reshape(len(data), SCANS, -1)


def clock_start(data: ps.Dataset, choice: dict, *, linear: bool) -> ps.StateSpaceModel:
    """A model that starts as rotations of constant speed beside a VAR(1) of the other states.

    The PLRNN's states are moved to where nearly all hinges are open.
    """
    path = clock_path(data, choice["own"])
    n, dim = 2 * len(HARMONICS), path.shape[-1]
    turn, noise = np.zeros((dim, dim)), np.full(dim, CLOCK_NOISE)
    for i, angle in enumerate(2 * np.pi * np.array(HARMONICS) / SCANS):
        block = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = np.sqrt(1 - CLOCK_NOISE) * block
    before, after = (path[:, k, n:].reshape(-1, dim - n) for k in (slice(-1), slice(1, None)))
    turn[n:, n:] = np.linalg.lstsq(before, after, rcond=None)[0].T
    noise[n:] = np.maximum(((after - before @ turn[n:, n:].T) ** 2).mean(0), 0.05)
    path = path + SHIFT
    first = np.cov(path[:, 0].T) + np.diag(noise) + 0.05 * np.eye(dim)
    known = {
        "h": SHIFT * (1 - turn.sum(1)),
        "process_noise": noise,
        "initial_mean": path[:, 0].mean(0),
        "initial_noise": first,
    }
    if linear:
        dynamics = ps.dynamics.LinearDynamics.from_parameters(A=turn, **known)
    else:
        decay = np.diag(turn)
        dynamics = ps.dynamics.PLRNN.from_parameters(A=decay, W=turn - np.diag(decay), **known)
    parts = observations()
    for name, part in parts.items():
        part.bind(dim).init_from(data.batch().modalities[name], torch.from_numpy(path))
        part.initialised = True
    return ps.StateSpaceModel(dynamics, parts)


def read_out_from_bold(made: ps.Fit, bold: np.ndarray, labels: np.ndarray) -> None:
    """Fit the label read-out to what BOLD alone says about stretches of the training runs."""
    onsets = range(0, SCANS - LENGTH + 1, 9)
    x, y = (np.concatenate([s[:, o : o + LENGTH] for o in onsets]) for s in (bold, labels))
    data = dataset(with_past(x), with_past(y))
    part = ps.StateSpaceModel(made.model.dynamics, {"bold": made.model.observations["bold"]})
    posterior = ps.smooth(part, data)
    modality = data.batch().modalities["stage"]
    made.model.observations["stage"].m_step(modality, posterior.mean, posterior.covariance())


def fit(bold: np.ndarray, labels: np.ndarray, choice: dict, *, linear: bool = False) -> ps.Fit:
    """BOLD and labels of some runs ``[run, scan, ...]``, each a trial; states made broad.

    The fit's first state has the mean and covariance of all posterior states of these runs.
    """
    data = dataset(bold, labels.astype(float))
    if choice["start"] == "clock":
        model, stages = clock_start(data, choice, linear=linear), CLOCK_STAGES
    else:
        kind = ps.dynamics.LinearDynamics if linear else ps.dynamics.PLRNN
        model = ps.StateSpaceModel(kind(choice["dim"], initial_noise="full"), observations())
        steps = sum(s.iterations for s in STAGES)
        stages = (Stage("linear", steps),) if linear else STAGES
    weights = {"stage": choice["label_weight"]}
    engine = ps.inference.LaplaceEM(seed=0, stages=stages, modality_weights=weights)
    made = engine.fit(model, data, progress=False)
    make_broad(made, data)
    if choice["start"] == "clock":
        read_out_from_bold(made, bold, labels.astype(float))
    return made


def make_broad(made: ps.Fit, data: ps.Dataset) -> None:
    """Give the first state mean and covariance of all posterior states of some runs."""
    posterior = made.posterior(data)
    dim = made.model.dim
    z = posterior.mean.numpy().reshape(-1, dim)
    spread = posterior.covariance().numpy().reshape(-1, dim, dim).mean(0)
    made.model.dynamics.initial.mean = z.mean(0)
    made.model.dynamics.initial.noise.covariance = np.cov(z.T) + spread


def decode(made: ps.Fit, bold: np.ndarray, labels: np.ndarray, s: int, r: int) -> dict[str, list]:
    """Confusion of each rule on the stretches of a run, and the Brier score.

    ``argmax`` names the most probable class; ``by_frequency`` the class whose probability is
    largest in units of its frequency in a run, which is the same in every run of everyone (equal
    class priors, as balanced accuracy has).
    """
    x, truth = with_past(cut(bold, s, r)), cut(labels, s, r)
    data = ps.Dataset.from_arrays({"bold": x}, TR, kinds={"bold": "bold"})
    p = made.predict(data, "stage", given=["bold"], samples=100).probabilities.numpy()
    p = p.reshape(len(x), PAST + LENGTH, CLASSES)[:, PAST:]
    frequency = np.bincount(labels[s, (r + 1) % RUNS], minlength=CLASSES) / SCANS
    return {
        "argmax": confusion(truth, p.argmax(-1)).tolist(),
        "by_frequency": confusion(truth, (p / frequency).argmax(-1)).tolist(),
        "brier": float(brier_score(truth=truth, probabilities=p)),
    }


def inner_fit(bold: np.ndarray, labels: np.ndarray, s: int, choice: dict) -> dict[str, dict]:
    """A subject without one pair of runs: its confusion on the stretches of either."""
    pair = PAIRS[s % len(PAIRS)]
    runs = [q for q in range(RUNS) if q not in pair]
    made = fit(bold[s, runs], labels[s, runs], choice)
    return {str(r): decode(made, bold, labels, s, r) for r in pair}


def outer_fit(
    bold: np.ndarray, labels: np.ndarray, s: int, r: int, choice: dict, linear: bool
) -> dict[str, Any]:
    """A subject without run r: its confusion on the stretches of r, n-step errors on r."""
    runs = [q for q in range(RUNS) if q != r]
    began = time.perf_counter()
    made = fit(bold[s, runs], labels[s, runs], choice, linear=linear)
    row = {"seconds": time.perf_counter() - began, **decode(made, bold, labels, s, r)}
    run = dataset(bold[s, [r]], np.full((1, SCANS), np.nan))
    table = made.score(run, steps=HORIZONS).loc["bold"]
    kept = [f"{k}_{n}" for k in ("error", "persistence", "var1") for n in HORIZONS]
    return row | {k: float(table[k]) for k in kept}


def strict_fit(
    bold: np.ndarray, labels: np.ndarray, order: int, choice: dict
) -> dict[str, list[dict]]:
    """The subjects of five orders together: confusion on the subjects of the sixth."""
    others = [s for k in range(len(ORDERS)) if k != order for s in ORDERS[k]]
    x, y = (v[others][:, list(STRICT_RUNS)] for v in (bold, labels))
    made = fit(x.reshape(-1, SCANS, REGIONS), y.reshape(-1, SCANS), choice)
    return {str(s): [decode(made, bold, labels, s, r) for r in range(RUNS)] for s in ORDERS[order]}


def best_choice(inner: list[dict], *, run: int | None = None, subjects: Sequence[int]) -> dict:
    """The choice and rule with the best mean balanced accuracy of the inner fits.

    Args:
        inner: Rows with the subject, the choice and its tables by run.
        run: The left-out run: only pairs it is in count, with the score of their other run.
        subjects: Subjects that count.
    """
    found: dict[tuple, list[float]] = {}
    for row in inner:
        pair = PAIRS[row["subject"] % len(PAIRS)]
        if row["subject"] not in subjects or (run is not None and run not in pair):
            continue
        for scored, rule in product([q for q in pair if q != run], RULES):
            key = (tuple(row["choice"].items()), rule)
            value = scores(row["tables"][str(scored)][rule])["balanced_accuracy"]
            found.setdefault(key, []).append(value)
    means = {key: float(np.mean(values)) for key, values in found.items()}
    choice, rule = max(means, key=means.get)
    return {**dict(choice), "rule": rule, "inner": means[choice, rule]}


def references(bold: np.ndarray, labels: np.ndarray, memory: Memory) -> dict[str, dict]:
    """Every reference, on the stretches of the left-out runs and as the strict figure."""
    runs = [(s, r) for s in range(SUBJECTS) for r in range(RUNS)]
    simple = {
        "majority": [majority(labels, s, r) for s, r in runs],
        "scan_counter": [counter(labels, s, r) for s, r in runs],
        "scan_counter_told_the_onset": [counter(labels, s, r, told=True) for s, r in runs],
    }
    out = {}
    for name, tables in simple.items():
        by_subject = {str(s): tables[s * RUNS : (s + 1) * RUNS] for s in range(SUBJECTS)}
        out[name] = {"within": summary(by_subject)}
    for name, lags in LAGS.items():
        regression = Regression(bold, labels, lags)
        within = {str(s): memory(f"{name}_{s}", regression.subject, s) for s in range(SUBJECTS)}
        strict: dict[str, list] = {}
        for order in range(len(ORDERS)):
            strict |= memory(f"{name}_strict_{order}", regression.strict, order)
        out[name] = {"within": summary(within), "strict": summary(strict)}
    regression = Regression(bold, labels, LAGS["logistic_acausal"], ordered=True)
    tables = {str(s): memory(f"ordered_{s}", regression.subject, s) for s in range(SUBJECTS)}
    return out | {"logistic_acausal_told_the_order": {"within": summary(tables)}}


def inner_rows(bold: np.ndarray, labels: np.ndarray, memory: Memory) -> list[dict]:
    """All inner fits."""
    rows = []
    for s, choice in product(range(SUBJECTS), GRID):
        name = "_".join(["inner", str(s), *map(str, choice.values())])
        tables = memory(name, inner_fit, bold, labels, s, choice)
        rows.append({"subject": s, "choice": choice, "tables": tables})
    return rows


def models(
    bold: np.ndarray, labels: np.ndarray, inner: list[dict], memory: Memory, *, linear: bool
) -> dict[str, Any]:
    """The left-out runs with one kind of dynamics."""
    choices = [best_choice(inner, run=r, subjects=range(SUBJECTS)) for r in range(RUNS)]
    name = "linear" if linear else "plrnn"
    rows: dict[str, list[dict]] = {}
    for s, r in product(range(SUBJECTS), range(RUNS)):
        row = memory(f"{name}_{s}_{r}", outer_fit, bold, labels, s, r, choices[r], linear)
        rows.setdefault(str(s), []).append(row)
    flat = [row for runs in rows.values() for row in runs]
    tables = {s: [row[choices[r]["rule"]] for r, row in enumerate(v)] for s, v in rows.items()}
    plain = {s: [row["argmax"] for row in v] for s, v in rows.items()}
    errors = [k for k in flat[0] if k.split("_")[0] in ("error", "persistence", "var1")]
    return {
        "choices_by_left_out_run": choices,
        "within": summary(tables),
        "within_argmax_only": {k: v for k, v in summary(plain).items() if k != "subjects"},
        "brier": float(np.mean([row["brier"] for row in flat])),
        "bold_mean_squared_error": {k: float(np.mean([row[k] for row in flat])) for k in errors},
        "seconds_per_fit": float(np.median([row["seconds"] for row in flat])),
    }


def strict_models(
    bold: np.ndarray, labels: np.ndarray, inner: list[dict], memory: Memory
) -> dict[str, Any]:
    """The PLRNN over subjects; choices from the inner fits of the training subjects."""
    tables: dict[str, list] = {}
    choices = []
    for order, held in enumerate(ORDERS):
        kept = [s for s in range(SUBJECTS) if s not in held]
        free = [row for row in inner if row["choice"] in FREE]
        choices.append(best_choice(free, subjects=kept))
        made = memory(f"strict_{order}", strict_fit, bold, labels, order, choices[-1])
        tables |= {s: [row[choices[-1]["rule"]] for row in rows] for s, rows in made.items()}
    return {"choices_by_left_out_order": choices, **summary(tables)}


def grid_means(inner: list[dict]) -> list[dict]:
    """Mean balanced accuracy of every choice over all inner fits."""
    rows = []
    for choice in GRID:
        fits = [r for r in inner if r["choice"] == choice]
        tables = [t for r in fits for t in r["tables"].values()]
        means = {
            rule: float(np.mean([scores(t[rule])["balanced_accuracy"] for t in tables]))
            for rule in RULES
        }
        rows.append({**choice, **means})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run all parts, print the means, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", type=Path, help="folder for finished parts")
    parser.add_argument("--engine", choices=("laplace", "variational"), default="laplace")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help="of --engine variational")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    memory = Memory(given.memory)
    if given.engine == "variational":
        from benchmarks._nback_variational import add_variational

        return add_variational(given.out, memory, given.subjects)
    bold, labels = recording()
    inner = inner_rows(bold, labels, memory)
    made: dict[str, Any] = {
        "command": COMMAND,
        "protocol": __doc__,
        "inner_grid": grid_means(inner),
    }
    parts: dict[str, Callable[[], dict]] = {
        "references": lambda: references(bold, labels, memory),
        "plrnn": lambda: models(bold, labels, inner, memory, linear=False),
        "plrnn_strict": lambda: strict_models(bold, labels, inner, memory),
        "linear": lambda: models(bold, labels, inner, memory, linear=True),
    }
    for name, part in parts.items():
        made[name] = part()
        if given.out is not None:
            text = json.dumps(made, indent=1, default=float)
            (given.out / "fmri_nback.json").write_text(text + "\n")
    for name, part in {**made["references"], **{k: made[k] for k in ("linear", "plrnn")}}.items():
        print(f"{name:<30}", {k: round(part["within"][k], 3) for k in METRICS})
    print(f"{'plrnn, strict':<30}", {k: round(made["plrnn_strict"][k], 3) for k in METRICS})
    print(json.dumps(made["plrnn"]["bold_mean_squared_error"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
