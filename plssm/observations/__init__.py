"""Observation models: how what was measured depends on the latent path."""

from __future__ import annotations

from plssm.observations.base import ObservationModel
from plssm.observations.bold.hrf import DoubleGamma, ResponseFunction
from plssm.observations.bold.model import BOLD
from plssm.observations.counts.history import RaisedCosine
from plssm.observations.counts.models import NegativeBinomial, Poisson
from plssm.observations.counts.zero_inflated import ZeroInflatedPoisson
from plssm.observations.gaussian import Gaussian
from plssm.observations.labels.classes import Bernoulli, Categorical
from plssm.observations.labels.ordinal import Ordinal
from plssm.observations.local import Local

__all__ = [
    "BOLD",
    "Bernoulli",
    "Categorical",
    "DoubleGamma",
    "Gaussian",
    "Local",
    "NegativeBinomial",
    "ObservationModel",
    "Ordinal",
    "Poisson",
    "RaisedCosine",
    "ResponseFunction",
    "ZeroInflatedPoisson",
]
