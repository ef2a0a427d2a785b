"""Forecasts a fitted model has to beat: persistence and a first-order vector autoregression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Baseline"]


@dataclass(frozen=True)
class Baseline:
    r"""Training mean, standard deviation and VAR(1) of one modality.

    .. math:: x_{t} = a + \Phi x_{t-1} + \varepsilon_t

    Args:
        mean: Training mean of each channel ``[N]``.
        sd: Training standard deviation of each channel ``[N]``.
        intercept: a, for z-scored data ``[N]``.
        matrix: Phi, for z-scored data ``[N, N]``.
    """

    mean: np.ndarray
    sd: np.ndarray
    intercept: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, trials: Sequence[np.ndarray]) -> Baseline:
        """Fit to training trials by least squares on pairs of complete neighbouring samples.

        Args:
            trials: Samples of each trial ``[n, N]``; NaN = missing.

        Returns:
            The baseline. Channels without variance get a standard deviation of 1.
        """
        stacked = np.concatenate([np.asarray(t, dtype=np.float64) for t in trials])
        seen = np.isfinite(stacked)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, stacked, 0.0).sum(0) / count
        sd = np.sqrt(np.where(seen, (stacked - mean) ** 2, 0.0).sum(0) / count)
        sd = np.where(sd > 0, sd, 1.0)
        scaled = [(np.asarray(t) - mean) / sd for t in trials]
        before = np.concatenate([t[:-1] for t in scaled])
        after = np.concatenate([t[1:] for t in scaled])
        whole = np.isfinite(before).all(1) & np.isfinite(after).all(1)
        design = np.column_stack([np.ones(whole.sum()), before[whole]])
        channels = mean.shape[0]
        if whole.sum() <= channels + 1:
            return cls(mean, sd, np.zeros(channels), np.zeros((channels, channels)))
        weights = np.linalg.lstsq(design, after[whole], rcond=None)[0]
        return cls(mean, sd, weights[0], weights[1:].T)

    def scale(self, x: np.ndarray) -> np.ndarray:
        """Z-score samples ``[..., N]`` with the training mean and standard deviation."""
        return (x - self.mean) / self.sd

    def carry_forward(self, x: np.ndarray) -> np.ndarray:
        """Last value seen of every channel, in z-scores ``[n, N]``; 0 before the first one."""
        scaled = self.scale(np.asarray(x, dtype=np.float64))
        seen = np.isfinite(scaled)
        last = np.maximum.accumulate(np.where(seen, np.arange(len(x))[:, None], -1), axis=0)
        held = np.take_along_axis(np.nan_to_num(scaled), np.maximum(last, 0), axis=0)
        return np.where(last >= 0, held, 0.0)

    def autoregress(self, x: np.ndarray, horizon: np.ndarray) -> np.ndarray:
        """VAR(1) forecasts.

        Args:
            x: Z-scored states forecast from ``[n, N]``.
            horizon: Samples ahead of each one ``[n]``.

        Returns:
            Forecasts in z-scores ``[n, N]``.
        """
        out, state = np.array(x), np.array(x)
        for k in range(1, int(horizon.max(initial=0)) + 1):
            state = self.intercept + state @ self.matrix.T
            out[horizon == k] = state[horizon == k]
        return out
