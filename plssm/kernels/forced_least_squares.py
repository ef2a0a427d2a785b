"""Normal equations of forced paths: how errors follow from all parameters, in compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plssm.kernels._path_derivatives import window_rows
from plssm.kernels._threads import even_ranges, side_by_side
from plssm.kernels._update_steps import begin_windows, copy_values, gather_windows, map_views

if TYPE_CHECKING:
    from plssm.kernels.forced_updates import (
        Draws,
        MapSizes,
        Penalty,
        ValueCopies,
        WindowSource,
    )

__all__ = ["ForcedLeastSquares", "NormalEquations"]

_ROOM = 2**22  # numbers of a block of derivatives


class NormalEquations(NamedTuple):
    r"""A sum of squares and a quadratic penalty around some parameters.

    .. math:: f(\theta + \delta) \approx f + g^\top \delta + \tfrac12 \delta^\top H \delta, \qquad
        g = \tfrac2n J^\top r + \ldots, \quad H = \tfrac2n J^\top J + \ldots

    Attributes:
        value: f.
        gradient: g [n].
        curvature: H [n, n], without second derivatives of the errors (Gauss-Newton).
    """

    value: float
    gradient: np.ndarray
    curvature: np.ndarray


class ForcedLeastSquares:
    r"""The loss of forced paths (see `forced_loss`) with its Gauss-Newton curvature.

    The derivatives of a path follow from the step before, one column for every parameter:

    .. math::
        \frac{d z_{t+1}}{d\theta} = F'(\tilde z_t)\,(1 - w_t) \frac{d z_t}{d\theta}
        + \frac{\partial F}{\partial\theta}(\tilde z_t)

    They are convolved with the response where there is one. A path of T steps costs
    :math:`T M^2 n` multiplications for n parameters, the curvature :math:`T N n^2 / 2` for N
    compared states.

    Args:
        copies: How the map follows from the vector of parameters.
        sizes: Sizes of the map.
        clipped: Whether its layer is clipped.
        linear_units: Number of leading units that are linear.
        source: What windows are cut from, in double precision.
        penalty: What is added to the loss.
        limit: Largest absolute value of the decay.
        steps: T.
    """

    def __init__(
        self, copies: ValueCopies, sizes: MapSizes, *, clipped: bool, linear_units: int,
        source: WindowSource, penalty: Penalty, limit: float, steps: int,
    ) -> None:  # fmt: skip
        self.copies, self.sizes, self.source, self.penalty = copies, sizes, source, penalty
        self.limit, self.steps = limit, steps
        self._layout = (int(clipped), linear_units)
        self._compared = np.flatnonzero(source.precision != 0)
        response = source.response
        self._response = np.ones((1, sizes.dim)) if response is None else response
        self._windows = (
            source.states, source.targets, source.ends, source.inputs, len(self._response) - 1
        )  # fmt: skip
        self._signals: tuple[np.ndarray, ...] = ()
        self._starts, self._count = np.empty((0, 0), np.int64), 1

    def take(self, draws: Draws) -> None:
        """Cuts the windows that `value` and `equations` are about, the first step's of the draws.

        Args:
            draws: The random choices.
        """
        batch, dim, steps = draws.starts.shape[1], self.sizes.dim, self.steps
        drive = steps if self.sizes.inputs else 0
        lengths = (1, steps, steps, steps, drive)
        self._signals = tuple(np.empty((length, dim, batch)) for length in lengths)
        self._starts = draws.starts
        known = self.source.known
        found = gather_windows(self._windows, tuple(draws), 0, self._signals, known)
        self._count = max(int(found), 1)

    @property
    def teacher(self) -> np.ndarray:
        """The teacher of the windows [batch, T, M]."""
        return self._signals[1].transpose(2, 0, 1)

    def value(self, vector: np.ndarray) -> float:
        """Returns the loss of the windows.

        Args:
            vector: Parameters [n].
        """
        views = self._begin(vector)
        batch = self._starts.shape[1]
        states = len(self._compared)
        errors = np.empty((batch, self.steps, states))
        rows = np.empty((*errors.shape, 0))
        squares = self._paths(views, rows, errors, 0, batch)
        return squares / self._count + self._penalty(vector)

    def equations(self, vector: np.ndarray) -> NormalEquations:
        """Returns the loss of the windows with its normal equations.

        Args:
            vector: Parameters [n].
        """
        views, n, states = self._begin(vector), vector.size, len(self._compared)
        batch = self._starts.shape[1]
        at_once = max(min(_ROOM // max(self.steps * states * n, 1), batch), 1)
        rows = np.empty((at_once, self.steps, states, n))
        errors = np.empty((at_once, self.steps, states))
        squares, gradient, curvature = 0.0, np.zeros(n), np.zeros((n, n))
        for first in range(0, batch, at_once):
            last = min(first + at_once, batch)
            squares += self._paths(views, rows, errors, first, last)
            found = rows[: last - first].reshape(-1, n)
            curvature += found.T @ found
            gradient += errors[: last - first].ravel() @ found
        linear, quadratic, _ = self.penalty
        curvature *= 2.0 / self._count
        curvature[np.diag_indices(n)] += quadratic
        gradient = 2.0 / self._count * gradient + quadratic * vector + linear
        return NormalEquations(
            squares / self._count + self._penalty(vector), gradient, curvature
        )  # fmt: skip

    def bounded(self, vector: np.ndarray) -> np.ndarray:
        """Returns parameters whose decays are within their limit.

        Args:
            vector: Parameters [n].
        """
        decays = self.copies.index[: self.sizes.dim]
        decays, found = decays[decays >= 0], vector.copy()
        found[decays] = np.clip(found[decays], -self.limit, self.limit)
        return found

    def _penalty(self, vector: np.ndarray) -> float:
        linear, quadratic, constant = self.penalty
        return float(constant[0] + (0.5 * quadratic * vector + linear) @ vector)

    def _begin(self, vector: np.ndarray) -> tuple[np.ndarray, ...]:
        """The map's values; first states and drive of the windows are written."""
        values = np.empty(self.copies.index.size)
        copy_values(tuple(self.copies), vector, values)
        views = map_views(values, tuple(self.sizes))
        begin_windows(
            self._windows, self._starts, 0, self._signals, self.source.known, views[7], views[6]
        )  # fmt: skip
        return views

    def _paths(
        self, views: tuple, rows: np.ndarray, errors: np.ndarray, first: int, last: int
    ) -> float:
        """Writes errors and their derivatives of some windows; returns the sum of squares."""
        sizes, n = self.sizes, rows.shape[-1]
        places = map_views(self.copies.index, tuple(sizes))
        signs = map_views(self.copies.sign, tuple(sizes))
        compared = (self._compared, self.source.precision, self._response)

        def run(one: int, end: int) -> float:
            return window_rows(
                views, self._layout, places, signs, self._signals, self._windows, self._starts[0],
                self.source.known, compared, rows, errors, first, first + one, first + end,
            )  # fmt: skip

        work = (last - first) * self.steps * sizes.dim * max(n, sizes.units) * (sizes.dim + 2)
        return sum(side_by_side(run, even_ranges(last - first, work)))
