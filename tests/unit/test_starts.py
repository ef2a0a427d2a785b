"""Data-driven starts: shapes, missing data, clocks, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM
from plssm.inference.hinge_placement import lifted
from plssm.inference.starts import observed_path, predictable_path, state_dim, state_path


def model_of(dim, **channels):
    observations = {name: ps.observations.Gaussian(n) for name, n in channels.items()}
    return ps.StateSpaceModel(ps.dynamics.PLRNN(dim), observations)


def waves(steps=80, channels=4, seed=0, trials=2):
    rng = np.random.default_rng(seed)
    t = np.arange(steps)[None, :, None]
    phase = rng.uniform(0, 6, (trials, 1, channels))
    x = np.sin(0.2 * t + phase) + 0.5 * np.cos(0.05 * t * (1 + np.arange(channels)))
    return x + 0.05 * rng.normal(size=x.shape)


def test_components_are_those_of_the_data():
    """Complete data, fewer components than channels: principal components, unit variance."""
    x = waves()
    model = model_of(3, x=4)
    batch = ps.Dataset.from_arrays({"x": x}).batch()
    path = state_path(model, batch, 3).mean
    flat = path.reshape(-1, 3)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.eye(3), atol=1e-8)
    z = (x - x.mean((0, 1))) / x.std((0, 1))
    u = np.linalg.svd(z.reshape(-1, 4), full_matrices=False)[0][:, :3]
    np.testing.assert_allclose(np.abs(u.T @ flat) / np.sqrt(len(flat)), np.eye(3), atol=1e-8)


@pytest.mark.parametrize("dim", [1, 4, 7])
def test_ragged_trials_gaps_and_clocks(dim):
    rng = np.random.default_rng(1)
    x = waves(40, 2)
    x[rng.random(x.shape) < 0.4] = np.nan
    values = [x[0], x[1, :13]]
    slow = [rng.normal(size=(6, 1)), rng.normal(size=(2, 1))]
    times = [np.array([0.2, 3.0, 3.3, 20.0, 31.5, 38.0]), np.array([2.0, 9.0])]
    data = ps.Dataset.from_arrays({"x": values, "slow": slow}, times={"slow": times})
    batch = data.batch()
    model = model_of(dim, x=2, slow=1)
    state = state_path(model, batch, state_dim(model))
    path, again, other = (
        lifted(state, batch.time_mask.numpy(), dim, seed=seed) for seed in (3, 3, 4)
    )
    assert path.mean.shape == (2, 40, dim)
    assert np.isfinite(path.mean).all()
    assert (path.mean[1, 13:] == 0).all()
    assert (state.mean[1, 13:] == 0).all()
    np.testing.assert_array_equal(path.mean, again.mean)
    assert not np.allclose(path.mean, other.mean)
    inside = batch.time_mask.numpy()
    open_share = (path.mean[inside] > 0).mean(0)
    assert ((open_share > 0) & (open_share < 1)).any()


def test_a_channel_without_a_single_value_does_no_harm():
    """A wholly hidden channel, as in hold_out of a channel, while fitting."""
    data = ps.Dataset.from_arrays({"x": waves()}).hold_out("x", channels=[2])
    model = model_of(3, x=4)
    assert np.isfinite(state_path(model, data.batch(), 3).mean).all()
    fit = LaplaceEM(iterations=6).fit(model, data)
    assert torch.isfinite(fit.posterior(data).log_evidence).all()
    assert np.isfinite(fit.score(data)["log_likelihood"]).all()


def test_tiny_data():
    """One trial of two steps, more latent dimensions than numbers."""
    data = ps.Dataset.from_arrays({"x": np.array([[[0.3], [0.8]]])})
    model = model_of(4, x=1)
    fit = LaplaceEM(iterations=6).fit(model, data)
    assert torch.isfinite(fit.posterior(data).log_evidence).all()


def test_known_observations_show_the_path():
    rng = np.random.default_rng(2)
    B = rng.normal(size=(6, 2))
    z = np.cumsum(rng.normal(size=(1, 60, 2)), axis=1)
    known = ps.observations.Gaussian.from_parameters(B, noise=np.full(6, 1e-3))
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": known})
    data = model.observe(z, seed=0)
    path = observed_path(model, data.batch())
    np.testing.assert_allclose(path.mean, z, atol=0.2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit = LaplaceEM(iterations=6).fit(model, data)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert np.isfinite(fit.history["evidence"]).all()


def test_start_settings():
    """auto: what was set is kept; data: everything starts afresh; model: nothing does."""
    truth = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters(
            [0.9, 0.7], [[0.0, 0.3], [-0.3, 0.0]], h=[0.1, 0.1], process_noise=[0.1, 0.1]
        ),
        {"x": ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.1, 0.1])},
    )
    data = truth.simulate(60, trials=2, seed=0)
    known = float(ps.smooth(truth, data).log_evidence.sum())
    first = {}
    for start in ("auto", "model", "data"):
        fit = LaplaceEM(iterations=2, start=start).fit(truth, data)
        first[start] = fit.history["evidence"].iloc[0]
    np.testing.assert_allclose([first["auto"], first["model"]], known, rtol=1e-9)
    assert abs(first["data"] - known) > 1e-3
    fresh = model_of(2, x=2)
    one = LaplaceEM(iterations=2, start="model").fit(fresh, data).history["evidence"].iloc[0]
    np.testing.assert_allclose(one, float(ps.smooth(fresh, data).log_evidence.sum()), rtol=1e-9)


def explained(path, states):
    """Share of the variance of the states that an affine map of the path explains."""
    x = np.column_stack([path.reshape(-1, path.shape[-1]), np.ones(path[..., 0].size)])
    y = states.reshape(-1, states.shape[-1])
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - left.var() / y.var()


@pytest.mark.parametrize("speed", [0.03, 0.1])
def test_predictable_path_is_smooth_where_labels_jump(speed):
    """A rotation seen through one of four labels a step, some of them hidden."""
    rng = np.random.default_rng(0)
    phase = speed * np.arange(400) + rng.uniform(0, 6, (6, 1))
    states = np.stack([np.cos(phase), np.sin(phase)], -1)
    weight = 1.5 * np.array([[1, 0], [-1, 0], [0, 1.0]])
    seen = ps.observations.Categorical.from_parameters(weight, bias=np.zeros(3))
    truth = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"y": seen})
    batch = truth.observe(states, seed=0).hold_out("y", times=(100.0, 110.0)).batch()
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"y": ps.observations.Categorical(4)})
    path = predictable_path(model, batch, 2).mean
    np.testing.assert_allclose(path.std((0, 1)), 1.0, rtol=1e-6)
    assert (
        explained(path, states) > 0.75 > 0.4 > explained(state_path(model, batch, 2).mean, states)
    )


def test_predictable_path_of_a_linear_system_is_its_state():
    """Canonical variates of past and future span the state of a linear-Gaussian system."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A=[[0.95, -0.2], [0.2, 0.95]], process_noise=[0.05, 0.05], initial_noise=[0.5, 0.5]
    )
    B = np.random.default_rng(1).normal(size=(8, 2))
    seen = ps.observations.Gaussian.from_parameters(B, noise=[0.05] * 8)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = model.simulate(2000, trials=3, seed=0)
    path = predictable_path(model, data.batch(), 2).mean
    assert explained(path, data.latent) > 0.95


