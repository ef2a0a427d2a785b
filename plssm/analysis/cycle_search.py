"""The search for cycles over sequences of linear regions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from plssm.analysis.cycle_candidates import (
    Candidates,
    composed,
    family_point,
    on_kink,
    solve_sequences,
)
from plssm.dynamics.relu_form import ReluForm

__all__ = ["CycleStore", "rows_at_once", "search_all", "search_from"]

_SAME = 1e-7  # distance of points, relative to the cycle's size, that are the same
_FAMILIES = 200  # singular sequences that are looked into
_STEPS = 60  # solutions of one start before it is given up
_NUMBERS = 1 << 21  # entries of the Jacobians that are held at a time

FAILED = -1


class CycleStore:
    """Collects real cycles of one order, each once; knows families and lower orders apart.

    Args:
        form: The map without dead gates.
        order: Number of points k.
        seed: Seed of the directions along which families are looked for.
    """

    def __init__(self, form: ReluForm, order: int, seed: int = 0) -> None:
        self.form, self.order = form, order
        self.points: list[np.ndarray] = []  # each [k, M]
        self.degenerate = 0
        self._random = np.random.default_rng(seed)
        self._by_word: dict[bytes, int] = {}
        self._singular: set[bytes] = set()

    def add(self, word: np.ndarray, points: np.ndarray) -> int:
        """Keeps the cycle of a sequence [k, P] if it is new; returns its number, or FAILED.

        FAILED is what is no cycle after polishing, or runs round a shorter cycle.
        """
        key = canonical_key(word)
        number = self._by_word.get(key)
        if number is None:
            number = self._by_word[key] = self._add_new(word, points)
        return number

    def _add_new(self, word: np.ndarray, points: np.ndarray) -> int:
        points = _polished(self.form, word, points)
        size = 1.0 + np.abs(points).max()
        away = np.abs(self.form.step(points) - np.roll(points, -1, axis=0)).max()
        if not away <= _SAME * size or has_shorter_period(points):
            return FAILED
        for number, known in enumerate(self.points):
            nearest = min(np.abs(np.roll(known, j, 0) - points).max() for j in range(self.order))
            if nearest <= _SAME * size:
                return number
        self.points.append(points)
        return len(self.points) - 1

    def look_for_family(self, word: np.ndarray) -> None:
        """Counts a singular sequence [k, P] if a continuous family of this order runs in it."""
        key = canonical_key(word)
        if key in self._singular or len(self._singular) >= _FAMILIES:
            return
        self._singular.add(key)
        start = family_point(self.form, word, self._random)
        if start is None:
            return
        points = [start]
        for _ in range(self.order - 1):
            points.append(self.form.step(points[-1]))
        self.degenerate += not has_shorter_period(np.array(points))

    def ordered(self) -> tuple[list[np.ndarray], list[int]]:
        """Cycles from their smallest points on, in lexicographic order, and their numbers."""
        turned = [_from_smallest(points) for points in self.points]
        numbers = sorted(range(len(turned)), key=lambda i: turned[i].ravel().tolist())
        return [turned[i] for i in numbers], numbers

    def eigenvalues(self, points: np.ndarray) -> np.ndarray:
        """Eigenvalues of the product of the Jacobians along points [k, M], largest first."""
        region = self.form.region(points)[None]
        total = composed(self.form.jacobian(region), self.form.regional_bias(region))[0][0]
        values = np.linalg.eigvals(total).astype(np.complex128)
        return values[np.lexsort((-values.imag, -values.real, -np.abs(values).round(12)))]

    def on_kink(self, points: np.ndarray) -> bool:
        """Whether one of the points [k, M] lies on a kink."""
        return bool(on_kink(self.form, points, self.form.gates(points)).any())


def canonical_key(word: np.ndarray) -> bytes:
    """The same bytes for all rotations of a sequence of regions [k, P]."""
    letters = [row.tobytes() for row in np.packbits(word, axis=1)]
    return min(b"".join(letters[j:] + letters[:j]) for j in range(len(letters)))


def has_shorter_period(points: np.ndarray) -> bool:
    """Whether the points [k, M] run more than once round a cycle."""
    order, size = len(points), 1.0 + np.abs(points).max()
    shifts = [p for p in range(1, order) if order % p == 0]
    return any(np.abs(np.roll(points, p, axis=0) - points).max() <= _SAME * size for p in shifts)


def _polished(form: ReluForm, word: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Solves all points of a cycle [k, M] together, which does not amplify rounding errors."""
    order, dim = points.shape
    if order == 1:
        return points
    jacobian, bias = form.jacobian(word), form.regional_bias(word)
    matrix = np.eye(order * dim)
    for j in range(order):
        rows, columns = (j + 1) % order, j
        matrix[rows * dim : (rows + 1) * dim, columns * dim : (columns + 1) * dim] -= jacobian[j]
    return np.linalg.solve(matrix, np.roll(bias, 1, axis=0).ravel()).reshape(order, dim)


def _from_smallest(points: np.ndarray) -> np.ndarray:
    """Rotates points [k, M] so that the smallest in lexicographic order comes first."""
    first = min(range(len(points)), key=lambda j: points[j].tolist())
    return np.roll(points, -first, axis=0)


