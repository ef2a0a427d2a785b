"""A forced recurrence and its adjoint for a group of sequences side by side, compiled."""

from __future__ import annotations

from plssm.kernels._compile import compiled
from plssm.kernels._lanes import activate, activate_back, add_outer, add_product, set_product

__all__ = ["adjoint_lanes", "adjoint_room", "forward_lanes", "forward_room"]

STEPS = 32  # steps whose gradients wait before the weights' are added up
_LOOSE = {"contract", "nsz"}


def forward_room(m: int, size: int, lanes: int) -> int:
    """Returns how many numbers of scratch the forward pass needs."""
    return (3 * m + size) * lanes


def adjoint_room(m: int, size: int, bases: int, steps: int, lanes: int) -> int:
    """Returns how many numbers of scratch the adjoint needs."""
    few = min(STEPS, steps)
    return (4 * m + size * (bases + 1) + bases + 1 + few * (m + 2 * size)) * lanes


@compiled
def _gather(out, at, values, t, first, count, lanes):
    """Writes values[first.., t, :] into rows.

    Lanes beyond the sequences repeat the last one; a first axis of length 1 serves them all.
    """
    if values.shape[0] == 1:
        first, count = 0, 1
    for m in range(values.shape[2]):
        for x in range(lanes):
            out[at + m * lanes + x] = values[first + min(x, count - 1), t, m]


@compiled
def _scatter(values, t, first, count, rows, at, lanes):
    """Writes rows into values[first.., t, :]."""
    for m in range(values.shape[2]):
        for x in range(count):
            values[first + x, t, m] = rows[at + m * lanes + x]


@compiled(fastmath=_LOOSE)
def _compare(z, target, precision, errors, at, t, first, count, lanes):
    """Writes the gradient of half the squared differences in z, and returns their sum."""
    total = 0.0
    for m in range(precision.size):
        square = precision[m] * precision[m]
        for x in range(lanes):
            difference = z[m * lanes + x] - target[first + min(x, count - 1), t, m]
            if x >= count or target[first + x, t, m] != target[first + x, t, m]:
                difference = 0.0
            errors[at + m * lanes + x] = square * difference
            total += square * difference * difference
    return total


