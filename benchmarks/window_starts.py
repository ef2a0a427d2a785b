"""Where training windows of EKF start: in the filter's state, or where observations say.

::

    python -m benchmarks window_starts --seeds 3 --out benchmarks/results

Noisy Lorenz-63 in z-scores (dt .02, process noise 1e-3, observation noise of sd .1), 5000 steps to
train and 5000 to test, seen whole ("xyz") or by its first coordinate alone ("x"), a PLRNN of six
states. All trainings go on from the same 50 EM iterations with 300 updates of about 2000 scored
steps, in windows of 100 steps after a warm-up of 20 or of 20 steps without one, and keep the best
likelihood of the training data at six checks. What is compared is the filter's log-likelihood a
step; "last" is that of the training data at the end, which windows that are too short for the
system pull away from the best.
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
from plssm.inference import EKF, LaplaceEM
from plssm.inference.filtered_states import STARTS

STEPS, DIM, NOISE, DT = 5000, 6, 0.1, 0.02
SEEN = {"xyz": 3, "x": 1}
WINDOWS = {"100 after 20": (100, 20), "20 after 0": (20, 0)}
MEASURES = ("train", "test", "last", "seconds")


def recorded(channels: int, seed: int) -> tuple[ps.Dataset, ps.Dataset]:
    """Training and test data."""
    z = lorenz63(2 * STEPS + 1000, dt=DT, seed=seed, process_noise=1e-3)[0]
    z = (z - z.mean(0)) / z.std(0)
    y = (z + NOISE * np.random.default_rng(seed).standard_normal(z.shape))[:, :channels]
    parts = (y[:STEPS], y[-STEPS:])
    return tuple(ps.Dataset.from_arrays({"x": part}, DT) for part in parts)


def likelihood(model: ps.StateSpaceModel, data: ps.Dataset) -> float:
    """The filter's log-likelihood a step."""
    return float(EKF().infer(model, data).log_evidence.sum()) / STEPS


def trained(seen: str, seed: int) -> list[dict]:
    """EM, and all trainings on from it."""
    train, test = recorded(SEEN[seen], seed)
    observation = ps.observations.Gaussian(SEEN[seen])
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(DIM), {"x": observation})
    begun = LaplaceEM(seed=seed).fit(fresh, train, progress=False)
    row = {"seen": seen, "seed": seed}
    ours = {"train": likelihood(begun.model, train), "test": likelihood(begun.model, test)}
    rows = [row | {"windows": "-", "start": "EM"} | ours | {"seconds": begun.seconds}]
    for windows, (window, warmup) in WINDOWS.items():
        for start in STARTS:
            engine = EKF(
                seed=seed, steps=300, checks=6, window=window, warmup=warmup, state=start,
                select="likelihood",
            )  # fmt: skip
            fit = engine.fit(begun.model, train, progress=False)
            found = fit.history["log_likelihood"]
            made = {"windows": windows, "start": start, "train": float(found.max())}
            made |= {"test": likelihood(fit.model, test), "last": float(found.iloc[-1])}
            rows.append(row | made | {"seconds": fit.seconds})
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()},
                  flush=True)  # fmt: skip
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Medians and ranges over seeds."""
    out = []
    keys = ("seen", "windows", "start")
    for name in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
        mine = [r for r in rows if tuple(r[k] for k in keys) == name]
        row = dict(zip(keys, name, strict=True))
        for measure in (m for m in MEASURES if m in mine[0]):
            values = [r[measure] for r in mine]
            row[measure] = [float(f(values)) for f in (np.median, np.min, np.max)]
        out.append(row)
    return out


def main(argv: list[str] | None = None) -> int:
    """Train all, print and write window_starts.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for seed in range(given.seeds) for seen in SEEN for row in trained(seen, seed)]
    found = {
        "command": f"python -m benchmarks window_starts --seeds {given.seeds} "
        "--out benchmarks/results",
        "machine": platform.machine(), "torch": torch.__version__, "threads": 1,
        "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    for row in found["summary"]:
        print({k: np.round(v, 3).tolist() if isinstance(v, list) else v for k, v in row.items()})
    if given.out is not None:
        (given.out / "window_starts.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
