"""Calibration: do predictive distributions say what happens as often as it does?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape
from plssm.metrics.labels import label_probabilities
from plssm.metrics.measure import Measure

__all__ = ["coverage", "pit_uniformity", "pit_values", "reliability"]


def pit_values(
    *,
    truth: Any,
    samples: Any = None,
    cdf: Any = None,
    cdf_below: Any = None,
    probabilities: Any = None,
    seed: int = 0,
) -> np.ndarray:
    r"""Probability integral transform of what happened under its predictive distribution.

    .. math:: u_i = F_i(y_i^-) + v_i \, [F_i(y_i) - F_i(y_i^-)], \qquad v_i \sim U(0, 1)

    with F(y^-) the probability of less than y (for a continuous distribution this is F(y)). If the
    predictive distributions are right, the values are uniform, for discrete data thanks to v.
    Give exactly one of ``samples``, ``cdf`` and ``probabilities``.

    Args:
        truth: Observations of any shape; NaN = missing.
        samples: Draws from the predictive distribution ``[S, ...]``. The value is the randomised
            rank of the truth among them, which is exactly uniform for any S and for ties.
        cdf: F(y), shape of truth.
        cdf_below: F(y^-), shape of truth: for counts the distribution function at y - 1. None
            means continuous.
        probabilities: Of the levels 0 .. K-1 of labels or an ordinal scale, ``[..., K]``.
        seed: Seed of v.

    Returns:
        Values between 0 and 1 of the shape of truth, NaN where missing or where the prediction is
        not finite.

    Raises:
        DataError: When nothing is observed, shapes disagree, or not exactly one description of
            the prediction is given.

    References:
        Dawid 1984, doi:10.2307/2981683;
        Czado, Gneiting & Held 2009, Predictive model assessment for count data,
        doi:10.1111/j.1541-0420.2009.01191.x.

    Example:
        >>> pit_values(truth=[0.0, 2.0], cdf=[0.5, 0.9]).tolist()
        [0.5, 0.9]
    """
    y = as_floats(truth, "truth")
    seen = observed(y)
    low, high = _edges(y, seen, samples, cdf, cdf_below, probabilities)
    value = low + np.random.default_rng(seed).random(y.shape) * (high - low)
    inside = seen & np.isfinite(value)
    wrong = value[inside & ((value < 0) | (value > 1 + 1e-9))]
    if len(wrong):
        raise DataError(
            "these are not values of a distribution function",
            got=f"{wrong[0]:g}",
            wanted="between 0 and 1",
        )
    return np.where(inside, np.minimum(value, 1.0), np.nan)


def pit_uniformity(values: Any) -> Measure:
    r"""Kolmogorov-Smirnov distance of probability integral transforms from uniformity.

    .. math:: D = \sup_u |\hat F(u) - u|

    The floor is the median of D for n independent values of a right prediction: what a perfect
    model reaches. Neighbouring values of a smooth time series are not independent; then D varies
    more than the reference says, and values far enough apart should be taken.

    Args:
        values: Values from :func:`pit_values`; NaN is left out.

    Returns:
        D, with ``settings`` "p_value" (the exact reference distribution of D), "count" and
        "mean" and "variance" of the values (1/2 and 1/12 when uniform; a larger variance means
        bands that are too narrow).

    Raises:
        DataError: When there are no values or they are not between 0 and 1.

    References:
        Massey 1951, The Kolmogorov-Smirnov test for goodness of fit,
        doi:10.1080/01621459.1951.10500769;
        Diebold, Gunther & Tay 1998, Evaluating density forecasts, doi:10.2307/2527342.

    Example:
        >>> score = pit_uniformity([0.125, 0.375, 0.625, 0.875])
        >>> float(score), score.settings["count"]
        (0.125, 4)
    """
    u = as_floats(values, "values")
    u = u[observed(u, "values")]
    if ((u < 0) | (u > 1)).any():
        wrong = u[(u < 0) | (u > 1)][0]
        raise DataError("these are not PIT values", got=f"{wrong:g}", wanted="between 0 and 1")
    test = stats.ks_1samp(u, stats.uniform.cdf)
    return Measure(
        test.statistic,
        floor=float(stats.kstwo(len(u)).median()),
        settings={
            "measure": "Kolmogorov-Smirnov distance from uniformity",
            "count": len(u),
            "p_value": float(test.pvalue),
            "mean": float(u.mean()),
            "variance": float(u.var()),
            "floor": "median for independent uniform values",
        },
    )


def coverage(*, truth: Any, low: Any, high: Any) -> float:
    """Share of observed entries inside their bands, edges included.

    Args:
        truth: Observations of any shape; NaN = missing, left out.
        low: Lower edges, broadcast to truth.
        high: Upper edges. An entry whose band has a NaN edge is not covered.

    Returns:
        Between 0 and 1; the level of the bands, if they are calibrated (more for discrete data).

    Raises:
        DataError: When nothing is observed, shapes disagree, or a lower edge is above the upper.

    Example:
        >>> coverage(truth=[0.0, 1.0, 5.0, float("nan")], low=-1.0, high=1.0)
        0.6666666666666666
    """
    y = as_floats(truth, "truth")
    seen = observed(y)
    lower = same_shape(as_floats(low, "low"), y, "low")
    upper = same_shape(as_floats(high, "high"), y, "high")
    crossed = seen & (lower > upper)
    if crossed.any():
        raise DataError(
            "a band has its lower edge above the upper one",
            got=f"{int(crossed.sum())} of {int(seen.sum())}",
            wanted="low <= high",
            fix="exchange low and high",
        )
    return float(((lower <= y) & (y <= upper))[seen].mean())


def reliability(*, truth: Any, probabilities: Any, bins: int = 10) -> pd.DataFrame:
    r"""Reliability table: how often does happen what is given a certain probability?

    Every class of every observed label is one event with its probability; the probabilities are
    sorted into bins of equal width. With O_b the frequency of the events of bin b, P_b their mean
    probability and w_b their share,

    .. math:: \sum_b w_b (P_b - O_b)^2 - \sum_b w_b (O_b - \bar O)^2 + \bar O (1 - \bar O)

    is the mean squared error of probabilities replaced by the mean of their bin (Murphy's
    reliability - resolution + uncertainty). K times this is the Brier score of K classes, up to
    the spread within bins.

    Args:
        truth: Labels 0 .. K-1 of any shape; NaN = missing, left out. Labels 0 and 1 may come with
            probabilities of 1 of the same shape, which makes one event each.
        probabilities: ``[..., K]`` with one more axis than truth, or the shape of truth (binary).
        bins: Number of bins.

    Returns:
        One row per bin that is not empty: "low", "high" (edges), "count", "predicted" (mean
        probability), "observed" (frequency), "low_95" and "high_95" (Wilson interval of the
        frequency for independent events). ``attrs`` has "calibration_error" (mean absolute
        difference, weighted by count), "reliability", "resolution" and "uncertainty".

    Raises:
        DataError: When shapes disagree or probabilities are not finite probabilities.

    References:
        Murphy 1973, A new vector partition of the probability score,
        doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2;
        Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Example:
        >>> table = reliability(truth=[0, 1, 1, 1], probabilities=[0.1, 0.9, 0.9, 0.9], bins=2)
        >>> table[["count", "predicted", "observed"]].values.tolist()
        [[1.0, 0.1, 0.0], [3.0, 0.9, 1.0]]
    """
    if int(bins) != bins or bins < 1:
        raise DataError("bins is out of range", got=bins, wanted="a whole number >= 1")
    event, p = _events(truth, probabilities)
    table = _binned(event, p, int(bins))
    share, overall = table["count"] / table["count"].sum(), event.mean()
    table.attrs = {
        "calibration_error": float(share @ (table["predicted"] - table["observed"]).abs()),
        "reliability": float(share @ (table["predicted"] - table["observed"]) ** 2),
        "resolution": float(share @ (table["observed"] - overall) ** 2),
        "uncertainty": float(overall * (1 - overall)),
    }
    return table


def _binned(event: np.ndarray, p: np.ndarray, bins: int) -> pd.DataFrame:
    """Counts, mean probabilities and frequencies of the events of each bin."""
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count, total, happened = (np.bincount(index, w, minlength=bins) for w in (None, p, event))
    full = np.flatnonzero(count)
    n = count[full]
    low, high = _wilson(happened[full] / n, n.astype(np.float64))
    return pd.DataFrame(
        {
            "low": full / bins,
            "high": (full + 1) / bins,
            "count": n,
            "predicted": total[full] / n,
            "observed": happened[full] / n,
            "low_95": low,
            "high_95": high,
        }
    )


def _edges(
    y: np.ndarray, seen: np.ndarray, samples: Any, cdf: Any, cdf_below: Any, probabilities: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probability of less than y, and of y or less, of the shape of y."""
    given = {"samples": samples, "cdf": cdf, "probabilities": probabilities}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1 or (cdf_below is not None and cdf is None):
        raise DataError(
            "how the prediction is described is not clear",
            got=", ".join(names + ["cdf_below"] * (cdf_below is not None)) or "nothing",
            wanted="exactly one of samples, cdf (with cdf_below for counts), probabilities",
        )
    if samples is not None:
        return _ranks(y, as_floats(samples, "samples"))
    if probabilities is not None:
        return _level_edges(y, seen, probabilities)
    high = same_shape(as_floats(cdf, "cdf"), y, "cdf")
    return high if cdf_below is None else _below(cdf_below, high, seen), high


