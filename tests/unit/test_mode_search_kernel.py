"""The compiled mode search: stationarity by autograd and by one-sided finite differences."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plssm.kernels._mode_twin import objective_twin, search_twin
from plssm.kernels.chain import solve_chain
from plssm.kernels.mode_search import path_values, search_modes

PIN = 1e8


def random_problem(rng, trials, steps, m, hinges=None):
    """A random map (identity gates when `hinges` is None) and observation terms."""
    p = m if hinges is None else hinges
    outer = 0.3 * rng.normal(size=(m, p))
    inner, offset = np.eye(m), np.zeros(m)
    if hinges is not None:
        inner, offset = rng.normal(size=(p, m)) / np.sqrt(m), 0.3 * rng.normal(size=p)
    form = SimpleNamespace(
        linear=np.diag(rng.uniform(0.3, 0.9, m)),
        bias=0.3 * rng.normal(size=m),
        outer=outer,
        inner=inner,
        offset=offset,
        identity_gates=hinges is None,
    )
    root = rng.normal(size=(m, m + 4))
    readout = rng.normal(size=(4, m))
    return {
        "form": form,
        "drive": 0.3 * rng.normal(size=(trials, steps - 1, m)),
        "precision": np.linalg.inv(root @ root.T / m),
        "initial_mean": rng.normal(size=(trials, m)),
        "initial_precision": np.eye(m),
        "information": (readout.T @ readout)[None, None],
        "score": 2.0 * rng.normal(size=(trials, steps, m)),
        "slope": np.full((trials, steps - 1, p), 0.5),
    }


def log_joint(problem, z, length):
    """The objective of each trial, straight from its definition."""
    f = problem["form"]
    t = {k: torch.as_tensor(v) for k, v in problem.items() if k != "form"}
    linear, bias, outer, inner, offset = (
        torch.as_tensor(x) for x in (f.linear, f.bias, f.outer, f.inner, f.offset)
    )
    step = z[:, :-1] @ linear.T + bias + torch.relu(z[:, :-1] @ inner.T + offset) @ outer.T
    e = z[:, 1:] - step - t["drive"]
    inside = torch.arange(z.shape[1]) < torch.as_tensor(length)[:, None]
    first = z[:, 0] - t["initial_mean"]
    observed = (t["score"] * z).sum(-1) - 0.5 * ((z @ t["information"][0, 0]) * z).sum(-1)
    moved = -0.5 * ((e @ t["precision"]) * e).sum(-1)
    return (
        -0.5 * ((first @ t["initial_precision"]) * first).sum(-1)
        + torch.where(inside, observed, 0.0).sum(1)
        + torch.where(inside[:, 1:], moved, 0.0).sum(1)
    )


CASES = [(3, 30, 3, None), (3, 25, 3, 5), (2, 1, 3, None), (2, 20, 1, None)]


@pytest.mark.parametrize(("trials", "steps", "m", "hinges"), CASES)
def test_ends_at_a_local_maximum(trials, steps, m, hinges):
    rng = np.random.default_rng(steps)
    problem = random_problem(rng, trials, steps, m, hinges)
    length = rng.integers(max(1, steps // 2), steps + 1, size=trials)
    length[0] = steps
    found = search_modes(**problem, length=length, pin=PIN)
    assert found.stationary.all()
    assert (found.solves <= 13).all()
    z = torch.as_tensor(found.path)
    top = log_joint(problem, z, length)
    np.testing.assert_allclose(top, found.value, rtol=1e-6, atol=1e-6)
    inside = (np.arange(steps) < length[:, None])[..., None]
    assert not found.path[~np.broadcast_to(inside, found.path.shape)].any()
    for scale in (1e-1, 1e-3):
        moves = scale * rng.normal(size=(60, *found.path.shape)) * inside
        moves[30:] *= rng.random(size=moves[30:].shape) < 3 / steps / m
        for move in moves:
            assert (log_joint(problem, z + torch.as_tensor(move), length) <= top + 1e-7).all()


@pytest.mark.parametrize("hinges", [None, 5, 2])
@pytest.mark.parametrize("steps", [60, 2])
def test_equals_twin(hinges, steps):
    rng = np.random.default_rng(21)
    problem = random_problem(rng, 3, steps, 3, hinges)
    path, slope, stationary = search_twin(**problem, pin=PIN)
    found = search_modes(**problem, pin=PIN)
    np.testing.assert_allclose(found.path, path, atol=1e-7)
    np.testing.assert_allclose(found.slope, slope, atol=1e-5)
    np.testing.assert_array_equal(found.stationary, stationary)
    del problem["slope"]
    np.testing.assert_allclose(found.value, objective_twin(**problem, z=found.visited), rtol=1e-9)


@pytest.mark.parametrize("hinges", [None, 5])
def test_mode_is_the_mean_of_the_returned_gaussian(hinges):
    rng = np.random.default_rng(11)
    problem = random_problem(rng, 3, 40, 3, hinges)
    found = search_modes(**problem, pin=PIN)
    form = problem["form"]
    jacobian = form.linear + (form.outer * found.slope[..., None, :]) @ form.inner
    offset = form.bias + (found.slope * form.offset) @ form.outer.T + problem["drive"]
    path, factor = solve_chain(
        jacobian,
        offset,
        problem["precision"],
        problem["initial_mean"],
        problem["initial_precision"],
        problem["information"],
        problem["score"],
    )
    np.testing.assert_allclose(found.path, path, atol=1e-10)
    np.testing.assert_allclose(found.path, found.visited, atol=1e-6)
    np.testing.assert_allclose(found.factor.logdet, factor.logdet, rtol=1e-12)
    gate = found.path[:, :-1] @ form.inner.T + form.offset
    between = (found.slope > 0) & (found.slope < 1)
    assert between.any()
    assert np.abs(gate[between]).max() < 1e-6
    np.testing.assert_array_equal(gate[~between] > 0, found.slope[~between] == 1)


def constrained_maxima(problem):
    """True objective at the maximum of every pattern of off, on and pinned, M = 1, four steps."""
    form, values = problem["form"], []
    for pattern in np.ndindex(3, 3, 3):
        slope = np.array([float(state == 1) for state in pattern])[None, :, None]
        pinned = np.array([1e12 * (state == 2) for state in pattern] + [0.0])
        path, _ = solve_chain(
            form.linear + form.outer * slope[..., None],
            form.bias + problem["drive"],
            problem["precision"],
            problem["initial_mean"],
            problem["initial_precision"],
            problem["information"] + pinned[None, :, None, None],
            problem["score"],
        )
        values.append(float(log_joint(problem, torch.as_tensor(path), [4])[0]))
    return np.array(values)


def test_agrees_with_enumeration_of_all_patterns():
    rng = np.random.default_rng(5)
    best = 0
    for _ in range(30):
        problem = random_problem(rng, 1, 4, 1)
        found = search_modes(**problem, pin=PIN)
        values = constrained_maxima(problem)
        assert found.stationary[0]
        assert np.abs(values - found.value[0]).min() < 1e-6
        assert found.value[0] < values.max() + 1e-6
        best += found.value[0] > values.max() - 1e-6
    assert best >= 25


def test_warm_start_with_known_pins_needs_one_solve():
    rng = np.random.default_rng(7)
    problem = random_problem(rng, 2, 200, 3)
    cold = search_modes(**problem, pin=PIN)
    pinned = (cold.slope > 0) & (cold.slope < 1)
    assert pinned.any()
    problem["slope"] = cold.slope
    warm = search_modes(**problem, pin=PIN, pinned=pinned)
    np.testing.assert_array_equal(warm.solves, [2, 2])
    np.testing.assert_allclose(warm.path, cold.path, atol=1e-8)


def test_gives_up_after_max_solves_with_the_best_visited_path():
    rng = np.random.default_rng(7)
    problem = random_problem(rng, 1, 200, 3)
    found = search_modes(**problem, pin=PIN, max_solves=1)
    assert not found.stationary[0]
    assert found.solves[0] == 2
    top = log_joint(problem, torch.as_tensor(found.visited), [200])
    np.testing.assert_allclose(found.value, top, rtol=1e-10)


def test_failed_pivot_leaves_other_trials_alone():
    rng = np.random.default_rng(9)
    problem = random_problem(rng, 3, 12, 3)
    problem["information"] = np.broadcast_to(problem["information"], (3, 12, 3, 3)).copy()
    good = search_modes(**problem, pin=PIN)
    problem["information"][1, 5] = -1e5 * np.eye(3)
    found = search_modes(**problem, pin=PIN)
    np.testing.assert_array_equal(found.stationary, [True, False, True])
    np.testing.assert_array_equal(found.factor.status, [0, 6, 0])
    np.testing.assert_array_equal(found.path[[0, 2]], good.path[[0, 2]])
    assert not found.path[1].any()


@pytest.mark.parametrize(("trials", "steps", "m", "hinges"), [*CASES, (2, 9, 3, 0)])
def test_values_of_paths(trials, steps, m, hinges):
    rng = np.random.default_rng(31)
    problem = random_problem(rng, trials, steps, m, hinges)
    problem["initial_precision"] = np.eye(m) + 0.2
    length = rng.integers(1, steps + 1, size=trials)
    path = rng.normal(size=(trials, steps, m))
    arguments = {k: v for k, v in problem.items() if k != "slope"}
    values = path_values(**arguments, path=path, length=length)
    np.testing.assert_allclose(values, log_joint(problem, torch.as_tensor(path), length))
