"""Fixed points and cycles of random maps beside a search over all region sequences.

::

    python -m benchmarks cycle_search --out benchmarks/results

draws random piecewise-linear maps of each class (seeds 0, 1, 2, ...; none is left out), finds
their cycles of order 1, 2 and 3 with `plssm.analysis.cycles`, once as it comes ("auto", which
tries all sequences where they are few) and once by 1000 random restarts alone, and compares both
with a plain search over all 2^(P k) sequences of gate patterns written here. A cycle counts as
missed when the plain search alone has it, as invented when it alone lacks it.

Then maps with many hidden gates, where no plain search is possible. They are contractions plus a
bounded function, so the signs of det(I - DF^k) over all points whose period divides k sum up to
one (the Lefschetz index): another sum shows that points are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plssm.analysis import cycles
from plssm.dynamics.relu_form import ReluForm

ROWS = 1 << 16  # sequences at a time in the plain search
SAME = 1e-6
STARTS = 1000  # random starts for the small maps


def vanilla(rng: np.random.Generator) -> ReluForm:
    """A PLRNN with 2 to 4 states, all of them rectified."""
    dim = int(rng.integers(2, 5))
    weight = rng.standard_normal((dim, dim))
    np.fill_diagonal(weight, 0.0)
    return scaled(np.diag(rng.uniform(-1, 1, dim)), weight, rng)


def almost_linear(rng: np.random.Generator) -> ReluForm:
    """5 to 8 states of which the last 1 to 6 are rectified (at least two are linear)."""
    dim = int(rng.integers(5, 9))
    gates = int(rng.integers(1, min(6, dim - 2) + 1))
    weight = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    linear = np.diag(rng.uniform(-1, 1, dim))
    linear[:, : dim - gates] += weight[:, : dim - gates]
    return scaled(linear, weight[:, dim - gates :], rng)


def folding(rng: np.random.Generator) -> ReluForm:
    """The same sizes; a rotation that stretches, folded at the rectified states."""
    dim = int(rng.integers(5, 9))
    gates = int(rng.integers(1, min(6, dim - 2) + 1))
    linear = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    outer = -rng.uniform(1, 2, gates) * linear[:, dim - gates :]
    return scaled(linear, outer + 0.3 * rng.standard_normal((dim, gates)), rng)


def scaled(linear: np.ndarray, outer: np.ndarray, rng: np.random.Generator) -> ReluForm:
    """Gates on the last states; the mean spectral radius over regions is from 1 to 1.5."""
    dim, gates = outer.shape
    inner, none = np.eye(dim)[dim - gates :], np.zeros((dim, 0))
    on = rng.random((64, 1, gates)) < 0.5
    radius = np.abs(np.linalg.eigvals(linear + (outer * on) @ inner)).max(axis=1).mean()
    gain = rng.uniform(1, 1.5) / radius
    bias = rng.standard_normal(dim)
    return ReluForm(gain * linear, bias, gain * outer, inner, np.zeros(gates), none)


CLASSES: dict[str, Callable[[np.random.Generator], ReluForm]] = {
    "vanilla, M 2-4": vanilla,
    "almost linear, M 5-8, P 1-6": almost_linear,
    "folding, M 5-8, P 1-6": folding,
}


def every_sequence(form: ReluForm, order: int) -> list[np.ndarray]:
    """All cycles of an order, each [k, M] from its smallest point on."""
    gates, dim = len(form.offset), len(form.bias)
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=gates)))
    maps = np.array([form.linear + form.outer @ np.diag(d) @ form.inner for d in patterns])
    biases = np.array([form.bias + form.outer @ (d * form.offset) for d in patterns])
    sequences = itertools.product(range(len(patterns)), repeat=order)
    found: list[np.ndarray] = []
    while rows := list(itertools.islice(sequences, ROWS)):
        letters = np.array(rows).T
        total, constant = np.eye(dim)[None], np.zeros((len(rows), dim))
        for letter in letters:
            total = maps[letter] @ total
            constant = (maps[letter] @ constant[..., None])[..., 0] + biases[letter]
        z = np.linalg.solve(np.eye(dim) - total, constant[..., None])[..., 0]
        real, path = np.ones(len(rows), dtype=bool), []
        for letter in letters:
            real &= ((z @ form.inner.T + form.offset > 0) == (patterns[letter] > 0)).all(axis=1)
            path.append(z)
            z = (maps[letter] @ z[..., None])[..., 0] + biases[letter]
        for points in np.stack(path, axis=1)[real]:
            divisors = [p for p in range(1, order) if order % p == 0]
            if any(same(np.roll(points, p, axis=0), points) for p in divisors):
                continue
            first = min(range(order), key=lambda j, p=points: tuple(p[j]))
            points = np.roll(points, -first, axis=0)
            if not any(same(points, other) for other in found):
                found.append(points)
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two cycles are equal up to rounding."""
    return bool(np.abs(a - b).max() <= SAME * (1.0 + np.abs(a).max()))


