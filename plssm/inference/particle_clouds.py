"""Weighted particles moving through a batch of trials, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from plssm.data import Batch, Modality
from plssm.inference.particle_guide import Tilt, Transition, guide_terms, look_ahead, no_terms
from plssm.inference.quadratic_chain import QuadraticTerms
from plssm.inference.step_samples import on_grid
from plssm.kernels.particle_steps import effective_size, particle_steps, resampled
from plssm.model import StateSpaceModel

__all__ = ["Cloud", "ParticleFilter", "log_mean"]

THRESHOLD = 0.5  # particles are resampled below this share of effective ones
DEFENSIVE = 0.01  # share of proposals and resampling that do not trust an inexact guide
NEVER = -1e300  # log weight of a particle that cannot be
CHUNK = 2_000_000  # numbers that one compiled call gives back


def log_mean(weight: np.ndarray) -> np.ndarray:
    """Log of the mean weight over the last axis."""
    best = weight.max(-1, keepdims=True)
    return best[..., 0] + np.log(np.exp(weight - best).mean(-1))


@dataclass(frozen=True)
class Cloud:
    """The particles of one step.

    Args:
        t: The step.
        z: Particles ``[R, B, P, M]`` of R independent filters.
        weight: Log weights ``[R, B, P]``; their log mean is the log evidence up to here.
        effective: Effective effective number of particles in this step ``[R, B]``.
        past: Last w + 1 states of each ``[R, B, P, w + 1, M]``, newest first; None without memory.
    """

    t: int
    z: np.ndarray
    weight: np.ndarray
    effective: np.ndarray
    past: np.ndarray | None = None


class StepDensities:
    """Log-density of the samples of one step for particles, to the power of their tempering.

    Args:
        model: The model, float64.
        batch: Trials.
    """

    def __init__(self, model: StateSpaceModel, batch: Batch) -> None:
        self.lags = 1 + max(o.memory(batch.dt) for o in model.observations.values())
        self.parts = []
        for name, observation in model.observations.items():
            m = batch.modalities[name]
            with torch.no_grad():  # covariates may be functions of earlier observations
                grid = on_grid(replace(m, nuisance=observation.covariates(m)), batch.steps)
            seen = grid.mask.any(-1).any(-1).numpy()
            weights = observation.lag_weights(batch.dt).detach()
            weights = weights if observation.memory(batch.dt) else None
            self.parts.append((observation, grid, seen, weights))

    def __call__(
        self, t: int, z: np.ndarray, past: np.ndarray | None, trials: slice
    ) -> np.ndarray:
        """Of the samples of step t, for particles ``[R, B, P, M]`` of some trials."""
        total = np.zeros(z.shape[:3])
        for observation, grid, seen, weights in self.parts:
            rows = np.flatnonzero(seen[trials, t])
            if not rows.size:
                continue
            y, mask = grid.y[trials, t][rows], grid.mask[trials, t][rows]
            m = Modality(y, mask, dt=grid.dt)
            covariates = None if grid.nuisance is None else grid.nuisance[trials, t][rows]
            with torch.no_grad():
                if weights is None:
                    states = torch.from_numpy(z[:, rows]).movedim(1, 2)[..., None, :]
                    states = states.expand(*states.shape[:3], m.y.shape[1], -1)
                    eta = observation.features(states, covariates)
                else:
                    held = torch.from_numpy(past[:, rows, :, : weights.shape[1]]).movedim(1, 2)
                    eta = torch.einsum("rpblm,nlm->rpbn", held, weights)[..., None, :]
                    eta = eta + observation.bias
                    if covariates is not None and observation.n_covariates:
                        eta = eta + covariates @ observation.nuisance_weight.mT
                    eta = eta.expand(*eta.shape[:3], m.y.shape[1], -1)
                value = observation.masked_log_prob(eta, m).sum((-2, -1)).movedim(2, 1)
            total[:, rows] += float(observation.tempering) * value.numpy()
        return np.where(np.isfinite(total), total, NEVER)


class ParticleFilter:
    """Independent particle filters of a few trials.

    Args:
        model: The model, float64.
        batch: The trials.
        particles: Number P of particles.
        runs: Number R of independent filters.
        proposal: "guided", "lookahead" or "bootstrap".
        seed: Seed.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        batch: Batch,
        *,
        particles: int,
        runs: int,
        proposal: str,
        seed: int,
    ) -> None:
        self.particles, self.runs, self.seed = particles, runs, seed
        self.steps, self.dim = batch.steps, model.dim
        self.transition = Transition.of(model.dynamics, batch)
        shape = (len(batch), batch.steps, model.dim)
        self.terms, exact = guide_terms(model, batch, self.transition)
        self.exact = self.terms if exact else None
        self.densities = None if exact else StepDensities(model, batch)
        self.memory = 0 if exact else self.densities.lags - 1
        self.constant = self.terms.constant if exact else np.zeros(len(batch))
        self.trusted = exact and proposal == "guided"
        if proposal == "bootstrap":
            self.terms = no_terms(shape)
        elif proposal == "lookahead":
            self.terms = look_ahead(model, batch, self.transition)
        self.careful = not self.trusted and bool(self.terms.information.any())
        r, q = self.terms.information, self.terms.score
        self.first = Tilt.of(self.transition.initial_covariance, r[:, :1], q[:, :1])
        self.later = Tilt.of(self.transition.covariance, r, q)
        self.prior_root = np.linalg.cholesky(self.transition.covariance)
        self.initial_root = np.linalg.cholesky(self.transition.initial_covariance)

    def clouds(self, trials: slice) -> Iterator[Cloud]:
        """The particles of some trials after every step; the same each time."""
        block = _Block(self, trials)
        yield block.start()
        if self.transition.form is None or self.densities is not None:
            for t in range(1, block.steps):
                yield block.move(t)
        else:
            yield from block.compiled_moves()


