"""Runs without any dynamics, which show what a score is worth: a fixed point and white noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from plssm.metrics.trajectories import trial_pair

__all__ = ["reference_runs"]


def reference_runs(*, truth: Any, pred: Any, seed: int = 0) -> dict[str, list[np.ndarray]]:
    r"""Make runs as long as `pred` that know nothing but mean and spread of the truth.

    .. math:: x_t = \bar x \quad \text{(fixed point)}, \qquad
        x_t \sim N(\bar x, \operatorname{diag} s^2) \quad \text{(white noise)}

    Args:
        truth: [T, N], [trials, T, N] (NaN padding at the end allowed) or list of [T_i, N]. Finite.
        pred: The same forms; only its lengths matter.
        seed: Seed of the white noise.

    Returns:
        Trials of the "fixed point" and of the "white noise", [T_i, N] each.

    Raises:
        DataError: Empty input, different channels, or a truth that is not finite.
    """
    truths, preds = trial_pair(truth, pred)
    pooled = np.concatenate(truths)
    mean, sd = pooled.mean(axis=0), pooled.std(axis=0)
    draw = np.random.default_rng(seed)
    return {
        "fixed point": [np.tile(mean, (len(p), 1)) for p in preds],
        "white noise": [mean + sd * draw.standard_normal(p.shape) for p in preds],
    }
