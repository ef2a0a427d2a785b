"""Free runs of a fit beside blocks of the data, and what they score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from plssm.analysis import lyapunov_spectrum
from plssm.data import Dataset
from plssm.errors import DataError, PlssmError
from plssm.metrics import Measure
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = [
    "Block",
    "bins_of",
    "blocks_of",
    "exponents",
    "free_run",
    "largest_exponent",
    "two_sets",
]

SHORTEST, LONGEST_GAP = 8, 5
"""Samples of a block, below which a distribution or a spectrum says nothing; of a filled gap."""
PER_CELL, FEWEST_BINS, MOST_BINS = 4, 3, 30
"""Points of a cell of the histogram, and bounds of the bins per channel."""
STARTS, STEPS, TRANSIENT, WARMUP = 3, 5000, 1000, 100
"""Of the largest Lyapunov exponent: starts, steps that count, and steps that do not."""


@dataclass(frozen=True)
class Block:
    """Consecutive samples of one modality of one trial.

    Args:
        trial: Number of the trial.
        first: Number of its first sample.
        values: The samples ``[L, N]``; NaN = missing.
    """

    trial: int
    first: int
    values: np.ndarray

    @property
    def y(self) -> np.ndarray:
        """The samples with short gaps filled."""
        return self.filled(self.values)

    def filled(self, y: np.ndarray) -> np.ndarray:
        """Samples ``[L, N]`` with straight lines across what is missing in the data."""
        seen, at = np.isfinite(self.values), np.arange(len(y))
        columns = [np.interp(at, at[s], x[s]) for s, x in zip(seen.T, y.T)]
        return np.stack(columns, axis=1)


def blocks_of(data: Dataset, name: str) -> list[Block]:
    """Cut a modality into blocks of one length, at least two, without long gaps.

    A gap of more than 5 samples of any channel ends a stretch. Stretches shorter than half the
    longest one are left out, the others are cut to blocks as long as the shortest of them; a
    single stretch is cut in half. Shorter gaps are filled by straight lines, in the data and in
    the runs beside them alike.

    Args:
        data: The trials.
        name: The modality.

    Raises:
        DataError: If there are no two blocks of 8 samples.
    """
    found = []
    for k, trial in enumerate(data.trials):
        whole = ~np.any([_long_gaps(channel) for channel in trial.values[name].T], axis=0)
        found += [(k, i, j) for i, j in _stretches(whole)]
    longest = max((j - i for _, i, j in found), default=0)
    kept = [(k, i, j) for k, i, j in found if 2 * (j - i) >= longest]
    size = min((j - i for _, i, j in kept), default=0)
    if sum((j - i) // max(size, 1) for _, i, j in kept) < 2:
        size //= 2
    if size < SHORTEST:
        raise DataError(
            "too few samples without long gaps for free runs to be compared with",
            modality=name,
            got=f"stretches of up to {longest} samples",
            wanted=f"two blocks of {SHORTEST}",
        )
    return [
        Block(k, first, data.trials[k].values[name][first : first + size])
        for k, i, j in kept
        for first in range(i, j - size + 1, size)
    ]


def _stretches(true: np.ndarray) -> list[tuple[int, int]]:
    """First and one after the last of each run of true values."""
    edges = np.flatnonzero(np.diff(true.astype(int), prepend=0, append=0))
    return [(int(i), int(j)) for i, j in zip(edges[::2], edges[1::2])]


def _long_gaps(channel: np.ndarray) -> np.ndarray:
    """Which samples ``[n]`` lie in a gap that is too long to be filled."""
    out = np.zeros(len(channel), dtype=bool)
    for i, j in _stretches(np.isnan(channel)):
        out[i:j] = j - i > LONGEST_GAP
    return out


def free_run(
    model: StateSpaceModel,
    posterior: Posterior,
    data: Dataset,
    name: str,
    block: Block,
    *,
    noise: bool = True,
    seed: int = 0,
) -> np.ndarray:
    r"""Run the model on its own from the smoothed state at the start of a block.

    .. math:: z_{t_0} = E[z_{t_0} \mid Y], \qquad z_{t+1} \sim p(\cdot \mid z_t, s_{t+1}),
        \qquad y_t \sim p(\cdot \mid z)

    Args:
        model: The model.
        posterior: Smoothed posterior of the trials; observations with memory see its past.
        data: The trials, whose inputs and nuisance regressors drive the run.
        name: The modality.
        block: The block; the run has its samples.
        noise: Draw process and observation noise.
        seed: Seed of the draws.

    Returns:
        ``[L, N]``, NaN throughout where the run left the finite numbers.
    """
    trial, observation = data.trials[block.trial], model.observations[name]
    rows = slice(block.first, block.first + len(block.values))
    steps = trial.steps(name)[rows]
    first, last = int(steps[0]), int(steps[-1])
    before = posterior.mean[block.trial, max(first - observation.memory(data.dt), 0) : first + 1]
    inputs = None if trial.inputs is None else torch.from_numpy(trial.inputs[first + 1 : last + 1])
    regressors = trial.nuisance.get(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        ahead = model.dynamics.rollout(
            before[-1], last - first, inputs=inputs, noise=noise, generator=generator
        )
        path = torch.cat([before, ahead])
        if not bool(torch.isfinite(path).all()):
            return np.full_like(block.values, np.nan)
        features = observation.features_along(
            path,
            clock=torch.from_numpy(steps - first + len(before) - 1),
            nuisance=None if regressors is None else torch.from_numpy(regressors[rows]),
            dt=data.dt,
        )
        made = (
            observation.sample_sequence(features, seed=seed, dt=data.dt)
            if noise
            else observation.expected_sequence(features, dt=data.dt)
        )
    run = made.to(torch.float64).numpy()
    return block.filled(run) if np.isfinite(run).all() else np.full_like(block.values, np.nan)


def bins_of(truth: list[np.ndarray]) -> int:
    r"""Bins per channel of a histogram whose cells hold about four points of half the blocks.

    .. math:: k = \left\lfloor (n / 4)^{1/N} \right\rfloor \in [3, 30]

    With the usual 30 bins a few hundred points in three channels are almost all alone in their
    cells, and every model scores the same.

    Args:
        truth: The blocks ``[L, N]``, of which half are n points.
    """
    points, channels = sum(len(y) for y in truth) // 2, truth[0].shape[1]
    return int(np.clip((points / PER_CELL) ** (1 / channels), FEWEST_BINS, MOST_BINS))


def two_sets(
    measure: Callable[..., Measure], truth: list[np.ndarray], runs: list[np.ndarray]
) -> Measure:
    """Score every second run, and the others, against all blocks; the mean of both.

    Half of the blocks is the most that leaves two groups of that size to measure the floor on.

    Args:
        measure: A measure of :mod:`plssm.metrics` with the keywords truth, pred and floor.
        truth: The blocks.
        runs: One run for each.

    Returns:
        The mean, with the floor.
    """
    half = len(truth) // 2
    first, second = (measure(truth=truth, pred=runs[k::2][:half], floor=k == 0) for k in range(2))
    return Measure((first + second) / 2, floor=first.floor, settings=first.settings)


def _starts(posterior: Posterior, count: int = STARTS) -> list[tuple[int, int]]:
    """Trials and steps spread evenly over the data, in which an orbit may start."""
    ends = np.cumsum(posterior.length.numpy())
    places = ((np.arange(count) + 0.5) / count * ends[-1]).astype(int)
    trials = np.searchsorted(ends, places, side="right")
    return [(int(b), int(p - (ends[b - 1] if b else 0))) for b, p in zip(trials, places)]


def exponents(model: StateSpaceModel, start: torch.Tensor, data: Dataset) -> np.ndarray:
    """Lyapunov exponents per second of the noise-free map, largest first, ``[M]``.

    Args:
        model: The model; where it takes inputs, those of the data drive it, again and again.
        start: Where the orbit starts ``[M]``.
        data: The trials.

    Raises:
        PlssmError: If the orbit diverges.
    """
    drive = None
    if data.n_inputs:
        known = np.concatenate([t.inputs for t in data.trials if t.inputs is not None])
        drive = known[np.arange(TRANSIENT + WARMUP + STEPS) % len(known)]
    return lyapunov_spectrum(
        model.dynamics, steps=STEPS, dt=data.dt, start=start, inputs=drive,
        transient=TRANSIENT, warmup=WARMUP,
    )  # fmt: skip


def largest_exponent(
    model: StateSpaceModel, posterior: Posterior, data: Dataset, notes: list[str]
) -> float:
    r"""Largest Lyapunov exponent per second: the median over orbits from smoothed states.

    .. math:: \lambda_{\max} = \operatorname{med}_k \lambda_1(z^{(k)}) / dt

    Args:
        model: The model.
        posterior: Smoothed posterior of the trials.
        data: The trials.
        notes: What is to be said is added here.

    Returns:
        The exponent; NaN where every orbit diverges.
    """
    found, starts = [], _starts(posterior)
    for b, t in starts:
        try:
            found.append(float(exponents(model, posterior.mean[b, t], data)[0]))
        except PlssmError as error:
            last = str(error)
    if len(found) < len(starts):
        notes.append(f"lyapunov_max: {len(starts) - len(found)} of {len(starts)} starts: {last}")
    return float(np.median(found)) if found else float("nan")
