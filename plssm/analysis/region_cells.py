"""The linear regions of a map: the gates that matter, and all cells of their hyperplanes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np

from plssm.dynamics.relu_form import ReluForm

__all__ = ["enumerate_cells", "live_gates"]

_PARALLEL = 1e-12  # 1 - |cosine| below which two hyperplanes count as parallel
_ROWS = 1 << 15  # vertices at a time


def live_gates(form: ReluForm) -> tuple[ReluForm, np.ndarray]:
    """Leaves out the gates that switch nothing.

    Args:
        form: The map.

    Returns:
        The same map without gates of zero outer weights, and with gates of zero inner weights in
        its bias; and which gates [P] remain.
    """
    constant = ~form.inner.any(axis=1)
    live = form.outer.any(axis=0) & ~constant
    if live.all():
        return form, live
    bias = form.bias + form.outer[:, constant] @ np.maximum(form.offset[constant], 0.0)
    gates = (form.outer[:, live], form.inner[live], form.offset[live])
    return ReluForm(form.linear, bias, *gates, form.inputs), live


def enumerate_cells(form: ReluForm, limit: int) -> np.ndarray | None:
    r"""Finds all regions that exist: the cells of the arrangement of the gates' hyperplanes.

    In the r coordinates that the gates see, every cell has a vertex where r independent
    hyperplanes meet, and around it are all :math:`2^r` patterns of these r gates. Where more than
    r meet, offsets are shifted by random amounts of relative size 1e-7: all cells stay, and some
    are added that do not exist.

    Args:
        form: The map, without gates that switch nothing.
        limit: Largest number of patterns around vertices, before those that are equal are united.

    Returns:
        Patterns, bool [C, P], or None where there would be more than `limit`.
    """
    gates = len(form.offset)
    if gates == 0:
        return np.zeros((1, 0), dtype=bool)
    norm = np.linalg.norm(form.inner, axis=1)
    _, singular, right = np.linalg.svd(form.inner / norm[:, None], full_matrices=False)
    rank = int((singular > 1e-10 * singular[0]).sum())
    normals, offset = form.inner @ right[:rank].T / norm[:, None], form.offset / norm
    groups = _parallel_groups(normals)
    # independent hyperplanes are at most one of each parallel group
    if _elementary([len(g) for g in groups], rank) * 2.0**rank > limit:
        return None
    subsets = np.array(list(_subsets(groups, rank)), dtype=np.intp).reshape(-1, rank)
    simple, cells = _cells_around_vertices(normals, offset, subsets)
    if not simple:
        size = 1e-7 * (1.0 + np.abs(offset).max())
        shift = size * np.random.default_rng(0).uniform(-1.0, 1.0, gates)
        cells = _cells_around_vertices(normals, offset + shift, subsets)[1]
    return cells


def _cells_around_vertices(
    normals: np.ndarray, offset: np.ndarray, subsets: np.ndarray
) -> tuple[bool, np.ndarray]:
    """Whether just r hyperplanes meet at each vertex, and the cells around them [C, P]."""
    rank, simple = normals.shape[1], True
    around = np.array(list(product((False, True), repeat=rank)))
    found = np.zeros((0, len(offset)), dtype=bool)
    for subset in np.array_split(subsets, max(1, len(subsets) * len(around) // _ROWS)):
        matrix = normals[subset]
        good = np.linalg.svd(matrix, compute_uv=False)[:, -1] > 1e-10
        subset, matrix = subset[good], matrix[good]
        vertex = np.linalg.solve(matrix, -offset[subset][..., None])[..., 0]
        argument = vertex @ normals.T + offset
        own = np.zeros(argument.shape, dtype=bool)
        np.put_along_axis(own, subset, True, axis=1)
        size = np.abs(vertex).max(axis=1, initial=0.0)[:, None] + np.abs(offset) + 1e-300
        simple &= not ((np.abs(argument) <= 1e-9 * size) & ~own).any()
        patterns = np.repeat((argument > 0)[:, None], len(around), axis=1)
        places = np.broadcast_to(subset[:, None], (len(subset), len(around), rank))
        values = np.broadcast_to(around, places.shape)
        np.put_along_axis(patterns, places, values, axis=2)
        found = _unique(np.concatenate([found, patterns.reshape(-1, len(offset))]))
    return simple, found


def _unique(patterns: np.ndarray) -> np.ndarray:
    """Different rows of bool [n, P]."""
    packed = np.packbits(patterns, axis=1)
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    return patterns[np.sort(np.unique(rows, return_index=True)[1])]


def _parallel_groups(normals: np.ndarray) -> list[list[int]]:
    """Hyperplanes with parallel unit normals [P, r], together."""
    groups: list[list[int]] = []
    for p, normal in enumerate(normals):
        heads = normals[[g[0] for g in groups]]
        parallel = np.flatnonzero(1.0 - np.abs(heads @ normal) <= _PARALLEL)
        if parallel.size:
            groups[parallel[0]].append(p)
        else:
            groups.append([p])
    return groups


def _elementary(sizes: list[int], rank: int) -> float:
    """Number of ways to take one member of each of `rank` groups."""
    ways = np.zeros(rank + 1)
    ways[0] = 1.0
    for n in sizes:
        ways[1:] += n * ways[:-1].copy()
    return float(ways[rank])


def _subsets(groups: list[list[int]], rank: int) -> Iterator[tuple[int, ...]]:
    """One member each of `rank` groups, in all ways."""
    for chosen in combinations(groups, rank):
        yield from product(*chosen)
