"""Updates of the filter beside dense quadrature: how far one step's moments are off.

::

    python -m benchmarks update_accuracy --out benchmarks/results

Trials of a single step, two latent states with a prior N(m, P) of unit variances and correlation
.5, data drawn from the model. Mean, covariance and evidence of Laplace updates and of moment
updates are compared with those of a grid of 301 x 301 points over sixteen posterior standard
deviations (of the Laplace approximation): error of the mean in posterior standard deviations, of
the covariance relative to the exact one (Frobenius norm), of the evidence in nats; median and
95 % quantile over the trials.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm import observations as o

POINTS, REACH, CORRELATION = 301, 8.0, 0.5
UPDATES = ("laplace", "moments")
MODELS = {
    "Poisson, 5 channels, about one count each": lambda: {"n": o.Poisson(5)},
    "Poisson, 20 channels": lambda: {"n": o.Poisson(20)},
    "categorical, 4 classes": lambda: {"c": o.Categorical(4)},
    "ordinal, 3 channels of 5 levels": lambda: {"r": o.Ordinal(3, 5)},
    "binary, 3 channels": lambda: {"b": o.Bernoulli(3)},
    "Poisson (5), categorical (4) and Gaussian (2)": lambda: {
        "n": o.Poisson(5), "c": o.Categorical(4), "x": o.Gaussian(2),
    },
}  # fmt: skip


def model_of(name: str) -> ps.StateSpaceModel:
    """The model with random read-outs of unit size and its prior on the first state."""
    dynamics = ps.dynamics.PLRNN(2, initial_noise="full")
    model = ps.StateSpaceModel(dynamics, MODELS[name]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        dynamics.initial.noise.covariance = np.array([[1, CORRELATION], [CORRELATION, 1]])
        for observation in model.observations.values():
            shape = observation.weight.shape
            observation.weight.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
    return model


@torch.no_grad()
def exact_moments(
    model: ps.StateSpaceModel, data: ps.Dataset, root: torch.Tensor, mode: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior means, covariances and evidences by sums over a grid around every mode."""
    axis = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), model.dynamics.initial.noise.covariance
    )
    found = []
    for b in range(len(data.trials)):  # one trial at a time bounds the memory
        z = mode[b] + grid @ root[b].T
        trial = data.select(trials=[b]).batch()
        log_weight = prior.log_prob(z) + sum(
            observation.log_prob(trial.modalities[name], z[:, None, None])[:, 0]
            for name, observation in model.observations.items()
        )
        cell = 2 * torch.log(axis[1] - axis[0]) + torch.linalg.slogdet(root[b])[1]
        weight = log_weight.softmax(0)
        mean = weight @ z
        apart = z - mean
        found.append((mean, apart.T @ (weight[:, None] * apart), log_weight.logsumexp(0) + cell))
    return tuple(torch.stack(x) for x in zip(*found, strict=True))


@torch.no_grad()
def errors(model: ps.StateSpaceModel, trials: int) -> dict[str, dict[str, list[float]]]:
    """Median and 95 % quantile of the three errors, of both kinds of updates."""
    data = model.simulate(1, trials=trials, seed=2)
    got = {u: ps.smooth(model, data, causal=True, update=u) for u in UPDATES}
    root = torch.linalg.cholesky(got["laplace"].covariance()[:, 0])
    mean, covariance, evidence = exact_moments(model, data, root, got["laplace"].mean[:, 0])
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    quantiles, rows = torch.tensor([0.5, 0.95], dtype=torch.float64), {}
    for update, found in got.items():
        off = {
            "mean, posterior sd": ((found.mean[:, 0] - mean) / sd).abs().amax(1),
            "covariance, share": (found.covariance()[:, 0] - covariance).flatten(1).norm(dim=1)
            / covariance.flatten(1).norm(dim=1),
            "evidence, nats": (found.log_evidence - evidence).abs(),
        }
        rows[update] = {k: v.quantile(quantiles).tolist() for k, v in off.items()}
    return rows


def main(argv: list[str] | None = None) -> int:
    """Compare all models, print and write update_accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = {}
    for name in MODELS:
        rows[name] = errors(model_of(name), given.trials)
        for update, row in rows[name].items():
            shown = {k: [f"{x:.2g}" for x in v] for k, v in row.items()}
            print(name, update, shown, flush=True)
    if given.out is not None:
        found = {
            "command": "python -m benchmarks update_accuracy --out benchmarks/results",
            "trials": given.trials, "columns": ["median", "95 % quantile"], "rows": rows,
        }  # fmt: skip
        (given.out / "update_accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0
