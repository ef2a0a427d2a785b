"""Updates to the posterior's mean and covariance: dense quadrature, unseen directions, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o
from plssm.inference.moment_update import moment_update
from plssm.inference.step_updates import laplace_update, step_terms


def filled(observation, dim, seed=0):
    observation.bind(dim)
    with torch.no_grad():
        shape = observation.weight.shape
        rng = np.random.default_rng(seed)
        observation.weight.copy_(torch.from_numpy(rng.normal(size=shape)))
    return observation


def dataset(model, values, **options):
    kinds = {n: v.kinds[0] for n, v in model.observations.items()}
    return ps.Dataset.from_arrays(values, kinds=kinds, **options)


OBSERVATIONS = {
    "counts": lambda: {"n": o.Poisson(3)},
    "many counts": lambda: {"n": o.Poisson(12)},
    "labels": lambda: {"c": o.Categorical(4)},
    "ordinal": lambda: {"r": o.Ordinal(2, 5)},
    "binary, rectified": lambda: {"b": o.Bernoulli(3, readout="relu")},
    "counts, labels, numbers": lambda: {"n": o.Poisson(2), "c": o.Categorical(3),
                                        "x": o.Gaussian(1)},
}  # fmt: skip


def single_steps(parts, dim, trials, seed=1):
    """Terms of one step, and a correlated prior."""
    d = ps.dynamics.PLRNN(dim, initial_noise="full")
    p = np.full((dim, dim), 0.3) + 0.7 * np.eye(dim)
    with torch.no_grad():
        d.initial.noise.covariance = p
    model = ps.StateSpaceModel(d, {n: filled(v, dim, seed) for n, v in parts.items()})
    batch = model.simulate(1, trials=trials, seed=seed).batch()
    return step_terms(model, batch)(0), np.zeros((trials, dim)), np.tile(p, (trials, 1, 1))


def log_density(terms, z):
    """Log-density of the data at states [S, B, M]."""
    with torch.no_grad():
        path = torch.from_numpy(z)[:, :, None]
        return sum(o_.log_prob(m, path).numpy() for o_, m in terms)


def dense(terms, m, p, points=201, reach=8.0):
    """Posterior moments and evidence of two-dimensional states on a grid around the mode."""
    mode, covariance, _ = laplace_update(terms, m, p)
    root, x = np.linalg.cholesky(covariance), np.linspace(-reach, reach, points)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    z = mode + np.einsum("bij,sj->sbi", root, grid)
    e = z - m
    logs = log_density(terms, z) - 0.5 * np.einsum("sbi,bij,sbj->sb", e, np.linalg.inv(p), e)
    weight = np.exp(logs - logs.max(0))
    evidence = np.log(weight.sum(0)) + logs.max(0) + 2 * np.log(x[1] - x[0])
    evidence += np.linalg.slogdet(root)[1] - 0.5 * np.linalg.slogdet(2 * np.pi * p)[1]
    weight = weight / weight.sum(0)
    mean = np.einsum("sb,sbi->bi", weight, z)
    return mean, np.einsum("sb,sbi,sbj->bij", weight, z - mean, z - mean), evidence


@pytest.mark.parametrize("kind", list(OBSERVATIONS))
def test_updates_equal_dense_quadrature(kind):
    terms, m, p = single_steps(OBSERVATIONS[kind](), 2, 10)
    want = dense(terms, m, p)
    got, laplace = moment_update(terms, m, p), laplace_update(terms, m, p)
    sd = np.sqrt(np.einsum("bii->bi", want[1]))
    # 24 nodes on a kinked density are less exact than on a smooth one
    tolerance = 0.02 if "rectified" in kind else 2e-5
    for update, exact in ((got, True), (laplace, False)):
        off = [
            np.abs((update[0] - want[0]) / sd).max(),
            np.abs((update[1] - want[1]) / (sd[:, :, None] * sd[:, None])).max(),
            np.abs(update[2] - want[2]).max(),
        ]
        assert max(off) < tolerance if exact else max(off) > 5e-3


@pytest.mark.parametrize("dim", [4, 7])
def test_unseen_directions_follow_by_regression(dim):
    """Two channels of many states: a two-dimensional integral, and the exact regression on it."""
    terms, m, p = single_steps({"n": o.Poisson(2)}, dim, 5)
    got = moment_update(terms, m, p)
    weight = terms[0][0].weight.detach().numpy()
    prior = weight @ p[0] @ weight.T
    gain = p[0] @ weight.T @ np.linalg.inv(prior)
    inner = [(o.Poisson(2).bind(2), m_) for _, m_ in terms]
    with torch.no_grad():
        inner[0][0].weight.copy_(torch.eye(2))
    want = dense(inner, np.zeros((5, 2)), np.tile(prior, (5, 1, 1)))
    np.testing.assert_allclose(got[0], want[0] @ gain.T, atol=1e-5)
    covariance = p + gain @ (want[1] - prior) @ gain.T
    np.testing.assert_allclose(got[1], covariance, atol=1e-5)
    np.testing.assert_allclose(got[2], want[2], atol=1e-5)


@pytest.mark.parametrize("dim", [3, 4, 5, 6, 9])
def test_independent_directions_are_integrated_one_by_one(dim):
    """Independent counts of independent states: the product of scalar integrals."""
    observation = o.Poisson(dim).bind(dim)
    with torch.no_grad():
        observation.weight.copy_(torch.eye(dim))
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(dim), {"n": observation})
    terms = step_terms(model, model.simulate(1, trials=4, seed=0).batch())(0)
    got = moment_update(terms, np.zeros((4, dim)), np.tile(np.eye(dim), (4, 1, 1)))
    x = np.linspace(-9, 6, 4001)
    y = terms[0][1].y[:, 0].numpy()
    logs = y[..., None] * x - np.exp(x) - 0.5 * x**2
    weight = np.exp(logs)
    logs = np.log(weight.sum(-1) * (x[1] - x[0])) - 0.5 * np.log(2 * np.pi)
    evidence = (logs - torch.lgamma(torch.from_numpy(y) + 1).numpy()).sum(1)
    weight = weight / weight.sum(-1, keepdims=True)
    mean = weight @ x
    variance = weight @ x**2 - mean**2
    # Gauss-Hermite up to five directions, 4096 scattered points beyond them
    tolerance = {3: 1e-5, 4: 1e-3, 5: 1e-2}.get(dim, 0.1)
    sd = np.sqrt(variance)
    assert np.abs((got[0] - mean) / sd).max() < tolerance
    assert np.abs(np.einsum("bii->bi", got[1]) / variance - 1).max() < tolerance
    assert np.abs(got[2] - evidence).max() < tolerance


def test_steps_without_data_change_nothing():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"n": filled(o.Poisson(3), 2)})
    y = [v.astype(float) for v in model.simulate(4, trials=2, seed=0).values("n")]
    y[0][1] = y[1][2:] = np.nan
    data = dataset(model, {"n": y})
    got = ps.smooth(model, data, causal=True, update="moments")
    for b, t in ((0, 1), (1, 2), (1, 3)):
        torch.testing.assert_close(got.mean[b, t], got.predicted_mean[b, t])
        torch.testing.assert_close(got.covariance()[b, t], got.predicted_covariance[b, t])


@pytest.mark.parametrize("causal", [True, False])
def test_predictors_that_see_nothing_leave_the_path_as_it_is(causal):
    blind = ps.observations.Poisson.from_parameters(np.zeros((3, 2)))
    known = {"A": [0.5, 0.8], "W": [[0.0, 0.4], [-0.3, 0.0]], "h": [0.6, -0.5]}
    dynamics = ps.dynamics.PLRNN.from_parameters(  # away from kinks, where rounding decides
        **known, process_noise=[0.1, 0.2], initial_mean=[0.7, -0.4]
    )
    model = ps.StateSpaceModel(dynamics, {"n": blind})
    data = model.simulate(5, trials=2, seed=0)
    got = ps.smooth(model, data, "ekf", causal, update="moments")
    plain = ps.smooth(model, data, "ekf", causal)
    torch.testing.assert_close(got.mean, plain.mean)
    torch.testing.assert_close(got.covariance(), plain.covariance())
    torch.testing.assert_close(got.log_evidence, plain.log_evidence)
