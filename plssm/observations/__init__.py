"""Observation models: how what was measured depends on the latent path."""

from __future__ import annotations

from plssm.observations.base import ObservationModel
from plssm.observations.gaussian import Gaussian
from plssm.observations.local import Local

__all__ = ["Gaussian", "Local", "ObservationModel"]
