"""Compiled solves of a chain whose map is one layer of hinges, for given slopes.

Flat arrays as in `_chain_loops`. Hinges come in blocks of M, the last one filled with hinges of
zero weight, so that the square block operations serve any number of hinges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.kernels._chain_loops import block_size, close_trial, log_pivots
from plssm.kernels._compile import compiled
from plssm.kernels._vector_blocks import (
    add_offset,
    assemble,
    assemble_shared,
    back_substitute,
    eliminate,
    subtract_rows,
)
from plssm.kernels._vector_gates import assemble_gated

__all__ = ["Chain", "Hinges", "Memory", "maximise_trials"]

_SAME = 1e-28  # square of the relative change that counts as rounding


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


class Memory(NamedTuple):
    """What one solve leaves for the next, as flat arrays.

    Attributes:
        right: [B, T, M], right-hand sides after the forward pass.
        carry: [B, T, M], Q u of the step before; empty for hinges that are the states themselves.
        switched: [B, T], steps whose slopes or pins were changed since the last solve.
        touched: [B, T], these and steps whose state the last solve moved; between its two passes
            the steps that the first one did again.
        share: [B, T], what each step, with the transition from it, adds to the objective.
    """

    right: np.ndarray
    carry: np.ndarray
    switched: np.ndarray
    touched: np.ndarray
    share: np.ndarray


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


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _differs(new, at, stride, width, old):
    """Whether a row of a flat array differs from a tight old one, but for rounding.

    A row by itself, as those of states that are held on a kink are far smaller than others.
    """
    for i in range(old.size // width):
        change, square = 0.0, 0.0
        for j in range(width):
            x = new[at + i * stride + j]
            d = x - old[i * width + j]
            change += d * d
            square += x * x
        if not change <= _SAME * square:
            return True
    return False


@compiled
def _copy(rows, at, stride, width, out):
    """Copies rows of a flat array to tight ones."""
    for i in range(out.size // width):
        for j in range(width):
            out[i * width + j] = rows[at + i * stride + j]


@compiled(inline="always")
def _gated_step(
    rows, here, kind, gated, slope, pinned, pin, at, information, ir, v, z, pulls, size
):
    """Writes the joint rows of a step for hinges on the states; adds the pulls of its map."""
    m = len(size)
    block = block_size(size)
    assemble_gated(rows, here, gated, kind, gated, 2 * block, slope, at, information, ir, size)
    for i in range(m):
        pull = 3 * at + m + i
        v[z + i] += pulls[pull] + slope[at + i] * pulls[pull + m]
    if pin > 0.0:
        for p in range(m):
            if pinned[at + p] != 0:
                rows[here + p * (block // m + 1)] += pin


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _square(vector):
    """Squared norm."""
    total = 0.0
    for x in vector:
        total += x * x
    return total


@compiled
def maximise_trials(
    rows, mode, memory, quadratic, slope, pinned, pins, fresh, active, hinge, chain, length,
    logdet, status, first, last, size,
):  # fmt: skip
    """Maximises active trials for fixed slopes, with pinned gates held at zero if `pins`.

    Where not all is `fresh`, only the steps that were switched since the last time are done again
    and those around them for which it makes a difference; log determinants are NaN then.
    """
    m, steps, block = len(size), chain.steps, block_size(size)
    for b in range(first, last):
        if not active[b]:
            continue
        n, start = length[b], block * (1 + b * steps)
        status[b], total = _eliminate_trial(
            rows, start, b, n, memory, slope, pinned, pins, fresh, hinge, chain, size
        )
        if fresh or status[b] != 0:
            logdet[b] = close_trial(rows, start, n, steps, status[b] != 0, total, size)
        else:
            logdet[b] = np.nan
        n = n if status[b] == 0 else 0
        quadratic[b] = _square(memory.right[b * steps * m : (b * steps + n) * m])
        _substitute_trial(rows, start, b, n, mode, memory, fresh, chain, size)


@compiled
def _eliminate_trial(rows, start, b, n, memory, slope, pinned, pins, fresh, hinge, chain, size):
    """Forward pass of one trial; marks the steps that were done as touched.

    Returns:
        0, or 1 + the step that failed; and log |U| where all is fresh.
    """
    m, steps, block = len(size), chain.steps, block_size(size)
    w = (m + 3) // 4 * 4
    carry, u, jac = np.zeros(m), np.zeros(m), np.zeros(m * m)
    coupling, old, carried = np.empty(m * w), np.empty(m), np.zeros(m)
    right, switched, touched, kept = memory.right, memory.switched, memory.touched, memory.carry
    score, information, bases = chain.score, chain.information, chain.bases
    gated, pulls, identity = chain.gated, chain.pulls, hinge.identity
    pin, follows, total = chain.pin if pins else 0.0, False, 0.0
    for t in range(n):
        k = b * steps + t
        touched[k] = fresh or follows or switched[k] != 0
        if touched[k] == 0:
            continue
        here, z, ir = start + t * block, k * m, b * chain.trial_stride + t * chain.step_stride
        kind, step = block if t == 0 else 0, k - b
        if not fresh:
            _copy(rows, here + w, 2 * w, w, coupling)
            _copy(right, z, m, m, old)
        right[z : z + m] = score[z : z + m]
        if t == 0:
            _pull_to_mean(right, z, b, chain, size)
        elif identity:
            for i in range(m):
                right[z + i] += pulls[3 * (step - 1) * m + i]
        else:
            _copy(kept, z, m, m, carry)
        if t + 1 == n:
            assemble_shared(rows, here, bases, kind, information, ir, size)
            for i in range(m):
                right[z + i] += carry[i]
        elif identity:
            _gated_step(
                rows, here, kind, gated, slope, pinned, pin, step * m, information, ir, right, z,
                pulls, size,
            )  # fmt: skip
        else:
            _assemble_step(
                rows, here, kind, ir, right, z, carry, u, jac, slope, step, hinge, chain, size
            )
            if pins:
                _pin(rows, here, right, z, pinned, step * chain.hinges, hinge, chain, size)
            _copy(kept, z + m, m, m, carried)
            _copy(carry, 0, m, m, kept[z + m : z + 2 * m])
        before = here - block if t > 0 else 0
        if not eliminate(rows, here, before, right, z, z - m if t > 0 else z, size):
            return t + 1, 0.0
        if fresh:
            total += log_pivots(rows, here, size)
            continue
        follows = (
            _differs(rows, here + w, 2 * w, w, coupling)
            or _differs(right, z, 1, 1, old)
            or _differs(carry, 0, m, m, carried)
        )
    return 0, total


@compiled
def _substitute_trial(rows, start, b, n, mode, memory, fresh, chain, size):
    """Backward pass of one trial; leaves as touched the steps that were switched or moved."""
    m, steps, block = len(size), chain.steps, block_size(size)
    right, switched, touched = memory.right, memory.switched, memory.touched
    old, follows = np.empty(m), False
    mode[(b * steps + n) * m : (b + 1) * steps * m] = 0.0
    for t in range(n - 1, -1, -1):
        k = b * steps + t
        if touched[k] == 0 and not follows:
            continue
        z = k * m
        for i in range(m):
            old[i] = mode[z + i]
            mode[z + i] = right[z + i]
        back_substitute(rows, start + t * block, mode, z, z + m if t + 1 < n else z, size)
        follows = fresh or _differs(mode, z, 1, 1, old)
        touched[k] = follows or switched[k] != 0


@compiled
def _pull_to_mean(mode, z, b, chain, size):
    """Adds the pull of the first state's mean to the right-hand side."""
    m = len(size)
    for k in range(m):
        for i in range(m):
            mode[z + i] += chain.mean[b * m + k] * chain.initial[k * m + i]
