"""E-step of a linear model and of a PLRNN beside dynamax's jitted linear smoother.

One trial, M=10, N=20, float64. The linear E-step is posterior mean, lag-0 and lag-1 covariances
and evidence, which is what dynamax's smoother returns; both must agree. The PLRNN E-step is the
mode search from the mode before the last M-step, covariances, evidence, and the exact moments of
the rectified states. Both count from parameters and data to results; the row "kernels" is the
compiled solve and the covariances of the linear one alone. ``--check-first-use`` measures the
first E-step of a new process, with the compiled kernels on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.laplace import laplace_posterior
from plssm.inference.m_step import update_coefficients
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import linear_solve
from plssm.inference.statistics import exact_statistics

DIM, CHANNELS = 10, 20


def parameters(seed: int) -> dict[str, np.ndarray]:
    """A random stable system."""
    rng = np.random.default_rng(seed)
    coupling = 0.2 * rng.standard_normal((DIM, DIM)) / np.sqrt(DIM)
    np.fill_diagonal(coupling, 0.0)
    return {
        "decay": rng.uniform(0.3, 0.9, DIM),
        "coupling": coupling,
        "h": 0.3 * rng.standard_normal(DIM),
        "mean": rng.standard_normal(DIM),
        "B": rng.standard_normal((CHANNELS, DIM)),
        "bias": rng.standard_normal(CHANNELS),
        "noise": rng.uniform(0.3, 1.0, CHANNELS),
        "process": rng.uniform(0.05, 0.2, DIM),
    }


def build(p: dict[str, np.ndarray], kind: str) -> ps.StateSpaceModel:
    """The linear model or the PLRNN with these parameters."""
    shared = {
        "h": p["h"],
        "process_noise": p["process"],
        "initial_mean": p["mean"],
        "initial_noise": np.ones(DIM),
    }
    if kind == "linear":
        matrix = np.diag(p["decay"]) + p["coupling"]
        dynamics = ps.dynamics.LinearDynamics.from_parameters(A=matrix, **shared)
    else:
        dynamics = ps.dynamics.PLRNN.from_parameters(A=p["decay"], W=p["coupling"], **shared)
    observation = ps.observations.Gaussian.from_parameters(
        B=p["B"], bias=p["bias"], noise=p["noise"]
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def dynamax_smoother(p: dict[str, np.ndarray], y: np.ndarray):
    """The jitted peer as a function without arguments."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from dynamax.linear_gaussian_ssm import lgssm_smoother
    from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

    known = make_lgssm_params(
        initial_mean=p["mean"],
        initial_cov=np.eye(DIM),
        dynamics_weights=np.diag(p["decay"]) + p["coupling"],
        dynamics_bias=p["h"],
        dynamics_cov=np.diag(p["process"]),
        emissions_weights=p["B"],
        emissions_bias=p["bias"],
        emissions_cov=np.diag(p["noise"]),
    )
    known, y = jax.tree_util.tree_map(jax.numpy.asarray, (known, y))
    smoother = jax.jit(lgssm_smoother)
    return lambda: jax.block_until_ready(smoother(known, y))


def e_step(model: ps.StateSpaceModel, batch: ps.data.Batch, start: np.ndarray | None = None):
    """Everything an M-step needs; also the number of linear solves."""
    result = laplace_posterior(model, batch, start=start)
    posterior = result.posterior
    moments = posterior.arrays()
    if start is not None:
        moments = exact_statistics(model.dynamics, posterior, batch)
    return posterior, moments, result


def kernels(model: ps.StateSpaceModel, batch: ps.data.Batch):
    """The compiled part of the linear E-step alone, as a function without arguments."""
    prior = ChainPrior.of(model.dynamics, batch)
    terms = expand(model, batch, np.zeros((1, batch.steps, DIM)))
    none = np.zeros((1, batch.steps - 1, 0))
    return lambda: linear_solve(prior, terms, none)[1].covariances()


