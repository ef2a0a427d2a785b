"""Importance weights: normalisation, effective size, the tail's shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from plssm.inference.importance import effective_draws, importance_weights, pareto_shape


def test_weights_sum_to_one_and_leave_out_what_is_not_finite():
    weights = importance_weights(np.array([1000.0, 1000.0 + math.log(3.0), -np.inf, np.nan]))
    np.testing.assert_allclose(weights, [0.25, 0.75, 0.0, 0.0], rtol=1e-12)
    assert effective_draws(weights) == pytest.approx(1 / (0.25**2 + 0.75**2))
    assert not importance_weights(np.array([np.nan, -np.inf])).any()
    assert effective_draws(np.zeros(3)) == 0.0


def test_weighted_mean_is_that_of_the_target():
    x = np.random.default_rng(0).standard_normal(200_000) * 2.0
    log_ratios = -0.5 * (x - 1.0) ** 2 + 0.5 * (x / 2.0) ** 2
    weights = importance_weights(log_ratios)
    assert weights @ x == pytest.approx(1.0, abs=0.02)
    assert weights @ (x - 1.0) ** 2 == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_tail_shape_of_pareto_ratios(shape):
    draws = scipy.stats.genpareto.rvs(shape, size=40_000, random_state=1)
    assert pareto_shape(np.log(draws)) == pytest.approx(shape, abs=0.12)


def test_tail_shape_of_few_or_equal_ratios():
    assert math.isnan(pareto_shape(np.zeros(10)))
    assert math.isnan(pareto_shape(np.zeros(100)))
    assert pareto_shape(np.append(np.arange(99.0) / 99, np.inf)) == math.inf
