"""Where the hinges of a fresh piecewise-linear map are placed before EM begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plssm.inference.hinge_choice import choose_hinges, principal_axes
from plssm.inference.starts import StartPath

__all__ = ["Features", "Placement", "Whitened", "best_placement"]

MOSTLY_OPEN = 0.2  # at first, units of the state's own axes are closed for at most this share
EXPLORED = 0.5  # share of the candidates that are drawn afresh; the others vary the best so far
ENOUGH = 20_000  # steps on which hinges are chosen; of longer data every n-th
TILT = 0.5  # size of the random part of the directions of a state unit
NUDGE = 0.15  # change of directions and quantiles that makes a variation


class Whitened:
    """A state in coordinates of unit covariance.

    Args:
        state: The state of k dimensions, with its moments.
        inside: Which steps exist, bool ``[B, T]``.

    Attributes:
        seen: The steps that exist ``[n, k]``.
        map: Matrix from the state to the coordinates ``[k, k]``.
        axes: The state's own axes, one row each of unit length, in the coordinates.
    """

    def __init__(self, state: StartPath, inside: np.ndarray) -> None:
        self.state, self.inside, self.seen = state, inside, state.mean[inside]
        scale, vectors = principal_axes(self.seen)
        self.map = (vectors / scale).T
        axes = vectors * scale  # the inverse map: row i is axis i of the state
        self.axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)

    @property
    def dim(self) -> int:
        """Dimension k of the state."""
        return len(self.map)


@dataclass(frozen=True)
class Placement:
    r"""Coordinates of a whitened state, each with a kink at a quantile of the data.

    .. math:: z_i = v_i^\top x - c_i, \qquad P(z_i < 0) = \mathrm{closed}_i

    Args:
        directions: v of every coordinate in whitened coordinates ``[k, k]``, unit rows.
        closed: Share of the data for which each unit is closed ``[k]``.
    """

    directions: np.ndarray
    closed: np.ndarray

    @classmethod
    def own_axes(cls, white: Whitened, rng: np.random.Generator) -> Placement:
        """The state's own axes with random signs, nearly always open: any linear map fits."""
        k = white.dim
        own = rng.choice((-1.0, 1.0), k)[:, None] * white.axes
        return cls(own, MOSTLY_OPEN * rng.uniform(size=k))

    @classmethod
    def random(cls, white: Whitened, rng: np.random.Generator) -> Placement:
        """Own axes or oblique random ones, with kinks up to a random quantile."""
        k = white.dim
        own = rng.choice((-1.0, 1.0), k)[:, None] * white.axes
        if rng.uniform() < 0.5:
            rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
            own = _unit(rotation + TILT * rng.standard_normal((k, k)) / np.sqrt(k))
        return cls(own, rng.uniform(MOSTLY_OPEN, 1.0) * rng.uniform(size=k))

    def varied(self, rng: np.random.Generator) -> Placement:
        """A placement nearby."""
        directions = self.directions + NUDGE * rng.standard_normal(self.directions.shape)
        closed = self.closed + NUDGE * rng.standard_normal(self.closed.shape)
        return Placement(_unit(directions), np.clip(closed, 0.0, 1.0))

    def features(self, white: Whitened) -> Features:
        """The coordinates as features of the state."""
        weights = self.directions @ white.map
        along = white.seen @ weights.T
        kinks = [np.quantile(f, q) for f, q in zip(along.T, self.closed, strict=True)]
        return Features(weights, np.array(kinks))

    def log_volume(self) -> float:
        """Log of the volume that the coordinates span; a fair comparison of densities needs it."""
        return float(np.linalg.slogdet(self.directions)[1])


class Features(NamedTuple):
    r"""Affine features of a state, :math:`z = W x - c`.

    Attributes:
        weights: W ``[M, k]``.
        kinks: c ``[M]``.
    """

    weights: np.ndarray
    kinks: np.ndarray

    def of(self, white: Whitened) -> StartPath:
        """The features of the whole state, with their moments."""
        mean = white.state.mean @ self.weights.T - self.kinks
        return white.state.mapped(np.where(white.inside[..., None], mean, 0.0), self.weights)

    def extended(self, white: Whitened, dim: int, rng: np.random.Generator) -> Features:
        """With hinges up to M features, chosen to predict the next state best."""
        missing = dim - len(self.kinks)
        if not missing:
            return self
        pairs = white.inside[:, :-1] & white.inside[:, 1:]
        now, following = (x[pairs] for x in (white.state.mean[:, :-1], white.state.mean[:, 1:]))
        every = -(-len(white.seen) // ENOUGH)
        directions, kinks = choose_hinges(
            white.seen[::every], now[::every], following[::every], missing, rng=rng
        )
        return Features(
            np.concatenate([self.weights, directions]), np.concatenate([self.kinks, kinks])
        )


def best_placement(
    state: StartPath,
    inside: np.ndarray,
    dim: int,
    *,
    seed: int,
    candidates: int,
    score: Callable[[StartPath], float],
) -> StartPath:
    """Features of a state under the placement of their kinks that predicts it best.

    The first k features are coordinates of the state, the others further hinges on it: regressing
    the next z on relu(z) is a regression on hinges, while the observations stay a linear function
    of z. Hinges move little once EM has begun (a unit that is always open stays so), so that a
    fit ends near the placement it starts from.

    With M = k the coordinates' own kinks are all there is: half of the candidates for them are
    drawn at random, the others vary the best one so far; each costs one regression. With M > k
    the coordinates are the state's own axes, open most of the time to carry a linear map, and the
    further hinges are chosen by forward selection beside one.

    Args:
        state: The state, k dimensions.
        inside: Which steps exist, bool ``[B, T]``.
        dim: Number of features M >= k.
        seed: Seed of the candidates: restarts differ by it.
        candidates: Number of placements that are compared, at least 1.
        score: Log density of a step of a lifted path.

    Returns:
        The lifted path of the best candidate.
    """
    rng, white = np.random.default_rng(seed), Whitened(state, inside)
    best = Placement.own_axes(white, rng)
    if dim > white.dim or candidates == 1:
        return best.features(white).extended(white, dim, rng).of(white)
    chosen, drawn = -np.inf, max(int(EXPLORED * candidates), 1)
    for i in range(candidates):
        place = best
        if i:
            place = Placement.random(white, rng) if i < drawn else best.varied(rng)
        value = score(place.features(white).of(white)) + place.log_volume()
        if value > chosen:
            best, chosen = place, value
    return best.features(white).of(white)


def _unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
