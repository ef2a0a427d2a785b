"""Block-banded factor against dense matrices, the block-tridiagonal factor and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.linalg import BlockBanded, factor


def random_banded(rng, trials, steps, width, m):
    """Random positive definite block-banded matrices as blocks."""
    blocks = rng.normal(size=(trials, steps, width + 1, m, m)) / np.sqrt(m)
    blocks[:, :, 0] += blocks[:, :, 0].transpose(0, 1, 3, 2) + (6.0 + 3.0 * width) * np.eye(m)
    return blocks


def dense(blocks):
    """The full matrix of one trial."""
    steps, lags, m = blocks.shape[:3]
    u = np.zeros((steps, m, steps, m))
    for t in range(steps):
        for lag in range(min(lags, steps - t)):
            u[t, :, t + lag] = blocks[t, lag]
            u[t + lag, :, t] = blocks[t, lag].T
    return u.reshape(steps * m, steps * m)


CASES = [(3, 9, 2, 3), (3, 7, 1, 2), (2, 4, 6, 2), (3, 1, 3, 2), (2, 12, 5, 1), (3, 5, 0, 2)]


@pytest.mark.parametrize(("trials", "steps", "width", "m"), CASES)
def test_equals_dense(trials, steps, width, m):
    rng = np.random.default_rng(steps)
    blocks = random_banded(rng, trials, steps, width, m)
    length = rng.integers(1, steps + 1, size=trials)
    length[-1] = steps
    for b, n in enumerate(length):
        blocks[b, n:] = np.nan
        for lag in range(1, width + 1):
            blocks[b, max(n - lag, 0) :, lag] = np.nan
    v, xi = rng.normal(size=(trials, steps, m)), rng.normal(size=(2, trials, steps, m))
    f = BlockBanded(blocks, length).cholesky()
    z, draws, covariance = f.solve(v), f.sample(xi), f.covariances()
    assert not f.status.any()
    for b, n in enumerate(length):
        u = dense(blocks[b, :n])
        inverse = np.linalg.inv(u).reshape(n, m, n, m)
        np.testing.assert_allclose(f.logdet[b], np.linalg.slogdet(u)[1], rtol=1e-12)
        np.testing.assert_allclose(
            z[b, :n].ravel(), np.linalg.solve(u, v[b, :n].ravel()), atol=1e-12
        )
        np.testing.assert_allclose(
            draws[:, b, :n].reshape(2, -1) @ np.linalg.cholesky(u),
            xi[:, b, :n].reshape(2, -1),
            atol=1e-12,
        )
        for t in range(n):
            for lag in range(min(width + 1, n - t)):
                np.testing.assert_allclose(
                    covariance[b, t, lag], inverse[t, :, t + lag], atol=1e-12
                )
            assert not covariance[b, t, n - t :].any()
        for beyond in (z[b, n:], draws[:, b, n:], covariance[b, n:]):
            assert not beyond.any()


def test_bandwidth_one_agrees_with_block_tridiagonal():
    rng = np.random.default_rng(0)
    blocks = random_banded(rng, 3, 40, 1, 3)
    length = np.array([40, 17, 1])
    v, xi = rng.normal(size=(3, 40, 3)), rng.normal(size=(2, 3, 40, 3))
    wide = BlockBanded(blocks, length).cholesky()
    chain = factor(blocks[:, :, 0], blocks[:, :-1, 1], length)
    np.testing.assert_allclose(wide.logdet, chain.logdet, rtol=1e-13)
    np.testing.assert_allclose(wide.solve(v), chain.solve(v), atol=1e-13)
    np.testing.assert_allclose(wide.sample(xi), chain.sample(xi), atol=1e-13)
    p, x = chain.covariances()
    covariance = wide.covariances()
    np.testing.assert_allclose(covariance[:, :, 0], p, atol=1e-13)
    np.testing.assert_allclose(covariance[:, :-1, 1], x, atol=1e-13)


def test_samples_have_the_posterior_covariance():
    rng = np.random.default_rng(1)
    f = BlockBanded(random_banded(rng, 1, 5, 2, 2)).cholesky()
    draws = f.sample(rng.normal(size=(200_000, 1, 5, 2)))[:, 0]
    covariance = f.covariances()[0]
    scale = covariance[:, 0].diagonal(axis1=1, axis2=2).mean()
    for t in range(5):
        for lag in range(min(3, 5 - t)):
            sampled = draws[:, t].T @ draws[:, t + lag] / len(draws)
            np.testing.assert_allclose(sampled / scale, covariance[t, lag] / scale, atol=0.02)


@pytest.mark.parametrize("bad", [-5.0, 0.0, np.nan, np.inf])
def test_failed_pivot_is_a_status(bad):
    rng = np.random.default_rng(2)
    blocks = random_banded(rng, 3, 6, 2, 2)
    good = BlockBanded(blocks).cholesky()
    blocks[1, 4, 0] = bad * np.eye(2) if np.isfinite(bad) else bad
    blocks[1, 2:, 1:] = 0.0
    f = BlockBanded(blocks).cholesky()
    np.testing.assert_array_equal(f.status, [0, 5, 0])
    assert f.logdet[1] == np.inf
    v = rng.normal(size=(3, 6, 2))
    for result, wanted in (
        (f.solve(v), good.solve(v)),
        (f.covariances(), good.covariances()),
        (f.sample(v[None])[0], good.sample(v[None])[0]),
    ):
        assert not result[1].any()
        np.testing.assert_array_equal(result[[0, 2]], wanted[[0, 2]])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="blocks must be"):
        BlockBanded(np.zeros((2, 3, 2, 2)))
    f = BlockBanded(random_banded(np.random.default_rng(3), 2, 4, 1, 2)).cholesky()
    with pytest.raises(ValueError, match="expected an array"):
        f.solve(np.zeros((2, 4, 3)))
