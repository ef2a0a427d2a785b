"""Recovery of a known PLRNN: MAP states with true parameters, and full EM from random starts.

Ten draws of M=5, N=20, B ~ N(0,1), A ~ U(.3,.9), W ~ .2 N(0,1) off the diagonal, h ~ .3 N(0,1),
mu0 ~ N(0,1), T=20, 40 trials, all variances .01. No selection on anything but training evidence.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import plssm as ps

DIM, CHANNELS, STEPS, TRIALS, VARIANCE = 5, 20, 20, 40, 0.01
COMMAND = "python -m benchmarks known_parameters --out benchmarks/results"


def draw_model(seed: int) -> ps.StateSpaceModel:
    """One draw of the known system."""
    rng = np.random.default_rng(seed)
    coupling = 0.2 * rng.standard_normal((DIM, DIM))
    np.fill_diagonal(coupling, 0.0)
    variance = np.full(DIM, VARIANCE)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=rng.uniform(0.3, 0.9, DIM),
        W=coupling,
        h=0.3 * rng.standard_normal(DIM),
        process_noise=variance,
        initial_mean=rng.standard_normal(DIM),
        initial_noise=variance,
    )
    observation = ps.observations.Gaussian.from_parameters(
        B=rng.standard_normal((CHANNELS, DIM)), noise=np.full(CHANNELS, VARIANCE)
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays, flattened."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def smoothed_states(truth: ps.StateSpaceModel, data: ps.Dataset) -> float:
    """Smallest correlation over units of true and MAP states, with the true parameters."""
    mean = ps.smooth(truth, data).mean.numpy()
    return min(correlation(data.latent[..., i], mean[..., i]) for i in range(DIM))


def match(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which found unit belongs to each true one, and the positive scale found / true.

    Hinges fix the latent axes up to order and positive scale; each axis may also be shifted only
    by what the other parameters allow, so units are matched by the correlation of their paths.
    """
    flat, other = truth.reshape(-1, DIM), found.reshape(-1, DIM)
    similarity = np.corrcoef(flat.T, other.T)[:DIM, DIM:]
    unit = linear_sum_assignment(-similarity)[1]
    return unit, other.std(0)[unit] / flat.std(0)


def compare_parameters(truth: ps.StateSpaceModel, fit: ps.Fit, train: ps.Dataset) -> dict:
    """Correlations of A and off-diagonal W after matching and scaling."""
    unit, scale = match(train.latent, fit.posterior(train).mean.numpy())
    true, found = truth.dynamics, fit.model.dynamics
    a = found.A.detach().numpy()[unit]
    w = found.W.detach().numpy()[np.ix_(unit, unit)] / scale[:, None] * scale[None, :]
    off = ~np.eye(DIM, dtype=bool)
    return {
        "A": correlation(true.A.detach().numpy(), a),
        "W": correlation(true.W.detach().numpy()[off], w[off]),
    }


def next_state(truth: ps.StateSpaceModel, fit: ps.Fit, test: ps.Dataset) -> float:
    """Correlation of the true next state with the predicted one on held-out trials.

    The fitted model's filtered one-step prediction, mapped linearly (fitted on the first half of
    the held-out trials, scored on the second) to the true latent space.
    """
    with torch.no_grad():
        target = truth.dynamics.step(torch.from_numpy(test.latent[:, :-1])).numpy()
    filtered = fit.posterior(test, causal=True)
    guess = filtered.predicted_mean.numpy()[:, 1:]
    half = len(guess) // 2
    flat = lambda x: x.reshape(-1, DIM)  # noqa: E731
    design = np.column_stack([flat(guess[:half]), np.ones(flat(guess[:half]).shape[0])])
    weights = np.linalg.lstsq(design, flat(target[:half]), rcond=None)[0]
    made = flat(guess[half:]) @ weights[:-1] + weights[-1]
    aim = flat(target[half:])
    return float(np.mean([correlation(aim[:, i], made[:, i]) for i in range(DIM)]))


def run_draw(seed: int, *, restarts: int, iterations: int) -> dict:
    """All figures of one draw."""
    truth = draw_model(seed)
    train = truth.simulate(STEPS, trials=TRIALS, seed=10 * seed + 1)
    test = truth.simulate(STEPS, trials=TRIALS, seed=10 * seed + 2)
    row = {"draw": seed, "smoothed_states": smoothed_states(truth, train)}
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(DIM), {"x": ps.observations.Gaussian(CHANNELS)})
    engine = ps.inference.LaplaceEM(seed=seed, restarts=restarts, iterations=iterations)
    began = time.perf_counter()
    fit = engine.fit(fresh, train, progress=False)
    row |= compare_parameters(truth, fit, train)
    row["next_state"] = next_state(truth, fit, test)
    for name, data in (("train", train), ("test", test)):
        row[f"evidence_truth_{name}"] = float(ps.smooth(truth, data).log_evidence.sum())
        row[f"evidence_fit_{name}"] = float(fit.posterior(data).log_evidence.sum())
    row["seconds"] = time.perf_counter() - began
    return row


def main(argv: list[str] | None = None) -> int:
    """Run all draws, print the table and the medians, write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args(argv)
    rows = []
    for seed in range(given.draws):
        row = run_draw(seed, restarts=given.restarts, iterations=given.iterations)
        rows.append(row)
        print("  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    names = [k for k in rows[0] if k != "draw"]
    summary = {
        k: dict(zip(("q25", "median", "q75"), np.quantile([r[k] for r in rows], (0.25, 0.5, 0.75)),
                    strict=True))
        for k in names
    }  # fmt: skip
    for k, v in summary.items():
        print(f"{k:<24} median {v['median']:.3f}  quartiles {v['q25']:.3f} {v['q75']:.3f}")
    if given.out is not None:
        made = {"command": COMMAND, "settings": vars(given) | {"out": None}, "summary": summary}
        text = json.dumps(made | {"draws": rows}, indent=2, default=float)
        (given.out / "known_parameters.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
