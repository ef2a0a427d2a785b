"""Measures of models: invariants of the dynamics, predictions, labels, counts, calibration."""

from __future__ import annotations

from plssm.metrics.ahead import n_step_error
from plssm.metrics.calibration import coverage, pit_uniformity, pit_values, reliability
from plssm.metrics.counts import bits_per_spike
from plssm.metrics.labels import (
    accuracy,
    balanced_accuracy,
    brier_score,
    log_score,
    ranked_probability_score,
)
from plssm.metrics.measure import Measure
from plssm.metrics.power_spectrum import power_spectra, power_spectrum_distance
from plssm.metrics.prediction import prediction_error
from plssm.metrics.reconstructions import Reconstruction, reconstruction
from plssm.metrics.references import reference_runs
from plssm.metrics.state_space import state_space_divergence

__all__ = [
    "Measure",
    "Reconstruction",
    "accuracy",
    "balanced_accuracy",
    "bits_per_spike",
    "brier_score",
    "coverage",
    "log_score",
    "n_step_error",
    "pit_uniformity",
    "pit_values",
    "power_spectra",
    "power_spectrum_distance",
    "prediction_error",
    "ranked_probability_score",
    "reconstruction",
    "reference_runs",
    "reliability",
    "state_space_divergence",
]
