"""Four engines on one model class: noisy Lorenz-63, short and long, and a multimodal simulation.

::

    python -m benchmarks engine_comparison --seeds 5 --out benchmarks/results

Model: PLRNN with ten states and a linear read-out, the same for all engines; every engine starts
it by its own means. Beside them stands a linear system of ten states, fitted by EM, as a floor.

- ``lorenz 1000``, ``lorenz 100000``: Lorenz-63 in z-scores, dt .02, observation noise of sd .1.
- ``multimodal``: 1500 steps of it seen by two noisy channels (x and z, sd .2), eight neurons
  (counts, .3 a bin), and at every fifth step by one of three labels; all read-outs are known
  linear maps of the state.

Every seed has a trajectory, a noise and (multimodal) a read-out of its own. 2000 held-out steps
(500 of ``multimodal``) of the same trajectory follow the training data after a gap of 20 time
units; the short training data are the end of the long ones, so that both are measured on the same
steps. The engines have their defaults but for the length of the training (BUDGETS), which was set
by processor time alone, on seed 100: 5 to 15 seconds with 1000 steps, about a minute or less with
100,000 and with three modalities, where most of it is the search for a start. EM at its defaults
needs one second with 1000 steps, so that it is there a second time with ten starts. With 100,000
steps and with three modalities the objective of EKF and VI is measured 5 times instead of 25.
Forcing is GTF; with counts and labels it is MTF.
The yardstick is :func:`plssm.compare`. ``long_d_stsp`` and ``long_d_h`` compare 20,000 steps of a
free run without any noise with the noise-free system; ``fate`` says whether that run diverged,
came to rest, or goes on. Rows are written after every fit.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import plssm as ps
from plssm.data.synthetic import lorenz63
from plssm.inference import EKF, MTF, LaplaceEM, TeacherForcing, VariationalInference

DT, NOISE, DIM, GAP, TEST, LONG = 0.02, 0.1, 10, 1000, 2000, 100_000
MULTIMODAL, NEURONS, LABELS, EVERY, NOISY = 1500, 8, 3, 5, 0.2
TEST_MULTIMODAL, RUN, TRANSIENT, PARTICLES, HORIZONS = 500, 20_000, 1000, 200, (1, 5, 10, 20, 40)
LINEAR, STARTS = "linear", "EM, 10 starts"
BUDGETS: dict[str, dict[str, dict[str, Any]]] = {
    "lorenz 1000": {
        "EM": {}, STARTS: {"restarts": 10}, "VI": {"steps": 150},
        "EKF": {"steps": 600}, "forcing": {"steps": 30_000},
    },
    "lorenz 100000": {
        "EM": {}, "VI": {"steps": 150, "checks": 5}, "EKF": {"steps": 600, "checks": 5},
        "forcing": {"steps": 50_000},
    },
    "multimodal": {
        "EM": {}, "VI": {"steps": 30, "checks": 5}, "EKF": {"steps": 60, "checks": 5},
        "forcing": {"steps": 1500},
    },
}  # fmt: skip
STEPS = {"lorenz 1000": 1000, "lorenz 100000": LONG, "multimodal": MULTIMODAL}
ENGINES: dict[str, Callable[..., Any]] = {
    "EM": LaplaceEM, STARTS: LaplaceEM, "VI": VariationalInference, "EKF": EKF,
    "forcing": TeacherForcing,
}  # fmt: skip
DECODED = {"x": ("spikes", "label"), "spikes": ("x",), "label": ("x",)}


@functools.cache
def scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the system, from one long orbit."""
    x = lorenz63(LONG, dt=DT, seed=99)[0]
    return x.mean(0), x.std(0)


def orbit(steps: int, seed: int) -> np.ndarray:
    """A trajectory in z-scores [steps, 3]."""
    mean, sd = scale()
    return (lorenz63(steps, dt=DT, seed=seed)[0] - mean) / sd


def split(arrays: dict[str, np.ndarray], steps: int, test: int = TEST, **options: Any) -> tuple:
    """Training data, which end at the gap, and held-out data."""
    parts = []
    for rows in (slice(LONG - steps, LONG), slice(LONG + GAP, LONG + GAP + test)):
        part = {name: values[rows] for name, values in arrays.items()}
        parts.append(ps.Dataset.from_arrays(part, DT, **options))
    return tuple(parts)


