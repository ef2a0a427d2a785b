"""How predictions are measured: numbers and counts, labels, ordinal levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from plssm.data import Dataset
from plssm.metrics.baselines import Baseline
from plssm.metrics.calibration import pit_uniformity, pit_values
from plssm.metrics.counts import bits_per_spike
from plssm.metrics.labels import (
    accuracy,
    balanced_accuracy,
    brier_score,
    ranked_probability_score,
)
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.prediction.classes import number_of_classes
from plssm.prediction.predictive import Prediction

__all__ = [
    "Classes",
    "Levels",
    "Numbers",
    "Yardstick",
    "coverage_name",
    "training_baselines",
    "yardsticks",
]

LEVEL = 0.95


class Yardstick(ABC):
    """How predictions of one kind of data are measured.

    What is predicted is laid out in C columns: the channels themselves, or one column for each
    class of each channel (its indicator, whose mean is a probability). Baselines are statistics
    of these columns, so that the training mean of labels is the frequency of each class and their
    VAR(1) a Markov chain.

    Args:
        observation: The observation model.
        level: Probability of the band whose coverage is measured.
    """

    def __init__(self, observation: ObservationModel, *, level: float = LEVEL) -> None:
        self.observation, self.level = observation, level

    @abstractmethod
    def encode(self, y: np.ndarray) -> np.ndarray:
        """Observations ``[n, N]`` as columns ``[n, C]``; NaN stays NaN."""

    @abstractmethod
    def expected(self, prediction: Prediction) -> np.ndarray:
        """Expected columns ``[n, C]`` of the prediction of one trial."""

    @abstractmethod
    def errors(self, y: np.ndarray, columns: np.ndarray, baseline: Baseline) -> np.ndarray:
        """Error of each entry ``[n, N]`` when ``columns [n, C]`` were expected."""

    @abstractmethod
    def details(
        self, y: np.ndarray, prediction: Prediction, baseline: Baseline, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Expected columns, and what the scores are made of, for each entry ``[n, N, ...]``."""

    @abstractmethod
    def summary(self, found: dict[str, np.ndarray], baseline: Baseline) -> dict[str, float]:
        """Scores from the details of all observed entries ``[v, ...]``."""

    def baseline(self, trials: Sequence[np.ndarray]) -> Baseline:
        """Training statistics of the columns."""
        return Baseline.of([self.encode(y) for y in trials])


