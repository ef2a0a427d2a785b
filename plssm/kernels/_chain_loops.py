"""Compiled passes over a batch of block-tridiagonal systems.

A pass works on trials `first` to `last` only, so that two threads can share a batch, and on flat
arrays. `rows` holds one block of zeros and then a block [R_t | C_t] for every step of every trial,
M joint rows of 2 W numbers, where U_tt - C_{t-1}'C_{t-1} = R_t'R_t and C_t = R_t'^-1 U_{t,t+1}.
"""

from __future__ import annotations

import math

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._vector_blocks import (
    add_offset,
    assemble,
    assemble_shared,
    back_substitute,
    eliminate,
    forward_substitute,
    invert_factor,
    smooth,
)

__all__ = [
    "assemble_and_solve",
    "block_size",
    "close_trial",
    "factor_trials",
    "finish",
    "log_pivots",
    "sample_trials",
    "select_inverse",
    "solve_trials",
]


@compiled
def block_size(size):
    """Returns the numbers in one block of joint rows."""
    return len(size) * 2 * ((len(size) + 3) // 4 * 4)


@compiled
def log_pivots(rows, here, size):
    """Returns log |R|^2 of a finished block."""
    m = len(size)
    s = 2 * ((m + 3) // 4 * 4)
    product = 1.0
    total = 0.0
    for k in range(m):
        r = rows[here + k * s + k]
        product *= r
        if product > 1e100 or product < 1e-100:
            total += math.log(product)
            product = 1.0
    return 2.0 * (total + math.log(product))


@compiled
def close_trial(rows, start, n, steps, failed, total, size):
    """Clears what lies beyond a trial's end, or all of one that failed; returns log |U|."""
    block = block_size(size)
    rows[start + (0 if failed else n) * block : start + steps * block] = 0.0
    return np.inf if failed else total


@compiled
def factor_trials(rows, diag, off, length, logdet, status, first, last, size):
    """Factors trials given their blocks; writes rows, logdet and status."""
    m = len(size)
    w = (m + 3) // 4 * 4
    block = block_size(size)
    steps = (rows.size // block - 1) // length.size
    rhs = np.zeros(m)
    for b in range(first, last):
        total = 0.0
        start = block * (1 + b * steps)
        for t in range(length[b]):
            here = start + t * block
            rows[here : here + block] = 0.0
            for i in range(m):
                for j in range(m):
                    rows[here + i * 2 * w + j] = diag[((b * steps + t) * m + i) * m + j]
            if t + 1 < length[b]:
                for i in range(m):
                    for j in range(m):
                        at = (b * (steps - 1) + t) * m * m + i * m + j
                        rows[here + i * 2 * w + w + j] = off[at]
            before = here - block if t > 0 else 0
            if not eliminate(rows, here, before, rhs, 0, 0, size):
                status[b] = t + 1
                break
            total += log_pivots(rows, here, size)
        logdet[b] = close_trial(rows, start, length[b], steps, status[b] != 0, total, size)


@compiled
def assemble_and_solve(
    rows,
    mode,
    quadratic,
    jacobian,
    strides_j,
    offset,
    bases,
    information,
    strides_r,
    length,
    logdet,
    status,
    first,
    last,
    size,
):
    """Assembles, factors and solves the chain of a conditionally linear Gaussian model.

    `mode` comes in as the score plus the pull of the initial mean. `bases` holds four blocks of
    joint rows: [Q | 0], [Q0 | 0], and the same with J'QJ and -J'Q of a shared J. The strides are
    the distances between trials and between steps, zero on a shared axis.
    """
    m = len(size)
    block = block_size(size)
    steps = (rows.size // block - 1) // length.size
    carry = np.zeros(m)
    shared = strides_j[0] == 0 and strides_j[1] == 0
    for b in range(first, last):
        total = 0.0
        carry[:] = 0.0
        n = length[b]
        start = block * (1 + b * steps)
        for t in range(n):
            here = start + t * block
            z = (b * steps + t) * m
            ij = b * strides_j[0] + t * strides_j[1]
            ir = b * strides_r[0] + t * strides_r[1]
            kind = block if t == 0 else 0
            if t + 1 == n:
                assemble_shared(rows, here, bases, kind, information, ir, size)
                for i in range(m):
                    mode[z + i] += carry[i]
            else:
                if shared:
                    assemble_shared(rows, here, bases, kind + 2 * block, information, ir, size)
                else:
                    assemble(
                        rows, here, bases, kind, bases, 0, jacobian, ij, information, ir, size
                    )
                iu = (b * (steps - 1) + t) * m
                add_offset(mode, z, carry, 0, offset, iu, bases, 0, jacobian, ij, size)
            before = here - block if t > 0 else 0
            if not eliminate(rows, here, before, mode, z, z - m if t > 0 else z, size):
                status[b] = t + 1
                break
            total += log_pivots(rows, here, size)
        logdet[b] = close_trial(rows, start, length[b], steps, status[b] != 0, total, size)
        quadratic[b] = finish(
            rows, mode, start, b * steps * m, steps, n if status[b] == 0 else 0, size
        )


@compiled
def finish(rows, vector, start, base, steps, n, size):
    """Back substitution of one trial; returns the squared norm of y = L^-1 v."""
    m = len(size)
    block = block_size(size)
    vector[base + n * m : base + steps * m] = 0.0
    square = 0.0
    for t in range(n - 1, -1, -1):
        z = base + t * m
        for i in range(m):
            square += vector[z + i] * vector[z + i]
        back_substitute(rows, start + t * block, vector, z, z + m if t + 1 < n else z, size)
    return square


@compiled
def solve_trials(rows, vector, length, status, first, last, size):
    """Solves U z = v in place of v; steps beyond a trial's end become zero."""
    m = len(size)
    block = block_size(size)
    steps = (rows.size // block - 1) // length.size
    for b in range(first, last):
        n = length[b] if status[b] == 0 else 0
        start = block * (1 + b * steps)
        for t in range(n):
            here = start + t * block
            z = (b * steps + t) * m
            before = here - block if t > 0 else 0
            forward_substitute(rows, here, before, vector, z, z - m if t > 0 else z, size)
        finish(rows, vector, start, b * steps * m, steps, n, size)


@compiled
def sample_trials(rows, noise, samples, length, status, first, last, size):
    """Solves L'z = xi in place of xi, for several samples."""
    m = len(size)
    block = block_size(size)
    steps = (rows.size // block - 1) // length.size
    for a in range(samples):
        for b in range(first, last):
            finish(
                rows,
                noise,
                block * (1 + b * steps),
                (a * length.size + b) * steps * m,
                steps,
                length[b] if status[b] == 0 else 0,
                size,
            )


@compiled
def select_inverse(rows, covariance, cross, length, status, first, last, size):
    """Writes the lag-0 and lag-1 blocks of the inverse; zero beyond a trial's end."""
    m = len(size)
    w = (m + 3) // 4 * 4
    block = block_size(size)
    steps = (rows.size // block - 1) // length.size
    inverse = np.zeros(m * w)
    gain = np.zeros(m * w)
    for b in range(first, last):
        n = length[b] if status[b] == 0 else 0
        for t in range(n - 1, -1, -1):
            here = block * (1 + b * steps + t)
            to = (b * steps + t) * m * m
            invert_factor(inverse, 0, rows, here, size)
            if t + 1 < n:
                smooth(
                    rows,
                    here,
                    covariance,
                    to,
                    to + m * m,
                    cross,
                    (b * (steps - 1) + t) * m * m,
                    inverse,
                    0,
                    gain,
                    0,
                    size,
                )
            else:
                _square(covariance, to, inverse, size)
        covariance[(b * steps + n) * m * m : (b + 1) * steps * m * m] = 0.0
        ends = b * (steps - 1) + max(n - 1, 0)
        cross[ends * m * m : (b + 1) * (steps - 1) * m * m] = 0.0


@compiled
def _square(out, to, inverse, size):
    """Writes the product of a lower triangular block's transpose and itself."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m):
        for j in range(m):
            total = 0.0
            for k in range(max(i, j), m):
                total += inverse[k * w + i] * inverse[k * w + j]
            out[to + i * m + j] = total
