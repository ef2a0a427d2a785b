"""Consistency gap of stochastic Lorenz-96: the same maps trained by four objectives.

::

    python -m benchmarks lorenz96_gap --dim 10 --seeds 3 --out benchmarks/results

Data: dx_i = [(x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8] dt + 0.5 dW, integrated at 0.005, sampled at
0.05, T = 20,000 for training and for testing, observation noise of 5 % of the standard deviation.
Maps: ShallowPLRNN with one state per site, identity read-out. Objectives: GTF (noise fitted
afterwards), open-loop likelihood over 100 steps (errors saturate after about 55), one-step
likelihood, innovations from scratch, and innovations on from the GTF fit. Learning rates of the
others are chosen from a grid by each objective's own value on the last fifth of the training
data (GTF has its defaults). "From scratch" begins for all of them with hidden units drawn at
random and a regression on the observed states. "From GTF" go on from the GTF fit with 1,500
updates more: they compare with it and with each other, not with those from scratch. An update
has windows of 2000 scored steps, in one-step training 200 with ten steps before each. Seconds are
summed over the grid.
Exponents of model and system are taken along their noisy paths (the system's by tangent
dynamics at the inner step); beside the scores stand the measures' floors. Rows that are in the
file already are kept unless they are run again: ``--seeds`` and ``--only`` run a part, and
``--only`` knows open-loop and one-step training on from GTF, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import plssm as ps
from plssm.data.synthetic import lorenz96
from plssm.inference import EKF, GTF, Innovation, OpenLoop, TeacherForcing
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.filter_form import filter_form
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.innovations import innovations
from plssm.metrics import (
    consistency,
    ensemble_crps,
    gaussian_crps,
    power_spectrum_distance,
    state_space_divergence,
)

STEPS, DT, INNER, DIFFUSION, NOISE, FORCING = 20_000, 0.05, 10, 0.5, 0.05, 8.0
HORIZONS = (1, 2, 5, 10, 20, 50, 100)
WARMUP, ORIGINS, MEMBERS = 50, 100, 100
RATES = ((1e-2, 1e-4), (3e-3, 1e-4))
JOBS = {
    "open loop, 100 steps": (OpenLoop(horizon=100), "scratch"),
    "one step": (OpenLoop(horizon=1), "scratch"),
    "innovations": (Innovation(), "scratch"),
    "innovations from GTF": (Innovation(), "GTF"),
    "open loop from GTF": (OpenLoop(horizon=100), "GTF"),
    "one step from GTF": (OpenLoop(horizon=1), "GTF"),
}
USUAL = ["GTF", "open loop, 100 steps", "one step", "innovations", "innovations from GTF"]


class System:
    """Standardised recordings of one seed with their tangent products.

    Args:
        dim: Sites N.
        seed: Seed of system and noise.
    """

    def __init__(self, dim: int, seed: int) -> None:
        fine = lorenz96(
            2 * STEPS * INNER, DT / INNER, dim=dim, forcing=FORCING, seed=seed,
            process_noise=DIFFUSION, max_step=DT / INNER,
        )[0]  # fmt: skip
        path = fine[::INNER]
        self.mean, self.sd = path.mean(), path.std()
        self.states = (path - self.mean) / self.sd
        self.tangents = tangents(fine)[:-1]
        rng = np.random.default_rng(1000 + seed)
        self.observed = self.states + NOISE * rng.standard_normal(self.states.shape)

    def dataset(self, first: int, last: int) -> ps.Dataset:
        """Some of the steps."""
        return ps.Dataset.from_arrays({"x": self.observed[first:last]}, DT)


def tangents(fine: np.ndarray) -> np.ndarray:
    """Jacobians of the flow over one sample [T, N, N], along the noisy path at the inner step."""
    count, n = fine.shape
    h, sites = DT / INNER, np.arange(n)
    before, after, far = (sites - 1) % n, (sites + 1) % n, (sites - 2) % n
    total = np.tile(np.eye(n), (count // INNER, 1, 1))
    for k in range(INNER):
        x = fine[k::INNER]
        a = np.zeros((len(x), n, n))
        a[:, sites, sites] = -1.0
        a[:, sites, before] = x[:, after] - x[:, far]
        a[:, sites, after] += x[:, before]
        a[:, sites, far] -= x[:, before]
        total = total + h * a @ (total + 0.5 * h * a @ total)
    return total


def spectrum(jacobians: np.ndarray) -> np.ndarray:
    """Lyapunov exponents along a path, per unit of time, descending."""
    q, total = np.eye(jacobians.shape[1]), np.zeros(jacobians.shape[1])
    for j in jacobians:
        q, r = np.linalg.qr(j @ q)
        total += np.log(np.abs(np.diagonal(r)))
    return np.sort(total / (len(jacobians) * DT))[::-1]


@torch.no_grad()
def predictions(fit: ps.Fit, data: ps.Dataset) -> dict[str, np.ndarray]:
    """Open-loop predictions from filtered origins: mean, variance and log-density by horizon."""
    model, batch = fit.model, data.batch()
    states = FilteredStates(model, batch)
    states.refresh(model)
    windows = BatchWindows(batch, steps=max(HORIZONS), context=WARMUP, after=0)
    start = torch.linspace(WARMUP, batch.steps - max(HORIZONS), ORIGINS).long()
    window = windows.cut(torch.zeros(ORIGINS, dtype=torch.int64), start)
    form = filter_form(model, window.batch, states.joined).started(*states.first(window))
    updates = torch.arange(window.batch.steps) < WARMUP
    found = innovations(model, window.batch, states.joined, form, updates=updates)
    at = WARMUP - 1 + torch.tensor(HORIZONS)
    covariance = found.run.predicted_covariance[:, at]
    noise = model.observations["x"].noise
    drawn = ensemble(model, found.run.filtered_mean[:, WARMUP - 1],
                     found.run.filtered_covariance[:, WARMUP - 1])  # fmt: skip
    return {
        "drawn": drawn.numpy(),
        "origin": found.run.filtered_mean[:, WARMUP - 1].numpy(),
        "covariance": found.run.filtered_covariance[:, WARMUP - 1].numpy(),
        "places": start.numpy() - 1,
        "mean": found.run.predicted_mean[:, at].numpy(),
        "variance": (covariance.diagonal(dim1=-2, dim2=-1) + noise).numpy(),
        "nats": found.increment[:, at].numpy(),
        "truth": window.batch.modalities["x"].y[:, at].numpy(),
    }


def ensemble(model: ps.StateSpaceModel, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Noisy free runs from filtered origins [MEMBERS, origins, horizons, N], with observations."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(MEMBERS, *mean.shape, generator=generator, dtype=torch.float64)

    root = torch.linalg.cholesky(spread + 1e-12 * torch.eye(mean.shape[1]))
    z, out = mean + (root @ noise()[..., None])[..., 0], []
    for _ in range(max(HORIZONS)):
        z = model.dynamics.step(z) + noise() * model.dynamics.noise.variance.sqrt()
        out.append(z + noise() * model.observations["x"].noise.sqrt())
    return torch.stack([out[k - 1] for k in HORIZONS], dim=2)


def measured(fit: ps.Fit, system: System, test: ps.Dataset, reference: np.ndarray) -> dict:
    """All numbers of one fit."""
    model, n = fit.model, system.states.shape[1]
    noisy = np.asarray(model.simulate(STEPS, seed=1).latent[0])
    finite = bool(np.isfinite(noisy).all() and np.abs(noisy).max() < 1e3)
    row = {"finite": finite, "seconds": fit.seconds}
    truth = system.states[STEPS:]
    if finite:
        jacobians = model.dynamics.jacobian(torch.from_numpy(noisy)).detach().numpy()
        own = spectrum(jacobians[STEPS // 10 :])
        row |= {
            "exponents": own.tolist(), "lyapunov_max": own[0],
            "spectrum_rmse": float(np.sqrt(((own - reference) ** 2).mean())),
        }  # fmt: skip
        half = noisy[: STEPS // 2]  # so that two blocks of the truth are as long, for floors
        d = state_space_divergence(truth=truth, pred=half)
        h = power_spectrum_distance(truth=truth, pred=half)
        row |= {"d_stsp": float(d), "d_stsp_floor": d.floor, "d_h": float(h), "d_h_floor": h.floor}
    found = predictions(fit, test)
    for i, k in enumerate(HORIZONS):
        y, mean, sd = found["truth"][:, i], found["mean"][:, i], np.sqrt(found["variance"][:, i])
        row[f"nll_{k}"] = float(-found["nats"][:, i].mean() / n)
        row[f"crps_{k}"] = float(gaussian_crps(truth=y, mean=mean, sd=sd))
        row[f"ensemble_crps_{k}"] = float(ensemble_crps(truth=y, samples=found["drawn"][:, :, i]))
        row[f"error_{k}"] = float(np.mean((y - mean) ** 2))
        row[f"spread_skill_{k}"] = float(np.sqrt((sd**2).mean() / np.mean((y - mean) ** 2)))
    row["process_noise"] = float(model.dynamics.noise.variance.detach().mean())
    row["observation_noise"] = float(model.observations["x"].noise.detach().mean())
    score = fit.score(test, steps=(1,), warmup=WARMUP, samples=20)
    row["coverage_95"] = float(score.loc["x", "coverage_95"])
    row["own_evidence_per_step"] = float(fit.posterior(test).log_evidence.sum()) / STEPS
    if not finite:
        return row
    true = true_tangents(system, STEPS + found["places"])
    report = consistency(
        model.dynamics, found["origin"], covariance=found["covariance"],
        noise=model.dynamics.noise.covariance.detach().numpy(), horizons=HORIZONS[:6],
        reference=true, reference_spectrum=reference, dt=DT,
        spectrum=np.asarray(row["exponents"]),
    )  # fmt: skip
    table = report.table()
    for mode, name in table.index:
        for k in table.columns:
            value = table.loc[(mode, name), k]
            if np.isfinite(value):
                row[f"{name}, {k}"] = float(value)
    return row


def true_tangents(system: System, places: np.ndarray) -> np.ndarray:
    """The system's Jacobians from given steps on [S, K, N, N]."""
    steps = places[:, None] + np.arange(max(HORIZONS[:6]))
    return system.tangents[steps]


