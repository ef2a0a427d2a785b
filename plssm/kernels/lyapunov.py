"""Growth of tangent vectors along an orbit of a rectified-linear map."""

from __future__ import annotations

import math

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._relu_step import (
    add_matrix_vector,
    dense,
    form_arrays,
    mean_step,
    region_jacobian,
)

__all__ = ["lyapunov_sums", "lyapunov_sums_plain"]

_LOOSE = {"contract", "reassoc", "nsz"}
_EPSILON = 2.220446049250313e-16


@compiled(fastmath=_LOOSE)
def _dot(x, y):
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@compiled(fastmath=_LOOSE)
def _project_out(rows, k):
    """Removes from row k its components along the rows above."""
    for j in range(k):
        overlap = _dot(rows[j], rows[k])
        for i in range(rows.shape[1]):
            rows[k, i] -= overlap * rows[j, i]


@compiled(fastmath=_LOOSE)
def _orthonormalise(rows, growth):
    """Modified Gram-Schmidt of the rows, repeated where a row shrinks; growth gets the norms.

    A row that is zero to rounding becomes zero.
    """
    size = rows.shape[0]
    largest = 0.0
    for k in range(size):
        largest = max(largest, _dot(rows[k], rows[k]))
    floor = 2.0 * size * _EPSILON * math.sqrt(largest)
    for k in range(size):
        norm = math.sqrt(_dot(rows[k], rows[k]))
        for _ in range(3):
            before = norm
            _project_out(rows, k)
            norm = math.sqrt(_dot(rows[k], rows[k]))
            if not norm < 0.7 * before:
                break
        if norm <= floor:
            norm = 0.0
        growth[k] = norm
        scale = 1.0 / norm if norm > 0.0 else 0.0
        for i in range(size):
            rows[k, i] *= scale


@compiled(fastmath=_LOOSE)
def _push(rows, jacobian, out):
    """Writes J v for every row v into out, with the transposed Jacobian given."""
    for k in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            out[k, i] = 0.0
        add_matrix_vector(jacobian, rows[k], out[k])


@compiled
def _finite(x):
    for value in x.flat:
        if not math.isfinite(value):
            return False
    return True


@compiled
def _follow(form, z, tangent, drive, steps, transient, warmup, every, sums):
    """Runs the orbit from z; returns 0 or the 1-based step that diverged.

    Changes z, the tangent vectors (rows) and the sums in place.
    """
    size = z.size
    pre, new = np.empty(form[6].size), np.empty(size)
    pushed, jacobian = np.empty((size, size)), np.empty((size, size))
    growth = np.empty(size)
    since = 0
    for t in range(transient + warmup + steps):
        if t >= transient:
            region_jacobian(form, z, pre, jacobian)
            _push(tangent, jacobian, pushed)
            tangent, pushed = pushed, tangent
            since += 1
            counted = t - transient - warmup + 1
            if since == every or counted == 0 or counted == steps:
                if not _finite(tangent):
                    return t + 1
                _orthonormalise(tangent, growth)
                since = 0
                if counted > 0:
                    for k in range(size):
                        sums[k] += math.log(growth[k]) if growth[k] > 0.0 else -np.inf
        mean_step(form, z, pre, new)
        if drive.shape[0] > 0:
            add_matrix_vector(form[7], drive[t], new)
        for i in range(size):
            z[i] = new[i]
        if not _finite(z):
            return t + 1
    return 0


def lyapunov_sums(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    start: np.ndarray,
    steps: int,
    *,
    drive: np.ndarray | None = None,
    transient: int = 0,
    warmup: int = 0,
    every: int = 1,
    tangent: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    r"""Sums the logarithms of the growth of orthogonal tangent vectors along an orbit.

    .. math:: J_t Q_{t-1} = Q_t R_t, \qquad \sum_t \log R_{t,ii}

    J_t is taken at the state before the step. The orbit runs `transient` steps alone, `warmup`
    steps with tangent vectors, then `steps` steps that count.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].
        start: [M], first state.
        steps: Steps that count.
        drive: [transient + warmup + steps, K], inputs of the steps arrived at.
        transient: Steps before the tangent vectors start.
        warmup: Steps of the tangent vectors before anything counts.
        every: Steps between two decompositions.
        tangent: [M, M], orthonormal columns Q_0; the identity when None.

    Returns:
        The sums [M] in the order of the tangent vectors (-inf for a direction that collapses to
        rounding), the last state [M], and 0 or the 1-based step at which the orbit or the tangent
        vectors left the finite numbers (the sums are then of no use).

    Raises:
        ValueError: If the shapes do not fit together.

    References:
        Benettin et al. 1980, doi:10.1007/BF02128236.
    """
    form = form_arrays(linear, bias, outer, inner, offset, inputs)
    z = dense("start", np.array(start, dtype=np.float64), form[3].shape)
    total, width = transient + warmup + steps, form[7].shape[0]
    drive = np.empty((0, width)) if drive is None else dense("drive", drive, (total, width))
    sums = np.zeros(z.size)
    rows = np.eye(z.size) if tangent is None else np.array(np.transpose(tangent), order="C")
    rows = dense("tangent", rows, (z.size, z.size))
    failed = _follow(form, z, rows, drive, steps, transient, warmup, every, sums)
    return sums, z, failed


def lyapunov_sums_plain(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    start: np.ndarray,
    steps: int,
    *,
    drive: np.ndarray | None = None,
    transient: int = 0,
    warmup: int = 0,
    tangent: np.ndarray | None = None,
) -> np.ndarray:
    """Computes the sums of `lyapunov_sums` in plain numpy, by Householder QR at every step.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].
        start: [M], first state.
        steps: Steps that count.
        drive: [transient + warmup + steps, K], or None.
        transient: Steps before the tangent vectors start.
        warmup: Steps of the tangent vectors before anything counts.
        tangent: [M, M], orthonormal columns, or None.

    Returns:
        [M], the sums.
    """
    z = np.asarray(start, dtype=np.float64)
    tangent = np.eye(z.size) if tangent is None else tangent
    sums = np.zeros(z.size)
    for t in range(transient + warmup + steps):
        pre = inner @ z + offset
        if t >= transient:
            tangent, growth = np.linalg.qr((linear + (outer * (pre > 0)) @ inner) @ tangent)
            if t >= transient + warmup:
                sums += np.log(np.abs(np.diag(growth)))
        z = linear @ z + bias + outer @ np.maximum(pre, 0.0)
        z = z if drive is None else z + inputs @ drive[t]
    return sums
