"""Block operations of the chain kernels with explicit vectors; same interface as `_blocks`.

A compiler cannot know that the arrays do not overlap, and therefore keeps few running sums in
registers. Here the instructions are written out for each size M. Sizes above `LARGEST` use the
ordinary loops of `_blocks`.
"""

from __future__ import annotations

import inspect

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from plssm.kernels import _blocks as plain
from plssm.kernels._emit import Block, Emitter

__all__ = [
    "LARGEST",
    "add_offset",
    "assemble",
    "assemble_shared",
    "back_substitute",
    "eliminate",
    "forward_substitute",
    "invert_factor",
    "joint",
    "operation",
    "padded_rows",
    "part",
    "put",
    "put_symmetric",
    "smooth",
    "subtract_rows",
    "tight",
]

LARGEST = 48


def operation(write, loops=plain):
    """Makes a compiled operation from `write(emitter, *pointers)`.

    Its arguments are arrays, each followed by the offsets at which it is used, and the size tuple;
    every offset becomes one pointer. Large sizes use the operation of the same name in the module
    `loops`.
    """
    name = write.__name__.lstrip("_")
    loops = getattr(loops, name).py_func

    def operation(typingctx, *arguments):
        result = types.boolean if name == "eliminate" else types.void

        def generate(context, builder, signature, values):
            m = signature.args[-1].count
            if m > LARGEST:
                return context.compile_internal(builder, loops, signature, values)
            pointers = []
            for kind, value in zip(signature.args[:-1], values[:-1], strict=True):
                if isinstance(kind, types.Array):
                    data = context.make_array(kind)(context, builder, value).data
                    start = builder.bitcast(data, ir.DoubleType().as_pointer())
                else:
                    offset = context.cast(builder, value, kind, types.int64)
                    pointers.append(builder.gep(start, [offset]))
            answer = write(Emitter(builder, m), *pointers)
            return context.get_dummy_value() if answer is None else answer

        return result(*arguments), generate

    typing = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loops).parameters.values()
    operation.__signature__ = inspect.Signature([typing, *parameters])
    operation.__name__ = name
    operation.__doc__ = write.__doc__
    return intrinsic(operation)


def joint(e: Emitter, start: ir.Value) -> Block:
    """Returns the rows [R | C] that start at a pointer."""
    return Block(start, 8 * e.vectors)


def _right(e: Emitter, start: ir.Value) -> Block:
    """Returns the right half C of the rows [R | C] that start at a pointer."""
    return Block(e.at(start, 4 * e.vectors), 8 * e.vectors)


def padded_rows(e: Emitter, start: ir.Value) -> Block:
    """Returns padded rows of one block."""
    return Block(start, 4 * e.vectors)


def tight(e: Emitter, start: ir.Value) -> Block:
    """Returns rows without padding."""
    return Block(start, e.m, tight=True)


def _column(start: ir.Value) -> Block:
    """Returns a vector as a block with one column."""
    return Block(start, 1)


def part(e: Emitter, start: ir.Value, v: int) -> ir.Value:
    """Loads part v of a vector of m numbers."""
    return e.load(e.at(start, 4 * v), e.width(v))


def _rows(e: Emitter, block: Block, panel: int, columns: list[int]) -> list[list[ir.Value]]:
    """Loads the rows of a panel."""
    return [[e.load_row(block, 4 * panel + i, c) for c in columns] for i in range(e.width(panel))]


def _zeros(e: Emitter, panel: int, columns: list[int]) -> list[list[ir.Value]]:
    """Returns running sums that start at zero."""
    return [[e.zero() for _ in columns] for _ in range(e.width(panel))]


