"""Compiled scalar functions of one or two standard normal variables."""

from __future__ import annotations

import math

from numpy.polynomial.legendre import leggauss

from plssm.kernels._compile import compiled

__all__ = ["bvn", "normal_cdf", "normal_pdf", "rectified_covariance"]

_X6, _W6 = leggauss(6)
_X12, _W12 = leggauss(12)
_X20, _W20 = leggauss(20)
_TWO_PI = 2.0 * math.pi
_SQRT_TWO_PI = math.sqrt(2.0 * math.pi)
_SQRT_HALF = math.sqrt(0.5)


@compiled
def normal_cdf(x):
    """Standard normal distribution function."""
    return 0.5 * math.erfc(-x * _SQRT_HALF)


@compiled
def normal_pdf(x):
    """Standard normal density."""
    return math.exp(-0.5 * x * x) / _SQRT_TWO_PI


@compiled
def _over_correlation(a, b, rho, nodes, weights, order):
    """Integral from 0 to rho of (rho - r)^order phi2(a, b; r) dr, order 0 or 1."""
    angle = 0.5 * math.asin(rho)
    product = a * b
    half_norm = 0.5 * (a * a + b * b)
    total = 0.0
    for k in range(nodes.size):
        sine = math.sin(angle * (1.0 + nodes[k]))
        term = weights[k] * math.exp((sine * product - half_norm) / (1.0 - sine * sine))
        total += term * (rho - sine) if order == 1 else term
    return total * angle / _TWO_PI


@compiled
def _to_one(a, b, rho):
    """Integral from rho > 0 to 1 of phi2(a, b; r) dr, for rho close to 1.

    With x^2 = 1 - r^2 the integrand is exp(-(a-b)^2 / 2x^2) f(x^2) / (2 pi). The second-order
    expansion of f is integrated exactly and the remainder by Gauss-Legendre (Genz 2004).
    """
    product = a * b
    square = (1.0 - rho) * (1.0 + rho)
    if square <= 0.0 or product < -100.0:
        return 0.0
    edge = math.sqrt(square)
    gap = abs(a - b)
    gap2 = gap * gap
    first = (4.0 - product) / 8.0
    second = first * (12.0 - product) / 16.0
    bell = math.exp(-0.5 * gap2 / square)
    m0 = edge * bell - gap * _SQRT_TWO_PI * normal_cdf(-gap / edge)
    m2 = (edge * square * bell - gap2 * m0) / 3.0
    m4 = (edge * square * square * bell - gap2 * m2) / 5.0
    total = math.exp(-0.5 * product) * (m0 + first * m2 + second * m4)
    for k in range(_X20.size):
        x = 0.5 * edge * (1.0 + _X20[k])
        x2 = x * x
        if gap2 < 1600.0 * x2:
            r = math.sqrt(1.0 - x2)
            rest = math.exp(-0.5 * product * x2 / ((1.0 + r) * (1.0 + r))) / r
            rest -= 1.0 + x2 * (first + second * x2)
            total += 0.5 * edge * _W20[k] * math.exp(-0.5 * (gap2 / x2 + product)) * rest
    return total / _TWO_PI


@compiled
def bvn(a, b, rho):
    """Probability that two standard normals with correlation rho lie below a and b."""
    if math.isnan(a) or math.isnan(b) or math.isnan(rho):
        return math.nan
    a = min(max(a, -50.0), 50.0)
    b = min(max(b, -50.0), 50.0)
    rho = min(max(rho, -1.0), 1.0)
    size = abs(rho)
    if size >= 0.925:
        if rho > 0.0:
            return max(normal_cdf(min(a, b)) - _to_one(a, b, rho), 0.0)
        gap = normal_cdf(a) - normal_cdf(-b) if a > -b else 0.0
        return gap + max(_to_one(a, -b, -rho), 0.0)
    if size < 0.3:
        change = _over_correlation(a, b, rho, _X6, _W6, 0)
    elif size < 0.75:
        change = _over_correlation(a, b, rho, _X12, _W12, 0)
    else:
        change = _over_correlation(a, b, rho, _X20, _W20, 0)
    return max(normal_cdf(a) * normal_cdf(b) + change, 0.0)


@compiled
def rectified_covariance(a, b, rho):
    """Covariance of max(0, a + x) and max(0, b + y) for standard normals of correlation rho."""
    cdf_a, cdf_b = normal_cdf(a), normal_cdf(b)
    if abs(a) > 8.5 or abs(b) > 8.5:  # one of them is linear or zero to rounding
        return rho * cdf_a * cdf_b
    if abs(rho) <= 0.95:
        return rho * cdf_a * cdf_b + _over_correlation(a, b, rho, _X20, _W20, 1)
    if rho < 0.0:  # max(0, v) = v + max(0, -v)
        return rho * cdf_a + _correlated(a, -b, -rho)
    return _correlated(a, b, rho)


@compiled
def _correlated(a, b, rho):
    """The same for rho > 0.95, through the bivariate distribution function."""
    q2 = (1.0 - rho) * (1.0 + rho)
    q = max(math.sqrt(max(q2, 0.0)), 1e-150)
    pdf_a, pdf_b = normal_pdf(a), normal_pdf(b)
    across_a = ((a - b) + (1.0 - rho) * b) / q
    across_b = ((b - a) + (1.0 - rho) * a) / q
    joint = (a * b + rho) * bvn(a, b, rho)
    joint += a * pdf_b * normal_cdf(across_a) + b * pdf_a * normal_cdf(across_b)
    joint += q * pdf_a * normal_pdf(across_b)
    mean_a = a * normal_cdf(a) + pdf_a
    mean_b = b * normal_cdf(b) + pdf_b
    return joint - mean_a * mean_b
