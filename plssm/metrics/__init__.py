"""Measures of how well a model reproduces a system; each score carries its own floor."""

from __future__ import annotations

from plssm.metrics.measure import Measure
from plssm.metrics.power_spectrum import power_spectra, power_spectrum_distance
from plssm.metrics.prediction import prediction_error
from plssm.metrics.state_space import state_space_divergence

__all__ = [
    "Measure",
    "power_spectra",
    "power_spectrum_distance",
    "prediction_error",
    "state_space_divergence",
]