def fits(system: System, seed: int, given: argparse.Namespace) -> Iterator[tuple[str, ps.Fit]]:
    """One fit by each objective, the best of the grid where there is one."""
    cut, n = STEPS - STEPS // 5, given.dim
    train, check = system.dataset(0, cut), system.dataset(cut, STEPS)
    fresh = ps.StateSpaceModel(
        ps.dynamics.ShallowPLRNN(n, given.hidden),
        {"x": ps.observations.Gaussian(n, readout="identity")},
    )
    starts = {"scratch": fresh}
    if "GTF" in given.only or any(JOBS[name][1] == "GTF" for name in given.only):
        gtf = TeacherForcing(
            scheme=GTF(0.3, final_alpha=0.05), steps=30 * given.updates, seed=seed
        )
        fit = gtf.fit(fresh, train, validation=check, progress=False)
        starts["GTF"] = fit.model
        if "GTF" in given.only:
            yield "GTF", fit
    for name in (n for n in given.only if n in JOBS):
        objective, start = JOBS[name]
        single = isinstance(objective, OpenLoop) and objective.horizon == 1
        found = []
        for rate in RATES:
            engine = EKF(
                objective=objective, steps=given.updates, learning_rate=rate, seed=seed,
                select="likelihood",
                warmup=10 if single else 20, checks=10, batch_size=200 if single else None,
            )  # fmt: skip
            fit = engine.fit(starts[start], train, validation=check, progress=False)
            found.append((fit.history["score"].min(), fit))
        best = min(found, key=lambda pair: pair[0])[1]
        best.seconds = sum(fit.seconds for _, fit in found)
        yield name, best


