"""Derivatives of forced paths by all parameters, forwards in time.

Signals are [T, M, B] (step, state, sequence), as in `_update_steps`.
"""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["window_rows"]


@compiled(fastmath={"contract", "nsz"})
def _layer(views, layout, forced, units, given, slopes):
    """What the units see, what they give, and its slope."""
    inner, thresholds, weights = views[3], views[4], views[5]
    clipped, linear_units = layout
    m, bases = forced.size, weights.size
    clip = weights.sum() if clipped else 0.0
    for k in range(given.size):
        u = 0.0
        if inner.shape[0]:
            for i in range(m):
                u += inner[k, i] * forced[i]
        else:
            u = forced[k]
        value, slope = u, 1.0
        if k >= linear_units:
            value, slope = -clip * max(u, 0.0), -clip if u > 0.0 else 0.0
            for b in range(bases):
                if u > thresholds[k, b]:
                    value += weights[b] * (u - thresholds[k, b])
                    slope += weights[b]
        units[k], given[k], slopes[k] = u, value, slope


@compiled(fastmath={"contract", "nsz"})
def _through_map(views, slopes, before, after, jacobian):
    """Derivatives of the next state through the present one."""
    decay, outer, _, inner = views[:4]
    m, n = before.shape
    jacobian[:] = 0.0
    for i in range(m):
        jacobian[i, i] = decay[i]
        for k in range(slopes.size):
            through = outer[i, k] * slopes[k]
            if through != 0.0:
                if inner.shape[0]:
                    for j in range(m):
                        jacobian[i, j] += through * inner[k, j]
                else:
                    jacobian[i, k] += through
    for i in range(m):
        row = after[i]
        row[:] = 0.0
        for j in range(m):
            slope, old = jacobian[i, j], before[j]
            for c in range(n):
                row[c] += slope * old[c]


@compiled
def _add(row, place, sign, value):
    if place >= 0:
        row[place] += sign * value


@compiled
def _through_values(views, layout, places, signs, forced, units, given, slopes, driven, after):
    """Adds the derivatives of the next state by the map's values themselves."""
    outer, thresholds, weights = views[1], views[4], views[5]
    clipped, linear_units = layout
    for i in range(forced.size):
        row = after[i]
        _add(row, places[0][i], signs[0][i], forced[i])
        _add(row, places[2][i], signs[2][i], 1.0)
        for k in range(driven.size):
            _add(row, places[6][i, k], signs[6][i, k], driven[k])
        for k in range(given.size):
            _add(row, places[1][i, k], signs[1][i, k], given[k])
            weight, u = outer[i, k], units[k]
            through = weight * slopes[k]
            for j in range(places[3].shape[1] if places[3].shape[0] else 0):
                _add(row, places[3][k, j], signs[3][k, j], through * forced[j])
            if k < linear_units:
                continue
            for b in range(weights.size):
                above = u - thresholds[k, b]
                value = max(above, 0.0) - (max(u, 0.0) if clipped else 0.0)
                _add(row, places[5][b], signs[5][b], weight * value)
                if above > 0.0:
                    _add(row, places[4][k, b], signs[4][k, b], -weight * weights[b])


@compiled
def _first_states(places, signs, teacher, known, b, slopes):
    """Derivatives of the hidden first states, a linear map of the others."""
    hidden = 0
    slopes[:] = 0.0
    for i in range(known.size):
        if not known[i]:
            seen = 0
            for j in range(known.size):
                if known[j]:
                    place, sign = places[7][hidden, seen], signs[7][hidden, seen]
                    _add(slopes[i], place, sign, teacher[0, j, b])
                    seen += 1
            hidden += 1


@compiled(fastmath={"contract", "nsz"})
def _compare(target, compared, b, rows, errors):
    """Turns states and their derivatives into errors; returns the sum of their squares.

    The present step's response needs steps before it only, so that going backwards nothing that
    is still needed is overwritten.
    """
    states, precision, response = compared
    steps, lags, squares = errors.shape[0], len(response), 0.0
    for t in range(steps - 1, -1, -1):
        for k in range(states.size):
            i = states[k]
            wanted = target[t, i, b]
            row = rows[t, k]
            if np.isnan(wanted) or t < lags - 1:
                errors[t, k] = 0.0
                row[:] = 0.0
                continue
            scale = precision[i] * response[0, i]
            error = scale * errors[t, k]
            row *= scale
            for lag in range(1, lags):
                scale = precision[i] * response[lag, i]
                error += scale * errors[t - lag, k]
                old = rows[t - lag, k]
                for c in range(row.size):
                    row[c] += scale * old[c]
            errors[t, k] = error - precision[i] * wanted
            squares += errors[t, k] ** 2
    return squares


@compiled
def window_rows(
    views, layout, places, signs, signals, windows, starts, known, compared, rows, errors, base,
    first, last,
):  # fmt: skip
    """Writes the errors of forced paths and their derivatives.

    Args:
        views: The map's values (see `map_views`).
        layout: (clipped, linear units).
        places: In the same form, the parameter that each value is a copy of; -1 is none.
        signs: In the same form, its sign.
        signals: (start, teacher, weight, target, drive), of all windows.
        windows: What they were cut from (see `update_steps`).
        starts: First sample of each window [B].
        known: Whether a state is seen [M].
        compared: (compared states [N], precision [M], response [L, M]).
        rows: [windows, T, N, n]; n = 0 without derivatives.
        errors: [windows, T, N].
        base: Window that the first rows belong to.
        first: First window.
        last: Last window, excluded.

    Returns:
        The sum of squared errors.
    """
    start, teacher, weight, target, drive = signals
    _, _, ends, inputs, _ = windows
    steps, m, _ = teacher.shape
    n, states, squares = rows.shape[3], compared[0], 0.0
    before, after, jacobian = np.empty((m, n)), np.empty((m, n)), np.empty((m, m))
    size = views[1].shape[1]
    units, given, slopes = np.empty(size), np.empty(size), np.empty(size)
    z, forced = np.empty(m), np.empty(m)
    driven = np.empty(inputs.shape[1] if drive.shape[0] else 0)
    for b in range(first, last):
        z[:] = start[0, :, b]
        end = ends[starts[b]] if ends.size else starts[b] + steps + 1
        if n:
            _first_states(places, signs, teacher, known, b, before)
        for t in range(steps):
            for i in range(m):
                share = weight[t, i, b]
                forced[i] = z[i]
                if share != 0.0:
                    forced[i] += share * (teacher[t, i, b] - z[i])
                    before[i] *= 1.0 - share
            _layer(views, layout, forced, units, given, slopes)
            for i in range(m):
                value = views[0][i] * forced[i] + views[2][i]
                for k in range(size):
                    value += views[1][i, k] * given[k]
                z[i] = value + (drive[t, i, b] if drive.shape[0] else 0.0)
            if n:
                for k in range(driven.size):
                    driven[k] = inputs[min(starts[b] + t + 1, end - 1), k]
                _through_map(views, slopes, before, after, jacobian)
                _through_values(
                    views, layout, places, signs, forced, units, given, slopes, driven, after
                )  # fmt: skip
                before, after = after, before
            for k in range(states.size):
                errors[b - base, t, k] = z[states[k]]
                if n:
                    rows[b - base, t, k] = before[states[k]]
        squares += _compare(target, compared, b, rows[b - base], errors[b - base])
    return squares