def compare(name: str, order: int, models: int) -> dict:
    """One row: a class of maps, an order, both methods."""
    row: dict = {"class": name, "order": order, "models": models, "cycles": 0, "with_cycles": 0}
    methods = ("auto", "restarts")
    seconds: dict[str, list[float]] = {m: [] for m in (*methods, "plain")}
    tally = {m: {"missed": 0, "invented": 0, "exhaustive": 0, "restarts": []} for m in methods}
    for seed in range(models):
        form = CLASSES[name](np.random.default_rng(seed))
        began = time.perf_counter()
        want = every_sequence(form, order)
        seconds["plain"].append(time.perf_counter() - began)
        row["cycles"] += len(want)
        row["with_cycles"] += bool(want)
        for method in methods:
            began = time.perf_counter()
            starts = STARTS if method == "restarts" else None
            got = cycles(form, order=order, method=method, restarts=starts, seed=seed)
            seconds[method].append(time.perf_counter() - began)
            points, count = [c.points for c in got], tally[method]
            count["missed"] += sum(not any(same(w, p) for p in points) for w in want)
            count["invented"] += sum(not any(same(p, w) for w in want) for p in points)
            count["exhaustive"] += got.exhaustive
            count["restarts"].append(got.restarts)
    for method in methods:
        restarts = tally[method].pop("restarts")
        spread = {"restarts_median": float(np.median(restarts)), "restarts_max": max(restarts)}
        row[method] = tally[method] | spread
    row["seconds"] = {m: quartiles(s) for m, s in seconds.items()}
    return row


def quartiles(values: list[float]) -> dict:
    """Median, quartiles and largest value."""
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": median, "quartiles": [first, third], "max": max(values)}


def bounded(dim: int, units: int, seed: int) -> ReluForm:
    """A contraction plus one layer of clipped units (two gates each), which is bounded."""
    rng = np.random.default_rng(seed)
    inner, height = rng.standard_normal((units, dim)), rng.standard_normal(units)
    outer = 2.5 / np.sqrt(units * dim) * rng.standard_normal((dim, units))
    return ReluForm(
        np.diag(rng.uniform(-0.9, 0.9, dim)), 0.3 * rng.standard_normal(dim),
        np.concatenate([outer, -outer], axis=1), np.concatenate([inner, inner]),
        np.concatenate([height, np.zeros(units)]), np.zeros((dim, 0)),
    )  # fmt: skip


def index_sum(form: ReluForm, order: int, found: dict[int, list]) -> int:
    """Sum of the signs of det(I - DF^k) over all points whose period divides k.

    It is one for every continuous map that is a contraction plus something bounded, so that
    another value shows that points are missing.
    """
    total = 0
    for period, some in found.items():
        for cycle in some if order % period == 0 else ():
            jacobian = np.eye(len(form.bias))
            for z in cycle.points:
                jacobian = form.jacobian(form.region(z)) @ jacobian
            whole = np.linalg.matrix_power(jacobian, order // period)
            total += period * int(np.linalg.slogdet(np.eye(len(whole)) - whole)[0])
    return total


def large(dim: int, units: int, models: int, orders: tuple[int, ...]) -> list[dict]:
    """Rows for bounded maps with many hidden gates: counts, index sums, seconds."""
    rows = [
        {"M": dim, "P": 2 * units, "order": k, "models": models, "cycles": 0, "exhaustive": 0,
         "index_sum_is_one": 0, "in_one_of_two_searches_only": 0, "seconds": []}
        for k in orders
    ]  # fmt: skip
    for seed in range(models):
        form, found = bounded(dim, units, seed), {}
        for row in rows:
            began = time.perf_counter()
            one = found[row["order"]] = cycles(form, order=row["order"])
            row["seconds"].append(time.perf_counter() - began)
            two = cycles(form, order=row["order"], seed=1, method="restarts")
            both = sum(any(same(a.points, b.points) for b in two) for a in one)
            row["cycles"] += len(one)
            row["exhaustive"] += one.exhaustive
            row["in_one_of_two_searches_only"] += len(one) + len(two) - 2 * both
            row["index_sum_is_one"] += index_sum(form, row["order"], found) == 1
    for row in rows:
        row["seconds"] = quartiles(row["seconds"])
    return rows


def show(rows: list[dict], wide: list[dict]) -> None:
    """Print both tables."""
    print("missed and invented: auto, restarts; seconds: auto / restarts / plain, medians\n")
    for r in rows:
        counts = [f"{r[m]['missed']}, {r[m]['invented']}" for m in ("auto", "restarts")]
        times = " / ".join(f"{s['median']:.4f}" for s in r["seconds"].values())
        print(f"{r['class']:28s} k {r['order']}  {r['cycles']:5d} cycles  "
              f"{counts[0]:8s} {counts[1]:8s} starts {r['restarts']['restarts_median']:.0f} "
              f"(up to {r['restarts']['restarts_max']})  {times} s")  # fmt: skip
    print()
    for r in wide:
        print(f"hidden gates: M {r['M']}, P {r['P']}, order {r['order']}: {r['cycles']} cycles in "
              f"{r['models']} maps, index sum one in {r['index_sum_is_one']}, "
              f"{r['in_one_of_two_searches_only']} in one of two searches only, "
              f"{r['exhaustive']} exhaustive, median {r['seconds']['median']:.2f} s")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; results are also written as a file where `--out` names a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--wide", type=int, default=10, help="maps with many hidden gates")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    rows = [compare(name, order, given.models) for name in CLASSES for order in (1, 2, 3)]
    sizes = ((3, 25, (1, 2, 3)), (10, 50, (1, 2)), (20, 100, (1,)))
    wide = [row for dim, units, k in sizes for row in large(dim, units, given.wide, k)]
    show(rows, wide)
    if given.out is not None:
        made = {
            "command": "python -m benchmarks cycle_search "
            f"--models {given.models} --wide {given.wide} --out benchmarks/results",
            "rows": rows, "hidden_gates": wide,
            "python": platform.python_version(), "numpy": np.__version__,
        }  # fmt: skip
        given.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(made, indent=1, default=float)
        (given.out / "cycle_search.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
