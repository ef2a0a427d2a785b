"""Block operations of the chain kernels as ordinary compiled loops.

Every block is a set of M rows inside a flat array. "Joint" rows [R | C] and [S | U] have 2 W
numbers each, where W is M rounded up to a multiple of four, and the padding is zero; "padded" rows
have W numbers and "tight" rows M. The size M comes in as a tuple of length M: the length of a
tuple is part of its type, so that every loop has a constant trip count and one compiled function
exists for each M.
"""

from __future__ import annotations

import math

from plssm.kernels._compile import compiled

__all__ = [
    "add_offset",
    "assemble",
    "assemble_gated",
    "assemble_shared",
    "back_substitute",
    "eliminate",
    "forward_substitute",
    "invert_factor",
    "padded",
    "smooth",
    "subtract_rows",
]


def padded(m: int) -> int:
    """Returns the row length in memory of a block with m columns."""
    return (m + 3) // 4 * 4


@compiled(fastmath={"contract"})
def eliminate(rows, here, before, y, iy, iy_before, size):
    """Turns rows [S | U] into [R | C] with S - C_before'C_before = R'R and R'C = U.

    The right-hand side is carried along: R'y = v - C_before'y_before, in place of v. `before` may
    point to a block of zeros.

    Returns:
        Whether every pivot was a positive normal number.
    """
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for k in range(m):
        for i in range(m):
            x = rows[before + k * s + w + i]
            for j in range(m):
                rows[here + i * s + j] -= x * rows[before + k * s + w + j]
    for k in range(m):
        r = here + k * s
        for i in range(k):
            x = rows[here + i * s + k]
            for j in range(s):
                rows[r + j] -= x * rows[here + i * s + j]
        pivot = rows[r + k]
        if not (pivot > 1e-300 and pivot < 1e300):
            return False
        scale = 1.0 / math.sqrt(pivot)
        for j in range(k):
            rows[r + j] = 0.0
        for j in range(k, s):
            rows[r + j] *= scale
    forward_substitute(rows, here, before, y, iy, iy_before, size)
    return True


@compiled(fastmath={"contract"})
def forward_substitute(rows, here, before, y, iy, iy_before, size):
    """Solves R'y = v - C_before'y_before in place of v."""
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for k in range(m):
        x = y[iy_before + k]
        for j in range(m):
            y[iy + j] -= x * rows[before + k * s + w + j]
    for k in range(m):
        x = y[iy + k] / rows[here + k * s + k]
        y[iy + k] = x
        for j in range(k + 1, m):
            y[iy + j] -= x * rows[here + k * s + j]


@compiled(fastmath={"contract"})
def back_substitute(rows, here, z, iz, iz_next, size):
    """Solves R z = y - C z_next in place of y; without a next step, C is zero."""
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for k in range(m - 1, -1, -1):
        x = z[iz + k]
        for j in range(m):
            x -= rows[here + k * s + w + j] * z[iz_next + j]
        for j in range(k + 1, m):
            x -= rows[here + k * s + j] * z[iz + j]
        z[iz + k] = x / rows[here + k * s + k]


@compiled(fastmath={"contract"})
def invert_factor(out, io, rows, here, size):
    """Writes the lower triangle of R'^-1 into padded rows; the rest must be zero already."""
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for k in range(m):
        for j in range(k + 1):
            out[io + k * w + j] = 1.0 if j == k else 0.0
        for i in range(k):
            x = rows[here + i * s + k]
            for j in range(i + 1):
                out[io + k * w + j] -= x * out[io + i * w + j]
        scale = 1.0 / rows[here + k * s + k]
        for j in range(k + 1):
            out[io + k * w + j] *= scale


