"""Analysis of latent dynamics as dynamical systems, and of the time scales of recordings."""

from __future__ import annotations

from plssm.analysis.cycle import Cycle, Cycles
from plssm.analysis.cycles import cycles, fixed_points
from plssm.analysis.lyapunov import kaplan_yorke_dimension, lyapunov_spectrum
from plssm.analysis.regions import VisitedRegions, visited_regions
from plssm.analysis.time_scales import (
    TimeScales,
    autocorrelation,
    delayed_mutual_information,
    predictability_time,
    time_scales,
)
from plssm.analysis.uncertain import Uncertain
from plssm.analysis.uncertainty import uncertainty

__all__ = [
    "Cycle",
    "Cycles",
    "TimeScales",
    "Uncertain",
    "VisitedRegions",
    "autocorrelation",
    "cycles",
    "delayed_mutual_information",
    "fixed_points",
    "kaplan_yorke_dimension",
    "lyapunov_spectrum",
    "predictability_time",
    "time_scales",
    "uncertainty",
    "visited_regions",
]
