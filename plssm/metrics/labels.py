"""Measures for labels and ordinal scales: accuracy, and proper scores of probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape

__all__ = [
    "accuracy",
    "balanced_accuracy",
    "brier_score",
    "label_probabilities",
    "log_score",
    "ranked_probability_score",
]

SUM_TOLERANCE = 1e-4


def accuracy(*, truth: Any, pred: Any) -> float:
    """Share of labels that are predicted.

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing, left out.
        pred: Predicted labels of the same shape, or probabilities ``[..., K]`` with one more axis
            (the most probable class counts). A prediction that is NaN is wrong.

    Returns:
        Between 0 and 1.

    Raises:
        DataError: When nothing is observed or shapes disagree.

    Example:
        >>> accuracy(truth=[0, 1, 2, 1], pred=[0, 1, 1, 1])
        0.75
    """
    y, guess = _classes(truth, pred)
    return float((y == guess).mean())


def balanced_accuracy(*, truth: Any, pred: Any) -> float:
    r"""Mean over the classes that occur of the share of their samples that is predicted.

    .. math:: \frac{1}{|C|} \sum_{c \in C} \frac{\#\{y = c, \hat y = c\}}{\#\{y = c\}}

    A prediction that does not look at the data gets one over the number of classes.

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing, left out.
        pred: Predicted labels or probabilities, see :func:`accuracy`.

    Returns:
        Between 0 and 1.

    Raises:
        DataError: When nothing is observed or shapes disagree.

    References:
        Brodersen et al. 2010, The balanced accuracy and its posterior distribution,
        doi:10.1109/ICPR.2010.764.

    Example:
        >>> balanced_accuracy(truth=[0, 0, 0, 1], pred=[0, 0, 0, 0])
        0.5
    """
    y, guess = _classes(truth, pred)
    return float(np.mean([(guess[y == c] == c).mean() for c in np.unique(y)]))


def brier_score(*, truth: Any, probabilities: Any) -> float:
    r"""Brier score of class probabilities, summed over classes: 0 is perfect, 2 the worst.

    .. math:: \frac1n \sum_i \sum_k (p_{ik} - 1[y_i = k])^2

    This is the original definition; for two classes it is twice the squared error of one
    probability, which also goes by that name.

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing, left out.
        probabilities: ``[..., K]``, one more axis than truth.

    Returns:
        The mean over observed labels; +inf if a probability of one of them is not finite.

    Raises:
        DataError: When shapes disagree, a label has no probability, or probabilities are negative
            or do not sum to one.

    References:
        Brier 1950, Verification of forecasts expressed in terms of probability,
        doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    Example:
        >>> brier_score(truth=[0, 1], probabilities=[[1.0, 0.0], [0.5, 0.5]])
        0.25
    """
    y, p = label_probabilities(truth, probabilities)
    if not np.isfinite(p).all():
        return float("inf")
    hit = y[:, None] == np.arange(p.shape[1])
    return float(((p - hit) ** 2).sum(1).mean())


def ranked_probability_score(*, truth: Any, probabilities: Any) -> float:
    r"""Ranked probability score of ordered levels: 0 is perfect, K - 1 the worst.

    .. math:: \frac1n \sum_i \sum_{k=0}^{K-2} (F_{ik} - 1[y_i \le k])^2, \qquad
        F_{ik} = \sum_{j \le k} p_{ij}

    Probability on a level next to the truth costs less than far from it. It is the sum over
    thresholds, not divided by K - 1.

    Args:
        truth: Levels 0 .. K-1 of any shape; NaN = missing, left out.
        probabilities: ``[..., K]``, one more axis than truth.

    Returns:
        The mean over observed levels; +inf if a probability of one of them is not finite.

    Raises:
        DataError: As :func:`brier_score`.

    References:
        Epstein 1969, A scoring system for probability forecasts of ranked categories,
        doi:10.1175/1520-0450(1969)008<0985:ASSFPF>2.0.CO;2;
        Gneiting & Raftery 2007, Strictly proper scoring rules, prediction, and estimation,
        doi:10.1198/016214506000001437.

    Example:
        >>> p = [[0.0, 1.0, 0.0]]
        >>> [ranked_probability_score(truth=[y], probabilities=p) for y in (0, 1, 2)]
        [1.0, 0.0, 1.0]
    """
    y, p = label_probabilities(truth, probabilities)
    if not np.isfinite(p).all():
        return float("inf")
    below = y[:, None] <= np.arange(p.shape[1] - 1)
    return float(((p.cumsum(1)[:, :-1] - below) ** 2).sum(1).mean())


def log_score(*, truth: Any, probabilities: Any) -> float:
    r"""Mean log-probability of the labels that occurred, in nats: 0 is perfect, larger is better.

    .. math:: \frac1n \sum_i \log p_{i y_i}

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing, left out.
        probabilities: ``[..., K]``, one more axis than truth.

    Returns:
        The mean over observed labels; -inf if one of them had probability zero or NaN.

    Raises:
        DataError: As :func:`brier_score`.

    References:
        Good 1952, Rational decisions, doi:10.1111/j.2517-6161.1952.tb00104.x.

    Example:
        >>> round(log_score(truth=[0, 1], probabilities=[[1.0, 0.0], [0.5, 0.5]]), 4)
        -0.3466
    """
    y, p = label_probabilities(truth, probabilities)
    own = p[np.arange(len(y)), y]
    if not (np.isfinite(p).all() and (own > 0).all()):
        return float("-inf")
    return float(np.log(own).mean())


def label_probabilities(truth: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Observed labels and the probabilities that were given for them.

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing.
        probabilities: ``[..., K]``, one more axis than truth.

    Returns:
        Labels, int64 ``[n]``, and probabilities ``[n, K]`` (rows that are not finite stay).

    Raises:
        DataError: When shapes disagree, a label has no probability, or probabilities are negative
            or do not sum to one.
    """
    y, p = as_floats(truth, "truth"), as_floats(probabilities, "probabilities")
    if p.ndim != y.ndim + 1 or p.shape[:-1] != y.shape:
        raise DataError(
            "probabilities do not fit the truth",
            got=f"truth {y.shape}, probabilities {p.shape}",
            wanted=f"{(*y.shape, 'K')}".replace("'", ""),
            fix="put the classes on a last axis of their own",
        )
    seen = observed(y)
    labels, p = _whole(y[seen], "truth"), p[seen]
    if labels.max() >= p.shape[1]:
        raise DataError(
            "truth has a label without a probability",
            got=f"label {labels.max()}",
            wanted=f"labels from 0 to {p.shape[1] - 1}",
            fix="give probabilities of all classes on the last axis",
        )
    finite = p[np.isfinite(p).all(1)]
    wrong = (finite < 0).any(1) | (np.abs(finite.sum(1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        raise DataError(
            "these are not probabilities",
            got=finite[wrong][0].tolist(),
            wanted="numbers >= 0 that sum to 1 over the last axis",
            fix="normalise them; log-odds go through a softmax first",
        )
    return labels, p


def _classes(truth: Any, pred: Any) -> tuple[np.ndarray, np.ndarray]:
    """Observed labels and their predictions, each ``[n]``; -1 for a prediction that is NaN."""
    y, guess = as_floats(truth, "truth"), as_floats(pred, "pred")
    if guess.ndim == y.ndim + 1 and guess.shape[:-1] == y.shape:
        broken = np.isnan(guess).any(-1)
        guess = np.where(broken, np.nan, np.where(np.isnan(guess), 0.0, guess).argmax(-1))
    elif guess.shape != y.shape:
        raise DataError(
            "truth and pred have different shapes",
            got=f"truth {y.shape}, pred {guess.shape}",
            wanted="one label per entry, or probabilities with the classes on one more axis",
        )
    seen = observed(y)
    known = same_shape(guess, y, "pred")[seen]
    return _whole(y[seen], "truth"), np.where(np.isnan(known), -1, known)


def _whole(labels: np.ndarray, role: str) -> np.ndarray:
    wrong = (labels < 0) | (labels != np.floor(labels))
    if wrong.any():
        raise DataError(
            f"{role} is not a label",
            got=f"{labels[wrong][0]:g}",
            wanted="whole numbers >= 0, or NaN where missing",
            fix="encode the K classes as 0..K-1",
        )
    return labels.astype(np.int64)
