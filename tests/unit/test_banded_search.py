"""Chains with block-banded observation terms: dense references and the compiled search."""

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.mode_search import find_mode
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve, log_joint


def chain(dim=3, steps=9, seed=0, dynamics=None):
    rng = np.random.default_rng(seed)
    dynamics = dynamics or ps.dynamics.PLRNN.from_parameters(
        A=rng.uniform(0.2, 0.9, dim),
        W=0.5 * rng.standard_normal((dim, dim)) * (1 - np.eye(dim)),
        h=0.3 * rng.standard_normal(dim),
        process_noise=rng.uniform(0.05, 0.4, dim),
    )
    x = rng.standard_normal((3, steps, 4))
    lengths = (steps, steps - 3, 1)
    data = ps.Dataset.from_arrays({"x": [a[:n] for a, n in zip(x, lengths)]}, check_channels=False)
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(4)})
    batch = data.batch()
    return ChainPrior.of(model.dynamics, batch), expand(model, batch, np.zeros((3, steps, dim)))


def banded(prior, terms, w, seed=1):
    """A positive semi-definite banded part K = sum of squares of windows of w + 1 steps."""
    rng = np.random.default_rng(seed)
    trials, steps, dim = terms.score.shape
    blocks = np.zeros((trials, steps, w + 1, dim, dim))
    full = np.zeros((trials, steps * dim, steps * dim))
    for b, n in enumerate(prior.length):
        for t in range(n):
            row = np.zeros((2, steps, dim))
            first = max(t - w, 0)
            row[:, first : t + 1] = rng.standard_normal((2, t + 1 - first, dim))
            row = row.reshape(2, -1)
            full[b] += row.T @ row
    grid = full.reshape(trials, steps, dim, steps, dim)
    for lag in range(w + 1):
        for t in range(steps - lag):
            blocks[:, t, lag] = grid[:, t, :, t + lag, :]
    return blocks, full


def dense_hessian(prior, terms, slope, full):
    """Negative Hessian and right-hand side of the log joint by finite formulas, one trial each."""
    trials, steps, dim = terms.score.shape
    out = []
    for b in range(trials):
        n = int(prior.length[b])
        u = full[b, : n * dim, : n * dim].copy()
        v = terms.score[b, :n].reshape(-1).copy()
        information = np.broadcast_to(terms.information, (trials, steps, dim, dim))[b]
        root = np.zeros((n * dim, n * dim))
        for t in range(n):
            part = slice(t * dim, (t + 1) * dim)
            u[part, part] += information[t]
            root[part, part] = np.eye(dim)
            if t:
                before = slice((t - 1) * dim, t * dim)
                root[part, before] = -prior.form.jacobian(slope[b, t - 1])
        weight = np.zeros_like(root)
        shift = np.zeros(n * dim)
        for t in range(n):
            part = slice(t * dim, (t + 1) * dim)
            weight[part, part] = prior.precision if t else prior.initial_precision
            shift[part] = (
                prior.form.regional_bias(slope[b, t - 1]) + prior.drive[b, t - 1]
                if t
                else prior.initial_mean[b]
            )
        out.append((u + root.T @ weight @ root, v + root.T @ weight @ shift))
    return out


@pytest.mark.parametrize("w", [0, 1, 4])
def test_solve_equals_the_dense_system(w):
    prior, terms = chain()
    blocks, full = banded(prior, terms, w)
    terms = QuadraticTerms(terms.constant, terms.score, terms.information, blocks)
    slope = np.where(prior.inside()[..., None], np.random.default_rng(3).random((3, 8, 3)), 0.0)
    path, factor = linear_solve(prior, terms, slope)
    covariances = factor.covariances()
    for b, (u, v) in enumerate(dense_hessian(prior, terms, slope, full)):
        n = int(prior.length[b])
        np.testing.assert_allclose(path[b, :n].ravel(), np.linalg.solve(u, v), atol=1e-10)
        assert factor.logdet[b] == pytest.approx(np.linalg.slogdet(u)[1], abs=1e-9)
        inverse = np.linalg.inv(u).reshape(n, 3, n, 3)
        for lag in range(min(covariances.shape[2], n)):
            for t in range(n - lag):
                np.testing.assert_allclose(
                    covariances[b, t, lag], inverse[t, :, t + lag], atol=1e-10
                )


def test_log_joint_and_products_know_the_banded_part():
    prior, terms = chain()
    blocks, full = banded(prior, terms, 4)
    both = QuadraticTerms(terms.constant, terms.score, terms.information, blocks)
    z = np.random.default_rng(5).standard_normal(terms.score.shape)
    z[np.arange(z.shape[1]) >= prior.length[:, None]] = 0.0
    flat = z.reshape(3, -1)
    wanted = -0.5 * np.einsum("bi,bij,bj->b", flat, full, flat)
    np.testing.assert_allclose(log_joint(prior, both, z) - log_joint(prior, terms, z), wanted)
    np.testing.assert_allclose(both.value(z) - terms.value(z), wanted)
    np.testing.assert_allclose(both.spread(z).reshape(3, -1), np.einsum("bij,bj->bi", full, flat))
    assert both.memory == 4 and both.select(np.array([1])).banded.shape[0] == 1


def test_search_equals_the_compiled_one():
    for seed in range(4):
        prior, terms = chain(steps=40, seed=seed)
        shape = (3, 40, 3, 3)
        blocks = np.array(np.broadcast_to(terms.information, shape))
        blocks[np.arange(40) >= prior.length[:, None]] = 0.0
        moved = QuadraticTerms(
            terms.constant, terms.score, np.zeros((1, 1, 3, 3)), blocks[:, :, None]
        )
        one, two = find_mode(prior, terms), find_mode(prior, moved)
        assert one.status == two.status == ("stationary",) * 3
        np.testing.assert_allclose(two.path, one.path, atol=1e-7)
        np.testing.assert_allclose(two.value, one.value, rtol=1e-9)


@pytest.mark.parametrize("w", [2, 7])
def test_mode_is_stationary_in_random_directions(w):
    prior, terms = chain(steps=40, seed=11)
    blocks, _ = banded(prior, terms, w, seed=2)
    terms = QuadraticTerms(terms.constant, terms.score, terms.information, 0.2 * blocks)
    mode = find_mode(prior, terms)
    assert mode.status == ("stationary",) * 3
    start = find_mode(prior, terms, mode.path)
    np.testing.assert_allclose(start.path, mode.path, atol=1e-8)
    rng = np.random.default_rng(0)
    for _ in range(50):
        step = 1e-4 * rng.standard_normal(mode.path.shape)
        step[np.arange(40) >= prior.length[:, None]] = 0.0
        assert (log_joint(prior, terms, mode.path + step) <= mode.value + 1e-9).all()


def test_lags_of_a_markov_posterior():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    post = ps.smooth(model, model.simulate(7, trials=2))
    draws = post.sample(60000) - post.mean
    lags = torch.from_numpy(post.lagged(4))
    for lag in range(5):
        got = torch.einsum("sbti,sbtj->btij", draws[:, :, : 7 - lag], draws[:, :, lag:]) / 60000
        assert float((got - lags[:, : 7 - lag, lag]).abs().max()) < 0.03
        assert not lags[:, 7 - lag :, lag].any()
    torch.testing.assert_close(lags[:, :, 0], post.covariance())
    torch.testing.assert_close(lags[:, :-1, 1], post.cross_covariance())
