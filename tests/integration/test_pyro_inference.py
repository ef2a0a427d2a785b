"""Inference by Pyro's own methods on bridged models, against exact posteriors."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)

import plssm as ps
from plssm.inference.pyro_bridge import to_pyro

H = "dynamics.h"
PRIOR_SD = 0.8


@pytest.fixture(autouse=True)
def _fresh_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def problem():
    """A linear-Gaussian model of one state, two ragged trials, one of them with a gap."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8]], h=[0.2], process_noise=[0.3], initial_mean=[0.0], initial_noise=[1.0]
    )
    x = ps.observations.Gaussian.from_parameters(
        [[1.0], [-0.5]], bias=[0.0, 0.3], noise=[0.4, 0.6]
    )
    model = ps.StateSpaceModel(dynamics, {"x": x})
    values = model.simulate(5, trials=2, seed=1).values("x")
    values[0, 2:4, 0] = np.nan
    data = ps.Dataset.from_arrays({"x": [values[0], values[1, :3]]}, 1.0)
    return model, data, ps.smooth(model, data)


@pytest.fixture(scope="module")
def bias_posterior(problem):
    """Mean and sd of h under a Normal prior, from exact evidences on a grid."""
    model, data, _ = problem
    model, grid = copy.deepcopy(model), np.linspace(-2.0, 2.5, 91)
    logs = []
    for h in grid:
        model.dynamics.h = [h]
        logs.append(float(ps.smooth(model, data).log_evidence.sum()))
    logs = np.array(logs) - 0.5 * (grid / PRIOR_SD) ** 2
    weight = np.exp(logs - logs.max())
    weight /= weight.sum()
    mean = float(weight @ grid)
    return mean, float(np.sqrt(weight @ (grid - mean) ** 2))


def close_to_smoother(z, exact, batch, *, mean, spread):
    """Means in units of the posterior's sd, sds as ratios, inside the trials only."""
    inside = batch.time_mask
    sd = exact.covariance()[..., 0, 0].sqrt()
    off = ((z.mean(0) - exact.mean)[..., 0] / sd)[inside]
    ratio = (z.std(0)[..., 0] / sd)[inside]
    assert float(off.abs().max()) < mean
    assert float((ratio - 1).abs().max()) < spread


def dense_precision(model, batch):
    """Precision of each trial's path, from second derivatives of the log joint."""
    out = []
    for b, steps in enumerate(batch.length.tolist()):

        def value(path, b=b, steps=steps):
            z = torch.zeros(len(batch), batch.steps, 1, dtype=torch.float64)
            z[b, :steps, 0] = path
            return -model.log_joint(batch, z)[b]

        at = torch.zeros(steps, dtype=torch.float64)
        out.append(torch.autograd.functional.hessian(value, at))
    return out


def optimise(run, guide, batch, *, steps, particles=1):
    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(run, guide, optimiser, Trace_ELBO(num_particles=particles))
    return [svi.step(batch) for _ in range(steps)]


