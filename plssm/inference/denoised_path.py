"""A first latent path from a nonlinear regression of the data on their neighbours in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from plssm.data import Batch
from plssm.inference.hinge_choice import principal_axes
from plssm.inference.starts import StartPath, components_of, stand_ins
from plssm.model import StateSpaceModel

__all__ = ["denoised_path"]

HINGES = 300
EDGE = 0.05  # hinges have at least this share of the data on either side of their kink
RIDGES = 10.0 ** -np.arange(0.0, 9.0, 0.5)  # as shares of the largest eigenvalue
ROWS = 16384  # steps whose features are held at a time


def denoised_path(
    model: StateSpaceModel, batch: Batch, dim: int, *, neighbours: Sequence[int] = (-1, 1)
) -> StartPath:
    r"""What the neighbours in time say about each sample, as a first latent path.

    .. math:: \hat y_t = \beta^\top [u_t;\, \max(0, V u_t - c)], \qquad
              u_t = (y_{t+j})_{j \in \mathrm{neighbours}}

    Noise that is new at every step is not in the neighbours, so that the fitted values are nearly
    free of it, and they span the directions that the state moves the channels in, however little
    of the variance is in them. Unlike a linear smoother the regression follows a state whose map
    is far from linear. Directions V and kinks c are drawn at random; the ridge of the regression
    is chosen by generalised cross-validation.

    Args:
        model: The model (its observation models supply stand-ins of their data).
        batch: The trials.
        dim: Number of components; they have unit variance.
        neighbours: Shifts j in steps, without 0.

    Returns:
        Principal components of the fitted values, taken as known.

    References:
        Golub, Heath & Wahba (1979), Technometrics 21:215-223, doi:10.1080/00401706.1979.10489751.
    """
    signals, inside = stand_ins(model, batch)
    flat = signals[inside]
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2]
    few = (flat - flat.mean(0)) @ axes[: 3 * dim].T
    padded = np.zeros((*inside.shape, few.shape[1]))
    padded[inside] = few
    windows = np.concatenate([_shifted(padded, j) for j in neighbours], axis=-1)[inside]
    padded[inside] = _fitted(windows, few)
    return StartPath.certain(components_of(padded @ axes[: 3 * dim], inside, dim), batch)


def _shifted(signals: np.ndarray, by: int) -> np.ndarray:
    """Signals of step t + by at step t, zeros beyond the ends."""
    out, steps = np.zeros_like(signals), signals.shape[1]
    here = slice(max(-by, 0), min(steps, steps - by))
    there = slice(max(by, 0), min(steps, steps + by))
    out[:, here] = signals[:, there]
    return out


def _fitted(windows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fitted values of the ridge regression on windows and their hinges."""
    rng = np.random.default_rng(0)
    scale, vectors = principal_axes(windows)
    inputs = (windows - windows.mean(0)) @ (vectors / np.sqrt(scale * scale.max()))
    directions = rng.standard_normal((HINGES, inputs.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sample = inputs[:: -(-len(inputs) // ROWS)]
    shares = rng.uniform(EDGE, 1.0 - EDGE, HINGES)
    kinks = np.array([np.quantile(sample @ v, q) for v, q in zip(directions, shares, strict=True)])

    def chunks() -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, len(inputs), ROWS):
            rows = slice(first, first + ROWS)
            hinges = np.maximum(inputs[rows] @ directions.T - kinks, 0.0)
            yield rows, np.concatenate([np.ones((len(hinges), 1)), inputs[rows], hinges], axis=1)

    gram = sum(f.T @ f for _, f in chunks())
    crossed = sum(f.T @ targets[rows] for rows, f in chunks())
    values, vectors = np.linalg.eigh(gram)
    seen = vectors.T @ crossed
    squares, best, weights = (targets**2).sum(0), np.inf, np.zeros_like(crossed)
    for ridge in values[-1] * RIDGES:
        inverse = 1.0 / (np.maximum(values, 0.0) + ridge)
        share = np.maximum(values, 0.0) * inverse
        left = squares - ((2.0 - share) * inverse @ seen**2)
        free = max(1.0 - share.sum() / len(targets), 1e-3)
        left = np.maximum(left, 1e-9 * max(squares.max(), 1e-300))
        score = np.log(left).mean() - 2.0 * np.log(free)
        if score < best:
            best, weights = score, vectors @ (inverse[:, None] * seen)
    return np.concatenate([f @ weights for _, f in chunks()])