# factorisation --------------------------------------------------------------------------------
class _Pivots:
    """The unit triangular factor of the diagonal block of a panel, and the scale of its rows."""

    def __init__(self, e: Emitter, sums: list[list[ir.Value]]):
        self.e = e
        self.factors: list[list[ir.Value]] = []
        self.scales: list[ir.Value] = []
        self.good = ir.Constant(ir.IntType(1), 1)
        rows = [total[0] for total in sums]
        for k in range(len(rows)):
            pivot = e.pick(rows[k], k)
            self._check(pivot)
            inverse = e.inverse(pivot)
            self.factors.append([e.times(e.pick(rows[k], i), inverse) for i in range(len(rows))])
            self.scales.append(e.root(inverse))
            for i in range(k + 1, len(rows)):
                rows[i] = e.less(rows[i], e.splat(self.factors[k][i]), rows[k])

    def _check(self, pivot: ir.Value) -> None:
        """Notes a pivot that is not a positive normal number."""
        for comparison, bound in ((">", 1e-300), ("<", 1e300)):
            inside = self.e.builder.fcmp_ordered(comparison, pivot, pivot.type(bound))
            self.good = self.e.builder.and_(self.good, inside)

    def apply(self, sums: list[list[ir.Value]]) -> list[list[ir.Value]]:
        """Eliminates and scales the rows of the panel."""
        e = self.e
        sums = [list(total) for total in sums]
        for k, factors in enumerate(self.factors):
            for i in range(k + 1, len(sums)):
                x = e.splat(factors[i])
                sums[i] = [e.less(s, x, r) for s, r in zip(sums[i], sums[k], strict=True)]
        return [
            [e.times(s, e.splat(scale)) for s in total]
            for total, scale in zip(sums, self.scales, strict=True)
        ]

    def apply_vector(self, vector: ir.Value) -> ir.Value:
        """Eliminates and scales the panel's part of a right-hand side."""
        e = self.e
        values = [e.pick(vector, i) for i in range(len(self.scales))]
        for k, factors in enumerate(self.factors):
            for i in range(k + 1, len(values)):
                values[i] = e.less(values[i], factors[i], values[k])
        return e.join([e.times(x, scale) for x, scale in zip(values, self.scales, strict=True)])


def _eliminate(e: Emitter, here, before, y, y_before):
    """Factors the rows [S | U] in place and carries a right-hand side along."""
    rows, coupling = joint(e, here), _right(e, before)
    good = ir.Constant(ir.IntType(1), 1)
    for panel in range(e.vectors):
        first = 4 * panel
        pivots = None
        for columns in [*e.groups(panel, e.vectors), *e.groups(e.vectors, 2 * e.vectors)]:
            sums = _rows(e, rows, panel, columns)
            if columns[0] < e.vectors:
                sums = e.accumulate(sums, (coupling, first), (coupling, columns), 0, e.m)
            sums = e.accumulate(sums, (rows, first), (rows, columns), 0, first)
            if pivots is None:
                pivots = _Pivots(e, sums)
                good = e.builder.and_(good, pivots.good)
            _store_panel(e, rows, panel, columns, pivots.apply(sums))
        total = [[part(e, y, panel)]]
        total = e.accumulate(total, (_column(y_before), 0), (coupling, [panel]), 0, e.m)
        total = e.accumulate(total, (_column(y), 0), (rows, [panel]), 0, first)
        e.store(pivots.apply_vector(total[0][0]), e.at(y, first), e.width(panel))
    return good


def _store_panel(e: Emitter, rows: Block, panel: int, columns: list[int], sums) -> None:
    """Stores finished rows, with zeros left of the diagonal."""
    for i, total in enumerate(sums):
        for c, value in zip(columns, total, strict=True):
            if c == panel:
                value = e.shuffle(value, e.zero(), [4 if j < i else j for j in range(4)])
                for left in range(panel):
                    e.store_row(e.zero(), rows, 4 * panel + i, left)
            e.store_row(value, rows, 4 * panel + i, c)


def _back_substitute(e: Emitter, here, z, z_next):
    """Solves R z = y - C z_next in place of y."""
    rows, coupling = joint(e, here), _right(e, here)
    following = [part(e, z_next, c) for c in range(e.vectors)]
    solved: dict[int, ir.Value] = {}
    for panel in reversed(range(e.vectors)):
        sums = []
        for i in range(e.width(panel)):
            total = e.zero()
            for c in range(e.vectors):
                total = e.more(total, e.load_row(coupling, 4 * panel + i, c), following[c])
            for c in range(e.vectors - 1, panel, -1):
                total = e.more(total, e.load_row(rows, 4 * panel + i, c), solved[c])
            sums.append(total)
        right = e.builder.fsub(part(e, z, panel), e.row_sums(sums))
        solved[panel] = e.join(_solve_panel(e, rows, panel, right))
        e.store(solved[panel], e.at(z, 4 * panel), e.width(panel))


