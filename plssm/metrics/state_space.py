"""State-space divergence: do two trajectories visit the same places equally often?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from plssm.errors import DataError
from plssm.metrics.measure import Measure
from plssm.metrics.references import reference_runs
from plssm.metrics.trajectories import UNAVAILABLE, blocks_of, pairs_of, trial_pair

__all__ = ["state_space_divergence"]

MIXTURE_POINTS = 10_000
CHUNK = 256


def state_space_divergence(
    *,
    truth: Any,
    pred: Any,
    bins: int = 30,
    box: str | np.ndarray = "data",
    smoothing: float = 1e-5,
    method: str = "auto",
    scaling: float = 1.0,
    samples: int = 1000,
    seed: int = 0,
    floor: bool = True,
    references: bool = False,
) -> Measure:
    r"""Kullback-Leibler divergence of the occupation densities of two trajectories, in nats.

    .. math:: D = \sum_c p_c \log (p_c / q_c), \qquad
        p_c = \frac{n_c + a}{\sum_c n_c + a K^N}

    with the counts n_c of the K bins per channel ("histogram"), or with p and q as mixtures of
    Gaussians of variance `scaling` centred on the points, and the mean of log p - log q over
    Monte-Carlo samples from p ("mixture"). The number depends on both lengths, the bins and the
    box: all are in `.settings`, and `.floor` is what pieces of the truth score against each
    other.

    Points of `pred` outside the box are dropped and their share is reported; if none is inside,
    or any is not finite, the score is +inf. Trials are pooled; the mixture uses the first
    10 000 pooled points of each side. For one to five channels prefer the histogram: with unit
    variance the mixture cannot tell a fixed point from an attractor there.

    Args:
        truth: [T, N], [trials, T, N] (NaN padding at the end allowed) or list of [T_i, N]. Finite.
        pred: The same forms; lengths may differ.
        bins: Bins per channel, K.
        box: "data": minimum - 0.1 sd to maximum + 0.1 sd of the truth, per channel; "two-sigma":
            mean - 2 sd to mean + 2 sd; or an array [N, 2] of limits.
        smoothing: Pseudo-count a of every cell, greater than 0.
        method: "histogram", "mixture", or "auto": histogram up to five channels.
        scaling: Variance of the mixture components.
        samples: Monte-Carlo samples of the mixture.
        seed: Seed of those samples and of the white noise.
        floor: Measure the floor too: the median over pairs of truth blocks of the length of
            `pred`; NaN where the truth is shorter than two such blocks. It is cautious (too high)
            where the truth is much longer than `pred`.
        references: Measure a fixed point at the mean of the truth and white noise with its mean
            and standard deviation too, as long as `pred`.

    Returns:
        The divergence with `.floor`, `.references` and `.settings`.

    Raises:
        DataError: Empty input, different channels, a truth that is not finite or does not vary,
            or options out of range.

    References:
        Brenner et al. 2022, Tractable dendritic RNNs for reconstructing nonlinear dynamical
        systems, arXiv:2207.02542. Hess et al. 2023, Generalized teacher forcing for learning
        chaotic dynamics, arXiv:2306.04406.
    """
    _check_options(bins, smoothing, method, scaling, samples)
    truths, preds = trial_pair(truth, pred)
    x, y = np.concatenate(truths), np.concatenate(preds)
    if method == "auto":
        method = "histogram" if x.shape[1] <= 5 else "mixture"
    if method == "histogram":
        density: _Histogram | _Mixture = _Histogram(_limits(x, box), bins, smoothing)
    else:
        density = _Mixture(scaling, samples, seed)
    settings = {"measure": "state-space divergence, nats", "method": method}
    settings |= {"truth_points": len(x), "pred_points": len(y)} | density.settings(x, y, box)
    value = density.divergence(x, y) if np.isfinite(y).all() else math.inf
    level = math.nan
    if floor:
        level = _floor(density, x, len(y), settings)
    beside = {}
    if references:
        runs = reference_runs(truth=truths, pred=preds, seed=seed)
        beside = {name: density.divergence(x, np.concatenate(run)) for name, run in runs.items()}
    return Measure(value, floor=level, references=beside, settings=settings)


class _Histogram:
    """Smoothed histograms on a common box, kept as occupied cells only."""

    most_pairs = 20

    def __init__(self, limits: np.ndarray, bins: int, smoothing: float) -> None:
        self.limits, self.bins, self.smoothing = limits, int(bins), float(smoothing)
        if self.bins ** len(limits) > 2**62:
            raise DataError(
                "too many cells for a histogram",
                got=f"{bins} bins in {len(limits)} channels",
                fix='use method="mixture" or fewer bins',
            )

    def cells(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of the occupied cells and their counts; points outside are dropped."""
        low, high = self.limits.T
        x = x[((x >= low) & (x <= high)).all(axis=1)]
        index = ((x - low) / (high - low) * self.bins).astype(np.int64)
        index = np.minimum(index, self.bins - 1)
        code = index @ (self.bins ** np.arange(len(low), dtype=np.int64))
        return np.unique(code, return_counts=True)

    def divergence(self, x: np.ndarray, y: np.ndarray) -> float:
        """Return KL(x || y), the empty cells in closed form; +inf if no point of y is inside."""
        (codes_x, count_x), (codes_y, count_y) = self.cells(x), self.cells(y)
        if len(codes_y) == 0:
            return math.inf
        total, a = float(self.bins ** len(self.limits)), self.smoothing
        codes = np.union1d(codes_x, codes_y)
        p, q = np.zeros(len(codes)), np.zeros(len(codes))
        p[np.searchsorted(codes, codes_x)] = count_x
        q[np.searchsorted(codes, codes_y)] = count_y
        mass_p, mass_q = p.sum() + a * total, q.sum() + a * total
        p, q = (p + a) / mass_p, (q + a) / mass_q
        empty = (total - len(codes)) * (a / mass_p) * math.log(mass_q / mass_p)
        return max(float(np.sum(p * np.log(p / q))) + empty, 0.0)

    def settings(self, x: np.ndarray, y: np.ndarray, box: str | np.ndarray) -> dict:
        """Describe the measurement."""
        low, high = self.limits.T
        outside = [float(1 - ((v >= low) & (v <= high)).all(axis=1).mean()) for v in (x, y)]
        return {
            "bins": self.bins,
            "box": box if isinstance(box, str) else "given",
            "limits": self.limits.tolist(),
            "smoothing": self.smoothing,
            "truth_outside": outside[0],
            "pred_outside": outside[1],
        }


