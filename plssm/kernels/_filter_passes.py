"""The differentiable filter and its adjoint for groups of trials side by side, compiled.

Arrays of trials are [T, rows, B], with the trials last and their number a multiple of `LANES`; an
empty one is not there. A group is `LANES` trials. With F = I - P R, and
cotangents c of the increment, mbar and Pbar of the filtered moments, the adjoint of an update is

    h = P mbar, X = P Pbar P, qbar = h + c m, Rbar = -(c P / 2 + X + sym(h m') + c m m' / 2),
    m^-bar = mbar + c g - R (h + c (m - m^-)),
    P^-bar = F' ((Pbar + sym(mbar g') + c g g' / 2) F - c R / 2),

where first mbar_k -= sum_ij (X + c P / 2)_ij dR_ij/dz_k if R moves with m. That of a prediction
is noisebar += P^-bar, Jbar = 2 P^-bar J P, Pbar = J' P^-bar J. The map is kept in homogeneous
coordinates: [J | f] = [L | b] + O diag(on) [I | o], m^- = J m + f + s. Exact moments of the map
are in `_moment_passes`.
"""

from __future__ import annotations

import math

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._filter_lanes import (
    LANES,
    add_gated,
    cholesky,
    gated_product,
    gates,
    multiply,
    multiply_symmetric,
    solve_lower,
)
from plssm.kernels._filter_rows import (
    accumulate,
    add,
    add_symmetric,
    balance,
    blank,
    copy,
    read,
    room,
    spread,
    write,
)
from plssm.kernels._moment_passes import back_moments, moment_room, predict_moments, repeated

__all__ = ["adjoint_groups", "forward_groups"]

_LOOSE = {"contract", "nsz"}


@compiled(inline="always")
def _matrices(size):
    """Scratch of square matrices."""
    whole, n = room(9 * size * size), size * size * LANES
    return (
        (whole[:n], whole[n : 2 * n], whole[2 * n : 3 * n], whole[3 * n : 4 * n],
         whole[4 * n : 5 * n], whole[5 * n : 6 * n]),
        (whole[6 * n : 7 * n], whole[7 * n : 8 * n], whole[8 * n :]),
    )  # fmt: skip


@compiled(inline="always")
def _vectors(size):
    """Scratch of vectors."""
    whole, n = room(7 * size), size * LANES
    return (
        (whole[:n], whole[n : 2 * n], whole[2 * n : 3 * n]),
        (whole[3 * n : 4 * n], whole[4 * n : 5 * n], whole[5 * n : 6 * n], whole[6 * n :]),
    )


@compiled(inline="always")
def _clear(gradients, to_drive, longest, first):
    """Zeros where a group will not write: beyond its end, and for the first drive."""
    for x in gradients:
        x[min(longest, len(x) - 1) :, :, first : first + LANES] = 0.0
    to_drive[0, :, first : first + LANES] = 0.0


@compiled(inline="always")
def _join(mean, covariance, other_mean, other_covariance):
    """Adds cotangents."""
    accumulate(mean, other_mean)
    accumulate(covariance, other_covariance)


@compiled(inline="always")
def _lasts(length, first):
    """Steps of the longest trial of a group, and of the shortest."""
    ends = length[first : first + LANES]
    return ends.max(), ends.min()


@compiled(fastmath=_LOOSE, inline="always")
def _predict(m, p, jacobian, noise, work, before, before_cov, size):
    """Writes J m + f and J P J' + noise; m is followed by a row of ones."""
    wide = size + 1
    multiply(before, 1, jacobian, wide, 1, m, 1, 1, size, wide, 1, 1.0, 0)
    multiply(work, size, jacobian, wide, 1, p, size, 1, size, size, size, 1.0, 0)
    spread(noise, before_cov)
    multiply_symmetric(before_cov, work, size, 1, jacobian, 1, wide, size, 1.0, 1, 0)


@compiled(fastmath=_LOOSE, inline="always")
def _update(q, r, before, before_cov, eye, scratch, after, after_cov, size):
    """One update in canonical form, with P^- = L L' and I + L'RL = K K'.

    P = Y Y' with Y = L K'^-1 is symmetric and positive semidefinite by construction. Leaves K and
    g in the scratch.
    """
    lower, work, factor, g = scratch
    cholesky(before_cov, lower, size, 1)
    multiply(work, size, r, size, 1, lower, size, 1, size, size, size, 1.0, 0)
    spread(eye, after_cov)
    multiply_symmetric(after_cov, lower, 1, size, work, size, 1, size, 1.0, 1, 1)
    cholesky(after_cov, factor, size, 0)
    solve_lower(factor, lower, work, size)
    multiply_symmetric(after_cov, work, 1, size, work, size, 1, size, 1.0, 0, 0)
    copy(g, q)
    copy(after, before)
    multiply(g, 1, r, size, 1, before, 1, 1, size, size, 1, -1.0, 1)
    multiply(after, 1, after_cov, size, 1, g, 1, 1, size, size, 1, 1.0, 1)


