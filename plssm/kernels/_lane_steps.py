"""What a forced recurrence does to each state, lane by lane.

Signals stand in memory as [step, state, sequence]; `stride` is the number of sequences in a row of
them, of which the lanes are a part. Arrays named in capitals come with an offset.
"""

from __future__ import annotations

from numba.core import cgutils

from plssm.kernels._lane_emitter import CONTRACT, operation

__all__ = ["advance", "collect", "compare", "copy_rows", "draw_to", "pull_back", "receive"]


def _rows(e, rows):
    """Loop over rows; gives their numbers."""
    return cgutils.for_range(e.builder, rows)


def _outside(e, POINTER, row, stride):
    """Address of a row of a signal."""
    return e.builder.gep(POINTER, [e.builder.mul(row, stride)])


def _add(e, a, b):
    return e.builder.fadd(a, b, flags=CONTRACT)


def _times(e, a, b):
    return e.builder.fmul(a, b, flags=CONTRACT)


def _minus(e, a, b):
    return e.builder.fsub(a, b, flags=CONTRACT)


def _share(e, WEIGHT, row, v, stride):
    """Share of the teacher: of each sequence, or (stride 0) one number for all."""
    builder = e.builder
    same = builder.icmp_signed("==", stride, e.number(0))
    with builder.if_else(same) as (then, otherwise):
        with then:
            one = e.splat(builder.load(builder.gep(WEIGHT, [row])))
            from_one = builder.block
        with otherwise:
            each = e.load(_outside(e, WEIGHT, row, stride), v)
            from_each = builder.block
    value = builder.phi(e.kind)
    value.add_incoming(one, from_one)
    value.add_incoming(each, from_each)
    return value


def _draw_to(e, STATES, Z, TEACHER, stride, WEIGHT, weight_stride, rows):
    """Writes z + w (teacher - z) into states."""
    with _rows(e, rows) as loop:
        source, out = e.row(Z, loop.index), e.row(STATES, loop.index)
        teacher = _outside(e, TEACHER, loop.index, stride)
        for v in range(e.vectors):
            z, w = e.load(source, v), _share(e, WEIGHT, loop.index, v, weight_stride)
            e.store(e.more(z, w, _minus(e, e.load(teacher, v), z)), out, v)


def _advance(e, OUT, STATES, DECAY, BIAS, DRIVE, stride, rows):
    """Writes decay * states + bias, and the drive where it has a stride."""
    builder = e.builder
    driven = builder.icmp_signed("!=", stride, e.number(0))
    with _rows(e, rows) as loop:
        source, out = e.row(STATES, loop.index), e.row(OUT, loop.index)
        decay = e.splat(builder.load(builder.gep(DECAY, [loop.index])))
        bias = e.splat(builder.load(builder.gep(BIAS, [loop.index])))
        for v in range(e.vectors):
            e.store(e.more(bias, decay, e.load(source, v)), out, v)
        with builder.if_then(driven):
            drive = _outside(e, DRIVE, loop.index, stride)
            for v in range(e.vectors):
                e.store(_add(e, e.load(out, v), e.load(drive, v)), out, v)


def _copy_rows(e, OUT, out_stride, SOURCE, stride, rows):
    """Copies rows between signals and lanes."""
    with _rows(e, rows) as loop:
        source = _outside(e, SOURCE, loop.index, stride)
        out = _outside(e, OUT, loop.index, out_stride)
        for v in range(e.vectors):
            e.store(e.load(source, v), out, v)


def _compare(e, ERRORS, TOTAL, Z, TARGET, stride, PRECISION, rows):
    """Writes p^2 (z - target), 0 where the target is NaN; adds p^2 (z - target)^2 to a row."""
    builder = e.builder
    with _rows(e, rows) as loop:
        source, out = e.row(Z, loop.index), e.row(ERRORS, loop.index)
        target = _outside(e, TARGET, loop.index, stride)
        precision = builder.load(builder.gep(PRECISION, [loop.index]))
        square = e.splat(builder.fmul(precision, precision))
        for v in range(e.vectors):
            goal = e.load(target, v)
            seen = builder.fcmp_ordered("ord", goal, goal)
            error = _minus(e, e.load(source, v), goal)
            error = builder.select(seen, error, e.zero())
            weighted = _times(e, square, error)
            e.store(weighted, out, v)
            e.store(e.more(e.load(TOTAL, v), weighted, error), TOTAL, v)


def _receive(e, DELTAS, BACK, SOURCE, stride, SCALE, BIASES, DECAYS, STATES, rows):
    """Writes delta = scale * source + back; adds delta and delta * states to rows of sums."""
    scale = e.splat(e.builder.load(SCALE))
    with _rows(e, rows) as loop:
        back, out, states, biases, decays = (
            e.row(x, loop.index) for x in (BACK, DELTAS, STATES, BIASES, DECAYS)
        )
        source = _outside(e, SOURCE, loop.index, stride)
        for v in range(e.vectors):
            delta = e.more(e.load(back, v), scale, e.load(source, v))
            e.store(delta, out, v)
            e.store(_add(e, e.load(biases, v), delta), biases, v)
            e.store(e.more(e.load(decays, v), delta, e.load(states, v)), decays, v)


def _collect(e, BACK, DECAY, DELTAS, MORE, more_stride, rows):
    """Writes decay * delta, plus further rows where they have a stride."""
    builder = e.builder
    both = builder.icmp_signed("!=", more_stride, e.number(0))
    with _rows(e, rows) as loop:
        deltas, out = e.row(DELTAS, loop.index), e.row(BACK, loop.index)
        decay = e.splat(builder.load(builder.gep(DECAY, [loop.index])))
        for v in range(e.vectors):
            e.store(_times(e, decay, e.load(deltas, v)), out, v)
        with builder.if_then(both):
            further = _outside(e, MORE, loop.index, more_stride)
            for v in range(e.vectors):
                e.store(_add(e, e.load(out, v), e.load(further, v)), out, v)


def _pull_back(e, BACK, WEIGHT, weight_stride, OUT, stride, rows):
    """Splits a gradient between teacher (written where it has a stride) and state."""
    builder = e.builder
    wanted = builder.icmp_signed("!=", stride, e.number(0))
    with _rows(e, rows) as loop:
        back = e.row(BACK, loop.index)
        for v in range(e.vectors):
            g = e.load(back, v)
            part = _times(e, _share(e, WEIGHT, loop.index, v, weight_stride), g)
            e.store(_minus(e, g, part), back, v)
            with builder.if_then(wanted):
                e.store(part, _outside(e, OUT, loop.index, stride), v)


draw_to = operation(_draw_to)
advance = operation(_advance)
copy_rows = operation(_copy_rows)
compare = operation(_compare)
receive = operation(_receive)
collect = operation(_collect)
pull_back = operation(_pull_back)
