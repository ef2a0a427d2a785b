"""Analysis of latent dynamics as dynamical systems, and of the time scales of recordings."""

from __future__ import annotations

from plssm.analysis.cycle import Cycle, Cycles
from plssm.analysis.cycles import cycles, fixed_points
from plssm.analysis.lyapunov import lyapunov_spectrum
from plssm.analysis.time_scales import (
    TimeScales,
    autocorrelation,
    delayed_mutual_information,
    predictability_time,
    time_scales,
)

__all__ = [
    "TimeScales",
    "autocorrelation",
    "delayed_mutual_information",
    "lyapunov_spectrum",
    "predictability_time",
    "time_scales",
]
__all__ = ["Cycle", "Cycles", "cycles", "fixed_points", "lyapunov_spectrum"]
from plssm.analysis.regions import VisitedRegions, visited_regions

__all__ = [
    "Cycle",
    "Cycles",
    "VisitedRegions",
    "cycles",
    "fixed_points",
    "lyapunov_spectrum",
    "visited_regions",
]