def agree(posterior: ps.posterior.GaussianChain, peer) -> float:
    """Largest difference to the peer's results, the evidence relative."""
    mean = posterior.mean[0].numpy()
    cross = posterior.cross_covariance()[0].numpy() + mean[:-1, :, None] * mean[1:, None, :]
    evidence = float(posterior.log_evidence[0])
    return float(
        max(
            np.abs(mean - peer.smoothed_means).max(),
            np.abs(posterior.covariance()[0].numpy() - peer.smoothed_covariances).max(),
            np.abs(cross - peer.smoothed_cross_covariances).max(),
            abs(evidence / float(peer.marginal_loglik) - 1),
        )
    )


def alternate(functions: dict, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each function, called in turn."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - began))
    return times


def measure(steps: int, repeats: int) -> list[dict]:
    """One row per model for trials of this length."""
    p = parameters(0)
    linear, plrnn = build(p, "linear"), build(p, "plrnn")
    data, curved = linear.simulate(steps, seed=1), plrnn.simulate(steps, seed=2)
    batch, curved_batch = data.batch(), curved.batch()
    before = laplace_posterior(plrnn, curved_batch)
    statistics = exact_statistics(plrnn.dynamics, before.posterior, curved_batch)
    update_coefficients(plrnn.dynamics, statistics, before.posterior, curved_batch)
    functions = {
        "kernels": kernels(linear, batch),
        "linear": lambda: e_step(linear, batch),
        "plrnn": lambda: e_step(plrnn, curved_batch, before.path),
    }
    difference = None
    try:
        functions["dynamax"] = dynamax_smoother(p, data.values("x")[0])
        difference = agree(e_step(linear, batch)[0], functions["dynamax"]())
        if difference > 1e-6:  # dynamax adds 1e-9 to the diagonal of what it inverts
            raise RuntimeError(f"the smoothers differ by {difference:.1e}")
    except ImportError:
        print("dynamax is not installed: pip install -e '.[bench]'")
    times = alternate(functions, repeats)
    search = e_step(plrnn, curved_batch, before.path)[2]
    rows = []
    for name in ("kernels", "linear", "plrnn"):
        row = {
            "model": name,
            "steps": steps,
            "ms": float(np.median(times[name])),
            "spread": [float(x) for x in np.quantile(times[name], [0.25, 0.75])],
        }
        if "dynamax" in times:
            row["peer_ms"] = float(np.median(times["dynamax"]))
            row["ratio"] = row["peer_ms"] / row["ms"]
        if name == "linear":
            row["difference"] = difference
        elif name == "plrnn":
            row |= {"solves": search.solves, "status": search.status[0], "pinned": search.pinned}
        rows.append(row)
    return rows


FIRST_USE = """
import time; began = time.perf_counter()
from benchmarks import smoother_vs_dynamax as b
model = b.build(b.parameters(0), {kind!r})
batch = model.simulate(100, seed=1).batch()
loaded = time.perf_counter()
b.e_step(model, batch, {start})
print(loaded - began, time.perf_counter() - loaded)
"""


def first_use(kind: str) -> tuple[float, float]:
    """Seconds to import and build, and of the first E-step, in a second process."""
    start = "None" if kind == "linear" else "b.np.zeros((1, 100, b.DIM))"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE.format(kind=kind, start=start)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
    loading, using = map(float, done.stdout.split())
    return loading, using


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--check-first-use", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    record = {"threads": options.threads, "repeats": options.repeats, "rows": []}
    print(f"threads {options.threads}, median of {options.repeats}, one trial, compiled before")
    for steps in options.steps:
        for row in measure(steps, options.repeats):
            record["rows"].append(row)
            peer = (
                f"dynamax {row['peer_ms']:8.1f} ms  ratio {row['ratio']:5.1f}"
                if ("ratio" in row)
                else ""
            )
            extra = {k: row[k] for k in ("difference", "solves", "status", "pinned") if k in row}
            print(
                f"{row['model']:<7} T={steps:<6} {row['ms']:8.2f} ms "
                f"({row['spread'][0]:.2f}-{row['spread'][1]:.2f})  {peer}  {extra}"
            )
    if options.check_first_use:
        for kind in ("linear", "plrnn"):
            loading, using = first_use(kind)
            record[f"first_use_{kind}"] = [loading, using]
            print(
                f"second process, {kind}: import and simulate {loading:.2f} s, "
                f"first E-step {using:.2f} s"
            )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / "smoother_vs_dynamax.json"
        target.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
