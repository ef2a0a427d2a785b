"""Exact moments of a map of hinges and what a filter learns from them, trials side by side.

With g = I m + o, S = I P I', sd_i^2 = S_ii, a_i = g_i / sd_i, rho = S_ij / (sd_i sd_j),
p_i = Phi(a_i), n_i = phi(a_i) / sd_i, and f_i the mean of max(0, x_i), x ~ N(g, S):

    m^- = L m + b + O f, J = L + O diag(p) I, P^- = J P J' + O R O' + Sigma,
    R_ij = Cov(max(0, x_i), max(0, x_j)) - p_i S_ij p_j.

Derivatives by Price's theorem: df_i/dg_i = p_i, df_i/dS_ii = n_i / 2, dp_i/dg_i = n_i,
dp_i/dS_ii = -n_i a_i / (2 sd_i),

    dR_ii/dg_i = 2 f_i (1 - p_i) - 2 p_i n_i S_ii,
    dR_ii/dS_ii = p_i (1 - p_i) - n_i (f_i - p_i a_i sd_i),

and for i != j, with phi2(r) the density of two standard normals of correlation r at (a_i, a_j),
root = sqrt(1 - rho^2), u = (a_j - rho a_i) / root and w = (a_i - rho a_j) / root,

    R_ij = sd_i sd_j int_0^rho (rho - r) phi2(r) dr, dR_ij/dS_ij = B = int_0^rho phi2(r) dr,
    dR_ij/dg_i = sd_j (a_j B + phi(a_j) (Phi(w) - p_i) + rho phi(a_i) (Phi(u) - p_j)),
    dR_ij/dS_ii = n_i sd_j (root (u Phi(u) + phi(u)) - (a_j - rho a_i) p_j - phi(a_j)) / 2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.legendre import leggauss

from plssm.kernels._bivariate import bvn, normal_cdf, rectified_covariance
from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential
from plssm.kernels._filter_lanes import LANES, multiply, multiply_symmetric, multiply_through
from plssm.kernels._filter_rows import accumulate, copy, room, spread
from plssm.kernels._rectified_lanes import normal_lanes, rectify_units

__all__ = ["back_moments", "moment_room", "predict_moments", "repeated"]

_LOOSE = {"contract", "nsz"}
_TWO_PI = 2.0 * math.pi
_SMALLEST, _FAR, _KNOWN = 1e-150, 38.0, 1e-24
_COUNTS, _SERVED = (4, 6, 8, 12, 20), np.array([0.08, 0.25, 0.4, 0.6, 0.8])
_NODES = np.concatenate([0.5 + 0.5 * leggauss(n)[0] for n in _COUNTS])
_WEIGHTS = np.concatenate([0.5 * leggauss(n)[1] for n in _COUNTS]) / _TWO_PI
_FIRST = np.concatenate([[0], np.cumsum(_COUNTS)])


@compiled
def moment_room(units, size, wanted):
    """Scratch of the functions below, written before it is read; None if `wanted` is None."""
    if wanted is None:
        return None
    pairs = units * (units - 1) // 2
    return (
        (room(units), room(units), room(units), room(units), room(units), room(units),
         room(units), room(units)),
        (room(pairs), room(pairs), room(pairs), room(2 * pairs), room(2 * pairs),
         room(2 * pairs)),
        (room(units * units), room(units * units), room(units * size), room(size * units)),
        (room(size * size), room(size * size), room(size * units)),
        (room(units), room(units * units), room(units * units), room(size * size)),
        (room(units * (size + 1)), room(size * (size + 1))),
    )  # fmt: skip


@compiled
def _repeated(values):
    """Single numbers, in all lanes."""
    out = room(values.size)
    spread(values, out)
    return out


@compiled
def repeated(maps, wanted):
    """The maps (but for the noise), in all lanes; None if `wanted` is None."""
    if wanted is None:
        return None
    linear, outer, inner, _ = maps
    return _repeated(linear), _repeated(outer), _repeated(inner)


@compiled(fastmath=_LOOSE)
def _correlated(rho, above, product, norm, together, bent):
    """Integrals from 0 to rho of phi2(a, b; r) dr and of (rho - r) phi2(a, b; r) dr, elementwise.

    Args:
        rho: Correlations.
        above: The larger of them, up to what the rules serve.
        product: a b.
        norm: (a^2 + b^2) / 2.
        together: Receives the first.
        bent: Receives the second.
    """
    rule = 0
    while above > _SERVED[rule]:
        rule += 1
    for x in range(rho.size):
        together[x] = 0.0
        bent[x] = 0.0
    for k in range(_FIRST[rule], _FIRST[rule + 1]):
        node, weight = _NODES[k], _WEIGHTS[k]
        for x in range(rho.size):
            part = node * rho[x]
            square = 1.0 / (1.0 - part * part)
            height = exponential((part * product[x] - norm[x]) * square) * math.sqrt(square)
            height *= weight * rho[x]
            together[x] += height
            bent[x] += height * (rho[x] - part)


@compiled(fastmath=_LOOSE)
def _correlate(units, sd, a, both, pairs):
    """Correlations of the hinges' arguments, pair by pair, and the integrals over them."""
    rho, together, bent, product, norm, _ = pairs
    q, above, beyond = 0, 0.0, False
    for i in range(units):
        for j in range(i):
            for x in range(LANES):
                one, two = i * LANES + x, j * LANES + x
                value = both[(i * units + j) * LANES + x] / (sd[one] * sd[two])
                value = 1.0 if value > 1.0 else -1.0 if value < -1.0 else value
                rho[q] = value
                size = abs(value)
                beyond = beyond or not size <= _SERVED[-1]
                above = size if above < size <= _SERVED[-1] else above
                product[q] = a[one] * a[two]
                norm[q] = 0.5 * (a[one] * a[one] + a[two] * a[two])
                q += 1
    _correlated(rho, above, product, norm, together, bent)
    if not beyond:
        return
    q = 0
    for i in range(units):
        for j in range(i):
            for x in range(LANES):
                r = rho[q]
                if not abs(r) <= _SERVED[-1]:
                    u, v = a[i * LANES + x], a[j * LANES + x]
                    both_open = normal_cdf(u) * normal_cdf(v)
                    together[q] = bvn(u, v, r) - both_open
                    bent[q] = rectified_covariance(u, v, r) - r * both_open
                q += 1


