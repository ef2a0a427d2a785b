"""Products of small matrices with lanes: the vector instructions of the training recurrences.

Several sequences are worked on side by side. A row holds one number of each of them: "lanes", one,
two or four vectors of 32 bytes, so that every instruction treats all sequences alike and a matrix
entry is loaded once for all of them. The number of vectors comes in as a tuple of that length,
because the length of a tuple is part of its type; the precision is that of the arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["activate", "activate_back", "add_outer", "add_product", "set_product", "vector_width"]

_BYTES = 64
_CONTRACT = ("contract",)
_INDEX = ir.IntType(64)
_ROWS = {1: 12, 2: 10, 4: 4}  # rows whose running sums stay in registers, by vectors of a row
_BLOCK = (6, 4)  # running sums of an outer product


def vector_width(itemsize: int) -> int:
    """Returns how many numbers a vector holds."""
    return _BYTES // itemsize


@dataclass(frozen=True)
class _Emitter:
    """Writes instructions for rows of `vectors` vectors of `real` numbers."""

    builder: ir.IRBuilder
    real: ir.Type
    vectors: int

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return _BYTES // (4 if isinstance(self.real, ir.FloatType) else 8)

    @property
    def lanes(self) -> int:
        """Numbers in a row."""
        return self.width * self.vectors

    @property
    def kind(self) -> ir.VectorType:
        """Type of a vector."""
        return ir.VectorType(self.real, self.width)

    def number(self, value: int) -> ir.Constant:
        """Returns a whole number."""
        return ir.Constant(_INDEX, value)

    def row(self, pointer: ir.Value, row: ir.Value) -> ir.Value:
        """Returns the address of a row."""
        return self.builder.gep(pointer, [self.builder.mul(row, self.number(self.lanes))])

    def load(self, row: ir.Value, v: int) -> ir.Value:
        """Loads vector v of a row."""
        return self.builder.load(self._address(row, v), align=4)

    def store(self, value: ir.Value, row: ir.Value, v: int) -> None:
        """Stores vector v of a row."""
        self.builder.store(value, self._address(row, v), align=4)

    def _address(self, row: ir.Value, v: int) -> ir.Value:
        start = self.builder.gep(row, [self.number(self.width * v)])
        return self.builder.bitcast(start, self.kind.as_pointer())

    def splat(self, scalar: ir.Value) -> ir.Value:
        """Repeats a number in all lanes of a vector."""
        empty = ir.Constant(self.kind, ir.Undefined)
        lane = ir.IntType(32)
        one = self.builder.insert_element(empty, scalar, ir.Constant(lane, 0))
        zeros = ir.Constant(ir.VectorType(lane, self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, empty, zeros)

    def zero(self) -> ir.Value:
        """Returns a vector of zeros."""
        return ir.Constant(self.kind, [0.0] * self.width)

    def more(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns total + a b."""
        product = self.builder.fmul(a, b, flags=_CONTRACT)
        return self.builder.fadd(total, product, flags=_CONTRACT)

    def less(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns total - a b."""
        product = self.builder.fmul(a, b, flags=_CONTRACT)
        return self.builder.fsub(total, product, flags=_CONTRACT)

    def variable(self, value: ir.Value) -> ir.Value:
        """Returns a variable (kept in a register) that holds a value."""
        place = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, place)
        return place

    def update(self, place: ir.Value, combine: Callable, *factors: ir.Value) -> None:
        """Replaces a variable's value by combine(value, *factors)."""
        self.builder.store(combine(self.builder.load(place), *factors), place)

    def sum_of_lanes(self, vector: ir.Value) -> ir.Value:
        """Returns the sum of a vector's numbers."""
        width, lane = self.width, ir.IntType(32)
        while width > 1:
            width //= 2
            order = [*range(width, 2 * width), *range(width, self.width)]
            order = ir.Constant(ir.VectorType(lane, self.width), order)
            other = self.builder.shuffle_vector(vector, vector, order)
            vector = self.builder.fadd(vector, other, flags=_CONTRACT)
        return self.builder.extract_element(vector, ir.Constant(lane, 0))

    def blocks(self, total: ir.Value, size: int, body: Callable) -> None:
        """Writes body(count, first) for blocks of `size` and for what is left over."""
        full = self.builder.sdiv(total, self.number(size))
        with cgutils.for_range(self.builder, full) as loop:
            body(size, self.builder.mul(loop.index, self.number(size)))
        done = self.builder.mul(full, self.number(size))
        rest = self.builder.sub(total, done)
        for count in range(1, size):
            with self.builder.if_then(self.builder.icmp_signed("==", rest, self.number(count))):
                body(count, done)


def _operation(write: Callable) -> Callable:
    """Makes a compiled operation from `write(emitter, **arguments)`.

    An array is followed by the offset at which it is used, and both become one pointer; the last
    argument is the tuple that tells the number of vectors of a row.
    """
    names = list(inspect.signature(write).parameters)[1:]
    parameters = []
    for name in names:
        parameters += [name, f"{name}_at"] if name.isupper() else [name]
    parameters = [p.lower() for p in parameters] + ["vectors"]

    def operation(typingctx, *arguments):
        def generate(context, builder, signature, values):
            kinds = list(zip(signature.args[:-1], values[:-1], strict=True))
            real = context.get_value_type(
                next(k.dtype for k, _ in kinds if isinstance(k, types.Array))
            )
            given = {}
            for name in names:
                kind, value = kinds.pop(0)
                if name.isupper():
                    data = context.make_array(kind)(context, builder, value).data
                    offset = context.cast(builder, kinds[0][1], kinds.pop(0)[0], types.int64)
                    given[name] = builder.gep(data, [offset])
                elif isinstance(kind, types.Float):
                    given[name] = value
                else:
                    given[name] = context.cast(builder, value, kind, types.int64)
            write(_Emitter(builder, real, signature.args[-1].count), **given)
            return context.get_dummy_value()

        return types.void(*arguments), generate

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    operation.__signature__ = inspect.Signature(
        [inspect.Parameter(name, positional) for name in ("typingctx", *parameters)]
    )
    operation.__name__ = write.__name__.lstrip("_")
    operation.__doc__ = write.__doc__
    return intrinsic(operation)


def _product(e, OUT, MATRIX, row_step, column_step, X, rows, columns, *, add):
    builder = e.builder

    def block(count, first):
        outs = [e.row(OUT, builder.add(first, e.number(r))) for r in range(count)]
        sums = [
            [e.variable(e.load(out, v) if add else e.zero()) for v in range(e.vectors)]
            for out in outs
        ]
        starts = [
            builder.gep(MATRIX, [builder.mul(builder.add(first, e.number(r)), row_step)])
            for r in range(count)
        ]
        with cgutils.for_range(builder, columns) as loop:
            row = e.row(X, loop.index)
            xs = [e.load(row, v) for v in range(e.vectors)]
            place = builder.mul(loop.index, column_step)
            for start, total in zip(starts, sums, strict=True):
                entry = e.splat(builder.load(builder.gep(start, [place])))
                for x, place_of_sum in zip(xs, total, strict=True):
                    e.update(place_of_sum, e.more, entry, x)
        for out, total in zip(outs, sums, strict=True):
            for v, place_of_sum in enumerate(total):
                e.store(builder.load(place_of_sum), out, v)

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
                e.update(slopes[v], lambda s, g: builder.fadd(s, g, flags=_CONTRACT), gate)
                tally(e.row(KINKS, place), v, e.less, gate, gs[v])
                with builder.if_then(learn):
                    tally(e.row(SHARES, b), v, e.more, gs[v], part)

        _kinks(e, THRESHOLDS, WEIGHTS, bases, loop.index, basis)
        for v in range(e.vectors):
            e.store(builder.load(phis[v]), rows[2], v)
            slope = builder.load(slopes[v])
            e.store(builder.fmul(slope, gs[v], flags=_CONTRACT), rows[3], v)


set_product = _operation(_set_product)
add_product = _operation(_add_product)
add_outer = _operation(_add_outer)
activate = _operation(_activate)
activate_back = _operation(_activate_back)
