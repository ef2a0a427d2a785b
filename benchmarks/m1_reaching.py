"""M1 reaching: hand velocity and target decoded from spike counts alone, beside regressions.

One latent model of counts (Poisson), velocity (Gaussian) and target (labels) is trained on the
training part with all three; on the test part, one uncut recording, it sees the counts only.
Everything is chosen by cross-validation over contiguous quarters of the training part: of the
latent models the weight of the counts in the posterior (modality_weights: units share noise that
independent Poisson counts do not have, so that untempered counts claim too much) and then the
dimension, of the regressions the penalty. The test part is scored once for each of three seeds.
Smoothing uses counts after a bin as well; "causal" rows use counts up to the bin only. Regressions
on the counts of six bins before and after are added, since they see about what smoothing sees.
Bands: of the latent models quantiles of the predictive distribution, of ridge regressions the
variance of out-of-fold residuals.

``--engine variational`` adds variational inference beside LaplaceEM, with the dimension and the
weight of the counts that were chosen for LaplaceEM, from its own start and from LaplaceEM's fit;
only the chance that a modality is hidden in training is chosen, on the same quarters. The fits are
also decoded by the Laplace posterior: what the model has learned, without its encoder.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm

import plssm as ps
from plssm.metrics.labels import brier_score

COMMAND = "python -m benchmarks m1_reaching --out benchmarks/results"
FOLDS, ITERATIONS, LEVELS = 4, 30, (0.5, 0.9, 0.95)
DIM, WEIGHTS, DIMS = 8, (1.0, 0.3, 0.1, 0.03), (5, 12)  # first the weight at DIM, then DIMS
PENALTIES = 10.0 ** np.arange(0, 5, 0.5)
LAGS = {"1 bin": (0,), "6 lags": range(6), "6 bins either side": range(-6, 7)}
PUBLISHED = {"r2": 0.53, "r2_mean_of_components": 0.55, "accuracy": 0.765, "accuracy_reach": 0.96}
DROPS, UPDATES, STARTS = (0.0, 0.5), 150, ("own start", "from LaplaceEM")
SHOWN = ("r2", "accuracy", "accuracy_reach", "brier", "nats_velocity", "nats_target", "minutes")
RESULTS = Path(__file__).parent / "results"
MAPS = {"PLRNN": ps.dynamics.PLRNN, "LinearDynamics": ps.dynamics.LinearDynamics}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # counts, velocity, target


def part(number: int) -> Arrays:
    """Counts [T, 71], velocity [T, 2] and target [T] of the training (0) or test (1) part."""
    data = ps.data.load_recording("m1_reaching")
    x, v, c = (data.values(n)[number] for n in ("spikes", "velocity", "target"))
    inside = np.isfinite(x).all(1)
    return x[inside], v[inside], c[inside, 0].astype(int)


def folds(steps: int) -> Iterator[tuple[list[slice], slice]]:
    """Contiguous quarters: what is left of the series, and the quarter that is left out."""
    edges = np.linspace(0, steps, FOLDS + 1).astype(int)
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        pieces = [slice(0, a), slice(b, steps)]
        yield [p for p in pieces if p.stop > p.start], slice(a, b)


# ---- figures ----------------------------------------------------------------------------------
def velocity_figures(truth: np.ndarray, mean: np.ndarray, bands: list[tuple]) -> dict:
    """R² of both components together, its mean over components, and coverage."""
    left = ((truth - mean) ** 2).sum(0)
    spread = ((truth - truth.mean(0)) ** 2).sum(0)
    inside = [float(((low <= truth) & (truth <= high)).mean()) for low, high in bands]
    return {
        "r2": float(1 - left.sum() / spread.sum()),
        "r2_mean_of_components": float((1 - left / spread).mean()),
        "coverage": dict(zip(map(str, LEVELS), inside, strict=True)),
    }


def target_figures(truth: np.ndarray, probability: np.ndarray) -> dict:
    """Accuracy per bin and per run of one target (mean probability, majority), Brier score."""
    edges = np.r_[0, np.flatnonzero(np.diff(truth)) + 1, len(truth)]
    runs = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    label = probability.argmax(1)
    by_mean = [probability[r].mean(0).argmax() == truth[r][0] for r in runs]
    by_vote = [np.bincount(label[r], minlength=4).argmax() == truth[r][0] for r in runs]
    return {
        "accuracy": float((label == truth).mean()),
        "accuracy_reach": float(np.mean(by_mean)),
        "accuracy_reach_vote": float(np.mean(by_vote)),
        "brier": float(brier_score(truth=truth, probabilities=probability)),
    }


# ---- regressions ------------------------------------------------------------------------------
def lagged(x: np.ndarray, lags: tuple | range) -> np.ndarray:
    """Square-root counts of several bins side by side, those beyond the ends repeated."""
    rows = np.arange(len(x))
    return np.concatenate([np.sqrt(x)[np.clip(rows - k, 0, len(x) - 1)] for k in lags], axis=1)


def ridge(penalty: float, x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression on standardised columns, intercept free; predictions for new rows."""
    mean, sd = x.mean(0), x.std(0) + 1e-9
    a, centre = (x - mean) / sd, y.mean(0)
    w = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ (y - centre))
    return (new - mean) / sd @ w + centre


