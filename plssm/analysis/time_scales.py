"""Time scales of a series: how long it remembers, and how far ahead it can be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from plssm.errors import DataError

__all__ = [
    "TimeScales",
    "autocorrelation",
    "delayed_mutual_information",
    "predictability_time",
    "time_scales",
]


@dataclass(frozen=True)
class TimeScales:
    """Steps after which a series is new to itself, per channel and as medians over channels.

    Args:
        decorrelation: [N] first lag at which the autocorrelation is below 1/e or has a local
            minimum; NaN where there is none.
        information: [N] first lag at which the delayed mutual information has a local minimum;
            NaN where there is none.
    """

    decorrelation: np.ndarray
    information: np.ndarray

    @property
    def forcing_interval(self) -> int:
        """Steps between two forcings of sparse teacher forcing: the smaller of both medians.

        Raises:
            DataError: Neither was found within the lags looked at.
        """
        both = (self.decorrelation, self.information)
        found = [float(np.nanmedian(lags)) for lags in both if np.isfinite(lags).any()]
        if not found:
            raise DataError(
                "the series neither decorrelates nor has a minimum of mutual information",
                fix="look at more lags, or take the predictability time of a known exponent",
            )
        return max(round(min(found)), 1)


def time_scales(x: Any, *, lags: int = 100, bins: int = 64) -> TimeScales:
    r"""Find the lags at which a series has lost the memory of itself.

    .. math:: \tau = \min\big(\operatorname{med}_i \min\{k : \rho_i(k) < 1/e
        \text{ or } \rho_i \text{ has a local minimum}\},\;
        \operatorname{med}_i \min\{k : I_i(k) \text{ has a local minimum}\}\big)

    is `.forcing_interval`, a choice for the interval of sparse teacher forcing that needs no
    exponent. Where the largest Lyapunov exponent is known, `predictability_time` is another.

    Args:
        x: [T], [T, N], [trials, T, N] or list of [T_i, N]; NaN = missing.
        lags: Lags looked at: 1 to lags - 1.
        bins: Bins per axis of the mutual information.

    Returns:
        The lags per channel.

    Raises:
        DataError: Too short, empty or constant channels, infinite entries.

    References:
        Fraser and Swinney 1986, Independent coordinates for strange attractors from mutual
        information, doi:10.1103/PhysRevA.33.1134. Mikhaeil, Monfared and Durstewitz 2022, On the
        difficulty of learning chaotic dynamics with RNNs, arXiv:2110.07238.
    """
    correlation = autocorrelation(x, lags=lags)
    information = delayed_mutual_information(x, lags=lags, bins=bins)
    low = correlation < math.exp(-1)
    low[1:-1] |= _minima(correlation)
    least = np.zeros_like(information, dtype=bool)
    least[1:-1] = _minima(information)
    return TimeScales(_first(low), _first(least))


def autocorrelation(x: Any, *, lags: int = 100) -> np.ndarray:
    r"""Return the autocorrelation of each channel, over the pairs that were observed.

    .. math:: \rho(k) = \frac{1}{n_k} \sum_{t} (x_t - \bar x)(x_{t+k} - \bar x) / s^2

    Mean and variance are those of all trials; the n_k pairs lie within a trial, both observed.

    Args:
        x: [T], [T, N], [trials, T, N] or list of [T_i, N]; NaN = missing.
        lags: Number of lags, from 0 on.

    Returns:
        [lags, N], 1 at lag 0; NaN where no pair was observed.

    Raises:
        DataError: Too short, empty or constant channels, infinite entries.
    """
    trials = _checked(x, lags)
    stacked = np.concatenate(trials)
    mean, variance = np.nanmean(stacked, axis=0), np.nanvar(stacked, axis=0)
    products = np.zeros((lags, stacked.shape[1]))
    pairs = np.zeros_like(products)
    for trial in trials:
        seen = np.isfinite(trial)
        products += _lagged_sums(np.where(seen, trial - mean, 0.0), lags)
        pairs += np.round(_lagged_sums(seen.astype(np.float64), lags))
    return np.where(pairs > 0, products / np.maximum(pairs, 1), math.nan) / variance


def delayed_mutual_information(x: Any, *, lags: int = 100, bins: int = 64) -> np.ndarray:
    r"""Return the mutual information of each channel with its own future, in nats.

    .. math:: I(k) = \sum_{ab} p_{ab} \log \frac{p_{ab}}{p_a p_b}

    with p the histogram of the pairs (x_t, x_{t+k}) within trials, `bins` equal bins per axis from
    the smallest to the largest value. Independent values score about (occupied cells) / 2n, not 0.

    Args:
        x: [T], [T, N], [trials, T, N] or list of [T_i, N]; NaN = missing.
        lags: Number of lags, from 0 on.
        bins: Bins per axis.

    Returns:
        [lags, N]; lag 0 is the entropy of the histogram; NaN where no pair was observed.

    Raises:
        DataError: Too short, empty or constant channels, infinite entries.
    """
    if not bins >= 2:
        raise DataError("bins is out of range", got=bins, wanted="2 or more")
    trials = _checked(x, lags)
    stacked = np.concatenate(trials)
    low, width = (
        np.nanmin(stacked, axis=0),
        np.nanmax(stacked, axis=0) - np.nanmin(stacked, axis=0),
    )
    out = np.full((lags, stacked.shape[1]), math.nan)
    for i in range(stacked.shape[1]):
        cells = []
        for trial in trials:
            place = (trial[:, i] - low[i]) / width[i] * bins
            cell = np.minimum(np.nan_to_num(place, nan=-1.0).astype(np.int64), bins - 1)
            cells.append(np.where(np.isnan(place), -1, cell))
        for k in range(lags):
            joint = sum(_joint_counts(c, k, bins) for c in cells)
            out[k, i] = _information(joint)
    return out


def predictability_time(exponent: float, *, dt: float = 1.0) -> float:
    r"""Return the steps in which a small error doubles.

    .. math:: \tau = \frac{\ln 2}{\lambda_{\max} \, dt}

    Args:
        exponent: Largest Lyapunov exponent, per unit of time.
        dt: Duration of a step in that unit.

    Returns:
        Steps (not rounded); +inf for an exponent of 0 or less.

    Raises:
        DataError: An exponent that is not finite, or a step without duration.

    References:
        Mikhaeil, Monfared and Durstewitz 2022, On the difficulty of learning chaotic dynamics
        with RNNs, arXiv:2110.07238.
    """
    if not (math.isfinite(exponent) and dt > 0):
        raise DataError("out of range", got=f"exponent={exponent}, dt={dt}",
                        wanted="a finite exponent and a positive dt")  # fmt: skip
    return math.log(2) / (exponent * dt) if exponent > 0 else math.inf


def _minima(curve: np.ndarray) -> np.ndarray:
    """Say which inner points [lags - 2, N] lie below the one before and not above the next."""
    return (curve[1:-1] < curve[:-2]) & (curve[1:-1] <= curve[2:])


def _first(true: np.ndarray) -> np.ndarray:
    """Return the first true lag after 0 of each column [lags, N] as [N]; NaN where none is."""
    later = true[1:]
    return np.where(later.any(axis=0), later.argmax(axis=0) + 1.0, math.nan)


def _lagged_sums(x: np.ndarray, lags: int) -> np.ndarray:
    """Return sum_t x_t x_(t+k) for k < lags of each column: [T, N] to [lags, N]."""
    size = next_fast_len(len(x) + lags, real=True)
    spectrum = rfft(x, size, axis=0)
    return irfft(np.abs(spectrum) ** 2, size, axis=0)[:lags]


def _joint_counts(cell: np.ndarray, lag: int, bins: int) -> np.ndarray:
    """Count pairs of cells [T] that lie `lag` apart, [bins, bins]; -1 is missing."""
    before, after = cell[: max(len(cell) - lag, 0)], cell[lag:]
    seen = (before >= 0) & (after >= 0)
    codes = before[seen] * bins + after[seen]
    return np.bincount(codes, minlength=bins * bins).reshape(bins, bins)


def _information(joint: np.ndarray) -> float:
    """Return the mutual information of a table of counts in nats; NaN if it is empty."""
    total = joint.sum()
    if total == 0:
        return math.nan
    p = joint / total
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    full = p > 0
    return float(np.sum(p[full] * np.log(p[full] / independent[full])))


def _checked(x: Any, lags: int) -> list[np.ndarray]:
    """Return the trials [T_i, N] after a look at shapes, lengths and values."""
    many = isinstance(x, (list, tuple)) and len(x) > 0 and np.ndim(x[0]) > 0
    parts = [_array(part) for part in x] if many else [_array(x)]
    if not many and parts[0].ndim == 3:
        parts = list(parts[0])
    trials = [part[:, None] if part.ndim == 1 else part for part in parts]
    if any(t.ndim != 2 for t in trials) or len({t.shape[-1] for t in trials}) > 1:
        raise DataError("not a series", got=[t.shape for t in trials],
                        wanted="[T, N], [trials, T, N] or a list of [T_i, N]")  # fmt: skip
    if lags < 3 or max(len(t) for t in trials) <= lags:
        raise DataError(
            "the lags do not fit the series",
            axis="time",
            got=f"lags={lags}, longest trial {max(len(t) for t in trials)}",
            wanted="at least 3 lags and a longer trial",
        )
    stacked = np.concatenate(trials)
    seen = ~np.isnan(stacked)
    high = np.where(seen, stacked, -math.inf).max(axis=0)
    low = np.where(seen, stacked, math.inf).min(axis=0)
    if np.isinf(stacked).any() or not (high > low).all():
        raise DataError(
            "channels that are constant, empty or infinite have no time scale",
            axis="channel",
            got=np.flatnonzero(~(high > low) | np.isinf(stacked).any(axis=0)).tolist(),
            fix="leave these channels out",
        )
    return trials


def _array(x: Any) -> np.ndarray:
    """Convert to a float64 array, from torch as well."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)
