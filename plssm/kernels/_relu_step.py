"""One step of a rectified-linear map, compiled, shared by the recurrences."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["add_matrix_vector", "dense", "form_arrays", "mean_step", "region_jacobian"]

_LOOSE = {"contract", "reassoc", "nsz"}


def dense(name, x, wanted, shared=0):
    """Returns x as a contiguous writable float64 array of one type for the compiled loops.

    Args:
        name: Name of the argument, for the message.
        x: Array-like.
        wanted: Shape.
        shared: How many leading axes may have length 1.

    Raises:
        ValueError: If x has another shape.
    """
    x = np.require(x, dtype=np.float64, requirements=["C", "A", "W"])
    fits = x.ndim == len(wanted) and all(
        got == want or (axis < shared and got == 1)
        for axis, (got, want) in enumerate(zip(x.shape, wanted, strict=True))
    )
    if not fits:
        raise ValueError(f"{name}: got shape {x.shape}, wanted {tuple(wanted)}")
    return x


def form_arrays(linear, bias, outer, inner, offset, inputs):
    """Arranges the arrays of a ReLU form for the compiled loops.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].

    Returns:
        (identity, off, on, bias, outer', inner', offset, inputs'): whether the gates are the
        states themselves; transposed linear part without gates, and with all gates on (only
        used for identity gates); the rest contiguous, matrices transposed.
    """
    linear, bias, outer, inner, offset, inputs = (
        np.asarray(x, dtype=np.float64) for x in (linear, bias, outer, inner, offset, inputs)
    )
    size, gates = outer.shape
    identity = gates == size and not offset.any() and np.array_equal(inner, np.eye(size))
    off = np.array(linear.T, order="C")
    on = np.array((linear + outer).T, order="C") if identity else off
    rest = (np.array(x, order="C") for x in (bias, outer.T, inner.T, offset, inputs.T))
    return (identity, off, on, *rest)


@compiled(fastmath=_LOOSE)
def add_matrix_vector(transposed, x, out):
    """Adds A x to out, for A given by its transpose (A's columns are rows of memory)."""
    for j in range(x.size):
        value = x[j]
        column = transposed[j]
        for i in range(out.size):
            out[i] += value * column[i]


@compiled(fastmath=_LOOSE)
def mean_step(form, z, pre, out):
    """Writes the noise-free next state without inputs into out; pre [P] is scratch."""
    identity, off, on, bias, outer, inner, offset, _ = form
    for i in range(out.size):
        out[i] = bias[i]
    if identity:
        for j in range(z.size):
            value = z[j]
            column = on[j] if value > 0.0 else off[j]
            for i in range(out.size):
                out[i] += value * column[i]
        return
    add_matrix_vector(off, z, out)
    for p in range(pre.size):
        pre[p] = offset[p]
    add_matrix_vector(inner, z, pre)
    for p in range(pre.size):
        value = pre[p]
        if not value <= 0.0:  # NaN goes through
            column = outer[p]
            for i in range(out.size):
                out[i] += value * column[i]


@compiled(fastmath=_LOOSE)
def region_jacobian(form, z, pre, out):
    """Writes the transposed Jacobian at z into out [M, M]; pre [P] is scratch."""
    identity, off, on, _, outer, inner, offset, _ = form
    size = z.size
    if identity:
        for j in range(size):
            column = on[j] if z[j] > 0.0 else off[j]
            for i in range(size):
                out[j, i] = column[i]
        return
    for j in range(size):
        for i in range(size):
            out[j, i] = off[j, i]
    for p in range(pre.size):
        pre[p] = offset[p]
    add_matrix_vector(inner, z, pre)
    for p in range(pre.size):
        if pre[p] > 0.0:
            column = outer[p]
            for j in range(size):
                weight = inner[j, p]
                for i in range(size):
                    out[j, i] += weight * column[i]
