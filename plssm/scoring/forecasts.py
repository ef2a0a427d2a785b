"""Scores of n-step forecasts from filtered starts, beside persistence and VAR(1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from plssm.data import Dataset, Trial
from plssm.dynamics.base import LatentDynamics
from plssm.errors import PlssmError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import Posterior
from plssm.prediction.ahead import features_ahead
from plssm.prediction.cross_modal import Infer
from plssm.prediction.latent_draws import draw_histories
from plssm.prediction.predictive import Prediction
from plssm.prediction.spike_history import driven_by_own_draws, has_history, recent_counts
from plssm.scoring.table import score_table
from plssm.scoring.tally import Tally
from plssm.scoring.yardsticks import LEVEL, Yardstick, yardsticks

__all__ = ["score_forecasts"]

CHUNK = 4_000_000  # numbers of a block of forecast states held in memory
HISTORIES = 30_000_000  # numbers of drawn state histories held in memory
HUGE = 1e100  # stands for predictors of a forecast that left the finite numbers


def score_forecasts(
    model: StateSpaceModel,
    infer: Infer,
    data: Dataset,
    *,
    steps: Sequence[int],
    baselines: Mapping[str, Baseline],
    known: bool,
    warmup: int = 10,
    samples: int = 64,
    seed: int = 0,
    level: float = LEVEL,
) -> pd.DataFrame:
    r"""n-step forecast scores from filtered starts.

    Origins are all steps t with at least ``warmup`` steps before them. From each, ``samples``
    antithetic draws of :math:`p(z_t | y_{1:t})` run n steps with process noise and known inputs;
    the forecast is the mean of the predictive mixture. Where a modality has memory, the draws are
    of the last states together. Errors are those of the kind of data (see :mod:`.yardsticks`),
    averaged over origins, channels, trials and observed entries.

    Args:
        model: The model, float64.
        infer: Posterior of a model's latent paths given data.
        data: Held-out trials.
        steps: Horizons n, in latent steps.
        baselines: Training statistics by modality.
        known: Whether the baselines come from training data; otherwise VAR(1) is not reported.
        warmup: Latent steps before the first origin.
        samples: Latent draws per origin.
        seed: Seed of the draws.
        level: Probability of the band whose coverage is measured.

    Returns:
        One row per modality: ``values``, ``log_likelihood`` (nats per value), the scores of its
        kind one step ahead, and for each n ``error_n``, ``persistence_n``, ``var1_n``.

    Raises:
        PlssmError: If a horizon is not a whole number of at least 1.
    """
    horizons = sorted({1, *(int(n) for n in steps)})
    if horizons[0] < 1:
        raise PlssmError(f"score: steps are {tuple(steps)}, wanted whole numbers >= 1.")
    sticks = yardsticks(model, data, level=level)
    tallies = {m: {n: Tally(sticks[m], baselines[m]) for n in horizons} for m in sticks}
    past = 1 + max(o.memory(data.dt) for o in model.observations.values())
    size = samples * past * model.dim * int(data.lengths.max()) if past > 1 else 0
    group = max(HISTORIES // size, 1) if size else len(data)
    for first in range(0, len(data), group):
        part = data.select(trials=list(range(first, min(first + group, len(data)))))
        starts = _Starts(infer(model, part, causal=True), samples, past, seed + first)
        for b, trial in enumerate(part.trials):
            targets = {
                m: _Targets(trial, m, model.observations[m], sticks[m], baselines[m], data.dt)
                for m in sticks
            }
            blocks = _forecasts(model.dynamics, trial, starts, b, horizons[-1], warmup)
            for origin, path, generator in blocks:
                for name, target in targets.items():
                    target.score(path, origin, past, tallies[name], generator)
    wanted = [int(n) for n in steps]
    return score_table({m: _row(t, wanted, known) for m, t in tallies.items()})


def _row(tallies: dict[int, Tally], steps: list[int], known: bool) -> dict[str, float]:
    row = {"values": tallies[1].values, **tallies[1].summary()}
    for n in steps:
        row[f"error_{n}"] = tallies[n].mean("forecast")
        row[f"persistence_{n}"] = tallies[n].mean("persistence")
        row[f"var1_{n}"] = tallies[n].mean("var1") if known else np.nan
    return row


class _Targets:
    """The samples of one modality of one trial, as targets of forecasts."""

    def __init__(
        self,
        trial: Trial,
        name: str,
        observation: ObservationModel,
        yardstick: Yardstick,
        baseline: Baseline,
        dt: float,
    ) -> None:
        self.trial, self.name, self.observation, self.dt = trial, name, observation, dt
        self.y = trial.values[name]
        self.clock = trial.steps(name)
        self.nuisance = trial.nuisance.get(name)
        self.baseline = baseline
        self.held = baseline.carry_forward(yardstick.encode(self.y))
        self.yardstick = yardstick

    def score(
        self,
        path: Tensor,
        first: int,
        past: int,
        tallies: dict[int, Tally],
        generator: torch.Generator,
    ) -> None:
        """Score all horizons of forecasts from a block of origins.

        Args:
            path: States of the ``past`` steps up to each origin, the origin's last, and of those
                after it ``[S, origins, past + reach, M]``.
            first: The first origin.
            past: Number of states up to the origin.
            tallies: Where the scores go, by horizon.
            generator: Source of randomness.
        """
        driven = self._driven(path, first, past, generator)
        for n, tally in tallies.items():
            origin = self.clock - n - first
            index = np.flatnonzero((origin >= 0) & (origin < path.shape[1]))
            if not len(index):
                continue
            if driven is None:
                r = None if self.nuisance is None else torch.from_numpy(self.nuisance[index])
                features = features_ahead(
                    self.observation, path[:, origin[index]], past, n, r, self.dt
                )
            else:
                features = driven[:, origin[index], n - 1]
            self._add(features, n, index, tally)

    def _driven(
        self, path: Tensor, first: int, past: int, generator: torch.Generator
    ) -> Tensor | None:
        """Predictors of all steps ahead where counts drive later ones, ``[S, b, reach, N]``."""
        if not has_history(self.observation):
            return None
        origins = np.arange(first, first + path.shape[1])
        r = None
        if self.nuisance is not None:
            ahead = origins[:, None] + 1 + np.arange(path.shape[2] - past)
            r = torch.from_numpy(self.nuisance[np.minimum(ahead, len(self.y) - 1)])
        with torch.no_grad():
            features = self.observation.features_along(path[:, :, past:], nuisance=r, dt=self.dt)
        counts = recent_counts(self.observation, self.trial, self.name, origins, self.dt)
        return driven_by_own_draws(self.observation, features, counts, generator, self.dt)

    def _add(self, features: Tensor, n: int, index: np.ndarray, tally: Tally) -> None:
        bounded = torch.nan_to_num(features.detach(), nan=HUGE).clamp(-HUGE, HUGE)
        prediction = Prediction(self.observation, bounded[:, None], np.zeros(0))
        y = self.y[index]
        last = np.searchsorted(self.clock, self.clock[index] - n, side="right") - 1
        state = np.where((last >= 0)[:, None], self.held[np.maximum(last, 0)], 0.0)
        ahead = self.baseline.autoregress(state, index - last)
        if n == 1:
            made = tally.add_details(y, prediction, seed=int(index[0]))
        else:
            made = self.yardstick.expected(prediction)
        past, var1 = self._unscaled(state), self._unscaled(ahead)
        tally.add(y, forecast=made, persistence=past, var1=var1)

    def _unscaled(self, z: np.ndarray) -> np.ndarray:
        return z * self.baseline.sd + self.baseline.mean


class _Starts:
    """Draws of the states that forecasts start from."""

    def __init__(self, filtered: Posterior, samples: int, past: int, seed: int) -> None:
        self.samples, self.past, self.seed = samples + samples % 2, past, seed
        self._filtered = filtered
        self._histories = (
            draw_histories(filtered, self.samples, past, seed=seed) if past > 1 else None
        )

    def draw(self, b: int, where: slice, generator: torch.Generator) -> Tensor:
        """States up to each origin of a slice, the last one's own, ``[S, origins, past, M]``."""
        if self._histories is None:
            return _draws(self._filtered, b, where, self.samples, generator)[:, :, None]
        return self._histories[:, b, where]