def summary(rows: list[dict]) -> dict[str, dict]:
    """Medians and ranges by objective."""
    out: dict[str, dict] = {}
    for name in dict.fromkeys(r["objective"] for r in rows):
        mine = [r for r in rows if r["objective"] == name]
        keys = [k for k, v in mine[0].items() if isinstance(v, (int, float))]
        out[name] = {}
        for k in keys:
            values = [r[k] for r in mine if k in r]
            out[name][k] = [float(np.median(values)), float(min(values)), float(max(values))]
    return out


def flat(rows: list[dict]) -> pd.DataFrame:
    """All rows as a table, exponents in columns of their own."""
    out = []
    for row in rows:
        one = {k: v for k, v in row.items() if not isinstance(v, list)}
        for name, key in (("exponent", "exponents"), ("reference", "reference_exponents")):
            one |= {f"{name}_{i}": x for i, x in enumerate(row.get(key, []), start=1)}
        out.append(one)
    return pd.DataFrame(out)


def written(path: Path, rows: list[dict], given: argparse.Namespace) -> None:
    """The file with these rows in the place of older ones of the same seed and objective."""
    order = ["GTF", *JOBS]
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    made = {(r["seed"], r["objective"]): r for r in old + rows}
    rows = sorted(made.values(), key=lambda r: (r["seed"], order.index(r["objective"])))
    found = {
        "command": f"python -m benchmarks lorenz96_gap --dim {given.dim} --hidden "
        f"{given.hidden} --seeds {1 + max(r['seed'] for r in rows)} --updates "
        f"{given.updates} --out benchmarks/results",
        "machine": platform.machine(), "torch": torch.__version__, "threads": 1,
        "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1) + "\n")
    flat(rows).to_csv(path.with_suffix(".csv"), index=False, float_format="%.5g")


def main(argv: list[str] | None = None) -> int:
    """Run all seeds and write lorenz96_gap_N.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--only", nargs="+", choices=["GTF", *JOBS], default=USUAL)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    for seed in range(given.first, given.first + given.seeds):
        began = time.perf_counter()
        system = System(given.dim, seed)
        reference = spectrum(system.tangents[STEPS // 10 : STEPS])
        test = system.dataset(STEPS, 2 * STEPS)
        for name, fit in fits(system, seed, given):
            row = {"seed": seed, "objective": name} | measured(fit, system, test, reference)
            row["reference_exponents"] = reference.tolist()
            if given.out is not None:
                written(given.out / f"lorenz96_gap_{given.dim}.json", [row], given)
            shown = ("lyapunov_max", "spectrum_rmse", "d_stsp", "d_h", "nll_1", "nll_20",
                     "crps_20", "coverage_95", "seconds")  # fmt: skip
            print(seed, name, {k: round(row[k], 4) for k in shown if k in row}, flush=True)
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s; true {reference[:3].round(3)}")
    return 0
