"""Scores of a model on held-out data: n-step forecasts and hidden entries, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import Tensor

from plssm.data import Dataset, Trial
from plssm.errors import PlssmError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import Posterior
from plssm.prediction import Prediction

__all__ = ["score_forecasts", "score_hidden"]

CHUNK = 4_000_000  # numbers of a block of forecast states held in memory
LEVEL = 0.95
HUGE = 1e100  # stands for predictors of a forecast that left the finite numbers


@dataclass
class _Tally:
    """Running sums over the scored entries of one modality at one horizon."""

    squares: float = 0.0
    persistence: float = 0.0
    var1: float = 0.0
    log_prob: float = 0.0
    inside: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0
    values: int = 0
    channels: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, y: np.ndarray, made: _Entries, baseline: Baseline) -> np.ndarray:
        """Add entries ``[n, N]``; returns which were observed."""
        seen = np.isfinite(y)
        scaled = np.where(seen, baseline.scale(y), 0.0)
        error = np.where(seen, scaled - baseline.scale(made.mean), 0.0)
        self.squares += float((error**2).sum())
        self.log_prob += float(np.where(seen, made.log_prob, 0.0).sum())
        self.inside += float((seen & (made.low <= y) & (y <= made.high)).sum())
        self.total += float(scaled.sum())
        self.total_squares += float((scaled**2).sum())
        self.values += int(seen.sum())
        return seen

    def mean(self, name: str) -> float:
        return getattr(self, name) / self.values if self.values else np.nan

    def r2(self) -> float:
        spread = self.total_squares - self.total**2 / max(self.values, 1)
        return 1 - self.squares / spread if self.values and spread > 0 else np.nan


@dataclass(frozen=True)
class _Entries:
    """Predictive mean, band and log density of entries, each ``[n, N]``."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    log_prob: np.ndarray

    @classmethod
    def of(cls, observation: ObservationModel, features: Tensor, y: np.ndarray) -> _Entries:
        """From predictors of latent draws ``[S, n, K]``."""
        bounded = torch.nan_to_num(features, nan=HUGE).clamp(-HUGE, HUGE)
        prediction = Prediction(observation, bounded[:, None], np.zeros(0))
        mean, variance = (x[0].numpy() for x in prediction.moments())
        if set(observation.kinds) & {"continuous", "bold"}:
            half = ndtri(0.5 + LEVEL / 2) * np.sqrt(variance)
            low, high = mean - half, mean + half
        else:
            low, high = (x[0].numpy() for x in prediction.interval(LEVEL))
        return cls(mean, low, high, prediction.log_prob(y[None])[0].numpy())


