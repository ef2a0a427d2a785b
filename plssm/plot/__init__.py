"""Pictures of posteriors, predictions, free runs and fits; each returns a matplotlib Figure."""

from __future__ import annotations

from plssm.plot.attractor import free_run
from plssm.plot.history import convergence
from plssm.plot.labels import class_probabilities
from plssm.plot.observed import forecast_fan, observed_vs_predicted, prediction
from plssm.plot.paths import latents
from plssm.plot.recorded import recorded
from plssm.plot.spectrum import power_spectrum

__all__ = [
    "class_probabilities",
    "convergence",
    "forecast_fan",
    "free_run",
    "latents",
    "observed_vs_predicted",
    "power_spectrum",
    "prediction",
    "recorded",
]
