"""A GTF reconstruction of Lorenz-63 made probabilistic: its dynamics and bands before and after.

::

    python -m benchmarks probabilistic_reconstruction --seeds 5 --out benchmarks/results

Data: noisy Lorenz-63 (dt 0.01, observation noise .1 of the standard deviation), 20,000 steps for
training, 10,000 for the table. A clipped shallow PLRNN is trained by teacher forcing (noise fitted
afterwards), then by innovations from there, with the default learning rate and with a tenth of it,
keeping the best likelihood; or, at the default rate, the best one with free runs like those of the
start (``select="free_runs"``). ``--only NAME`` trains and replaces one of these in the file.
Free-run measures are also taken against the noise-free system, without noise in the model. What is
trained by innovations has seen 1000 updates more; its seconds do not count those of GTF.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63
from plssm.inference import EKF, TeacherForcing

TRAIN, TEST, DT, NOISE = 20_000, 10_000, 0.01, 0.1
FAST, SLOW = (3e-3, 1e-4), (3e-4, 1e-5)
ENGINES = {
    "EKF from GTF": {"select": "likelihood", "learning_rate": FAST},
    "EKF from GTF, a tenth of the rate": {"select": "likelihood", "learning_rate": SLOW},
    "EKF from GTF, free runs kept": {"select": "free_runs", "learning_rate": FAST},
}
FILE = "probabilistic_reconstruction.json"
TRUE_EXPONENT = 0.906  # Sprott 2003, Chaos and Time-Series Analysis


def datasets(seed: int) -> tuple[ps.Dataset, ps.Dataset, np.ndarray]:
    """Training and test data, and a long noise-free orbit in the same units."""
    path = lorenz63(TRAIN + TEST, dt=DT, seed=seed)[0]
    mean, sd = path.mean(0), path.std(0)
    rng = np.random.default_rng(seed)
    y = (path - mean) / sd + NOISE * rng.standard_normal(path.shape)
    orbit = (lorenz63(100_000, dt=DT, seed=seed + 10_000)[0] - mean) / sd
    make = ps.Dataset.from_arrays
    return make({"x": y[:TRAIN]}, DT), make({"x": y[TRAIN:]}, DT), orbit


def dynamics_of(fit: ps.Fit, orbit: np.ndarray) -> dict[str, float]:
    """What the map does by itself, beside the noise-free system."""
    run = np.asarray(fit.model.simulate(60_000, noise=False, seed=0).latent[0])[10_000:60_000]
    distance = ps.metrics.state_space_divergence(truth=orbit, pred=run)
    spectrum = ps.metrics.power_spectrum_distance(truth=orbit, pred=run)
    exponents = ps.analysis.lyapunov_spectrum(fit.model.dynamics, steps=100_000, dt=DT)
    return {
        "free_d_stsp": float(distance), "free_d_h": float(spectrum),
        "free_d_stsp_floor": distance.floor, "free_lyapunov_max": float(exponents[0]),
        "process_noise": float(fit.model.dynamics.noise.variance.detach().mean()),
        "observation_noise": float(fit.model.observations["x"].noise.detach().mean()),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run all seeds and write probabilistic_reconstruction.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--forced", type=int, default=100_000, help="updates by teacher forcing")
    parser.add_argument("--updates", type=int, default=1000, help="updates by innovations")
    parser.add_argument("--only", choices=list(ENGINES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    engines = ENGINES if given.only is None else {given.only: ENGINES[given.only]}
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        train, test, orbit = datasets(seed)
        model = ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(3, 50), {"x": ps.observations.Gaussian(3, readout="identity")}
        )
        gtf = TeacherForcing(steps=given.forced, seed=seed).fit(model, train, progress=False)
        fits = {"GTF": gtf} if given.only is None else {}
        for name, options in engines.items():
            engine = EKF(steps=given.updates, seed=seed, **options)
            fits[name] = engine.fit(gtf.model, train, progress=False)
        table = ps.compare(fits, test, particles=300, seed=seed, progress=False)
        for name, fit in fits.items():
            row = {"seed": seed, "fit": name} | table.loc[name].to_dict()
            row |= dynamics_of(fit, orbit)
            rows.append({k: v.item() if hasattr(v, "item") else v for k, v in row.items()})
            shown = ("evidence", "own_evidence", "free_d_stsp", "free_d_h", "free_lyapunov_max",
                     "coverage_95", "nis", "error_10", "process_noise", "seconds")  # fmt: skip
            print(seed, name, {k: round(float(row[k]), 4) for k in shown}, flush=True)
    if given.only is not None and given.out is not None:
        made = json.loads((given.out / FILE).read_text())["rows"]
        rows = [r for r in made if r["fit"] != given.only] + rows
    report(rows, given)
    return 0


def report(rows: list[dict], given: argparse.Namespace) -> None:
    """Print medians and ranges, and write everything."""
    summary = {}
    for name in {r["fit"]: None for r in rows}:
        mine = [r for r in rows if r["fit"] == name]
        keys = [k for k, v in mine[0].items() if isinstance(v, float)]
        summary[name] = {
            k: [float(f([r[k] for r in mine])) for f in (np.median, np.min, np.max)] for k in keys
        }
    for name, row in summary.items():
        print(name, {k: np.round(v, 4).tolist() for k, v in row.items()})
    if given.out is not None:
        found = {
            "command": f"python -m benchmarks probabilistic_reconstruction --first {given.first} "
            f"--seeds {given.seeds} --out benchmarks/results",
            "true_lyapunov_max": TRUE_EXPONENT, "machine": platform.machine(),
            "torch": torch.__version__, "threads": 1, "summary": summary, "rows": rows,
        }  # fmt: skip
        (given.out / FILE).write_text(json.dumps(found, indent=1) + "\n")
