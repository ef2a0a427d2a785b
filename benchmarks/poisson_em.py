"""A Laplace-EM iteration on spike counts beside one LAPACK banded factor-and-solve.

PLRNN with Poisson observations (exp link), N=50, M=10, one trial of T steps, float64. An
iteration is everything from one E-step's end to the next: statistics, M-step of dynamics and
observations, mode search from the mode before, covariances and evidence; iterations 5 and later
count. The unit is `cholesky_banded` and `cho_solve_banded` of a matrix of T M rows with 2 M - 1
sub-diagonals, the size of one linear solve of the mode search, timed between the iterations.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

import plssm as ps
from plssm.inference import em_run, newton
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.em_run import EMRun
from plssm.inference.progress import EMProgress
from plssm.posterior import GaussianChain

DIM, COUNTED, CONTINUOUS, CLASSES = 10, 50, 20, 4
FIRST = 5  # iteration from which the start is warm

PARTS = {
    "observation terms": (newton, "_expanded"),
    "mode search": (newton, "find_mode"),
    "value of a path": (ChainPrior, "log_prob"),
    "factor at the mode": (newton, "_true_curvature"),
    "covariances": (GaussianChain, "arrays"),
    "transition statistics": (em_run, "transition_statistics"),
    "M-step, dynamics": (em_run, "update_coefficients"),
    "M-step, noise": (em_run, "update_process_noise"),
    "M-step, observations": (em_run, "update_observations"),
}


def now() -> np.ndarray:
    """Milliseconds on the wall, and of work of this thread: others may use the machine, too."""
    return 1e3 * np.array([time.perf_counter(), time.thread_time()])


def lapack_unit(steps: int) -> Callable[[], np.ndarray]:
    """A function that does one banded factor-and-solve and returns its milliseconds."""
    rng, rows, below = np.random.default_rng(0), steps * DIM, 2 * DIM - 1
    bands = 0.5 * rng.standard_normal((below + 1, rows))
    bands[0], right = 4.0 * below, rng.standard_normal(rows)

    def run() -> np.ndarray:
        began = now()
        factor = scipy.linalg.cholesky_banded(bands, lower=True, check_finite=False)
        scipy.linalg.cho_solve_banded((factor, True), right, check_finite=False)
        return now() - began

    return run


def observations(rng: np.random.Generator, shift: float = 0.0) -> dict:
    """Counts, continuous channels and labels, with parameters moved by a random shift."""
    weight = {
        "counts": 0.3 * rng.standard_normal((COUNTED, DIM)),
        "continuous": rng.standard_normal((CONTINUOUS, DIM)),
        "labels": rng.standard_normal((CLASSES - 1, DIM)),
    }
    moved = np.random.default_rng(1)
    weight = {k: w + shift * moved.standard_normal(w.shape) for k, w in weight.items()}
    return {
        "counts": ps.observations.Poisson.from_parameters(
            weight["counts"], bias=rng.uniform(-1.0, 0.5, COUNTED)
        ),
        "continuous": ps.observations.Gaussian.from_parameters(
            weight["continuous"], bias=np.zeros(CONTINUOUS), noise=0.5 * np.ones(CONTINUOUS)
        ),
        "labels": ps.observations.Categorical.from_parameters(weight["labels"]),
    }


def problem(steps: int, modalities: tuple[str, ...]) -> tuple[ps.StateSpaceModel, ps.data.Batch]:
    """A model beside the truth, and data of some modalities."""
    rng = np.random.default_rng(0)
    coupling = 0.1 * rng.standard_normal((DIM, DIM)) * (1 - np.eye(DIM))
    decay, h = rng.uniform(0.5, 0.9, DIM), 0.1 * rng.standard_normal(DIM)
    plrnn = ps.dynamics.PLRNN.from_parameters
    truth = ps.StateSpaceModel(
        plrnn(decay, coupling, h=h, process_noise=0.05 * np.ones(DIM)),
        observations(np.random.default_rng(2)),
    )
    batch = truth.simulate(steps, seed=1).batch()
    near = observations(np.random.default_rng(2), shift=0.1)
    start = ps.StateSpaceModel(
        plrnn(0.9 * decay, 0.5 * coupling, h=h, process_noise=0.1 * np.ones(DIM)),
        {name: near[name] for name in modalities},
    )
    return start, batch


class Stopwatch:
    """Stands in for the progress bar: times whole iterations, and the unit between them."""

    def __init__(self, engine: ps.inference.LaplaceEM, model, unit: Callable) -> None:
        self.bar, self.unit = EMProgress(engine.stages_for(model), 1, show=False), unit
        self.iterations: list[np.ndarray] = []
        self.units: list[np.ndarray] = []
        self.last: np.ndarray | None = None

    def advance(self, *arguments) -> None:
        """Take the time of the iteration that ends."""
        self.bar.advance(*arguments)
        if self.last is not None:
            self.iterations.append(now() - self.last)
        self.units.append(self.unit())
        self.last = now()


def iterate(steps: int, modalities: tuple[str, ...], iterations: int) -> dict:
    """Times of the warm iterations of one EM run, and of the unit in the same run."""
    model, batch = problem(steps, modalities)
    engine = ps.inference.LaplaceEM(iterations=FIRST + iterations, start="model", tolerance=-1.0)
    watch = Stopwatch(engine, model, lapack_unit(steps))
    run = EMRun(engine, model, batch, 0, watch)
    run.go()
    (times, work), (units, unit_work) = (
        np.array(x[FIRST:]).T for x in (watch.iterations, watch.units)
    )
    table = run.table()[FIRST:]
    return {
        "steps": steps,
        "modalities": list(modalities),
        "iterations": len(times),
        "ms": float(np.median(times)),
        "ms_min": float(times.min()),
        "unit_ms": float(np.median(units)),
        "unit_ms_min": float(units.min()),
        "ratio": float(np.median(times) / np.median(units)),
        "ratio_min": float(times.min() / units.min()),
        "ratio_of_thread_time": float(np.median(work) / np.median(unit_work)),
        "solves": float(table["solves"].median()),
        "rises": bool((np.diff(table["evidence"]) >= 0).all()),
    }


def steadiest(repeats: int, *arguments) -> dict:
    """The run with the smallest median ratio; the machine may be busy with other things."""
    runs = [iterate(*arguments) for _ in range(repeats)]
    best = min(runs, key=lambda r: r["ratio"])
    return best | {"ratios_of_all_repeats": sorted(r["ratio"] for r in runs)}


@contextmanager
def timed(parts: dict) -> Iterator[dict[str, list[float]]]:
    """Time calls of some functions."""
    times, kept = defaultdict(list), {}

    def watched(label: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                times[label].append(1e3 * (time.perf_counter() - began))

        return run

    for label, (owner, name) in parts.items():
        kept[label] = getattr(owner, name)
        setattr(owner, name, watched(label, kept[label]))
    try:
        yield times
    finally:
        for label, (owner, name) in parts.items():
            setattr(owner, name, kept[label])


def shares(steps: int, iterations: int) -> dict[str, float]:
    """Milliseconds of an iteration by part: mean calls an iteration times the median call."""
    with timed(PARTS) as times:
        iterate(steps, ("counts",), iterations)
    out = {}
    for label, values in times.items():
        late = values[len(values) // 3 :]
        busy = [t for t in late if t > 0.02]  # covariances are kept after the first call
        calls = len(busy) / max(1, iterations * len(late) / len(values) * (1 + FIRST / iterations))
        out[label] = float(np.median(busy) * calls)
    return dict(sorted(out.items(), key=lambda pair: -pair[1]))


def measure(options: argparse.Namespace) -> dict:
    """All measurements; prints as it goes."""
    counts, every = ("counts",), ("counts", "continuous", "labels")
    iterate(200, every, 2)  # compiles
    record = {"threads": options.threads, "repeats": options.repeats}
    length = []
    for steps in options.steps:
        row = steadiest(options.repeats, steps, counts, options.iterations)
        length.append(row)
        print(
            f"T={steps:<5} {row['ms']:7.2f} ms (min {row['ms_min']:.2f})  unit "
            f"{row['unit_ms']:6.2f} ms (min {row['unit_ms_min']:.2f})  ratio {row['ratio']:5.2f} "
            f"(min {row['ratio_min']:.2f}, thread time {row['ratio_of_thread_time']:.2f})  "
            f"solves {row['solves']:.0f}",
            flush=True,
        )
    record["length"] = length
    logs = np.log([[r["steps"], r["ms"]] for r in length]).T
    record["growth"] = float(np.polyfit(*logs, 1)[0]) if len(length) > 1 else None
    print(f"time grows like T^{record['growth']:.2f}" if record["growth"] else "")
    combined = [(name,) for name in every] + [every]
    rows = [steadiest(1, options.steps[0], m, options.iterations // 2) for m in combined]
    record["multimodal"] = rows
    total = sum(r["ratio"] for r in rows[:-1])
    for row in rows:
        print(f"{'+'.join(row['modalities']):<28} {row['ms']:7.2f} ms  ratio {row['ratio']:6.2f}")
    record["together_over_sum"] = rows[-1]["ratio"] / total
    print(f"together over the sum of the parts: {record['together_over_sum']:.2f}")
    record["parts_ms"] = shares(1000, options.iterations)
    for label, ms in record["parts_ms"].items():
        print(f"  {label:<24} {ms:6.2f} ms")
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3, help="runs; the steadiest one counts")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"threads {options.threads}, iterations {FIRST} to {FIRST + options.iterations}")
    record = measure(options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "poisson_em.json").write_text(json.dumps(record, indent=2) + "\n")
    return 0
