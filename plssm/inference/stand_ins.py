"""Simpler models that are fitted first, for the state that the real one starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from plssm.data import Batch, Modality
from plssm.dynamics.linear import LinearDynamics
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.gaussian import Gaussian

__all__ = ["gaussian_stand_in", "linear_stand_in"]


def linear_stand_in(model: StateSpaceModel, dim: int) -> StateSpaceModel:
    """A fresh model with linear dynamics and the same kinds of observations.

    Args:
        model: The model to be started.
        dim: Dimension of the linear state.
    """
    return StateSpaceModel(
        _linear(model, dim), {n: _fresh(o) for n, o in model.observations.items()}
    )


def gaussian_stand_in(
    model: StateSpaceModel, batch: Batch, dim: int
) -> tuple[StateSpaceModel, Batch]:
    """A fresh linear-Gaussian model of real-valued stand-ins of the data, and those stand-ins.

    Its smoothed state changes as slowly as the data allow. Read off single labels or counts, a
    state jumps with every sample, and EM takes many iterations to tell those jumps from noise.

    Args:
        model: The model to be started; modalities that are quadratic already stay as they are.
        batch: The trials.
        dim: Dimension of the linear state.
    """
    observations, modalities = {}, {}
    for name, observation in model.observations.items():
        m = batch.modalities[name]
        if observation.quadratic:
            observations[name], modalities[name] = _fresh(observation), m
            continue
        modalities[name] = _signal(observation, m)
        observations[name] = Gaussian(modalities[name].y.shape[-1])
        observations[name].tempering.copy_(observation.tempering)
    stand_in = StateSpaceModel(_linear(model, dim), observations)
    return stand_in, replace(batch, modalities=modalities)


def _signal(observation: ObservationModel, m: Modality) -> Modality:
    """The stand-in of one modality, of unit variance, hidden where the data are."""
    signal = observation.start_signal(m)
    own = signal.shape[-1] == m.mask.shape[-1]
    mask = m.mask if own else m.mask.any(-1, keepdim=True).expand(signal.shape)
    weight = mask.to(signal.dtype)
    count = weight.sum((0, 1)).clamp_min(1)
    centred = (signal - (signal * weight).sum((0, 1)) / count) * weight
    spread = (centred.square().sum((0, 1)) / count).sqrt()
    scaled = centred / torch.where(spread > 0, spread, torch.ones_like(spread))
    return replace(m, y=scaled, mask=mask, nuisance=None)


def _linear(model: StateSpaceModel, dim: int) -> LinearDynamics:
    dynamics = model.dynamics
    return LinearDynamics(dim, dynamics.n_inputs, input_at_start=dynamics.input_at_start)


def _fresh(observation: ObservationModel) -> ObservationModel:
    copied = type(observation).from_config(observation.config())
    copied.tempering.copy_(observation.tempering)
    return copied
