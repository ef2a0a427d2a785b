"""Compiled active-set search for the mode of a chain whose map is one layer of hinges.

Flat arrays as in `_chain_loops`. Hinges come in blocks of M, the last one filled with hinges of
zero weight, so that the square block operations serve any number of hinges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.kernels._chain_loops import block_size, close_trial, finish, log_pivots
from plssm.kernels._compile import compiled
from plssm.kernels._vector_blocks import (
    add_offset,
    assemble,
    assemble_shared,
    eliminate,
    subtract_rows,
)
from plssm.kernels._vector_gates import assemble_gated

__all__ = ["Chain", "Hinges", "maximise_trials", "revise_trials", "value_trials"]

_SLOPE = 1e-14  # slopes below this times the stiffness of the pins count as zero
_PIECE = 64  # steps whose residuals are found together, at most
_SMALL = 200_000  # multiplications of one product: below what BLAS gives to several threads


class Hinges(NamedTuple):
    """F(z) = linear z + outer relu(inner z + offset) as flat arrays; tight M x M blocks.

    Attributes:
        linear: A.
        linear_t: A'.
        inner: [P, M].
        inner_t: Blocks of inner', columns are hinges.
        outer: Blocks of outer, columns are hinges.
        outer_t: Blocks of outer', rows are hinges.
        offset: [P], filled up to whole blocks.
        identity: Whether hinge p is relu(z_p).
    """

    linear: np.ndarray
    linear_t: np.ndarray
    inner: np.ndarray
    inner_t: np.ndarray
    outer: np.ndarray
    outer_t: np.ndarray
    offset: np.ndarray
    identity: bool


class Chain(NamedTuple):
    """The rest of the model, as flat arrays.

    Attributes:
        bases: Joint rows [Q | 0] and [Q0 | 0].
        gated: For hinges that are the states themselves, joint rows [Q + A'QA | -A'Q],
            [Q0 + A'QA | -A'Q], [A'QW | 0], [W'QA | 0] and [W'QW | -W'Q]; else empty.
        precision: Q.
        initial: Q0.
        mean: [B, M], means of the first states.
        drift: [B, T-1, M], u, bias and inputs.
        pulls: For hinges that are the states themselves, [Q u, -A'Q u, -W'Q u],
            [B, T-1, 3 M].
        score: [B, T, M].
        information: Curvature of the observation terms.
        trial_stride: Distance of trials in `information`, zero when shared.
        step_stride: Distance of steps in `information`, zero when shared.
        steps: T.
        hinges: P, filled up to whole blocks.
        pin: Stiffness of a pin.
    """

    bases: np.ndarray
    gated: np.ndarray
    precision: np.ndarray
    initial: np.ndarray
    mean: np.ndarray
    drift: np.ndarray
    pulls: np.ndarray
    score: np.ndarray
    information: np.ndarray
    trial_stride: int
    step_stride: int
    steps: int
    hinges: int
    pin: float


@compiled
def _linearise(jac, u, slope, at, hinge, size):
    """Writes the Jacobian and adds the hinges' part to the offset, for given slopes."""
    m = len(size)
    jac[:] = hinge.linear
    weighted = np.zeros(m)
    for first in range(0, hinge.offset.size, m):
        for p in range(m):
            d = slope[at + first + p]
            weighted[p] = -d * hinge.offset[first + p]
            if d == 0.0:
                continue
            for i in range(m):
                x = hinge.outer_t[(first + p) * m + i] * d
                for j in range(m):
                    jac[i * m + j] += x * hinge.inner[(first + p) * m + j]
        subtract_rows(u, 0, weighted, 0, hinge.outer_t, first * m, size)