def _forward_substitute(e: Emitter, here, before, y, y_before):
    """Solves R'y = v - C_before'y_before in place of v."""
    rows, coupling = joint(e, here), _right(e, before)
    for panel in range(e.vectors):
        first, n = 4 * panel, e.width(panel)
        total = [[part(e, y, panel)]]
        total = e.accumulate(total, (_column(y_before), 0), (coupling, [panel]), 0, e.m)
        total = e.accumulate(total, (_column(y), 0), (rows, [panel]), 0, first)
        diagonal = [e.load_row(rows, first + i, panel) for i in range(n)]
        inverse = [e.inverse(e.pick(diagonal[i], i)) for i in range(n)]
        values = [e.pick(total[0][0], i) for i in range(n)]
        for k in range(n):
            values[k] = e.times(values[k], inverse[k])
            for i in range(k + 1, n):
                values[i] = e.less(values[i], e.pick(diagonal[k], i), values[k])
        e.store(e.join(values), e.at(y, first), n)


def _solve_panel(e: Emitter, rows: Block, panel: int, right: ir.Value) -> list[ir.Value]:
    """Solves with the diagonal block of a panel, from its last row upwards."""
    n = e.width(panel)
    diagonal = [e.load_row(rows, 4 * panel + i, panel) for i in range(n)]
    inverse = [e.inverse(e.pick(diagonal[i], i)) for i in range(n)]
    values = [e.pick(right, i) for i in range(n)]
    for k in reversed(range(n)):
        values[k] = e.times(values[k], inverse[k])
        for i in range(k):
            values[i] = e.less(values[i], e.pick(diagonal[i], k), values[k])
    return values


# selected inverse -----------------------------------------------------------------------------
def _invert_factor(e: Emitter, out, here):
    """Writes the lower triangle of R'^-1 into padded rows; the rest must be zero already."""
    rows, inverse = joint(e, here), padded_rows(e, out)
    for panel in range(e.vectors):
        n = e.width(panel)
        diagonal = [e.load_row(rows, 4 * panel + i, panel) for i in range(n)]
        scales = [e.inverse(e.pick(diagonal[i], i)) for i in range(n)]
        for columns in _narrow(e, panel + 1):
            sums = [
                [e.constant([float(c == panel and i == j) for j in range(4)]) for c in columns]
                for i in range(n)
            ]
            sums = e.accumulate(
                sums, (rows, 4 * panel), (inverse, columns), 4 * columns[0], 4 * panel
            )
            for k in range(n):
                sums[k] = [e.times(x, e.splat(scales[k])) for x in sums[k]]
                for i in range(k + 1, n):
                    r = e.splat(e.pick(diagonal[k], i))
                    sums[i] = [e.less(s, r, x) for s, x in zip(sums[i], sums[k], strict=True)]
            put(e, sums, inverse, panel, columns)


def _narrow(e: Emitter, last: int) -> list[list[int]]:
    """Groups of columns of a triangular block: single ones where little else would be skipped."""
    return [[c] for c in range(last)] if e.vectors <= 4 else e.groups(0, last)


def _smooth(e: Emitter, here, to, following, lagged, inverse_at, gain_at):
    """Writes P_t and X_t from P_{t+1}; needs R'^-1 at `inverse_at`."""
    inverse, gain, coupling = padded_rows(e, inverse_at), padded_rows(e, gain_at), _right(e, here)
    cross, p, p_next = tight(e, lagged), tight(e, to), tight(e, following)
    every = range(e.vectors)
    for panel in every:
        for columns in _narrow(e, e.vectors):
            sums = e.accumulate(
                _zeros(e, panel, columns),
                (coupling, 4 * panel),
                (inverse, columns),
                4 * columns[0],
                e.m,
                subtract=False,
            )
            put(e, sums, gain, panel, columns)
    for panel in every:
        for columns in e.groups(0, e.vectors):
            sums = e.accumulate(
                _zeros(e, panel, columns), (gain, 4 * panel), (p_next, columns), 0, e.m
            )
            put(e, sums, cross, panel, columns)
    for panel in every:
        for columns in e.groups(panel, e.vectors):
            sums = e.accumulate(
                _zeros(e, panel, columns),
                (inverse, 4 * panel),
                (inverse, columns),
                4 * columns[0],
                e.m,
                subtract=False,
            )
            sums = e.accumulate(sums, (cross, 4 * panel), (gain, columns), 0, e.m, across=True)
            put_symmetric(e, sums, p, panel, columns)


