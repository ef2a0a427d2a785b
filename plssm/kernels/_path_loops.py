"""Compiled passes over a batch of Gaussian paths: factor, draw, adjoint, quadratic form.

A pass works on trials `first` to `last` only, so that two threads can share a batch, and on flat
arrays. `kept` holds the blocks [I_t, H_t] of every step (see `_path_blocks`). What lies beyond a
trial's end, or belongs to a trial that failed, is never read, and zero in every result. Blocks of
the precision may be shared by all trials or steps: `strides` are (between trials, between steps)
of the diagonal blocks, then of the others, zero on a shared axis.
"""

from __future__ import annotations

import numpy as np

from plssm.kernels._chain_loops import block_size, log_pivots
from plssm.kernels._compile import compiled
from plssm.kernels._path_vectors import (
    ascend,
    carry,
    combine,
    descend,
    finish_diagonal,
    gain,
    place,
    place_last,
    pull,
    subtract_dots,
    subtract_outer,
    subtract_symmetric,
    weigh_order,
)
from plssm.kernels._vector_blocks import eliminate, invert_factor, subtract_rows

__all__ = ["adjoint_trials", "draw_trials", "quadratic_trials", "select_trials"]


@compiled
def _factor(kept, rows, diag, off, strides, y, pivots, b, n, steps, size):
    """Factors a trial and turns its shift into y = L^-1 r; returns 0 or 1 + the step it failed."""
    m = len(size)
    block = block_size(size)
    for t in range(n):
        here = block * (1 + (t & 1))
        before = block * (2 - (t & 1)) if t > 0 else 0
        step = b * steps + t
        if t + 1 < n:
            coupling = b * strides[2] + t * strides[3]
            place(rows, here, diag, b * strides[0] + t * strides[1], off, coupling, size)
        else:
            place_last(rows, here, diag, b * strides[0] + t * strides[1], size)
        if not eliminate(rows, here, before, y, step * m, (step - min(t, 1)) * m, size):
            return 1 + t
        pivots[step] = log_pivots(rows, here, size)
        at = step * block
        kept[at : at + block // 2] = 0.0
        invert_factor(kept, at, rows, here, size)
        gain(kept, at + block // 2, rows, here, kept, at, size)
    return 0


@compiled
def draw_trials(
    fresh, kept, diag, off, strides, y, pivots, noise, paths, drawn, norms, length, status, first,
    last, size,
):  # fmt: skip
    """Writes the mean and samples of trials, and factors them before when they are `fresh`.

    Args:
        fresh: Whether to factor: writes kept, log pivots and status, and turns y from r to L^-1 r.
        kept: The factor.
        diag: [B or 1, T or 1, M, M].
        off: [B or 1, T-1 or 1, M, M].
        strides: Of both.
        y: [B, T, M].
        pivots: [B, T].
        noise: [S, B, T, M].
        paths: [1 + S, B, T, M], receives the mean and the samples' differences from it.
        drawn: [S, B, T, M], receives the samples.
        norms: [S, B], receives the sums of squares of the noise.
        length: [B].
        status: [B].
        first: First trial.
        last: Last trial, excluded.
        size: Tuple of length M.
    """
    m = len(size)
    block = block_size(size)
    trials = length.size
    steps = pivots.size // trials
    samples = norms.size // trials
    whole = trials * steps * m
    rows = np.zeros(3 * block)
    for b in range(first, last):
        n = length[b]
        if fresh:
            status[b] = _factor(kept, rows, diag, off, strides, y, pivots, b, n, steps, size)
            pivots[b * steps + n : (b + 1) * steps] = 0.0
            if status[b] != 0:
                pivots[b * steps + status[b] - 1 : b * steps + n] = -np.inf
        n = n if status[b] == 0 else 0
        for s in range(1 + samples):
            start = s * whole + b * steps * m
            paths[start + n * m : start + steps * m] = 0.0
        for s in range(samples):
            norms[s * trials + b] = 0.0
            start = s * whole + b * steps * m
            drawn[start + n * m : start + steps * m] = 0.0
        for t in range(n - 1, -1, -1):
            z = (b * steps + t) * m
            at = (b * steps + t) * block
            ahead = m if t + 1 < n else 0
            for i in range(m):
                paths[z + i] = y[z + i]
            ascend(paths, z, z + ahead, kept, at, at + block // 2, size)
            for s in range(samples):
                here, square = (1 + s) * whole + z, 0.0
                for i in range(m):
                    x = noise[s * whole + z + i]
                    square += x * x
                    paths[here + i] = x
                norms[s * trials + b] += square
                ascend(paths, here, here + ahead, kept, at, at + block // 2, size)
                for i in range(m):
                    drawn[s * whole + z + i] = paths[z + i] + paths[here + i]


@compiled
def adjoint_trials(
    kept,
    noise,
    paths,
    cotangents,
    unmoved,
    pivots,
    lefts,
    rights,
    shift,
    diag,
    diag_rows,
    off,
    off_rows,
    length,
    status,
    first,
    last,
    size,
):
    """Writes the gradients in shift, diag and off; derivation in `gaussian_path`.

    Args:
        kept: The factor.
        noise: [S, B, T, M].
        paths: [1 + S, B, T, M], mean and the samples' differences from it.
        cotangents: [1 + S, B, T, M], gradients in the paths; overwritten.
        unmoved: 1 where the gradient in the mean is zero, and then never read; else 0.
        pivots: [B, T], gradients in the log pivots.
        lefts: [K, B, T, M], further pairs of vectors; pair k adds -(x_k y_k' + y_k x_k') / 2 to
            the blocks of the symmetric gradient.
        rights: [K, B, T, M].
        shift: [B, T, M], receives its gradient.
        diag: [B, T or 1, M, M], receives its gradient, summed over a shared time axis.
        diag_rows: Length of that axis.
        off: [B, T-1 or 1, M, M], receives its gradient.
        off_rows: Length of its time axis.
        length: [B].
        status: [B].
        first: First trial.
        last: Last trial, excluded.
        size: Tuple of length M.
    """
    m = len(size)
    steps = pivots.size // length.size
    half = block_size(size) // 2
    room = np.zeros(3 * half)
    vectors = np.zeros(6 * (half // m))
    spare = np.zeros(2 * m * m)
    each_diag, each_off = diag_rows >= steps, off_rows >= steps - 1
    for b in range(first, last):
        n = length[b] if status[b] == 0 else 0
        start = b * steps
        shift[(start + n) * m : (start + steps) * m] = 0.0
        left, right = b * diag_rows * m * m, b * off_rows * m * m
        ends = max(n - 1, 0)
        diag[left + (n * m * m if each_diag else 0) : left + diag_rows * m * m] = 0.0
        off[right + (ends * m * m if each_off else 0) : right + off_rows * m * m] = 0.0
        _descend_all(kept, cotangents, unmoved, vectors, start, n, shift.size, size)
        for t in range(n - 1, -1, -1):
            _adjoint_step(
                kept, noise, paths, cotangents, unmoved, pivots, lefts, rights, shift,
                diag if each_diag else spare, left + t * m * m if each_diag else 0,
                off if each_off else spare, right + t * m * m if each_off else m * m,
                room, vectors, start + t, t, t + 1 == n, size,
            )  # fmt: skip
            if not each_diag:
                for i in range(m * m):
                    diag[left + i] += spare[i]
            if not each_off and t + 1 < n:
                for i in range(m * m):
                    off[right + i] += spare[m * m + i]


@compiled
def _descend_all(kept, cotangents, unmoved, vectors, start, n, whole, size):
    """Turns gradients in the paths of one trial into f = L^-1 times them."""
    m = len(size)
    block = block_size(size)
    w = block // (2 * m)
    for c in range(unmoved, cotangents.size // whole):
        vectors[:w] = 0.0
        for t in range(n):
            at = (start + t) * block
            before = at - block if t > 0 else at
            carried, earlier = w * (1 + (t & 1)), w * (2 - (t & 1)) if t > 0 else 0
            descend(
                cotangents, c * whole + (start + t) * m, vectors, carried, earlier, kept, at,
                before + block // 2, size,
            )  # fmt: skip


@compiled
def _adjoint_step(
    kept, noise, paths, cotangents, unmoved, pivots, lefts, rights, shift, diag, block_at, off,
    cross, room, vectors, step, t, final, size,
):  # fmt: skip
    """One step of the way back in time."""
    m = len(size)
    block = block_size(size)
    half = block // 2
    z, at, whole = step * m, step * block, shift.size
    samples = noise.size // whole
    p, following, q = half * (t & 1), half * (1 - (t & 1)), 2 * half
    weight = 0.5 * pivots[step]
    for i in range(half):
        room[q + i] = weight * kept[at + i]
    for s in range(samples):
        f = (1 + s) * whole + z
        weigh_order(room, q, kept, at, cotangents, f, noise, s * whole + z, vectors, 0, size)
    combine(room, p, kept, at, room, q, size)
    if not final:
        carry(room, p, following, off, cross, kept, at + half, size)
    # the solution of U w = sum of the gradients in the paths
    for i in range(m):
        shift[z + i] = 0.0
        for c in range(unmoved, 1 + samples):
            shift[z + i] += cotangents[c * whole + z + i]
    ascend(shift, z, z if final else z + m, kept, at, at + half, size)
    for s in range(samples):
        f = (1 + s) * whole + z
        for i in range(m):
            vectors[i] = cotangents[f + i]
        pull(vectors, 0, kept, at, size)
        subtract_symmetric(room, p, vectors, 0, paths, f, size)
        if not final:
            subtract_outer(off, cross, vectors, 0, paths, f + m, size)
    finish_diagonal(diag, block_at, room, p, shift, z, paths, z, size)
    if not final:
        subtract_outer(off, cross, shift, z, paths, z + m, size)
        subtract_outer(off, cross, paths, z, shift, z + m, size)
    for k in range(lefts.size // whole):
        x = k * whole + z
        for i in range(m):
            vectors[i] = 0.5 * lefts[x + i]
        subtract_outer(diag, block_at, vectors, 0, rights, x, size)
        subtract_outer(diag, block_at, rights, x, vectors, 0, size)
        if not final:
            subtract_outer(off, cross, lefts, x, rights, x + m, size)
            subtract_outer(off, cross, rights, x, lefts, x + m, size)


@compiled
def quadratic_trials(
    value, mean, diag, off, strides, away, product, forms, length, status, first, last, size
):
    """Writes d = z - mean, -U d and d'U d for several paths z of every trial.

    Args:
        value: [V, B, T, M], the paths z.
        mean: [B, T, M].
        diag: [B or 1, T or 1, M, M].
        off: [B or 1, T-1 or 1, M, M].
        strides: Of both.
        away: [V, B, T, M], receives d.
        product: [V, B, T, M], receives -U d.
        forms: [V, B], receives d'U d.
        length: [B].
        status: [B].
        first: First trial.
        last: Last trial, excluded.
        size: Tuple of length M.
    """
    m = len(size)
    trials = length.size
    whole = mean.size
    steps = whole // (trials * m)
    for v in range(forms.size // trials):
        for b in range(first, last):
            n = length[b] if status[b] == 0 else 0
            start = v * whole + b * steps * m
            away[start + n * m : start + steps * m] = 0.0
            product[start + n * m : start + steps * m] = 0.0
            for i in range(n * m):
                away[start + i] = value[start + i] - mean[b * steps * m + i]
                product[start + i] = 0.0
            for t in range(n):
                z, at = start + t * m, b * strides[0] + t * strides[1]
                subtract_rows(product, z, away, z, diag, at, size)
                if t + 1 < n:
                    at = b * strides[2] + t * strides[3]
                    subtract_dots(product, z, away, z + m, off, at, size)
                    subtract_rows(product, z + m, away, z, off, at, size)
            total = 0.0
            for i in range(n * m):
                total -= away[start + i] * product[start + i]
            forms[v * trials + b] = total


@compiled
def select_trials(kept, covariance, cross, length, status, first, last, size):
    """Writes the lag-0 and lag-1 blocks of the inverse.

    Args:
        kept: The factor.
        covariance: [B, T, M, M], receives P_t.
        cross: [B, T-1, M, M], receives Cov(z_t, z_{t+1}).
        length: [B].
        status: [B].
        first: First trial.
        last: Last trial, excluded.
        size: Tuple of length M.
    """
    m = len(size)
    half = block_size(size) // 2
    steps = covariance.size // (length.size * m * m)
    room = np.zeros(3 * half)
    zeros = np.zeros(m)
    for b in range(first, last):
        n = length[b] if status[b] == 0 else 0
        covariance[(b * steps + n) * m * m : (b + 1) * steps * m * m] = 0.0
        ends = b * (steps - 1) + max(n - 1, 0)
        cross[ends * m * m : (b + 1) * (steps - 1) * m * m] = 0.0
        for t in range(n - 1, -1, -1):
            step = b * steps + t
            at, p, q = 2 * half * step, half * (t & 1), 2 * half
            for i in range(half):
                room[q + i] = 0.5 * kept[at + i]
            combine(room, p, kept, at, room, q, size)
            if t + 1 < n:
                lagged = (b * (steps - 1) + t) * m * m
                carry(room, p, half - p, cross, lagged, kept, at + half, size)
                for i in range(m * m):
                    cross[lagged + i] *= 0.5
            finish_diagonal(covariance, step * m * m, room, p, zeros, 0, zeros, 0, size)
