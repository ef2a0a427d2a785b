"""Compiled vector fields and their integration: Runge-Kutta 4, with additive noise if wanted.

Nothing is compiled before the first call; a compiled path is kept on disk for later processes.
Every path has the same arguments: the state ``x`` [dim], which is moved on, the parameters ``p``,
noise increments ``kicks`` [rows, inner, dim] (no rows: no noise), the number ``first`` of the
first row, the time ``dt`` between rows, ``inner`` steps in it, and the rows ``out`` [rows, dim] to
fill.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = [
    "bursting_path",
    "duffing_path",
    "lorenz63_path",
    "lorenz96_path",
    "rossler_path",
    "van_der_pol_path",
]


@njit(cache=True)
def _lorenz63(time, x, p, out):  # noqa: ANN001, ANN202
    out[0] = p[0] * (x[1] - x[0])
    out[1] = x[0] * (p[1] - x[2]) - x[1]
    out[2] = x[0] * x[1] - p[2] * x[2]


@njit(cache=True)
def _lorenz96(time, x, p, out):  # noqa: ANN001, ANN202
    n = len(x)
    for i in range(n):
        out[i] = (x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + p[0]


@njit(cache=True)
def _rossler(time, x, p, out):  # noqa: ANN001, ANN202
    out[0] = -x[1] - x[2]
    out[1] = x[0] + p[0] * x[1]
    out[2] = p[1] + x[2] * (x[0] - p[2])


@njit(cache=True)
def _van_der_pol(time, x, p, out):  # noqa: ANN001, ANN202
    out[0] = x[1]
    out[1] = p[0] * (1.0 - x[0] * x[0]) * x[1] - x[0]


@njit(cache=True)
def _duffing(time, x, p, out):  # noqa: ANN001, ANN202
    force = p[3] * math.cos(p[4] * time)
    out[0] = x[1]
    out[1] = force - p[0] * x[1] - p[1] * x[0] - p[2] * x[0] ** 3


@njit(cache=True)
def _gate(voltage, half, slope):  # noqa: ANN001, ANN202
    return 1.0 / (1.0 + math.exp((half - voltage) / slope))


@njit(cache=True)
def _bursting(time, x, p, out):  # noqa: ANN001, ANN202
    v, n, h = x[0], x[1], x[2]
    leak = p[1] * (v - p[2])
    sodium = p[3] * _gate(v, p[5], p[6]) * (v - p[4])
    potassium = p[7] * n * (v - p[8])
    slow = p[12] * h * (v - p[8])
    nmda = p[16] / (1.0 + 0.33 * math.exp(-0.0625 * v)) * (v - p[17])
    out[0] = (p[18] - leak - sodium - potassium - slow - nmda) / p[0]
    out[1] = (_gate(v, p[9], p[10]) - n) / p[11]
    out[2] = (_gate(v, p[13], p[14]) - h) / p[15]


# Inlined into each entry: a field handed on as an argument could not be kept on disk.
@njit(inline="always")
def _runge_kutta(field, time, x, p, h, slope, probe, total):  # noqa: ANN001, ANN202
    field(time, x, p, slope)
    for i in range(len(x)):
        total[i] = slope[i]
        probe[i] = x[i] + 0.5 * h * slope[i]
    field(time + 0.5 * h, probe, p, slope)
    for i in range(len(x)):
        total[i] += 2.0 * slope[i]
        probe[i] = x[i] + 0.5 * h * slope[i]
    field(time + 0.5 * h, probe, p, slope)
    for i in range(len(x)):
        total[i] += 2.0 * slope[i]
        probe[i] = x[i] + h * slope[i]
    field(time + h, probe, p, slope)
    for i in range(len(x)):
        x[i] += h / 6.0 * (total[i] + slope[i])


@njit(inline="always")
def _path(field, x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN202
    # `out[k]` is the state at (first + k) dt; `x` is left at the state after the last row.
    dim = len(x)
    slope, probe, total = np.empty(dim), np.empty(dim), np.empty(dim)
    h = dt / inner
    for k in range(len(out)):
        out[k] = x
        for j in range(inner):
            _runge_kutta(field, (first + k) * dt + j * h, x, p, h, slope, probe, total)
            if len(kicks) > 0:
                for i in range(dim):
                    x[i] += kicks[k, j, i]


@njit(cache=True)
def lorenz63_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, 3] with a path of Lorenz-63."""
    _path(_lorenz63, x, p, kicks, first, dt, inner, out)


@njit(cache=True)
def lorenz96_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, dim] with a path of Lorenz-96."""
    _path(_lorenz96, x, p, kicks, first, dt, inner, out)


@njit(cache=True)
def rossler_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, 3] with a path of the Roessler system."""
    _path(_rossler, x, p, kicks, first, dt, inner, out)


@njit(cache=True)
def van_der_pol_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, 2] with a path of the van der Pol oscillator."""
    _path(_van_der_pol, x, p, kicks, first, dt, inner, out)


@njit(cache=True)
def duffing_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, 2] with a path of the Duffing oscillator."""
    _path(_duffing, x, p, kicks, first, dt, inner, out)


@njit(cache=True)
def bursting_path(x, p, kicks, first, dt, inner, out):  # noqa: ANN001, ANN201
    """Fill out [steps, 3] with a path of the bursting neuron."""
    _path(_bursting, x, p, kicks, first, dt, inner, out)
