"""Moments of rectified Gaussians and the bivariate normal distribution function."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import multivariate_normal, norm

from plssm.kernels.gaussian_moments import (
    bivariate_normal_cdf,
    expected_relu,
    relu_covariance,
    relu_cross_moments,
    relu_moments,
    relu_second_moments,
    relu_second_moments_plain,
)


def random_covariances(rng, n, size, scale=1.0):
    a = rng.normal(size=(n, size, size)) * scale + np.eye(size)
    return a @ a.transpose(0, 2, 1) / size


def two_units(a, b, rho):
    """Unit variances: mean [2] and covariance [2, 2]."""
    return np.array([a, b]), np.array([[1.0, rho], [rho, 1.0]])


# ---- bivariate distribution function ---------------------------------------------------------
@pytest.mark.parametrize("rho", [-0.999, -0.8, -0.3, 0.0, 0.29, 0.6, 0.9, 0.95, 0.9999])
def test_cdf_equals_scipy(rho):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 2)) * 1.5
    wanted = [
        multivariate_normal.cdf(p, cov=[[1, rho], [rho, 1]], abseps=1e-10, releps=1e-10)
        for p in points
    ]
    got = bivariate_normal_cdf(points[:, 0], points[:, 1], rho)
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def integrate_density(a, b, rho):
    """The distribution function by 30-digit quadrature over the correlation's angle."""
    with mpmath.workdps(30):
        a, b, rho = mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(rho)

        def density(t):
            square = a * a + b * b - 2 * a * b * mpmath.sin(t)
            return mpmath.exp(-square / (2 * mpmath.cos(t) ** 2)) / (2 * mpmath.pi)

        end, edges, rest = mpmath.asin(rho), [mpmath.mpf(0)], mpmath.pi / 2
        while mpmath.pi / 2 - rest / 2 < abs(end):
            rest /= 2
            edges.append(mpmath.sign(end) * (mpmath.pi / 2 - rest))
        edges.append(end)
        return float(mpmath.ncdf(a) * mpmath.ncdf(b) + mpmath.quad(density, edges))


@pytest.mark.parametrize("rho", [0.5, 0.924, 0.926, -0.97, 0.999, -0.999999, 1 - 1e-10])
@pytest.mark.parametrize("a, b", [(0.3, 0.2999), (-1.2, 1.9), (4.0, 4.0), (-5.5, -5.0)])
def test_cdf_to_rounding_at_extreme_arguments(a, b, rho):
    got = bivariate_normal_cdf(a, b, rho)
    assert abs(got - integrate_density(a, b, rho)) < 5e-16 * max(1, 1e-9 / (1 - abs(rho)))


def test_cdf_closed_forms():
    rho = np.concatenate([np.linspace(-1, 1, 41), [1 - 1e-12, -1 + 1e-12]])
    got = bivariate_normal_cdf(0.0, 0.0, rho)
    np.testing.assert_allclose(got, 0.25 + np.arcsin(rho) / (2 * np.pi), atol=3e-16)
    a, b = np.array([-1.0, 0.5, 2.0]), np.array([-0.5, 0.5, -1.0])
    np.testing.assert_allclose(bivariate_normal_cdf(a, b, 1.0), ndtr(np.minimum(a, b)), atol=1e-15)
    np.testing.assert_allclose(
        bivariate_normal_cdf(a, b, -1.0), np.maximum(ndtr(a) - ndtr(-b), 0), atol=1e-15
    )
    np.testing.assert_allclose(bivariate_normal_cdf(a, b, 0.0), ndtr(a) * ndtr(b), atol=1e-15)


