"""Small matrices of several trials side by side: what the differentiable filter is made of.

A row holds one number of each of `LANES` trials, so that every instruction treats all trials
alike. A matrix is a flat array of such rows. A plain matrix is the same for all trials and holds
single numbers. Running sums of small tiles stay in registers, whatever the size of a matrix, so
that one compiled version serves all sizes.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from plssm.kernels._compile import compiled
from plssm.kernels._lane_emitter import CONTRACT, operation, vector_width

__all__ = [
    "LANES",
    "add_gated",
    "cholesky",
    "gated_product",
    "gates",
    "multiply",
    "multiply_symmetric",
    "multiply_through",
    "solve_lower",
]

LANES = vector_width(8)
_TILE = (2, 3)
_ONE = (0,)  # vectors of a row
_RANKLESS = 1e-15  # share of a variance below which nothing is left of it


# tiles ------------------------------------------------------------------------------------------
def _index(e, i, i_step, j=None, j_step=None):
    """Number of an entry, i i_step + j j_step."""
    total = e.builder.mul(i, i_step)
    return total if j is None else e.builder.add(total, e.builder.mul(j, j_step))


def _nth(e, first, n):
    """The first `n` numbers from `first` on."""
    return [e.builder.add(first, e.number(i)) for i in range(n)]


def _tile(e, rows, columns, lefts, rights, begin, end):
    """Running sums over k of lefts(k)[i] rights(k)[j]."""
    builder = e.builder
    sums = [[e.variable(e.zero()) for _ in columns] for _ in rows]
    with cgutils.for_range(builder, end, start=begin) as loop:
        b = rights(loop.index)
        for total, x in zip(sums, lefts(loop.index), strict=True):
            for place, y in zip(total, b, strict=True):
                e.update(place, e.more, x, y)
    return [[builder.load(place) for place in total] for total in sums]


def _over_tiles(e, rows, columns, body, *, lower=False):
    """Writes body(rows, columns) for the tiles of a matrix, or of its lower triangle."""

    def across(count, first):
        here = _nth(e, first, count)
        width = e.builder.add(first, e.number(count)) if lower else columns
        e.blocks(width, _TILE[1], lambda n, column: body(here, _nth(e, column, n)))

    e.blocks(rows, _TILE[0], across)


def _rows_at(e, start, offsets, step):
    """Returns a function of k that loads rows of lanes `step` apart from several places."""
    starts = [e.row(start, offset) for offset in offsets]
    return lambda k: [e.load(e.row(x, e.builder.mul(k, step)), 0) for x in starts]


def _numbers_at(e, start, offsets, step):
    """Returns a function of k that repeats single numbers in all lanes."""
    builder = e.builder
    starts = [builder.gep(start, [offset]) for offset in offsets]
    return lambda k: [
        e.splat(builder.load(builder.gep(x, [builder.mul(k, step)]))) for x in starts
    ]


# products of lane matrices ----------------------------------------------------------------------
def _product(
    e, OUT, row, A, a_row, a_column, B, b_row, b_column, rows, inner, columns, scale, add
):
    """Writes scale A B, added to what is there if `add` is not zero."""
    _products(
        e, OUT, row, A, a_row, a_column, B, b_row, b_column, rows, inner, columns, scale, add
    )


def _symmetric(
    e, OUT, row, A, a_row, a_column, B, b_row, b_column, rows, inner, columns, scale, add, skip
):
    """Writes scale A B where that is symmetric; with `skip`, A[i, k] is zero for k < i."""
    _products(
        e, OUT, row, A, a_row, a_column, B, b_row, b_column, rows, inner, columns, scale, add, skip
    )
    builder = e.builder
    with cgutils.for_range(builder, rows) as i, cgutils.for_range(builder, i.index) as j:
        value = e.load(e.row(OUT, _index(e, i.index, row, j.index, e.number(1))), 0)
        e.store(value, e.row(OUT, _index(e, j.index, row, i.index, e.number(1))), 0)


def _products(
    e, OUT, row, A, a_row, a_column, B, b_row, b_column, rows, inner, columns, scale, add,
    skip=None,
):  # fmt: skip
    builder = e.builder
    scale, one = e.splat(scale), e.number(1)
    adding = builder.icmp_signed("!=", add, e.number(0))

    def tile(here, across):
        begin = e.number(0) if skip is None else builder.mul(skip, here[0])
        lefts = _rows_at(e, A, [_index(e, i, a_row) for i in here], a_column)
        rights = _rows_at(e, B, [_index(e, j, b_column) for j in across], b_row)
        sums = _tile(e, here, across, lefts, rights, begin, inner)
        for i, total in zip(here, sums, strict=True):
            for j, value in zip(across, total, strict=True):
                place = e.row(OUT, _index(e, i, row, j, one))
                start = builder.select(adding, e.load(place, 0), e.zero())
                e.store(e.more(start, scale, value), place, 0)

    _over_tiles(e, rows, columns, tile, lower=skip is not None)


# the map ----------------------------------------------------------------------------------------
def _gated(e, OUT, LINEAR, OUTER, ON, INNER, units, size):
    """Writes linear + outer diag(on) inner, all plain but on; [size, size + 1]."""
    builder, wide = e.builder, e.builder.add(size, e.number(1))

    def tile(here, across):
        weights = _numbers_at(e, OUTER, [_index(e, i, units) for i in here], e.number(1))
        slopes = _numbers_at(e, INNER, across, wide)

        def open_slopes(p):
            on = builder.fcmp_ordered(">", e.load(e.row(ON, p), 0), e.zero())
            return [builder.select(on, x, e.zero()) for x in slopes(p)]

        sums = _tile(e, here, across, weights, open_slopes, e.number(0), units)
        for i, total in zip(here, sums, strict=True):
            for j, value in zip(across, total, strict=True):
                index = _index(e, i, wide, j, e.number(1))
                start = e.splat(builder.load(builder.gep(LINEAR, [index])))
                e.store(builder.fadd(start, value, flags=CONTRACT), e.row(OUT, index), 0)

    _over_tiles(e, size, wide, tile)


def _gates(e, ON, INNER, Z, units, size):
    """Writes inner (z, 1); the rows of z are followed by one of ones."""
    wide = e.builder.add(size, e.number(1))

    def some(count, first):
        here = _nth(e, first, count)
        lefts = _numbers_at(e, INNER, [e.builder.mul(p, wide) for p in here], e.number(1))
        rights = _rows_at(e, Z, [e.number(0)], e.number(1))
        sums = _tile(e, here, [0], lefts, rights, e.number(0), wide)
        for p, (value,) in zip(here, sums, strict=True):
            e.store(value, e.row(ON, p), 0)

    e.blocks(units, 6, some)


def _gated_sums(e, OUT, row, ON, M, m_row, m_column, B, b_row, b_column, rows, inner, columns):
    """Adds to out the rows of M B, M plain, where the row of `on` is positive."""
    builder, one = e.builder, e.number(1)

    def tile(here, across):
        lefts = _numbers_at(e, M, [_index(e, i, m_row) for i in here], m_column)
        rights = _rows_at(e, B, [_index(e, j, b_column) for j in across], b_row)
        sums = _tile(e, here, across, lefts, rights, e.number(0), inner)
        for i, total in zip(here, sums, strict=True):
            on = builder.fcmp_ordered(">", e.load(e.row(ON, i), 0), e.zero())
            for j, value in zip(across, total, strict=True):
                place = e.row(OUT, _index(e, i, row, j, one))
                value = builder.select(on, value, e.zero())
                e.store(builder.fadd(e.load(place, 0), value, flags=CONTRACT), place, 0)

    _over_tiles(e, rows, columns, tile)


# factors ----------------------------------------------------------------------------------------
def _root(e, value):
    kind = ir.FunctionType(e.kind, [e.kind])
    name = f"llvm.sqrt.v{e.width}f64"
    root = cgutils.get_or_insert_function(e.builder.module, kind, name)
    return e.builder.call(root, [value])


def _factor(e, OUT, A, size, semidefinite):
    """Lower factor of A, zeros above; see `cholesky`."""
    builder, one = e.builder, e.number(1)
    loose = builder.icmp_signed("!=", semidefinite, e.number(0))
    lost = ir.Constant(e.kind, [float("nan")] * e.width)

    def entry(start, i, j):
        return e.row(start, _index(e, i, size, j, one))

    with cgutils.for_range(builder, size) as column:
        j = column.index
        across = _rows_at(e, OUT, [builder.mul(j, size)], one)
        given = e.load(entry(A, j, j), 0)
        square = _tile(e, [j], [j], across, across, e.number(0), j)[0][0]
        value = builder.fsub(given, square, flags=CONTRACT)
        root = _root(e, value)
        none = builder.fcmp_ordered("<=", value, builder.fmul(given, e.splat(e.real(_RANKLESS))))
        usable = builder.fcmp_ordered(">", value, e.zero())
        strict = builder.select(usable, root, lost)
        pivot = builder.select(loose, builder.select(none, e.zero(), root), strict)
        empty = builder.fcmp_ordered("==", pivot, e.zero())
        ones = ir.Constant(e.kind, [1.0] * e.width)
        inverse = builder.select(empty, e.zero(), builder.fdiv(ones, pivot))
        e.store(pivot, entry(OUT, j, j), 0)
        below = builder.add(j, one)

        def rest(count, first, j=j, across=across, inverse=inverse, below=below):
            here = _nth(e, builder.add(first, below), count)
            lefts = _rows_at(e, OUT, [builder.mul(i, size) for i in here], one)
            sums = _tile(e, here, [j], lefts, across, e.number(0), j)
            for i, (total,) in zip(here, sums, strict=True):
                value = builder.fsub(e.load(entry(A, i, j), 0), total, flags=CONTRACT)
                e.store(builder.fmul(value, inverse), entry(OUT, i, j), 0)
                e.store(e.zero(), entry(OUT, j, i), 0)

        e.blocks(builder.sub(size, below), 6, rest)


def _forward(e, OUT, FACTOR, LEFT, size):
    """Writes factor^-1 left'; see `solve_lower`."""
    builder, one = e.builder, e.number(1)
    with cgutils.for_range(builder, size) as row:
        i = row.index
        lefts = _rows_at(e, FACTOR, [builder.mul(i, size)], one)
        pivot = e.load(e.row(FACTOR, _index(e, i, size, i, one)), 0)
        inverse = builder.fdiv(ir.Constant(e.kind, [1.0] * e.width), pivot)

        def across(count, first, i=i, lefts=lefts, inverse=inverse):
            columns = _nth(e, first, count)
            sums = _tile(e, [i], columns, lefts, _rows_at(e, OUT, columns, size), e.number(0), i)
            for j, total in zip(columns, sums[0], strict=True):
                start = e.load(e.row(LEFT, _index(e, j, size, i, one)), 0)
                value = builder.fmul(builder.fsub(start, total, flags=CONTRACT), inverse)
                e.store(value, e.row(OUT, _index(e, i, size, j, one)), 0)

        e.blocks(size, 6, across)


