"""The mode search ends at points where no one-sided slope of the log joint goes uphill."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import mode_search
from plssm.inference.active_set import ActiveSet
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.mode_search import find_mode
from plssm.inference.newton import expand


def random_plrnn(seed, dim, *, process=0.1, noise=0.3, full=False, inputs=0, channels=None):
    """A PLRNN like those of recovery studies, made stable in every region."""
    rng = np.random.default_rng(seed)
    A = rng.uniform(0.3, 0.9, dim)
    W = 0.3 * rng.normal(size=(dim, dim)) * (1 - np.eye(dim))
    W *= min(1.0, 0.95 * (1 - A.max()) / np.linalg.norm(W, 2))
    root = rng.normal(size=(dim, dim))
    Q = process * (np.eye(dim) + 0.3 * root @ root.T)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A, W, h=0.3 * rng.normal(size=dim), C=rng.normal(size=(dim, inputs)) if inputs else None,
        process_noise=Q if full else np.diag(Q), initial_mean=rng.normal(size=dim),
        initial_noise=np.ones(dim), input_at_start=inputs > 0,
    )  # fmt: skip
    N = 2 * dim if channels is None else channels
    observation = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(N, dim)), rng.normal(size=N), noise=np.full(N, noise)
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def ragged(model, seed, lengths, missing=0.2):
    rng = np.random.default_rng(seed)
    steps, K = max(lengths), model.dynamics.n_inputs
    inputs = rng.normal(size=(len(lengths), steps, K)) if K else None
    full = model.simulate(steps, trials=len(lengths), inputs=inputs, seed=seed)
    values = full.values("x")
    values[rng.random(values.shape) < missing] = np.nan
    return ps.Dataset.from_arrays(
        {"x": [v[:n] for v, n in zip(values, lengths)]},
        inputs=None if inputs is None else [s[:n] for s, n in zip(inputs, lengths)],
    )


def problem(model, batch):
    prior = ChainPrior.of(model.dynamics, batch)
    zero = np.zeros((len(batch), batch.steps, prior.dim))
    return prior, expand(model, batch, zero)


def gradient(model, batch, path):
    z = torch.from_numpy(path).clone().requires_grad_()
    model.log_joint(batch, z).sum().backward()
    return z.grad.numpy()


def assert_stationary(model, batch, mode, *, tolerance=1e-6):
    """By autograd of the model's own log joint, on both sides of every kink that is occupied."""
    pinned = (mode.slope > 0) & (mode.slope < 1)
    at = np.zeros(mode.path.shape, dtype=bool)
    at[:, :-1] = pinned
    assert np.abs(mode.path[at]).max(initial=0) < 1e-7
    sides = []
    for side in (-1e-12, 1e-12):
        z = mode.path.copy()
        z[at] = side
        sides.append(gradient(model, batch, z))
    left, right = sides
    inside = batch.time_mask.numpy()[..., None] & ~at
    size = np.abs(np.linalg.inv(model.dynamics.noise.covariance.detach().numpy())).max()
    assert np.abs(left[inside]).max() < tolerance * size
    assert (left[at] >= -tolerance * size).all()
    assert (right[at] <= tolerance * size).all()
    return int(at.sum())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_stationary_on_both_sides_of_every_kink(full, warm):
    occupied = 0
    for seed in range(6):
        model = random_plrnn(seed, 3, full=full, inputs=1, channels=2)
        data = ragged(model, seed, (60, 25, 1))
        batch = data.batch()
        prior, terms = problem(model, batch)
        rng = np.random.default_rng(seed)
        start = rng.normal(size=terms.score.shape) if warm else None
        mode = find_mode(prior, terms, start)
        assert mode.status == ("stationary",) * 3
        occupied += assert_stationary(model, batch, mode)
        with torch.no_grad():
            joint = model.log_joint(batch, torch.from_numpy(mode.path)).numpy()
        np.testing.assert_allclose(mode.value, joint, rtol=1e-10)
        assert (mode.path[~batch.time_mask.numpy()] == 0).all()
    assert occupied > 0  # otherwise the kinks were not tested


def test_within_twelve_solves_from_cold_and_warm_starts_on_long_series():
    """The warm start is the mode under slightly other parameters, as one EM iteration ago."""
    solves = {"cold": [], "warm": []}
    occupied = 0
    for seed, (dim, steps) in itertools.product(range(3), ((3, 1000), (5, 1000), (5, 300))):
        for process in (1.0, 0.01):
            model = random_plrnn(seed, dim, process=process)
            batch = model.simulate(steps, seed=seed).batch()
            prior, terms = problem(model, batch)
            cold = find_mode(prior, terms)
            occupied += assert_stationary(model, batch, cold)
            before = random_plrnn(seed, dim, process=1.1 * process)
            with torch.no_grad():
                before.dynamics.A.mul_(0.98)
                before.dynamics.W.mul_(0.9)
                before.dynamics.h.add_(0.02)
            earlier = find_mode(*problem(before, batch)).path
            warm = find_mode(prior, terms, earlier)
            assert_stationary(model, batch, warm)
            started = prior.log_prob(earlier) + terms.value(earlier)
            assert (warm.value >= started - 1e-9 * np.abs(started)).all()
            for name, mode in (("cold", cold), ("warm", warm)):
                assert mode.status == ("stationary",)
                solves[name].append(int(mode.solves.max()))
    assert max(solves["cold"]) <= 12
    assert max(solves["warm"]) <= 12
    assert np.median(solves["warm"]) <= 9
    assert occupied > 50


