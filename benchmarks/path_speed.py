"""Gaussian paths (samples, densities, a step of SVI) beside eager torch loops over time.

Everything includes its backward pass, in float64. `sample`: rsample, entropy and the density of
that sample. `density`: log_prob of an arbitrary path. Both have gradients in shift, diagonal and
coupling blocks (`density` also in the path), beside a plain loop over time (over `unbind`, never
slices). `svi`: one step of Pyro's SVI of a linear model, with one site for the whole path beside
one site per time step; the guide is a Gaussian chain with full covariance on both sides, the
model's noise is diagonal, its observations are one site. `length`: time of `sample` for longer and
longer paths. Both sides are timed alternately on one thread, ours as the median of seven calls, by
processor time, so that other programs count less; `two_threads` is our gain from a second thread
by the clock on the wall, which needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from plssm.inference.path_distribution import GaussianPath

COMMAND = "python -m benchmarks path_speed --out benchmarks/results"
BATCH, STEPS, LOG_2PI = 32, 300, math.log(2 * math.pi)


def problem(batch: int, steps: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, diagonal blocks and couplings of well-conditioned chains, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    lower = 0.5 * randn(batch, steps, m, m) / math.sqrt(m)
    lower = lower + 1.5 * torch.eye(m, dtype=torch.float64)
    couple = randn(batch, steps - 1, m, m) / math.sqrt(m)
    diag = lower @ lower.mT
    diag[:, 1:] += couple @ couple.mT
    parts = (randn(batch, steps, m), diag, lower[:, :-1] @ couple.mT)
    return tuple(x.requires_grad_() for x in parts)


# the eager side ---------------------------------------------------------------------------------
def eager_factor(shift: Tensor, diag: Tensor, off: Tensor) -> tuple[list[Tensor], ...]:
    """Blocks L_t and C_t of the factor, and y = L^-1 r, by a loop over time."""
    lowers, couplings, ys = [], [], []
    offs = [*off.unbind(1), None]
    for block, coupling, right in zip(diag.unbind(1), offs, shift.unbind(1), strict=True):
        right = right[..., None]
        if couplings:
            block = block - couplings[-1].mT @ couplings[-1]
            right = right - couplings[-1].mT @ ys[-1]
        lowers.append(torch.linalg.cholesky(block))
        ys.append(torch.linalg.solve_triangular(lowers[-1], right, upper=False))
        if coupling is not None:
            couplings.append(torch.linalg.solve_triangular(lowers[-1], coupling, upper=False))
    return lowers, couplings, ys


def log_determinants(lowers: list[Tensor]) -> Tensor:
    """Log-determinant of every trial's precision."""
    stacked = torch.stack(lowers, dim=1)
    return 2.0 * stacked.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))


def eager_sample(parts: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A sample, its log-density and the entropy."""
    lowers, couplings, ys = eager_factor(*parts)
    path, z = [], None
    for t, xi in reversed(list(enumerate(noise.unbind(1)))):
        right = ys[t] + xi[..., None]
        if z is not None:
            right = right - couplings[t] @ z
        z = torch.linalg.solve_triangular(lowers[t].mT, right, upper=True)
        path.append(z[..., 0])
    half = 0.5 * log_determinants(lowers)
    constant = 0.5 * noise[0].numel()
    density = half - 0.5 * noise.square().sum((1, 2)) - constant * LOG_2PI
    return torch.stack(path[::-1], dim=1), density, constant * (1 + LOG_2PI) - half


def eager_density(parts: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """Log-density of an arbitrary path: only the factorisation is a loop."""
    lowers, couplings, ys = eager_factor(*parts)
    lower, coupling = torch.stack(lowers, dim=1), torch.stack(couplings, dim=1)
    whitened = (lower.mT @ value[..., None])[..., 0] - torch.stack(ys, dim=1)[..., 0]
    pulled = (coupling @ value[:, 1:, :, None])[..., 0]
    first, last = whitened[:, :-1] + pulled, whitened[:, -1]
    form = first.square().sum((1, 2)) + last.square().sum(1)
    return 0.5 * (log_determinants(lowers) - form - value[0].numel() * LOG_2PI)


# the steps that are timed -----------------------------------------------------------------------
def sample_steps(batch: int, steps: int, m: int) -> tuple[Callable, Callable]:
    """Ours and theirs: (values, gradients) of a function of a sample, its density, the entropy."""
    parts = problem(batch, steps, m)
    weight = torch.randn(batch, steps, m, dtype=torch.float64)

    def finished(z: Tensor, density: Tensor, entropy: Tensor) -> list[Tensor]:
        total = (z * weight).sum() + density.sum() + entropy.sum()
        return [z.detach(), density.detach(), *torch.autograd.grad(total, parts)]

    def ours() -> list[Tensor]:
        path = GaussianPath(*parts, generator=torch.Generator().manual_seed(1))
        z = path.rsample()
        return finished(z, path.log_prob(z), path.entropy())

    def theirs() -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(1, batch, steps, m, dtype=torch.float64, generator=generator)[0]
        return finished(*eager_sample(parts, noise))

    return ours, theirs


def density_steps(batch: int, steps: int, m: int) -> tuple[Callable, Callable]:
    """Ours and theirs: the density of an arbitrary path and its gradients."""
    parts = problem(batch, steps, m)
    value = torch.randn(batch, steps, m, dtype=torch.float64).requires_grad_()

    def finished(density: Tensor) -> list[Tensor]:
        return [density.detach(), *torch.autograd.grad(density.sum(), (*parts, value))]

    return (
        lambda: finished(GaussianPath(*parts).log_prob(value)),
        lambda: finished(eager_density(parts, value)),
    )


class LinearPrior(dist.TorchDistribution):
    """Path of a linear chain with diagonal noise, all steps at once; only scored here."""

    support = torch.distributions.constraints.independent(torch.distributions.constraints.real, 2)
    arg_constraints: dict = {}

    def __init__(self, matrix: Tensor, scale: Tensor, batch: int, steps: int) -> None:
        self.matrix, self.scale = matrix, scale
        super().__init__((batch,), (steps, len(matrix)), validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of paths [B, T, M]."""
        expected = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1] @ self.matrix.mT], dim=1)
        forms = ((z - expected) / self.scale).square().sum((1, 2))
        constant = z.shape[1] * (self.scale.log().sum() + 0.5 * z.shape[2] * LOG_2PI)
        return -0.5 * forms - constant


