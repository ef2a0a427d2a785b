"""Where the hinges of a fresh piecewise-linear map are placed before EM begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plssm.inference.starts import StartPath

__all__ = ["Placement", "Whitened", "best_placement"]

MOSTLY_OPEN = 0.2  # at first, units of the state's own axes are closed for at most this share
EXPLORED = 0.5  # share of the candidates that are drawn afresh; the others vary the best so far
TILT = 0.5  # size of the random part of the directions of a state unit
NUDGE = 0.15  # change of directions and quantiles that makes a variation


class Whitened:
    """A state in coordinates of unit covariance.

    Args:
        state: The state of k dimensions, with its moments.
        inside: Which steps exist, bool ``[B, T]``.

    Attributes:
        map: Matrix from the state to the coordinates ``[k, k]``.
        axes: The state's own axes, one row each of unit length, in the coordinates.
    """

    def __init__(self, state: StartPath, inside: np.ndarray) -> None:
        flat = state.mean[inside]
        centred = flat - flat.mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred / max(len(flat) - 1, 1))
        scale = np.sqrt(np.maximum(values, 1e-12 * values.max()))
        scale = np.where(scale > 0, scale, 1.0)
        self.state, self.inside = state, inside
        self.map = (vectors / scale).T
        axes = vectors * scale  # the inverse map: row i is axis i of the state
        self.axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)

    @property
    def dim(self) -> int:
        """Dimension k of the state."""
        return len(self.map)


@dataclass(frozen=True)
class Placement:
    r"""Affine features of a whitened state, each with a kink at a quantile of the data.

    .. math:: z_i = v_i^\top x - c_i, \qquad P(z_i < 0) = \mathrm{closed}_i

    The first k features are coordinates of the state, the others further hinges on it: regressing
    the next z on relu(z) is a regression on hinges, while the observations stay a linear function
    of z.

    Args:
        directions: v of every feature in whitened coordinates ``[M, k]``, unit rows.
        closed: Share of the data for which each unit is closed ``[M]``.
    """

    directions: np.ndarray
    closed: np.ndarray

    @classmethod
    def own_axes(cls, white: Whitened, dim: int, rng: np.random.Generator) -> Placement:
        """The state's own axes with random signs, nearly always open, so that any linear map fits.

        Further units are random directions with kinks anywhere.
        """
        k = white.dim
        own = rng.choice((-1.0, 1.0), k)[:, None] * white.axes
        closed = rng.uniform(size=dim)
        closed[:k] *= MOSTLY_OPEN
        return cls(_filled(own, dim, rng), closed)

    @classmethod
    def random(cls, white: Whitened, dim: int, rng: np.random.Generator) -> Placement:
        """Own axes or oblique random ones, with kinks up to a random quantile."""
        k = white.dim
        own = rng.choice((-1.0, 1.0), k)[:, None] * white.axes
        if rng.uniform() < 0.5:
            own = _rotation(k, rng) + TILT * rng.standard_normal((k, k)) / np.sqrt(k)
        closed = rng.uniform(size=dim)
        closed[:k] *= rng.uniform(MOSTLY_OPEN, 1.0)
        return cls(_filled(own, dim, rng), closed)

    def varied(self, rng: np.random.Generator) -> Placement:
        """A placement nearby."""
        directions = self.directions + NUDGE * rng.standard_normal(self.directions.shape)
        closed = self.closed + NUDGE * rng.standard_normal(self.closed.shape)
        return Placement(_unit(directions), np.clip(closed, 0.0, 1.0))

    def lift(self, white: Whitened) -> StartPath:
        """The features with their moments."""
        weights = self.directions @ white.map
        features = white.state.mean @ weights.T
        kinks = [
            np.quantile(f, q) for f, q in zip(features[white.inside].T, self.closed, strict=True)
        ]
        mean = np.where(white.inside[..., None], features - np.array(kinks), 0.0)
        return white.state.mapped(mean, weights)

    def log_volume(self) -> float:
        """Log of the volume that the coordinates span; a fair comparison of densities needs it."""
        k = self.directions.shape[1]
        return float(np.linalg.slogdet(self.directions[:k])[1])


def best_placement(
    state: StartPath,
    inside: np.ndarray,
    dim: int,
    *,
    seed: int,
    candidates: int,
    score: Callable[[StartPath], float],
) -> StartPath:
    """Features of a state under the placement of the hinges that predicts it best.

    Hinges move little once EM has begun (a unit that is always open stays so), so that a fit ends
    near the placement it starts from. Half of the candidates are drawn at random, the others vary
    the best one so far; each costs one regression.

    Args:
        state: The state, k dimensions.
        inside: Which steps exist, bool ``[B, T]``.
        dim: Number of features M.
        seed: Seed of the candidates: restarts differ by it.
        candidates: Number of placements that are compared, at least 1.
        score: Log density of the transitions of the first k features of a lifted path, per step.

    Returns:
        The lifted path of the best candidate.
    """
    rng, white = np.random.default_rng(seed), Whitened(state, inside)
    best = Placement.own_axes(white, dim, rng)
    path, chosen = best.lift(white), -np.inf
    if candidates == 1:
        return path
    drawn = max(int(EXPLORED * candidates), 1)
    for i in range(candidates):
        if i:
            place = Placement.random(white, dim, rng) if i < drawn else best.varied(rng)
            lifted = place.lift(white)
        else:
            place, lifted = best, path
        value = score(lifted) + place.log_volume()
        if value > chosen:
            best, path, chosen = place, lifted, value
    return path


def _rotation(k: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((k, k)))[0]


def _filled(own: np.ndarray, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Own directions followed by random orthogonal ones up to M rows."""
    k = len(own)
    further = [_rotation(k, rng) for _ in range(-(-dim // k) - 1)]
    return _unit(np.concatenate([own, *further])[:dim])


def _unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
