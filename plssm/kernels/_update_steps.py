"""Many training steps under teacher forcing in one compiled call.

A step gathers windows, runs the recurrence and its adjoint, and updates the parameters; between
two of them nothing goes back to the interpreter, whose share of a step of a small map is larger
than the arithmetic. Signals are [T, M, B] (step, state, sequence), as in `forced_lanes`.
"""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels.forced_lanes import adjoint_lanes, forward_lanes

__all__ = ["begin_windows", "copy_values", "gather_windows", "map_views", "update_steps"]

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # decay of the moments, and what keeps the root from 0


@compiled
def gather_windows(windows, draws, s, signals, known):
    """Fills teacher, share and target of a batch; returns how many numbers are compared."""
    samples, targets, ends, _, lead = windows
    starts, shares, jitter, spread = draws
    _, teacher, weight, target, _ = signals
    steps, m, wide = teacher.shape
    batch, count = starts.shape[1], 0
    for b in range(wide):
        own = min(b, batch - 1)
        first = starts[s, own]
        end = ends[first] if ends.size else first + steps + 1
        for t in range(steps + 1):
            row = min(first + t, end - 1)
            for i in range(m):
                outside = first + t >= end
                if t < steps:
                    value = samples[row, i]
                    missing = np.isnan(value) or outside
                    teacher[t, i, b] = 0.0 if missing else value
                    if jitter.shape[0]:
                        teacher[t, i, b] += jitter[s, own, t, i] * spread[i]
                    if b < weight.shape[2]:
                        weight[t, i, b] = 0.0 if missing or not known[i] else shares[s, t]
                if t:
                    value = targets[row, i]
                    if outside or b >= batch or t <= lead:
                        value = targets.dtype.type(np.nan)
                    target[t - 1, i, b] = value
                    count += not np.isnan(value)
    return count


@compiled
def begin_windows(windows, starts, s, signals, known, hidden_map, input_map):
    """Fills the first states (hidden ones: a linear map of the others) and the inputs' drive."""
    _, _, ends, inputs, _ = windows
    start, teacher, _, _, drive = signals
    steps, m, wide = teacher.shape
    for b in range(wide):
        hidden = 0
        for i in range(m):
            value, seen = teacher[0, i, b], 0
            if not known[i]:
                value = teacher.dtype.type(0.0)
                for j in range(m):
                    if known[j]:
                        value += hidden_map[hidden, seen] * teacher[0, j, b]
                        seen += 1
                hidden += 1
            start[0, i, b] = value
    for b in range(wide if drive.shape[0] else 0):
        first = starts[s, min(b, starts.shape[1] - 1)]
        end = ends[first] if ends.size else first + steps + 1
        for t in range(steps):
            row = min(first + t + 1, end - 1)
            for i in range(m):
                value = drive.dtype.type(0.0)
                for k in range(inputs.shape[1]):
                    value += input_map[i, k] * inputs[row, k]
                drive[t, i, b] = value


@compiled
def _finish(windows, starts, s, teacher, known, to_start, to_drive, g_hidden, g_inputs):
    """Adds the gradients of the map to the hidden first states and of the inputs' matrix."""
    _, _, ends, inputs, _ = windows
    steps, m, _ = teacher.shape
    for b in range(starts.shape[1]):
        hidden = 0
        for i in range(m):
            if not known[i]:
                seen = 0
                for j in range(m):
                    if known[j]:
                        g_hidden[hidden, seen] += to_start[0, i, b] * teacher[0, j, b]
                        seen += 1
                hidden += 1
        if to_drive.shape[0]:
            first = starts[s, b]
            end = ends[first] if ends.size else first + steps + 1
            for t in range(steps):
                row = min(first + t + 1, end - 1)
                for i in range(m):
                    for k in range(inputs.shape[1]):
                        g_inputs[i, k] += to_drive[t, i, b] * inputs[row, k]


