"""Gaussian filters beside a particle filter, where states span the kinks of the map.

::

    python -m benchmarks filter_accuracy --out benchmarks/results

Random piecewise-linear systems of one (z' = a z - w relu(z) + h), two and three (PLRNN) dimensions
with process variance .2, seen through one Gaussian channel less than they have dimensions (at
least one) with noise variance .5, or through as many Poisson channels as dimensions. Each system
gives three trials of 60 steps. The reference is a guided particle filter. For every filter: the
root mean square error of the filtered mean in reference standard deviations, the mean relative
error of the covariance (Frobenius norm), the error of the evidence per step in nats. Median and
quartiles over the systems; the last row says how far a second particle filter is off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import plssm as ps

STEPS, TRIALS, LARGEST = 60, 3, 20.0
FILTERS = {
    "linearised": {},
    "linearised, 10 iterations": {"iterations": 10},
    "moments": {"propagation": "moments"},
}
COUNTED = {
    "linearised, moment update": {"update": "moments"},
    "moments, moment update": {"propagation": "moments", "update": "moments"},
}


def dynamics_of(dim: int, rng: np.random.Generator) -> ps.dynamics.PiecewiseLinear:
    """A random map whose free runs stay bounded."""
    options = {
        "process_noise": np.full(dim, 0.2), "initial_mean": np.zeros(dim),
        "initial_noise": np.ones(dim),
    }  # fmt: skip
    while True:
        if dim == 1:
            a, w = rng.uniform(0.6, 1.0), rng.uniform(1.2, 2.0)
            found = ps.dynamics.ShallowPLRNN.from_parameters(
                [a], [[-w]], [[1.0]], h1=[rng.uniform(0.3, 1.2)], h2=[0.0], clipped=False,
                **options,
            )  # fmt: skip
        else:
            W = rng.normal(size=(dim, dim)) * (1 - np.eye(dim))
            found = ps.dynamics.PLRNN.from_parameters(
                rng.uniform(0.3, 0.9, dim), W, h=rng.normal(size=dim), **options
            )
        z = torch.from_numpy(rng.normal(size=(200, dim)))
        with torch.no_grad():
            for _ in range(300):
                z = found.step(z) + 0.2**0.5 * torch.from_numpy(rng.normal(size=z.shape))
        if bool(z.abs().max() < LARGEST) and bool(
            (z > 0).double().mean(0).sub(0.5).abs().max() < 0.45
        ):
            return found


def model_of(dim: int, kind: str, seed: int) -> ps.StateSpaceModel:
    """A random system with its observations."""
    rng = np.random.default_rng(seed)
    d = dynamics_of(dim, rng)
    if kind == "Gaussian":
        n = max(dim - 1, 1)
        weight = np.eye(1) if dim == 1 else rng.normal(size=(n, dim))
        x = ps.observations.Gaussian.from_parameters(weight, np.zeros(n), noise=[0.5] * n)
    else:
        x = ps.observations.Poisson(dim).bind(dim)
        with torch.no_grad():
            x.weight.copy_(torch.from_numpy(0.5 * rng.normal(size=(dim, dim))))
    return ps.StateSpaceModel(d, {"x": x})


def off(got: ps.posterior.Posterior, exact: ps.posterior.Posterior) -> list[float]:
    """Errors of mean, covariance and evidence."""
    p = exact.covariance()
    sd = p.diagonal(dim1=2, dim2=3).sqrt()
    mean = ((got.mean - exact.mean) / sd).square().mean().sqrt()
    covariance = (got.covariance() - p).flatten(2).norm(dim=2) / p.flatten(2).norm(dim=2)
    evidence = (got.log_evidence - exact.log_evidence).abs().mean() / STEPS
    return [float(mean), float(covariance.mean()), float(evidence)]


def compare(dim: int, kind: str, systems: int, particles: int) -> dict[str, dict]:
    """Median and quartiles of all errors over random systems."""
    errors: dict[str, list[list[float]]] = {}
    options = FILTERS if kind == "Gaussian" else FILTERS | COUNTED
    for seed in range(systems):
        model = model_of(dim, kind, seed)
        data = model.simulate(STEPS, trials=TRIALS, seed=seed)
        exact, again = (
            ps.smooth(model, data, "particle", True, particles=particles, runs=4, draws=1, seed=s)
            for s in (0, 1)
        )
        for name, given in options.items():
            got = ps.smooth(model, data, causal=True, **given)
            errors.setdefault(name, []).append(off(got, exact))
        errors.setdefault("a second particle filter", []).append(off(again, exact))
    names = ("mean, sd", "covariance, share", "evidence, nats per step")
    return {
        name: dict(zip(names, np.quantile(e, [0.25, 0.5, 0.75], axis=0).T.tolist(), strict=True))
        for name, e in errors.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Compare all filters, print and write filter_accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", type=int, default=20)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = {}
    for kind in ("Gaussian", "Poisson"):
        for dim in (1, 2, 3):
            label = f"{kind}, {dim} dimensions"
            rows[label] = compare(dim, kind, given.systems, given.particles)
            for name, found in rows[label].items():
                print(label, name, {k: np.round(v, 4).tolist() for k, v in found.items()},
                      flush=True)  # fmt: skip
    if given.out is not None:
        found = {
            "command": "python -m benchmarks filter_accuracy --out benchmarks/results",
            "systems": given.systems, "particles": [4, given.particles],
            "columns": ["lower quartile", "median", "upper quartile"], "rows": rows,
        }  # fmt: skip
        (given.out / "filter_accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0
