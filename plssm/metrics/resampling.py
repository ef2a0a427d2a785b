"""Intervals of means and correlations over origins, by drawing blocks of origins again."""

from __future__ import annotations

import math

import numpy as np

from plssm.errors import DataError

__all__ = ["Resampling"]

CONSTANT = 1e-9
"""A logarithm that varies by less than this over origins does not depend on them."""


class Resampling:
    """Circular block bootstrap over origins.

    Args:
        origins: Number of origins S.
        draws: Number of resamples.
        block: Neighbouring origins that are drawn together; 1 takes each alone.
        level: Probability of the central interval.
        seed: Seed of the draws.

    Raises:
        DataError: When an option is out of range.

    References:
        Politis & Romano 1992, A circular block-resampling procedure for stationary data.
    """

    def __init__(self, origins: int, *, draws: int, block: int, level: float, seed: int) -> None:
        for name, value, least, most in (
            ("resamples", draws, 1, math.inf),
            ("block", block, 1, origins),
        ):
            if int(value) != value or not least <= value <= most:
                raise DataError(f"{name} is out of range", got=value,
                                wanted=f"a whole number from {least} to {most}")  # fmt: skip
        if not 0 < level < 1:
            raise DataError("level is out of range", got=level, wanted="between 0 and 1")
        rng = np.random.default_rng(seed)
        count = -(-origins // block)
        starts = rng.integers(origins, size=(int(draws), count))
        chosen = ((starts[..., None] + np.arange(block)) % origins).reshape(int(draws), -1)
        cells = chosen[:, :origins] + origins * np.arange(int(draws))[:, None]
        weights = np.bincount(cells.ravel(), minlength=int(draws) * origins)
        self.weights = np.concatenate(
            [np.ones((1, origins)), weights.reshape(-1, origins)]
        )  # the first row is the sample itself
        self.tails = ((1 - level) / 2, (1 + level) / 2)

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Mean over origins and its interval, of each column.

        Args:
            x: ``[S, H]``; values that are not finite are left out.

        Returns:
            Value, low and high, ``[H, 3]``.
        """
        fine = np.isfinite(x)
        total, count = self.weights @ np.where(fine, x, 0.0), self.weights @ fine
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._interval(total / count)

    def correlation(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Correlation over origins of each column of x with that of y, and its interval.

        Where y does not vary there is nothing to correlate with: NaN. Where only x does not vary
        it knows nothing of y: 0.

        Args:
            x: ``[S, H]`` logarithms; rows where x or y is not finite are left out.
            y: ``[S, H]`` logarithms.

        Returns:
            Value, low and high, ``[H, 3]``.
        """
        fine = np.isfinite(x) & np.isfinite(y)
        count = np.maximum(self.weights @ fine, 1.0)
        x, y = (self._centred(a, fine) for a in (x, y))
        mean_x, mean_y = (self.weights @ a / count for a in (x, y))
        var_x, var_y = (
            np.maximum(self.weights @ a**2 / count - m**2, 0.0)
            for a, m in ((x, mean_x), (y, mean_y))
        )
        shared = self.weights @ (x * y) / count - mean_x * mean_y
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.clip(shared / np.sqrt(var_x * var_y), -1.0, 1.0)
        r = np.where(var_x <= CONSTANT**2, 0.0, r)
        few = (self.weights > 0) @ fine.astype(np.float64) < 3
        return self._interval(np.where((var_y <= CONSTANT**2) | few, np.nan, r))

    @staticmethod
    def _centred(x: np.ndarray, fine: np.ndarray) -> np.ndarray:
        filled = np.where(fine, x, 0.0)
        return np.where(fine, filled - filled.sum(0) / np.maximum(fine.sum(0), 1), 0.0)

    def _interval(self, values: np.ndarray) -> np.ndarray:
        """First row, and quantiles of the others, of each column."""
        out = np.full((values.shape[1], 3), np.nan)
        for h, column in enumerate(values.T):
            drawn = column[1:][np.isfinite(column[1:])]
            if np.isfinite(column[0]) and drawn.size:
                out[h] = column[0], *np.quantile(drawn, self.tails)
        return out