def test_cdf_infinite_and_missing_limits():
    for rho in (-1.0, -0.95, 0.2, 0.99):
        assert bivariate_normal_cdf(np.inf, 0.7, rho) == pytest.approx(ndtr(0.7), abs=1e-15)
        assert bivariate_normal_cdf(-np.inf, 0.7, rho) == pytest.approx(0.0, abs=1e-300)
        assert bivariate_normal_cdf(80.0, -80.0, rho) == pytest.approx(0.0, abs=1e-300)
    assert np.isnan(bivariate_normal_cdf(np.nan, 0.0, 0.5))
    assert bivariate_normal_cdf(np.zeros((3, 1)), np.zeros(4), 0.1).shape == (3, 4)


# ---- one unit --------------------------------------------------------------------------------
def test_unit_moments_equal_quadrature():
    rng = np.random.default_rng(1)
    mean, variance = rng.normal(size=(3, 4)), rng.uniform(0.01, 4, size=(3, 4))
    first, second = relu_moments(mean, variance)
    for index in np.ndindex(mean.shape):
        m, s = mean[index], np.sqrt(variance[index])
        for power, got in ((1, first[index]), (2, second[index])):
            wanted = quad(lambda x, p=power, m=m, s=s: x**p * norm.pdf(x, m, s), 0, m + 12 * s)[0]
            assert got == pytest.approx(wanted, rel=1e-7, abs=1e-9)
    np.testing.assert_array_equal(expected_relu(mean, variance), first)


def test_unit_moments_equal_the_formula_to_rounding():
    mean = np.concatenate([np.linspace(-5, 5, 1001), [0.0, 8.0, 30.0]])
    variance = np.linspace(0.5, 2.0, mean.size)
    s = np.sqrt(variance)
    first, second = relu_moments(mean, variance)
    np.testing.assert_allclose(
        first, mean * ndtr(mean / s) + s * norm.pdf(mean / s), rtol=1e-14, atol=1e-15
    )
    np.testing.assert_allclose(
        second, (mean**2 + variance) * ndtr(mean / s) + mean * s * norm.pdf(mean / s),
        rtol=1e-14, atol=5e-15,
    )  # fmt: skip


