"""The mean of the latent path to second order, beside integrals and the evidence's gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as obs
from plssm.inference.laplace import laplace_posterior
from plssm.inference.mean_correction import FARTHEST, mean_corrected


def labels(k, classes, size, rng):
    return obs.Categorical.from_parameters(
        size * rng.normal(size=(classes - 1, k)), bias=np.zeros(classes - 1)
    )


def kinds(k, rng):
    spikes = {"weight": 0.7 * rng.normal(size=(4, k)), "bias": rng.uniform(-0.5, 0.5, 4)}
    return {
        "poisson": obs.Poisson.from_parameters(**spikes),
        "softplus": obs.Poisson.from_parameters(**spikes, link="softplus"),
        "negative binomial": obs.NegativeBinomial.from_parameters(**spikes, dispersion=[3.0] * 4),
        "categorical": labels(k, 4, 1.0, rng),
        "ordinal": obs.Ordinal.from_parameters(rng.normal(size=(3, k)), [[-1.0, 0.3, 1.5]] * 3),
    }


KINDS = tuple(kinds(1, np.random.default_rng(0)))


def walk(k, noise=0.3):
    return ps.dynamics.LinearDynamics.from_parameters(
        A=0.9 * np.eye(k), process_noise=np.full(k, noise), initial_noise=np.full(k, 1.0)
    )


def corrected(model, data):
    batch = data.batch()
    result = laplace_posterior(model, batch)
    return result, mean_corrected(model, batch, result)


@pytest.mark.parametrize("kind", KINDS)
def test_nearer_to_the_integral_than_the_mode(kind):
    """One state of one dimension: the posterior mean by a fine grid, over many draws."""
    rng = np.random.default_rng(1)
    errors = []
    for seed in range(12):
        model = ps.StateSpaceModel(walk(1), {"y": kinds(1, rng)[kind]})
        data = model.simulate(1, trials=3, seed=seed)
        batch = data.batch()
        result, chain = corrected(model, data)
        grid = torch.linspace(-7, 7, 4001, dtype=torch.float64)
        for b in range(3):
            m = batch.modalities["y"]
            one = type(m)(m.y[b : b + 1], m.mask[b : b + 1], dt=m.dt)
            with torch.no_grad():
                many = type(m)(
                    one.y.expand(len(grid), -1, -1), one.mask.expand(len(grid), -1, -1), dt=m.dt
                )
                local = model.observations["y"].local(many, grid[:, None, None]).log_prob
            density = torch.exp(local - local.max() - 0.5 * grid**2)
            mean = float((grid * density).sum() / density.sum())
            errors.append((result.path[b, 0, 0] - mean, chain.arrays()[0][b, 0, 0] - mean))
    before, after = np.sqrt((np.array(errors) ** 2).mean(0))
    assert after < 0.4 * before


@pytest.mark.parametrize("kind", KINDS)
def test_step_is_that_of_the_log_determinant(kind):
    """-U^-1 grad log|U| / 2, the gradient by central differences of the curvature."""
    rng = np.random.default_rng(2)
    model = ps.StateSpaceModel(walk(2), {"y": kinds(2, rng)[kind]})
    data = model.simulate(12, trials=3, seed=0)
    batch = data.batch()
    result, chain = corrected(model, data)
    covariance, path = torch.from_numpy(result.posterior.arrays()[1]), torch.tensor(result.path)
    gradient, h = np.zeros(path.shape), 1e-4
    for i in range(2):
        e = h * torch.eye(2, dtype=torch.float64)[i]
        two = [
            model.observations["y"].local(batch.modalities["y"], path + s * e).curvature
            for s in (1, -1)
        ]
        gradient[..., i] = ((two[0] - two[1]) * covariance).sum((-2, -1)).numpy() / (2 * h)
    wanted = -0.5 * result.posterior.solve(gradient)
    np.testing.assert_allclose(chain.arrays()[0] - result.path, wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("history", [None, obs.RaisedCosine(2, longest_seconds=4.0)])
def test_closed_form_of_counts_equals_the_default(history):
    """Missing entries, a spike history, samples on another clock."""
    rng, n = np.random.default_rng(3), 4
    model = obs.Poisson(n, bin_seconds=0.5, history=history).bind(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.from_numpy(rng.normal(size=p.shape)))
    y = rng.poisson(1.0, (3, 9, n)).astype(float)
    y[rng.random(y.shape) < 0.3] = np.nan
    steps = None if history else {"y": [np.arange(0.0, 18.0, 2.0)] * 3}
    data = ps.Dataset.from_arrays({"y": list(y)}, kinds={"y": "count"}, times=steps)
    batch = data.batch()
    z = torch.from_numpy(rng.normal(size=(3, batch.steps, 2)))
    root = torch.from_numpy(0.3 * rng.normal(size=(3, batch.steps, 2, 2)))
    got = model.score_correction(batch.modalities["y"], z, root @ root.mT)
    default = obs.ObservationModel.score_correction(
        model, batch.modalities["y"], z, root @ root.mT
    )
    assert got.abs().max() > 0.01
    torch.testing.assert_close(got, default, rtol=1e-3, atol=1e-6)


def test_exactly_the_mode_where_everything_is_quadratic():
    model = ps.StateSpaceModel(
        walk(2), {"x": obs.Gaussian.from_parameters(np.eye(2), noise=[0.1, 0.1])}
    )
    data = model.simulate(20, trials=3, seed=0)
    result, chain = corrected(model, data)
    assert chain is result.posterior


def test_gradient_of_the_evidence():
    """d log evidence / d h of the dynamics: that of the expected log joint at the mean.

    The prior is quadratic in z, so that only the mean matters; with the mode in its place the
    gradient misses by far more.
    """
    rng = np.random.default_rng(4)
    model = ps.StateSpaceModel(walk(2, 0.2), {"y": labels(2, 4, 2.0, rng)})
    data = model.simulate(60, trials=3, seed=1)
    batch = data.batch()
    result, chain = corrected(model, data)

    def evidence(i, d):
        with torch.no_grad():
            model.dynamics.h[i] += d
            value = laplace_posterior(model, batch, tolerance=1e-14).evidence
            model.dynamics.h[i] -= d
        return value

    wanted = np.array([(evidence(i, 1e-4) - evidence(i, -1e-4)) / 2e-4 for i in range(2)])

    def expected(path):
        residual = path[:, 1:] - 0.9 * path[:, :-1]
        return residual.sum((0, 1)) / 0.2

    got, at_mode = expected(chain.arrays()[0]), expected(result.path)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(at_mode - wanted).max() > 20 * np.abs(got - wanted).max()


def test_ragged_trials_and_a_bound():
    rng = np.random.default_rng(5)
    model = ps.StateSpaceModel(walk(2), {"y": labels(2, 3, 30.0, rng)})
    full = model.simulate(15, trials=2, seed=0).values("y")
    data = ps.Dataset.from_arrays({"y": [full[0], full[1][:6]]}, kinds={"y": "label"})
    result, chain = corrected(model, data)
    mean, covariance, _ = chain.arrays()
    assert (mean[1, 6:] == 0).all()
    deviation = np.sqrt(np.einsum("btii->bti", covariance))
    assert (np.abs(mean - result.path) <= FARTHEST * deviation + 1e-12).all()
    assert torch.equal(chain.covariance().nan_to_num(), result.posterior.covariance().nan_to_num())
