"""How far one-step predictions of a filter are off, in units of what it expects."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Dataset, Trial
from plssm.errors import CapabilityError
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian
from plssm.posterior import Posterior

__all__ = ["mean_nis"]


def mean_nis(model: StateSpaceModel, filtered: Posterior, data: Dataset) -> float:
    r"""Normalised innovation squared per observed entry; near one for a model that is right.

    .. math:: \frac{\sum_t v_t^\top S_t^{-1} v_t}{\sum_t n_t}, \qquad
        v_t = y_t - B\, r(m_t^-) - b, \quad S_t = B_t P_t^- B_t^\top + \Gamma

    over the observed entries of all Gaussian modalities of a step together, with B_t the slope of
    the read-out at the predicted mean. Larger values say that the filter is too sure of itself,
    smaller ones that it expects more noise than there is.

    Args:
        model: The model.
        filtered: Its causal posterior, with ``predicted_mean`` and ``predicted_covariance``.
        data: The trials.

    Returns:
        The mean, NaN where nothing was observed.

    Raises:
        CapabilityError: If no modality is Gaussian, or the filter has no predictions.

    References:
        Bar-Shalom, Li and Kirubarajan 2001, Estimation with Applications to Tracking and
        Navigation, section 5.4.
    """
    names = [n for n, o in model.observations.items() if isinstance(o, Gaussian)]
    if not names:
        raise CapabilityError("no modality has Gaussian observations of the present state")
    mean = getattr(filtered, "predicted_mean", None)
    if mean is None:
        raise CapabilityError(f"a {type(filtered).__name__} has no one-step predictions")
    total, count = 0.0, 0
    for b, trial in enumerate(data.trials):
        made = mean[b][: trial.length], filtered.predicted_covariance[b][: trial.length].numpy()
        parts = [
            _by_step(trial.length, *_rows(model.observations[n], trial, n, made[0], data.dt))
            for n in names
        ]
        off, slope, noise = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        seen = np.isfinite(off)
        off, noise = np.where(seen, off, 0.0), np.where(seen, noise, 1.0)  # nothing seen adds 0
        slope = np.where(seen[..., None], slope, 0.0)
        spread = slope @ made[1] @ slope.swapaxes(1, 2) + noise[:, :, None] * np.eye(off.shape[1])
        total += float((off * np.linalg.solve(spread, off[..., None])[..., 0]).sum())
        count += int(seen.sum())
    return total / count if count else float("nan")


def _by_step(
    length: int, steps: np.ndarray, off: np.ndarray, slope: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Samples of a modality in rows of their steps [T, K, ...], as many as a step has at most."""
    turn = np.arange(len(steps)) - np.searchsorted(steps, steps)  # samples of a step before this
    most, n = int(turn.max(initial=0)) + 1, off.shape[1]
    made = []
    for x, empty in ((off, np.nan), (slope, 0.0), (noise, 1.0)):
        rows = np.full((length, most, *x.shape[1:]), empty)
        rows[steps, turn] = x
        made.append(rows.reshape(length, most * n, *x.shape[2:]))
    return tuple(made)


def _rows(
    observation: Gaussian, trial: Trial, name: str, mean: torch.Tensor, dt: float
) -> tuple[np.ndarray, ...]:
    """Steps [n], innovations [n, N], slopes [n, N, M] and noise [n, N] of the samples."""
    steps = trial.steps(name)
    regressors = trial.nuisance.get(name)
    with torch.no_grad():
        expected = observation.features_along(
            mean,
            clock=torch.from_numpy(steps),
            nuisance=None if regressors is None else torch.from_numpy(regressors),
            dt=dt,
        )
        slope = observation.readout.slope(mean[steps])
        slope = torch.ones_like(mean[steps]) if slope is None else slope
        rows = slope[:, None, :] * observation.weight
        noise = observation.noise.expand_as(expected)
    return steps, trial.values[name] - expected.numpy(), rows.numpy(), noise.numpy()