class _Mixture:
    """Gaussian mixtures centred on the points."""

    most_pairs = 5

    def __init__(self, scaling: float, samples: int, seed: int) -> None:
        self.scaling, self.samples, self.seed = float(scaling), int(samples), int(seed)

    def log_density(self, at: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Return log density at points [n, N] up to the constant that cancels."""
        out = np.empty(len(at))
        for i in range(0, len(at), CHUNK):
            square = cdist(at[i : i + CHUNK], centres, "sqeuclidean")
            out[i : i + CHUNK] = logsumexp(-square / (2 * self.scaling), axis=1)
        return out - math.log(len(centres))

    def divergence(self, x: np.ndarray, y: np.ndarray) -> float:
        """Return the Monte-Carlo estimate of KL(x || y)."""
        x, y = x[:MIXTURE_POINTS], y[:MIXTURE_POINTS]
        rng = np.random.default_rng(self.seed)
        at = x[rng.integers(len(x), size=self.samples)]
        at = at + math.sqrt(self.scaling) * rng.standard_normal(at.shape)
        return float(np.mean(self.log_density(at, x) - self.log_density(at, y)))

    def settings(self, x: np.ndarray, y: np.ndarray, box: str | np.ndarray) -> dict:
        """Describe the measurement."""
        return {
            "scaling": self.scaling,
            "samples": self.samples,
            "seed": self.seed,
            "truth_used": min(len(x), MIXTURE_POINTS),
            "pred_used": min(len(y), MIXTURE_POINTS),
        }


def _floor(density: _Histogram | _Mixture, x: np.ndarray, length: int, settings: dict) -> float:
    """Return the median divergence over pairs of truth blocks; describe it in the settings."""
    pairs = pairs_of(blocks_of([x], length), density.most_pairs)
    settings["floor_pairs"] = len(pairs)
    settings["floor"] = "median over pairs of truth blocks" if pairs else UNAVAILABLE
    return float(np.median([density.divergence(a, b) for a, b in pairs])) if pairs else math.nan


def _limits(x: np.ndarray, box: str | np.ndarray) -> np.ndarray:
    """Return the limits [N, 2] of the box."""
    sd = x.std(axis=0)
    if isinstance(box, str):
        if box == "data":
            limits = np.stack([x.min(axis=0) - 0.1 * sd, x.max(axis=0) + 0.1 * sd], axis=1)
        elif box == "two-sigma":
            limits = np.stack([x.mean(axis=0) - 2 * sd, x.mean(axis=0) + 2 * sd], axis=1)
        else:
            raise DataError(
                "unknown box", got=box, wanted='"data", "two-sigma" or an array [N, 2]'
            )
        flat = np.flatnonzero(np.ptp(x, axis=0) == 0)
        if len(flat):
            raise DataError(
                "the truth does not vary",
                axis="channel",
                got=f"constant channels {flat.tolist()}",
                wanted="positive variance",
                fix="leave these channels out or pass box=[N, 2]",
            )
        return limits
    limits = np.asarray(box, dtype=np.float64)
    right = limits.shape == (x.shape[1], 2) and np.isfinite(limits).all()
    if not right or not (limits[:, 0] < limits[:, 1]).all():
        raise DataError(
            "the box does not fit",
            got=limits.tolist(),
            wanted=f"finite limits [{x.shape[1]}, 2], low below high",
        )
    return limits


def _check_options(bins: int, smoothing: float, method: str, scaling: float, samples: int) -> None:
    """Refuse options out of range."""
    if method not in ("auto", "histogram", "mixture"):
        raise DataError("unknown method", got=method, wanted='"auto", "histogram" or "mixture"')
    for name, value in {
        "bins": bins,
        "smoothing": smoothing,
        "scaling": scaling,
        "samples": samples,
    }.items():
        if not value > 0:
            raise DataError(f"{name} is out of range", got=value, wanted="greater than 0")
