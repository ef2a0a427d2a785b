"""Where windows start if only the observations before them are asked, not the map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import LinearDynamics
from plssm.inference.augmented_states import AugmentedStates
from plssm.inference.filter_form import filter_form
from plssm.inference.innovations import innovations
from plssm.model import StateSpaceModel

__all__ = ["ObservedStarts", "Spread", "observed_starts", "spread_of"]

SLOWEST = 0.999  # correlation of neighbouring states at most
LEAST = 1e-8  # variance of a direction, as a share of the mean one, at least


class Spread(NamedTuple):
    """Moments of states over all steps of all trials.

    Attributes:
        mean: [M].
        covariance: [M, M].
        correlation: Of neighbouring states, all directions together.
    """

    mean: Tensor
    covariance: Tensor
    correlation: float


class ObservedStarts(NamedTuple):
    """What is known about the joined states before each step's data.

    Attributes:
        mean: [B, T, D].
        covariance: [B, T, D, D].
    """

    mean: Tensor
    covariance: Tensor


def spread_of(path: Tensor, uncertainty: Tensor, inside: Tensor) -> Spread:
    r"""Moments of states that are known up to a Gaussian each.

    .. math:: S = \mathrm{Cov}(m_t) + \overline{P_t}, \qquad
        a = \frac{\sum_t (m_{t+1} - \bar m)^\top (m_t - \bar m)}{\sum_t \|m_t - \bar m\|^2}

    Args:
        path: Means m [B, T, M].
        uncertainty: Covariances P [B, T, M, M].
        inside: Steps of trials [B, T], bool.
    """
    states = path[inside]
    mean = states.mean(0)
    away = torch.where(inside[..., None], path - mean, 0.0)
    covariance = away[inside].T @ away[inside] / len(states) + uncertainty[inside].mean(0)
    both = (inside[:, 1:] & inside[:, :-1])[..., None]
    share = (away[:, 1:] * away[:, :-1] * both).sum() / away.square().sum().clamp_min(1e-300)
    floor = LEAST * covariance.diagonal().mean().clamp_min(1e-12)
    covariance = covariance + floor * torch.eye(len(mean), dtype=mean.dtype)
    return Spread(mean, covariance, float(share.clamp(0.0, SLOWEST)))


@torch.no_grad()
def observed_starts(
    model: StateSpaceModel, batch: Batch, states: AugmentedStates, spread: Spread, *,
    point: Tensor | None = None,
) -> ObservedStarts:  # fmt: skip
    r"""Mean and covariance of the states given the observations before them, whatever the map.

    .. math:: z_t = \bar z + a (z_{t-1} - \bar z) + \varepsilon_t, \qquad
        \varepsilon_t \sim N(0, (1 - a^2) S), \qquad p(z_t \mid y_{1:t-1})

    A process with the moments of the states and without dynamics of its own takes the map's place,
    so that what is found rests on the read-outs and the last few observations. Trials whose filter
    does not settle start from the moments alone.

    Args:
        model: The model, whose observation models are taken.
        batch: The trials.
        states: What the states carry along.
        spread: Moments of the states.
        point: Where the first sweep expands, joined states [B, T, D].
    """
    mean, covariance, share = spread
    forgetful = LinearDynamics.from_parameters(
        A=share * torch.eye(len(mean), dtype=mean.dtype), h=(1 - share) * mean, initial_mean=mean,
        process_noise=(1 - share**2) * covariance, initial_noise=covariance,
    )  # fmt: skip
    plain = StateSpaceModel(forgetful, dict(model.observations.items()))
    form = filter_form(plain, batch, states)
    found = innovations(plain, batch, states, form, point=point, sweeps=24)
    good = found.settled[:, None, None]
    prior = form.first_covariance[:1, None]
    return ObservedStarts(
        torch.where(good, found.run.predicted_mean, form.first_mean[:1, None]),
        torch.where(good[..., None], found.run.predicted_covariance, prior),
    )
