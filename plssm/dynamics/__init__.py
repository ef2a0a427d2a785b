"""Latent dynamics: linear and piecewise-linear maps with Gaussian noise."""

from __future__ import annotations

from plssm.dynamics.almost_linear import AlmostLinearRNN
from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.dynamics.dendritic import DendriticPLRNN
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.initial import Initial
from plssm.dynamics.linear import LinearDynamics
from plssm.dynamics.noise import Diagonal, Full, Isotropic, Noise, make_noise
from plssm.dynamics.one_layer import OneLayerDynamics
from plssm.dynamics.plrnn import PLRNN
from plssm.dynamics.regularization import ManifoldAttractor
from plssm.dynamics.relu_form import ReluForm
from plssm.dynamics.shallow import ShallowPLRNN

__all__ = [
    "PLRNN",
    "AlmostLinearRNN",
    "DendriticPLRNN",
    "Diagonal",
    "Full",
    "HiddenLayer",
    "Initial",
    "Isotropic",
    "LatentDynamics",
    "LinearDynamics",
    "ManifoldAttractor",
    "Noise",
    "OneLayerDynamics",
    "PiecewiseLinear",
    "ReluForm",
    "ShallowPLRNN",
    "make_noise",
]