def score_forecasts(
    model: StateSpaceModel,
    data: Dataset,
    filtered: Posterior,
    *,
    steps: Sequence[int],
    baselines: Mapping[str, Baseline],
    known: bool,
    warmup: int = 10,
    samples: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    r"""n-step forecast scores from filtered starts.

    Origins are all steps t with at least ``warmup`` steps before them. From each, ``samples``
    antithetic draws of :math:`p(z_t | y_{1:t})` run n steps with process noise and known inputs;
    the forecast is the mean of the predictive mixture. Errors are squared, z-scored with the
    training mean and standard deviation, and averaged over origins, channels, trials and observed
    entries.

    Args:
        model: The model, float64.
        data: Held-out trials.
        filtered: Causal posterior of ``data``.
        steps: Horizons n, in latent steps.
        baselines: Training statistics by modality.
        known: Whether the baselines come from training data; otherwise VAR(1) is not reported.
        warmup: Latent steps before the first origin.
        samples: Latent draws per origin.
        seed: Seed of the draws.

    Returns:
        One row per modality: ``values``, ``log_likelihood`` (nats per value, one step ahead),
        ``r2`` and ``coverage_95`` (one step ahead), and for each n ``error_n``,
        ``persistence_n``, ``var1_n``.
    """
    horizons = sorted({1, *(int(n) for n in steps)})
    if horizons[0] < 1:
        raise PlssmError(f"score: steps are {tuple(steps)}, wanted whole numbers >= 1.")
    tallies = {name: {n: _Tally() for n in horizons} for name in model.observations}
    for b, trial in enumerate(data.trials):
        targets = {name: _Targets(trial, name, baselines[name]) for name in model.observations}
        for first, draws in _forecasts(model, trial, filtered, b, horizons, warmup, samples, seed):
            for name, observation in model.observations.items():
                for k, n in enumerate(horizons):
                    targets[name].score(observation, draws[:, :, k], first, n, tallies[name][n])
    wanted = [int(n) for n in steps]
    rows = {name: _row(tallies[name], wanted, known) for name in tallies}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("modality")


def _row(tallies: dict[int, _Tally], steps: list[int], known: bool) -> dict[str, float]:
    one = tallies[1]
    row = {
        "values": one.values,
        "log_likelihood": one.mean("log_prob"),
        "r2": one.r2(),
        "coverage_95": one.mean("inside"),
    }
    for n in steps:
        row[f"error_{n}"] = tallies[n].mean("squares")
        row[f"persistence_{n}"] = tallies[n].mean("persistence")
        row[f"var1_{n}"] = tallies[n].mean("var1") if known else np.nan
    return row


class _Targets:
    """The samples of one modality of one trial, as targets of forecasts."""

    def __init__(self, trial: Trial, name: str, baseline: Baseline) -> None:
        self.y = trial.values[name]
        clock = trial.clock.get(name)
        self.clock = np.arange(len(self.y)) if clock is None else np.asarray(clock)
        self.nuisance = trial.nuisance.get(name)
        self.baseline = baseline
        self.held = baseline.carry_forward(self.y)

    def score(
        self,
        observation: ObservationModel,
        z: Tensor,
        first: int,
        n: int,
        tally: _Tally,
    ) -> None:
        """Score forecasts ``[S, origins, M]`` made n steps before their targets."""
        origin = self.clock - n - first
        index = np.flatnonzero((origin >= 0) & (origin < z.shape[1]))
        if not len(index):
            return
        r = None if self.nuisance is None else torch.from_numpy(self.nuisance[index])
        features = observation.features(z[:, origin[index]], r)
        y = self.y[index]
        seen = tally.add(y, _Entries.of(observation, features.detach(), y), self.baseline)
        last = np.searchsorted(self.clock, self.clock[index] - n, side="right") - 1
        state = np.where((last >= 0)[:, None], self.held[np.maximum(last, 0)], 0.0)
        ahead = self.baseline.autoregress(state, index - last)
        scaled = np.where(seen, self.baseline.scale(y), 0.0)
        tally.persistence += float((np.where(seen, scaled - state, 0.0) ** 2).sum())
        tally.var1 += float((np.where(seen, scaled - ahead, 0.0) ** 2).sum())


def _forecasts(model, trial, filtered, b, horizons, warmup, samples, seed):  # noqa: ANN001, ANN202
    """Yield (first origin, draws ``[S, origins, horizons, M]``) in blocks of origins."""
    dynamics, length, reach = model.dynamics, trial.length, max(horizons)
    block = max(CHUNK // (samples * reach * model.dim), 1)
    generator = torch.Generator().manual_seed(seed * 7919 + b)
    keep = torch.tensor([n - 1 for n in horizons])
    for first in range(warmup, length - 1, block):
        last = min(first + block, length - 1)
        start = _draws(filtered, b, slice(first, last), samples, generator)
        future = _future_inputs(trial, first, last, reach)
        with torch.no_grad():
            if future is not None:
                future = future.expand(len(start), *future.shape)
            z = _antithetic_rollout(dynamics, start, reach, future, generator)
        yield first, z[:, :, keep]


def _antithetic_rollout(dynamics, start, steps, inputs, generator):  # noqa: ANN001, ANN202
    """Run draws ``[S, n, M]`` on; the second half uses the negated noise of the first."""
    half = start.shape[0] // 2
    z = start
    path = []
    noise = dynamics.noise.sample((half, start.shape[1], steps), generator=generator)
    noise = torch.cat([noise, -noise])
    for k in range(steps):
        z = dynamics.step(z, None if inputs is None else inputs[..., k, :]) + noise[:, :, k]
        path.append(z)
    return torch.stack(path, dim=2)


def _draws(
    posterior: Posterior, b: int, where: slice, samples: int, generator: torch.Generator
) -> Tensor:
    """Antithetic draws of the marginals of some steps of one trial, ``[S, n, M]``."""
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


def score_hidden(
    model: StateSpaceModel,
    data: Dataset,
    smoothed: Posterior,
    *,
    baselines: Mapping[str, Baseline],
    samples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of exactly the hidden entries, predicted from everything that was left visible.

    Args:
        model: The model, float64.
        data: Trials with hidden entries (``Dataset.hold_out``).
        smoothed: Posterior of ``data`` given the visible entries.
        baselines: Training statistics by modality.
        samples: Latent draws per step.
        seed: Seed of the draws.

    Returns:
        One row per modality with hidden entries: ``values``, ``log_likelihood`` (nats per
        value), ``r2``, ``error`` (squared, z-scored), ``coverage_95``.
    """
    rows = {}
    generator = torch.Generator().manual_seed(seed)
    for name, observation in model.observations.items():
        tally = _Tally()
        for b, trial in enumerate(data.trials):
            if name not in trial.hidden:
                continue
            y = trial.hidden[name]
            index = np.flatnonzero(np.isfinite(y).any(1))
            if not len(index):
                continue
            clock = trial.clock.get(name)
            at = index if clock is None else np.asarray(clock)[index]
            z = _draws(smoothed, b, slice(0, trial.length), samples, generator)[:, at]
            r = trial.nuisance.get(name)
            block = max(CHUNK // (samples * observation.channels), 1)
            for first in range(0, len(index), block):
                part = slice(first, first + block)
                known = None if r is None else torch.from_numpy(r[index[part]])
                features = observation.features(z[:, part], known).detach()
                seen = y[index[part]]
                tally.add(seen, _Entries.of(observation, features, seen), baselines[name])
        if tally.values:
            rows[name] = {
                "values": tally.values,
                "log_likelihood": tally.mean("log_prob"),
                "r2": tally.r2(),
                "error": tally.mean("squares"),
                "coverage_95": tally.mean("inside"),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("modality")