@compiled(fastmath=_LOOSE)
def _rectified(units, singles, pairs, square):
    """Moments of the hinges' values from those of their arguments; R into the second matrix."""
    gate, variance, sd, a, opened, density, first, rest = singles
    bent = pairs[2]
    both, beyond, _, _ = square
    for i in range(units):
        for x in range(LANES):
            variance[i * LANES + x] = both[i * (units + 1) * LANES + x]
    rectify_units(gate, variance, sd, a, opened, density, first, rest)
    for x in range(units * LANES):
        if variance[x] <= _KNOWN:  # nothing depends on the spread of what is known
            density[x] = 0.0
    _correlate(units, sd, a, both, pairs)
    q = 0
    for i in range(units):
        for x in range(LANES):
            at = i * LANES + x
            beyond[i * (units + 1) * LANES + x] = rest[at] - opened[at] ** 2 * variance[at]
        for j in range(i):
            for x in range(LANES):
                value = sd[i * LANES + x] * sd[j * LANES + x] * bent[q]
                beyond[(i * units + j) * LANES + x] = value
                beyond[(j * units + i) * LANES + x] = value
                q += 1


@compiled(fastmath=_LOOSE)
def _expected_map(maps, m, p, scratch, units, size):
    """Writes all that the notes above name, and J."""
    linear, outer, inner = maps
    singles, pairs, square, (jacobian, _, open_outer), _, _ = scratch
    gate, _, _, _, opened, _, _, _ = singles
    both, _, along, _ = square
    wide = size + 1
    multiply(gate, 1, inner, wide, 1, m, 1, 1, units, wide, 1, 1.0, 0)
    multiply(along, size, inner, wide, 1, p, size, 1, units, size, size, 1.0, 0)
    multiply(both, units, along, size, 1, inner, 1, wide, units, size, units, 1.0, 0)
    _rectified(units, singles, pairs, square)
    for k in range(size):
        for i in range(units):
            for x in range(LANES):
                at = (k * units + i) * LANES + x
                open_outer[at] = outer[at] * opened[i * LANES + x]
        for j in range(size * LANES):
            jacobian[k * size * LANES + j] = linear[k * wide * LANES + j]
    multiply(jacobian, size, open_outer, units, 1, inner, wide, 1, size, units, size, 1.0, 1)


