"""Measures of models: invariants of the dynamics, predictions and their uncertainty."""

from __future__ import annotations

from plssm.metrics.ahead import n_step_error
from plssm.metrics.calibration import coverage, pit_uniformity, pit_values, reliability
from plssm.metrics.consistency import Consistency, consistency
from plssm.metrics.counts import bits_per_spike
from plssm.metrics.innovations import (
    gaussian_innovations,
    nees,
    nis,
    standardised_innovations,
)
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
from plssm.metrics.proper_scores import (
    energy_score,
    ensemble_crps,
    gaussian_crps,
    gaussian_log_score,
    spread_skill,
)
from plssm.metrics.reconstructions import Reconstruction, reconstruction
from plssm.metrics.references import reference_runs
from plssm.metrics.state_space import state_space_divergence
from plssm.metrics.tangents import (
    TransportedCovariance,
    tangent_product,
    transported_covariance,
)
from plssm.metrics.whiteness import Whiteness, whiteness

__all__ = [
    "Consistency",
    "Measure",
    "Reconstruction",
    "TransportedCovariance",
    "Whiteness",
    "accuracy",
    "balanced_accuracy",
    "bits_per_spike",
    "brier_score",
    "consistency",
    "coverage",
    "energy_score",
    "ensemble_crps",
    "gaussian_crps",
    "gaussian_innovations",
    "gaussian_log_score",
    "log_score",
    "n_step_error",
    "nees",
    "nis",
    "pit_uniformity",
    "pit_values",
    "power_spectra",
    "power_spectrum_distance",
    "prediction_error",
    "ranked_probability_score",
    "reconstruction",
    "reference_runs",
    "reliability",
    "spread_skill",
    "standardised_innovations",
    "state_space_divergence",
    "tangent_product",
    "transported_covariance",
    "whiteness",
]