@compiled(fastmath={"contract"})
def smooth(rows, here, p, to, following, cross, lagged, inverse, ii, gain, ig, size):
    """Writes P_t and X_t = Cov(z_t, z_{t+1}) from P_{t+1}, all in tight rows.

    Needs R'^-1 in `inverse`; `gain` is room for C'R'^-1.
    """
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for i in range(m):
        for j in range(m):
            gain[ig + i * w + j] = 0.0
            cross[lagged + i * m + j] = 0.0
            p[to + i * m + j] = 0.0
    for k in range(m):
        for i in range(m):
            x = rows[here + k * s + w + i]
            y = inverse[ii + k * w + i]
            for j in range(k + 1):
                gain[ig + i * w + j] += x * inverse[ii + k * w + j]
                p[to + i * m + j] += y * inverse[ii + k * w + j]
    for k in range(m):
        for i in range(m):
            x = gain[ig + k * w + i]
            for j in range(m):
                cross[lagged + i * m + j] -= x * p[following + k * m + j]
    for i in range(m):
        for k in range(m):
            x = cross[lagged + i * m + k]
            for j in range(i, m):
                p[to + i * m + j] -= x * gain[ig + k * w + j]
        for j in range(i):
            p[to + i * m + j] = p[to + j * m + i]


@compiled(fastmath={"contract"})
def assemble_shared(rows, here, base, ib, information, ii, size):
    """Writes the rows [S + information | U] from rows [S | U]."""
    m = len(size)
    s = (m + 3) // 4 * 8
    for i in range(m):
        for j in range(s):
            rows[here + i * s + j] = base[ib + i * s + j]
        for j in range(m):
            rows[here + i * s + j] += information[ii + i * m + j]


@compiled(fastmath={"contract"})
def assemble(rows, here, base, ib, precision, ip, jacobian, ij, information, ii, size):
    """Writes the rows [S + information + J'QJ | -J'Q]; base is [S | .] and precision [Q | .]."""
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    for i in range(m):
        r = here + i * s
        for j in range(m):
            rows[r + j] = base[ib + i * s + j] + information[ii + i * m + j]
            rows[r + w + j] = 0.0
        for k in range(m):
            x = jacobian[ij + k * m + i]
            for j in range(m):
                rows[r + w + j] -= x * precision[ip + k * s + j]
        for k in range(m):
            x = rows[r + w + k]
            for j in range(m):
                rows[r + j] -= x * jacobian[ij + k * m + j]


@compiled(fastmath={"contract"})
def assemble_gated(rows, here, base, ib, gates, ig, slope, at, information, ii, size):
    """Writes the rows [S + information + J'QJ | -J'Q] for J = A + W diag(d).

    Base is [S + A'QA | -A'Q]; gates are three blocks: [A'QW | .], [W'QA | .], [W'QW | -W'Q].
    """
    m = len(size)
    w = (m + 3) // 4 * 4
    s = 2 * w
    block = m * s
    for i in range(m):
        r, g = here + i * s, ig + i * s
        x = slope[at + i]
        for j in range(m):
            d = slope[at + j]
            y = gates[g + block + j] + d * gates[g + 2 * block + j]
            y = base[ib + i * s + j] + d * gates[g + j] + x * y
            rows[r + j] = y + information[ii + i * m + j]
        for j in range(m, w):
            rows[r + j] = 0.0
        for j in range(w, s):
            rows[r + j] = base[ib + i * s + j] + x * gates[g + 2 * block + j]


@compiled(fastmath={"contract"})
def add_offset(y, iy, carry, ic, offset, iu, precision, ip, jacobian, ij, size):
    """Adds the carried Q u_{t-1} and -J'Q u_t to the right-hand side, and carries Q u_t on."""
    m = len(size)
    s = (m + 3) // 4 * 8
    for j in range(m):
        y[iy + j] += carry[ic + j]
        carry[ic + j] = 0.0
    for k in range(m):
        x = offset[iu + k]
        for j in range(m):
            carry[ic + j] += x * precision[ip + k * s + j]
    for k in range(m):
        x = carry[ic + k]
        for j in range(m):
            y[iy + j] -= x * jacobian[ij + k * m + j]


@compiled(fastmath={"contract"})
def subtract_rows(out, io, x, ix, matrix, im, size):
    """Subtracts x' A from a vector; A has tight rows."""
    m = len(size)
    for k in range(m):
        for j in range(m):
            out[io + j] -= x[ix + k] * matrix[im + k * m + j]
