"""Normal equations of a table of coefficients of which some entries are free."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

__all__ = ["NormalEquations", "Quadratic"]

SINGULAR = 1e-4  # smallest pivot of a system that counts as regular


@final
@dataclass(frozen=True)
class Quadratic:
    r"""One term :math:`-\tfrac12 \mathrm{tr}\,P(\theta R \theta^\top - 2 T \theta^\top)`.

    Args:
        precision: P ``[M, M]``.
        regressors: R ``[K, K]``.
        targets: T ``[M, K]``.
    """

    precision: np.ndarray
    regressors: np.ndarray
    targets: np.ndarray


@final
@dataclass(frozen=True)
class NormalEquations:
    r"""Least squares for the free entries of a table, with a quadratic prior.

    .. math:: \max_\theta\; \sum_k -\tfrac12 \mathrm{tr}\,P_k(\theta R_k \theta^\top
              - 2 T_k \theta^\top) - \tfrac12 \sum_{ij} w_{ij} (\theta_{ij} - m_{ij})^2

    Each row is a problem of its own when all precisions are diagonal; otherwise all rows are
    solved together. The matrix of the equations is the complete-data information of EM.

    Args:
        theta: The table ``[M, K]``; its entries that are not free are kept.
        free: Which entries are, bool ``[M, K]``.
        terms: The quadratic terms.
        weight: Precisions w of the prior ``[M, K]``.
        target: Its means m ``[M, K]``.
    """

    theta: np.ndarray
    free: np.ndarray
    terms: tuple[Quadratic, ...]
    weight: np.ndarray
    target: np.ndarray

    def solution(self) -> np.ndarray:
        """The table with its free entries solved for ``[M, K]``."""
        known = np.where(self.free, 0.0, self.theta)
        right = self.weight * self.target
        for t in self.terms:
            right = right + t.precision @ (t.targets - known @ t.regressors)
        return np.where(self.free, self.solve(right), self.theta)

    def times(self, direction: np.ndarray) -> np.ndarray:
        """The matrix of the equations times a direction; both 0 where nothing is free."""
        product = self.weight * direction
        for t in self.terms:
            product = product + t.precision @ direction @ t.regressors
        return np.where(self.free, product, 0.0)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for the free entries; 0 elsewhere.

        Args:
            right: Right-hand side ``[M, K]``.
        """
        if self._coupled:
            return self._solve_jointly(right)
        solved = np.zeros_like(self.theta)
        for at, columns, system in self._systems:
            solved[at, columns] = _least_squares(system, right[at, columns])
        return solved

    @cached_property
    def _systems(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, their free columns and matrices; rows with equally many columns together."""
        systems, counts = [], self.free.sum(1)
        for count in np.unique(counts[counts > 0]):
            rows = np.flatnonzero(counts == count)
            columns = np.nonzero(self.free[rows])[1].reshape(len(rows), count)
            at, pairs = rows[:, None], (columns[:, :, None], columns[:, None, :])
            system = np.zeros((len(rows), count, count))
            system[:, np.arange(count), np.arange(count)] = self.weight[at, columns]
            for t in self.terms:
                system += np.diag(t.precision)[rows, None, None] * t.regressors[pairs]
            systems.append((at, columns, system))
        return systems

    @cached_property
    def _coupled(self) -> bool:
        """Whether a precision is not diagonal."""
        return any(np.any(t.precision != np.diag(np.diag(t.precision))) for t in self.terms)

    @cached_property
    def _joint(self) -> np.ndarray:
        """The matrix of all free entries together."""
        rows, columns = np.nonzero(self.free)
        system = np.diag(self.weight[rows, columns])
        for t in self.terms:
            system += t.precision[np.ix_(rows, rows)] * t.regressors[np.ix_(columns, columns)]
        return system

    def _solve_jointly(self, right: np.ndarray) -> np.ndarray:
        """Rows coupled through a full precision, as one linear system."""
        solved = np.zeros_like(self.theta)
        solved[self.free] = _least_squares(self._joint, right[self.free])
        return solved


def _least_squares(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve symmetric positive (semi-)definite systems, minimum norm where they are singular.

    Args:
        system: ``[..., K, K]``.
        right: ``[..., K]``.
    """
    size = np.diagonal(system, axis1=-2, axis2=-1)
    seen = size > 1e-200  # a unit that never opens has no regressor, and gets no weight
    scale = np.where(seen, 1.0 / np.sqrt(np.where(seen, size, 1.0)), 0.0)
    scaled = system * scale[..., :, None] * scale[..., None, :]
    right = scale * right
    solved = _definite(scaled, right)
    if solved is None:
        solved = np.empty_like(right)
        for i in np.ndindex(right.shape[:-1]):
            solved[i] = np.linalg.lstsq(scaled[i], right[i], rcond=1e-13)[0]
    return scale * solved


def _definite(system: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Solution of systems with unit diagonal, None where one of them is close to singular."""
    try:
        root = np.linalg.cholesky(system)
    except np.linalg.LinAlgError:
        return None
    if not np.diagonal(root, axis1=-2, axis2=-1).min() > SINGULAR:
        return None
    return np.linalg.solve(system, right[..., None])[..., 0]