@pytest.mark.parametrize("steps", [2, 9, 40])
def test_predictable_path_of_short_or_empty_data(steps):
    """Too few steps give the principal components; a channel without data does no harm."""
    rng = np.random.default_rng(0)
    y = rng.poisson(1.0, (2, steps, 3)).astype(float)
    y[1, steps // 2 :] = np.nan
    y[..., 2] = np.nan
    data = ps.Dataset.from_arrays({"y": y}, kinds={"y": "count"}, check_channels=False)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"y": ps.observations.Poisson(3)})
    path = predictable_path(model, data.batch(), 2).mean
    assert path.shape == (2, steps, 2) and np.isfinite(path).all()


def test_predictable_path_of_data_too_long_for_its_windows(monkeypatch):
    """Shorter windows where memory asks for it; without any, the principal components."""
    from plssm.inference import starts

    rng = np.random.default_rng(0)
    y = rng.poisson(1.0, (2, 60, 3)).astype(float)
    batch = ps.Dataset.from_arrays({"y": y}, kinds={"y": "count"}).batch()
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"y": ps.observations.Poisson(3)})
    whole = predictable_path(model, batch, 2).mean
    monkeypatch.setattr(starts, "LARGEST", 3 * y.size)
    short = predictable_path(model, batch, 2).mean
    assert np.isfinite(short).all() and not np.allclose(short, whole)
    monkeypatch.setattr(starts, "LARGEST", 10)
    none = predictable_path(model, batch, 2).mean
    np.testing.assert_array_equal(none, state_path(model, batch, 2).mean)
