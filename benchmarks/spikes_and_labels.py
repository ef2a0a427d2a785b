"""Spike counts and class labels of Lorenz-63: LaplaceEM, and EKF on from it and alone.

::

    python -m benchmarks spikes_and_labels --seeds 4 --out benchmarks/results

Nothing Gaussian is seen: counts of 24 neurons (log-rates affine in the standardised states, random
weights of sd .5, half a spike per step and neuron at the mean) and the octant of the state about
its mean, dt .02, process noise 1e-3. One trajectory of 2000 steps trains, two of 1000 test. A
PLRNN of 6 states is fitted by LaplaceEM (``held_stages`` without Newton steps), trained on from
there by innovations, and trained by innovations from EKF's own start (50 EM iterations).

Scores are of the test trajectories, given the model: one step ahead, six neurons hidden
(co-smoothing), labels from the spikes, the log evidence by particles; "own" and "train" evidence
are the filter's for EKF, Laplace's for LaplaceEM. ``free_d_stsp`` compares a
free run without noise with the true system, after the affine map from states to true states that
regression finds on the training trajectory; ``r2`` is that regression's on the test trajectories.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63
from plssm.inference import EKF, LaplaceEM, held_stages

DT, TRAIN, TEST, NEURONS, DIM, HIDDEN = 0.02, 2000, 1000, 24, 6, 6
RATE, WEIGHT, RUN = 0.5, 0.5, 50_000
ENGINES = ("LaplaceEM", "EKF from it", "EKF alone")
MEASURES = (
    "bits_per_spike", "co_smoothing", "accuracy", "brier", "label_log_likelihood", "evidence",
    "own_evidence", "train_evidence", "r2", "free_d_stsp", "free_d_stsp_floor", "seconds",
)  # fmt: skip


def states(steps: int, seed: int) -> np.ndarray:
    """True states [steps, 3], standardised by one long orbit."""
    long = lorenz63(20_000, dt=DT, seed=99)[0]
    path = lorenz63(steps, dt=DT, seed=seed, process_noise=1e-3)[0]
    return (path - long.mean(0)) / long.std(0)


def seen(paths: list[np.ndarray], seed: int, part: int) -> ps.Dataset:
    """Counts and labels of some trajectories; neurons are those of the seed."""
    weight = WEIGHT * np.random.default_rng(seed).standard_normal((NEURONS, 3))
    draws = np.random.default_rng((seed, part))
    counts = [draws.poisson(RATE * np.exp(z @ weight.T)).astype(float) for z in paths]
    labels = [(z > 0) @ np.array([1.0, 2.0, 4.0]) for z in paths]
    kinds = {"spikes": "count", "label": "label"}
    return ps.Dataset.from_arrays({"spikes": counts, "label": labels}, DT, kinds=kinds)


def scores(fit: ps.Fit, train: ps.Dataset, test: ps.Dataset, true: list[np.ndarray]) -> dict:
    """All measures of one fit."""
    ahead = fit.score(test, steps=[1]).loc["spikes"]
    hidden = test.hold_out("spikes", channels=list(range(HIDDEN)))
    label = fit.score(test, given=["spikes"]).loc["label"]
    options = {"particles": 1000, "runs": 4, "draws": 1, "seed": 0}
    own = EKF(measure="filter") if isinstance(fit.engine, EKF) else fit.engine
    row = {
        "bits_per_spike": ahead["bits_per_spike"],
        "co_smoothing": fit.score(hidden).loc["spikes"]["bits_per_spike"],
        "accuracy": label["accuracy"],
        "brier": label["brier"],
        "label_log_likelihood": label["log_likelihood"],
        "evidence": ps.smooth(fit.model, test, method="particle", **options).log_evidence.sum(),
        "own_evidence": own.infer(fit.model, test).log_evidence.sum(),
        "train_evidence": own.infer(fit.model, train).log_evidence.sum(),
    }
    found = ps.smooth(fit.model, train).mean[0].numpy()
    ones = np.ones((len(found), 1))
    turn = np.linalg.lstsq(np.hstack([found, ones]), true[0], rcond=None)[0]
    held = ps.smooth(fit.model, test).mean.numpy().reshape(-1, DIM) @ turn[:-1] + turn[-1]
    truth = np.concatenate(true[1:])
    row["r2"] = 1 - ((held - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()
    with torch.no_grad():
        start = torch.from_numpy(found[-1])
        run = fit.model.dynamics.rollout(start, RUN + 5000, noise=False)[5000:].numpy()
    orbit = states(RUN, 4000)
    pred = np.nan_to_num(run @ turn[:-1] + turn[-1], nan=1e6, posinf=1e6, neginf=-1e6)
    compare = ps.metrics.state_space_divergence
    row["free_d_stsp"] = compare(truth=orbit, pred=pred.clip(-1e6, 1e6), floor=False)
    row["free_d_stsp_floor"] = compare(truth=orbit, pred=states(RUN, 4001), floor=False)
    row["seconds"] = fit.seconds
    return {k: float(v) for k, v in row.items()}


def fits(train: ps.Dataset, seed: int, given: argparse.Namespace) -> dict[str, ps.Fit]:
    """The three trainings."""
    observations = {
        "spikes": ps.observations.Poisson(NEURONS, bin_seconds=DT),
        "label": ps.observations.Categorical(8),
    }
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(DIM), observations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        engine = LaplaceEM(seed=seed, stages=held_stages(given.iterations, newton=False))
        em = engine.fit(model, train, progress=False)
        options = {"seed": seed, "steps": given.updates, "checks": 10, "select": "likelihood"}
        on = EKF(**options, learning_rate=(1e-3, 1e-4)).fit(em.model, train, progress=False)
        alone = EKF(**options).fit(model, train, progress=False)
    return dict(zip(ENGINES, (em, on, alone), strict=True))


def main(argv: list[str] | None = None) -> int:
    """Fit and score all seeds, print and write spikes_and_labels.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=51, help="of LaplaceEM")
    parser.add_argument("--updates", type=int, default=300, help="by innovations")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        true = [states(n, 100 * seed + k) for k, n in enumerate((TRAIN, TEST, TEST))]
        train, test = seen(true[:1], seed, 0), seen(true[1:], seed, 1)
        for name, fit in fits(train, seed, given).items():
            began = time.perf_counter()
            row = {"seed": seed, "fit": name} | scores(fit, train, test, true)
            rows.append(row | {"scoring_seconds": time.perf_counter() - began})
            print(seed, name, {k: round(row[k], 3) for k in MEASURES}, flush=True)
        report(rows, given)
    return 0


def report(rows: list[dict], given: argparse.Namespace) -> None:
    """Medians and ranges, printed and written with the rows."""
    summary = {}
    for name in ENGINES:
        mine = [r for r in rows if r["fit"] == name]
        summary[name] = {
            k: [float(f([r[k] for r in mine])) for f in (np.median, np.min, np.max)]
            for k in MEASURES
        }
    print(json.dumps(summary), flush=True)
    if given.out is not None:
        found = {
            "command": f"python -m benchmarks spikes_and_labels --first {given.first} "
            f"--seeds {given.seeds} --iterations {given.iterations} --updates {given.updates} "
            "--out benchmarks/results",
            "machine": platform.machine(), "torch": torch.__version__, "threads": 1,
            "summary": summary, "rows": rows,
        }  # fmt: skip
        (given.out / "spikes_and_labels.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
