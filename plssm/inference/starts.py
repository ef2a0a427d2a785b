"""Data-driven start of a fit: a first guess of the latent path, read off the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.linear import LinearDynamics
from plssm.inference.batch_windows import BatchWindow
from plssm.inference.laplace import laplace_posterior
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = [
    "StartPath",
    "components_of",
    "first_state",
    "linear_model",
    "memory",
    "observed_path",
    "predictable_path",
    "stand_ins",
    "state_dim",
    "state_path",
    "turn",
]

MAX_LAG_BLOCKS = 64
LARGEST = 50_000_000  # numbers in the windows of all steps; longer data get shorter windows
WINDOW = 10  # steps of the past, and of the future, between which a path is sought


def state_dim(model: StateSpaceModel) -> int:
    """Dimension of the linear state a fit starts from: the channels', within 3 and M."""
    channels = sum(observation.channels for observation in model.observations.values())
    return min(max(channels, 3), model.dim)


def state_path(model: StateSpaceModel, batch: Batch, dim: int) -> StartPath:
    """Principal components of the (delay-embedded) data as a first latent path.

    Every modality gives a real-valued stand-in for its data; gaps are interpolated, channels are
    standardised, and where there are fewer channels than dimensions lagged copies are added (a
    delay embedding) before the principal components are taken. Components have unit variance.

    Args:
        model: The model (its observation models supply the stand-ins).
        batch: The trials.
        dim: Number of components.

    Returns:
        The path, taken as known.
    """
    return StartPath.certain(components_of(*stand_ins(model, batch), dim), batch)


