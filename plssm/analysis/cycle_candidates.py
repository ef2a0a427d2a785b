"""Candidates for cycles: the one that a sequence of regions allows, and whether it is real."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from plssm.dynamics.relu_form import ReluForm

__all__ = ["Candidates", "composed", "family_point", "on_kink", "solve_sequences"]

_KINK = 1e-9  # size of a gate's argument, relative to its terms, that counts as zero
_SINGULAR = 1e-12  # reciprocal growth of a random right-hand side that counts as singular


@dataclass(frozen=True)
class Candidates:
    """The virtual cycles of n sequences of regions.

    Args:
        points: [n, k, M]; not finite where I - prod J is exactly singular.
        regions: The regions the points really lie in [n, k, P].
        real: Whether these are the regions assumed, up to points on a kink [n].
        singular: Whether I - prod J is singular [n]; such rows are not real.
    """

    points: np.ndarray
    regions: np.ndarray
    real: np.ndarray
    singular: np.ndarray


def composed(jacobian: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Composes k affine maps: J [n, k, M, M] and b [n, k, M] to one J [n, M, M], b [n, M]."""
    total, constant = jacobian[:, 0], bias[:, 0]
    for j in range(1, jacobian.shape[1]):
        total = jacobian[:, j] @ total
        constant = (jacobian[:, j] @ constant[..., None])[..., 0] + bias[:, j]
    return total, constant


def solve_sequences(
    form: ReluForm, words: np.ndarray, jacobian: np.ndarray, bias: np.ndarray
) -> Candidates:
    r"""Solves for the cycle that runs through given regions, and looks where it really runs.

    .. math:: z_1 = (I - J_k \cdots J_1)^{-1} \sum_{j=1}^{k} J_k \cdots J_{j+1} b_j

    Args:
        form: The map.
        words: Sequences of regions, bool [n, k, P].
        jacobian: Their Jacobians [n, k, M, M].
        bias: Their biases [n, k, M].

    Returns:
        The candidates.
    """
    order, dim = words.shape[1], len(form.bias)
    points = np.empty((*words.shape[:2], dim))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total, constant = composed(jacobian, bias)
        points[:, 0], singular = _solve(np.eye(dim) - total, constant)
        for j in range(1, order):
            before = points[:, j - 1]
            points[:, j] = (jacobian[:, j - 1] @ before[..., None])[..., 0] + bias[:, j - 1]
        argument = form.gates(points)
        regions = argument > 0.0
        agrees = (regions == words) | on_kink(form, points, argument)
        finite = np.isfinite(points).all(axis=(1, 2))
    return Candidates(points, regions, agrees.all(axis=(1, 2)) & finite & ~singular, singular)


def on_kink(form: ReluForm, points: np.ndarray, argument: np.ndarray) -> np.ndarray:
    """Which gates' arguments [..., P] are zero at the points [..., M], up to rounding."""
    size = np.abs(points).max(axis=-1, initial=0.0)[..., None]
    return np.abs(argument) <= _KINK * (
        size * np.abs(form.inner).sum(axis=1) + np.abs(form.offset)
    )


def _solve(matrix: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves [n, M, M] x = [n, M]; returns x and which matrices are singular.

    A second, random right-hand side shows a singular matrix by the size of its solution.
    """
    dim = constant.shape[1]
    probe = np.random.default_rng(1).standard_normal(dim)
    sides = np.stack([constant, np.broadcast_to(probe, constant.shape)], axis=-1)
    good = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(constant).all(axis=1)
    unusable, exact = ~good, np.zeros(len(matrix), dtype=bool)
    try:
        both = np.full(sides.shape, np.nan)
        both[good] = np.linalg.solve(matrix[good], sides[good])
    except np.linalg.LinAlgError:
        spread = np.linalg.svd(matrix[good], compute_uv=False)
        exact[good] = spread[:, -1] <= 1e-14 * spread[:, 0]
        good &= ~exact
        both[good] = np.linalg.solve(matrix[good], sides[good])
    scale = np.abs(matrix).max(axis=(1, 2)) * np.abs(both[..., 1]).max(axis=1)
    singular = exact | (good & ~(scale < 1.0 / _SINGULAR))
    return both[..., 0], singular & ~unusable


def family_point(
    form: ReluForm, word: np.ndarray, random: np.random.Generator
) -> np.ndarray | None:
    """A point of a continuous family of cycles in a sequence of regions, if there is one.

    The solutions of the singular system are a point and its null space; two linear programs ask
    how far they reach inside the closed regions.

    Args:
        form: The map.
        word: The sequence [k, P], with I - prod J singular.
        random: Direction to look along.

    Returns:
        A point [M] of the family, or None where the system has no solution, or its solutions
        meet the regions in no more than one point.
    """
    jacobian, bias = form.jacobian(word), form.regional_bias(word)
    total, constant = composed(jacobian[None], bias[None])
    left, spread, right = np.linalg.svd(np.eye(len(form.bias)) - total[0])
    null = spread <= 1e-10 * max(1.0, spread[0])
    rotated = left.T @ constant[0]
    if np.abs(rotated[null]).max(initial=0.0) > 1e-9 * (1.0 + np.abs(constant).max()):
        return None
    start = right[~null].T @ (rotated[~null] / spread[~null])
    along = right[null].T  # [M, q]: solutions are start + along t
    rows, upper = _inside(form, word, start, along)
    reach = 100.0 * (1.0 + np.abs(start).max() + np.abs(upper).max(initial=0.0))
    aim = random.standard_normal(along.shape[1])
    ends = []
    for side in (1.0, -1.0):
        answer = linprog(side * aim, rows, upper, bounds=(-reach, reach))
        if answer.status != 0:
            return None
        ends.append(answer.x)
    if np.abs(ends[1] - ends[0]).max() <= 1e-6 * (1.0 + np.abs(start).max()):
        return None
    share = random.uniform(0.2, 0.4)  # off the middle, which may be a centre of symmetry
    return start + along @ (share * ends[0] + (1.0 - share) * ends[1])


def _inside(
    form: ReluForm, word: np.ndarray, start: np.ndarray, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and upper limits for t: all steps of start + along t stay in the closed regions."""
    jacobian, bias = form.jacobian(word), form.regional_bias(word)
    rows, upper = [], []
    for j, region in enumerate(word):
        sign = np.where(region, -1.0, 1.0)
        rows.append(sign[:, None] * (form.inner @ along))
        upper.append(-sign * form.gates(start))
        start, along = jacobian[j] @ start + bias[j], jacobian[j] @ along
    limits = np.concatenate(upper)
    return np.concatenate(rows), limits + 1e-9 * (1.0 + np.abs(limits))
