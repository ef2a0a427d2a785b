"""Block operations of Gaussian paths with explicit vectors; same interface as `_path_blocks`."""

from __future__ import annotations

from llvmlite import ir

from plssm.kernels import _path_blocks as plain
from plssm.kernels._emit import Block, Emitter
from plssm.kernels._vector_blocks import (
    joint,
    operation,
    padded_rows,
    part,
    put,
    put_symmetric,
    tight,
)

__all__ = [
    "ascend",
    "carry",
    "combine",
    "descend",
    "finish_diagonal",
    "gain",
    "place",
    "place_last",
    "pull",
    "subtract_dots",
    "subtract_outer",
    "subtract_symmetric",
    "weigh_order",
]

_HALF = ir.Constant(ir.DoubleType(), 0.5)


def _number(e: Emitter, vector: ir.Value, i: int) -> ir.Value:
    """Loads element i of a vector in memory."""
    return e.builder.load(e.at(vector, i))


def _place_last(e: Emitter, here, diag):
    """Writes joint rows [U_tt | 0]."""
    _place_blocks(e, here, diag, None)


def _place(e: Emitter, here, diag, off):
    """Writes joint rows [U_tt | U_{t,t+1}]."""
    _place_blocks(e, here, diag, off)


def _place_blocks(e: Emitter, here, diag, off):
    rows, left = joint(e, here), tight(e, diag)
    for i in range(e.m):
        for c in range(e.vectors):
            e.store_row(e.load_row(left, i, c), rows, i, c)
            right = e.zero() if off is None else e.load_row(tight(e, off), i, c)
            e.store_row(right, rows, i, e.vectors + c)


def _gain(e: Emitter, out, here, inverse):
    """Writes H = C' I from joint rows [R | C]."""
    coupling = Block(e.at(here, 4 * e.vectors), 8 * e.vectors)
    for panel in range(e.vectors):
        for c in range(e.vectors):
            sums = [[e.zero()] for _ in range(e.width(panel))]
            sums = e.accumulate(
                sums,
                (coupling, 4 * panel),
                (padded_rows(e, inverse), [c]),
                4 * c,
                e.m,
                subtract=False,
            )
            for i, total in enumerate(sums):
                e.store_row(total[0], padded_rows(e, out), 4 * panel + i, c)


def _combined(e: Emitter, vector, matrix, *, triangular: bool) -> list[ir.Value]:
    """Parts of x' A for padded rows."""
    column, parts = Block(vector, 1), []
    for c in range(e.vectors):
        first = 4 * c if triangular else 0
        sums = e.accumulate(
            [[e.zero()]], (column, 0), (padded_rows(e, matrix), [c]), first, e.m, subtract=False
        )
        parts.append(sums[0][0])
    return parts


def _ascend(e: Emitter, z, z_next, inverse, gain):
    """Turns z into I'z - H'z_next."""
    pulled = _combined(e, z, inverse, triangular=True)
    known = _combined(e, z_next, gain, triangular=False)
    for c, (a, b) in enumerate(zip(pulled, known, strict=True)):
        e.store(e.builder.fsub(a, b), e.at(z, 4 * c), e.width(c))


def _pull(e: Emitter, z, inverse):
    """Turns z into I'z."""
    for c, value in enumerate(_combined(e, z, inverse, triangular=True)):
        e.store(value, e.at(z, 4 * c), e.width(c))


def _dots(e: Emitter, matrix: Block, vector: list[ir.Value], panel: int, last: int) -> ir.Value:
    """Products of a panel's rows with a vector, of which the first `last` parts count."""
    sums = []
    for i in range(e.width(panel)):
        total = e.zero()
        for c in range(last):
            total = e.more(total, e.load_row(matrix, 4 * panel + i, c), vector[c])
        sums.append(total)
    return e.row_sums(sums)


def _descend(e: Emitter, f, carried, carried_before, inverse, gain_before):
    """Writes c = f - H_before c_before into `carried`, and I c in place of f."""
    every = range(e.vectors)
    before = [part(e, carried_before, c) for c in every]
    now = []
    for panel in every:
        known = _dots(e, padded_rows(e, gain_before), before, panel, e.vectors)
        now.append(e.builder.fsub(part(e, f, panel), known))
        e.store(now[-1], e.at(carried, 4 * panel), e.width(panel))
    for panel in every:
        value = _dots(e, padded_rows(e, inverse), now, panel, panel + 1)
        e.store(value, e.at(f, 4 * panel), e.width(panel))