class _Block:
    """Some trials of a filter, with their random streams: a trial's do not depend on others."""

    def __init__(self, run: ParticleFilter, trials: slice) -> None:
        self.run, self.trials = run, trials
        self.transition = run.transition.select(trials)
        self.count = len(self.transition.length)
        self.steps = int(self.transition.length.max())
        numbers = range(*trials.indices(len(run.transition.length)))
        self.rng = [
            [np.random.default_rng([run.seed, 0, b, r]) for b in numbers] for r in range(run.runs)
        ]

    def _drawn(self, method: str, *shape: int) -> np.ndarray:
        return np.array([[getattr(g, method)(shape) for g in row] for row in self.rng])

    def _of(self, part: np.ndarray) -> np.ndarray:
        return part[self.trials] if len(part) > 1 else part

    def start(self) -> Cloud:
        """The particles of the first step."""
        run = self.run
        past = None
        if run.memory:
            past = np.zeros((run.runs, self.count, run.particles, run.memory + 1, run.dim))
        ahead = np.tile(self.transition.initial_mean[:, None], (run.runs, 1, run.particles, 1))
        weight = np.zeros(ahead.shape[:3])
        self.cloud = self._moved(0, ahead, weight, past, run.first, run.initial_root)
        return self.cloud

    @np.errstate(over="ignore", invalid="ignore")
    def move(self, t: int) -> Cloud:
        """The particles of another step."""
        before = self.cloud
        ahead = self.transition.after(before.z, t)
        past = None
        if before.past is not None:
            past = np.concatenate([before.past[..., :1, :], before.past[..., :-1, :]], axis=3)
        self.cloud = self._moved(
            t, ahead, before.weight, past, self.run.later, self.run.prior_root
        )
        return self.cloud

    def _moved(
        self,
        t: int,
        ahead: np.ndarray,
        weight: np.ndarray,
        past: np.ndarray | None,
        tilt: Tilt,
        prior_root: np.ndarray,
    ) -> Cloud:
        """Resample by the guide's normaliser, draw, and weigh what was drawn."""
        run = self.run
        gain, shift, root, slope, bend, level = (self._of(part)[:, None] for part in tilt.at(t))
        promise = level + ((slope - 0.5 * (ahead @ bend[:, 0])) * ahead).sum(-1)
        promise = np.where(np.isfinite(promise), promise, NEVER)
        effective = effective_size(weight + promise)
        if t:
            ahead, weight, promise, past = self._resampled(effective, ahead, weight, promise, past)
        noise = self._drawn("standard_normal", run.particles, run.dim)
        z = ahead @ gain[:, 0].swapaxes(-1, -2) + shift + noise @ root[:, 0].swapaxes(-1, -2)
        if run.careful:
            plain = self._drawn("random", run.particles)[..., None] < DEFENSIVE
            z = np.where(plain, ahead + noise @ prior_root.T, z)
        if past is not None:
            past[..., 0, :] = z
        weight = weight + self._gained(t, z, past, promise)
        alive = weight > NEVER  # the path of the others may have overflowed
        weight, z = np.where(alive, weight, NEVER), np.where(alive[..., None], z, 0.0)
        return Cloud(t, z, weight, effective, past)

    def _gained(
        self, t: int, z: np.ndarray, past: np.ndarray | None, promise: np.ndarray
    ) -> np.ndarray:
        """Log of likelihood times transition density over that of the proposal."""
        run = self.run
        if run.trusted:
            return promise
        if run.exact is not None:
            density = self._value(run.exact, t, z)
        else:
            density = run.densities(t, z, past, self.trials)
        if not run.careful:
            return density
        ratio = self._value(run.terms, t, z) - promise + np.log1p(-DEFENSIVE)
        return density - np.logaddexp(ratio, np.log(DEFENSIVE))

    def _value(self, terms: QuadraticTerms, t: int, z: np.ndarray) -> np.ndarray:
        bend = self._of(terms.information)[:, t if terms.information.shape[1] > 1 else 0]
        return ((terms.score[self.trials, t][:, None] - 0.5 * (z @ bend)) * z).sum(-1)

    def _resampled(
        self,
        effective: np.ndarray,
        ahead: np.ndarray,
        weight: np.ndarray,
        promise: np.ndarray,
        past: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Resample the filters with few effective particles, by weight times promise."""
        share = DEFENSIVE if self.run.careful else 0.0
        ahead, weight, promise = ahead.copy(), weight.copy(), promise.copy()
        for r, b in np.argwhere(effective < THRESHOLD * self.run.particles):
            place, rng = (r, b), self.rng[r][b]
            chosen, weight[place] = resampled(weight[place], promise[place], share, rng)
            ahead[place], promise[place] = ahead[place][chosen], promise[place][chosen]
            if past is not None:
                past[place] = past[place][chosen]
        return ahead, weight, promise, past

    def compiled_moves(self) -> Iterator[Cloud]:
        """All later steps of a map with ReLU form under exact quadratic terms."""
        run, form = self.run, self.transition.form
        arrays = form.linear, form.bias, form.outer, form.inner, form.offset
        z, weight = self.cloud.z.copy(), self.cloud.weight.copy()
        chunk = max(CHUNK // max(z.size, 1), 1)
        for first in range(1, self.steps, chunk):
            last = min(first + chunk, self.steps)
            paths = np.empty((last - first, *z.shape))
            weights, effective = np.empty(paths.shape[:4]), np.empty(paths.shape[:3])
            for r, b in np.ndindex(*z.shape[:2]):
                trial = self.trials.start + b
                paths[:, r, b], weights[:, r, b], effective[:, r, b] = particle_steps(
                    arrays, z[r, b], weight[r, b], self.rng[r][b],
                    drive=self.transition.drive[b, first:last],
                    guide=run.later.of_trial(trial, first, last),
                    terms=None if run.trusted else _terms_of(run.exact, trial, first, last),
                    careful=self._careful(trial, first, last),
                    threshold=THRESHOLD,
                )  # fmt: skip
            z, weight = paths[-1], weights[-1]
            for k in range(last - first):
                yield Cloud(first + k, paths[k], weights[k], effective[k])

    def _careful(self, trial: int, first: int, last: int) -> tuple | None:
        """What the compiled steps need where the guide is not the terms themselves."""
        if not self.run.careful:
            return None
        return DEFENSIVE, *_terms_of(self.run.terms, trial, first, last), self.run.prior_root


def _terms_of(
    terms: QuadraticTerms, b: int, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Terms q and R of some steps of one trial."""
    bend = terms.information[b if len(terms.information) > 1 else 0]
    return terms.score[b, first:last], bend[first:last] if len(bend) > 1 else bend