_product, _symmetric, _gates, _gated, _gated_sums, _factor, _forward = (
    operation(x, apart=True)
    for x in (_product, _symmetric, _gates, _gated, _gated_sums, _factor, _forward)
)


# what the passes call ---------------------------------------------------------------------------
@compiled(inline="always")
def multiply(out, row, a, a_row, a_column, b, b_row, b_column, rows, inner, columns, scale, add):
    """Writes scale A B, or adds it; distances are counted in rows of lanes."""
    _product(
        out, 0, row, a, 0, a_row, a_column, b, 0, b_row, b_column, rows, inner, columns, scale,
        add, _ONE,
    )  # fmt: skip


@compiled(inline="always")
def multiply_symmetric(out, a, a_row, a_column, b, b_row, b_column, size, scale, add, skip):
    """Writes or adds scale A B where the result is symmetric.

    Args:
        out: The result.
        a: A.
        a_row: Distance between its rows.
        a_column: Distance between its columns.
        b: B.
        b_row: Distance between its rows.
        b_column: Distance between its columns.
        size: D.
        scale: A number.
        add: 0 or 1, whether what is there stays.
        skip: 0 or 1, whether A[i, k] is zero for k < i.
    """
    _symmetric(
        out, 0, size, a, 0, a_row, a_column, b, 0, b_row, b_column, size, size, size, scale, add,
        skip, _ONE,
    )  # fmt: skip


