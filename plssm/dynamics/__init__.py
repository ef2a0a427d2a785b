"""Latent dynamics: linear and piecewise-linear maps with Gaussian noise."""

from __future__ import annotations

from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.dynamics.initial import Initial
from plssm.dynamics.linear import LinearDynamics
from plssm.dynamics.noise import Diagonal, Full, Isotropic, Noise, make_noise
from plssm.dynamics.plrnn import PLRNN
from plssm.dynamics.regularization import ManifoldAttractor
from plssm.dynamics.relu_form import ReluForm

__all__ = [
    "PLRNN",
    "Diagonal",
    "Full",
    "Initial",
    "Isotropic",
    "LatentDynamics",
    "LinearDynamics",
    "ManifoldAttractor",
    "Noise",
    "PiecewiseLinear",
    "ReluForm",
    "make_noise",
]
