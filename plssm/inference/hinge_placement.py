"""Where the hinges of a fresh piecewise-linear map are placed before EM begins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.inference.hinge_choice import choose_hinges, principal_axes
from plssm.inference.starts import StartPath

__all__ = ["Features", "Whitened", "lifted"]

MOSTLY_OPEN = 0.2  # at first, units of the state's own axes are closed for at most this share
ENOUGH = 20_000  # steps on which hinges are chosen; of longer data every n-th


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


def lifted(state: StartPath, inside: np.ndarray, dim: int, *, seed: int) -> StartPath:
    """A state's own axes as features, open most of the time, and further hinges on it.

    The first k features carry a linear map of the state, the others are hinges chosen by forward
    selection to predict its next value best: regressing the next z on relu(z) is a regression on
    hinges, while the observations stay a linear function of z. Hinges move little once EM has
    begun (a unit that is always open stays so), so that a fit ends near where it starts.

    Args:
        state: The state, k dimensions.
        inside: Which steps exist, bool ``[B, T]``.
        dim: Number of features M >= k.
        seed: Seed of signs, kinks and candidates: restarts differ by it.

    Returns:
        The lifted path.
    """
    rng, white = np.random.default_rng(seed), Whitened(state, inside)
    k = white.dim
    own = rng.choice((-1.0, 1.0), k)[:, None] * white.axes
    closed = MOSTLY_OPEN * rng.uniform(size=k)
    weights = own @ white.map
    along = (white.seen @ weights.T).T
    kinks = np.array([np.quantile(a, q) for a, q in zip(along, closed, strict=True)])
    return Features(weights, kinks).extended(white, dim, rng).of(white)