@compiled
def _pin(rows, here, v, z, pinned, at, hinge, chain, size):
    """Adds the stiff springs that hold pinned gates at zero."""
    m = len(size)
    s = 2 * ((m + 3) // 4 * 4)
    for p in range(chain.hinges):
        if pinned[at + p] == 0:
            continue
        for i in range(m):
            x = chain.pin * hinge.inner[p * m + i]
            v[z + i] -= x * hinge.offset[p]
            for j in range(m):
                rows[here + i * s + j] += x * hinge.inner[p * m + j]


@compiled
def _assemble_step(rows, here, kind, ir, mode, z, carry, u, jac, slope, step, hinge, chain, size):
    """Writes the joint rows of a step and what its map adds to the right-hand side."""
    m, at = len(size), step * chain.hinges
    bases = chain.bases
    for i in range(m):
        u[i] = chain.drift[step * m + i]
    _linearise(jac, u, slope, at, hinge, size)
    assemble(rows, here, bases, kind, bases, 0, jac, 0, chain.information, ir, size)
    add_offset(mode, z, carry, 0, u, 0, bases, 0, jac, 0, size)


@compiled
def maximise_trials(
    rows,
    mode,
    quadratic,
    slope,
    pinned,
    pins,
    active,
    hinge,
    chain,
    length,
    logdet,
    status,
    first,
    last,
    size,
):
    """Maximises active trials for fixed slopes, with pinned gates held at zero if `pins`."""
    m, block, steps = len(size), block_size(size), chain.steps
    carry, u, jac = np.zeros(m), np.zeros(m), np.zeros(m * m)
    score, information, bases = chain.score, chain.information, chain.bases
    gated, pulls, identity = chain.gated, chain.pulls, hinge.identity
    width, pin = block // m, chain.pin
    for b in range(first, last):
        if not active[b]:
            continue
        n = length[b]
        start = block * (1 + b * steps)
        carry[:] = 0.0
        total = 0.0
        status[b] = 0
        for t in range(n):
            here = start + t * block
            z = (b * steps + t) * m
            ir = b * chain.trial_stride + t * chain.step_stride
            kind, step = block if t == 0 else 0, b * (steps - 1) + t
            at = step * chain.hinges
            for i in range(m):
                mode[z + i] = score[z + i]
            if t == 0:
                _pull_to_mean(mode, z, b, chain, size)
            elif identity:
                for i in range(m):
                    mode[z + i] += pulls[3 * (at - m) + i]
            if t + 1 == n:
                assemble_shared(rows, here, bases, kind, information, ir, size)
                for i in range(m):
                    mode[z + i] += carry[i]
            elif identity:
                assemble_gated(
                    rows, here, gated, kind, gated, 2 * block, slope, at, information, ir, size
                )
                for i in range(m):
                    pull = 3 * at + m + i
                    mode[z + i] += pulls[pull] + slope[at + i] * pulls[pull + m]
            else:
                _assemble_step(
                    rows, here, kind, ir, mode, z, carry, u, jac, slope, step, hinge, chain, size
                )
            if pins and identity and t + 1 < n:
                for p in range(m):
                    if pinned[at + p] != 0:
                        rows[here + p * (width + 1)] += pin
            elif pins and t + 1 < n:
                _pin(rows, here, mode, z, pinned, at, hinge, chain, size)
            before = here - block if t > 0 else 0
            if not eliminate(rows, here, before, mode, z, z - m if t > 0 else z, size):
                status[b] = t + 1
                break
            total += log_pivots(rows, here, size)
        logdet[b] = close_trial(rows, start, n, steps, status[b] != 0, total, size)
        quadratic[b] = finish(
            rows, mode, start, b * steps * m, steps, n if status[b] == 0 else 0, size
        )


@compiled
def _pull_to_mean(mode, z, b, chain, size):
    """Adds the pull of the first state's mean to the right-hand side."""
    m = len(size)
    for k in range(m):
        for i in range(m):
            mode[z + i] += chain.mean[b * m + k] * chain.initial[k * m + i]


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
def _square(matrix, start, m):
    """Block of a flat array as a matrix."""
    return matrix[start : start + m * m].reshape(m, m)


@compiled
def _residuals(e, part, gate, mode, z, drift, hinge, chain, m):
    """Writes e = z_{t+1} - F(z_t) of some steps, and their gates block by block."""
    n = e.shape[0]
    here = mode[z : z + n * m].reshape(n, m)
    after = mode[z + m : z + (n + 1) * m].reshape(n, m)
    moved = chain.drift[drift : drift + n * m].reshape(n, m)
    np.dot(here, _square(hinge.linear_t, 0, m), part)
    for t in range(n):
        for i in range(m):
            e[t, i] = after[t, i] - moved[t, i] - part[t, i]
    for block in range(gate.shape[0]):
        first = block * m
        if hinge.identity:
            gate[block] = here
        else:
            np.dot(here, _square(hinge.inner_t, first * m, m), gate[block])
            for t in range(n):
                for p in range(m):
                    gate[block, t, p] += hinge.offset[first + p]
        relu = np.maximum(gate[block], 0.0)
        np.dot(relu, _square(hinge.outer_t, first * m, m), part)
        for t in range(n):
            for i in range(m):
                e[t, i] -= part[t, i]


@compiled
def _observed(mode, first, last, b, chain, x, size):
    """Returns the part of the objective that belongs to the observations of some steps."""
    m, total = len(size), 0.0
    for t in range(first, last):
        z = (b * chain.steps + t) * m
        ir = b * chain.trial_stride + t * chain.step_stride
        for i in range(m):
            total += mode[z + i] * chain.score[z + i]
        total += _half_square(mode, z, chain.information, ir, x, size)
    return total


@compiled
def _start_value(mode, b, chain, e, x, size):
    """Returns the part of the objective that belongs to the first state."""
    m = len(size)
    for i in range(m):
        e[i] = mode[b * chain.steps * m + i] - chain.mean[b * m + i]
    return _half_square(e, 0, chain.initial, 0, x, size)


@compiled
def _workspace(hinges, m):
    """Returns memory for some steps: residuals and their parts, gates and kinks by block."""
    piece = max(1, min(_PIECE, _SMALL // (m * m)))
    return np.empty((2, piece, m)), np.empty((2, hinges // m, piece, m))


@compiled
def _half_squares(e, pulled, precision, m):
    """Returns -1/2 sum of e'Qe over steps; writes Q e."""
    np.dot(e, _square(precision, 0, m), pulled)
    total = 0.0
    for t in range(e.shape[0]):
        for i in range(m):
            total -= e[t, i] * pulled[t, i]
    return 0.5 * total


@compiled
def revise_trials(
    mode,
    slope,
    pinned,
    fraction,
    pinning,
    active,
    value,
    changes,
    hinge,
    chain,
    length,
    first,
    last,
    size,
):
    """Updates the active set of active trials; writes their objective and number of changes."""
    m = len(size)
    x, start = np.zeros(m), np.zeros(m)
    rows, tables = _workspace(chain.hinges, m)
    for b in range(first, last):
        if not active[b]:
            continue
        changes[b] = 0
        total = _start_value(mode, b, chain, start, x, size)
        total += _observed(mode, 0, length[b], b, chain, x, size)
        for t in range(0, length[b] - 1, rows.shape[1]):
            n = min(rows.shape[1], length[b] - 1 - t)
            e, part, z = rows[0, :n], rows[1, :n], (b * chain.steps + t) * m
            step = b * (chain.steps - 1) + t
            gate = tables[0].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            kink = tables[1].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            _residuals(e, part, gate, mode, z, step * m, hinge, chain, m)
            total += _half_squares(e, part, chain.precision, m)
            for block in range(gate.shape[0]):
                at = block * m
                np.dot(part, _square(hinge.outer, at * m, m), kink[block])
                for k in range(n):
                    here = (step + k) * chain.hinges + at
                    changes[b] += _switch(
                        gate[block, k],
                        kink[block, k],
                        here,
                        slope,
                        pinned,
                        fraction,
                        pinning,
                        chain.pin,
                    )
        value[b] = total


@compiled
def _half_square(vector, at, matrix, start, product, size):
    """Returns -1/2 v'Av for a symmetric A; writes -Av."""
    total = 0.0
    product[:] = 0.0
    subtract_rows(product, 0, vector, at, matrix, start, size)
    for i in range(len(size)):
        total += vector[at + i] * product[i]
    return 0.5 * total


@compiled
def value_trials(path, value, hinge, chain, length, first, last, size):
    """Writes the objective of paths, without constants."""
    m = len(size)
    x, start = np.zeros(m), np.zeros(m)
    rows, tables = _workspace(chain.hinges, m)
    for b in range(first, last):
        total = _start_value(path, b, chain, start, x, size)
        total += _observed(path, 0, length[b], b, chain, x, size)
        for t in range(0, length[b] - 1, rows.shape[1]):
            n = min(rows.shape[1], length[b] - 1 - t)
            e, part, z = rows[0, :n], rows[1, :n], (b * chain.steps + t) * m
            step = b * (chain.steps - 1) + t
            gate = tables[0].reshape(-1)[: chain.hinges * n].reshape(-1, n, m)
            _residuals(e, part, gate, path, z, step * m, hinge, chain, m)
            total += _half_squares(e, part, chain.precision, m)
        value[b] = total