@compiled(fastmath=_LOOSE)
def predict_moments(maps, m, p, noise, scratch, before, before_cov, units, size):
    """Writes mean and covariance of the next state, but for what inputs add.

    Args:
        maps: ([L | b] [D, D + 1], O [D, P], [I | o] [P, D + 1]), repeated in all lanes.
        m: Filtered mean, followed by a row of ones.
        p: Filtered covariance.
        noise: Sigma [D, D], plain.
        scratch: Scratch, see `moment_room`.
        before: Receives m^-.
        before_cov: Receives P^-.
        units: P.
        size: D.
    """
    linear, outer, _ = maps
    _expected_map(maps, m, p, scratch, units, size)
    singles, _, (_, beyond, _, far), (jacobian, work, _), _, _ = scratch
    wide = size + 1
    multiply(before, 1, linear, wide, 1, m, 1, 1, size, wide, 1, 1.0, 0)
    multiply(before, 1, outer, units, 1, singles[6], 1, 1, size, units, 1, 1.0, 1)
    multiply(work, size, jacobian, size, 1, p, size, 1, size, size, size, 1.0, 0)
    spread(noise, before_cov)
    multiply_symmetric(before_cov, work, size, 1, jacobian, 1, size, size, 1.0, 1, 0)
    multiply(far, units, outer, units, 1, beyond, units, 1, size, units, units, 1.0, 0)
    multiply_through(before_cov, far, units, 1, outer, 1, units, size, units, 1.0, 1)


@compiled(fastmath=_LOOSE)
def _back_pairs(units, singles, pairs, to_beyond, to_gate, to_both):
    """Adds what cotangents of R_ij = R_ji say about g and S; those of S_ij are written."""
    _, _, sd, a, opened, density, _, _ = singles
    correlation, together, _, across, cdf, pdf = pairs
    count = correlation.size
    q = 0
    for i in range(units):
        for j in range(i):
            for x in range(LANES):
                one, two, rho = i * LANES + x, j * LANES + x, correlation[q]
                root = 1.0 / max(math.sqrt(max((1.0 - rho) * (1.0 + rho), 0.0)), _SMALLEST)
                across[q] = min(max((a[two] - rho * a[one]) * root, -_FAR), _FAR)
                across[count + q] = min(max((a[one] - rho * a[two]) * root, -_FAR), _FAR)
                q += 1
    normal_lanes(across, cdf, pdf)
    q = 0
    for i in range(units):
        for j in range(i):
            here, there = (i * units + j) * LANES, (j * units + i) * LANES
            for x in range(LANES):
                one, two, rho = i * LANES + x, j * LANES + x, correlation[q]
                c, open_both = to_beyond[here + x], together[q]
                to_both[here + x] = c * open_both
                to_both[there + x] = c * open_both
                root = math.sqrt(max((1.0 - rho) * (1.0 + rho), 0.0))
                u, w = cdf[q] - opened[two], cdf[count + q] - opened[one]
                p, r = density[one], density[two]
                to_gate[one] += 2.0 * c * sd[two] * (a[two] * open_both + r * w + rho * p * u)
                to_gate[two] += 2.0 * c * sd[one] * (a[one] * open_both + p * u + rho * r * w)
                ratio = sd[two] / sd[one]
                bend = (a[two] - rho * a[one]) * u + root * pdf[q] - r
                to_both[i * (units + 1) * LANES + x] += c * p * ratio * bend
                bend = (a[one] - rho * a[two]) * w + root * pdf[count + q] - p
                to_both[j * (units + 1) * LANES + x] += c * r / ratio * bend
                q += 1


@compiled(fastmath=_LOOSE)
def _back_rectified(units, singles, pairs, to_beyond, to_gate, to_both):
    """Adds what cotangents of R say about g and S."""
    _, variance, sd, a, opened, density, first, _ = singles
    for i in range(units):
        for x in range(LANES):
            at, here = i * LANES + x, i * (units + 1) * LANES + x
            c, p, n = to_beyond[here], opened[at], density[at] / sd[at]
            to_gate[at] += 2.0 * c * (first[at] * (1.0 - p) - p * n * variance[at])
            to_both[here] += c * (p * (1.0 - p) - n * (first[at] - p * a[at] * sd[at]))
    _back_pairs(units, singles, pairs, to_beyond, to_gate, to_both)


