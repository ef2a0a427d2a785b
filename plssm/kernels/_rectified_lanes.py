"""Covariances of rectified Gaussians for a block of time steps, one step per lane.

Arrays are [unit, lane] or [pair, lane], with pairs (i, j >= i) row by row. For units
a_i = m_i / s_i and correlation rho, Mehler's expansion gives the covariance exactly,

    Cov(relu_i, relu_j) / (s_i s_j) = rho Phi_i Phi_j
        + sum_{k >= 2} rho^k psi_{k-2}(a_i) psi_{k-2}(a_j) / (k (k - 1)),

with psi_n(a) = phi(a) He_n(a) / sqrt(n!). By Cramer's bound the tail beyond k = n is below
0.2 rho^(n+1) / (n (n + 1) (1 - rho)): a few terms serve the usual small correlations. Larger
correlations are integrated pair by pair.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.chebyshev import cheb2poly
from scipy.special import erfcx

from plssm.kernels._bivariate import rectified_covariance
from plssm.kernels._compile import compiled
from plssm.kernels._exponential import exponential

__all__ = ["LANES", "normal_lanes", "rectify_lanes", "rectify_units"]

LANES = 96
_PRECISE = {"contract", "nsz"}
_LOOSE = {"contract", "reassoc", "nsz"}
_SERIES_LIMIT = 0.8
_TOLERANCE = 1e-15
_SMALLEST_SD = 1e-12
_SMALLEST_DENSITY = 700.0  # minus its logarithm; what is below counts as zero
_SQRT_HALF = math.sqrt(0.5)
_PDF_AT_ZERO = 1.0 / math.sqrt(2.0 * math.pi)
_KNEE = 2.5  # of the variable (x - knee) / (x + knee) in which erfcx is a polynomial


def _tail_polynomial(degree: int = 22) -> np.ndarray:
    """Coefficients of (x + knee) erfcx(x) in powers of (x - knee) / (x + knee), for x >= 0.

    Chebyshev interpolation; the relative error of erfcx is below 2e-15.
    """
    size = degree + 1
    order = np.arange(size)
    x = _KNEE / np.tan(np.pi * (2 * order + 1) / (4 * size)) ** 2
    turns = order[:, None] * (2 * order + 1) % (4 * size)
    coefficients = 2.0 / size * np.cos(np.pi * turns / (2 * size)) @ ((x + _KNEE) * erfcx(x))
    coefficients[0] *= 0.5
    return cheb2poly(coefficients)


_TAIL = _tail_polynomial()


@compiled(fastmath=_PRECISE)
def _upper_tails(a, pdf, tail):
    """Fills pdf with phi(a) and tail with 1 - Phi(|a|), elementwise."""
    size = a.size
    t = np.empty(size)
    for x in range(size):
        half = 0.5 * a[x] * a[x]
        pdf[x] = exponential(-half) if half < _SMALLEST_DENSITY else 0.0
        u = abs(a[x]) * _SQRT_HALF
        t[x] = (u - _KNEE) / (u + _KNEE)
        tail[x] = _TAIL[-1]
    for n in range(_TAIL.size - 2, -1, -1):
        coefficient = _TAIL[n]
        for x in range(size):
            tail[x] = tail[x] * t[x] + coefficient
    for x in range(size):
        tail[x] *= 0.5 * pdf[x] / (abs(a[x]) * _SQRT_HALF + _KNEE)
        pdf[x] *= _PDF_AT_ZERO


@compiled(fastmath=_PRECISE)
def rectify_units(mean, variance, sd, a, cdf, pdf, expected, spread):
    """Moments of max(0, v) for normal v, elementwise on arrays of one shape.

    Args:
        mean: Means.
        variance: Variances.
        sd: Receives the standard deviations.
        a: Receives the standardised means.
        cdf: Receives the normal distribution function of a.
        pdf: Receives the normal density of a.
        expected: Receives the means of max(0, v).
        spread: Receives the variances of max(0, v).
    """
    for x in range(mean.size):
        v = _SMALLEST_SD**2 if variance[x] < _SMALLEST_SD**2 else variance[x]
        sd[x] = math.sqrt(v)
        a[x] = mean[x] / sd[x]
    _upper_tails(a, pdf, spread)
    for x in range(mean.size):
        tail, standard, density = spread[x], a[x], pdf[x]
        lower = 1.0 - tail if standard > 0.0 else tail
        upper = tail if standard > 0.0 else 1.0 - tail
        cdf[x] = lower
        value = sd[x] * (standard * lower + density)
        expected[x] = 0.0 if value < 0.0 else value
        bounded = standard if abs(standard) < 40.0 else 40.0
        value = lower + bounded * (bounded * lower * upper + density * (upper - lower))
        value -= density * density
        spread[x] = 0.0 if value < 0.0 else value * sd[x] * sd[x]


@compiled(fastmath=_PRECISE)
def normal_lanes(a, cdf, pdf):
    """Distribution function and density of standard normals, elementwise.

    Args:
        a: Arguments, finite.
        cdf: Receives the distribution function.
        pdf: Receives the density.
    """
    _upper_tails(a, pdf, cdf)
    for x in range(a.size):
        cdf[x] = 1.0 - cdf[x] if a[x] > 0.0 else cdf[x]


@compiled
def _terms(rho):
    """Number of terms after which Mehler's expansion is exact to rounding."""
    n = 2
    power = 0.2 * rho * rho * rho / (1.0 - rho)
    while power > _TOLERANCE * n * (n + 1):
        power *= rho
        n += 1
    return n


