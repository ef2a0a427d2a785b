"""EM on noisy Lorenz-63 (T=1000, dt .02, noise sd .1, M=15): free runs beside an LDS.

Ten starts of PLRNN and LDS each on the same series; the start is chosen by training evidence,
never by the test orbit, and the median of all starts is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63

DT, STEPS, NOISE, DIM, RUN, TRANSIENT = 0.02, 1000, 0.1, 15, 100_000, 1000
QUARTILES = (0.25, 0.5, 0.75)
COMMAND = "python -m benchmarks lorenz_em --out benchmarks/results"


def series(seed: int) -> tuple[ps.Dataset, np.ndarray]:
    """Noisy z-scored training series and the noise-free test orbit of 1e5 steps."""
    orbit = lorenz63(RUN, dt=DT, seed=seed + 1000)[0]
    mean, sd = orbit.mean(0), orbit.std(0)
    x = (lorenz63(STEPS, dt=DT, seed=seed)[0] - mean) / sd
    x = x + NOISE * np.random.default_rng(seed).standard_normal(x.shape)
    return ps.Dataset.from_arrays({"x": x}, dt=DT), (orbit - mean) / sd


def free_run(fit: ps.Fit, data: ps.Dataset, *, noise: bool) -> np.ndarray:
    """Expected observations of a free run from the last filtered state."""
    start = fit.posterior(data).mean[0, -1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = fit.model.dynamics.rollout(start, RUN + TRANSIENT, noise=noise, generator=generator)[
            TRANSIENT:
        ]
        return fit.model.observations["x"].features(z).numpy()


def figures(fit: ps.Fit, data: ps.Dataset, truth: np.ndarray) -> dict:
    """Measures of one fit."""
    row = {"evidence": float(fit.posterior(data).log_evidence.sum()), "seconds": fit.seconds}
    for name, noise in (("", False), ("_with_noise", True)):
        run = free_run(fit, data, noise=noise)
        row["d_stsp" + name] = float(
            ps.metrics.state_space_divergence(truth=truth, pred=run, floor=False)
        )
        finite = np.isfinite(run).all()
        row["d_h" + name] = (
            float(ps.metrics.power_spectrum_distance(truth=truth, pred=run)) if finite else np.inf
        )
    try:
        row["lyapunov_max"] = float(
            ps.analysis.lyapunov_spectrum(
                fit.model.dynamics,
                steps=50_000,
                dt=DT,
                start=fit.posterior(data).mean[0, -1].numpy(),
            )[0]
        )
    except ps.errors.PlssmError:
        row["lyapunov_max"] = np.inf
    variance = fit.model.dynamics.noise.variance.detach()
    row["process_noise"] = float(variance.mean())
    row["observation_noise"] = float(fit.model.observations["x"].noise.detach().mean())
    return row


def run_starts(kind: str, data: ps.Dataset, truth: np.ndarray, given: argparse.Namespace) -> list:
    """All starts of one kind of dynamics, each a fit of its own."""
    rows = []
    for start in range(given.starts):
        dynamics = {"plrnn": ps.dynamics.PLRNN, "lds": ps.dynamics.LinearDynamics}[kind](DIM)
        model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(3)})
        engine = ps.inference.LaplaceEM(
            seed=start, iterations=given.iterations, moments=given.moments
        )
        fit = engine.fit(model, data, progress=False)
        rows.append({"kind": kind, "start": start, **figures(fit, data, truth)})
        print(
            "  ".join(f"{k} {v:.4g}" if k != "kind" else v for k, v in rows[-1].items()),
            flush=True,
        )
    return rows


def summarise(rows: list) -> dict:
    """The start with the best training evidence, and medians with quartiles of all."""
    best = max(rows, key=lambda r: r["evidence"])
    names = [k for k in rows[0] if k not in ("kind", "start")]
    spread = {
        k: [
            float(np.quantile([r[k] for r in rows], q, method="nearest"))
            for q in (0.25, 0.5, 0.75)
        ]
        for k in names
    }
    return {"chosen_by_evidence": best, "quartiles": spread}


def main(argv: list[str] | None = None) -> int:
    """Fit all starts, print the table, write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--moments", choices=("regional", "exact"), default="regional")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(2)
    began = time.perf_counter()
    data, truth = series(given.seed)
    other = lorenz63(RUN, dt=DT, seed=given.seed + 2000)[0]
    raw = lorenz63(RUN, dt=DT, seed=given.seed + 1000)[0]
    other = (other - raw.mean(0)) / raw.std(0)
    floor = {
        "d_stsp": float(ps.metrics.state_space_divergence(truth=truth, pred=other, floor=False)),
        "d_h": float(ps.metrics.power_spectrum_distance(truth=truth, pred=other)),
        "lyapunov_max": 0.9056,
    }
    print("floor (an independent true orbit):", floor)
    rows = run_starts("lds", data, truth, given) + run_starts("plrnn", data, truth, given)
    summary = {k: summarise([r for r in rows if r["kind"] == k]) for k in ("lds", "plrnn")}
    for kind, table in summary.items():
        print(kind, "chosen by evidence:", table["chosen_by_evidence"])
        print(kind, "quartiles:", table["quartiles"])
    if given.out is not None:
        made = {
            "command": COMMAND,
            "settings": {k: v for k, v in vars(given).items() if k != "out"},
            "floor": floor,
            "summary": summary,
            "rows": rows,
            "seconds": time.perf_counter() - began,
        }
        name = "lorenz_em" + ("" if given.moments == "regional" else f"_{given.moments}")
        text = json.dumps(made, indent=2, default=float)
        (given.out / f"{name}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