@compiled(fastmath=_LOOSE)
def forward_lanes(
    layer, start, teacher, weight, drive, path, target, precision, errors, states, units, room,
    first, count, vectors,
):  # fmt: skip
    """Runs the recurrence for sequences first .. first + count - 1.

    Args:
        layer: (decay [M], outer [M, L], bias [M], inner [L, M] or [0, M], thresholds [L, B],
            weights [B], clip [1], linear units).
        start: [B, M].
        teacher: [B, T, M], or [0, 0, M] for none.
        weight: [B, T, M], share of the teacher.
        drive: [B, T, M], added to each step, or [0, 0, M].
        path: [B, T, M], receives the states after each step.
        target: [B, T, M], what these are compared with instead, NaN where they are not, or
            [0, 0, M].
        precision: [M], by which differences are multiplied.
        errors: [T, M, lanes] flat, receives the differences times the squared precision.
        states: [T, M, lanes] flat, receives the forced states.
        units: [T, L, lanes] flat, receives what the units see; unused without an inner matrix.
        room: Scratch of `forward_room` numbers.
        first: First sequence.
        count: Number of sequences, at most the lanes.
        vectors: Tuple whose length is the number of vectors of a row.

    Returns:
        The sum of the squared differences in units of the precision.
    """
    decay, outer, bias, inner, thresholds, weights, clip, linear = layer
    steps, m, (size, bases) = path.shape[1] + target.shape[1], decay.size, thresholds.shape
    total = 0.0
    lanes = len(vectors) * (64 // states.itemsize)
    rows = m * lanes
    z, goal, share = room[:rows], room[rows : 2 * rows], room[2 * rows : 3 * rows]
    phi = room[3 * rows : 3 * rows + size * lanes]
    for i in range(m):
        for x in range(lanes):
            z[i * lanes + x] = start[first + min(x, count - 1), i]
    for t in range(steps):
        here = t * m * lanes
        if teacher.shape[0]:
            _gather(goal, 0, teacher, t, first, count, lanes)
            _gather(share, 0, weight, t, first, count, lanes)
            for x in range(z.size):
                states[here + x] = z[x] + share[x] * (goal[x] - z[x])
        else:
            for x in range(z.size):
                states[here + x] = z[x]
        if drive.shape[0]:
            _gather(z, 0, drive, t, first, count, lanes)
            for i in range(m):
                for x in range(lanes):
                    z[i * lanes + x] += bias[i] + decay[i] * states[here + i * lanes + x]
        else:
            for i in range(m):
                for x in range(lanes):
                    z[i * lanes + x] = bias[i] + decay[i] * states[here + i * lanes + x]
        seen, there = states, here
        if inner.shape[0]:
            seen, there = units, t * size * lanes
            set_product(seen, there, inner, 0, m, 1, states, here, size, m, vectors)
        for x in range(linear * lanes):
            phi[x] = seen[there + x]
        activate(
            phi, linear * lanes, seen, there + linear * lanes, thresholds, linear * bases,
            weights, 0, clip[0], size - linear, bases, vectors,
        )  # fmt: skip
        add_product(z, 0, outer, 0, size, 1, phi, 0, m, size, vectors)
        if path.shape[0]:
            _scatter(path, t, first, count, z, 0, lanes)
        else:
            total += _compare(z, target, precision, errors, here, t, first, count, lanes)
    return total


@compiled(fastmath=_LOOSE)
def adjoint_lanes(
    layer, weight, states, units, gradient, errors, scale, gradients, to_teacher, to_drive,
    to_start, room, first, count, vectors,
):  # fmt: skip
    """Propagates gradients in the states after each step back to everything else.

    Args:
        layer: As in `forward_lanes`.
        weight: [B, T, M], share of the teacher, or [0, 0, M].
        states: As the forward pass left it.
        units: As the forward pass left it.
        gradient: [B, T, M], in the states after each step, or [0, 0, M].
        errors: [T, M, lanes] flat, the same by lane, used instead of a missing gradient.
        scale: What the errors are multiplied by.
        gradients: (decay [M], outer [M, L], bias [M], inner [L, M], thresholds [L, B], weights
            [B], clip [1], learn): receive what these sequences add; `learn` is not zero where the
            weights and the clip are wanted.
        to_teacher: [B, T, M], receives the gradient in the teacher, or [0, 0, M].
        to_drive: [B, T, M], receives the gradient in the drive, or [0, 0, M].
        to_start: [B, M], receives the gradient in the start.
        room: Scratch of `adjoint_room` numbers.
        first: First sequence.
        count: Number of sequences.
        vectors: Tuple whose length is the number of vectors of a row.
    """
    decay, outer, bias, inner, thresholds, weights, clip, linear = layer
    g_decay, g_outer, g_bias, g_inner, g_thresholds, g_weights, g_clip, learn = gradients
    m, (size, bases) = decay.size, thresholds.shape
    lanes = len(vectors) * (64 // states.itemsize)
    steps = states.size // (m * lanes)
    wide, rows, few = size * lanes, m * lanes, min(STEPS, steps)
    sum_decay, sum_bias = room[:rows], room[rows : 2 * rows]
    back, share = room[2 * rows : 3 * rows], room[3 * rows : 4 * rows]
    used = 4 * rows
    kinks = room[used : used + wide * bases]
    used += wide * bases
    shares, clips = room[used : used + bases * lanes], room[used + bases * lanes :]
    used += (bases + 1) * lanes
    room[:used] = 0.0
    up, deltas = room[used : used + wide], room[used + wide : used + wide + few * rows]
    used += wide + few * rows
    backs, phis = room[used : used + few * wide], room[used + few * wide :]
    for block in range((steps + few - 1) // few):
        last = steps - block * few
        begin = max(last - few, 0)
        for t in range(last - 1, begin - 1, -1):
            d, here, wide_at = (t - begin) * rows, t * rows, (t - begin) * wide
            if gradient.shape[0]:
                _gather(deltas, d, gradient, t, first, count, lanes)
                for i in range(m):
                    for x in range(count, lanes):
                        deltas[d + i * lanes + x] = 0.0
            else:
                for x in range(rows):
                    deltas[d + x] = scale * errors[here + x]
            for x in range(rows):
                deltas[d + x] += back[x]
            if to_drive.shape[0]:
                _scatter(to_drive, t, first, count, deltas, d, lanes)
            for x in range(rows):
                sum_bias[x] += deltas[d + x]
                sum_decay[x] += deltas[d + x] * states[here + x]
            set_product(up, 0, outer, 0, 1, size, deltas, d, size, m, vectors)
            seen, there = states, here
            if inner.shape[0]:
                seen, there = units, t * wide
            for x in range(linear * lanes):
                phis[wide_at + x] = seen[there + x]
                backs[wide_at + x] = up[x]
            skip = linear * lanes
            activate_back(
                phis, wide_at + skip, backs, wide_at + skip, seen, there + skip, up, skip,
                thresholds, linear * bases, weights, 0, clip[0], size - linear, bases,
                kinks, linear * bases * lanes, shares, 0, clips, 0, learn, vectors,
            )  # fmt: skip
            for i in range(m):
                for x in range(lanes):
                    back[i * lanes + x] = decay[i] * deltas[d + i * lanes + x]
            if inner.shape[0]:
                add_product(back, 0, inner, 0, 1, m, backs, wide_at, m, size, vectors)
            else:
                for x in range(rows):
                    back[x] += backs[wide_at + x]
            if weight.shape[0]:
                _gather(share, 0, weight, t, first, count, lanes)
                if to_teacher.shape[0]:
                    for i in range(m):
                        for x in range(count):
                            at = i * lanes + x
                            to_teacher[first + x, t, i] = share[at] * back[at]
                for x in range(rows):
                    back[x] -= share[x] * back[x]
        done = last - begin
        add_outer(
            g_outer, 0, size, deltas, 0, rows, phis, 0, wide, m, size, done, vectors
        )  # fmt: skip
        if inner.shape[0]:
            add_outer(
                g_inner, 0, m, backs, 0, wide, states, begin * rows, rows, size, m, done, vectors
            )
    for i in range(m):
        for x in range(lanes):
            g_bias[i] += sum_bias[i * lanes + x]
            g_decay[i] += sum_decay[i * lanes + x]
        for x in range(count):
            to_start[first + x, i] = back[i * lanes + x]
    for k in range(size * bases):
        for x in range(lanes):
            g_thresholds[k // bases, k % bases] += kinks[k * lanes + x]
    for b in range(bases):
        for x in range(lanes):
            g_weights[b] += shares[b * lanes + x]
    for x in range(lanes):
        g_clip[0] += clips[x]