def test_unit_moments_at_the_edges():
    mean = np.array([-2.0, 0.0, 3.0, 1e6, -1e6, -38.0])
    first, second = relu_moments(mean, np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(first, np.maximum(mean, 0), atol=1e-12)
    np.testing.assert_allclose(second, np.maximum(mean, 0) ** 2, atol=1e-12, rtol=2e-12)
    assert (first >= 0).all() and (second >= first**2).all()
    _, covariance = relu_covariance(np.array([1e6]), np.array([[2.0]]))
    assert covariance[0, 0] == pytest.approx(2.0, rel=1e-14)  # no cancellation
    assert np.isnan(relu_moments(np.nan, 1.0)[0]) and np.isnan(relu_moments(1.0, np.nan)[0])


# ---- pairs -----------------------------------------------------------------------------------
def integrate_pair(a, b, rho):
    """E[relu relu] with unit variances: integral over x of relu(a + x) E[relu(b + y) | x]."""
    s = np.sqrt(1 - rho**2)

    def integrand(x):
        m = b + rho * x
        return (a + x) * norm.pdf(x) * (m * ndtr(m / s) + s * norm.pdf(m / s))

    kink = [k for k in (-b / rho - 5 * s, -b / rho, -b / rho + 5 * s) if -a < k < 12]
    return quad(integrand, -a, 12, points=kink or None, epsabs=1e-13, limit=200)[0]


@pytest.mark.parametrize(
    "rho", [0.01, 0.3, -0.5, 0.79, 0.81, -0.9, 0.949, 0.951, -0.99, 0.9999, -0.999999]
)
def test_pair_equals_quadrature(rho):
    rng = np.random.default_rng(2)
    for a, b in [*rng.normal(size=(4, 2)), (1.0, np.sign(rho) * 1.01), (-3.0, -2.5), (7.0, 0.1)]:
        got = relu_second_moments(*two_units(a, b, rho))[0, 1]
        assert got == pytest.approx(integrate_pair(a, b, rho), abs=2e-11, rel=1e-11)


def test_pair_limits():
    a = 0.7
    first, second = relu_moments(a, 1.0)
    for gap in (1e-6, 1e-10, 1e-13, 0.0):
        up = relu_second_moments(*two_units(a, a, 1 - gap))[0, 1]
        assert up == pytest.approx(second, abs=2 * gap + 1e-14)
        down = relu_second_moments(*two_units(a, -a, -1 + gap))[0, 1]
        assert down == pytest.approx(0.0, abs=2 * gap**0.5 * 1e-3 + 1e-14)
    assert relu_second_moments(*two_units(a, a, 0.0))[0, 1] == pytest.approx(first**2, rel=1e-14)
    one_certain = relu_second_moments(np.array([a, 2.0]), np.diag([1.0, 0.0]))[0, 1]
    assert one_certain == pytest.approx(2 * first, rel=1e-11)


@pytest.mark.parametrize("rows", [1, 3, 250])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_second_moments_equal_the_plain_twin(rows, size):
    rng = np.random.default_rng(rows + size)
    mean, covariance = rng.normal(size=(rows, size)), random_covariances(rng, rows, size, 0.4)
    sd = np.sqrt(np.einsum("nii->ni", covariance))
    rho = covariance / (sd[:, :, None] * sd[:, None, :]) - np.eye(size)
    covariance[np.abs(rho).max((1, 2)) > 0.95] = np.eye(size)  # the twin's 20 nodes fail there
    got = relu_second_moments(mean, covariance)
    np.testing.assert_allclose(got, relu_second_moments_plain(mean, covariance), atol=2e-13)
    np.testing.assert_array_equal(got, got.transpose(0, 2, 1))
    first, centred = relu_covariance(mean, covariance)
    variance = np.einsum("nii->ni", covariance)
    np.testing.assert_allclose(first, expected_relu(mean, variance), rtol=1e-14)
    np.testing.assert_allclose(centred + first[:, :, None] * first[:, None, :], got, atol=1e-15)


def test_moments_equal_monte_carlo():
    rng = np.random.default_rng(3)
    mean = np.array([0.4, -0.6, 1.1, 0.0])
    covariance = random_covariances(rng, 1, 4)[0]
    n = 1_000_000
    z = rng.multivariate_normal(mean, covariance, size=n, method="cholesky")
    relu = np.maximum(z, 0)
    sd = np.sqrt(np.einsum("ni,nj->ij", relu**2, relu**2) / n)
    got = relu_second_moments(mean, covariance)
    assert (np.abs(got - relu.T @ relu / n) < 5 * sd / np.sqrt(n)).all()
    sd = np.sqrt(np.einsum("ni,nj->ij", z**2, relu**2) / n)
    got = relu_cross_moments(mean, covariance)
    assert (np.abs(got - z.T @ relu / n) < 5 * sd / np.sqrt(n)).all()


def test_cross_moments_with_another_variable_equal_the_joint_vector():
    rng = np.random.default_rng(4)
    mean, covariance = rng.normal(size=(3, 5)), random_covariances(rng, 3, 5)
    whole = relu_cross_moments(mean, covariance)
    part = relu_cross_moments(
        mean[:, 2:], covariance[:, :2, 2:], mean[:, :2],
        variance=np.einsum("nii->ni", covariance)[:, 2:],
    )  # fmt: skip
    np.testing.assert_allclose(part, whole[:, :2, 2:], atol=1e-14)


def test_missing_numbers_stay_missing_and_shapes_are_checked():
    mean, covariance = two_units(0.1, np.nan, 0.5)
    got = relu_second_moments(mean, covariance)
    assert np.isfinite(got[0, 0]) and np.isnan(got[0, 1]) and np.isnan(got[1, 1])
    with pytest.raises(ValueError, match="covariance"):
        relu_covariance(np.zeros(3), np.eye(2))
    assert relu_second_moments(np.zeros((0, 2)), np.zeros((0, 2, 2))).shape == (0, 2, 2)