def _ranks(y: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest place of the truth among draws, as shares."""
    if draws.ndim != y.ndim + 1 or draws.shape[1:] != y.shape or not len(draws):
        raise DataError(
            "samples do not fit the truth",
            got=f"truth {y.shape}, samples {draws.shape}",
            wanted=f"{('S', *y.shape)}".replace("'", ""),
            fix="put the draws on the first axis",
        )
    below, equal = (draws < y).sum(0), (draws == y).sum(0)
    broken = np.isnan(draws).any(0)
    places = len(draws) + 1
    low = np.where(broken, np.nan, below / places)
    return low, np.where(broken, np.nan, (below + equal + 1) / places)


def _below(cdf_below: Any, high: np.ndarray, seen: np.ndarray) -> np.ndarray:
    low = same_shape(as_floats(cdf_below, "cdf_below"), high, "cdf_below")
    if (seen & (low > high + 1e-12)).any():
        raise DataError(
            "cdf_below is above cdf", wanted="F(y - 1) <= F(y)", fix="exchange the two arguments"
        )
    return low


def _level_edges(
    y: np.ndarray, seen: np.ndarray, probabilities: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Distribution function below and at each level, of the shape of y."""
    level, p = label_probabilities(y, probabilities)
    edges = np.concatenate([np.zeros((len(p), 1)), p.cumsum(1)], axis=1)
    edges = edges / edges[:, -1:]
    rows = np.arange(len(level))
    low, high = np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    low[seen], high[seen] = edges[rows, level], edges[rows, level + 1]
    return low, high


def _events(truth: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Whether each event happened, 0 or 1, and its probability."""
    y, p = as_floats(truth, "truth"), as_floats(probabilities, "probabilities")
    if p.shape == y.shape:
        p = np.stack([1 - p, p], axis=-1)
        label, p = label_probabilities(y, p)
        event, p = label.astype(np.float64), p[:, 1]
    else:
        label, p = label_probabilities(y, p)
        event = (label[:, None] == np.arange(p.shape[1])).astype(np.float64).ravel()
        p = p.ravel()
    if not np.isfinite(p).all():
        raise DataError(
            "a probability is missing where a label was observed",
            got=f"{int((~np.isfinite(p)).sum())} values that are not finite",
            wanted="probabilities",
            fix="set truth to NaN where there is no prediction",
        )
    return event, p


def _wilson(frequency: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central 95 % score interval of a frequency."""
    z = stats.norm.ppf(0.975)
    centre = (frequency + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(frequency * (1 - frequency) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