class Numbers(Yardstick):
    r"""Real numbers and counts: squared error in units of the training standard deviation.

    Scores: ``r2``, ``coverage_95``, ``pit_ks``, and for counts ``bits_per_spike``, the gain of the
    predictive mean rates over each unit's training mean.

    Args:
        observation: The observation model.
        counts: Whether the numbers are counts.
        level: Probability of the band.
    """

    def __init__(
        self, observation: ObservationModel, *, counts: bool, level: float = LEVEL
    ) -> None:
        super().__init__(observation, level=level)
        self.counts = counts

    def encode(self, y: np.ndarray) -> np.ndarray:
        """The observations themselves."""
        return np.asarray(y, dtype=np.float64)

    def expected(self, prediction: Prediction) -> np.ndarray:
        """Predictive mean."""
        return prediction.mean[0].numpy()

    def errors(self, y: np.ndarray, columns: np.ndarray, baseline: Baseline) -> np.ndarray:
        """Squared error of z-scores."""
        return (baseline.scale(y) - baseline.scale(columns)) ** 2

    def details(
        self, y: np.ndarray, prediction: Prediction, baseline: Baseline, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log density, whether inside the band, PIT, z-scores and what a constant rate gives."""
        mean, variance = (x[0].numpy() for x in prediction.moments())
        found = {
            "log_prob": prediction.log_prob(y[None])[0].numpy(),
            "scaled": baseline.scale(y),
            "squares": self.errors(y, mean, baseline),
        }
        found |= placed(y, prediction, seed, self.level)
        if self.counts:
            rate = np.broadcast_to(baseline.mean, y.shape)
            found |= {"counts": y, "rates": mean, "null_rates": rate}
        else:
            half = ndtri(0.5 + self.level / 2) * np.sqrt(variance)
            found["inside"] = (mean - half <= y) & (y <= mean + half)
        return mean, found

    def summary(self, found: dict[str, np.ndarray], baseline: Baseline) -> dict[str, float]:
        """R², bits per spike, coverage and calibration."""
        scaled = found["scaled"]
        spread = float(((scaled - scaled.mean()) ** 2).sum()) if scaled.size else 0.0
        row = {"r2": 1 - float(found["squares"].sum()) / spread if spread > 0 else np.nan}
        if self.counts:
            row["bits_per_spike"] = gain_over_mean_rates(found)
        return row | calibration(found, self.level)


class _Indicators(Yardstick, ABC):
    """Observations that are one of K classes, as K columns a channel."""

    def __init__(self, observation: ObservationModel, *, level: float = LEVEL) -> None:
        super().__init__(observation, level=level)
        self.classes = number_of_classes(observation)

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Indicators of the classes, ``[n, N * K]``."""
        y = np.asarray(y, dtype=np.float64)
        columns = (y[..., None] == np.arange(self.classes)).astype(np.float64)
        return np.where(np.isnan(y)[..., None], np.nan, columns).reshape(len(y), -1)

    def expected(self, prediction: Prediction) -> np.ndarray:
        """Probability of each class."""
        p = prediction.class_probabilities()[0].numpy()
        return p.reshape(len(p), -1)

    def unpacked(self, columns: np.ndarray) -> np.ndarray:
        """Columns as ``[..., N, K]``."""
        return columns.reshape(*columns.shape[:-1], -1, self.classes)

    def details(
        self, y: np.ndarray, prediction: Prediction, baseline: Baseline, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Class, probabilities, log probability and most frequent class of each entry."""
        majority, columns = self.unpacked(baseline.mean).argmax(-1), self.expected(prediction)
        return columns, {
            "label": y,
            "probability": self.unpacked(columns),
            "log_prob": prediction.log_prob(y[None])[0].numpy(),
            "majority": np.broadcast_to(majority, y.shape),
        }


class Classes(_Indicators):
    r"""Labels: share of wrong answers when the most probable class is the answer.

    Scores: ``accuracy``, ``balanced_accuracy``, ``majority`` (the accuracy of each channel's most
    frequent class in training) and ``brier``.
    """

    def errors(self, y: np.ndarray, columns: np.ndarray, baseline: Baseline) -> np.ndarray:
        """One where the most probable class is wrong, zero where it is right."""
        return (self.unpacked(columns).argmax(-1) != y).astype(np.float64)

    def summary(self, found: dict[str, np.ndarray], baseline: Baseline) -> dict[str, float]:
        """Accuracy, balanced accuracy, majority and Brier score."""
        y, p = found["label"], found["probability"]
        return {
            "accuracy": accuracy(truth=y, pred=p),
            "balanced_accuracy": balanced_accuracy(truth=y, pred=p),
            "majority": accuracy(truth=y, pred=found["majority"]),
            "brier": brier_score(truth=y, probabilities=p),
        }


class Levels(_Indicators):
    r"""Ordinal levels: ranked probability score, which for a certain forecast is the distance.

    .. math:: \text{rps} = \frac1n \sum_i \sum_{k < K-1} (F_{ik} - [y_i \le k])^2

    Persistence is certain of the last level, so that its score is its mean absolute error.
    Scores: ``accuracy``, ``majority``, ``rps``, ``coverage_95``, ``pit_ks``.
    """

    def errors(self, y: np.ndarray, columns: np.ndarray, baseline: Baseline) -> np.ndarray:
        """Ranked probability score of each entry."""
        below = np.clip(self.unpacked(columns).cumsum(-1)[..., :-1], 0.0, 1.0)
        reached = y[..., None] <= np.arange(self.classes - 1)
        return ((below - reached) ** 2).sum(-1)

    def details(
        self, y: np.ndarray, prediction: Prediction, baseline: Baseline, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Levels, probabilities, whether inside the band, and PIT."""
        columns, found = super().details(y, prediction, baseline, seed)
        return columns, found | placed(y, prediction, seed, self.level)

    def summary(self, found: dict[str, np.ndarray], baseline: Baseline) -> dict[str, float]:
        """Ranked probability score, accuracy, majority, coverage and calibration."""
        y, p = found["label"], found["probability"]
        return {
            "accuracy": accuracy(truth=y, pred=p),
            "majority": accuracy(truth=y, pred=found["majority"]),
            "rps": ranked_probability_score(truth=y, probabilities=p),
            **calibration(found, self.level),
        }


def yardsticks(
    model: StateSpaceModel, data: Dataset, *, level: float = LEVEL
) -> dict[str, Yardstick]:
    """The yardstick of each modality that model and data share, by the kind of its data."""
    makers = {"label": Classes, "ordinal": Levels}
    out: dict[str, Yardstick] = {}
    for name, observation in model.observations.items():
        kind = data.kinds.get(name)
        if kind in makers:
            out[name] = makers[kind](observation, level=level)
        elif kind is not None:
            out[name] = Numbers(observation, counts=kind == "count", level=level)
    return out


def training_baselines(model: StateSpaceModel, data: Dataset) -> dict[str, Baseline]:
    """Training statistics of each modality that model and data share."""
    return {
        name: yardstick.baseline([trial.values[name] for trial in data.trials])
        for name, yardstick in yardsticks(model, data).items()
    }


def placed(
    y: np.ndarray, prediction: Prediction, seed: int, level: float
) -> dict[str, np.ndarray]:
    """Randomised PIT of entries, and whether they are inside the central band."""
    below, upto = (x[0].numpy() for x in prediction.cdf(y[None], seed=seed))
    tail = (1 - level) / 2
    return {
        "inside": (upto >= tail) & (below <= 1 - tail),
        "pit": pit_values(truth=y, cdf=upto, cdf_below=below, seed=seed),
    }


def coverage_name(level: float) -> str:
    """Name of the coverage of a band: ``coverage_95`` for .95."""
    return f"coverage_{100 * level:g}"


def calibration(found: dict[str, np.ndarray], level: float) -> dict[str, float]:
    """Coverage of the band and Kolmogorov-Smirnov distance of the PIT from uniform."""
    share = found["inside"].mean()
    return {coverage_name(level): share, "pit_ks": pit_uniformity(found["pit"])}


def gain_over_mean_rates(found: dict[str, np.ndarray]) -> float:
    """Bits per spike; units that were silent in training have no mean rate and are left out."""
    counts, rates, null = (found[n][:, None] for n in ("counts", "rates", "null_rates"))
    counts = np.where(null > 0, counts, np.nan)
    if not np.nansum(counts) > 0:
        return np.nan
    return bits_per_spike(counts=counts, rates=rates, null_rates=null)