def _forecasts(
    dynamics: LatentDynamics, trial: Trial, starts: _Starts, b: int, reach: int, warmup: int
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """Yield (first origin, paths ``[S, origins, past + reach, M]``) in blocks of origins."""
    width = starts.samples * (reach + starts.past) * dynamics.dim
    block = max(CHUNK // width, 1)
    generator = torch.Generator().manual_seed(starts.seed * 7919 + b)
    for first in range(warmup, trial.length - 1, block):
        last = min(first + block, trial.length - 1)
        before = starts.draw(b, slice(first, last), generator)
        future = _future_inputs(trial, first, last, reach)
        with torch.no_grad():
            if future is not None:
                future = future.expand(len(before), *future.shape)
            after = _antithetic_rollout(dynamics, before[:, :, -1], reach, future, generator)
        yield first, torch.cat([before, after], dim=2), generator


def _antithetic_rollout(
    dynamics: LatentDynamics,
    start: Tensor,
    steps: int,
    inputs: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Run draws ``[S, n, M]`` on; the second half uses the negated noise of the first."""
    half = (start.shape[0] + 1) // 2
    z = start
    path = []
    noise = dynamics.noise.sample((half, start.shape[1], steps), generator=generator)
    noise = torch.cat([noise, -noise])[: len(start)]
    for k in range(steps):
        z = dynamics.step(z, None if inputs is None else inputs[..., k, :]) + noise[:, :, k]
        path.append(z)
    return torch.stack(path, dim=2)


def _draws(
    posterior: Posterior, b: int, where: slice, samples: int, generator: torch.Generator
) -> Tensor:
    """Antithetic draws of the marginals of some steps of one trial, ``[S, n, M]``, S even."""
    mean, covariance = posterior.mean[b, where], posterior.covariance()[b, where]
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]
    half = (samples + 1) // 2
    noise = torch.randn((half, *mean.shape), dtype=torch.float64, generator=generator)
    deviation = torch.einsum("tij,stj->sti", root, noise)
    return mean + torch.cat([deviation, -deviation])


def _future_inputs(trial: Trial, first: int, last: int, reach: int) -> Tensor | None:
    """Inputs of the steps after each origin, ``[origins, reach, K]``; 0 beyond the trial."""
    if trial.inputs is None or trial.inputs.shape[1] == 0:
        return None
    padded = np.concatenate([trial.inputs, np.zeros((reach, trial.inputs.shape[1]))])
    index = np.arange(first, last)[:, None] + 1 + np.arange(reach)[None, :]
    return torch.from_numpy(padded[index])
