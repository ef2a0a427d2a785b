"""Recovery from simulation: every observation model alone, and spikes + labels + BOLD together.

A slow two-dimensional PLRNN (time constant about 80 steps) is simulated and observed; LaplaceEM
fits a fresh model to the training trials. Reported for held-out trials: R² of the predictor
(true against that of the posterior mean), correlation of the weights after the affine alignment of
the latent spaces, coverage of hidden observations by the fitted model; and, with the true
parameters, coverage of the latent path by the 50, 90 and 95 % bands over 60 trials.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm import observations as obs

COMMAND = "python -m benchmarks observation_recovery --out benchmarks/results"
DIM, HELD, STEPS, TR = 2, 10, 250, 2.0
TRIALS = 20
ITERATIONS = {"joint": 150}  # BOLD ties the latent origin down, which EM moves slowly; else 50
LEVELS = (0.5, 0.9, 0.95)


def dynamics() -> ps.dynamics.PLRNN:
    """The simulated system: a slow spiral whose turn depends on the side of the kinks."""
    return ps.dynamics.PLRNN.from_parameters(
        [0.988, 0.985],
        [[0.0, -0.14], [0.12, 0.0]],
        h=[0.06, -0.03],
        process_noise=[0.012, 0.012],
        initial_noise=[0.5, 0.5],
    )


def known(name: str, rng: np.random.Generator) -> tuple[dict, dict]:
    """Observation models with known parameters, and fresh ones, by modality."""

    def weight(n: int, size: float) -> np.ndarray:
        return size * rng.standard_normal((n, DIM))

    spikes = {"weight": weight(30, 0.5), "bias": rng.uniform(-1.0, 0.5, 30)}
    thresholds = np.tile([-2.0, -0.7, 0.7, 2.0], (8, 1))
    bold = {"B": weight(20, 1.0), "bias": np.zeros(20), "noise": [0.5] * 20, "tr_seconds": TR}
    label = {"weight": 3.0 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1.0]]), "bias": np.zeros(4)}
    makers = {
        "gaussian": lambda: (
            obs.Gaussian.from_parameters(weight(10, 1.0), noise=[0.5] * 10),
            obs.Gaussian(10),
        ),
        "poisson": lambda: (obs.Poisson.from_parameters(**spikes), obs.Poisson(30)),
        "poisson_softplus": lambda: (
            obs.Poisson.from_parameters(**spikes, link="softplus"),
            obs.Poisson(30, link="softplus"),
        ),
        "negative_binomial": lambda: (
            obs.NegativeBinomial.from_parameters(**spikes, dispersion=[3.0] * 30),
            obs.NegativeBinomial(30),
        ),
        "zero_inflated": lambda: (
            obs.ZeroInflatedPoisson.from_parameters(**spikes, zero_logit=[-1.0] * 30),
            obs.ZeroInflatedPoisson(30),
        ),
        "bernoulli": lambda: (bernoulli(weight(30, 1.0)), obs.Bernoulli(30)),
        "categorical": lambda: (obs.Categorical.from_parameters(**label), obs.Categorical(5)),
        "ordinal": lambda: (
            obs.Ordinal.from_parameters(weight(8, 1.5), thresholds),
            obs.Ordinal(8, 5),
        ),
        "bold": lambda: (obs.BOLD.from_parameters(**bold), obs.BOLD(20, tr_seconds=TR)),
    }
    if name != "joint":
        true, fresh = makers[name]()
        return {"y": true}, {"y": fresh}
    parts = {"spikes": "poisson", "choice": "categorical", "bold": "bold"}
    pairs = {k: makers[v]() for k, v in parts.items()}
    return {k: p[0] for k, p in pairs.items()}, {k: p[1] for k, p in pairs.items()}


def bernoulli(weight: np.ndarray) -> obs.Bernoulli:
    """Binary channels with given weights."""
    model = obs.Bernoulli(len(weight)).bind(DIM)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
    model.initialised = True
    return model


def simulate(model: ps.StateSpaceModel, trials: int, seed: int) -> ps.Dataset:
    """Trials on one clock; together, spikes come every .5 s, labels every 1 s, BOLD every TR."""
    if len(model.observations) == 1:
        return model.simulate(STEPS, trials=trials, dt=TR, seed=seed)
    return model.simulate(STEPS, trials=trials, dt=0.5, every={"choice": 2}, seed=seed)


def predictors(model: ps.StateSpaceModel, z: torch.Tensor, dt: float) -> dict[str, np.ndarray]:
    """Predictors of all modalities along latent paths, at every step."""
    with torch.no_grad():
        return {n: o.features_along(z, dt=dt).numpy() for n, o in model.observations.items()}


def r2(true: np.ndarray, got: np.ndarray) -> float:
    """Share of the variance of the true predictors that is explained, all of them together."""
    residual = ((true - got) ** 2).sum((0, 1))
    spread = ((true - true.mean((0, 1))) ** 2).sum((0, 1))
    return float(1 - residual.sum() / spread.sum())


def centred(x: np.ndarray) -> np.ndarray:
    """Predictors that are known up to a constant (ordinal) without it."""
    return x - x.mean((0, 1))


def coverage(post: ps.posterior.Posterior, truth: np.ndarray) -> dict[str, float]:
    """Share of latent states inside the bands."""
    out = {}
    for level in LEVELS:
        low, high = (v.numpy() for v in post.interval(level))
        out[f"{level:g}"] = float(((low <= truth) & (truth <= high)).mean())
    return out


def aligned_weights(truth, fit, z_true: np.ndarray, z_fit: np.ndarray) -> dict[str, float]:
    """Correlation of true and fitted weights after regressing true on fitted states."""
    flat = np.column_stack([z_true.reshape(-1, DIM), np.ones(z_true[..., 0].size)])
    map_ = np.linalg.lstsq(flat, z_fit.reshape(-1, z_fit.shape[-1]), rcond=None)[0][:DIM].T
    out = {}
    for name, observation in truth.observations.items():
        a = observation.weight.detach().numpy()
        b = fit.model.observations[name].weight.detach().numpy() @ map_
        out[name] = float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    return out


def run(name: str, given: argparse.Namespace) -> dict:
    """One row: simulate, fit, compare."""
    true, fresh = known(name, np.random.default_rng(given.seed))
    truth = ps.StateSpaceModel(dynamics(), true)
    train, test = (simulate(truth, n, s) for n, s in ((TRIALS, 1), (HELD, 2)))
    many = simulate(truth, 60, 3)
    bands = coverage(ps.smooth(truth, many), many.latent)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(DIM), fresh)
    iterations = ITERATIONS.get(name, 50)
    fit = ps.inference.LaplaceEM(seed=given.seed, iterations=iterations).fit(
        model, train, progress=False
    )
    z = fit.posterior(test).mean
    real = predictors(truth, torch.from_numpy(test.latent), test.dt)
    got = predictors(fit.model, z, test.dt)
    free = name == "ordinal"
    row = {
        "model": name,
        "trials": len(train),
        "iterations": iterations,
        "r2": {n: r2(*((centred(v[n]) if free else v[n]) for v in (real, got))) for n in real},
        "r2_true_parameters": {
            n: r2(v, predictors(truth, ps.smooth(truth, test).mean, test.dt)[n])
            for n, v in real.items()
        },
        "weights": aligned_weights(truth, fit, test.latent, z.numpy()),
        "bands": bands,
        "seconds": fit.seconds,
    }
    row["hidden"] = hidden_scores(fit, test)
    print(json.dumps(row, default=float), flush=True)
    return row


def hidden_scores(fit: ps.Fit, test: ps.Dataset) -> dict:
    """Scores of a tenth of each modality's samples, hidden in one block."""
    out = {}
    for name in fit.model.observations:
        table = fit.score(_hide(test, name))
        out[name] = {k: float(v) for k, v in table.loc[name].items() if np.isfinite(v)}
    return out


def _hide(data: ps.Dataset, name: str) -> ps.Dataset:
    """Hide a tenth of the time of a modality, in the middle of every trial."""
    length = STEPS * data.dt
    return data.hold_out(name, times=(0.45 * length, 0.55 * length))


def main(argv: list[str] | None = None) -> int:
    """Run all models, print and write the table."""
    names = [
        "gaussian", "poisson", "poisson_softplus", "negative_binomial", "zero_inflated",
        "bernoulli", "categorical", "ordinal", "bold", "joint",
    ]  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", choices=names, action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [run(name, given) for name in given.model or names]
    if given.out is not None:
        made = {
            "command": COMMAND,
            "held_out": HELD,
            "steps": STEPS,
            "rows": rows,
            "seconds": time.perf_counter() - began,
        }
        text = json.dumps(made, indent=1, default=float)
        (given.out / "observation_recovery.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