def rows_at_once(form: ReluForm, order: int) -> int:
    """Sequences whose Jacobians fit into the memory that is allowed."""
    width = len(form.bias) * max(len(form.bias), len(form.offset))
    return int(np.clip(_NUMBERS // (order * width), 16, 1 << 16))


def search_all(store: CycleStore, cells: np.ndarray, report: Callable[[float, str], None]) -> None:
    """Tries every sequence of the given regions once, up to rotation.

    Args:
        store: Collects what is found.
        cells: Regions, bool [C, P].
        report: Called with the share done and a text.
    """
    form, order, count = store.form, store.order, len(cells)
    jacobian, bias = form.jacobian(cells), form.regional_bias(cells)
    total, step = count**order, rows_at_once(form, order)
    powers = count ** np.arange(order - 1, -1, -1)
    for begin in range(0, total, step):
        number = np.arange(begin, min(begin + step, total))
        turned, smallest = number, np.ones(number.shape, dtype=bool)
        for _ in range(order - 1):
            turned = turned % powers[0] * count + turned // powers[0]
            smallest &= number <= turned
        letters = number[smallest, None] // powers % count
        if not letters.size:
            continue
        words = cells[letters]
        found = solve_sequences(form, words, jacobian[letters], bias[letters])
        for i in np.flatnonzero(found.real):
            store.add(words[i], found.points[i])
        for i in np.flatnonzero(found.singular)[:_FAMILIES]:
            store.look_for_family(words[i])
        report((begin + len(number)) / total, f"{len(store.points)} found")


def search_from(
    store: CycleStore,
    sequences: Iterator[np.ndarray],
    states: Iterator[tuple[np.ndarray, np.ndarray]],
    report: Callable[[float, str], None],
    *,
    random: np.random.Generator,
    least: int,
    most: int,
    enough: int = 5,
) -> tuple[list[int], int]:
    """Follows virtual cycles from random starts until they are real.

    Newton's method for the equations of the cycle: the virtual cycle of a sequence of regions is
    solved, and the regions of its points are the next sequence. Half of the starts take full
    steps; sequences are remembered, so that a start that meets an earlier one shares its end.
    The other half are states, which move a random part of the way to the points of the virtual
    cycle: that breaks the circles in which most full steps end.

    Args:
        store: Collects what is found.
        sequences: Gives batches of sequences [n, k, P].
        states: Gives batches of orbits and of independent states, both [n, k, M].
        report: Called with the share done and a text.
        random: Source of the lengths of the steps.
        least: Least number of starts.
        most: Largest number of starts.
        enough: Between the two the search ends when every cycle was hit this often.

    Returns:
        Hits of each cycle of the store, and the number of starts.
    """
    path, began = _Paths(store), time.perf_counter()
    hits: list[int] = []
    while True:
        path.follow(next(sequences))
        for batch in next(states):
            path.wander(batch[: (len(batch) + 1) // 2], random)
        hits = np.bincount(
            [e for e in path.ends() if e != FAILED], minlength=len(store.points)
        ).tolist()
        done = len(path.end)
        seconds = time.perf_counter() - began
        report(done / most, f"{len(hits)} found, {done} starts, {seconds:.0f} s")
        if done >= most or (done >= least and min(hits, default=enough) >= enough):
            return hits, done


class _Paths:
    """Where starts lead; remembers each sequence of regions on the way.

    Args:
        store: Collects the cycles.
    """

    def __init__(self, store: CycleStore) -> None:
        self.store = store
        self.end: list[int] = []  # number of a cycle, FAILED, or -2 - s: as start s
        self._owner: dict[bytes, int] = {}

    def follow(self, words: np.ndarray) -> None:
        """Follows a batch of starts [n, k, P] to their ends."""
        form = self.store.form
        starts = np.arange(len(self.end), len(self.end) + len(words))
        self.end.extend([FAILED] * len(words))
        for _ in range(_STEPS):
            new = np.array([self._is_new(w, s) for w, s in zip(words, starts, strict=True)])
            words, starts = words[new], starts[new]
            if not len(words):
                return
            found = solve_sequences(form, words, form.jacobian(words), form.regional_bias(words))
            self._keep(words, starts, found)
            go_on = ~found.real & ~found.singular & np.isfinite(found.points).all(axis=(1, 2))
            words, starts = found.regions[go_on], starts[go_on]
            if not len(words):
                return

    def wander(self, states: np.ndarray, random: np.random.Generator) -> None:
        """Moves a batch of states [n, k, M] by random parts of Newton's steps."""
        form = self.store.form
        starts = np.arange(len(self.end), len(self.end) + len(states))
        self.end.extend([FAILED] * len(states))
        for _ in range(_STEPS):
            words = form.region(states)
            found = solve_sequences(form, words, form.jacobian(words), form.regional_bias(words))
            self._keep(words, starts, found)
            go_on = ~found.real & ~found.singular & np.isfinite(found.points).all(axis=(1, 2))
            states, starts, aims = states[go_on], starts[go_on], found.points[go_on]
            if not len(states):
                return
            states = states + random.uniform(0.1, 1.0, (len(states), 1, 1)) * (aims - states)

    def _is_new(self, word: np.ndarray, start: int) -> bool:
        """Whether a sequence was not met before; otherwise the start ends like that one."""
        key = canonical_key(word)
        owner = self._owner.get(key)
        if owner is None:
            self._owner[key] = int(start)
            return True
        self.end[start] = FAILED if owner == start else -2 - owner
        return False

    def _keep(self, words: np.ndarray, starts: np.ndarray, found: Candidates) -> None:
        """Hands over the real cycles and the singular sequences."""
        for i in np.flatnonzero(found.real):
            self.end[starts[i]] = self.store.add(words[i], found.points[i])
        for i in np.flatnonzero(found.singular):
            self.store.look_for_family(words[i])

    def ends(self) -> list[int]:
        """The number of the cycle of each start, or FAILED."""
        return [self._final(start) for start in range(len(self.end))]

    def _final(self, start: int) -> int:
        """Follows references; starts that refer to each other run in a circle."""
        seen = set()
        while self.end[start] < FAILED:
            if start in seen:
                return FAILED
            seen.add(start)
            start = -2 - self.end[start]
        return self.end[start]