def lorenz(steps: int, seed: int) -> tuple[ps.Dataset, ps.Dataset]:
    """Noisy Lorenz-63: training and held-out data."""
    z = orbit(LONG + GAP + TEST, seed)
    noise = np.random.default_rng((seed, 1)).standard_normal(z.shape)
    return split({"x": z + NOISE * noise}, steps)


def multimodal(seed: int) -> tuple[ps.Dataset, ps.Dataset]:
    """Channels, counts and labels of one trajectory: training and held-out data."""
    z = orbit(LONG + GAP + TEST, seed)
    known, rng = np.random.default_rng((seed, 2)), np.random.default_rng((seed, 3))
    rates, scores = known.standard_normal((NEURONS, 3)), known.standard_normal((LABELS, 3))
    rates /= (z @ rates.T).std(0)[:, None]
    scores *= 4.0 / (z @ scores.T).std(0)[:, None]
    drive = np.exp(z @ rates.T)
    noisy = z @ scores.T + rng.gumbel(size=(len(z), LABELS))  # draws of a softmax
    label = noisy.argmax(1).astype(float)
    label[np.arange(len(z)) % EVERY != 0] = np.nan
    arrays = {
        "x": z[:, [0, 2]] + NOISY * rng.standard_normal((len(z), 2)),
        "spikes": rng.poisson(0.3 * drive / drive.mean(0)).astype(float),
        "label": label,
    }
    return split(arrays, MULTIMODAL, TEST_MULTIMODAL, kinds={"spikes": "count", "label": "label"})


def model(setting: str, engine: str) -> ps.StateSpaceModel:
    """A fresh model of the class that all engines train."""
    kind = ps.dynamics.LinearDynamics if engine == LINEAR else ps.dynamics.PLRNN
    if setting != "multimodal":
        return ps.StateSpaceModel(kind(DIM), {"x": ps.observations.Gaussian(3)})
    observations = {
        "x": ps.observations.Gaussian(2),
        "spikes": ps.observations.Poisson(NEURONS),
        "label": ps.observations.Categorical(LABELS),
    }
    return ps.StateSpaceModel(kind(DIM), observations)


def engine_of(setting: str, name: str, seed: int, share: float) -> Any:
    """An engine with its budget; the linear system has the defaults of EM."""
    key = "EM" if name == LINEAR else name
    options = {} if name == LINEAR else dict(BUDGETS[setting][name])
    for what in {"iterations", "steps"} & set(options):
        options[what] = max(int(options[what] * share), 1)
    if key == "forcing" and setting == "multimodal":
        options["scheme"] = MTF()
    return ENGINES[key](seed=seed, **options)


def shown(setting: str, name: str) -> str:
    """What an engine is called in the table."""
    return {"forcing": "MTF" if setting == "multimodal" else "GTF"}.get(name, name)


@torch.no_grad()
def run_freely(fit: ps.Fit, test: ps.Dataset) -> np.ndarray:
    """Expected channels of a run without noise from the last smoothed state."""
    start = fit.posterior(test).mean[0, -1]
    path = fit.model.dynamics.rollout(start, RUN + TRANSIENT, noise=False)[TRANSIENT:]
    return fit.model.observations["x"].features(path).numpy()


def fate(run: np.ndarray, truth: np.ndarray) -> str:
    """What becomes of a free run."""
    if not np.isfinite(run).all() or np.abs(run).max() > 50:
        return "diverged"
    return "at rest" if (run[-5000:].std(0) < 0.2 * truth.std(0)).any() else "goes on"


def long_run(fit: ps.Fit, test: ps.Dataset, seed: int) -> dict[str, Any]:
    """Measures of a long free run, with those of another true orbit."""
    channels = slice(None) if fit.model.observations["x"].channels == 3 else slice(0, 3, 2)
    truth, other = (orbit(RUN, 10_000 + 2 * seed + k)[:, channels] for k in (0, 1))
    found = run_freely(fit, test)
    row: dict[str, Any] = {"fate": fate(found, truth)}
    for suffix, run in (("", found), ("_floor", other)):
        good = bool(np.isfinite(run).all())
        options = {"truth": truth, "pred": run, "floor": False}
        row["long_d_stsp" + suffix] = float(ps.metrics.state_space_divergence(**options))
        row["long_d_h" + suffix] = (
            float(ps.metrics.power_spectrum_distance(**options)) if good else 1.0
        )
    return row


