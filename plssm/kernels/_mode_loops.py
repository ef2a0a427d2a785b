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
        drift: [B, T-1, M], bias and inputs.
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
        if hinge.identity:
            rows[here + p * s + p] += chain.pin
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
    if hinge.identity:
        behind = 2 * block_size(size)
        gated = chain.gated
        assemble_gated(
            rows, here, gated, kind, gated, behind, slope, at, chain.information, ir, size
        )
        _add_drift(mode, z, carry, u, slope, at, step * m, hinge, chain, size)
    else:
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
    m = len(size)
    block = block_size(size)
    steps = chain.steps
    carry = np.zeros(m)
    u = np.zeros(m)
    jac = np.zeros(m * m)
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
            _start_rhs(mode, z, b, t, chain, size)
            kind = block if t == 0 else 0
            if t + 1 == n:
                assemble_shared(rows, here, chain.bases, kind, chain.information, ir, size)
                for i in range(m):
                    mode[z + i] += carry[i]
            else:
                step = b * (steps - 1) + t
                at = step * chain.hinges
                _assemble_step(
                    rows, here, kind, ir, mode, z, carry, u, jac, slope, step, hinge, chain, size
                )
                if pins:
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
def _add_drift(mode, z, carry, u, slope, at, drift, hinge, chain, size):
    """Adds the carried Q u_{t-1} and -J'Q u_t for J = A + W diag(d), and carries Q u_t on."""
    m = len(size)
    for i in range(m):
        mode[z + i] += carry[i]
        carry[i] = 0.0
        u[i] = -chain.drift[drift + i]
    subtract_rows(carry, 0, u, 0, chain.precision, 0, size)
    subtract_rows(mode, z, carry, 0, hinge.linear, 0, size)
    u[:] = 0.0
    subtract_rows(u, 0, carry, 0, hinge.outer, 0, size)
    for i in range(m):
        mode[z + i] += slope[at + i] * u[i]


@compiled
def _start_rhs(mode, z, b, t, chain, size):
    """Starts the right-hand side of a step: the score, and at first the pull of the mean."""
    m = len(size)
    for i in range(m):
        mode[z + i] = chain.score[z + i]
    if t == 0:
        for k in range(m):
            for i in range(m):
                mode[z + i] += chain.mean[b * m + k] * chain.initial[k * m + i]


@compiled
def _switch(gate, kink, at, slope, pinned, fraction, pinning, pin, hinges):
    """Updates the active set of one step; returns the number of changes."""
    changes = 0
    tolerance = _SLOPE * pin
    for p in range(hinges):
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
def _residual(e, relu, gate, mode, z, drift, hinge, chain, size):
    """Writes the gates of z_t and e = z_{t+1} - F(z_t)."""
    m = len(size)
    for i in range(m):
        e[i] = mode[z + m + i] - chain.drift[drift + i]
    subtract_rows(e, 0, mode, z, hinge.linear_t, 0, size)
    for first in range(0, chain.hinges, m):
        if hinge.identity:
            for p in range(m):
                gate[p] = mode[z + p]
        else:
            for p in range(m):
                relu[p] = -mode[z + p]
                gate[first + p] = hinge.offset[first + p]
            subtract_rows(gate, first, relu, 0, hinge.inner_t, first * m, size)
        for p in range(m):
            relu[p] = max(gate[first + p], 0.0)
        subtract_rows(e, 0, relu, 0, hinge.outer_t, first * m, size)


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
    e = np.zeros(m)
    x = np.zeros(m)
    relu = np.zeros(m)
    gate = np.zeros(chain.hinges)
    kink = np.zeros(chain.hinges)
    for b in range(first, last):
        if not active[b]:
            continue
        changes[b] = 0
        start = b * chain.steps * m
        for i in range(m):
            e[i] = mode[start + i] - chain.mean[b * m + i]
        total = _half_square(e, 0, chain.initial, 0, x, size)
        for t in range(length[b]):
            z = start + t * m
            ir = b * chain.trial_stride + t * chain.step_stride
            for i in range(m):
                total += mode[z + i] * chain.score[z + i]
            total += _half_square(mode, z, chain.information, ir, x, size)
            if t + 1 == length[b]:
                continue
            step = b * (chain.steps - 1) + t
            _residual(e, relu, gate, mode, z, step * m, hinge, chain, size)
            total += _half_square(e, 0, chain.precision, 0, x, size)
            kink[:] = 0.0
            for p in range(0, chain.hinges, m):
                subtract_rows(kink, p, x, 0, hinge.outer, p * m, size)
            changes[b] += _switch(
                gate,
                kink,
                step * chain.hinges,
                slope,
                pinned,
                fraction,
                pinning,
                chain.pin,
                chain.hinges,
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
    e = np.zeros(m)
    x = np.zeros(m)
    relu = np.zeros(m)
    gate = np.zeros(chain.hinges)
    for b in range(first, last):
        start = b * chain.steps * m
        for i in range(m):
            e[i] = path[start + i] - chain.mean[b * m + i]
        total = _half_square(e, 0, chain.initial, 0, x, size)
        for t in range(length[b]):
            z = start + t * m
            ir = b * chain.trial_stride + t * chain.step_stride
            for i in range(m):
                total += path[z + i] * chain.score[z + i]
            total += _half_square(path, z, chain.information, ir, x, size)
            if t + 1 < length[b]:
                drift = (b * (chain.steps - 1) + t) * m
                _residual(e, relu, gate, path, z, drift, hinge, chain, size)
                total += _half_square(e, 0, chain.precision, 0, x, size)
        value[b] = total
