"""Rows of trials side by side, number by number: copies, sums, and the adjoint of an update.

Rows of an array of trials are `stride` numbers apart, those of a scratch `LANES`. Arrays named in
capitals come with an offset.
"""

from __future__ import annotations

import numpy as np
from numba.core import cgutils

from plssm.kernels._compile import compiled
from plssm.kernels._filter_lanes import LANES
from plssm.kernels._lane_emitter import CONTRACT, operation

__all__ = [
    "accumulate",
    "add",
    "add_symmetric",
    "balance",
    "blank",
    "copy",
    "read",
    "room",
    "spread",
    "write",
]

_ONE = (0,)


def _place(e, start, row, stride):
    """Address of a row of an array of trials."""
    return e.builder.gep(start, [e.builder.mul(row, stride)])


def _move(e, OUT, out_stride, X, stride, rows, adding):
    """Writes rows, added to what is there if `adding` is not zero."""
    builder = e.builder
    again = builder.icmp_signed("!=", adding, e.number(0))
    with cgutils.for_range(builder, rows) as loop:
        value = e.load(_place(e, X, loop.index, stride), 0)
        place = _place(e, OUT, loop.index, out_stride)
        start = builder.select(again, e.load(place, 0), e.zero())
        e.store(builder.fadd(start, value, flags=CONTRACT), place, 0)


def _spread(e, OUT, X, rows):
    """Repeats single numbers in all lanes."""
    with cgutils.for_range(e.builder, rows) as loop:
        value = e.builder.load(e.builder.gep(X, [loop.index]))
        e.store(e.splat(value), e.row(OUT, loop.index), 0)


def _symmetric_part(e, OUT, X, stride, size):
    """Adds the symmetric part of a matrix."""
    builder = e.builder
    half = e.splat(e.real(0.5))
    with cgutils.for_range(builder, size) as i, cgutils.for_range(builder, size) as j:
        here = builder.add(builder.mul(i.index, size), j.index)
        there = builder.add(builder.mul(j.index, size), i.index)
        a, b = (e.load(_place(e, X, k, stride), 0) for k in (here, there))
        place = e.row(OUT, here)
        both = builder.fadd(a, b, flags=CONTRACT)
        e.store(e.more(e.load(place, 0), half, both), place, 0)


def _balance(e, C, H, M, G, V, P, R, AROUND, TO_Q, TO_R, TO_P, ONES, REST, size):
    """Adds what an update says about R and P, see `balance`."""
    builder = e.builder
    half, one = e.splat(e.real(0.5)), e.splat(e.real(1.0))
    c = e.load(C, 0)
    less = builder.fmul(c, e.splat(e.real(-0.5)), flags=CONTRACT)

    def times(a, b):
        return builder.fmul(a, b, flags=CONTRACT)

    with cgutils.for_range(builder, size) as outer:
        i = outer.index
        h, m, g, v = (e.load(e.row(x, i), 0) for x in (H, M, G, V))
        e.store(e.more(h, c, m), e.row(TO_Q, i), 0)
        # c m m' + h m' + m h' = (c m + h) m' + m h'
        weight, pull = e.more(h, c, m), e.more(v, c, g)
        with cgutils.for_range(builder, size) as inner:
            j = inner.index
            ij = builder.add(builder.mul(i, size), j)
            h_j, m_j, g_j, v_j = (e.load(e.row(x, j), 0) for x in (H, M, G, V))
            total = e.more(e.more(times(c, e.load(e.row(P, ij), 0)), weight, m_j), m, h_j)
            total = e.more(e.load(e.row(AROUND, ij), 0), half, total)
            place = e.row(TO_R, ij)
            e.store(builder.fsub(e.load(place, 0), total, flags=CONTRACT), place, 0)
            place = e.row(TO_P, ij)
            gain = e.more(times(pull, g_j), g, v_j)
            e.store(e.more(e.load(place, 0), half, gain), place, 0)
            e.store(times(less, e.load(e.row(R, ij), 0)), e.row(REST, ij), 0)
            same = builder.icmp_signed("==", i, j)
            e.store(builder.select(same, one, e.zero()), e.row(ONES, ij), 0)


