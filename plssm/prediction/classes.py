"""Probabilities of the classes or levels of any observation model that has some."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.observations.base import ObservationModel

__all__ = ["class_probabilities", "has_classes", "number_of_classes"]


def has_classes(observation: ObservationModel) -> bool:
    """Whether an observation is one of a few classes or levels."""
    return _knows_them(observation) or bool(set(observation.kinds) & {"label", "ordinal"})


def class_probabilities(observation: ObservationModel, features: Tensor) -> Tensor:
    """Probability of each class, ``[..., n, N, K]``, given predictors ``[..., n, predictors]``.

    A model that does not give them itself is asked for the density of every value in the support
    of its distribution.
    """
    if _knows_them(observation):
        return observation.probabilities(features)
    y = observation.distribution(features)
    values = y.enumerate_support(expand=False)
    return torch.stack([y.log_prob(v.expand(y.batch_shape)).exp() for v in values], dim=-1)


def number_of_classes(observation: ObservationModel) -> int:
    """Number K of classes."""
    origin = observation.bias.new_zeros((1, observation.predictors))
    with torch.no_grad():
        return int(class_probabilities(observation, origin).shape[-1])


def _knows_them(observation: ObservationModel) -> bool:
    return type(observation).probabilities is not ObservationModel.probabilities
