"""Data-driven start of a fit: a first guess of the latent path, read off the data."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.linear import LinearDynamics
from plssm.inference.laplace import laplace_posterior
from plssm.model import StateSpaceModel

__all__ = ["lift", "observed_path", "state_dim", "state_path"]

MAX_LAG_BLOCKS = 64


def state_dim(model: StateSpaceModel) -> int:
    """Dimension of the linear state a fit starts from: the channels', within 3 and M."""
    channels = sum(observation.channels for observation in model.observations.values())
    return min(max(channels, 3), model.dim)


def state_path(model: StateSpaceModel, batch: Batch, dim: int) -> np.ndarray:
    """Principal components of the (delay-embedded) data as a first latent path.

    Every modality gives a real-valued stand-in for its data; gaps are interpolated, channels are
    standardised, and where there are fewer channels than dimensions lagged copies are added (a
    delay embedding) before the principal components are taken. Components have unit variance.

    Args:
        model: The model (its observation models supply the stand-ins).
        batch: The trials.
        dim: Number of components.

    Returns:
        Paths ``[B, T, dim]``, zeros beyond a trial's end.
    """
    columns = [
        _on_latent_clock(observation.start_signal(batch.modalities[name]), batch, name)
        for name, observation in model.observations.items()
    ]
    signals = np.concatenate(columns, axis=-1)
    inside = batch.time_mask.numpy()
    signals = _standardise(signals, inside)
    lags = min(-(-dim // signals.shape[-1]), MAX_LAG_BLOCKS, batch.steps)
    embedded = _delay_embed(signals, 3 * lags if lags > 1 else 1)
    scores = _components(embedded, inside, dim)
    scores[~inside] = 0.0
    return np.ascontiguousarray(scores)


def lift(path: np.ndarray, inside: np.ndarray, dim: int, *, seed: int) -> np.ndarray:
    r"""Affine features of a state path whose hinges are spread over the data.

    .. math:: z_i = v_i^\top (x - x_{\tau_i}), \qquad |v_i| = 1

    with random directions v (orthogonal as far as they can be) of the whitened state x, and
    random data points for the offsets. Regressing the next z on relu(z) then is a regression on
    random hinges, and the observations stay a linear function of z.

    Args:
        path: State paths ``[B, T, k]``.
        inside: Which steps exist, bool ``[B, T]``.
        dim: Number of features M.
        seed: Seed of directions and offsets: restarts differ by it.

    Returns:
        Lifted paths ``[B, T, M]``, zeros beyond a trial's end.
    """
    rng = np.random.default_rng(seed)
    flat = path[inside]
    centre = flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov(flat.T).reshape(flat.shape[1], -1))
    scale = np.sqrt(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))
    white = (path - centre) @ (vectors / scale)
    k = path.shape[2]
    blocks = [np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in range(-(-dim // k))]
    directions = np.concatenate(blocks)[:dim]
    at = white[inside][rng.integers(len(flat), size=dim)]
    lifted = white @ directions.T - (directions * at).sum(1)
    lifted[~inside] = 0.0
    return np.ascontiguousarray(lifted)


def observed_path(model: StateSpaceModel, batch: Batch) -> np.ndarray:
    """Latent path that known observation models see in the data, under a slow random walk.

    Args:
        model: Model whose observation parameters are known; its dynamics are not used.
        batch: The trials.

    Returns:
        Paths ``[B, T, M]``, zeros beyond a trial's end.
    """
    walk = LinearDynamics.from_parameters(A=0.95 * np.eye(model.dim), process_noise=np.ones(model.dim))
    return laplace_posterior(StateSpaceModel(walk, dict(model.observations)), batch).path


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
            seen = mask[b, :, min(n, mask.shape[2] - 1)]
            if seen.any():
                out[b, :, n] = np.interp(grid, steps[seen], values[b, seen, n])
    return out


def _standardise(signals: np.ndarray, inside: np.ndarray) -> np.ndarray:
    flat = signals[inside]
    mean, sd = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
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
