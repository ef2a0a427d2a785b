"""How far estimates by a filter's likelihood are from the truth, for want of the exact likelihood.

::

    python -m benchmarks filter_bias --out benchmarks/results

The exact score (gradient of the log-likelihood) has mean zero at the true parameters. Systems of
`dynamics_uncertainty` (one cycle, one chaotic system, four random ones of each kind), T=1000,
300 data sets each: mean score s of an extended Kalman filter, linearised and with matched
moments, in units of its own covariance S: q = N s'S^-1 s, which is chi-square with as many degrees
of freedom d as S has directions (of curvature above one) if the mean is zero. sqrt((q - d) / N)
says how many standard deviations of an estimate from one data set its bias is, by one Newton step,
all directions taken together; beside it the log-likelihood per step at the truth.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi2

import plssm as ps
from benchmarks.dynamics_uncertainty import RANDOM, SYSTEMS, truth_of
from plssm.inference.base import working_copy
from plssm.inference.filter_form import filter_form
from plssm.inference.innovations import innovations
from plssm.inference.state_smoother import joined_states

COMMAND = "python -m benchmarks filter_bias --out benchmarks/results"
PROPAGATIONS = ("linearised", "moments")


def scores(truth: ps.StateSpaceModel, propagation: str, sets: int, steps: int) -> tuple:
    """Gradients at the truth [N, P] and log-likelihoods [N], data set by data set."""
    model = working_copy(truth)
    free = [p for p in model.parameters() if p.requires_grad and p.numel()]
    found, values = [], []
    for seed in range(sets):
        batch = truth.simulate(steps, seed=10_000 + seed).batch()
        states = joined_states(model, batch.dt)
        form = filter_form(model, batch, states, propagation=propagation)
        value = innovations(model, batch, states, form).increment.sum()
        slope = torch.autograd.grad(value, free, materialize_grads=True)
        found.append(torch.cat([x.flatten() for x in slope]).numpy())
        values.append(value.item())
    return np.array(found), np.array(values)


def bias(found: np.ndarray) -> dict:
    """Mean score against zero, in its own standard deviations."""
    values, vectors = np.linalg.eigh(np.cov(found.T))
    told = values > 1.0
    along = vectors.T @ found.mean(0)
    square, degrees = len(found) * float((along[told] ** 2 / values[told]).sum()), int(told.sum())
    return {
        "chi_square": square, "degrees": degrees, "p": float(chi2.sf(square, degrees)),
        "bias_in_sd": math.sqrt(max(square - degrees, 0.0) / len(found)),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run all systems, print the table, write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--random", type=int, default=4)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    systems = [(kind, 0) for kind in SYSTEMS]
    systems += [(kind, seed) for kind in RANDOM for seed in range(given.random)]
    rows = []
    print("system     seed filter      chi-square  d   bias in sd  nats a step")
    for kind, seed in systems:
        truth = truth_of(kind, seed)
        for propagation in PROPAGATIONS:
            found, values = scores(truth, propagation, given.sets, given.steps)
            row = {"system": kind, "seed": seed, "propagation": propagation} | bias(found)
            rows.append(row | {"log_likelihood": float(values.mean()) / given.steps})
            shown = f"{kind:10s} {seed:4d} {propagation:11s} {row['chi_square']:10.1f} "
            shown += f"{row['degrees']:3d} {row['bias_in_sd']:10.2f} "
            print(shown + f"{rows[-1]['log_likelihood']:11.4f}", flush=True)
    if given.out is not None:
        made = {"command": COMMAND, "rows": rows}
        text = json.dumps(made, indent=1, default=float)
        (given.out / "filter_bias.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
