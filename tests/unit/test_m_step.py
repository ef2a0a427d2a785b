"""Closed-form updates leave no slope of the expected log density, by autograd of the dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.m_step import (
    pool_trial_means,
    ridge_penalty,
    update_coefficients,
    update_initial,
    update_observations,
    update_process_noise,
)
from plssm.inference.starts import StartPath
from plssm.inference.statistics import exact_statistics, regional_statistics

M, K = 2, 2
LENGTHS = (9, 4, 1, 7, 6, 5)


def make(kind, *, noise="diagonal", initial="shared", at_start=False, tau=0.0):
    options = dict(noise=noise, initial=initial, initial_noise=noise, input_at_start=at_start)
    if kind == "linear":
        dynamics = ps.dynamics.LinearDynamics(M, K, **options)
    else:
        regularizer = ps.dynamics.ManifoldAttractor(tau, 2 * tau) if tau else None
        dynamics = ps.dynamics.PLRNN(M, K, regularizer=regularizer, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in dynamics.named_parameters():
            if name != "W":
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(3)})
    rng = np.random.default_rng(3)
    data = ps.Dataset.from_arrays(
        {"x": [rng.normal(size=(n, 3)) for n in LENGTHS]},
        inputs=[rng.normal(size=(n, K)) for n in LENGTHS],
    )
    batch = data.batch()
    inside = batch.time_mask.numpy()[..., None]
    path = np.where(inside, rng.normal(size=(len(LENGTHS), batch.steps, M)), 0.0)
    return model, batch, StartPath.certain(path, batch)


def statistics_of(dynamics, path, batch, exact):
    if exact:
        return exact_statistics(dynamics, _Posterior(path), batch)
    slope = (dynamics.relu_form().gates(path.mean[:, :-1]) > 0).astype(float)
    return regional_statistics(dynamics, path, batch, slope[..., : _gates(dynamics)])


def _gates(dynamics):
    return dynamics.relu_form().outer.shape[1]


class _Posterior:
    """A known path with the interface of a posterior (tiny spread: moments of hinges exist)."""

    def __init__(self, path):
        self.path, self.length = path, path.length

    def arrays(self):
        return self.path.arrays()


def slopes(dynamics, batch, path, ridge=0.0):
    """Gradient of log p(Z) - penalty in every parameter, by autograd."""
    value = dynamics.log_prob(torch.from_numpy(path.mean), batch.inputs, batch.length).sum()
    value = value - dynamics.penalty()
    if ridge:
        value = value - 0.5 * ridge * (dynamics.couplings**2).sum()
    names = [n for n, p in dynamics.named_parameters()]
    found = torch.autograd.grad(value, list(dynamics.parameters()), allow_unused=True)
    zero = torch.zeros(())
    return {n: zero if g is None else g for n, g in zip(names, found)}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("noise", ["diagonal", "full", "isotropic"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("linear", {}),
        ("linear", {"at_start": True}),
        ("plrnn", {}),
        ("plrnn", {"at_start": True, "tau": 3.0}),
        ("plrnn", {"tau": 3.0, "ridge": 0.7}),
    ],
)
def test_coefficients_have_no_slope_left(kind, options, noise, exact):
    ridge = options.pop("ridge", 0.0) if "ridge" in (options := dict(options)) else 0.0
    model, batch, path = make(kind, noise=noise, **options)
    dynamics = model.dynamics
    frozen = [(), ("h",), ("A",), ("C", "h")]
    for names in frozen:
        for name, p in dynamics.named_parameters():
            p.requires_grad_(name not in names)
        before = {n: p.clone() for n, p in dynamics.named_parameters()}
        statistics = statistics_of(dynamics, path, batch, exact)
        update_coefficients(dynamics, statistics, path, batch, ridge=ridge)
        dynamics.requires_grad_(True)
        slope = slopes(dynamics, batch, path, ridge)
        for name in {"A", "W", "h", "C"} & set(before):
            if name in names:
                assert torch.equal(dynamics.get_parameter(name), before[name])
            else:
                assert float(slope[name].abs().max()) < 1e-6, (names, name)
    if kind == "plrnn":
        assert (dynamics.W.diagonal() == 0).all()
        want = 0.35 * float((dynamics.W**2).sum().detach())
        np.testing.assert_allclose(ridge_penalty(dynamics, 0.7), want, rtol=1e-12)


@pytest.mark.parametrize("noise", ["diagonal", "full", "isotropic"])
@pytest.mark.parametrize("at_start", [False, True])
def test_noise_and_initial_state_have_no_slope_left(noise, at_start):
    model, batch, path = make("plrnn", noise=noise, at_start=at_start)
    dynamics = model.dynamics
    statistics = statistics_of(dynamics, path, batch, exact=False)
    assert update_initial(dynamics, path, batch, 1e-9) is None
    update_process_noise(dynamics, statistics, path, batch, None, 1e-9)
    slope = slopes(dynamics, batch, path)
    for name in slope:
        if name.startswith(("noise", "initial")):
            got = slope[name].tril() if slope[name].ndim == 2 else slope[name]
            assert float(got.abs().max()) < 1e-8, name


def test_few_trials_keep_the_initial_covariance():
    model, batch, path = make("linear")
    few = 2 * M - 1
    batch = ps.Dataset.from_arrays(
        {"x": np.random.default_rng(0).normal(size=(few, 5, 3))},
        inputs=np.zeros((few, 5, K)),
    ).batch()
    path = StartPath.certain(path.mean[:few, :5], batch)
    before = model.dynamics.initial.noise.covariance.clone()
    update_initial(model.dynamics, path, batch, 1e-9)
    assert torch.equal(before, model.dynamics.initial.noise.covariance)
    np.testing.assert_allclose(
        model.dynamics.initial.mean.detach().numpy(), path.mean[:, 0].mean(0)
    )


@pytest.mark.parametrize("at_start", [False, True])
def test_tied_means_follow_each_trial_and_share_the_process_noise(at_start):
    model, batch, path = make("linear", initial="tied", at_start=at_start, noise="full")
    dynamics = model.dynamics
    means = update_initial(dynamics, path, batch, 1e-9)
    drive = batch.inputs[:, 0].numpy() @ dynamics.C.detach().numpy().T if at_start else 0.0
    np.testing.assert_allclose(means + drive, path.mean[:, 0], atol=1e-12)
    statistics = statistics_of(dynamics, path, batch, exact=False)
    update_process_noise(dynamics, statistics, path, batch, means, 1e-9)
    theta = dynamics.coefficients()[0].numpy()
    count = sum(LENGTHS)  # z_1 of every trial, known here, adds to the count but no residual
    np.testing.assert_allclose(
        dynamics.noise.covariance.detach().numpy(), statistics.residual(theta) / count, atol=1e-10
    )
    pool_trial_means(dynamics, means)
    spread = np.cov(means.T, bias=True)
    np.testing.assert_allclose(
        dynamics.initial.noise.covariance.detach().numpy(),
        dynamics.noise.covariance.detach().numpy() + spread,
        atol=1e-10,
    )


def test_a_frozen_mean_is_that_of_every_trial():
    model, batch, path = make("linear", initial="tied")
    model.dynamics.initial.mean.requires_grad_(False)
    mean = model.dynamics.initial.mean.clone()
    means = update_initial(model.dynamics, path, batch, 1e-9)
    np.testing.assert_allclose(means, np.tile(mean.numpy(), (len(LENGTHS), 1)))
    assert torch.equal(mean, model.dynamics.initial.mean)


def test_wholly_frozen_parts_do_not_move():
    model, batch, path = make("plrnn", tau=1.0)
    model.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    statistics = statistics_of(model.dynamics, path, batch, exact=False)
    update_coefficients(model.dynamics, statistics, path, batch, ridge=1.0)
    update_initial(model.dynamics, path, batch, 1e-3)
    update_process_noise(model.dynamics, statistics, path, batch, None, 1e-3)
    data_posterior = ps.smooth(model, _dataset(batch))
    update_observations(model, data_posterior, batch)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def _dataset(batch):
    m = batch.modalities["x"]
    return ps.Dataset.from_arrays(
        {"x": [y[:n].numpy() for y, n in zip(m.y, batch.length)]},
        inputs=[s[:n].numpy() for s, n in zip(batch.inputs, batch.length)],
    )


def test_variances_have_a_floor():
    model, batch, path = make("linear", noise="full")
    still = StartPath.certain(np.zeros_like(path.mean), batch)
    with torch.no_grad():
        model.dynamics.h.zero_()
        model.dynamics.C.zero_()
    statistics = statistics_of(model.dynamics, still, batch, exact=False)
    update_process_noise(model.dynamics, statistics, still, batch, None, 1e-4)
    update_initial(model.dynamics, still, batch, 1e-4)
    for noise in (model.dynamics.noise, model.dynamics.initial.noise):
        np.testing.assert_allclose(noise.covariance.detach().numpy(), 1e-4 * np.eye(M), atol=1e-12)


def test_a_unit_that_never_opens_gets_finite_weights():
    """Regressors without any variation: the least squares of smallest norm."""
    model, batch, path = make("plrnn")
    closed = StartPath.certain(-np.abs(path.mean) - 1.0, batch)
    statistics = statistics_of(model.dynamics, closed, batch, exact=False)
    update_coefficients(model.dynamics, statistics, closed, batch)
    for _, p in model.dynamics.named_parameters():
        assert torch.isfinite(p).all()
    assert float(model.dynamics.W.detach().abs().max()) == 0.0
