"""Importance weights: from a convenient distribution to the one that is meant."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["effective_draws", "importance_weights", "pareto_shape"]


def importance_weights(log_ratios: np.ndarray) -> np.ndarray:
    """Weights that sum to one; ratios that are not finite weigh nothing.

    Args:
        log_ratios: Log of target over proposal density [n], each up to a constant.

    Returns:
        Weights [n], all zero where no ratio is finite.
    """
    ratios = np.where(np.isfinite(log_ratios), log_ratios, -math.inf)
    top = ratios.max(initial=-math.inf)
    if top == -math.inf:
        return np.zeros(len(ratios))
    weights = np.exp(ratios - top)
    return weights / weights.sum()


def effective_draws(weights: np.ndarray) -> float:
    r"""How many equally weighted draws tell as much about a mean.

    .. math:: 1 / \sum_i w_i^2

    Args:
        weights: [n], which sum to one.
    """
    squares = float(np.square(weights).sum())
    return 1.0 / squares if squares else 0.0


def pareto_shape(log_ratios: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution of the largest importance ratios.

    Above .7 the weights are dominated by a few draws. The tail is the largest 20 %, at most
    three times the square root of the number of ratios; the fit is Zhang and Stephens'
    (empirical Bayes), with the weak prior of Vehtari and others.

    Args:
        log_ratios: [n].

    Returns:
        The shape k; NaN with a tail of fewer than five, infinite where a ratio is.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto smoothed importance sampling,
        J. Mach. Learn. Res. 25:72. Zhang and Stephens 2009, doi:10.1198/tech.2009.08017.
    """
    ratios = np.sort(np.where(np.isnan(log_ratios), -math.inf, log_ratios))
    tail = math.ceil(min(0.2 * len(ratios), 3.0 * math.sqrt(len(ratios))))
    if tail < 5 or len(ratios) <= tail or not math.isfinite(ratios[-tail - 1]):
        return math.nan
    if not math.isfinite(ratios[-1]):
        return math.inf
    top = np.exp(ratios[-tail:] - ratios[-1])
    return _tail_shape(top - math.exp(ratios[-tail - 1] - ratios[-1]))


def _tail_shape(x: np.ndarray) -> float:
    """Shape of excesses [n], sorted."""
    n = len(x)
    if not x[0] < x[-1]:
        return math.nan
    places = np.arange(1, 31 + math.isqrt(n)) - 0.5
    quartile = x[max(int(n / 4 + 0.5) - 1, 0)]
    quartile = quartile if quartile > 0.0 else x[-1]
    theta = 1.0 / x[-1] + (1.0 - np.sqrt((30 + math.isqrt(n)) / places)) / (3.0 * quartile)
    shapes = np.log1p(-theta[:, None] * x).mean(1)
    profile = n * (np.log(-theta / shapes) - shapes - 1.0)
    weights = np.exp(profile - profile.max())
    best = float((theta * weights).sum() / weights.sum())
    shape = float(np.log1p(-best * x).mean())
    return (n * shape + 5.0) / (n + 10.0)
