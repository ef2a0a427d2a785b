"""Random sequences of linear regions, to start a search for cycles from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plssm.dynamics.relu_form import ReluForm

__all__ = ["default_points", "sequence_starts", "state_starts"]

_NEIGHBOUR = 0.5  # share of drawn regions in which gates are switched at random
_REALISED = 0.5  # share of starts that follow the regions of real orbits


def default_points(form: ReluForm, random: np.random.Generator) -> np.ndarray:
    """Points [n, M] to look for regions at: free runs, and a box around them and the kinks.

    Args:
        form: The map.
        random: Source of randomness.

    Returns:
        Points, half of them in a box that covers runs and kinks, up to ten times as large.
    """
    dim = len(form.bias)
    squares = (form.inner**2).sum(axis=1)
    reach = 1.0 + np.abs(form.offset / np.sqrt(np.where(squares > 0, squares, 1.0))).max(initial=0)
    with np.errstate(over="ignore", invalid="ignore"):
        start = reach * random.uniform(-1.0, 1.0, (64, dim))
        runs = form.rollout(start, 200).reshape(-1, dim)
    runs = runs[(np.abs(runs) < 1e6 * reach).all(axis=1)]
    half = np.maximum(reach, np.abs(runs).max(axis=0, initial=0.0))
    size = 10.0 ** random.uniform(-1.0, 1.0, (8192, 1))
    box = size * half * random.uniform(-1.0, 1.0, (8192, dim))
    return np.concatenate([box, runs[random.permutation(len(runs))[:8192]]])


def sequence_starts(
    form: ReluForm,
    order: int,
    count: int,
    random: np.random.Generator,
    *,
    points: np.ndarray,
    cells: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Draws sequences of regions without end.

    Half of the sequences are the regions of `order` steps of a real orbit from one of the
    points; in the others each region is drawn by itself: from the cells, where they are known,
    and otherwise from the regions of the points, half of them with single gates switched.

    Args:
        form: The map.
        order: Length k of a sequence.
        count: Sequences n at a time.
        random: Source of randomness.
        points: States [n, M] whose regions are used.
        cells: All regions, bool [C, P], if they are known.

    Yields:
        Sequences, bool [n, k, P].
    """
    pool = form.region(points) if cells is None else cells
    gates = pool.shape[1]
    states = state_starts(form, order, count, random, points=points)
    while True:
        words = pool[random.integers(len(pool), size=(count, order))]
        if cells is None and gates:
            near = random.random((count, order)) < _NEIGHBOUR
            odds = random.integers(1, 4, size=(count, order)) / gates * near
            words = words ^ (random.random(words.shape) < odds[..., None])
        real = random.random(count) < _REALISED
        words[real] = form.region(next(states)[0][real])
        yield words


def state_starts(
    form: ReluForm, order: int, count: int, random: np.random.Generator, *, points: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws states without end, as orbits and each by itself.

    Args:
        form: The map.
        order: Number of states k of a start.
        count: Starts n at a time.
        random: Source of randomness.
        points: States [n, M] to draw from.

    Yields:
        Orbits of `order` steps, and independent states, both [n, k, M].
    """
    while True:
        free = points[random.integers(len(points), size=(count, order))]
        orbits = free.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for j in range(1, order):
                orbits[:, j] = form.step(orbits[:, j - 1])
        yield orbits, free
