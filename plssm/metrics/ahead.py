"""Error of a map that is iterated from every state of a series: n steps ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plssm.errors import DataError
from plssm.metrics.baselines import Baseline
from plssm.metrics.measure import Measure
from plssm.metrics.prediction import per_channel, squared_errors
from plssm.metrics.trajectories import as_trials

__all__ = ["n_step_error"]

CHUNK = 2**21
"""Numbers of one forecast array that are held at a time."""


def n_step_error(
    dynamics: Any,
    *,
    truth: Any,
    steps: int = 20,
    states: Any = None,
    readout: Callable[[np.ndarray], np.ndarray] | None = None,
    inputs: Any = None,
    train: Any = None,
    noise: Any = None,
    warmup: int = 10,
) -> Measure:
    r"""Mean squared error n steps ahead of the noise-free map, started at every sample.

    .. math:: E(n) = \frac{1}{|S|} \sum_{(t, i) \in S} \left(
        \frac{x_{t+n,i} - [g(F^n(z_t))]_i}{s_i} \right)^2

    over the observed entries S, with the states z_t = `states` (by default the samples
    themselves: the read-out g is the identity) and s the training standard deviation. Every t
    with `warmup` samples before it, n after it and a finite state is an origin. Beside it stand
    the errors of persistence (the last value seen), of a first-order vector autoregression and of
    climatology (the training mean), from the same origins. All origins run at once, compiled
    where the dynamics are piecewise linear, in blocks of bounded memory.

    Args:
        dynamics: A LatentDynamics.
        truth: [T, N], [trials, T, N] or list of [T_i, N]; NaN = missing.
        steps: n, steps ahead.
        states: The state at every sample, such as O^-1(x_t) or means of a filter: the forms of
            `truth`, with M columns. Rows that are not finite are no origins. A smoothed state
            would leak the future.
        readout: Function of states [..., M] to predictions [..., N]; default the first N.
        inputs: Inputs of every step, the forms of `truth` with K columns; row t is the input of
            the step arrived at.
        train: Training data for mean, standard deviation and autoregression, the forms of
            `truth`; default the truth itself.
        noise: [N] or a number, variance of the observation noise, which makes the floor.
        warmup: Samples of each trial before its first origin.

    Returns:
        The error n steps ahead with `.floor`, `.references`, `.per_step` [steps],
        `.per_dimension` [N] (n steps ahead) and `.settings`, which hold the references per step.

    Raises:
        DataError: No origin, shapes that do not fit, or options out of range.

    References:
        Koppe et al. 2019, Identifying nonlinear dynamical systems via generative recurrent
        neural networks with applications to fMRI, doi:10.1371/journal.pcbi.1007263.
    """
    if steps < 1 or warmup < 0:
        raise DataError("nothing to forecast", got=f"steps={steps}, warmup={warmup}",
                        wanted="steps >= 1, warmup >= 0")  # fmt: skip
    trials = as_trials(truth, role="truth")
    n = trials[0].shape[1]
    baseline = Baseline.of(trials if train is None else as_trials(train, role="train"))
    if len(baseline.mean) != n:
        raise DataError("train has other channels", got=len(baseline.mean), wanted=n)
    series = _series(trials, states, inputs, dynamics.dim, baseline)
    readout = readout or (lambda z: z[..., :n])
    sums, count, origins = _errors(dynamics, series, int(steps), int(warmup), readout, baseline)
    if not count[-1].any():
        raise DataError(
            "no origin has an observed sample that far ahead",
            axis="time",
            got=f"{sum(map(len, trials))} samples, steps={steps}, warmup={warmup}",
            fix="use fewer steps or a smaller warmup, or pass states where samples are incomplete",
        )
    means = {name: _ratio(total.sum(1), count.sum(1)) for name, total in sums.items()}
    error = means.pop("model")
    variance = per_channel(0.0 if noise is None else noise, n, "noise", zero=True)
    floor = float((count[-1] * variance / baseline.sd**2).sum() / count[-1].sum())
    settings = {
        "measure": "squared error n steps ahead, in training variances",
        "steps": int(steps), "warmup": int(warmup), "origins": origins,
        "start": "the samples themselves" if states is None else "given states",
        "scale": baseline.sd.tolist(), "scaled_with": "truth" if train is None else "train",
        "references_per_step": {name: mean.tolist() for name, mean in means.items()},
    }  # fmt: skip
    return Measure(
        error[-1],
        floor=floor,
        references={name: mean[-1] for name, mean in means.items()},
        settings=settings,
        per_step=error,
        per_dimension=_ratio(sums["model"][-1], count[-1]),
    )


@dataclass(frozen=True)
class _Trial:
    """One series in z-scores, with what a forecast starts from."""

    y: np.ndarray
    held: np.ndarray
    state: np.ndarray
    drive: np.ndarray | None

    def blocks(self, steps: int, warmup: int) -> Iterator[np.ndarray]:
        """Yield origins [m], as many at a time as the memory may hold."""
        last = len(self.y) - steps
        origins = np.flatnonzero(np.isfinite(self.state[: max(last, 0)]).all(axis=1))
        origins = origins[origins >= warmup]
        size = max(CHUNK // (steps * max(self.y.shape[1], self.state.shape[1])), 1)
        for i in range(0, len(origins), size):
            yield origins[i : i + size]


def _series(
    trials: list[np.ndarray], states: Any, inputs: Any, dim: int, baseline: Baseline
) -> list[_Trial]:
    """Check that truth, states and inputs fit, trial by trial."""
    starts = trials if states is None else as_trials(states, role="states")
    drives = [None] * len(trials) if inputs is None else as_trials(inputs, role="inputs")
    if starts[0].shape[1] != dim:
        raise DataError(
            "the states do not fit the dynamics",
            axis="state",
            got=f"{starts[0].shape[1]} columns",
            wanted=f"{dim}",
            fix="pass states=[T, M], such as the pseudo-inverse of the read-out on the samples",
        )
    for role, other in (("states", starts), ("inputs", drives)):
        lengths = [None if x is None else len(x) for x in other]
        if other is not drives or inputs is not None:
            if lengths != [len(t) for t in trials]:
                raise DataError(f"{role} and truth have different lengths", axis="time",
                                got=lengths, wanted=[len(t) for t in trials])  # fmt: skip
    return [
        _Trial(baseline.scale(y), baseline.carry_forward(y), z, s)
        for y, z, s in zip(trials, starts, drives, strict=True)
    ]


def _errors(
    dynamics: Any,
    series: list[_Trial],
    steps: int,
    warmup: int,
    readout: Callable[[np.ndarray], np.ndarray],
    baseline: Baseline,
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Sum squared errors and count observed entries, [steps, N], over all origins."""
    shape = (steps, len(baseline.mean))
    names = ("model", "persistence", "VAR(1)", "climatology")
    sums, count, total = {k: np.zeros(shape) for k in names}, np.zeros(shape, dtype=int), 0
    for trial in series:
        for origins in trial.blocks(steps, warmup):
            rows = origins[:, None] + np.arange(1, steps + 1)
            y = trial.y[rows]
            seen = ~np.isnan(y)
            drive = None if trial.drive is None else trial.drive[rows]
            with np.errstate(over="ignore", invalid="ignore"):
                pred = readout(_iterate(dynamics, trial.state[origins], drive, steps))
                if pred.shape != y.shape:
                    raise DataError(
                        "the read-out does not fit the truth", got=pred.shape, wanted=y.shape
                    )
                pred = baseline.scale(pred)
            held = trial.held[origins]
            guesses = (pred, held[:, None], _autoregress(baseline, held, steps), np.zeros(1))
            for name, guess in zip(names, guesses, strict=True):
                guess = np.broadcast_to(guess, y.shape)
                sums[name] += squared_errors(y, guess, np.ones(1), seen).sum(axis=0)
            count += seen.sum(axis=0)
            total += len(origins)
    return sums, count, total


def _iterate(dynamics: Any, start: np.ndarray, drive: np.ndarray | None, steps: int) -> np.ndarray:
    """Run the map without noise from states [m, M]; returns [m, steps, M]."""
    with torch.no_grad():
        path = dynamics.rollout(
            torch.from_numpy(start),
            steps,
            inputs=None if drive is None else torch.from_numpy(drive),
            noise=False,
        )
    return path.numpy(force=True).astype(np.float64, copy=False)


def _autoregress(baseline: Baseline, held: np.ndarray, steps: int) -> np.ndarray:
    """Forecast from z-scores [m, N] with the autoregression; returns [m, steps, N]."""
    path, state = np.empty((len(held), steps, held.shape[1])), held
    for k in range(steps):
        state = baseline.intercept + state @ baseline.matrix.T
        path[:, k] = state
    return path


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Divide sums by counts; NaN where nothing was observed."""
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)
