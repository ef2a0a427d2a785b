"""Compiled revision of the active set of a mode search, and the value of its objective.

Flat arrays as in `_mode_loops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._vector_blocks import subtract_rows

if TYPE_CHECKING:  # the compiled code also depends on the order of their fields
    from plssm.kernels._mode_loops import Chain, Hinges, Memory

__all__ = ["revise_trials", "value_trials"]

_SLOPE = 1e-14  # slopes below this times the stiffness of the pins count as zero
_PIECE = 64  # steps whose residuals are found together, at most
_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads


@compiled
def _switch(gate, kink, at, slope, pinned, fraction, pinning, pin):
    """Updates the active set of some hinges of a step; returns the number of changes."""
    changes = 0
    tolerance = _SLOPE * pin
    for p in range(gate.size):
        if pinned[at + p] != 0:
            left = pin * gate[p]
            right = left + kink[p]
            steep = kink[p] if kink[p] < 0.0 else -1.0
            fraction[at + p] = min(max(-left / steep, 0.0), 1.0)
            up = right > tolerance and right >= -left
            if up or left < -tolerance:
                pinned[at + p] = 0
                slope[at + p] = 1.0 if up else 0.0
                changes += 1
            continue
        on = 1.0 if gate[p] > 0.0 else 0.0
        fraction[at + p] = on
        if on != slope[at + p]:
            changes += 1
            slope[at + p] = on
            if pinning:
                pinned[at + p] = 1
                slope[at + p] = 0.0
    return changes


@compiled
def _matrix(matrix, start, m):
    """Block of a flat array as a matrix."""
    return matrix[start : start + m * m].reshape(m, m)


@compiled
def _residuals(e, part, gate, mode, z, drift, hinge, chain, m):
    """Writes e = z_{t+1} - F(z_t) of some steps, and their gates block by block."""
    n = e.shape[0]
    here = mode[z : z + n * m].reshape(n, m)
    after = mode[z + m : z + (n + 1) * m].reshape(n, m)
    moved = chain.drift[drift : drift + n * m].reshape(n, m)
    np.dot(here, _matrix(hinge.linear_t, 0, m), part)
    for t in range(n):
        for i in range(m):
            e[t, i] = after[t, i] - moved[t, i] - part[t, i]
    for block in range(gate.shape[0]):
        first = block * m
        if hinge.identity:
            gate[block] = here
        else:
            np.dot(here, _matrix(hinge.inner_t, first * m, m), gate[block])
            for t in range(n):
                for p in range(m):
                    gate[block, t, p] += hinge.offset[first + p]
        relu = np.maximum(gate[block], 0.0)
        np.dot(relu, _matrix(hinge.outer_t, first * m, m), part)
        for t in range(n):
            for i in range(m):
                e[t, i] -= part[t, i]


@compiled
def _add_observed(share, mode, k, b, chain, x, size):
    """Adds the part of the objective that belongs to the observations of steps from k on."""
    m = len(size)
    for t in range(share.size):
        z = (k + t) * m
        ir = b * chain.trial_stride + (k + t - b * chain.steps) * chain.step_stride
        total = _half_matrix(mode, z, chain.information, ir, x, size)
        for i in range(m):
            total += mode[z + i] * chain.score[z + i]
        share[t] += total


@compiled
def _start_value(mode, b, chain, e, x, size):
    """Returns the part of the objective that belongs to the first state."""
    m = len(size)
    for i in range(m):
        e[i] = mode[b * chain.steps * m + i] - chain.mean[b * m + i]
    return _half_matrix(e, 0, chain.initial, 0, x, size)


@compiled
def _workspace(hinges, m):
    """Returns memory for some steps: residuals and their parts, gates and kinks by block."""
    piece = max(1, min(_PIECE, _SMALL // (m * m)))
    return np.empty((2, piece, m)), np.empty((2, hinges // m, piece, m))


@compiled
def _half_matrix(vector, at, matrix, start, product, size):
    """Returns -1/2 v'Av for a symmetric A; writes -Av."""
    total = 0.0
    product[:] = 0.0
    subtract_rows(product, 0, vector, at, matrix, start, size)
    for i in range(len(size)):
        total += vector[at + i] * product[i]
    return 0.5 * total