def logistic(penalty: float, x: np.ndarray, c: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Multinomial logistic regression; probabilities for new rows."""
    from sklearn.linear_model import LogisticRegression

    mean, sd = x.mean(0), x.std(0) + 1e-9
    fitted = LogisticRegression(C=1 / penalty, max_iter=2000).fit((x - mean) / sd, c)
    return fitted.predict_proba((new - mean) / sd)


def left_out(method: Callable, x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Predictions of every quarter by a regression on the others."""
    made = []
    for pieces, held in folds(len(x)):
        rows = np.concatenate([np.arange(p.start, p.stop) for p in pieces])
        made.append(method(penalty, x[rows], y[rows], x[held]))
    return np.concatenate(made)


def regressions(train: Arrays, test: Arrays) -> dict[str, dict]:
    """Ridge and logistic regression for each choice of bins."""
    out = {}
    for name, lags in LAGS.items():
        x, new = lagged(train[0], lags), lagged(test[0], lags)
        made = {p: left_out(ridge, x, train[1], p) for p in PENALTIES}
        best = min(made, key=lambda p: ((made[p] - train[1]) ** 2).sum())
        sd = (made[best] - train[1]).std(0)
        mean = ridge(best, x, train[1], new)
        width = [norm.ppf(0.5 + level / 2) * sd for level in LEVELS]
        row = velocity_figures(test[1], mean, [(mean - w, mean + w) for w in width])
        row["cross_validated_r2"] = velocity_figures(train[1], made[best], [(0, 0)] * 3)["r2"]
        made = {p: left_out(logistic, x, train[2], p) for p in PENALTIES}
        chosen = max(made, key=lambda p: (made[p].argmax(1) == train[2]).mean())
        row |= target_figures(test[2], logistic(chosen, x, train[2], new))
        row["cross_validated_accuracy"] = float((made[chosen].argmax(1) == train[2]).mean())
        out[name] = row | {"penalty_ridge": best, "penalty_logistic": chosen}
        show(f"regression, {name}", out[name])
    return out


# ---- latent models ----------------------------------------------------------------------------
def dataset(arrays: Arrays, pieces: list[slice], scale: Arrays) -> ps.Dataset:
    """Pieces of the arrays as trials, velocity about its mean and spread in the training part."""
    x, v, c = arrays
    v = (v - scale[1].mean(0)) / scale[1].std()
    values = {"spikes": x, "velocity": v, "target": c.astype(float)}
    cut = {name: [a[p] for p in pieces] for name, a in values.items()}
    return ps.Dataset.from_arrays(cut, dt=1.0, kinds={"spikes": "count", "target": "label"})


def fresh_model(name: str, dim: int) -> ps.StateSpaceModel:
    """Counts, velocity and target."""
    observations = {
        "spikes": ps.observations.Poisson(71),
        "velocity": ps.observations.Gaussian(2),
        "target": ps.observations.Categorical(4),
    }
    return ps.StateSpaceModel(MAPS[name](dim), observations)


def trained(name: str, dim: int, weight: float, seed: int, data: ps.Dataset) -> ps.Fit:
    """One fit of counts, velocity and target together."""
    model = fresh_model(name, dim)
    engine = ps.inference.LaplaceEM(
        seed=seed, iterations=ITERATIONS, modality_weights={"spikes": weight}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return engine.fit(model, data, progress=False)


def variational(
    model: ps.StateSpaceModel, weight: float, seed: int, drop: float, data: ps.Dataset
) -> ps.Fit:
    """Variational inference from a fresh model, or on from a trained one."""
    engine = ps.inference.VariationalInference(
        seed=seed,
        steps=UPDATES,
        start_iterations=20,
        drop=drop,
        modality_weights={"spikes": weight},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return engine.fit(model, data, progress=False)


def decoded(fit: ps.Fit, data: ps.Dataset, *, causal: bool = False) -> dict:
    """Velocity and target of one trial from its counts."""
    ask = partial(fit.predict, data, given=["spikes"], causal=causal)
    velocity, target = ask("velocity"), ask("target")
    bands = [tuple(e[0].numpy() for e in velocity.interval(level)) for level in LEVELS]
    found = velocity_figures(data.values("velocity")[0], velocity.mean[0].numpy(), bands)
    label = data.values("target")[0, :, 0].astype(int)
    return found | target_figures(label, target.probabilities[0].numpy())


def cross_validated(name: str, dim: int, weight: float, train: Arrays) -> dict:
    """Mean R² and accuracy over the quarters of the training part."""
    rows = []
    for pieces, held in folds(len(train[0])):
        fit = trained(name, dim, weight, 0, dataset(train, pieces, train))
        rows.append(decoded(fit, dataset(train, [held], train)))
    mean = {k: float(np.mean([r[k] for r in rows])) for k in ("r2", "accuracy", "brier")}
    row = {"dim": dim, "weight": weight, **mean, "score": mean["r2"] + mean["accuracy"]}
    show(f"{name} cross-validation", row)
    return row


def chosen(name: str, train: Arrays) -> tuple[dict, list[dict]]:
    """The weight of the counts at one dimension, then the dimension; by R² + accuracy."""
    rows = [cross_validated(name, DIM, w, train) for w in WEIGHTS]
    best = max(rows, key=lambda r: r["score"])
    rows += [cross_validated(name, dim, best["weight"], train) for dim in DIMS]
    return max(rows, key=lambda r: r["score"]), rows


def latent_model(name: str, train: Arrays, test: Arrays, seeds: int) -> dict:
    """Choose, fit with several seeds and decode the test part, smoothed and causally."""
    best, tried = chosen(name, train)
    whole, unseen = dataset(train, [slice(None)], train), dataset(test, [slice(None)], train)
    made = {"chosen": best, "tried": tried, "smoothed": [], "causal": [], "fits": []}
    for seed in range(seeds):
        fit = trained(name, best["dim"], best["weight"], seed, whole)
        per_iteration = float(fit.history["seconds"].median())
        made["fits"].append(
            {"seed": seed, "seconds": fit.seconds, "e_step_seconds": per_iteration}
        )
        for kind in ("smoothed", "causal"):
            made[kind].append(decoded(fit, unseen, causal=kind == "causal"))
            show(f"{name} seed {seed} {kind}", made[kind][-1])
    return made


# ---- variational inference --------------------------------------------------------------------
def without_encoder(fit: ps.Fit, data: ps.Dataset) -> ps.Fit:
    """The same model, its posteriors by Laplace's method."""
    engine = ps.inference.LaplaceEM(modality_weights=fit.engine.modality_weights)
    return ps.Fit.after_training(fit.model, engine, data, history=fit.history, seconds=fit.seconds)


def log_scores(fit: ps.Fit, data: ps.Dataset) -> dict[str, float]:
    """Nats per value of velocity (in units of its spread) and target, given the counts."""
    table = fit.score(data, given=["spikes"])
    return {f"nats_{n}": float(table.loc[n, "log_likelihood"]) for n in ("velocity", "target")}


def hidden_chance(dim: int, weight: float, train: Arrays) -> tuple[float, list[dict]]:
    """How often to hide modalities in training, by R² + accuracy over the quarters."""
    found: dict = {}
    for pieces, held in folds(len(train[0])):
        data, left = dataset(train, pieces, train), dataset(train, [held], train)
        first = trained("PLRNN", dim, weight, 0, data)
        fits = {d: variational(first.model, weight, 0, d, data) for d in DROPS}
        for drop, fit in {None: first, **fits}.items():
            found.setdefault(drop, []).append(decoded(fit, left) | log_scores(fit, left))
    rows, names = [], ("r2", "accuracy", "brier", "nats_velocity", "nats_target")
    for drop, each in found.items():
        mean = {k: float(np.mean([r[k] for r in each])) for k in names}
        rows.append({"drop": drop, **mean, "score": mean["r2"] + mean["accuracy"]})
        title = "LaplaceEM" if drop is None else f"variational from LaplaceEM, drop {drop}"
        show(f"{title}, cross-validation", mean)
    with_drop = [r for r in rows if r["drop"] is not None]
    return max(with_drop, key=lambda r: r["score"])["drop"], rows


def variational_models(known: dict, train: Arrays, test: Arrays, seeds: int) -> dict:
    """LaplaceEM and variational inference side by side on the test part, smoothed."""
    dim, weight = known["PLRNN"]["chosen"]["dim"], known["PLRNN"]["chosen"]["weight"]
    began = time.perf_counter()
    drop, tried = hidden_chance(dim, weight, train)
    whole, unseen = dataset(train, [slice(None)], train), dataset(test, [slice(None)], train)
    made: dict = {"dim": dim, "weight": weight, "drop": drop, "tried": tried, "rows": []}
    for seed in range(seeds):
        laplace = trained("PLRNN", dim, weight, seed, whole)
        fits = {"LaplaceEM": laplace}
        for start, first in zip(STARTS, (fresh_model("PLRNN", dim), laplace.model), strict=True):
            fits[start] = variational(first, weight, seed, drop, whole)
            fits[f"{start}, Laplace posterior"] = without_encoder(fits[start], whole)
        for name, fit in fits.items():
            row = {"engine": name, "seed": seed, "minutes": fit.seconds / 60}
            made["rows"].append(row | decoded(fit, unseen) | log_scores(fit, unseen))
            shown = {k: v for k, v in made["rows"][-1].items() if k != "engine"}
            show(name, shown)
    made["seconds"] = time.perf_counter() - began
    return made


def show(title: str, row: dict) -> None:
    """Print one row."""
    flat = {k: v for k, v in row.items() if not isinstance(v, dict)} | row.get("coverage", {})
    print(title, "  ".join(f"{k} {v:.3f}" for k, v in flat.items()), flush=True)


def verdict(made: dict) -> dict:
    """Medians over seeds against the best regression on one bin or six lags, and published."""
    floors = [made["regressions"][n] for n in ("1 bin", "6 lags")]
    out = {}
    for measure, published in PUBLISHED.items():
        row = {"floor": max(f[measure] for f in floors), "published_floor": published}
        for name in (n for n in MAPS if n in made):
            for kind in ("smoothed", "causal"):
                value = float(np.median([r[measure] for r in made[name][kind]]))
                row[f"{name} {kind}"] = value
        row["not_below"] = row["PLRNN smoothed"] >= max(row["floor"], published)
        out[measure] = row
    return out


def add_variational(given: argparse.Namespace) -> int:
    """Add variational inference to the file of the other figures."""
    path = (given.out or RESULTS) / "m1_reaching.json"
    made = json.loads(path.read_text())
    made["variational"] = variational_models(made, part(0), part(1), given.seeds)
    made["variational"]["command"] = COMMAND + " --engine variational"
    for name in dict.fromkeys(r["engine"] for r in made["variational"]["rows"]):
        rows = [r for r in made["variational"]["rows"] if r["engine"] == name]
        show(f"median {name}", {k: float(np.median([r[k] for r in rows])) for k in SHOWN})
    if given.out is not None:
        path.write_text(json.dumps(made, indent=1, default=float) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Fit regressions and latent models, print and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--engine", choices=("laplace", "variational"), default="laplace")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.engine == "variational":
        return add_variational(given)
    began = time.perf_counter()
    train, test = part(0), part(1)
    settings = {"folds": FOLDS, "iterations": ITERATIONS, "seeds": given.seeds}
    made = {"command": COMMAND, "settings": settings, "regressions": regressions(train, test)}
    for name in MAPS:
        made[name] = latent_model(name, train, test, given.seeds)
        made["seconds"] = time.perf_counter() - began
        if "PLRNN" in made:
            made["verdict"] = verdict(made)
        if given.out is not None:
            text = json.dumps(made, indent=1, default=float)
            (given.out / "m1_reaching.json").write_text(text + "\n")
    print(json.dumps(made["verdict"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
