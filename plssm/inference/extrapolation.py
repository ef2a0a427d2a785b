"""Extrapolation of fixed-point iterations such as EM from their last steps."""

from __future__ import annotations

import numpy as np

__all__ = ["Extrapolation"]

SINGULAR = 1e-8  # ridge of the least-squares problem, as a share of its trace


class Extrapolation:
    r"""Anderson's extrapolation of an iteration :math:`x \mapsto x + g(x)`.

    .. math:: x^+ = x + g - (\Delta X + \Delta G)\gamma, \qquad
              \gamma = \arg\min_\gamma \| g - \Delta G \gamma \|

    Differences of the last points and steps say how steps change with the point: the next point
    is where their linear model has no step left. EM in its last, linear phase needs far fewer
    iterations so. Whether the point is any better is for the caller to find out.

    Args:
        memory: Number of earlier steps that are used; 0 never extrapolates.

    References:
        Walker & Ni (2011), SIAM J Numer Anal 49:1715-1735, doi:10.1137/10078356X.
        Henderson & Varadhan (2019), J Comput Graph Stat 28:834-846,
        doi:10.1080/10618600.2019.1594835.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.forget()

    def forget(self) -> None:
        """Start again, without earlier steps."""
        self.points: list[np.ndarray] = []
        self.steps: list[np.ndarray] = []

    def after(self, point: np.ndarray, step: np.ndarray) -> np.ndarray | None:
        """The extrapolated next point; None while there is nothing to extrapolate from.

        Args:
            point: x ``[P]``.
            step: g(x) ``[P]``.
        """
        self.points = [*self.points, point][-self.memory - 1 :]
        self.steps = [*self.steps, step][-self.memory - 1 :]
        if not self.memory or len(self.points) < 2:
            return None
        moved, changed = (np.diff(np.stack(x, axis=1), axis=1) for x in (self.points, self.steps))
        gram = changed.T @ changed
        gram += SINGULAR * max(np.trace(gram), 1e-300) * np.eye(len(gram))
        return point + step - (moved + changed) @ np.linalg.solve(gram, changed.T @ step)
