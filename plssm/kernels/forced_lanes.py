"""A forced recurrence and its adjoint for a group of sequences side by side, compiled.

Signals are arrays [T, M, B] (step, state, sequence) whose B is a multiple of the lanes; an empty
one is not there. A weight may be [T, M, 1], one for all sequences. The sequences first, first + 1,
... of a group fill its lanes.
"""

from __future__ import annotations

from plssm.kernels._compile import compiled
from plssm.kernels._lane_emitter import vector_width
from plssm.kernels._lane_steps import (
    advance,
    collect,
    compare,
    copy_rows,
    draw_to,
    pull_back,
    receive,
)
from plssm.kernels._lanes import activate, activate_back, add_outer, add_product, set_product

__all__ = [
    "adjoint_lanes",
    "adjoint_room",
    "forward_lanes",
    "forward_room",
    "kept_units",
    "lane_count",
]

STEPS = 32  # steps whose gradients wait before the weights' are added up
_AGAIN = 8  # states up to which the adjoint works out again what the units see
_LOOSE = {"contract", "nsz"}


def lane_count(batch: int, itemsize: int) -> int:
    """Returns how many sequences stand side by side: 16, or 8 of few."""
    return max(16 if batch > 8 else 8, vector_width(itemsize))


def kept_units(m: int, size: int, steps: int, lanes: int) -> int:
    """Returns how many numbers the forward pass keeps of what the units see."""
    return (steps if m > _AGAIN else 1) * size * lanes


def forward_room(m: int, size: int, lanes: int) -> int:
    """Returns how many numbers of scratch the forward pass needs."""
    return (m + size + 1) * lanes


def adjoint_room(m: int, size: int, bases: int, steps: int, lanes: int) -> int:
    """Returns how many numbers of scratch the adjoint needs."""
    few = min(STEPS, steps)
    return (3 * m + size * (bases + 1) + bases + 1 + few * (m + 2 * size)) * lanes


@compiled
def _stride(signal):
    """Distance between the rows of a signal; 0 where it is not there or is the same for all."""
    return signal.shape[2] if signal.shape[2] > 1 else 0


