"""Scores of one modality, gathered block by block."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from plssm.metrics.baselines import Baseline
from plssm.prediction.predictive import Prediction
from plssm.scoring.yardsticks import Yardstick

__all__ = ["Tally"]


class Tally:
    """Errors and details of the scored entries of one modality at one horizon.

    Args:
        yardstick: How they are measured.
        baseline: Training statistics.
    """

    def __init__(self, yardstick: Yardstick, baseline: Baseline) -> None:
        self.yardstick, self.baseline = yardstick, baseline
        self.values = 0
        self._errors: dict[str, float] = defaultdict(float)
        self._found: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, y: np.ndarray, **expected: np.ndarray) -> None:
        """Add the errors of entries ``[n, N]``, by the name of what was expected ``[n, C]``."""
        seen = np.isfinite(y)
        self.values += int(seen.sum())
        for name, columns in expected.items():
            error = self.yardstick.errors(y, columns, self.baseline)
            self._errors[name] += float(np.where(seen, error, 0.0).sum())

    def add_details(self, y: np.ndarray, prediction: Prediction, seed: int) -> np.ndarray:
        """Add all that the scores need of entries ``[n, N]``; returns what was expected."""
        seen = np.isfinite(y)
        if not seen.any():
            return self.yardstick.expected(prediction)
        columns, found = self.yardstick.details(y, prediction, self.baseline, seed)
        for name, values in found.items():
            self._found[name].append(values[seen])
        return columns

    def mean(self, name: str) -> float:
        """Mean error of what has this name."""
        return self._errors[name] / self.values if self.values else np.nan

    def summary(self) -> dict[str, float]:
        """Log-likelihood per value and the scores of this kind of data; empty without values."""
        if not self.values or not self._found:
            return {"log_likelihood": np.nan}
        found = {name: np.concatenate(parts) for name, parts in self._found.items()}
        scores = self.yardstick.summary(found, self.baseline)
        scores = {name: float(value) for name, value in scores.items()}
        return {"log_likelihood": float(found["log_prob"].mean()), **scores}
