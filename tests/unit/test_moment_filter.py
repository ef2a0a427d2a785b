"""Exact moments through rectified-linear maps, and the compiled filter that carries them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from plssm.kernels.gaussian_filter import gaussian_filter
from plssm.kernels.moment_filter import moment_filter, moment_filter_plain, propagate_moments

FIELDS = ("predicted_mean", "predicted_covariance", "filtered_mean", "filtered_covariance",
          "log_increment")  # fmt: skip


class Problem:
    """A random map, its noise and canonical observation terms."""

    def __init__(self, size, hinges, seed=0, steps=12, lengths=(12, 7, 1), shared=False):
        rng = np.random.default_rng(seed)
        trials = len(lengths)
        self.maps = (
            0.5 * rng.normal(size=(size, size)), rng.normal(size=size),
            0.5 * rng.normal(size=(size, hinges)), rng.normal(size=(hinges, size)),
            rng.normal(size=hinges),
        )  # fmt: skip
        self.noise, self.first = self.covariance(rng, size), self.covariance(rng, size)
        self.mean = rng.normal(size=(trials, size))
        rows = rng.normal(size=(1 if shared else trials, 1 if shared else steps, 2, size))
        self.information = np.einsum("btni,btnj->btij", rows, rows)
        self.score = rng.normal(size=(trials, steps, size))
        if not shared:  # steps without data
            self.information[:, 3] = 0.0
            self.score[:, 3] = 0.0
        self.drive = rng.normal(size=(trials, steps, size))
        self.length = np.array(lengths)

    @staticmethod
    def covariance(rng, size):
        a = rng.normal(size=(size, size))
        return a @ a.T / size + 0.1 * np.eye(size)

    def run(self, method=moment_filter):
        return method(
            *self.maps, self.noise, self.mean, self.first, self.information, self.score,
            self.drive, self.length,
        )  # fmt: skip

    def linearised(self):
        size = len(self.noise)
        return gaussian_filter(
            *self.maps, np.eye(size), self.noise, self.mean, self.first, self.information,
            self.score, self.length, drive=self.drive,
        )  # fmt: skip


def step(maps, z):
    linear, bias, outer, inner, offset = maps
    return z @ linear.T + bias + np.maximum(z @ inner.T + offset, 0.0) @ outer.T


# ---- one step -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "hinges"), [(1, 1), (2, 2), (3, 5), (4, 2)])
def test_moments_are_those_of_a_million_draws(size, hinges):
    problem, draws = Problem(size, hinges, seed=size), 1_000_000
    mean, covariance = problem.mean[0], problem.first
    rng = np.random.default_rng(1)
    z = rng.multivariate_normal(mean, covariance, size=draws)
    after = step(problem.maps, z)
    got, jacobian, rest = propagate_moments(*problem.maps, mean, covariance)
    centred, e = z - mean, after - after.mean(0)

    def within(value, samples):
        error = samples.std(0) / draws**0.5
        assert (np.abs(value - samples.mean(0)) < 5 * error + 1e-12).all()

    within(got, after)
    within(jacobian @ covariance @ jacobian.T + rest, e[:, :, None] * e[:, None])
    within(covariance @ jacobian.T, centred[:, :, None] * e[:, None])
    assert np.linalg.eigvalsh(rest).min() > -1e-12


@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.4, 6.0])
def test_moments_of_one_dimension_are_integrals(mean):
    maps = (np.array([[0.6]]), np.array([0.2]), np.array([[-1.7, 0.5]]), np.array([[1.0], [-2.0]]),
            np.array([0.3, 0.4]))  # fmt: skip
    variance = 0.8

    def expectation(f):
        def integrand(x):
            return f(x) * norm.pdf(x, mean, variance**0.5)

        return quad(integrand, mean - 12, mean + 12, points=[-0.3, 0.2], limit=400,
                    epsabs=1e-13, epsrel=1e-13)[0]  # fmt: skip

    def value(x):
        return float(step(maps, np.array([x]))[0])

    first = expectation(value)
    second = expectation(lambda x: (value(x) - first) ** 2)
    crossed = expectation(lambda x: (x - mean) * (value(x) - first))
    got, jacobian, rest = propagate_moments(*maps, np.array([mean]), np.array([[variance]]))
    np.testing.assert_allclose(got[0], first, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(jacobian[0, 0] ** 2 * variance + rest[0, 0], second, rtol=1e-9)
    np.testing.assert_allclose(variance * jacobian[0, 0], crossed, rtol=1e-9, atol=1e-10)


def test_a_narrow_state_is_linearised():
    problem = Problem(3, 4, seed=3)
    linear, _, outer, inner, offset = problem.maps
    mean, covariance = problem.mean, 1e-14 * problem.first
    got, jacobian, rest = propagate_moments(
        *problem.maps, mean, np.broadcast_to(covariance, (3, 3, 3))
    )
    on = (mean @ inner.T + offset > 0).astype(float)
    np.testing.assert_allclose(got, step(problem.maps, mean), rtol=0, atol=1e-12)
    np.testing.assert_allclose(jacobian, linear + (outer * on[:, None]) @ inner, atol=1e-12)
    assert np.abs(rest).max() < 1e-25


def test_hinges_at_the_same_kink_and_without_any():
    """Perfectly correlated hinges: relu(x) - relu(-x) is x."""
    maps = (np.zeros((1, 1)), np.zeros(1), np.array([[1.0, -1.0]]), np.array([[1.0], [-1.0]]),
            np.zeros(2))  # fmt: skip
    got, jacobian, rest = propagate_moments(*maps, np.array([0.3]), np.array([[2.0]]))
    np.testing.assert_allclose([got[0], jacobian[0, 0], rest[0, 0]], [0.3, 1.0, 0.0], atol=1e-14)
    problem = Problem(3, 0)
    got, jacobian, rest = propagate_moments(*problem.maps, problem.mean[0], problem.first)
    np.testing.assert_allclose(got, step(problem.maps, problem.mean[0]))
    np.testing.assert_array_equal(jacobian, problem.maps[0])
    assert not rest.any()


# ---- the filter ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "hinges"), [(1, 1), (2, 2), (3, 5), (5, 3)])
def test_compiled_filter_equals_its_twin(size, hinges, shared):
    problem = Problem(size, hinges, seed=hinges + 20, shared=shared)
    got, want = problem.run(), problem.run(moment_filter_plain)
    for name in FIELDS:
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)
        for k, n in enumerate(problem.length):
            assert not a[k, n:].any()
    assert not got.status.any()


def test_predictions_are_one_step_moments():
    problem = Problem(3, 4, seed=7)
    got = problem.run()
    mean, jacobian, rest = propagate_moments(
        *problem.maps, got.filtered_mean[0, :-1], got.filtered_covariance[0, :-1]
    )
    spread = jacobian @ got.filtered_covariance[0, :-1] @ jacobian.swapaxes(1, 2) + rest
    np.testing.assert_allclose(
        got.predicted_mean[0, 1:], mean + problem.drive[0, 1:], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        got.predicted_covariance[0, 1:], spread + problem.noise, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_far_from_all_kinks_it_is_the_kalman_filter(far):
    problem = Problem(3, 4, seed=5)
    linear, bias, outer, inner, offset = problem.maps
    offset = np.full(4, far)
    problem.maps = (linear, bias - outer @ np.maximum(offset, 0.0), outer, inner, offset)
    problem.information *= 10.0
    got, want = problem.run(), problem.linearised()
    for name in FIELDS:
        a, b = getattr(got, name), getattr(want, name)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=name)


def test_without_hinges_it_is_the_kalman_filter():
    problem = Problem(3, 0)
    got, want = problem.run(), problem.linearised()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-12)


def test_shapes_are_checked():
    problem = Problem(2, 3)
    problem.drive = problem.drive[:, 1:]
    with pytest.raises(ValueError, match="drive"):
        problem.run()
