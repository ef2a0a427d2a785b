"""Gradient of the extended Kalman filter's log-likelihood beside jitted dynamax.

A PLRNN with Gaussian observations (M=10, N=20, T=100, 16 trials, float64): value and gradients in
all parameters (diagonal A, W, h, read-out, both noises). Ours counts from the parameters, with the
canonical terms q = B'R^-1(x-d) and R = B'R^-1B and their automatic differentiation in torch;
theirs is `jit(value_and_grad)` of the vmapped marginal log-likelihood of dynamax's extended Kalman
filter. Both sides must agree, and are timed alternately on one thread by processor time, so that
other programs count less; `ratio` is the median over the rounds.

Then ours alone: time and stored numbers for longer and longer trials, with entries missing (terms
of their own at every step), with information that moves with the mean (`third`) and with 200
hinges. ``--two-threads`` adds the gain from a second thread by the clock on the wall, which needs
an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from plssm.kernels.innovation_filter import FilterPass, Hinges, innovation_filter  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks ekf_speed --out benchmarks/results"
DIM, CHANNELS, STEPS, BATCH = 10, 20, 100, 16
NAMES = ("A", "W", "h", "B", "d", "log_r", "log_q")


class Problem:
    """Parameters and data of one setting."""

    def __init__(
        self, steps: int = STEPS, *, units: int = DIM, missing: float = 0.0, third: bool = False
    ) -> None:
        rng = np.random.default_rng(0)
        self.values = {
            "A": rng.uniform(0.3, 0.9, DIM),
            "W": 0.2 * rng.standard_normal((DIM, units)) / math.sqrt(units),
            "h": 0.3 * rng.standard_normal(DIM),
            "B": rng.standard_normal((CHANNELS, DIM)),
            "d": rng.standard_normal(CHANNELS),
            "log_r": np.log(rng.uniform(0.3, 1.0, CHANNELS)),
            "log_q": np.log(rng.uniform(0.05, 0.2, DIM)),
        }
        self.y = rng.standard_normal((BATCH, steps, CHANNELS)).cumsum(1) / math.sqrt(steps)
        self.inner = np.eye(DIM) if units == DIM else rng.standard_normal((units, DIM))
        self.seen = torch.from_numpy(1.0 * (rng.random(self.y.shape) >= missing))
        self.masked, self.third = missing > 0.0, None
        if third:
            x = 0.01 * rng.standard_normal((BATCH, steps, DIM, DIM, DIM))
            self.third = torch.from_numpy(x + x.swapaxes(2, 3))
        self.leaves = [torch.from_numpy(self.values[n]).requires_grad_() for n in NAMES]

    def filtered(self) -> tuple[FilterPass, torch.Tensor]:
        """What the filter returns, and the constant of the log-likelihood."""
        a, w, h, b, d, log_r, log_q = self.leaves
        weight, away = (-log_r).exp(), torch.from_numpy(self.y) - d
        scaled = weight[:, None] * b
        if self.masked:
            away = away * self.seen
            pairs = (scaled[:, :, None] * b[:, None, :]).reshape(CHANNELS, -1)
            information = (self.seen @ pairs).unflatten(-1, (DIM, DIM))
            count = self.seen.sum((0, 1))
        else:
            information, count = (scaled.mT @ b)[None, None], float(away[..., 0].numel())
        constant = (away * away).sum((0, 1)) @ weight
        constant = constant + (count * (log_r + math.log(2 * math.pi))).sum()
        score, inner = away @ scaled, torch.from_numpy(self.inner)
        first = torch.eye(DIM, dtype=torch.float64).expand(BATCH, DIM, DIM)
        found = innovation_filter(
            Hinges(a.diag(), h, w, inner, inner.new_zeros(len(inner))), log_q.exp().diag(),
            score.new_zeros(BATCH, DIM), first, score, information, torch.zeros_like(score),
            third=self.third,
        )  # fmt: skip
        return found, -0.5 * constant

    def ours(self) -> tuple[float, list[torch.Tensor]]:
        """Log-likelihood and gradients."""
        found, constant = self.filtered()
        value = found.increment.sum() + constant
        return value.item(), list(torch.autograd.grad(value, self.leaves))

    def stored(self) -> int:
        """Bytes that wait for the adjoint of the filter, results included."""
        run = self.filtered()[0].increment.grad_fn.run
        arrays = [run.kept, *run.out, *run.signals, *run.start, *run.maps, run.third]
        return sum(x.nbytes for x in arrays)

    def theirs(self) -> Callable:
        """The jitted peer as a function without arguments."""
        import jax

        jax.config.update("jax_enable_x64", True)
        from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM, extended_kalman_filter

        jnp = jax.numpy

        def one(p, y):
            known = ParamsNLGSSM(
                initial_mean=jnp.zeros(DIM),
                initial_covariance=jnp.eye(DIM),
                dynamics_function=lambda z: p["A"] * z + p["W"] @ jax.nn.relu(z) + p["h"],
                dynamics_covariance=jnp.diag(jnp.exp(p["log_q"])),
                emission_function=lambda z: p["B"] @ z + p["d"],
                emission_covariance=jnp.diag(jnp.exp(p["log_r"])),
            )
            return extended_kalman_filter(known, y).marginal_loglik

        def total(p, ys):
            return jax.vmap(lambda y: one(p, y))(ys).sum()

        function = jax.jit(jax.value_and_grad(total))
        p, ys = jax.tree_util.tree_map(jnp.asarray, (self.values, self.y))
        return lambda: jax.block_until_ready(function(p, ys))


def milliseconds(step: Callable, clock: Callable[[], float] = time.process_time) -> float:
    """Time of one call."""
    began = clock()
    step()
    return 1e3 * (clock() - began)


def many(step: Callable, repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Median time of several calls, after one that does not count."""
    step()
    return statistics.median(milliseconds(step, clock) for _ in range(repeats))