def _weigh_order(e: Emitter, q, inverse, f, xi, running):
    """Adds f_i (sum_{j<i} xi_j I_j + xi_i I_i / 2) / 2 to the rows of q; I_j are rows."""
    half = e.splat(_HALF)
    sums = [e.zero() for _ in range(e.vectors)]
    for i in range(e.m):
        x, y = e.splat(e.times(_HALF, _number(e, f, i))), e.splat(_number(e, xi, i))
        for c in range(i // 4 + 1):
            row = e.times(y, e.load_row(padded_rows(e, inverse), i, c))
            total = e.load_row(padded_rows(e, q), i, c)
            total = e.more(total, x, e.more(sums[c], half, row))
            e.store_row(total, padded_rows(e, q), i, c)
            sums[c] = e.add(sums[c], row)


def _combine(e: Emitter, p, inverse, q):
    """Writes I'Q + Q'I into padded rows; both are lower triangular."""
    inverse, q = padded_rows(e, inverse), padded_rows(e, q)
    for panel in range(e.vectors):
        for c in range(panel, e.vectors):
            parts = []
            for a, b in ((inverse, q), (q, inverse)):
                sums = [[e.zero()] for _ in range(e.width(panel))]
                parts.append(
                    e.accumulate(sums, (a, 4 * panel), (b, [c]), 4 * c, e.m, subtract=False)
                )
            sums = [[e.add(x[0], y[0])] for x, y in zip(*parts, strict=True)]
            put_symmetric(e, sums, padded_rows(e, p), panel, [c])


def _carry(e: Emitter, p, p_next, cross, gain):
    """Adds H' P_next H to P, and writes -2 H' P_next into tight rows."""
    gain, cross, p, p_next = (
        padded_rows(e, gain),
        tight(e, cross),
        padded_rows(e, p),
        padded_rows(e, p_next),
    )
    half = e.splat(_HALF)
    for panel in range(e.vectors):
        for columns in e.groups(0, e.vectors):
            sums = [[e.zero() for _ in columns] for _ in range(e.width(panel))]
            sums = e.accumulate(sums, (gain, 4 * panel), (p_next, columns), 0, e.m)
            sums = [[e.add(x, x) for x in total] for total in sums]
            put(e, sums, cross, panel, columns)
    for panel in range(e.vectors):
        for columns in e.groups(panel, e.vectors):
            sums = [[e.zero() for _ in columns] for _ in range(e.width(panel))]
            sums = e.accumulate(sums, (cross, 4 * panel), (gain, columns), 0, e.m, across=True)
            sums = [
                [
                    e.more(e.load_row(p, 4 * panel + i, c), half, x)
                    for c, x in zip(columns, total, strict=True)
                ]
                for i, total in enumerate(sums)
            ]
            put_symmetric(e, sums, p, panel, columns)


def _subtract_symmetric(e: Emitter, p, x, y):
    """Subtracts (x y' + y x') / 2 from padded rows."""
    _less_symmetric(e, padded_rows(e, p), padded_rows(e, p), x, y)


def _finish_diagonal(e: Emitter, out, p, x, y):
    """Writes P - (x y' + y x') / 2 into tight rows."""
    _less_symmetric(e, tight(e, out), padded_rows(e, p), x, y)


def _less_symmetric(e: Emitter, out: Block, p: Block, x, y):
    xs, ys = ([part(e, v, c) for c in range(e.vectors)] for v in (x, y))
    for i in range(e.m):
        a, b = (e.splat(e.times(_HALF, _number(e, v, i))) for v in (x, y))
        for c in range(e.vectors):
            value = e.less(e.load_row(p, i, c), a, ys[c])
            e.store_row(e.less(value, b, xs[c]), out, i, c)


def _subtract_outer(e: Emitter, out, x, y):
    """Subtracts x y' from tight rows."""
    ys = [part(e, y, c) for c in range(e.vectors)]
    for i in range(e.m):
        a = e.splat(_number(e, x, i))
        for c in range(e.vectors):
            value = e.less(e.load_row(tight(e, out), i, c), a, ys[c])
            e.store_row(value, tight(e, out), i, c)


def _subtract_dots(e: Emitter, out, x, matrix):
    """Subtracts A x from a vector; A has tight rows."""
    xs = [part(e, x, c) for c in range(e.vectors)]
    for panel in range(e.vectors):
        value = e.builder.fsub(
            part(e, out, panel), _dots(e, tight(e, matrix), xs, panel, e.vectors)
        )
        e.store(value, e.at(out, 4 * panel), e.width(panel))


ascend = operation(_ascend, plain)
carry = operation(_carry, plain)
combine = operation(_combine, plain)
descend = operation(_descend, plain)
finish_diagonal = operation(_finish_diagonal, plain)
gain = operation(_gain, plain)
place = operation(_place, plain)
place_last = operation(_place_last, plain)
pull = operation(_pull, plain)
subtract_dots = operation(_subtract_dots, plain)
subtract_outer = operation(_subtract_outer, plain)
subtract_symmetric = operation(_subtract_symmetric, plain)
weigh_order = operation(_weigh_order, plain)
