"""Scores of a model on held-out data: n-step forecasts, hidden entries, decoded modalities."""

from __future__ import annotations

from plssm.scoring.score import score
from plssm.scoring.yardsticks import training_baselines

__all__ = ["score", "training_baselines"]
