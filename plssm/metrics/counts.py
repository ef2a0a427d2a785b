"""Measures for spike counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import xlogy

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape
from plssm.metrics.measure import Measure

__all__ = ["bits_per_spike"]


def bits_per_spike(*, counts: Any, rates: Any, null_rates: Any = None) -> Measure:
    r"""Information about spike counts in predicted rates, over a constant rate of each unit.

    .. math:: \frac{\log p(y \mid \lambda) - \log p(y \mid \bar\lambda)}{n_\text{spikes} \log 2},
        \qquad \log p(y \mid \lambda) = \sum_i (y_i \log \lambda_i - \lambda_i - \log y_i!)

    0 is as good as the constant rates, negative is worse. Rates are expected counts per bin.

    Args:
        counts: Spike counts ``[..., N]``, units last; NaN = missing, left out.
        rates: Predicted rates of the same shape.
        null_rates: Rate of each unit ``[N]`` (or anything that broadcasts): its mean over the
            training data. None takes the mean over ``counts`` themselves, as the Neural Latents
            Benchmark does; that constant cannot be known beforehand and is harder to beat.

    Returns:
        The measure over all units; -inf when a rate is not finite, negative, or zero where there
        are spikes. ``per_dimension`` ``[N]`` has every unit's own value (NaN without spikes),
        ``settings`` the log-likelihoods in nats and the number of spikes. There is no floor.

    Raises:
        DataError: When there is no spike, counts are not whole numbers, shapes disagree, or a unit
            with a null rate of zero has spikes.

    References:
        Pei et al. 2021, Neural Latents Benchmark '21, arXiv:2109.04463;
        Pillow et al. 2008, doi:10.1038/nature07140.

    Example:
        >>> counts = [[2.0], [0.0]]
        >>> float(bits_per_spike(counts=counts, rates=[[2.0], [0.0]], null_rates=[1.0]))
        1.0
    """
    y, guess = as_floats(counts, "counts"), as_floats(rates, "rates")
    if y.ndim == 1:
        y, guess = y[:, None], guess[:, None] if guess.ndim == 1 else guess
    seen = observed(y, "counts")
    _check_counts(y[seen])
    guess = same_shape(guess, y, "rates")
    null = _null(y, seen, null_rates)
    units = tuple(range(y.ndim - 1))
    spikes = np.where(seen, y, 0.0).sum(units)
    model, constant = (_log_likelihood(y, seen, r).sum(units) for r in (guess, null))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(spikes > 0, (model - constant) / (spikes * math.log(2)), np.nan)
    return Measure(
        float((model.sum() - constant.sum()) / (spikes.sum() * math.log(2))),
        settings={
            "measure": "bits per spike",
            "spikes": int(spikes.sum()),
            "observed": int(seen.sum()),
            "log_likelihood": float(model.sum()),
            "null_log_likelihood": float(constant.sum()),
            "null": "mean of these counts" if null_rates is None else "given",
        },
        per_dimension=each,
    )


def _check_counts(counts: np.ndarray) -> None:
    wrong = (counts < 0) | (counts != np.floor(counts))
    if wrong.any():
        raise DataError(
            "counts are not counts",
            got=f"{counts[wrong][0]:g}",
            wanted="whole numbers >= 0, or NaN where missing",
        )
    if not counts.sum():
        raise DataError("there is no spike", got=f"{counts.size} zeros", wanted="at least one")


def _null(y: np.ndarray, seen: np.ndarray, null_rates: Any) -> np.ndarray:
    """Constant rates, broadcast to the counts."""
    if null_rates is None:
        axes = tuple(range(y.ndim - 1))
        mean = np.where(seen, y, 0.0).sum(axes) / np.maximum(seen.sum(axes), 1)
        return np.broadcast_to(mean, y.shape)
    null = same_shape(as_floats(null_rates, "null_rates"), y, "null_rates")
    wrong = seen & ~((null > 0) & np.isfinite(null) | ((null == 0) & (y == 0)))
    if wrong.any():
        unit = int(np.argwhere(wrong)[0][-1])
        raise DataError(
            "the null rate does not allow the counts",
            axis=f"unit {unit}",
            got=f"null rate {null[wrong][0]:g} with {y[wrong][0]:g} spikes in a bin",
            wanted="a positive rate",
            fix="leave out units that were silent in training, or give them a small rate",
        )
    return null


def _log_likelihood(y: np.ndarray, seen: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Poisson log-likelihood without the factorials, 0 where missing."""
    possible = np.isfinite(rates) & (rates >= 0)
    safe = np.where(seen & possible, rates, 1.0)
    with np.errstate(divide="ignore"):
        value = xlogy(np.where(seen, y, 0.0), safe) - safe
    return np.where(seen, np.where(possible, value, -np.inf), 0.0)