@compiled(fastmath=_LOOSE)
def _learn(maps, m, scratch, to_m, to_p, slope, to_gate, to_both, sums, units, size):
    """Adds gradients of the map, given all cotangents."""
    _, outer, inner = maps
    singles, _, (_, beyond, along, far), _, _, (rows, wide_rows) = scratch
    opened, first = singles[4], singles[6]
    wide = size + 1
    # [L | b]: m^-bar (m, 1)' + [Jbar | 0]
    multiply(wide_rows, wide, to_m, 1, 1, m, 1, 1, size, 1, wide, 1.0, 0)
    for k in range(size):
        for j in range(size * LANES):
            wide_rows[k * wide * LANES + j] += slope[k * size * LANES + j]
    accumulate(sums[0], wide_rows)
    # O': f m^-bar' + diag(p) I Jbar' + 2 (O R)' X
    multiply(rows, size, inner, wide, 1, slope, 1, size, units, size, size, 1.0, 0)
    for i in range(units):
        for k in range(size):
            for x in range(LANES):
                rows[(i * size + k) * LANES + x] *= opened[i * LANES + x]
    multiply(rows, size, first, 1, 1, to_m, 1, 1, units, 1, size, 1.0, 1)
    multiply(far, units, outer, units, 1, beyond, units, 1, size, units, units, 1.0, 0)
    multiply(rows, size, far, 1, units, to_p, size, 1, units, size, size, 2.0, 1)
    for k in range(units * size * LANES):
        sums[1][k] += rows[k]
    # [I | o]: [diag(p) O' Jbar + 2 Sbar I P | 0] + gbar (m, 1)'
    multiply(rows, wide, outer, 1, units, slope, size, 1, units, size, size, 1.0, 0)
    for i in range(units):
        for k in range(size):
            for x in range(LANES):
                rows[(i * wide + k) * LANES + x] *= opened[i * LANES + x]
        rows[(i * wide + size) * LANES : (i + 1) * wide * LANES] = 0.0
    multiply(rows, wide, to_both, units, 1, along, size, 1, units, units, size, 2.0, 1)
    multiply(rows, wide, to_gate, 1, 1, m, 1, 1, units, 1, wide, 1.0, 1)
    accumulate(sums[2], rows)


@compiled(fastmath=_LOOSE)
def back_moments(maps, m, p, scratch, to_m, to_p, sums, wanted, units, size):
    """Pulls cotangents of a prediction back, and adds what it says about the map.

    Args:
        maps: As in `predict_moments`.
        m: As in `predict_moments`.
        p: As in `predict_moments`.
        scratch: As in `predict_moments`.
        to_m: Cotangent of m^-, replaced by that of m.
        to_p: Cotangent of P^-, symmetric, replaced by that of P.
        sums: Gradients of the maps, added to; that of O transposed.
        wanted: Whether these are.
        units: As in `predict_moments`.
        size: As in `predict_moments`.
    """
    linear, outer, inner = maps
    _expected_map(maps, m, p, scratch, units, size)
    singles, pairs, (_, _, _, far), (jacobian, work, _), more, (rows, _) = scratch
    to_gate, to_beyond, to_both, slope = more
    _, _, sd, a, opened, density, _, _ = singles
    wide = size + 1
    # Jbar = 2 X J P, Rbar = O' X O, with X = P^-bar
    multiply(work, size, jacobian, size, 1, p, size, 1, size, size, size, 2.0, 0)
    multiply(slope, size, to_p, size, 1, work, size, 1, size, size, size, 1.0, 0)
    multiply(far, units, to_p, size, 1, outer, units, 1, size, size, units, 1.0, 0)
    multiply_through(to_beyond, outer, 1, units, far, units, 1, units, size, 1.0, 0)
    # gbar and diag(Sbar), of m^- by f and of J by p
    multiply(to_gate, 1, outer, 1, units, to_m, 1, 1, units, size, 1, 1.0, 0)
    multiply(rows, size, outer, 1, units, slope, size, 1, units, size, size, 1.0, 0)
    for i in range(units):
        for x in range(LANES):
            at = i * LANES + x
            pulled = 0.0
            for k in range(size):
                pulled += rows[(i * size + k) * LANES + x] * inner[(i * wide + k) * LANES + x]
            turned = to_gate[at] - pulled * a[at] / sd[at]
            to_both[i * (units + 1) * LANES + x] = 0.5 * density[at] / sd[at] * turned
            to_gate[at] = to_gate[at] * opened[at] + pulled * density[at] / sd[at]
    _back_rectified(units, singles, pairs, to_beyond, to_gate, to_both)
    if wanted:
        _learn(maps, m, scratch, to_m, to_p, slope, to_gate, to_both, sums, units, size)
    # J' X J + I' Sbar I, and L' m^-bar + I' gbar
    multiply(work, size, to_p, size, 1, jacobian, size, 1, size, size, size, 1.0, 0)
    multiply_symmetric(to_p, jacobian, 1, size, work, size, 1, size, 1.0, 0, 0)
    multiply(rows, size, to_both, units, 1, inner, wide, 1, units, units, size, 1.0, 0)
    multiply_through(to_p, inner, 1, wide, rows, size, 1, size, units, 1.0, 1)
    copy(work, to_m)
    multiply(to_m, 1, linear, 1, wide, work, 1, 1, size, size, 1, 1.0, 0)
    multiply(to_m, 1, inner, 1, wide, to_gate, 1, 1, size, units, 1, 1.0, 1)
