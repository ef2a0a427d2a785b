"""The log joint along a ray of paths, against one-sided differences of its definition."""

from __future__ import annotations

import numpy as np
import pytest

import plssm as ps
from plssm.inference.active_set import ActiveSet, _Ray
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import linear_solve, log_joint
from plssm.kernels.mode_search import RegionMaxima

H = 1e-7


def model(kind, rng, m=3):
    common = {"h": 0.3 * rng.normal(size=m), "process_noise": rng.uniform(0.05, 0.2, m)}
    if kind == "plrnn":
        W = 0.4 * rng.normal(size=(m, m)) * (1 - np.eye(m))
        dynamics = ps.dynamics.PLRNN.from_parameters(rng.uniform(0.3, 0.9, m), W, **common)
    else:
        del common["h"]
        dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
            A=rng.uniform(0.3, 0.9, m), W1=0.4 * rng.normal(size=(m, 7)),
            W2=rng.normal(size=(7, m)), h1=0.3 * rng.normal(size=m), h2=0.3 * rng.normal(size=7),
            clipped=False, **common,
        )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(rng.normal(size=(4, m)), noise=0.5)
    return ps.StateSpaceModel(dynamics, {"x": seen})


def problem(kind, seed, steps=25):
    rng = np.random.default_rng(seed)
    truth = model(kind, rng)
    batch = truth.simulate(steps, seed=seed).batch()
    prior = ChainPrior.of(truth.dynamics, batch)
    terms = expand(truth, batch, np.zeros((1, steps, 3)))
    return prior, terms, rng


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["plrnn", "shallow"])
def test_rises_are_one_sided_derivatives(kind, seed):
    """At 0, between kinks and at 1; with units on their kink at the start."""
    prior, terms, rng = problem(kind, seed)
    path, direction = rng.normal(size=(2, 1, 25, 3))
    if kind == "plrnn":
        path[0, 4, 1] = path[0, 9, 0] = 0.0
    pinned = np.zeros((1, 24, prior.form.outer.shape[1]), dtype=bool)
    ray = _Ray(prior, terms, ActiveSet(path, np.zeros(pinned.shape), pinned), direction)
    length, before, after = ray.rises
    assert len(length) > 10
    assert (np.diff(length) > 0).all()

    def value(s):
        return log_joint(prior, terms, path + s * direction)[0]

    for i, s in enumerate(length):
        if i:
            gap = min(H, 0.3 * (s - length[i - 1]))
            wanted = (value(s) - value(s - gap)) / gap
            np.testing.assert_allclose(before[i], wanted, rtol=1e-4, atol=1e-3)
        if i + 1 < len(length):
            gap = min(H, 0.3 * (length[i + 1] - s))
            wanted = (value(s + gap) - value(s)) / gap
            np.testing.assert_allclose(after[i], wanted, rtol=1e-4, atol=1e-3)
    assert ray.begins_uphill == (value(1e-6) > value(0.0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["plrnn", "shallow"])
def test_ends_at_a_local_maximum_of_the_ray(kind, seed):
    prior, terms, rng = problem(kind, seed)
    path = rng.normal(size=(1, 25, 3))
    gates = prior.form.gates(path[:, :-1])
    state = ActiveSet(path, (gates > 0).astype(float), np.zeros(gates.shape, dtype=bool))
    direction = linear_solve(prior, terms, state.slope)[0] - path
    step, hit = _Ray(prior, terms, state, direction).first_maximum()
    line = [log_joint(prior, terms, path + s * direction)[0] for s in (0.0, step)]
    assert 0 < step <= 1
    assert line[1] > line[0]
    near = [
        log_joint(prior, terms, path + s * direction)[0]
        for s in (step - 1e-5, min(step + 1e-5, 1.0))
    ]
    assert max(near) <= line[1] + 1e-9
    if hit.any():
        at = prior.form.gates((path + step * direction)[:, :-1])
        assert np.abs(at[hit]).max() < 1e-10


def test_ties_are_passed_together():
    """Two states that do the same have their kinks at one place."""
    W = [[0.0, 0.3], [0.3, 0.0]]
    dynamics = ps.dynamics.PLRNN.from_parameters([0.5, 0.5], W, h=[0.3, 0.3], process_noise=0.1)
    whole = ps.StateSpaceModel(
        dynamics, {"x": ps.observations.Gaussian.from_parameters(np.eye(2), noise=0.5)}
    )
    batch = whole.simulate(6, seed=0).batch()
    prior, terms = ChainPrior.of(dynamics, batch), expand(whole, batch, np.zeros((1, 6, 2)))
    path, direction = np.full((1, 6, 2), -0.5), np.ones((1, 6, 2))
    ray = _Ray(
        prior, terms, ActiveSet(path, np.zeros((1, 5, 2)), np.zeros((1, 5, 2), bool)), direction
    )
    length, before, after = ray.rises
    np.testing.assert_array_equal(length, [0.0, 0.5, 1.0])

    def slope(s, t):
        pair = [log_joint(prior, terms, path + x * direction)[0] for x in (s, t)]
        return (pair[1] - pair[0]) / (t - s)

    np.testing.assert_allclose(before[1], slope(0.5 - H, 0.5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after[1], slope(0.5, 0.5 + H), rtol=1e-4, atol=1e-4)
    assert abs(before[1] - after[1]) > 0.1


def test_an_empty_ray_has_no_kinks():
    prior, terms, rng = problem("plrnn", 0)
    path = rng.normal(size=(1, 25, 3))
    pinned = np.zeros((1, 24, 3), dtype=bool)
    ray = _Ray(prior, terms, ActiveSet(path, np.zeros(pinned.shape), pinned), 0 * path)
    length, before, after = ray.rises
    np.testing.assert_array_equal(length, [0.0, 1.0])
    np.testing.assert_allclose([before[1], after[0]], 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", ["plrnn", "shallow"])
def test_maxima_of_regions_equal_fresh_solves(kind):
    prior, terms, rng = problem(kind, 1, steps=80)
    shape, rho = (1, 79, prior.form.outer.shape[1]), 1e8
    slope, pinned = (rng.random(shape) < 0.5).astype(float), rng.random(shape) < 0.1
    slope[pinned] = 0.0
    maximum = RegionMaxima(prior.packed, terms.information, terms.score, rho)
    for t in (3, 78, 40, 41, 0):
        wanted = linear_solve(prior, terms, slope, pins=pinned, rho=rho)[0]
        np.testing.assert_allclose(maximum(slope, pinned), wanted, atol=1e-7)
        slope, pinned = slope.copy(), pinned.copy()
        slope[0, t, 0], pinned[0, t, 0] = 1.0 - slope[0, t, 0], False
        pinned[0, t, 1] ^= True
        slope[pinned] = 0.0
