"""Where the kinks of a fresh map are placed: affine maps, the search, and known systems."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM
from plssm.inference.hinge_placement import Placement, Whitened, best_placement
from plssm.inference.starts import StartPath


def chain(k=2, trials=2, steps=400, seed=0):
    rng = np.random.default_rng(seed)
    mean = np.cumsum(0.1 * rng.standard_normal((trials, steps, k)), axis=1)
    root = 0.1 * rng.standard_normal((trials, steps, k, k))
    lags = 0.01 * rng.standard_normal((trials, steps, 3, k, k))
    lags[:, :, 0] = root @ root.swapaxes(-1, -2)
    return StartPath(mean, lags, torch.full((trials,), steps))


def everywhere(state):
    return np.ones(state.mean.shape[:2], dtype=bool)


def nothing(path):
    raise AssertionError("with one candidate, or more features than k, nothing is scored")


def test_features_are_one_affine_map_of_mean_and_moments():
    state = chain()
    lifted = best_placement(state, everywhere(state), 5, seed=1, candidates=100, score=nothing)
    flat = np.column_stack([state.mean.reshape(-1, 2), np.ones(800)])
    solved, residual = np.linalg.lstsq(flat, lifted.mean.reshape(-1, 5), rcond=None)[:2]
    assert residual.max() < 1e-18
    weights = solved[:2].T
    np.testing.assert_allclose(lifted.lags, weights @ state.lags @ weights.T, atol=1e-12)
    for got, wanted in zip(lifted.arrays()[1:], (lifted.lags[:, :, 0], lifted.lags[:, :-1, 1])):
        assert np.array_equal(got, wanted)
    assert np.array_equal(lifted.lagged(4)[:, :, :3], lifted.lags)
    assert not lifted.lagged(4)[:, :, 3:].any()
    assert np.abs(weights[:2][~np.eye(2, dtype=bool)]).max() < 1e-12  # its own coordinates
    np.testing.assert_allclose(lifted.mean[..., :2].std((0, 1)), 1.0, rtol=1e-2)
    closed = (lifted.mean < 0).mean((0, 1))
    assert (closed[:2] < 0.25).all() and (closed[:2] >= 0).all()


@pytest.mark.parametrize("k", [1, 3])
def test_kinks_lie_at_the_quantiles_asked_for(k):
    state = chain(k)
    white = Whitened(state, everywhere(state))
    place = Placement.random(white, np.random.default_rng(3))
    z = place.features(white).of(white).mean.reshape(-1, k)
    np.testing.assert_allclose((z < 0).mean(0), place.closed, atol=2 / len(z))
    np.testing.assert_allclose(np.linalg.norm(place.directions, axis=1), 1.0)
    spread = white.seen @ white.map.T
    np.testing.assert_allclose(np.cov(spread.T).reshape(k, k), np.eye(k), atol=1e-10)


def observed_map(seed):
    """Noisy PLRNN states seen in oblique coordinates, and what they are regressed with."""
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.9, 0.85],
        [[0.0, -0.5], [0.45, 0.0]],
        h=[0.3, -0.2],
        process_noise=[0.1, 0.1],
        initial_noise=[0.5, 0.5],
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        z = dynamics.rollout(torch.zeros(1, 2).double(), 4000, noise=True, generator=generator)
    mix = np.array([[1.0, 0.6], [-0.4, 1.2]])
    z = np.ascontiguousarray(z.numpy().reshape(1, -1, 2))
    return z, z @ mix.T + np.array([2.0, -1.0]), mix


def density(path):
    """Log density of a step: least squares of each unit on itself and the other's hinge."""
    z = path.mean[0]
    total = 0.0
    for i, j in ((0, 1), (1, 0)):
        x = np.column_stack([z[:-1, i], np.maximum(z[:-1, j], 0.0), np.ones(len(z) - 1)])
        left = z[1:, i] - x @ np.linalg.lstsq(x, z[1:, i], rcond=None)[0]
        total -= 0.5 * np.log((left**2).mean())
    return total


def test_search_comes_close_to_the_true_placement():
    """Score of the truth: log density of its own coordinates plus the volume they span."""
    z, x, mix = observed_map(0)
    state = StartPath(x, np.zeros((*x.shape[:2], 2, 2, 2)), torch.tensor([x.shape[1]]))
    inside = everywhere(state)
    white = Whitened(state, inside)
    of_truth = np.linalg.inv(mix) @ np.linalg.inv(white.map)  # z in whitened coordinates
    wanted = density(StartPath(z, state.lags, state.length)) + np.linalg.slogdet(of_truth)[1]

    def reached(candidates, seed):
        path = best_placement(state, inside, 2, seed=seed, candidates=candidates, score=density)
        weights = np.linalg.lstsq(x[0] - x[0].mean(0), path.mean[0] - path.mean[0].mean(0))[0].T
        return density(path) + np.linalg.slogdet(weights @ np.linalg.inv(white.map))[1]

    few, many = (np.array([reached(n, s) for s in range(3)]) for n in (1, 200))
    assert (many > few).all()
    assert np.median(wanted - many) < 0.2 * np.median(wanted - few)


def test_long_data_are_thinned_before_hinges_are_chosen(monkeypatch):
    """Of a tenth of the steps; the path itself keeps all of them."""
    from plssm.inference import hinge_placement

    sizes, original = [], hinge_placement.choose_hinges

    def spied(seen, now, following, count, *, rng):
        sizes.append((len(seen), len(now), len(following)))
        return original(seen, now, following, count, rng=rng)

    monkeypatch.setattr(hinge_placement, "choose_hinges", spied)
    monkeypatch.setattr(hinge_placement, "ENOUGH", 80)
    state = chain()
    path = best_placement(state, everywhere(state), 4, seed=0, candidates=1, score=nothing)
    assert sizes == [(80, 80, 80)]
    assert path.mean.shape == (2, 400, 4)


def test_the_seed_decides_and_padding_stays_zero():
    state = chain()
    inside = everywhere(state)
    inside[1, 300:] = False
    paths = [
        best_placement(state, inside, 2, seed=s, candidates=5, score=density).mean
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(paths[0], paths[1])
    assert not np.allclose(paths[0], paths[2])
    assert (paths[0][1, 300:] == 0).all()


def test_a_fresh_fit_finds_the_hinges_of_a_noisy_system():
    """A spiral whose turn depends on the side of the kinks: beside the truth and a linear fit."""
    rng = np.random.default_rng(0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.988, 0.985],
        [[0.0, -0.14], [0.12, 0.0]],
        h=[0.06, -0.03],
        process_noise=[0.012, 0.012],
        initial_noise=[0.5, 0.5],
    )
    seen = ps.observations.Gaussian.from_parameters(rng.normal(size=(10, 2)), noise=[0.5] * 10)
    truth = ps.StateSpaceModel(dynamics, {"y": seen})
    data = truth.simulate(250, trials=20, seed=1)

    def evidence(latent, seed):
        model = ps.StateSpaceModel(latent, {"y": ps.observations.Gaussian(10)})
        fit = LaplaceEM(seed=seed, iterations=30).fit(model, data, progress=False)
        return float(fit.posterior(data).log_evidence.sum())

    known = float(ps.smooth(truth, data).log_evidence.sum())
    linear = evidence(ps.dynamics.LinearDynamics(2), 0)
    hinged = np.median([evidence(ps.dynamics.PLRNN(2), s) for s in range(3)])
    assert known - linear > 200
    assert known - hinged < 0.5 * (known - linear)
