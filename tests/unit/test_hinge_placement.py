"""Where the kinks of a fresh map are placed: affine maps, the search, and known systems."""

from __future__ import annotations

import numpy as np
import torch

import plssm as ps
from plssm.inference import LaplaceEM
from plssm.inference.hinge_placement import lifted
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


def test_features_are_one_affine_map_of_mean_and_moments():
    state = chain()
    path = lifted(state, everywhere(state), 5, seed=1)
    flat = np.column_stack([state.mean.reshape(-1, 2), np.ones(800)])
    solved, residual = np.linalg.lstsq(flat, path.mean.reshape(-1, 5), rcond=None)[:2]
    assert residual.max() < 1e-18
    weights = solved[:2].T
    np.testing.assert_allclose(path.lags, weights @ state.lags @ weights.T, atol=1e-12)
    for got, wanted in zip(path.arrays()[1:], (path.lags[:, :, 0], path.lags[:, :-1, 1])):
        assert np.array_equal(got, wanted)
    assert np.array_equal(path.lagged(4)[:, :, :3], path.lags)
    assert not path.lagged(4)[:, :, 3:].any()
    assert np.abs(weights[:2][~np.eye(2, dtype=bool)]).max() < 1e-12  # its own coordinates
    np.testing.assert_allclose(path.mean[..., :2].std((0, 1)), 1.0, rtol=1e-2)
    closed = (path.mean < 0).mean((0, 1))
    assert (closed[:2] < 0.25).all() and (closed[:2] >= 0).all()


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
    path = lifted(state, everywhere(state), 4, seed=0)
    assert sizes == [(80, 80, 80)]
    assert path.mean.shape == (2, 400, 4)


def test_the_seed_decides_and_padding_stays_zero():
    state = chain()
    inside = everywhere(state)
    inside[1, 300:] = False
    paths = [lifted(state, inside, 2, seed=s).mean for s in (0, 0, 1)]
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
    assert known - hinged < 2.0