@compiled(fastmath=_LOOSE, inline="always")
def _gained(q, before, after, scratch, gain, fault, out, first, step, length, size):
    """Writes (q'm^- + g'm) / 2 - sum log K_ii; NaN from a trial's first failure on."""
    _, _, factor, g = scratch
    multiply(gain, 1, q, 1, 1, before, 1, 1, 1, size, 1, 0.5, 0)
    multiply(gain, 1, g, 1, 1, after, 1, 1, 1, size, 1, 0.5, 1)
    for x in range(LANES):
        product = 1.0
        for i in range(size):
            product *= factor[i * (size + 1) * LANES + x]
            if i % 4 == 3 or i == size - 1:
                gain[x] -= math.log(product)
                product = 1.0
        out[step, 0, first + x] = 0.0
        if step < length[first + x]:
            fault[x] += 0.0 * gain[x]
            out[step, 0, first + x] = gain[x] + fault[x]


@compiled(fastmath=_LOOSE)
def forward_groups(maps, start, signals, updates, length, out, kept, matched, begin, end, size):
    """Filters groups of trials.

    Args:
        maps: ([L | b] [D, D + 1], O [D, P], [I | o] [P, D + 1], noise [D, D]), flat.
        start: (mean [1, D, B], covariance [1, D D, B]) of the first states.
        signals: (score [T, D, B], information [T or 1, D D, B or 1], drive [T, D, B]).
        updates: bool [T], whether a step's data change the state.
        length: [B], 0 for lanes without a trial.
        out: (increment [T, 1, B], m^- [T, D, B], P^- [T, D D, B], m, P).
        kept: [G, T, D (D + 1) lanes], receives [J | f]; or [G, 1, ...] where no adjoint follows
            (unused with `matched`).
        matched: None, or anything else where moments are carried exactly, not by [J | f]; there is
            a compiled version of each.
        begin: First group.
        end: Last group, excluded.
        size: Unused; a common signature of what is shared between threads.
    """
    linear, outer, inner, noise = maps
    score, information, drive = signals
    increment, before_all, before_cov_all, after_all, after_cov_all = out
    dim, units = score.shape[1], inner.size // (score.shape[1] + 1)
    r, p = room(dim * dim), room(dim * dim)
    before_cov, after_cov = room(dim * dim), room(dim * dim)
    q, m, before, after = room(dim), room(dim + 1), room(dim), room(dim)
    m[dim * LANES :] = 1.0
    scratch = room(dim * dim), room(dim * dim), room(dim * dim), room(dim)
    on, gain, fault, eye = room(units), room(1), room(1), np.eye(dim).reshape(-1)
    exact, lane_maps = moment_room(units, dim, matched), repeated(maps, matched)
    for group in range(begin, end):
        first = group * LANES
        longest, shortest = _lasts(length, first)
        fault[:] = 0.0
        for t in range(longest):
            ended = t >= shortest
            if t == 0:
                read(start[0], 0, first, before, t, length, ended)
                read(start[1], 0, first, before_cov, t, length, ended)
            else:
                if matched is not None:
                    predict_moments(lane_maps, m, p, noise, exact, before, before_cov, units, dim)
                else:
                    jacobian = kept[group, t if kept.shape[1] > 1 else 0]
                    gates(inner, m, on, units, dim)
                    gated_product(linear, outer, on, inner, jacobian, units, dim)
                    _predict(m, p, jacobian, noise, scratch[0], before, before_cov, dim)
                add(drive, t, first, before, length, ended)
                if ended:
                    blank(before, dim, t, length, first)
                    blank(before_cov, dim * dim, t, length, first)
            read(score, t, first, q, t, length, ended)
            if t == 0 or information.shape[0] > 1 or ended:
                read(information, t if information.shape[0] > 1 else 0, first, r, t, length, ended)
            _update(q, r, before, before_cov, eye, scratch, after, after_cov, dim)
            _gained(q, before, after, scratch, gain, fault, increment, first, t, length, dim)
            write(before, before_all, t, first)
            write(before_cov, before_cov_all, t, first)
            write(after, after_all, t, first)
            write(after_cov, after_cov_all, t, first)
            if updates[t]:
                copy(m, after)
                copy(p, after_cov)
            else:
                copy(m, before)
                copy(p, before_cov)
        for x in out:
            x[longest:, :, first : first + LANES] = 0.0


