"""Power-spectrum distance: do two trajectories have the same rhythms?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from plssm.errors import DataError
from plssm.metrics.measure import Measure
from plssm.metrics.references import reference_runs
from plssm.metrics.trajectories import UNAVAILABLE, blocks_of, pairs_of, trial_pair

__all__ = ["power_spectra", "power_spectrum_distance"]

MOST_PAIRS = 20
SHORTEST = 4


def power_spectrum_distance(
    *,
    truth: Any,
    pred: Any,
    smoothing: float = 20.0,
    floor: bool = True,
    references: bool = False,
    seed: int = 0,
) -> Measure:
    r"""Hellinger distance of the power spectra, averaged over channels: 0 equal, 1 disjoint.

    .. math:: H = \sqrt{1 - \sum_f \sqrt{p_f q_f}}

    p and q are per channel: z-score, squared modulus of the real Fourier transform, Gaussian
    smoothing over frequency bins, normalisation to sum 1. The smoothing is in bins, so the number
    depends on the length: truth and pred are cut to the shortest trial of either. Spectra are
    averaged over trials, every trial weighing the same. A constant series has no spectrum and
    scores 1; a `pred` that is not finite scores +inf.

    Args:
        truth: [T, N], [trials, T, N] (NaN padding at the end allowed) or list of [T_i, N]. Finite.
        pred: The same forms; at the same sampling step.
        smoothing: Standard deviation of the smoothing in frequency bins; 0 for none.
        floor: Measure the floor too: the median over pairs of truth blocks of the same size;
            NaN where the truth is too short for one pair.
        references: Measure a fixed point (1, it has no spectrum) and white noise too.
        seed: Seed of the white noise.

    Returns:
        The distance with `.floor`, `.references`, `.settings` and `.per_dimension` [N].

    Raises:
        DataError: Empty or very short input, different channels, or a truth that is not finite
            or does not vary.

    References:
        Mikhaeil, Monfared and Durstewitz 2022, On the difficulty of learning chaotic dynamics
        with RNNs, arXiv:2110.07238. Hess et al. 2023, Generalized teacher forcing for learning
        chaotic dynamics, arXiv:2306.04406.
    """
    if not smoothing >= 0:
        raise DataError("smoothing is out of range", got=smoothing, wanted="0 or more bins")
    truths, preds = trial_pair(truth, pred)
    length = min(len(t) for t in truths + preds)
    _check_length(length, truths)
    p = power_spectra([t[:length] for t in truths], smoothing=smoothing)
    finite = all(np.isfinite(t).all() for t in preds)
    if finite:
        q = power_spectra([t[:length] for t in preds], smoothing=smoothing)
        per_dimension = _hellinger(p, q)
    else:
        per_dimension = np.full(p.shape[1], math.inf)
    settings = {
        "measure": "power-spectrum Hellinger distance",
        "smoothing_bins": float(smoothing),
        "steps": length,
        "truth_trials": len(truths),
        "pred_trials": len(preds),
    }
    level = math.nan
    if floor:
        level = _floor(truths, length, len(preds), smoothing, settings)
    beside = {}
    if references:
        for name, run in reference_runs(truth=truths, pred=preds, seed=seed).items():
            q = power_spectra([t[:length] for t in run], smoothing=smoothing)
            beside[name] = float(_hellinger(p, q).mean())
    return Measure(
        per_dimension.mean(),
        floor=level,
        references=beside,
        settings=settings,
        per_dimension=per_dimension,
    )


def power_spectra(trials: list[np.ndarray], *, smoothing: float = 20.0) -> np.ndarray:
    """Smoothed power spectra that sum to 1 over the frequencies, averaged over trials.

    Args:
        trials: Finite arrays [T, N] of one length T.
        smoothing: Standard deviation of the Gaussian smoothing in frequency bins; 0 for none.

    Returns:
        [T // 2 + 1, N]; a channel that is constant in a trial contributes zeros.
    """
    total = np.zeros((trials[0].shape[0] // 2 + 1, trials[0].shape[1]))
    for trial in trials:
        centred = trial - trial.mean(axis=0)
        sd = centred.std(axis=0)
        varies = sd > 1e-12 * np.abs(trial).max(axis=0)
        centred = np.where(varies, centred / np.where(varies, sd, 1.0), 0.0)
        power = np.abs(np.fft.rfft(centred, axis=0)) ** 2
        if smoothing > 0:
            power = np.maximum(gaussian_filter1d(power, smoothing, axis=0), 0.0)
        mass = power.sum(axis=0)
        total += power / np.where(mass > 0, mass, 1.0)
    return total / len(trials)


def _hellinger(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Hellinger distance per column, exactly 0 for equal columns of mass 1."""
    lacking = np.maximum(2.0 - p.sum(axis=0) - q.sum(axis=0), 0.0)
    lacking = np.where(lacking > 1e-9, lacking, 0.0)
    square = ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=0)
    return np.sqrt(np.minimum((square + lacking) / 2, 1.0))


def _floor(
    truths: list[np.ndarray], length: int, trials: int, smoothing: float, settings: dict
) -> float:
    """Return the median distance over pairs of groups of truth blocks."""
    blocks = blocks_of(truths, length)
    groups = [blocks[i : i + trials] for i in range(0, len(blocks) - trials + 1, trials)]
    pairs = pairs_of(groups, MOST_PAIRS)
    settings["floor_pairs"] = len(pairs)
    settings["floor"] = "median over pairs of truth blocks" if pairs else UNAVAILABLE
    values = [
        _hellinger(
            power_spectra(a, smoothing=smoothing), power_spectra(b, smoothing=smoothing)
        ).mean()
        for a, b in pairs
    ]
    return float(np.median(values)) if values else math.nan


def _check_length(length: int, truths: list[np.ndarray]) -> None:
    """Refuse series too short for a spectrum and a truth without one."""
    if length < SHORTEST:
        raise DataError(
            "too short for a power spectrum",
            axis="time",
            got=f"{length} steps",
            wanted=f"at least {SHORTEST} in every trial",
            fix="leave very short trials out",
        )
    for i, trial in enumerate(truths):
        flat = np.flatnonzero(np.ptp(trial[:length], axis=0) == 0)
        if len(flat):
            raise DataError(
                "the truth does not vary",
                trial=i,
                axis="channel",
                got=f"constant channels {flat.tolist()}",
                wanted="positive variance",
                fix="leave these channels out",
            )