def svi_steps(steps: int, m: int = 10) -> tuple[Callable, Callable]:
    """Ours and theirs: one step of SVI of a linear model of as many channels as states."""
    data = torch.randn(BATCH, steps, m, dtype=torch.float64)
    eye = torch.eye(m, dtype=torch.float64)

    def chain() -> tuple[Tensor, Tensor]:
        return pyro.param("matrix", 0.9 * eye), pyro.param("log_scale", eye[0] * 0.0).exp()

    def observe(z: Tensor) -> None:
        scale = pyro.param("log_noise", eye[0] * 0.0).exp()
        pyro.sample("y", dist.Normal(z, scale).to_event(2), obs=data)

    def whole_model() -> None:
        with pyro.plate("trials", BATCH):
            observe(pyro.sample("z", LinearPrior(*chain(), BATCH, steps)))

    def whole_guide() -> None:
        gain = pyro.param("gain", eye.clone())
        couple = pyro.param("couple", 0.3 * eye)
        root = pyro.param("root", 2.0 * eye)
        diag, off = root @ root.mT, -couple
        with pyro.plate("trials", BATCH):
            pyro.sample("z", GaussianPath(data @ gain.mT, diag[None, None], off[None, None]))

    def many_model() -> None:
        matrix, scale = chain()
        with pyro.plate("trials", BATCH):
            path, z = [], data.new_zeros(BATCH, m)
            for t in range(steps):
                z = pyro.sample(f"z{t}", dist.Normal(z @ matrix.mT, scale).to_event(1))
                path.append(z)
            observe(torch.stack(path, dim=1))

    def many_guide() -> None:
        gain, keep = pyro.param("gain", eye.clone()), pyro.param("keep", 0.3 * eye)
        width = pyro.param("width", eye.clone()).tril()
        centre, z = (data @ gain.mT).unbind(1), data.new_zeros(BATCH, m)
        with pyro.plate("trials", BATCH):
            for t in range(steps):
                here = dist.MultivariateNormal(centre[t] + z @ keep.mT, scale_tril=width)
                z = pyro.sample(f"z{t}", here)

    made = []
    for model, guide in ((whole_model, whole_guide), (many_model, many_guide)):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), Trace_ELBO())
        made.append(svi.step)
    return tuple(made)


# timing -----------------------------------------------------------------------------------------
def milliseconds(
    step: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> float:
    """Time of one call."""
    began = clock()
    step()
    return 1e3 * (clock() - began)


def many(
    step: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Median time of several calls."""
    return statistics.median(milliseconds(step, clock) for _ in range(repeats))


def measure(setting: str, pair: tuple[Callable, Callable], rounds: int, wanted: float) -> dict:
    """Alternate rounds of both sides on one thread, then ours on two."""
    ours, theirs = pair
    first, second = ours(), theirs()
    if isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    pairs = [(many(ours, 7), milliseconds(theirs)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    alone = many(ours, 15, time.perf_counter)
    torch.set_num_threads(2)
    ours()
    double = many(ours, 15, time.perf_counter)
    torch.set_num_threads(1)
    return {
        "setting": setting,
        "ours_ms": statistics.median(a for a, _ in pairs),
        "eager_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1],
        "wanted": wanted, "two_threads": alone / double,
    }  # fmt: skip


def shown(row: dict) -> str:
    """A row as a line."""
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items())


def main(argv: list[str] | None = None) -> int:
    """Measure all settings, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []

    def add(row: dict) -> None:
        rows.append(row)
        print(shown(row), flush=True)

    for m in (3, 10, 20):
        size = f"M={m} T={STEPS} B={BATCH}"
        add(measure(f"sample {size}", sample_steps(BATCH, STEPS, m), given.rounds, 12.0))
        add(measure(f"density {size}", density_steps(BATCH, STEPS, m), given.rounds, 10.0))
    for steps in (100, 300):
        pyro.clear_param_store()
        name = f"svi M=10 T={steps} B={BATCH}"
        add(measure(name, svi_steps(steps), given.rounds, 10.0))
    for steps in (100, 300, 1000, 3000):
        ours = sample_steps(8, steps, 10)[0]
        gc.collect()
        many(ours, 5)
        taken = many(ours, 2 * given.rounds + 5)
        add({"setting": f"length M=10 T={steps} B=8", "ours_ms": taken,
             "microseconds_per_step": 1e3 * taken / (8 * steps)})  # fmt: skip
    if given.out is not None:
        made = {"command": COMMAND, "rows": rows}
        (given.out / "path_speed.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
