"""What perfect models score: the measures between independent orbits, Lorenz-63 first of all.

::

    python -m benchmarks metric_floors --out benchmarks/results

simulates pairs of independent orbits (dt 0.01, noise-free, z-scored with the truth's mean and
standard deviation), scores one against the other at several lengths, prints medians and spread
beside published values, and writes metric_floors.json. A row passes when the median is within a
factor 1.5 of the published value or range. There is no peer: the published values are.

Two tables follow without a verdict: the same measures for other systems (pairs of independent
orbits) and for two recordings (first half against second half), each beside what a fixed point
and white noise score.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from plssm.data import load_recording
from plssm.data.catalogue import is_available, recordings
from plssm.data.synthetic import bursting_neuron, lorenz63, lorenz96
from plssm.metrics import power_spectrum_distance, state_space_divergence

DT = 0.01
LONG, MIDDLE, SHORT = 100_000, 10_000, 1_000

# published medians, and the published range where there is one
PUBLISHED = {
    "d_stsp 1e5/1e5": (0.06, (0.03, 0.10)),
    "d_stsp 1e5/1e4": (0.38, (0.32, 0.51)),
    "d_stsp 1e4/1e5": (0.16, (0.14, 0.30)),
    "d_stsp 1e4/1e4": (0.72, (0.60, 0.85)),
    "d_stsp 1e5/1e3": (5.0, None),
    "d_stsp 1e5/1e5, 5 % noise on the truth": (0.78, None),
    "d_stsp fixed point": (16.3, None),
    "d_stsp white noise": (3.6, None),
    "d_stsp mixture 1e5/1e5": (None, None),
    "d_stsp floor inside 1e5 for 1e4": (None, None),
    "d_h 1e4/1e4": (0.02, None),
    "d_h 1e5/1e5": (0.05, None),
    "d_h white noise": (0.88, None),
    "d_h floor inside 1e5 for 1e4": (None, None),
    "d_stsp itself": (0.0, None),
    "d_h itself": (0.0, None),
}
FACTOR = 1.5
NOTES = {
    "d_h 1e4/1e4": "0.03 has been published too; 50 pairs of two other seeds give 0.036 and 0.039 "
    "here, with quartiles from 0.026 to 0.056",
}


def bursts(steps: int, dt: float, *, trials: int, seed: int) -> np.ndarray:
    """Orbits of the neuron that burst; of its random starts a seventh ends in tonic spiking."""
    paths = bursting_neuron(steps, dt, trials=4 * trials, seed=seed)
    return paths[paths[:, :, 0].min(axis=1) < -60][:trials]


ROSENSTEIN = {"sigma": 16.0, "rho": 45.92, "beta": 4.0}
SYSTEMS = {
    "Lorenz-63, Rosenstein's, dt 0.01": (lorenz63, 0.01, ROSENSTEIN),
    "Lorenz-96, 10 sites, dt 0.05": (lorenz96, 0.05, {"dim": 10}),
    "Lorenz-96, 20 sites, dt 0.05": (lorenz96, 0.05, {"dim": 20}),
    "bursting neuron, dt 0.05 ms": (bursts, 0.05, {}),
}
RECORDINGS = {"eeg": {}, "ecg": {"bins": 8}}


def orbits(pairs: int, seed: int) -> np.ndarray:
    """Independent orbits on the attractor, [2 pairs, LONG, 3]."""
    return np.asarray(lorenz63(LONG, dt=DT, trials=2 * pairs, seed=seed))


def measure(truth: np.ndarray, pred: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """All scores of one pair of orbits."""
    mean, sd = truth.mean(axis=0), truth.std(axis=0)
    truth, pred = (truth - mean) / sd, (pred - mean) / sd
    noisy = truth + 0.05 * rng.standard_normal(truth.shape)
    white = rng.standard_normal(truth.shape)

    def d(x, y, **options):
        return float(state_space_divergence(truth=x, pred=y, floor=False, **options))

    def h(x, y):
        return float(power_spectrum_distance(truth=x, pred=y, floor=False))

    return {
        "d_stsp 1e5/1e5": d(truth, pred),
        "d_stsp 1e5/1e4": d(truth, pred[:MIDDLE]),
        "d_stsp 1e4/1e5": d(truth[:MIDDLE], pred),
        "d_stsp 1e4/1e4": d(truth[:MIDDLE], pred[:MIDDLE]),
        "d_stsp 1e5/1e3": d(truth, pred[:SHORT]),
        "d_stsp 1e5/1e5, 5 % noise on the truth": d(noisy, pred),
        "d_stsp fixed point": d(truth, np.zeros_like(truth)),
        "d_stsp white noise": d(truth, white),
        "d_stsp mixture 1e5/1e5": d(truth, pred, method="mixture"),
        "d_stsp floor inside 1e5 for 1e4": state_space_divergence(
            truth=truth, pred=pred[:MIDDLE]
        ).floor,
        "d_h 1e4/1e4": h(truth[:MIDDLE], pred[:MIDDLE]),
        "d_h 1e5/1e5": h(truth, pred),
        "d_h white noise": h(truth, white),
        "d_h floor inside 1e5 for 1e4": power_spectrum_distance(
            truth=truth, pred=pred[:MIDDLE]
        ).floor,
        "d_stsp itself": d(truth, truth),
        "d_h itself": h(truth, truth),
    }


def summary(name: str, values: list[float]) -> dict:
    """Median, quartiles, range and verdict of one row."""
    row = spread(values)
    median = row["median"]
    published, span = PUBLISHED[name]
    verdict = None
    if name.endswith("itself"):
        verdict = bool(np.abs(values).max() < 1e-8)
    elif published is not None:
        bounds = span or (published, published)
        verdict = bool(bounds[0] / FACTOR <= median <= bounds[1] * FACTOR)
    return row | {
        "published": published, "published_range": span,
        "ratio": median / published if published else None,
        "within_factor_1.5": verdict, "note": NOTES.get(name),
    }  # fmt: skip


def beside(truth: np.ndarray, pred: np.ndarray, seed: int, options: dict) -> dict[str, float]:
    """Both measures of one pair with what a fixed point and white noise score, z-scored."""
    mean, sd = truth.mean(axis=0), truth.std(axis=0)
    pair = {"truth": (truth - mean) / sd, "pred": (pred - mean) / sd, "seed": seed}
    pair |= {"floor": False, "references": True}
    d, h = state_space_divergence(**pair, **options), power_spectrum_distance(**pair)
    out = {f"d_stsp ({d.settings['method']})": float(d)}
    out |= {f"d_stsp {name}": score for name, score in d.references.items()}
    return out | {"d_h": float(h), "d_h white noise": h.references["white noise"]}


def systems(pairs: int, seed: int) -> dict[str, dict]:
    """Rows of each further system."""
    out = {}
    for name, (simulate, dt, parameters) in SYSTEMS.items():
        scores = []
        for k in range(pairs):
            truth, pred = simulate(LONG, dt, trials=2, seed=1000 * seed + k, **parameters)
            scores.append(beside(truth, pred, k, {}))
        out[name] = {row: spread([s[row] for s in scores]) for row in scores[0]}
    return out


def halves() -> dict[str, dict]:
    """Scores of the second half of a recording against its first; none where it is absent."""
    out = {}
    for source in recordings():
        name = source.name
        if name not in RECORDINGS or not is_available(source):
            continue
        loaded = load_recording(name)
        data = loaded.to_dataset(dt=1 / 160) if hasattr(loaded, "to_dataset") else loaded
        x = np.concatenate([trial.values[name] for trial in data.trials])
        half = len(x) // 2
        out[name] = beside(x[:half], x[half : 2 * half], 0, RECORDINGS[name]) | {"points": half}
    return out


def spread(values: list[float]) -> dict:
    """Median, quartiles and range."""
    low, first, median, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return {"median": median, "quartiles": [first, third], "range": [low, high]}


def show(rows: dict[str, dict], pairs: int) -> None:
    """Print the table."""
    print(f"Lorenz-63, dt {DT}, {pairs} pairs of independent orbits, 30 bins, smoothing 1e-5")
    print("truth points / generated points; median [quartiles] (range), published\n")
    for name, row in rows.items():
        quartiles = "[{:.3f}, {:.3f}]".format(*row["quartiles"])
        spread = "({:.3f} to {:.3f})".format(*row["range"])
        published = "" if row["published"] is None else f"{row['published']:g}"
        verdict = {True: "pass", False: "OUTSIDE", None: ""}[row["within_factor_1.5"]]
        print(f"{name:42s} {row['median']:8.4f} {quartiles:18s} {spread:22s} "
              f"{published:>5s} {verdict}")  # fmt: skip


def show_further(others: dict[str, dict], split: dict[str, dict]) -> None:
    """Print the tables without a verdict."""
    for name, rows in others.items():
        print(f"\n{name}: 1e5/1e5, independent orbits")
        for row, found in rows.items():
            quartiles = "[{:.3f}, {:.3f}]".format(*found["quartiles"])
            print(f"  {row:40s} {found['median']:8.4f} {quartiles}")
    for name, rows in split.items():
        print(f"\n{name}: first half against second half, {rows['points']} points each")
        print("  " + ", ".join(f"{k} {v:.3f}" for k, v in rows.items() if k != "points"))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; results are also written as a file where `--out` names a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    began = time.perf_counter()
    paths = orbits(options.pairs, options.seed)
    rng = np.random.default_rng(options.seed)
    scores = [measure(paths[2 * k], paths[2 * k + 1], rng) for k in range(options.pairs)]
    rows = {name: summary(name, [s[name] for s in scores]) for name in PUBLISHED}
    show(rows, options.pairs)
    further = {"systems": systems(options.pairs, options.seed), "recordings": halves()}
    show_further(*further.values())
    seconds = time.perf_counter() - began
    failed = [name for name, row in rows.items() if row["within_factor_1.5"] is False]
    print(f"\n{seconds:.0f} s; " + (f"outside: {failed}" if failed else "all rows pass"))
    for name, note in NOTES.items():
        print(f"{name}: {note}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report(options, rows, further, seconds), indent=1)
        (options.out / "metric_floors.json").write_text(text + "\n")
    return 0


def report(
    options: argparse.Namespace, rows: dict[str, dict], further: dict, seconds: float
) -> dict:
    """Everything that is kept, with the command that made it."""
    return {
        "command": f"python -m benchmarks metric_floors --pairs {options.pairs} "
        f"--seed {options.seed} --out benchmarks/results",
        "setting": {
            "system": "Lorenz-63 (10, 28, 8/3)", "dt": DT, "pairs": options.pairs,
            "seed": options.seed, "scaling": "mean and sd of the truth", "bins": 30,
            "box": "data", "smoothing": 1e-5, "spectrum_smoothing_bins": 20,
            "names": "truth points / generated points",
        },
        "rows": rows, **further, "seconds": round(seconds, 1),
        "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