def difference(ours: tuple, theirs: tuple) -> float:
    """Largest relative difference of value and gradients."""
    pairs = [(np.asarray(ours[0]), np.asarray(theirs[0]))]
    pairs += [(x.numpy(), np.asarray(theirs[1][n])) for n, x in zip(NAMES, ours[1], strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def against_dynamax(rounds: int) -> dict:
    """Both sides in turn."""
    problem = Problem()
    peer = problem.theirs()
    apart = difference(problem.ours(), peer())
    if apart > 1e-6:
        raise RuntimeError(f"the gradients differ by {apart:.1e}")
    pairs = [(many(problem.ours, 7), milliseconds(peer)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "setting": f"dynamax M={DIM} N={CHANNELS} T={STEPS} B={BATCH}",
        "ours_ms": statistics.median(a for a, _ in pairs),
        "dynamax_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1],
        "wanted": 20.0, "difference": apart,
    }  # fmt: skip


def slow_down(name: str, rounds: int, **options: object) -> dict:
    """A setting beside the plain one, in turn."""
    plain, other = Problem(), Problem(**options)
    pairs = [(many(plain.ours, 5), many(other.ours, 5)) for _ in range(rounds)]
    return {
        "setting": name, "plain_ms": statistics.median(a for a, _ in pairs),
        "ours_ms": statistics.median(b for _, b in pairs),
        "times": statistics.median(b / a for a, b in pairs),
    }  # fmt: skip


def length(steps: int, rounds: int) -> dict:
    """Time and memory for trials of this length."""
    problem = Problem(steps)
    taken = many(problem.ours, 3 * rounds)
    return {
        "setting": f"length T={steps}", "ours_ms": taken,
        "microseconds_per_step": 1e3 * taken / (BATCH * steps),
        "stored_bytes_per_step": problem.stored() / (BATCH * steps),
    }  # fmt: skip


def two_threads(rounds: int) -> dict:
    """Gain of a second thread by the clock on the wall, in turn."""
    problem, pairs = Problem(), []
    for _ in range(rounds):
        torch.set_num_threads(1)
        one = many(problem.ours, 9, time.perf_counter)
        torch.set_num_threads(2)
        pairs.append((one, many(problem.ours, 9, time.perf_counter)))
    torch.set_num_threads(1)
    return {
        "setting": "two threads", "one_ms": statistics.median(a for a, _ in pairs),
        "two_ms": statistics.median(b for _, b in pairs),
        "gain": statistics.median(a / b for a, b in pairs),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure all settings, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--two-threads", action="store_true")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []

    def add(row: dict) -> None:
        rows.append(row)
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items())
        print("  ".join(shown), flush=True)

    try:
        add(against_dynamax(given.rounds))
    except ImportError:
        print("dynamax is not installed: pip install -e '.[bench]'")
    for steps in (50, 100, 200, 400, 800):
        add(length(steps, given.rounds))
    add(slow_down("30 % of entries missing", given.rounds, missing=0.3))
    add(slow_down("third", given.rounds, third=True))
    add(slow_down("200 hinges", given.rounds, units=200))
    if given.two_threads:
        add(two_threads(given.rounds))
    if given.out is not None:
        made = {"command": COMMAND, "load": os.getloadavg()[0], "rows": rows}
        (given.out / "ekf_speed.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
