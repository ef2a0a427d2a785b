"""One-sided slopes of a piecewise-quadratic log joint at the kinks along a line of paths."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled

__all__ = ["ray_slopes"]


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _share(e, c, precision):
    """Returns what a transition adds to the slope at 0, and to its change."""
    start = turn = 0.0
    for i in range(e.size):
        pulled = 0.0
        for j in range(e.size):
            pulled += precision[i, j] * c[j]
        start -= e[i] * pulled
        turn -= c[i] * pulled
    return start, turn


@compiled
def _sweep(e, c, precision, outer_t, length, at, hinge, gate, along, start, turn, before, after):
    """Goes through the kinks in order."""
    for k in range(length.size):
        t, p = at[k], hinge[k]
        before[k] = start + length[k] * turn
        old = _share(e[t], c[t], precision)
        sign = -1.0 if along[k] > 0.0 else 1.0
        for i in range(e.shape[1]):
            e[t, i] += sign * outer_t[p, i] * gate[k]
            c[t, i] += sign * outer_t[p, i] * along[k]
        new = _share(e[t], c[t], precision)
        start += new[0] - old[0]
        turn += new[1] - old[1]
        after[k] = start + length[k] * turn
    return start + turn


def ray_slopes(
    residual: np.ndarray,
    change: np.ndarray,
    precision: np.ndarray,
    outer: np.ndarray,
    length: np.ndarray,
    at: np.ndarray,
    hinge: np.ndarray,
    gate: np.ndarray,
    along: np.ndarray,
    *,
    start: float,
    turn: float,
) -> tuple[float, np.ndarray, np.ndarray, float]:
    r"""Derivatives of the log joint along a ray just before and just after each kink.

    .. math::
        \frac{d}{ds} \log p(Y, z + s\,d) = a + b\,s
        - \sum_t \left( e_t + s\,c_t \right)^\top \Sigma^{-1} c_t

    Between two kinks this is a straight line. Where a gate of transition t becomes positive, or
    stops to be so, e and c of that transition change and nothing else does.

    Args:
        residual: e at s = 0, [T-1, M].
        change: c just after s = 0, [T-1, M].
        precision: Inverse of the process noise covariance, [M, M].
        outer: Weights of the hinges in the map, [M, P].
        length: s of the kinks, [K], rising.
        at: Their transitions, [K].
        hinge: Their hinges, [K].
        gate: Their gates at s = 0, [K].
        along: By how much these change with s, [K].
        start: a, from the first state and the observations.
        turn: b, from there, too.

    Returns:
        The slope just after 0; those just before and just after the kinks, [K] each (kinks at one
        place come one after the other); and that just before 1, with all kinks passed.
    """
    e, c = (np.array(x, dtype=np.float64, order="C") for x in (residual, change))
    precision, outer_t = (np.require(x, np.float64, "CW") for x in (precision, outer.T))
    pulled = c @ precision
    start, turn = start - float((e * pulled).sum()), turn - float((c * pulled).sum())
    before, after = np.empty(len(length)), np.empty(len(length))
    places = (np.require(x, np.int64, "CW") for x in (at, hinge))
    values = (np.require(x, np.float64, "CW") for x in (gate, along))
    length = np.require(length, np.float64, "CW")
    end = _sweep(
        e, c, precision, outer_t, length, *places, *values, start, turn, before, after
    )  # fmt: skip
    return start, before, after, end