@compiled
def _rectified_adam(vector, gradient, average, squares, number, rate):
    """One update of RAdam (Liu et al. 2020, arXiv:1908.03265), the `number`-th."""
    first, second = 1.0 - FIRST**number, 1.0 - SECOND**number
    longest = 2.0 / (1.0 - SECOND) - 1.0
    length = longest - 2.0 * number * SECOND**number / second
    rectified = 0.0
    if length > 5.0:
        rectified = np.sqrt(
            (length - 4.0) * (length - 2.0) * longest * second
            / ((longest - 4.0) * (longest - 2.0) * length)
        )  # fmt: skip
    real = vector.dtype.type
    step, keep, root = real(rate / first), real(rectified), real(TINY)
    for i in range(vector.size):
        g = gradient[i]
        average[i] += real(1.0 - FIRST) * (g - average[i])
        squares[i] = real(SECOND) * squares[i] + real(1.0 - SECOND) * g * g
        change = step * average[i]
        if length > 5.0:
            change *= keep / (np.sqrt(squares[i]) + root)
        vector[i] -= change


@compiled(fastmath={"contract", "nsz"})
def _through_response(path, gradient, target, response, precision, first, lanes):
    """Compares a convolved path with its target; writes the gradient in the path.

    Returns:
        The sum of the squared differences in units of the precision.
    """
    steps, m, _ = path.shape
    lags, last = len(response), first + lanes
    gradient[:, :, first:last] = 0.0
    error, squares = np.empty(lanes, path.dtype), 0.0
    for t in range(lags - 1, steps):
        for i in range(m):
            error[:] = 0.0
            for k in range(lags):
                now, row = response[k, i], path[t - k, i]
                for x in range(lanes):
                    error[x] += now * row[first + x]
            for x in range(lanes):
                wanted = target[t, i, first + x]
                off = precision[i] * (error[x] - wanted)
                off = path.dtype.type(0.0) if np.isnan(wanted) else off
                squares += off * off
                error[x] = precision[i] * off
            for k in range(lags):
                now, row = response[k, i], gradient[t - k, i]
                for x in range(lanes):
                    row[first + x] += now * error[x]
    return squares