@compiled(inline="always")
def multiply_through(
    out, a, a_row, a_column, b, b_row, b_column, size, inner, scale, add
):  # fmt: skip
    """Writes or adds scale A B where the result is symmetric and A is not square.

    Args:
        out: The result.
        a: A.
        a_row: Distance between its rows.
        a_column: Distance between its columns.
        b: B.
        b_row: Distance between its rows.
        b_column: Distance between its columns.
        size: Rows of the result.
        inner: Columns of A.
        scale: A number.
        add: 0 or 1, whether what is there stays.
    """
    _symmetric(
        out, 0, size, a, 0, a_row, a_column, b, 0, b_row, b_column, size, inner, size, scale, add,
        0, _ONE,
    )  # fmt: skip


@compiled(inline="always")
def gates(inner, z, on, units, size):
    """Writes inner (z, 1), positive where units are on; z is followed by a row of ones."""
    _gates(on, 0, inner, 0, z, 0, units, size, _ONE)


@compiled(inline="always")
def gated_product(linear, outer, on, inner, out, units, size):
    """Writes linear + outer diag(on > 0) inner, all plain but on; [size, size + 1]."""
    _gated(out, 0, linear, 0, outer, 0, on, 0, inner, 0, units, size, _ONE)


@compiled(inline="always")
def add_gated(out, row, on, m, m_row, m_column, b, b_row, b_column, rows, inner, columns):
    """Adds diag(on > 0) M B with a plain M."""
    _gated_sums(
        out, 0, row, on, 0, m, 0, m_row, m_column, b, 0, b_row, b_column, rows, inner, columns,
        _ONE,
    )  # fmt: skip


@compiled(inline="always")
def cholesky(a, out, size, semidefinite):
    """Lower factor of a, zeros above; NaN where a is not positive definite.

    A semidefinite matrix gets zero columns where no rank is left.
    """
    _factor(out, 0, a, 0, size, semidefinite, _ONE)


@compiled(inline="always")
def solve_lower(factor, left, out, size):
    """Writes K^-1 A' for a lower triangular factor K."""
    _forward(out, 0, factor, 0, left, 0, size, _ONE)
