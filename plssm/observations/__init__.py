"""Observation models: how what was measured depends on the latent path."""

from __future__ import annotations

from plssm.observations.base import ObservationModel
from plssm.observations.bold import BOLD
from plssm.observations.counts import NegativeBinomial, Poisson
from plssm.observations.gaussian import Gaussian
from plssm.observations.history import RaisedCosine
from plssm.observations.hrf import DoubleGamma, ResponseFunction
from plssm.observations.labels import Bernoulli, Categorical
from plssm.observations.local import Local
from plssm.observations.ordinal import Ordinal
from plssm.observations.zero_inflated import ZeroInflatedPoisson

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
