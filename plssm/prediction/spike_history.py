"""Predictors of the future of models whose observations drive their own successors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plssm.data import Trial
from plssm.observations.base import ObservationModel

__all__ = ["driven_by_own_draws", "has_history", "recent_counts"]


def has_history(observation: ObservationModel) -> bool:
    """Whether observations depend on earlier ones besides the latent path (spike history)."""
    return getattr(observation, "history", None) is not None


def recent_counts(
    observation: ObservationModel, trial: Trial, name: str, last: np.ndarray, dt: float
) -> Tensor:
    """Counts up to and including some steps, ``[len(last), L, N]``; NaN before the trial."""
    lags = observation.history.lags(dt)
    y = np.concatenate([np.full((lags, observation.channels), np.nan), trial.values[name]])
    return torch.from_numpy(y[np.asarray(last)[:, None] + 1 + np.arange(lags)])


def driven_by_own_draws(
    observation: ObservationModel,
    features: Tensor,
    past: Tensor,
    generator: torch.Generator,
    dt: float,
) -> Tensor:
    r"""Add to predictors what comes from past counts, those after the origin drawn.

    .. math:: \eta_k^{(s)} = \eta_k(z^{(s)}) + \sum_l K_l \, y_{k-l}^{(s)}

    Every latent draw gets one draw of the counts it leads to, so that the mixture over draws is
    the predictive distribution of each step.

    Args:
        observation: A model with spike history.
        features: Predictors without history of consecutive steps ``[S, b, n, N]``.
        past: Counts up to the step before the first ``[b, L, N]``; NaN = not known.
        generator: Source of randomness.
        dt: Seconds per latent step.

    Returns:
        ``[S, b, n, N]``.
    """
    with torch.no_grad():
        drawn = observation.sample_sequence(features, generator, past=past, dt=dt)
        return features + observation.history_drive(drawn, past=past, dt=dt)
