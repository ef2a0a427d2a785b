"""Tests of whiteness: does a series tell anything about its own future?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape
from plssm.metrics.gaussians import whiten

__all__ = ["Whiteness", "whiteness"]


@dataclass(frozen=True)
class Whiteness:
    """Autocorrelations of a series, alone and of its squares, with their tests.

    Args:
        autocorrelation: ``[lags, N]`` at lags 1, 2, ...
        statistic: Ljung-Box statistic of all lags up to each, ``[lags, N]``.
        p_value: Its p-values ``[lags, N]``.
        squared_autocorrelation: Of the squares, ``[lags, N]``.
        squared_statistic: Ljung-Box statistic of the squares (McLeod-Li), ``[lags, N]``.
        squared_p_value: Its p-values ``[lags, N]``.
        portmanteau: Hosking's statistic of all channels together up to each lag, ``[lags]``.
        portmanteau_p_value: Its p-values ``[lags]``.
        count: Observed entries of each channel ``[N]``.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=1001)
        >>> test = whiteness((noise[1:] + noise[:-1])[:, None], lags=5)
        >>> float(test.autocorrelation[0, 0].round(2)), bool(test.p_value[-1, 0] < 1e-6)
        (0.5, True)
    """

    autocorrelation: np.ndarray
    statistic: np.ndarray
    p_value: np.ndarray
    squared_autocorrelation: np.ndarray
    squared_statistic: np.ndarray
    squared_p_value: np.ndarray
    portmanteau: np.ndarray
    portmanteau_p_value: np.ndarray
    count: np.ndarray

    def table(self) -> pd.DataFrame:
        """Return the tests at the largest lag, one row per channel and one for all together.

        Returns:
            Columns "count", "first" (autocorrelation at lag 1), "statistic", "p_value",
            "squares_first", "squares_statistic" and "squares_p_value".
        """
        rows = pd.DataFrame(
            {
                "count": self.count,
                "first": self.autocorrelation[0],
                "statistic": self.statistic[-1],
                "p_value": self.p_value[-1],
                "squares_first": self.squared_autocorrelation[0],
                "squares_statistic": self.squared_statistic[-1],
                "squares_p_value": self.squared_p_value[-1],
            },
            index=[f"channel {i}" for i in range(len(self.count))],
        )
        rows.loc["together", ["count", "statistic", "p_value"]] = [
            self.count.sum(), self.portmanteau[-1], self.portmanteau_p_value[-1],
        ]  # fmt: skip
        return rows.astype({"count": int})

    def __str__(self) -> str:
        """Return the table as text."""
        lags = len(self.autocorrelation)
        return f"whiteness, lags 1 to {lags}\n" + self.table().to_string(float_format="%.3g")

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return self.table().to_html(float_format="%.3g")


def whiteness(series: Any, *, lags: int = 20, mask: Any = None) -> Whiteness:
    r"""Test whether standardised innovations are white: one by one, together, and their squares.

    .. math:: Q_L = n (n + 2) \sum_{l=1}^{L} \frac{r_l^2}{n_l} \sim \chi^2_L, \qquad
        H_L = \sum_{l=1}^{L} \frac{n^2}{n_l}
        \operatorname{tr}(C_l^\top C_0^{-1} C_l C_0^{-1}) \sim \chi^2_{N^2 L}

    with r_l the autocorrelation of a channel, n its observed entries and n_l the pairs of
    observed entries l apart in one trial (n - l in one complete trial: these are the tests of
    Ljung and Box, and of Hosking). Pairs never join two trials, and pairs with a missing entry
    are left out. For H vectors are made white by the covariance C_0 of what was observed of
    them. Means over all trials are subtracted. The squares show a variance that changes over
    time, which leaves the series itself uncorrelated; their test needs finite fourth moments.

    Parameters that were fitted to the same data make all tests too lenient: test on new data.

    Args:
        series: ``[B, T, N]`` or ``[T, N]``, such as :func:`standardised_innovations`; NaN =
            missing.
        lags: L, largest lag.
        mask: True where observed, broadcast to the series; None: where it is not NaN.

    Returns:
        Autocorrelations, statistics and p-values for all lags up to L.

    Raises:
        DataError: When a channel has no pair at some lag or does not vary, or the covariance of
            the channels is not positive definite.

    References:
        Ljung & Box 1978, doi:10.1093/biomet/65.2.297;
        Hosking 1980, The multivariate portmanteau statistic, doi:10.1080/01621459.1980.10477520;
        McLeod & Li 1983, doi:10.1111/j.1467-9892.1983.tb00373.x.

    Example:
        >>> test = whiteness(np.random.default_rng(0).normal(size=(2, 500, 3)))
        >>> test.p_value.shape, bool(test.portmanteau_p_value[-1] > 0.05)
        ((20, 3), True)
    """
    x, seen = _trials(series, lags, mask)
    pairs = _pairs(seen, lags)
    own = np.einsum("lii->li", pairs)
    if (own == 0).any():
        lag, channel = np.argwhere(own == 0)[0]
        raise DataError(
            "no two observed entries are that far apart",
            axis=f"channel {channel}",
            got=f"lag {lag + 1}, {int(seen[..., channel].sum())} entries",
            fix="use fewer lags, or leave the channel out",
        )
    plain = _ljung_box(x, seen, own)
    squares = _ljung_box(x**2, seen, own)
    joint, joint_p = _hosking(x, seen, pairs)
    return Whiteness(*plain, *squares, joint, joint_p, seen.sum((0, 1)))


def _trials(series: Any, lags: int, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """The series ``[B, T, N]`` and which entries were observed."""
    x = as_floats(series, "series")
    if x.ndim not in (2, 3):
        raise DataError("series: wrong number of axes", got=x.shape, wanted="[B, T, N] or [T, N]")
    if mask is not None:
        x = np.where(same_shape(as_floats(mask, "mask"), x, "mask") > 0, x, np.nan)
    seen = observed(x, "series")
    x, seen = (a.reshape(-1, *a.shape[-2:]) for a in (x, seen))
    if int(lags) != lags or not 1 <= lags < x.shape[1]:
        raise DataError(
            "lags is out of range", axis="time", got=lags,
            wanted=f"a whole number from 1 to {x.shape[1] - 1}",
        )  # fmt: skip
    return x, seen


def _centred(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Values less the mean of their channel; 0 where missing."""
    filled = np.where(seen, x, 0.0)
    mean = filled.sum((0, 1)) / np.maximum(seen.sum((0, 1)), 1)
    return np.where(seen, filled - mean, 0.0)