def components_of(signals: np.ndarray, inside: np.ndarray, dim: int) -> np.ndarray:
    """Principal components of unit variance, of delays too where there are too few signals.

    Args:
        signals: ``[B, T, N]``.
        inside: Which steps exist, bool ``[B, T]``.
        dim: Number of components.

    Returns:
        ``[B, T, dim]``, zeros beyond a trial's end.
    """
    lags = min(-(-dim // signals.shape[-1]), MAX_LAG_BLOCKS, signals.shape[1])
    embedded = _delay_embed(signals, 3 * lags if lags > 1 else 1)
    scores = _components(embedded, inside, dim)
    scores[~inside] = 0.0
    return np.ascontiguousarray(scores)


def predictable_path(model: StateSpaceModel, batch: Batch, dim: int) -> StartPath:
    r"""What the past of the stand-ins tells about their future, as a first latent path.

    .. math:: x_t = \tfrac12 (U^\top \tilde f_t + V^\top \tilde p_t), \qquad
              \mathrm{Cov}(\tilde f, \tilde p) = U S V^\top

    The leading canonical variates of the next and the last ten steps (whitened f and p). Noise
    that is new at every step has no part in this covariance across time: labels and counts, whose
    principal components jump with every sample, give a path that changes as slowly as what they
    share with the latent state does.

    Args:
        model: The model (its observation models supply the stand-ins).
        batch: The trials.
        dim: Number of variates; they have unit variance.

    Returns:
        The path, taken as known; that of :func:`state_path` where there are too few data.

    References:
        Van Overschee & De Moor (1996), Subspace identification for linear systems, Kluwer,
        doi:10.1007/978-1-4613-0465-4.
    """
    signals, inside = stand_ins(model, batch)
    flat = signals[inside]
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2]
    signals = (signals - flat.mean(0)) @ axes[: 3 * dim].T
    window = min(WINDOW, batch.steps // 4, LARGEST // max(signals[inside].size, 1))
    columns = window * signals.shape[-1]
    if columns < dim or inside.sum() < 3 * columns:
        return state_path(model, batch, dim)
    steps = np.arange(batch.steps)
    shifts = [np.minimum(steps + j, steps[-1]) for j in range(window)]
    future = _whitened(np.concatenate([signals[:, s] for s in shifts], axis=-1)[inside])
    shifts = [np.maximum(steps - j, 0) for j in range(1, window + 1)]
    past = _whitened(np.concatenate([signals[:, s] for s in shifts], axis=-1)[inside])
    left, _, right = np.linalg.svd(future.T @ past / len(past))
    shared = future @ left[:, :dim] + past @ right[:dim].T
    path = np.zeros((*inside.shape, dim))
    path[inside] = shared / np.maximum(shared.std(0), 1e-12)
    return StartPath.certain(path, batch)


def _whitened(x: np.ndarray) -> np.ndarray:
    """Centred rows in coordinates of about unit covariance; tiny directions stay tiny."""
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0.0) + 1e-3 * max(values[-1], 1e-12)
    return x @ (vectors / np.sqrt(values))


def stand_ins(model: StateSpaceModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Standardised stand-ins of all modalities ``[B, T, N]``, and which steps exist."""
    columns = [
        _on_latent_clock(observation.start_signal(batch.modalities[name]), batch, name)
        for name, observation in model.observations.items()
    ]
    inside = batch.time_mask.numpy()
    return _standardise(np.concatenate(columns, axis=-1), inside), inside


@dataclass(frozen=True)
class StartPath:
    """Gaussian guess of the latent path, with the moments an M-step needs.

    Args:
        mean: ``[B, T, M]``, zeros beyond a trial's end.
        lags: Cov(z_t, z_{t+l}), ``[B, T, w+1, M, M]`` with w >= 1.
        length: Latent steps of each trial ``[B]``.
    """

    mean: np.ndarray
    lags: np.ndarray
    length: torch.Tensor

    @classmethod
    def certain(cls, path: np.ndarray, batch: Batch) -> StartPath:
        """A path taken as known."""
        return cls(path, np.zeros((*path.shape[:2], 2, *path.shape[2:] * 2)), batch.length)

    @classmethod
    def of(cls, posterior: GaussianChain, model: StateSpaceModel, batch: Batch) -> StartPath:
        """A posterior, with as many lags as the model's observations remember."""
        return cls(
            posterior.arrays()[0], posterior.lagged(max(memory(model, batch), 1)), batch.length
        )

    def within(self, window: BatchWindow) -> StartPath:
        """The path of some windows."""
        steps = np.arange(window.batch.steps)
        at = np.minimum(window.start.numpy()[:, None] + steps, self.mean.shape[1] - 1)
        row = window.row.numpy()[:, None]
        inside = window.batch.time_mask.numpy()
        mean = np.where(inside[..., None], self.mean[row, at], 0.0)
        lags = np.where(inside[..., None, None, None], self.lags[row, at], 0.0)
        return StartPath(mean, lags, window.batch.length)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, covariance and cross-covariance, as a GaussianChain gives them."""
        return self.mean, self.lags[:, :, 0], self.lags[:, :-1, 1]

    def lagged(self, w: int) -> np.ndarray:
        """Covariances up to lag w ``[B, T, w+1, M, M]``; unknown ones are 0."""
        known = self.lags[:, :, : w + 1]
        missing = w + 1 - known.shape[2]
        return np.pad(known, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))

    def mapped(self, mean: np.ndarray, weights: np.ndarray) -> StartPath:
        """Moments of an affine map of the path whose mean is known ``[B, T, M']``."""
        return StartPath(np.ascontiguousarray(mean), weights @ self.lags @ weights.T, self.length)


def memory(model: StateSpaceModel, batch: Batch) -> int:
    """Number of earlier latent steps that any observation depends on."""
    return max(o.memory(batch.dt) for o in model.observations.values())


def turn(path: StartPath, *, seed: int) -> StartPath:
    """The path in randomly rotated latent axes; seed 0 leaves them as they are."""
    dim = path.mean.shape[2]
    if not seed:
        return path
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
    return path.mapped(path.mean @ q.T, q)


def observed_path(model: StateSpaceModel, batch: Batch) -> StartPath:
    """Latent path that known observation models see in the data, under a slow random walk.

    Args:
        model: Model whose observation parameters are known; its dynamics are not used.
        batch: The trials.

    Returns:
        The path with the moments of its posterior.
    """
    unit = np.ones(model.dim)
    walk = LinearDynamics.from_parameters(A=0.95 * np.eye(model.dim), process_noise=unit)
    known = StateSpaceModel(walk, dict(model.observations))
    posterior = laplace_posterior(known, batch).posterior
    return StartPath.of(posterior, model, batch)


def _on_latent_clock(signal: torch.Tensor, batch: Batch, name: str) -> np.ndarray:
    """Samples of one modality interpolated to every latent step, ``[B, T, N]``."""
    modality = batch.modalities[name]
    values, mask = signal.detach().numpy(), modality.mask.numpy()
    clock = None if modality.clock is None else modality.clock.numpy()
    trials, samples, channels = values.shape
    out = np.full((trials, batch.steps, channels), np.nan)
    grid = np.arange(batch.steps)
    for b in range(trials):
        steps = np.arange(samples) if clock is None else clock[b]
        for n in range(channels):
            seen = mask[b, :, n] if channels == mask.shape[2] else mask[b].any(-1)
            if seen.any():
                out[b, :, n] = np.interp(grid, steps[seen], values[b, seen, n])
    return out


def _standardise(signals: np.ndarray, inside: np.ndarray) -> np.ndarray:
    flat = np.ma.masked_invalid(signals[inside])
    mean, sd = flat.mean(0).filled(0.0), flat.std(0).filled(0.0)
    scaled = (signals - mean) / np.where(sd > 0, sd, 1.0)
    scaled = np.nan_to_num(scaled)
    scaled[~inside] = 0.0
    return scaled


def _delay_embed(signals: np.ndarray, lags: int) -> np.ndarray:
    """Append copies of the signals shifted back in time (first sample held)."""
    steps = np.arange(signals.shape[1])
    return np.concatenate([signals[:, np.maximum(steps - k, 0)] for k in range(lags)], axis=-1)


def _components(signals: np.ndarray, inside: np.ndarray, dim: int) -> np.ndarray:
    """Leading principal components with unit variance; missing ones are small noise."""
    flat = signals[inside]
    _, singular, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    keep = min(dim, int((singular > 1e-8 * max(singular[0], 1e-300)).sum()))
    scale = singular[:keep] / np.sqrt(len(flat))
    scores = (signals - flat.mean(0)) @ (axes[:keep] / scale[:, None]).T
    missing = dim - keep
    if missing:
        filler = np.random.default_rng(0).standard_normal((*scores.shape[:2], missing))
        scores = np.concatenate([scores, 0.1 * filler], axis=-1)
    return scores


def first_state(model: StateSpaceModel, batch: Batch, dim: int) -> StartPath:
    """A first guess of a linear state: components of the data, smooth where they jump.

    Args:
        model: The model.
        batch: The trials.
        dim: Dimensions of the state.
    """
    quadratic = all(o.quadratic for o in model.observations.values())
    return (state_path if quadratic else predictable_path)(model, batch, dim)


def linear_model(model: StateSpaceModel) -> StateSpaceModel:
    """A fresh linear model of the state, seen in the same way.

    Args:
        model: The model.
    """
    dynamics = model.dynamics
    linear = LinearDynamics(
        state_dim(model), dynamics.n_inputs, input_at_start=dynamics.input_at_start
    )
    copies = {n: type(o).from_config(o.config()) for n, o in model.observations.items()}
    for name, copied in copies.items():
        copied.tempering.copy_(model.observations[name].tempering)
    return StateSpaceModel(linear, copies)