@compiled
def _one_gradient(
    layer, sums, signals, response, precision, backs, room, per_square, vectors
):  # fmt: skip
    """Adds the gradients of a batch to the sums; returns the sum of squared errors."""
    start, teacher, weight, target, drive = signals
    to_drive, to_start, path, gradient = backs
    errors, states, units, forward, adjoint = room
    lanes = len(vectors) * (64 // states.itemsize)
    none = np.empty((0, start.shape[1], 0), start.dtype)
    compared = none if path.shape[0] else target
    scale = np.empty(1, start.dtype)
    scale[0] = per_square
    squares = 0.0
    for first in range(0, start.shape[2], lanes):
        squares += forward_lanes(
            layer, start, teacher, weight, drive, path, compared, precision, errors, states,
            units, forward, first, vectors,
        )  # fmt: skip
        if path.shape[0]:
            squares += _through_response(
                path, gradient, target, response, precision, first, lanes
            )  # fmt: skip
        adjoint_lanes(
            layer, weight, states, units, gradient, errors, scale, sums, none, to_drive, to_start,
            adjoint, first, vectors,
        )  # fmt: skip
    return squares


@compiled
def map_views(values, shapes):
    """Decay, outer, bias, inner, thresholds, weights, C and hidden map in one vector."""
    m, size, bases, inner, inputs, hidden = shapes
    a = m + m * size
    b = a + m + inner * m
    c = b + size * bases + bases
    d = c + m * inputs
    return (
        values[:m], values[m:a].reshape(m, size), values[a : a + m],
        values[a + m : b].reshape(inner, m), values[b : c - bases].reshape(size, bases),
        values[c - bases : c], values[c:d].reshape(m, inputs),
        values[d:].reshape(hidden, m - hidden),
    )  # fmt: skip


@compiled
def copy_values(copies, vector, values):
    """Writes the values of the map."""
    index, sign, constant = copies
    for j in range(index.size):
        values[j] = constant[j]
        if index[j] >= 0:
            values[j] += sign[j] * vector[index[j]]


@compiled
def _collect(copies, penalty, vector, sums, gradient):
    """Writes the gradient in the parameters; returns the penalty."""
    index, sign, _ = copies
    linear, quadratic, constant = penalty
    total = constant[0]
    for i in range(vector.size):
        slope = quadratic[i] * vector[i]
        gradient[i] = slope + linear[i]
        total += (vector.dtype.type(0.5) * slope + linear[i]) * vector[i]
    for j in range(index.size):
        if index[j] >= 0:
            gradient[index[j]] += sign[j] * sums[j]
    return total


@compiled
def _update(vector, gradient, moments, rules, number, decays):
    """One update with a gradient that is not too long; decays stay within their limit."""
    _, rate, longest, limit = rules
    norm = np.sqrt(np.sum(gradient * gradient))
    if norm > longest:
        gradient *= vector.dtype.type(longest / norm)
    _rectified_adam(vector, gradient, moments[0], moments[1], number, rate)
    for j in decays:
        if j >= 0:
            vector[j] = min(max(vector[j], -limit), limit)


@compiled
def update_steps(
    vector, moments, copies, penalty, shapes, layout, windows, draws, known, response, precision,
    signals, backs, room, rules, losses, vectors,
):  # fmt: skip
    """Trains for as many steps as there are draws; stops where a loss is not finite.

    Args:
        vector: Parameters [n]; changed in place.
        moments: (average [n], average square [n]) of the gradients; changed in place.
        copies: (index, sign, constant), each [P]: the values of the map, in the order of
            `map_views`, are ``sign * vector[index] + constant``; index -1 is none.
        penalty: (linear [n], quadratic [n], constant [1]): q/2 x^2 + l x is added to the loss.
        shapes: (M, L, B, rows of the inner matrix, K, hidden first states).
        layout: (clipped, linear units, learn): numbers.
        windows: (teacher [N, M] and targets [N, M], both with NaN where missing; end of the trial
            of each sample [N], or empty where all windows are whole; inputs [N, K]; number of
            steps that are not compared).
        draws: (starts [S, batch], shares of the teacher [S, T], jitter [S, batch, T, M] or empty,
            its spread [M]).
        known: Whether a state is seen [M].
        response: [L, M], what each state is convolved with before it is compared; unused where
            there is no room for a path.
        precision: [M], by which differences are multiplied.
        signals: (start, teacher, weight, target, drive): room for a batch.
        backs: (to_drive, to_start, path, gradient): room for gradients; path and gradient are
            empty where the states themselves are compared.
        room: (errors, states, units, forward, adjoint): scratch.
        rules: (updates so far, learning rate, largest gradient, largest decay).
        losses: [S], receives the loss of every step.
        vectors: Tuple whose length is the number of vectors of a row.

    Returns:
        The number of steps that were made.
    """
    clipped, linear_units, learn = layout
    size, decays = copies[0].size, copies[0][: shapes[0]]
    values, sums = np.empty(size, vector.dtype), np.empty(size, vector.dtype)
    gradient, clip = np.empty_like(vector), np.zeros(1, vector.dtype)
    own, g_clip = map_views(values, shapes), np.zeros(1, vector.dtype)
    g = map_views(sums, shapes)
    for s in range(len(losses)):
        copy_values(copies, vector, values)
        sums[:], g_clip[0] = 0.0, 0.0
        clip[0] = own[5].sum() if clipped else 0.0
        layer = (own[0], own[1], own[2], own[3], own[4], own[5], clip, linear_units)
        gradients = (g[0], g[1], g[2], g[3], g[4], g[5], g_clip, learn)
        count = max(gather_windows(windows, draws, s, signals, known), 1)
        begin_windows(windows, draws[0], s, signals, known, own[7], own[6])
        loss = _one_gradient(
            layer, gradients, signals, response, precision, backs, room, 2.0 / count, vectors
        ) / count  # fmt: skip
        _finish(windows, draws[0], s, signals[1], known, backs[1], backs[0], g[7], g[6])
        if clipped and learn:
            g[5][:] += g_clip[0]
        loss += _collect(copies, penalty, vector, sums, gradient)
        if not (np.sum(gradient * gradient) < np.inf and loss == loss):
            return s
        _update(vector, gradient, moments, rules, rules[0] + s + 1, decays)
        losses[s] = loss
    return len(losses)