@compiled(fastmath=_LOOSE, inline="always")
def _back_update(q, r, m, p, before, c, to_m, to_p, work, to_q, to_r, size):
    """Cotangents of an update; those of the filtered moments become those of the predicted ones.

    Args:
        q: Score.
        r: Information.
        m: Filtered mean.
        p: Filtered covariance.
        before: Predicted mean.
        c: Cotangent of the increment.
        to_m: That of the filtered mean, replaced by that of the predicted mean.
        to_p: That of the filtered covariance, replaced by that of the predicted one.
        work: (P Pbar P, scratch, scratch, scratch, scratch); the first is given.
        to_q: Receives the cotangent of the score.
        to_r: Is given that of the information, added.
        size: D.
    """
    around, f, product, g, h = work
    multiply(h, 1, p, size, 1, to_m, 1, 1, size, size, 1, 1.0, 0)
    copy(g, q)
    multiply(g, 1, r, size, 1, before, 1, 1, size, size, 1, -1.0, 1)
    balance(c, h, m, g, to_m, p, r, around, to_q, to_r, to_p, f, product, size)
    multiply(f, size, p, size, 1, r, size, 1, size, size, size, -1.0, 1)
    multiply(product, size, to_p, size, 1, f, size, 1, size, size, size, 1.0, 1)
    multiply_symmetric(to_p, f, 1, size, product, size, 1, size, 1.0, 0, 0)
    multiply(to_m, 1, g, 1, 1, c, 1, 1, size, 1, 1, 1.0, 1)
    multiply(h, 1, m, 1, 1, c, 1, 1, size, 1, 1, 1.0, 1)
    multiply(h, 1, before, 1, 1, c, 1, 1, size, 1, 1, -1.0, 1)
    multiply(to_m, 1, r, size, 1, h, 1, 1, size, size, 1, -1.0, 1)


@compiled(fastmath=_LOOSE, inline="always")
def _turn(third, t, first, p, around, c, to_m, length, size):
    """Subtracts sum_ij (X + c P / 2)_ij dR_ij/dz_k from the cotangent of the filtered mean."""
    for x in range(LANES):
        if first + x < third.shape[0] and t < length[first + x]:
            block = third[first + x, t]
            for ij in range(size * size):
                weight = around[ij * LANES + x] + 0.5 * c[x] * p[ij * LANES + x]
                for k in range(size):
                    to_m[k * LANES + x] -= weight * block[ij, k]


@compiled(fastmath=_LOOSE, inline="always")
def _back_predict(m, p, jacobian, to_m, to_p, work, e, size):
    """Writes what a prediction says about [J | f] into e, and pulls the cotangents back.

    The filtered mean m is followed by a row of ones.
    """
    wide = size + 1
    multiply(work, size, to_p, size, 1, jacobian, wide, 1, size, size, size, 2.0, 0)
    multiply(e, wide, to_m, 1, 1, m, 1, 1, size, 1, wide, 1.0, 0)
    multiply(e, wide, work, size, 1, p, size, 1, size, size, size, 1.0, 1)
    multiply_symmetric(to_p, jacobian, 1, wide, work, size, 1, size, 0.5, 0, 0)
    copy(work, to_m)
    multiply(to_m, 1, jacobian, 1, wide, work, 1, 1, size, size, 1, 1.0, 0)


@compiled(inline="always")
def _read_passed(out, updated, t, first, m, p, length, ended):
    """Copies the moments that a step passed on to the next."""
    if updated:
        read(out[3], t, first, m, t, length, ended)
        read(out[4], t, first, p, t, length, ended)
    else:
        read(out[1], t, first, m, t, length, ended)
        read(out[2], t, first, p, t, length, ended)


@compiled(inline="always")
def _receive(in_mean, in_cov, t, first, to_m, to_p, length, ended, size):
    """Adds cotangents from outside, where there are any."""
    if in_mean.size:
        add(in_mean, t, first, to_m, length, ended)
    if in_cov.size:
        add_symmetric(in_cov, t, first, to_p, length, ended, size)


@compiled(inline="always")
def _learn(outer, on, inner, e, to_linear, to_outer, to_inner, units, size):
    """Adds what E, the gradient in [J | f], says about L, b, O (transposed), I and o."""
    wide = size + 1
    accumulate(to_linear, e)
    add_gated(to_outer, size, on, inner, wide, 1, e, 1, wide, units, wide, size)
    add_gated(to_inner, wide, on, outer, 1, units, e, wide, 1, units, size, wide)


@compiled(fastmath=_LOOSE)
def _back_map(
    matched, maps, lane_maps, m, p, jacobian, exact, rows, to_m, to_p, learned, wanted, units, size
):
    """Pulls cotangents of a prediction back, and adds what it says about the map."""
    if matched is not None:
        back_moments(lane_maps, m, p, exact, to_m, to_p, learned, wanted, units, size)
    else:
        (_, outer, inner, _), (on, work, e) = maps, rows
        to_linear, to_outer, to_inner = learned
        _back_predict(m, p, jacobian, to_m, to_p, work, e, size)
        if wanted:
            gates(inner, m, on, units, size)
            _learn(outer, on, inner, e, to_linear, to_outer, to_inner, units, size)