@compiled
def _shares(share, k, e, pulled, mode, b, chain, x, size):
    """Writes what steps from k on add to the objective, with their transitions; writes Q e."""
    m = len(size)
    np.dot(e, _matrix(chain.precision, 0, m), pulled)
    for t in range(e.shape[0]):
        total = 0.0
        for i in range(m):
            total -= e[t, i] * pulled[t, i]
        share[t] = 0.5 * total
    _add_observed(share, mode, k, b, chain, x, size)


@compiled
def _run(touched, first, last, longest):
    """Returns the end of the transitions from the first on that touch what has changed."""
    stop = first
    while stop < min(last, first + longest) and (touched[stop] or touched[stop + 1]):
        stop += 1
    return stop


@compiled
def revise_trials(
    mode, slope, pinned, fraction, pinning, active, memory: Memory, value, changes,
    hinge: Hinges, chain: Chain, length, first, last, size,
):  # fmt: skip
    """Updates the active set of active trials; writes their objective and number of changes.

    Only steps that the last solve touched are looked at; those whose slopes or pins change are
    marked as switched.
    """
    m = len(size)
    x, start = np.zeros(m), np.zeros(m)
    rows, tables = _workspace(chain.hinges, m)
    for b in range(first, last):
        if not active[b]:
            continue
        changes[b] = 0
        begin, end = b * chain.steps, b * chain.steps + length[b] - 1
        if memory.touched[end]:
            memory.share[end], memory.switched[end] = 0.0, 0
            _add_observed(memory.share[end : end + 1], mode, end, b, chain, x, size)
        k = begin
        while k < end:
            stop = _run(memory.touched, k, end, rows.shape[1])
            n = stop - k
            if n == 0:
                k += 1
                continue
            e, part, step = rows[0, :n], rows[1, :n], k - b
            gate = tables[0].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            kink = tables[1].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            _residuals(e, part, gate, mode, k * m, step * m, hinge, chain, m)
            _shares(memory.share[k:stop], k, e, part, mode, b, chain, x, size)
            memory.switched[k:stop] = 0
            for block in range(gate.shape[0]):
                at = block * m
                np.dot(part, _matrix(hinge.outer, at * m, m), kink[block])
                for t in range(n):
                    place = (step + t) * chain.hinges + at
                    found = _switch(
                        gate[block, t], kink[block, t], place, slope, pinned, fraction, pinning,
                        chain.pin,
                    )  # fmt: skip
                    if found:
                        changes[b] += found
                        memory.switched[k + t] = 1
            k = stop
        value[b] = _start_value(mode, b, chain, start, x, size)
        for k in range(begin, end + 1):
            value[b] += memory.share[k]


@compiled
def value_trials(path, value, hinge: Hinges, chain: Chain, length, first, last, size):
    """Writes the objective of paths, without constants."""
    m = len(size)
    x, start = np.zeros(m), np.zeros(m)
    rows, tables = _workspace(chain.hinges, m)
    share = np.empty(rows.shape[1])
    for b in range(first, last):
        begin, end = b * chain.steps, b * chain.steps + length[b] - 1
        value[b] = _start_value(path, b, chain, start, x, size)
        share[0] = 0.0
        _add_observed(share[:1], path, end, b, chain, x, size)
        value[b] += share[0]
        for k in range(begin, end, rows.shape[1]):
            n = min(rows.shape[1], end - k)
            e, part = rows[0, :n], rows[1, :n]
            gate = tables[0].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            _residuals(e, part, gate, path, k * m, (k - b) * m, hinge, chain, m)
            _shares(share[:n], k, e, part, path, b, chain, x, size)
            value[b] += share[:n].sum()