def test_nuts_finds_paths_and_a_parameter(problem, bias_posterior):
    """Paths and the bias together; the paths' marginals are mixtures over the bias."""
    model, data, _ = problem
    batch, before = data.batch(), copy.deepcopy(model.state_dict())
    run = to_pyro(model, {H: dist.Normal(0.0, PRIOR_SD)})
    mcmc = MCMC(
        NUTS(run, target_accept_prob=0.7), num_samples=300, warmup_steps=100, disable_progbar=True
    )
    mcmc.run(batch)
    drawn = mcmc.get_samples()
    mean, sd = bias_posterior
    h = drawn[H][:, 0]
    assert h.dtype == torch.float64
    assert abs(float(h.mean()) - mean) < 0.35 * sd
    assert float(h.std()) == pytest.approx(sd, rel=0.25)
    beyond = drawn["z"][:, 1, 3:]
    assert abs(float(beyond.mean())) < 0.2 and float(beyond.std()) == pytest.approx(1, abs=0.2)
    given_h = [ps.smooth(run.to_model({H: value}), data) for value in drawn[H][::10]]
    exact = torch.stack([p.mean[..., 0] for p in given_h]).mean(0)[batch.time_mask]
    got = drawn["z"].mean(0)[..., 0][batch.time_mask]
    assert float((got - exact).abs().max()) < 0.2
    predicted = Predictive(run, drawn)(batch, observed=False)["x"]
    assert predicted.shape == (300, *batch.modalities["x"].y.shape)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_nuts_agrees_with_the_smoother(problem):
    model, data, exact = problem
    batch = data.batch()
    mcmc = MCMC(NUTS(to_pyro(model)), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(batch)
    close_to_smoother(mcmc.get_samples()["z"], exact, batch, mean=0.3, spread=0.25)


def test_laplace_is_exact_for_a_linear_gaussian_model(problem, bias_posterior):
    """Path, data and bias are jointly Gaussian: mode and curvature are the posterior."""
    model, data, _ = problem
    batch = data.batch()
    run = to_pyro(model, {H: dist.Normal(0.0, PRIOR_SD)})
    guide = AutoLaplaceApproximation(run)
    optimise(run, guide, batch, steps=400)
    fitted = guide.laplace_approximation(batch)
    location = fitted.loc.detach()
    covariance = fitted.get_posterior().covariance_matrix.detach()
    mean, sd = bias_posterior
    assert float(location[0]) == pytest.approx(mean, abs=0.02 * sd)
    assert float(covariance[0, 0].sqrt()) == pytest.approx(sd, rel=1e-3)
    drawn = Predictive(run, guide=fitted, num_samples=20)(batch)
    assert drawn["z"].shape == (20, 2, 5, 1)
    model_of_one = run.to_model({name: value[0] for name, value in drawn.items()})
    assert torch.equal(model_of_one.dynamics.h, drawn[H][0].reshape(1))


def test_mean_field_has_the_means_and_the_conditional_spreads(problem):
    """The best mean field of a Gaussian has its means and the inverse diagonal precision."""
    model, data, exact = problem
    batch = data.batch()
    run = to_pyro(model)
    guide = AutoNormal(run, init_scale=0.3)
    optimise(run, guide, batch, steps=500, particles=4)
    sd = exact.covariance()[..., 0, 0].sqrt()
    location, scale = (t.detach()[..., 0] for t in (guide.locs.z, guide.scales.z))
    for b, precision in enumerate(dense_precision(model, batch)):
        steps = len(precision)
        off = (location[b, :steps] - exact.mean[b, :steps, 0]) / sd[b, :steps]
        assert float(off.abs().max()) < 0.15
        wanted = precision.diagonal().rsqrt()
        torch.testing.assert_close(scale[b, :steps], wanted, rtol=0.15, atol=0)
        assert bool((wanted < sd[b, :steps]).all())
    torch.testing.assert_close(scale[1, 3:], torch.ones(2, dtype=torch.float64), rtol=0.15, atol=0)


def test_low_rank_guide_covers_paths_and_parameters(problem, bias_posterior):
    model, data, _ = problem
    batch = data.batch()
    run = to_pyro(model, {H: dist.Normal(0.0, PRIOR_SD), "observations.x.bias": "default"})
    guide = AutoLowRankMultivariateNormal(run, init_scale=0.2, rank=4)
    losses = optimise(run, guide, batch, steps=300)
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    drawn = Predictive(run, guide=guide, num_samples=30)(batch, observed=False)
    assert drawn["x"].shape == (30, 2, 5, 2) and drawn["z"].dtype == torch.float64
    assert drawn["observations.x.bias"].reshape(30, -1).shape == (30, 2)


def test_a_users_own_guide_beside_an_automatic_one(problem, bias_posterior):
    """AutoNormal for the bias, a full Gaussian written by hand for each path."""
    model, data, exact = problem
    batch = data.batch()
    run = to_pyro(model, {H: dist.Normal(0.0, PRIOR_SD)})
    start = exact.mean.nan_to_num(0.0)[..., 0]

    def path_guide(batch, observed=True):
        location = pyro.param("location", start.clone())
        root = pyro.param(
            "root",
            0.5 * torch.eye(5, dtype=torch.float64).repeat(2, 1, 1),
            constraint=dist.constraints.lower_cholesky,
        )
        with guide.plates["trials"]:  # the list of guides has made the plate
            normal = dist.MultivariateNormal(location, scale_tril=root)
            column = dist.transforms.ReshapeTransform((5,), (5, 1))
            return {"z": pyro.sample("z", dist.TransformedDistribution(normal, [column]))}

    guide = AutoGuideList(run)
    guide.append(AutoNormal(poutine.block(run, expose=[H]), init_scale=0.3))
    guide.append(path_guide)
    optimise(run, guide, batch, steps=500, particles=2)
    mean, sd = bias_posterior
    normal = guide[0]
    location = float(normal.get_parameter(f"locs.{H}").detach())
    scale = float(normal.scales.dynamics.h.detach())
    assert abs(location - mean) < 0.3 * sd
    assert 0.3 * sd < scale < 1.1 * sd


def test_seeds_repeat_a_run(problem):
    model, data, _ = problem
    batch, run = data.batch(), to_pyro(model)
    out = []
    for seed in (3, 3, 4):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoNormal(run)
        out.append(optimise(run, guide, batch, steps=5))
    assert out[0] == out[1] != out[2]
