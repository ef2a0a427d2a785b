"""Writes vector instructions for small blocks: the tool that `_vector_blocks` is built with.

A block is `m` rows in memory, given by a pointer to its first element and the distance between
rows. Its columns are handled four at a time, and its rows in panels of four, so that up to twelve
running sums stay in registers. The last vector of a row may be shorter than four: `tight` rows
end there, padded rows go on with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llvmlite import ir

__all__ = ["Block", "Emitter"]

_REAL = ir.DoubleType()
_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)
_LANES = 4
_GROUP = 3
_UNROLL = 12
_CONTRACT = ("contract",)


class Block(NamedTuple):
    """Rows in memory: pointer to the first element, row distance, and whether rows are tight."""

    start: ir.Value
    stride: int
    tight: bool = False


@dataclass(frozen=True)
class Emitter:
    """Instruction writer for blocks of m rows."""

    builder: ir.IRBuilder
    m: int

    @property
    def vectors(self) -> int:
        """Number of vectors in a row."""
        return (self.m + _LANES - 1) // _LANES

    def width(self, v: int) -> int:
        """Number of elements of vector or panel v that belong to the block."""
        return min(_LANES, self.m - _LANES * v)

    def groups(self, first: int, last: int) -> list[list[int]]:
        """Splits the vectors first..last-1 into groups whose sums fit into registers."""
        return [list(range(c, min(c + _GROUP, last))) for c in range(first, last, _GROUP)]

    # memory -----------------------------------------------------------------------------------
    def at(self, pointer: ir.Value, offset: int | ir.Value) -> ir.Value:
        """Returns the address `offset` numbers after `pointer`."""
        if isinstance(offset, int):
            offset = ir.Constant(_INDEX, offset)
        return self.builder.gep(pointer, [offset])

    def element(self, block: Block, row: int | ir.Value, column: int) -> ir.Value:
        """Returns the address of an element."""
        if isinstance(row, int):
            return self.at(block.start, row * block.stride + column)
        start = self.builder.mul(row, ir.Constant(_INDEX, block.stride))
        return self.at(self.at(block.start, start), column)

    def load(self, pointer: ir.Value, width: int = _LANES) -> ir.Value:
        """Loads `width` numbers into a vector whose other elements are zero."""
        kind = ir.VectorType(_REAL, width)
        value = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=8)
        if width == _LANES:
            return value
        lanes = [*range(width), *([width] * (_LANES - width))]
        return self.shuffle(value, ir.Constant(kind, [0.0] * width), lanes)

    def store(self, value: ir.Value, pointer: ir.Value, width: int = _LANES) -> None:
        """Stores the first `width` elements of a vector."""
        if width < _LANES:
            value = self.shuffle(value, value, list(range(width)))
        kind = ir.VectorType(_REAL, width)
        self.builder.store(value, self.builder.bitcast(pointer, kind.as_pointer()), align=8)

    def load_row(self, block: Block, row: int | ir.Value, v: int) -> ir.Value:
        """Loads vector v of a row."""
        width = self.width(v % self.vectors) if block.tight else _LANES
        return self.load(self.element(block, row, _LANES * v), width)

    def store_row(self, value: ir.Value, block: Block, row: int, v: int) -> None:
        """Stores vector v of a row."""
        width = self.width(v % self.vectors) if block.tight else _LANES
        self.store(value, self.element(block, row, _LANES * v), width)

    # values -----------------------------------------------------------------------------------
    def zero(self) -> ir.Value:
        """Returns a vector of zeros."""
        return self.constant([0.0] * _LANES)

    def constant(self, values: list[float]) -> ir.Value:
        """Returns a constant vector."""
        return ir.Constant(ir.VectorType(_REAL, _LANES), values)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
        """Picks elements from two vectors."""
        return self.builder.shuffle_vector(
            a, b, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes)
        )

    def splat(self, scalar: ir.Value) -> ir.Value:
        """Repeats a number in all elements."""
        empty = ir.Constant(ir.VectorType(_REAL, _LANES), ir.Undefined)
        one = self.builder.insert_element(empty, scalar, ir.Constant(_LANE, 0))
        return self.shuffle(one, empty, [0] * _LANES)

    def pick(self, vector: ir.Value, i: int) -> ir.Value:
        """Returns element i of a vector."""
        return self.builder.extract_element(vector, ir.Constant(_LANE, i))

    def join(self, scalars: list[ir.Value]) -> ir.Value:
        """Puts up to four numbers into a vector, zeros behind them."""
        vector = self.zero()
        for i, scalar in enumerate(scalars):
            vector = self.builder.insert_element(vector, scalar, ir.Constant(_LANE, i))
        return vector

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns a + b."""
        return self.builder.fadd(a, b, flags=_CONTRACT)

    def times(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns a b."""
        return self.builder.fmul(a, b, flags=_CONTRACT)

    def less(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns total - a b."""
        return self.builder.fsub(total, self.times(a, b), flags=_CONTRACT)

    def more(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns total + a b."""
        return self.add(total, self.times(a, b))

    def inverse(self, a: ir.Value) -> ir.Value:
        """Returns 1 / a."""
        return self.builder.fdiv(ir.Constant(_REAL, 1.0), a)

    def root(self, a: ir.Value) -> ir.Value:
        """Returns the square root of a."""
        return self.builder.call(self.builder.module.declare_intrinsic("llvm.sqrt", [_REAL]), [a])

    def transpose(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Transposes four rows (missing rows count as zero)."""
        a, b, c, d = rows + [self.zero()] * (_LANES - len(rows))
        even, odd, front, back = [0, 4, 2, 6], [1, 5, 3, 7], [0, 1, 4, 5], [2, 3, 6, 7]
        t = [
            self.shuffle(a, b, even),
            self.shuffle(a, b, odd),
            self.shuffle(c, d, even),
            self.shuffle(c, d, odd),
        ]
        return [
            self.shuffle(t[0], t[2], front),
            self.shuffle(t[1], t[3], front),
            self.shuffle(t[0], t[2], back),
            self.shuffle(t[1], t[3], back),
        ]

    def row_sums(self, rows: list[ir.Value]) -> ir.Value:
        """Returns the sums over the elements of up to four vectors, as a vector."""
        a, b, c, d = self.transpose(rows)
        return self.add(self.add(a, b), self.add(c, d))

    # sums of outer products -------------------------------------------------------------------
    def accumulate(self, sums, a, b, first, last, *, subtract=True, across=False):
        """Adds sum_k a[k, i] b[k, :] (or a[i, k], when `across`) to rows i of running sums.

        Args:
            sums: Running sums, one list of vectors per row.
            a: (block, first column i) of the factor read number by number.
            b: (block, vectors) of the factor read by rows.
            first: First k.
            last: Last k, excluded.
            subtract: Whether to subtract instead of add.
            across: Whether a is read along its rows.

        Returns:
            The new sums.
        """
        combine = self.less if subtract else self.more
        source, offset = a

        def body(k, totals):
            rows = [self.load_row(b[0], k, c) for c in b[1]]
            result = []
            for i, total in enumerate(totals):
                if across:
                    where = self.at(self.element(source, offset + i, 0), k)
                else:
                    where = self.element(source, k, offset + i)
                x = self.splat(self.builder.load(where))
                result.append([combine(s, x, r) for s, r in zip(total, rows, strict=True)])
            return result

        return self.repeat(body, sums, first, last)

    def repeat(self, body, sums, first, last):
        """Applies sums = body(k, sums) for k = first..last-1, unrolled when that is short."""
        if last - first <= _UNROLL:
            for k in range(first, last):
                sums = body(k, sums)
            return sums
        builder = self.builder
        before = builder.block
        loop = builder.append_basic_block("sum")
        after = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_INDEX)
        k.add_incoming(ir.Constant(_INDEX, first), before)
        running = [[builder.phi(s.type) for s in total] for total in sums]
        results = body(k, running)
        following = builder.add(k, ir.Constant(_INDEX, 1))
        k.add_incoming(following, loop)
        for phis, starts, ends in zip(running, sums, results, strict=True):
            for phi, start, end in zip(phis, starts, ends, strict=True):
                phi.add_incoming(start, before)
                phi.add_incoming(end, loop)
        again = builder.icmp_signed("<", following, ir.Constant(_INDEX, last))
        builder.cbranch(again, loop, after)
        builder.position_at_end(after)
        return results
