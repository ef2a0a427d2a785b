"""Multimodal teacher forcing on Lorenz-63 (row R8): Gaussian channels, ordinal levels and counts.

Every seed has its own observations of one orbit and its own start values. Data: T=1e5, dt .05;
three z-scored channels with noise of sd .1; eight ordinal channels of seven levels, predictors of
sd 2 with thresholds at equal quantiles; three counts with an exponential link, log-rates of sd .5
and mean count 1. Map: clipped dendritic PLRNN, M=20, 15 bases, mean-centred; tau 10, sequence 300,
batch 16. ``all`` has all three modalities (4500 updates), ``discrete`` no Gaussian channels
(25,000 updates, as published for both).

A free run of 1e5 steps (1000 are dropped) is compared with an independent noise-free orbit,
D_stsp at 10 bins. With Gaussian channels the run's channels are compared; the floor is truth
against truth. Without them the true state is regressed on the encoder's means (training data) and
the run's states go through that map; the floor is the same map on the means of unseen data.

    python -m benchmarks multimodal_forcing --out benchmarks/results
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63
from plssm.inference import MTF, TeacherForcing

DT, LONG, DIM, BASES, BINS = 0.05, 100_000, 20, 15, 10
NOISE, LEVELS, ORDINALS, COUNTS = 0.1, 7, 8, 3
COMMAND = "python -m benchmarks multimodal_forcing --out benchmarks/results"
VARIANTS = {"all": ("x", "level", "count"), "discrete": ("level", "count")}
ENGINE = {"sequence": 300, "batch_size": 16, "learning_rate": (1e-2, 2e-4)}
LENGTHS = {"all": {"steps": 4_500, "checks": 15}, "discrete": {"steps": 25_000, "checks": 50}}


@functools.cache
def orbits() -> tuple[np.ndarray, np.ndarray]:
    """Training and independent true orbit, z-scored by the training orbit."""
    train, truth = (lorenz63(LONG, dt=DT, seed=s)[0] for s in (1, 2))
    mean, sd = train.mean(0), train.std(0)
    return (train - mean) / sd, (truth - mean) / sd


def dataset(states: np.ndarray, seed: int, names: tuple[str, ...], draw: int = 0) -> ps.Dataset:
    """Observations of an orbit.

    Args:
        states: The orbit [T, 3].
        seed: Seed of the weights.
        names: Modalities that are kept.
        draw: Number of the draw of the noise.
    """
    weights, rng = np.random.default_rng(seed), np.random.default_rng((seed, draw, 1))
    train = orbits()[0]
    beta, gamma = (weights.standard_normal((n, 3)) for n in (ORDINALS, COUNTS))
    beta *= 2.0 / (train @ beta.T).std(0)[:, None]
    gamma *= 0.5 / (train @ gamma.T).std(0)[:, None]
    cuts = np.quantile(train @ beta.T, np.arange(1, LEVELS) / LEVELS, axis=0)
    noisy = states @ beta.T + rng.logistic(size=(len(states), ORDINALS))
    level = (noisy[:, :, None] > cuts.T).sum(-1).astype(float)
    offset = -np.log(np.exp(train @ gamma.T).mean(0))
    count = rng.poisson(np.exp(states @ gamma.T + offset)).astype(float)
    x = states + NOISE * rng.standard_normal(states.shape)
    arrays = {"x": x, "level": level, "count": count}
    kinds = {"level": "ordinal", "count": "count"}
    return ps.Dataset.from_arrays(
        {n: arrays[n] for n in names}, DT, kinds={n: k for n, k in kinds.items() if n in names}
    )


def model(names: tuple[str, ...]) -> ps.StateSpaceModel:
    """A fresh model."""
    parts = {
        "x": ps.observations.Gaussian(3),
        "level": ps.observations.Ordinal(ORDINALS, LEVELS),
        "count": ps.observations.Poisson(COUNTS),
    }
    dynamics = ps.dynamics.DendriticPLRNN(DIM, BASES, mean_centered=True)
    return ps.StateSpaceModel(dynamics, {n: parts[n] for n in names})


def means(fit: ps.Fit, data: ps.Dataset) -> torch.Tensor:
    """What the encoder makes of data [T, K]."""
    encoder = fit.recognition
    kind = next(encoder.parameters()).dtype
    with torch.no_grad():
        return encoder(fit.model, data.batch().to(dtype=kind)).mean[0].double()


@torch.no_grad()
def measure(fit: ps.Fit, variant: str, data: ps.Dataset, unseen: ps.Dataset) -> dict:
    """Measures of a free run from the last state of the training data."""
    (train, truth), dynamics = orbits(), fit.model.dynamics
    last = means(fit, data)[-1]
    start = torch.cat([last, last.new_zeros(dynamics.dim - len(last))])
    path = dynamics.rollout(start, LONG + 1000, noise=False)[1000:]
    z, seen = means(fit, data).numpy(), means(fit, unseen).numpy()
    known = np.column_stack([z, np.ones(len(z))])
    to_state = np.linalg.lstsq(known, train, rcond=None)[0]

    def mapped(states: np.ndarray) -> np.ndarray:
        return states @ to_state[:-1] + to_state[-1]

    decoded = mapped(seen)
    row = {"encoder_r2": float(1 - ((decoded - truth) ** 2).mean() / truth.var(0).mean())}
    runs = {"mapped": mapped(path.numpy()[:, : z.shape[1]])}
    if variant == "all":
        runs["channels"] = fit.model.observations["x"].features(path).numpy()
    options = {"truth": truth, "bins": BINS}
    for name, run in runs.items():
        good = bool(np.isfinite(run).all())
        row[f"d_stsp_{name}"] = float(ps.metrics.state_space_divergence(
            pred=run, floor=False, **options)) if good else np.inf  # fmt: skip
        row[f"d_h_{name}"] = float(ps.metrics.power_spectrum_distance(
            truth=truth, pred=run, floor=False)) if good else 1.0  # fmt: skip
    row["floor_mapped"] = float(
        ps.metrics.state_space_divergence(pred=decoded, floor=False, **options)
    )
    row["floor"] = float(ps.metrics.state_space_divergence(pred=train, floor=False, **options))
    row["d_stsp"] = row["d_stsp_channels" if variant == "all" else "d_stsp_mapped"]
    row["exponent"] = float(
        ps.analysis.lyapunov_spectrum(dynamics, steps=20_000, dt=DT, start=path[-1])[0]
    )
    return row


def train(variant: str, seed: int, **changes: object) -> tuple[dict, ps.Fit]:
    """One fit and its measures."""
    torch.set_num_threads(1)
    names = VARIANTS[variant]
    data = dataset(orbits()[0], seed, names)
    unseen = dataset(orbits()[1], seed, names, draw=1)
    options = {"scheme": MTF(interval=10), **ENGINE, **LENGTHS[variant], "fit_noise": False}
    options |= changes
    engine = TeacherForcing(seed=seed, **options)
    began = time.perf_counter()
    fit = engine.fit(model(names), data, progress=False)
    row = {"variant": variant, "seed": seed, "minutes": (time.perf_counter() - began) / 60}
    kept = fit.history.loc[fit.history["score"].idxmin()]
    row |= {"kept": int(kept["step"]), "score": float(kept["score"]), "loss": float(kept["loss"])}
    row |= measure(fit, variant, data, unseen)
    print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in row.items()), flush=True)  # fmt: skip
    return row, fit


def summarise(rows: list[dict]) -> dict:
    """Medians with range over seeds."""
    keys = ("d_stsp", "d_stsp_mapped", "floor", "floor_mapped", "encoder_r2", "exponent",
            "minutes")  # fmt: skip
    out = {"seeds": len(rows), "published": ".33 at 10 bins, floor .004"}
    for key in keys:
        values = [r[key] for r in rows]
        out[key] = {"median": float(np.median(values)), "range": [min(values), max(values)]}
    return out


def main(argv: list[str] | None = None) -> int:
    """Fit and measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", choices=list(VARIANTS), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    given = parser.parse_args(argv)
    names = given.variant or list(VARIANTS)
    file = None if given.out is None else given.out / "multimodal_forcing.json"
    made = json.loads(file.read_text()) if file is not None and file.exists() else {}
    made |= {"command": COMMAND, "settings": ENGINE, "lengths": LENGTHS}
    seeds = [given.first + s for s in range(given.seeds)]
    for name in names:
        old = [r for r in made.get("rows", []) if r["variant"] != name or r["seed"] not in seeds]
        made["rows"] = old
        for seed in seeds:
            made["rows"] = [*made["rows"], train(name, seed)[0]]
            made[name] = summarise([r for r in made["rows"] if r["variant"] == name])
            if file is not None:  # after every fit: a later one may be interrupted
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(made, indent=1, default=float) + "\n")
        print(name, json.dumps(made[name]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
