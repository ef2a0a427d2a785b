"""Writes vector instructions for lanes: the tool of the training recurrences.

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

__all__ = ["CONTRACT", "LaneEmitter", "operation", "vector_width"]

_BYTES = 64
CONTRACT = ("contract",)
_INDEX = ir.IntType(64)


def vector_width(itemsize: int) -> int:
    """Returns how many numbers a vector holds."""
    return _BYTES // itemsize


@dataclass(frozen=True)
class LaneEmitter:
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
        product = self.builder.fmul(a, b, flags=CONTRACT)
        return self.builder.fadd(total, product, flags=CONTRACT)

    def less(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns total - a b."""
        product = self.builder.fmul(a, b, flags=CONTRACT)
        return self.builder.fsub(total, product, flags=CONTRACT)

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
            vector = self.builder.fadd(vector, other, flags=CONTRACT)
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


def _call(
    builder: ir.IRBuilder, write: Callable, real: ir.Type, vectors: int, given: dict
) -> None:
    """Calls the function that holds the instructions of an operation; makes it if need be.

    Pointers come without the reference counts that a compiled function's arrays have.
    """
    name, values = f"{write.__module__}.{write.__name__}.{real}.{vectors}", list(given.values())
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in values])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        write(LaneEmitter(inside, real, vectors), **dict(zip(given, function.args, strict=True)))
        inside.ret_void()
    builder.call(function, values)


def operation(write: Callable, *, apart: bool = False) -> Callable:
    """Makes a compiled operation from `write(emitter, **arguments)`.

    An array is followed by the offset at which it is used, and both become one pointer; the last
    argument is the tuple that tells the number of vectors of a row. With `apart` the instructions
    become a function of their own, written once for all calls.
    """
    names = list(inspect.signature(write).parameters)[1:]
    parameters = []
    for name in names:
        parameters += [name, f"{name}_at"] if name.isupper() else [name]
    parameters = [p.lower() for p in parameters] + ["vectors"]

    def typed(typingctx, *arguments):
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
            vectors = signature.args[-1].count
            if apart:
                _call(builder, write, real, vectors, given)
            else:
                write(LaneEmitter(builder, real, vectors), **given)
            return context.get_dummy_value()

        return types.void(*arguments), generate

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typed.__signature__ = inspect.Signature(
        [inspect.Parameter(name, positional) for name in ("typingctx", *parameters)]
    )
    typed.__name__ = write.__name__.lstrip("_")
    typed.__doc__ = write.__doc__
    return intrinsic(typed)