def _lagged(x: np.ndarray, lags: int) -> np.ndarray:
    """Sums over trials and times of x_i(t) x_j(t - l), ``[lags, N, N]``."""
    return np.stack(
        [np.einsum("bti,btj->ij", x[:, lag:], x[:, :-lag]) for lag in range(1, int(lags) + 1)]
    )


def _pairs(seen: np.ndarray, lags: int) -> np.ndarray:
    """Numbers of observed pairs, ``[lags, N, N]``."""
    return _lagged(seen.astype(np.float64), lags)


def _ljung_box(
    x: np.ndarray, seen: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Autocorrelations, cumulative statistics and p-values, each ``[lags, N]``."""
    centred, n = _centred(x, seen), seen.sum((0, 1))
    power = (centred**2).sum((0, 1))
    scale = np.where(seen, np.abs(np.where(seen, x, 0.0)), 0.0).max((0, 1))
    if (power <= n * (1e-12 * scale) ** 2).any():
        raise DataError(
            "a channel does not vary",
            axis=f"channel {int(np.argmin(power))}",
            fix="leave it out",
        )
    lags = len(pairs)
    sums = [(centred[:, lag:] * centred[:, :-lag]).sum((0, 1)) for lag in range(1, lags + 1)]
    r = np.stack(sums) / power
    statistic = (n * (n + 2) * r**2 / pairs).cumsum(0)
    return r, statistic, stats.chi2.sf(statistic, np.arange(1, lags + 1)[:, None])


def _hosking(x: np.ndarray, seen: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative multivariate portmanteau statistics and p-values, each ``[lags]``."""
    centred = _centred(x, seen)
    together = np.einsum("bti,btj->ij", seen.astype(float), seen.astype(float))
    covariance = np.einsum("bti,btj->ij", centred, centred) / np.maximum(together, 1)
    unit, _ = whiten(
        centred,
        np.broadcast_to(covariance, (*x.shape, x.shape[-1])),
        seen,
        "the covariance of the channels",
    )
    sums = _lagged(np.where(seen, unit, 0.0), len(pairs))
    used = pairs > 0
    terms = np.where(used, sums**2 / np.maximum(pairs, 1), 0.0)
    statistic = terms.sum((1, 2)).cumsum()
    return statistic, stats.chi2.sf(statistic, used.sum((1, 2)).cumsum())