@compiled(inline="always")
def _sum_lanes(rows, totals):
    """Adds the sum over lanes of each row to its total."""
    for i in range(totals.size):
        for x in range(LANES):
            totals[i] += rows[i * LANES + x]


@compiled(fastmath=_LOOSE)
def adjoint_groups(
    maps, signals, updates, length, out, kept, matched, third, given, wanted, sums, to_start,
    to_signals, begin, end, size,
):  # fmt: skip
    """Propagates cotangents of the results back to everything else.

    Args:
        maps: As in `forward_groups`.
        signals: As in `forward_groups`.
        updates: As in `forward_groups`.
        length: As in `forward_groups`.
        out: As the forward pass left it.
        kept: As the forward pass left it.
        matched: As in `forward_groups`.
        third: dR_ij/dz_k [B, T, D D, D], or empty; here trials come first.
        given: Cotangents of `out`; an empty one is zero.
        wanted: (map, information): whether their gradients are.
        sums: Gradients of `maps` (that of O transposed), [G, ...] each, zeros.
        to_start: Receives those of the first states, as in `forward_groups`.
        to_signals: Receives those of the signals; information as [T or 1, D D, B].
        begin: First group.
        end: Last group, excluded.
        size: As in `forward_groups`.
    """
    score, information, _ = signals
    _, before_all, _, after_all, after_cov_all = out
    to_score, to_information, to_drive = to_signals
    dim, units = score.shape[1], maps[2].size // (score.shape[1] + 1)
    (r, p, to_r, to_p, later_p, around), (f, work, to_noise) = _matrices(dim)
    (q, before, to_q), (to_m, later_m, g, h) = _vectors(dim)
    m, c, rows = room(dim + 1), room(1), (room(units), work, room(dim * (dim + 1)))
    m[dim * LANES :] = 1.0
    learned = room(dim * (dim + 1)), room(units * dim), room(units * (dim + 1))
    exact, lane_maps = moment_room(units, dim, matched), repeated(maps, matched)
    for group in range(begin, end):
        first = group * LANES
        longest, shortest = _lasts(length, first)
        for x in (later_m, later_p, to_r, to_noise, learned[0], learned[1], learned[2]):
            x[:] = 0.0
        _clear((*to_start, *to_signals), to_drive, longest, first)
        for t in range(longest - 1, -1, -1):
            ended = t >= shortest
            row = t if information.shape[0] > 1 else 0
            read(score, t, first, q, t, length, ended)
            read(information, row, first, r, t, length, ended)
            read(before_all, t, first, before, t, length, ended)
            read(after_all, t, first, m, t, length, ended)
            read(after_cov_all, t, first, p, t, length, ended)
            for x in (c, to_m, to_p, around):
                x[:] = 0.0
            if given[0].size:
                add(given[0], t, first, c, length, ended)
            _receive(given[3], given[4], t, first, to_m, to_p, length, ended, dim)
            if updates[t]:
                _join(to_m, to_p, later_m, later_p)
            if wanted[1] or third.size:
                multiply(f, dim, p, dim, 1, to_p, dim, 1, dim, dim, dim, 1.0, 0)
                multiply_symmetric(around, f, dim, 1, p, dim, 1, dim, 1.0, 0, 0)
            _turn(third, t, first, p, around, c, to_m, length, dim)
            scratch = around, f, work, g, h
            _back_update(q, r, m, p, before, c, to_m, to_p, scratch, to_q, to_r, dim)
            write(to_q, to_score, t, first)
            if t == 0 or information.shape[0] > 1:
                write(to_r, to_information, row, first)
                to_r[:] = 0.0
            if not updates[t]:
                _join(to_m, to_p, later_m, later_p)
            _receive(given[1], given[2], t, first, to_m, to_p, length, ended, dim)
            if t == 0:
                write(to_m, to_start[0], 0, first)
                write(to_p, to_start[1], 0, first)
                break
            accumulate(to_noise, to_p)
            write(to_m, to_drive, t, first)
            _read_passed(out, updates[t - 1], t - 1, first, m, p, length, ended)
            _back_map(
                matched, maps, lane_maps, m, p, kept[group, t if kept.shape[1] > 1 else 0], exact,
                rows, to_m, to_p, learned, wanted[0], units, dim,
            )  # fmt: skip
            copy(later_m, to_m)
            copy(later_p, to_p)
        for x, total in zip((learned[0], learned[1], learned[2], to_noise), sums):
            _sum_lanes(x, total[group])
