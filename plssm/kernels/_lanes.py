"""Products of small matrices with lanes, and piecewise-linear units on them."""

from __future__ import annotations

from numba.core import cgutils

from plssm.kernels._lane_emitter import CONTRACT, operation

__all__ = ["activate", "activate_back", "add_outer", "add_product", "set_product"]

_ROWS = {1: 12, 2: 10, 4: 4}  # rows whose running sums stay in registers, by vectors of a row
_CHAINS = 10  # running sums that hide the latency of an addition
_BLOCK = (6, 4)  # running sums of an outer product


def _product(e, OUT, MATRIX, row_step, column_step, X, rows, columns, *, add):
    builder = e.builder

    def block(count, first):
        outs = [e.row(OUT, builder.add(first, e.number(r))) for r in range(count)]
        starts = [
            builder.gep(MATRIX, [builder.mul(builder.add(first, e.number(r)), row_step)])
            for r in range(count)
        ]
        chains = max(1, min(4, _CHAINS // (count * e.vectors)))  # few rows wait for their sums
        sums = [
            [[e.variable(e.zero()) for _ in range(e.vectors)] for _ in outs] for _ in range(chains)
        ]
        if add:
            for out, total in zip(outs, sums[0], strict=True):
                for v, place in enumerate(total):
                    builder.store(e.load(out, v), place)

        def column(index, totals):
            row = e.row(X, index)
            xs = [e.load(row, v) for v in range(e.vectors)]
            offset = builder.mul(index, column_step)
            for start, total in zip(starts, totals, strict=True):
                entry = e.splat(builder.load(builder.gep(start, [offset])))
                for x, place in zip(xs, total, strict=True):
                    e.update(place, e.more, entry, x)

        def columns_from(count, index):
            for chain in range(count):
                column(builder.add(index, e.number(chain)), sums[chain])

        e.blocks(columns, chains, columns_from)
        for r, out in enumerate(outs):
            for v in range(e.vectors):
                total = builder.load(sums[0][r][v])
                for other in sums[1:]:
                    total = builder.fadd(total, builder.load(other[r][v]), flags=CONTRACT)
                e.store(total, out, v)

    e.blocks(rows, _ROWS[e.vectors], block)


def _set_product(e, OUT, MATRIX, row_step, column_step, X, rows, columns):
    """Writes A x into rows, with A given by the distances between its rows and columns."""
    _product(e, OUT, MATRIX, row_step, column_step, X, rows, columns, add=False)


def _add_product(e, OUT, MATRIX, row_step, column_step, X, rows, columns):
    """Adds A x to rows, with A given by the distances between its rows and columns."""
    _product(e, OUT, MATRIX, row_step, column_step, X, rows, columns, add=True)


def _add_outer(e, SUMS, row_length, LEFT, left_step, RIGHT, right_step, rows, columns, steps):
    """Adds sum over steps and lanes of left[row] right[column] to the entries of a matrix."""
    builder = e.builder

    def block(count, first, width, column):
        sums = [[e.variable(e.zero()) for _ in range(width)] for _ in range(count)]
        with cgutils.for_range(builder, steps) as loop:
            left = builder.gep(LEFT, [builder.mul(loop.index, left_step)])
            right = builder.gep(RIGHT, [builder.mul(loop.index, right_step)])
            lefts = [e.row(left, builder.add(first, e.number(r))) for r in range(count)]
            rights = [e.row(right, builder.add(column, e.number(c))) for c in range(width)]
            for v in range(e.vectors):
                ys = [e.load(row, v) for row in rights]
                for row, total in zip(lefts, sums, strict=True):
                    x = e.load(row, v)
                    for y, place in zip(ys, total, strict=True):
                        e.update(place, e.more, x, y)
        for r, total in enumerate(sums):
            start = builder.mul(builder.add(first, e.number(r)), row_length)
            for c, place in enumerate(total):
                index = builder.add(start, builder.add(column, e.number(c)))
                entry = builder.gep(SUMS, [index])
                value = e.sum_of_lanes(builder.load(place))
                builder.store(builder.fadd(builder.load(entry), value), entry)

    def columns_of(count, first):
        e.blocks(columns, _BLOCK[1], lambda width, column: block(count, first, width, column))

    e.blocks(rows, _BLOCK[0], columns_of)


def _positive(e, value):
    """Where a vector is above zero, and its positive part."""
    above = e.builder.fcmp_ordered(">", value, e.zero())
    # a NaN stays a NaN
    kept = e.builder.fcmp_unordered(">", value, e.zero())
    return above, e.builder.select(kept, value, e.zero())


def _kinks(e, THRESHOLDS, WEIGHTS, bases, unit, body):
    """Writes body(basis, threshold, weight) for the bases of a unit."""
    builder = e.builder
    start = builder.mul(unit, bases)
    with cgutils.for_range(builder, bases) as loop:
        place = builder.add(start, loop.index)
        threshold = e.splat(builder.load(builder.gep(THRESHOLDS, [place])))
        weight = e.splat(builder.load(builder.gep(WEIGHTS, [loop.index])))
        body(loop.index, place, threshold, weight)


def _activate(e, PHI, U, THRESHOLDS, WEIGHTS, clip, units, bases):
    """Writes phi(u) = sum_b weight_b max(0, u - threshold_b) - clip max(0, u)."""
    builder, clip = e.builder, e.splat(clip)
    with cgutils.for_range(builder, units) as loop:
        source, out = e.row(U, loop.index), e.row(PHI, loop.index)
        us = [e.load(source, v) for v in range(e.vectors)]
        phis = [e.variable(e.less(e.zero(), clip, _positive(e, u)[1])) for u in us]

        def basis(_, place, threshold, weight, us=us, phis=phis):
            for u, phi in zip(us, phis, strict=True):
                part = _positive(e, builder.fsub(u, threshold))[1]
                e.update(phi, e.more, weight, part)

        _kinks(e, THRESHOLDS, WEIGHTS, bases, loop.index, basis)
        for v, phi in enumerate(phis):
            e.store(builder.load(phi), out, v)


def _activate_back(
    e, PHI, BACK, U, GRADIENT, THRESHOLDS, WEIGHTS, clip, units, bases, KINKS, SHARES, CLIPS,
    shared,
):  # fmt: skip
    """Writes phi(u) and the gradient in u, and adds up the gradients in the parameters by lane.

    PHI receives phi(u), BACK the gradient in u, where GRADIENT is that in phi. KINKS [unit, basis]
    adds up the gradients in the thresholds; where `shared` is not zero, SHARES [basis] and CLIPS
    [1] those in the weights and in clip.
    """
    builder, learn = e.builder, e.builder.icmp_signed("!=", shared, e.number(0))
    many = e.splat(clip)

    def tally(row, v, combine, *factors):
        e.store(combine(e.load(row, v), *factors), row, v)

    with cgutils.for_range(builder, units) as loop:
        rows = [e.row(x, loop.index) for x in (U, GRADIENT, PHI, BACK)]
        us, gs = ([e.load(row, v) for v in range(e.vectors)] for row in rows[:2])
        parts = [_positive(e, u) for u in us]
        phis = [e.variable(e.less(e.zero(), many, part)) for _, part in parts]
        slopes = [
            e.variable(builder.fsub(e.zero(), builder.select(above, many, e.zero())))
            for above, _ in parts
        ]
        with builder.if_then(learn):
            for v, (_, part) in enumerate(parts):
                tally(CLIPS, v, e.less, gs[v], part)

        def basis(b, place, threshold, weight):
            for v in range(e.vectors):
                above, part = _positive(e, builder.fsub(us[v], threshold))
                e.update(phis[v], e.more, weight, part)
                gate = builder.select(above, weight, e.zero())
                e.update(slopes[v], lambda s, g: builder.fadd(s, g, flags=CONTRACT), gate)
                tally(e.row(KINKS, place), v, e.less, gate, gs[v])
                with builder.if_then(learn):
                    tally(e.row(SHARES, b), v, e.more, gs[v], part)

        _kinks(e, THRESHOLDS, WEIGHTS, bases, loop.index, basis)
        for v in range(e.vectors):
            e.store(builder.load(phis[v]), rows[2], v)
            slope = builder.load(slopes[v])
            e.store(builder.fmul(slope, gs[v], flags=CONTRACT), rows[3], v)


set_product = operation(_set_product)
add_product = operation(_add_product)
add_outer = operation(_add_outer)
activate = operation(_activate)
activate_back = operation(_activate_back)
