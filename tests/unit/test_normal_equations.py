"""Normal equations: products, solutions and frozen entries against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.inference.normal_equations import NormalEquations, Quadratic

M, K = 3, 5


def spd(size, rng):
    root = rng.normal(size=(size, size + 2))
    return root @ root.T


def equations(*, coupled, everything=False, seed=0):
    rng = np.random.default_rng(seed)
    terms = []
    for _ in range(2):
        precision = spd(M, rng) if coupled else np.diag(rng.uniform(0.5, 3.0, M))
        terms.append(Quadratic(precision, spd(K, rng), rng.normal(size=(M, K))))
    free = np.ones((M, K), bool) if everything else rng.uniform(size=(M, K)) < 0.7
    if not everything:
        free[1] = False
    weight = rng.uniform(0.0, 2.0, (M, K))
    return NormalEquations(
        rng.normal(size=(M, K)), free, tuple(terms), weight, rng.normal(size=(M, K))
    )


def dense(found):
    """The matrix over all entries, row by row."""
    total = np.diag(found.weight.ravel())
    for t in found.terms:
        total = total + np.kron(t.precision, t.regressors)
    return total


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_products_and_solutions_are_those_of_the_matrix(coupled, everything):
    found = equations(coupled=coupled, everything=everything)
    free, matrix = found.free.ravel(), dense(found)
    direction = np.where(found.free, np.random.default_rng(1).normal(size=(M, K)), 0.0)
    want = np.where(free, matrix @ direction.ravel(), 0.0).reshape(M, K)
    np.testing.assert_allclose(found.times(direction), want, rtol=1e-12)
    np.testing.assert_allclose(found.solve(want), direction, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_solution_has_no_slope_and_keeps_what_is_known(coupled):
    found = equations(coupled=coupled)
    theta = found.solution()
    slope = found.weight * (found.target - theta)
    for t in found.terms:
        slope = slope + t.precision @ (t.targets - theta @ t.regressors)
    assert np.abs(slope[found.free]).max() < 1e-10
    np.testing.assert_array_equal(theta[~found.free], found.theta[~found.free])


def test_a_regressor_that_is_never_there_gets_no_weight():
    found = equations(coupled=False, everything=True)
    gone = [Quadratic(t.precision, t.regressors.copy(), t.targets.copy()) for t in found.terms]
    for t in gone:
        t.regressors[2], t.regressors[:, 2], t.targets[:, 2] = 0.0, 0.0, 0.0
    found = NormalEquations(
        found.theta, found.free, tuple(gone), np.zeros((M, K)), np.zeros((M, K))
    )
    theta = found.solution()
    assert (theta[:, 2] == 0.0).all()
    assert np.isfinite(theta).all()
    assert (np.abs(np.delete(theta, 2, axis=1)) > 0).all()