@compiled(fastmath=_LOOSE)
def forward_lanes(
    layer, start, teacher, weight, drive, path, target, precision, errors, states, units, room,
    first, vectors,
):  # fmt: skip
    """Runs the recurrence for the sequences of a group.

    Args:
        layer: (decay [M], outer [M, L], bias [M], inner [L, M] or [0, M], thresholds [L, B],
            weights [B], clip [1], linear units).
        start: [1, M, B].
        teacher: [T, M, B] or empty.
        weight: [T, M, B] or [T, M, 1], share of the teacher, or empty.
        drive: [T, M, B], added to each step, or empty.
        path: [T, M, B], receives the states after each step, or empty.
        target: [T, M, B], what these are compared with, NaN where they are not, or empty.
        precision: [M], by which differences are multiplied.
        errors: [T, M, lanes] flat, receives the differences times the squared precision.
        states: [T, M, lanes] flat, receives the forced states.
        units: [T, L, lanes] flat, receives what the units see, or [L, lanes] where the adjoint
            works it out again; unused without an inner matrix.
        room: Scratch of `forward_room` numbers.
        first: First sequence.
        vectors: Tuple whose length is the number of vectors of a row.

    Returns:
        The sum of the squared differences in units of the precision.
    """
    decay, outer, bias, inner, thresholds, weights, clip, linear = layer
    m, (size, bases) = decay.size, thresholds.shape
    lanes = len(vectors) * (64 // states.itemsize)
    rows, wide = m * lanes, size * lanes
    z, phi, total = room[:rows], room[rows : rows + wide], room[rows + wide :]
    total[:lanes] = 0.0
    kept = wide if units.size > wide else 0
    copy_rows(z, 0, lanes, start, first, start.shape[2], m, vectors)
    for t in range(states.size // rows):
        here = t * rows
        if teacher.shape[0]:
            stride, shared = _stride(teacher), _stride(weight)
            at = t * m * weight.shape[2] + (first if shared else 0)
            draw_to(
                states, here, z, 0, teacher, t * m * stride + first, stride, weight, at, shared,
                m, vectors,
            )  # fmt: skip
        else:
            copy_rows(states, here, lanes, z, 0, lanes, m, vectors)
        stride = _stride(drive)
        at = t * m * stride + (first if stride else 0)
        advance(z, 0, states, here, decay, 0, bias, 0, drive, at, stride, m, vectors)
        seen, there = states, here
        if inner.shape[0]:
            seen, there = units, t * kept
            set_product(seen, there, inner, 0, m, 1, states, here, size, m, vectors)
        skip = linear * lanes
        copy_rows(phi, 0, lanes, seen, there, lanes, linear, vectors)
        activate(
            phi, skip, seen, there + skip, thresholds, linear * bases, weights, 0, clip[0],
            size - linear, bases, vectors,
        )  # fmt: skip
        add_product(z, 0, outer, 0, size, 1, phi, 0, m, size, vectors)
        if path.shape[0]:
            stride = path.shape[2]
            copy_rows(path, t * m * stride + first, stride, z, 0, lanes, m, vectors)
        else:
            stride = target.shape[2]
            at = t * m * stride + first
            compare(errors, here, total, 0, z, 0, target, at, stride, precision, 0, m, vectors)
    squares = 0.0
    for x in range(lanes):
        squares += total[x]
    return squares


@compiled(fastmath=_LOOSE)
def _back_through_units(
    layer, states, here, units, stored, kept, up, phis, backs, w, kinks, shares, clips, learn,
    vectors,
):  # fmt: skip
    """Writes what the units gave (phis) and the gradient in what they saw (backs) at one step.

    Where nothing is `kept`, what they saw is worked out again; otherwise it stands at `stored`.
    """
    _, _, _, inner, thresholds, weights, clip, linear = layer
    (size, bases), lanes = thresholds.shape, len(vectors) * (64 // states.itemsize)
    m = layer[0].size
    seen, there = states, here
    if inner.shape[0]:
        seen, there = units, stored
        if not kept:
            set_product(units, 0, inner, 0, m, 1, states, here, size, m, vectors)
    copy_rows(phis, w, lanes, seen, there, lanes, linear, vectors)
    copy_rows(backs, w, lanes, up, 0, lanes, linear, vectors)
    skip = linear * lanes
    activate_back(
        phis, w + skip, backs, w + skip, seen, there + skip, up, skip, thresholds,
        linear * bases, weights, 0, clip[0], size - linear, bases,
        kinks, linear * bases * lanes, shares, 0, clips, 0, learn, vectors,
    )  # fmt: skip


@compiled(fastmath=_LOOSE)
def adjoint_lanes(
    layer, weight, states, units, gradient, errors, scale, gradients, to_teacher, to_drive,
    to_start, room, first, vectors,
):  # fmt: skip
    """Propagates gradients in the states after each step back to everything else.

    Args:
        layer: As in `forward_lanes`.
        weight: As in `forward_lanes`.
        states: As the forward pass left it.
        units: As the forward pass left it.
        gradient: [T, M, B], in the states after each step, or empty.
        errors: [T, M, lanes] flat, used instead of a missing gradient.
        scale: [1], what the gradient or the errors are multiplied by.
        gradients: (decay [M], outer [M, L], bias [M], inner [L, M], thresholds [L, B], weights
            [B], clip [1], learn): receive what these sequences add; `learn` is not zero where the
            weights and the clip are wanted.
        to_teacher: [T, M, B], receives the gradient in the teacher, or empty.
        to_drive: [T, M, B], receives the gradient in the drive, or empty.
        to_start: [1, M, B], receives the gradient in the start.
        room: Scratch of `adjoint_room` numbers.
        first: First sequence.
        vectors: Tuple whose length is the number of vectors of a row.
    """
    decay, outer, _, inner, thresholds, _, _, _ = layer
    g_decay, g_outer, g_bias, g_inner, g_thresholds, g_weights, g_clip, learn = gradients
    m, (size, bases) = decay.size, thresholds.shape
    lanes = len(vectors) * (64 // states.itemsize)
    wide, rows = size * lanes, m * lanes
    steps = states.size // rows
    few, kept = min(STEPS, steps), wide if units.size > wide else 0
    sum_decay, sum_bias, back = room[:rows], room[rows : 2 * rows], room[2 * rows : 3 * rows]
    used = 3 * rows
    kinks = room[used : used + wide * bases]
    used += wide * bases
    shares, clips = room[used : used + bases * lanes], room[used + bases * lanes :]
    used += (bases + 1) * lanes
    room[:used] = 0.0
    up, deltas = room[used : used + wide], room[used + wide : used + wide + few * rows]
    used += wide + few * rows
    backs, phis = room[used : used + few * wide], room[used + few * wide :]
    given = gradient.shape[0] > 0
    source, row = (gradient.reshape(-1), gradient.shape[2]) if given else (errors, lanes)
    for block in range((steps + few - 1) // few):
        last = steps - block * few
        begin = max(last - few, 0)
        for t in range(last - 1, begin - 1, -1):
            d, here, w = (t - begin) * rows, t * rows, (t - begin) * wide
            receive(
                deltas, d, back, 0, source, t * m * row + (first if given else 0), row, scale, 0,
                sum_bias, 0, sum_decay, 0, states, here, m, vectors,
            )  # fmt: skip
            if to_drive.shape[0]:
                stride = to_drive.shape[2]
                copy_rows(to_drive, t * m * stride + first, stride, deltas, d, lanes, m, vectors)
            set_product(up, 0, outer, 0, 1, size, deltas, d, size, m, vectors)
            _back_through_units(
                layer, states, here, units, t * kept, kept, up, phis, backs, w, kinks, shares,
                clips, learn, vectors,
            )  # fmt: skip
            if inner.shape[0]:
                collect(back, 0, decay, 0, deltas, d, backs, w, 0, m, vectors)
                add_product(back, 0, inner, 0, 1, m, backs, w, m, size, vectors)
            else:
                collect(back, 0, decay, 0, deltas, d, backs, w, lanes, m, vectors)
            if weight.shape[0]:
                shared, stride = _stride(weight), _stride(to_teacher)
                at = t * m * weight.shape[2] + (first if shared else 0)
                to = t * m * stride + (first if stride else 0)
                pull_back(back, 0, weight, at, shared, to_teacher, to, stride, m, vectors)
        done = last - begin
        add_outer(g_outer, 0, size, deltas, 0, rows, phis, 0, wide, m, size, done, vectors)
        if inner.shape[0]:
            at = begin * rows
            add_outer(g_inner, 0, m, backs, 0, wide, states, at, rows, size, m, done, vectors)
    copy_rows(to_start, first, to_start.shape[2], back, 0, lanes, m, vectors)
    _sum_lanes(g_bias, sum_bias, lanes)
    _sum_lanes(g_decay, sum_decay, lanes)
    _sum_lanes(g_thresholds.reshape(-1), kinks, lanes)
    _sum_lanes(g_weights, shares, lanes)
    _sum_lanes(g_clip, clips, lanes)


@compiled
def _sum_lanes(totals, rows, lanes):
    """Adds the sum over lanes of each row to its total."""
    for i in range(totals.size):
        for x in range(lanes):
            totals[i] += rows[i * lanes + x]