@compiled(fastmath=_LOOSE)
def _hermite(a, pdf, terms, table):
    """Fills table[:, k - 2] = psi_{k-2}(a) / sqrt(k (k - 1)) for k = 2 .. terms, [unit, lane]."""
    units, lanes = a.shape
    before = np.empty(lanes)
    psi = np.empty(lanes)
    for i in range(units):
        for x in range(lanes):
            before[x] = 0.0
            psi[x] = pdf[i, x]
        for n in range(terms - 1):
            scale = 1.0 / math.sqrt((n + 1.0) * (n + 2.0))
            up = 1.0 / math.sqrt(n + 1.0)
            down = math.sqrt(float(n)) * up
            for x in range(lanes):
                here = psi[x]
                table[i, n, x] = here * scale
                psi[x] = a[i, x] * here * up - down * before[x]
                before[x] = here


@compiled(fastmath=_LOOSE)
def _series(rho, cdf_i, cdf_j, terms, table, i, j, total):
    """Evaluates the expansion for one pair by Horner's rule, all lanes at once."""
    lanes = rho.size
    for x in range(lanes):
        total[x] = 0.0
    n = terms - 2
    while n >= 3:
        for x in range(lanes):
            r = rho[x]
            value = total[x] * r + table[i, n, x] * table[j, n, x]
            value = value * r + table[i, n - 1, x] * table[j, n - 1, x]
            value = value * r + table[i, n - 2, x] * table[j, n - 2, x]
            total[x] = value * r + table[i, n - 3, x] * table[j, n - 3, x]
        n -= 4
    while n >= 0:
        for x in range(lanes):
            total[x] = total[x] * rho[x] + table[i, n, x] * table[j, n, x]
        n -= 1
    for x in range(lanes):
        total[x] = (total[x] * rho[x] + cdf_i[x] * cdf_j[x]) * rho[x]


@compiled(fastmath=_PRECISE)
def _correlation(row, inverse_i, inverse_j, sizes):
    """Turns covariances into correlations; returns the largest the series serves, and overall."""
    lanes = row.size
    for x in range(lanes):
        rho = row[x] * inverse_i[x] * inverse_j[x]
        rho = 1.0 if rho > 1.0 else rho
        rho = -1.0 if rho < -1.0 else rho
        row[x] = rho
        sizes[x] = abs(rho)
    served, overall = 0.0, 0.0
    for x in range(lanes):
        overall = max(overall, sizes[x])
    if overall <= _SERIES_LIMIT:
        return overall, overall
    for x in range(lanes):
        if sizes[x] <= _SERIES_LIMIT:
            served = max(served, sizes[x])
    return served, overall


@compiled
def rectify_lanes(covariance, sd, a, cdf, pdf, spread):
    """Replaces covariances [pair, lane] by those of the rectified units.

    Args:
        covariance: [pair, lane], changed in place; the diagonal pairs are set to `spread`.
        sd: [unit, lane], standard deviations.
        a: [unit, lane], standardised means.
        cdf: [unit, lane], normal distribution function of a.
        pdf: [unit, lane], normal density of a.
        spread: [unit, lane], variances of the rectified units.
    """
    units, lanes = sd.shape
    total = np.empty(lanes)
    limits = np.empty((covariance.shape[0], 2))
    inverse = 1.0 / sd
    q = 0
    for i in range(units):
        for j in range(i, units):
            limits[q] = 0.0
            if j > i:
                limits[q] = _correlation(covariance[q], inverse[i], inverse[j], total)
            q += 1
    most = _terms(limits[:, 0].max())
    table = np.empty((units, most - 1, lanes))
    _hermite(a, pdf, most, table)
    q = 0
    for i in range(units):
        covariance[q] = spread[i]
        q += 1
        for j in range(i + 1, units):
            rho = covariance[q]
            _series(rho, cdf[i], cdf[j], _terms(limits[q, 0]), table, i, j, total)
            if limits[q, 1] > _SERIES_LIMIT:
                for x in range(lanes):
                    if abs(rho[x]) > _SERIES_LIMIT:
                        total[x] = rectified_covariance(a[i, x], a[j, x], rho[x])
            for x in range(lanes):
                rho[x] = total[x] * sd[i, x] * sd[j, x]
            q += 1