_move, _spread, _symmetric_part, _balance = (
    operation(x, apart=True) for x in (_move, _spread, _symmetric_part, _balance)
)


@compiled(inline="always")
def room(rows):
    """Scratch of rows that starts at a multiple of 64 bytes."""
    found = np.empty((rows + 1) * LANES)
    first = (-(found.ctypes.data // 8)) % LANES
    return found[first : first + rows * LANES]


@compiled(inline="always")
def blank(values, rows, step, length, first):
    """Zeros for trials that have ended."""
    for here in range(rows * LANES):
        if step >= length[first + here % LANES]:
            values[here] = 0.0


@compiled(inline="always")
def read(values, t, first, out, step, length, ended):
    """Copies rows t of a group; zeros for trials that have ended, if any has."""
    _, rows, wide = values.shape
    if wide == 1:
        _spread(out, 0, values, t * rows, rows, _ONE)
    else:
        _move(out, 0, LANES, values, t * rows * wide + first, wide, rows, 0, _ONE)
    if ended:
        blank(out, rows, step, length, first)


@compiled(inline="always")
def spread(values, out):
    """Repeats single numbers in all lanes."""
    _spread(out, 0, values, 0, values.size, _ONE)


@compiled(inline="always")
def write(rows, out, t, first):
    """Copies rows of a group into an array of trials."""
    _, n, wide = out.shape
    _move(out, t * n * wide + first, wide, rows, 0, LANES, n, 0, _ONE)


@compiled(inline="always")
def add(values, t, first, out, length, ended):
    """Adds rows t of a group, but for trials that have ended."""
    _, rows, wide = values.shape
    if not ended:
        _move(out, 0, LANES, values, t * rows * wide + first, wide, rows, 1, _ONE)
        return
    for i in range(rows):
        for x in range(LANES):
            if t < length[first + x]:
                out[i * LANES + x] += values[t, i, first + x]


@compiled(inline="always")
def add_symmetric(values, t, first, out, length, ended, size):
    """Adds the symmetric part of matrices of a group, but for trials that have ended."""
    if not ended:
        wide = values.shape[2]
        _symmetric_part(out, 0, values, t * size * size * wide + first, wide, size, _ONE)
        return
    for i in range(size):
        for j in range(size):
            for x in range(LANES):
                if t < length[first + x]:
                    value = values[t, i * size + j, first + x] + values[t, j * size + i, first + x]
                    out[(i * size + j) * LANES + x] += 0.5 * value


@compiled(inline="always")
def copy(out, rows):
    """Copies rows to the start of others."""
    _move(out, 0, LANES, rows, 0, LANES, rows.size // LANES, 0, _ONE)


@compiled(inline="always")
def accumulate(out, rows):
    """Adds rows to rows."""
    _move(out, 0, LANES, rows, 0, LANES, out.size // LANES, 1, _ONE)


@compiled(inline="always")
def balance(c, h, m, g, v, p, r, around, to_q, to_r, to_p, ones, rest, size):
    """Adds what an update says about R and P.

    Args:
        c: Cotangent of the increment.
        h: P mbar.
        m: Filtered mean.
        g: q - R m^-.
        v: mbar.
        p: Filtered covariance.
        r: Information.
        around: P Pbar P.
        to_q: Receives h + c m.
        to_r: Loses around + (c P + h m' + m h' + c m m') / 2.
        to_p: Gains (v g' + g v' + c g g') / 2.
        ones: Receives I.
        rest: Receives - c R / 2.
        size: D.
    """
    _balance(
        c, 0, h, 0, m, 0, g, 0, v, 0, p, 0, r, 0, around, 0, to_q, 0, to_r, 0, to_p, 0, ones, 0,
        rest, 0, size, _ONE,
    )  # fmt: skip