def put(e: Emitter, sums, block: Block, panel: int, columns: list[int]) -> None:
    """Stores running sums."""
    for i, total in enumerate(sums):
        for c, value in zip(columns, total, strict=True):
            e.store_row(value, block, 4 * panel + i, c)


def put_symmetric(e: Emitter, sums, block: Block, panel: int, columns: list[int]) -> None:
    """Stores running sums right of the diagonal, and their transpose below it."""
    for j, c in enumerate(columns):
        part = [total[j] for total in sums]
        turned = e.transpose(part)
        if c == panel:
            half = e.splat(ir.Constant(ir.DoubleType(), 0.5))
            part = [e.times(half, e.add(a, b)) for a, b in zip(part, turned, strict=False)]
        else:
            for i in range(e.width(c)):
                e.store(turned[i], e.element(block, 4 * c + i, 4 * panel), e.width(panel))
        put(e, [[x] for x in part], block, panel, [c])


# assembly -------------------------------------------------------------------------------------
def _assemble_shared(e: Emitter, here, base_at, information_at):
    """Writes the rows [S + information | U] from rows [S | U]."""
    rows, base, information = joint(e, here), joint(e, base_at), tight(e, information_at)
    for i in range(e.m):
        for c in range(2 * e.vectors):
            value = e.load_row(base, i, c)
            if c < e.vectors:
                value = e.add(value, e.load_row(information, i, c))
            e.store_row(value, rows, i, c)


def _assemble(e: Emitter, here, base_at, precision_at, jacobian_at, information_at):
    """Writes the rows [S + information + J'QJ | -J'Q], S on and right of the block diagonal."""
    rows, right, base = joint(e, here), _right(e, here), joint(e, base_at)
    precision, jacobian = joint(e, precision_at), tight(e, jacobian_at)
    information = tight(e, information_at)
    for panel in range(e.vectors):
        for columns in e.groups(0, e.vectors):
            sums = e.accumulate(
                _zeros(e, panel, columns), (jacobian, 4 * panel), (precision, columns), 0, e.m
            )
            put(e, sums, right, panel, columns)
    for panel in range(e.vectors):
        for columns in e.groups(panel, e.vectors):
            sums = [
                [e.add(a, b) for a, b in zip(x, y, strict=True)]
                for x, y in zip(
                    _rows(e, base, panel, columns),
                    _rows(e, information, panel, columns),
                    strict=True,
                )
            ]
            sums = e.accumulate(sums, (right, 4 * panel), (jacobian, columns), 0, e.m, across=True)
            put(e, sums, rows, panel, columns)


def _add_offset(e: Emitter, y, carry, offset, precision_at, jacobian_at):
    """Adds the carried Q u_{t-1} and -J'Q u_t to the right-hand side, and carries Q u_t on."""
    precision, jacobian = joint(e, precision_at), tight(e, jacobian_at)
    columns = list(range(e.vectors))
    sums = [[e.add(part(e, y, c), part(e, carry, c)) for c in columns]]
    pulled = e.accumulate(
        [[e.zero() for _ in columns]],
        (_column(offset), 0),
        (precision, columns),
        0,
        e.m,
        subtract=False,
    )
    for c in columns:
        e.store(pulled[0][c], e.at(carry, 4 * c), e.width(c))
    sums = e.accumulate(sums, (_column(carry), 0), (jacobian, columns), 0, e.m)
    for c in columns:
        e.store(sums[0][c], e.at(y, 4 * c), e.width(c))


def _subtract_rows(e: Emitter, out, x, matrix_at):
    """Subtracts x' A from a vector; A has tight rows."""
    columns = list(range(e.vectors))
    sums = [[part(e, out, c) for c in columns]]
    sums = e.accumulate(sums, (_column(x), 0), (tight(e, matrix_at), columns), 0, e.m)
    for c in columns:
        e.store(sums[0][c], e.at(out, 4 * c), e.width(c))


add_offset = operation(_add_offset)
assemble = operation(_assemble)
assemble_shared = operation(_assemble_shared)
back_substitute = operation(_back_substitute)
eliminate = operation(_eliminate)
forward_substitute = operation(_forward_substitute)
invert_factor = operation(_invert_factor)
smooth = operation(_smooth)
subtract_rows = operation(_subtract_rows)
