"""Data-driven start of a fit: a first guess of the latent path, read off the data."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.model import StateSpaceModel

__all__ = ["start_path"]

MAX_LAG_BLOCKS = 64


def start_path(model: StateSpaceModel, batch: Batch, *, rotate: int | None = None) -> np.ndarray:
    """Principal components of the (delay-embedded) data as a first latent path.

    Every modality gives a real-valued stand-in for its data; gaps are interpolated, channels are
    standardised, and where there are fewer channels than latent dimensions lagged copies are
    added (a delay embedding) before the principal components are taken. Components have unit
    variance.

    Args:
        model: The model (its observation models supply the stand-ins).
        batch: The trials.
        rotate: Seed of a random rotation of the latent axes; None leaves the components as they
            are. Hinges act along the latent axes, so restarts from different rotations start
            from truly different piecewise-linear maps.

    Returns:
        Paths ``[B, T, M]``, zeros beyond a trial's end.
    """
    columns = [
        _on_latent_clock(observation.start_signal(batch.modalities[name]), batch, name)
        for name, observation in model.observations.items()
    ]
    signals = np.concatenate(columns, axis=-1)
    inside = batch.time_mask.numpy()
    signals = _standardise(signals, inside)
    lags = min(-(-model.dim // signals.shape[-1]), MAX_LAG_BLOCKS, batch.steps)
    embedded = _delay_embed(signals, 3 * lags if lags > 1 else 1)
    scores = _components(embedded, inside, model.dim)
    if rotate is not None:
        gaussian = np.random.default_rng(rotate).standard_normal((model.dim, model.dim))
        scores = scores @ np.linalg.qr(gaussian)[0]
    scores[~inside] = 0.0
    return np.ascontiguousarray(scores)


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
