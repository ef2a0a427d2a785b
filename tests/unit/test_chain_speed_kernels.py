"""Kernels of an EM iteration that save work, against what they must equal."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.kernels.chain import solve_chain
from plssm.kernels.mode_search import maximise, search_modes
from plssm.kernels.newton_steps import newton_steps, newton_steps_plain
from plssm.kernels.packed_prior import pack_prior
from plssm.kernels.regional_sums import regional_sums, regional_sums_plain
from tests.unit.test_mode_search_kernel import PIN, random_problem

PRIOR = ("form", "drive", "precision", "initial_mean", "initial_precision")


@pytest.mark.parametrize("hinges", [None, 5])
@pytest.mark.parametrize(("steps", "m"), [(9, 3), (7, 10), (1, 2), (6, 50)])
def test_maximum_for_fixed_slopes_equals_the_linear_solver(steps, m, hinges):
    rng = np.random.default_rng(steps)
    problem = random_problem(rng, 3, steps, m, hinges)
    form, length = problem["form"], np.array([steps, max(1, steps - 2), steps])
    slope = rng.random(problem["slope"].shape)
    packed = pack_prior(*(problem[k] for k in PRIOR), length)
    path, factor = maximise(packed, problem["information"], problem["score"], slope)
    jacobian = form.linear + (form.outer * slope[..., None, :]) @ form.inner
    offset = form.bias + (slope * form.offset) @ form.outer.T + problem["drive"]
    wanted, other = solve_chain(
        jacobian,
        offset,
        *(problem[k] for k in PRIOR[2:]),
        problem["information"],
        problem["score"],
        length,
    )
    np.testing.assert_allclose(path, wanted, atol=1e-10)
    np.testing.assert_allclose(factor.logdet, other.logdet, atol=1e-9)
    np.testing.assert_allclose(factor.quadratic, other.quadratic, rtol=1e-10)
    for got, block in zip(factor.covariances(), other.covariances(), strict=True):
        np.testing.assert_allclose(got, block, atol=1e-11)


@pytest.mark.parametrize("hinges", [None, 5])
def test_unfinished_search_finds_the_same_mode(hinges):
    problem = random_problem(np.random.default_rng(3), 3, 60, 4, hinges)
    whole = search_modes(**problem, pin=PIN)
    part = search_modes(**problem, pin=PIN, finish=False)
    assert whole.stationary.all()
    assert part.stationary.all()
    np.testing.assert_allclose(part.path, whole.path, atol=1e-6)
    np.testing.assert_allclose(part.slope, whole.slope, atol=1e-12)
    np.testing.assert_array_equal(part.pinned, whole.pinned)
    assert whole.pinned.any()
    gate = part.path[:, :-1] @ problem["form"].inner.T + problem["form"].offset
    assert np.abs(gate[part.pinned]).max() <= (0.0 if hinges is None else 1e-6)


def test_search_starts_where_another_ended():
    problem = random_problem(np.random.default_rng(3), 3, 60, 4)
    first = search_modes(**problem, pin=PIN, finish=False)
    packed = pack_prior(*(problem[k] for k in PRIOR))
    problem["slope"] = first.slope
    again = search_modes(
        **problem, pin=PIN, flips=1, pinned=first.pinned, finish=False, packed=packed
    )
    np.testing.assert_array_equal(again.solves, 1)
    np.testing.assert_allclose(again.path, first.path, atol=1e-9)


@pytest.mark.parametrize("gates", [None, 5, 0])
@pytest.mark.parametrize("steps", [12, 1])
def test_regional_sums_equal_the_twin(steps, gates):
    rng = np.random.default_rng(steps)
    V = rng.normal(size=(3, steps, 4, 4))
    V = V @ V.transpose(0, 1, 3, 2)
    X = rng.normal(size=(3, steps - 1, 4, 4))
    inner = None if gates is None else rng.normal(size=(gates, 4))
    slope = rng.random((3, steps - 1, 4 if gates is None else gates))
    length = np.array([steps, max(1, steps - 5), 1])
    got = regional_sums(V, X, slope, length, inner=inner)
    wanted = regional_sums_plain(V, X, slope, length, inner=inner)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_newton_steps_equal_the_twin():
    rng = np.random.default_rng(0)
    root, gradient = rng.normal(size=(5, 4, 9)), rng.normal(size=(5, 4))
    curvature = root @ root.transpose(0, 2, 1) * np.logspace(-6, 6, 5)[:, None, None]
    curvature[1] = np.diag([1.0, -2.0, 3.0, 1.0])  # indefinite
    curvature[2, 3] = curvature[2, :, 3] = 0.0  # one coordinate without curvature
    curvature[3, 0] = curvature[3, :, 0] = 0.0  # and without a gradient
    gradient[3, 0] = 0.0
    got, wanted = newton_steps(gradient, curvature), newton_steps_plain(gradient, curvature)
    np.testing.assert_array_equal(got[1], wanted[1])
    np.testing.assert_array_equal(got[1], [True, False, True, True, True])
    np.testing.assert_array_equal(got[2], wanted[2])
    np.testing.assert_array_equal(got[2], [True, True, False, True, True])
    np.testing.assert_allclose(got[0][got[1]], wanted[0][got[1]], rtol=1e-9)
    np.testing.assert_allclose(curvature[0] @ got[0][0], gradient[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got[0][2, 3], np.sign(gradient[2, 3]))