def decoded(fit: ps.Fit, test: ps.Dataset) -> dict[str, float]:
    """Scores of each modality given others, on held-out data."""
    row = {}
    for name, given in DECODED.items():
        found = fit.score(test, given=list(given)).loc[name]
        wanted = {
            "x": ("r2", "coverage_95", "log_likelihood"),
            "spikes": ("bits_per_spike", "log_likelihood"),
            "label": ("accuracy", "majority", "brier", "log_likelihood"),
        }[name]
        row |= {f"{name}_{w}": float(found[w]) for w in wanted}
    return row


def measured(fit: ps.Fit, test: ps.Dataset, setting: str, seed: int) -> dict[str, Any]:
    """All numbers of one fit on held-out data."""
    table = ps.compare(
        {"fit": fit}, test, steps=HORIZONS, particles=PARTICLES, seed=seed, progress=False
    )
    row = table.iloc[0].to_dict() | {"notes": table.attrs["notes"].get("fit", [])}
    row["process_noise"] = float(fit.model.dynamics.noise.variance.detach().mean())
    row["observation_noise"] = float(fit.model.observations["x"].noise.detach().mean())
    row |= long_run(fit, test, seed)
    return row | (decoded(fit, test) if setting == "multimodal" else {})


def fitted(setting: str, name: str, seed: int, share: float, keep: Path | None) -> dict:
    """One fit and its measures; a fit that fails leaves a row that says so."""
    data = multimodal(seed) if setting == "multimodal" else lorenz(STEPS[setting], seed)
    row: dict[str, Any] = {"setting": setting, "seed": seed, "engine": shown(setting, name)}
    began = time.process_time()
    try:
        fit = engine_of(setting, name, seed, share).fit(
            model(setting, name), data[0], progress=False
        )
    except Exception as error:  # the others are worth having
        return row | {"failed": f"{type(error).__name__}: {error}"}
    row["processor_seconds"] = time.process_time() - began
    if keep is not None:
        fit.save(keep / f"{setting} {seed} {row['engine']}".replace(" ", "_"))
    began = time.process_time()
    row |= measured(fit, data[1], setting, seed)
    return row | {"measuring_seconds": time.process_time() - began}


def summary(rows: list[dict]) -> dict[str, dict]:
    """Medians and ranges over seeds by setting and engine, and what became of free runs."""
    out: dict[str, dict] = {}
    table = pd.DataFrame(rows)
    for (setting, engine), mine in table.groupby(["setting", "engine"], sort=False):
        numbers = mine.select_dtypes("number").drop(columns="seed").dropna(axis=1, how="all")
        made = {
            name: [float(f(values.dropna())) for f in (np.median, np.min, np.max)]
            for name, values in numbers.items()
        }
        fates = mine["fate"].value_counts().to_dict() if "fate" in mine else {}
        out.setdefault(str(setting), {})[str(engine)] = {"seeds": len(mine)} | fates | made
    return out


def write(rows: list[dict], out: Path) -> None:
    """Write all rows as JSON and as a table."""
    order = {(s, shown(s, e)): i for i, (s, e) in enumerate(
        (s, e) for s in STEPS for e in (LINEAR, *ENGINES))}  # fmt: skip
    rows = sorted(rows, key=lambda r: (order[r["setting"], r["engine"]], r["seed"]))
    found = {
        "command": "python -m benchmarks engine_comparison --seeds 5 --out benchmarks/results",
        "machine": platform.machine(), "torch": torch.__version__, "threads": 1,
        "budgets": BUDGETS, "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    path = out / "engine_comparison.json"
    path.write_text(json.dumps(found, indent=1, default=float) + "\n")
    table = pd.DataFrame(rows).drop(columns="notes", errors="ignore")
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.5g")


def main(argv: list[str] | None = None) -> int:
    """Fit and measure; rows of the same setting, seed and engine are replaced in the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--setting", choices=list(STEPS), action="append")
    parser.add_argument("--engine", choices=[LINEAR, *ENGINES], action="append")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="share of the budgets")
    parser.add_argument("--keep", type=Path, help="folder for the fits")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    file = None if given.out is None else given.out / "engine_comparison.json"
    rows = json.loads(file.read_text())["rows"] if file is not None and file.exists() else []
    for seed in range(given.first, given.first + given.seeds):
        for setting in given.setting or STEPS:
            for name in given.engine or [LINEAR, *BUDGETS[setting]]:
                row = fitted(setting, name, seed, given.share, given.keep)
                key = [row[k] for k in ("setting", "seed", "engine")]
                rows = [r for r in rows if [r["setting"], r["seed"], r["engine"]] != key] + [row]
                print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                                for k, v in row.items()), flush=True)  # fmt: skip
                if given.out is not None:
                    write(rows, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