def test_the_mode_is_the_best_over_all_regions_on_a_small_problem_or_a_local_maximum():
    """Brute force: the maximum inside every closed region of M=2, T=3 (2^4 regions)."""
    from scipy.optimize import minimize

    best = 0
    for seed in range(8):
        model = random_plrnn(100 + seed, 2, process=0.5, noise=1.0)
        batch = ragged(model, seed, (3,), missing=0.0).batch()
        prior, terms = problem(model, batch)
        mode = find_mode(prior, terms)
        assert_stationary(model, batch, mode)
        top = -np.inf
        for signs in itertools.product((-1.0, 1.0), repeat=4):
            sign = np.append(signs, (0.0, 0.0)).reshape(1, 3, 2)
            bounds = [{-1.0: (None, 0), 1.0: (0, None), 0.0: (None, None)}[s] for s in sign.flat]

            def negative(x, prior=prior, terms=terms):
                z = x.reshape(1, 3, 2)
                return -(prior.log_prob(z) + terms.value(z))[0]

            found = minimize(negative, 0.1 * sign.ravel(), bounds=bounds, method="L-BFGS-B")
            top = max(top, -found.fun)
        assert mode.value[0] <= top + 1e-6
        best += mode.value[0] > top - 1e-6
    assert best >= 6  # a local maximum is all that is promised, the global one is usual


def test_every_trial_alone_gives_what_it_gives_in_the_batch():
    model = random_plrnn(7, 3, channels=2)
    data = ragged(model, 3, (40, 1, 17, 30))
    together = find_mode(*problem(model, data.batch()))
    for b in range(4):
        alone = find_mode(*problem(model, data.batch([b])))
        steps = int(data.lengths[b])
        np.testing.assert_allclose(alone.value[0], together.value[b], rtol=1e-9)
        np.testing.assert_allclose(alone.path[0], together.path[b, :steps], atol=1e-6)


def test_a_search_that_may_not_finish_says_so():
    model = random_plrnn(2, 3, channels=2)
    batch = ragged(model, 1, (200,)).batch()
    prior, terms = problem(model, batch)
    mode = find_mode(prior, terms, max_solves=1)
    assert mode.status == ("max_solves",)
    assert np.isfinite(mode.value).all()


CHAOS = {
    "A": [-0.11, -0.23, -0.65],
    "W": [[0.0, 0.22, -1.48], [-1.37, 0.0, 0.6], [0.58, 1.34, 0.0]],
    "h": [0.94, 0.91, -0.48],
}


def chaotic():
    """Chaos, little noise, starts from nowhere: compiled sweeps do not settle on every trial."""
    rng = np.random.default_rng(0)
    dynamics = ps.dynamics.PLRNN.from_parameters(**CHAOS, process_noise=[1e-3] * 3)
    seen = ps.observations.Gaussian.from_parameters(rng.normal(size=(2, 3)), noise=[0.3] * 2)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    batch = ragged(model, 1, (300, 200, 300, 1), missing=0.5).batch()
    start = rng.normal(size=(4, 300, 3)) * batch.time_mask.numpy()[..., None]
    return model, batch, start


@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize("sweeps", [5, 8, 12])
def test_pins_of_an_unsettled_search_belong_to_its_best_path(sweeps, banded):
    model, batch, start = chaotic()
    prior, terms = problem(model, batch)
    if banded:
        terms = replace(terms, banded=np.zeros((4, 300, 2, 3, 3)))
    rho = mode_search.pin_stiffness(prior, terms)
    begin = ActiveSet.at(prior, start)
    found = mode_search._search(prior, terms, begin, rho, 1, sweeps, False)
    assert not found.stationary[:3].any() and found.pinned[:3].any((1, 2)).all()
    gates = prior.form.gates(found.visited[:, :-1])
    assert np.abs(gates[found.pinned]).max() < 1e-6
    joint = model.log_joint(batch, torch.from_numpy(found.visited)).detach().numpy()
    value = found.value + (0.0 if banded else mode_search.log_constant(prior, terms))
    np.testing.assert_allclose(value, joint, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [3.0, 1e3, 1e8])
def test_unstable_and_huge_systems_end_with_a_status(scale):
    """Parameters far outside anything sensible: no exception, no endless loop, a status."""
    rng = np.random.default_rng(0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        scale * rng.normal(size=3), scale * rng.normal(size=(3, 3)) * (1 - np.eye(3)),
        h=scale * rng.normal(size=3), process_noise=np.array([1e-6, 1.0, 1e6]),
    )  # fmt: skip
    observation = ps.observations.Gaussian.from_parameters(
        scale * rng.normal(size=(2, 3)), noise=[1e-5, 1e3]
    )
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    data = ps.Dataset.from_arrays({"x": scale * rng.normal(size=(2, 50, 2))})
    mode = find_mode(*problem(model, data.batch()), max_solves=40)
    assert set(mode.status) <= {"stationary", "max_solves", "failed"}
    for value, status in zip(mode.value, mode.status):
        assert np.isfinite(value) or status == "failed"
