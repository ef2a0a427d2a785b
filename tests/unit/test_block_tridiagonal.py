"""Block-tridiagonal factor against dense matrices, the plain twin and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.kernels import _blocks as loops
from plssm.kernels import _vector_blocks as vectors
from plssm.kernels._chain_twin import covariances_twin, factor_twin, solve_twin
from plssm.kernels._compile import compiled
from plssm.linalg import factor


def random_chain(rng, trials, steps, m):
    """Random positive definite chains: blocks, and the dense matrix of each trial."""
    lower = 0.5 * rng.normal(size=(trials, steps, m, m)) / np.sqrt(m) + 1.5 * np.eye(m)
    couple = rng.normal(size=(trials, steps - 1, m, m)) / np.sqrt(m)
    diag = lower @ lower.transpose(0, 1, 3, 2)
    diag[:, 1:] += couple @ couple.transpose(0, 1, 3, 2)
    off = lower[:, :-1] @ couple.transpose(0, 1, 3, 2)
    return diag, off


def dense(diag, off):
    """The full matrix of one trial."""
    steps, m = diag.shape[:2]
    u = np.zeros((steps, m, steps, m))
    for t in range(steps):
        u[t, :, t] = diag[t]
        if t + 1 < steps:
            u[t, :, t + 1] = off[t]
            u[t + 1, :, t] = off[t].T
    return u.reshape(steps * m, steps * m)


CASES = [(3, 6, 3), (3, 1, 2), (3, 5, 1), (2, 4, 10), (1, 4, 13)]


@pytest.mark.parametrize(("trials", "steps", "m"), CASES)
def test_equals_dense(trials, steps, m):
    rng = np.random.default_rng(m)
    diag, off = random_chain(rng, trials, steps, m)
    length = rng.integers(1, steps + 1, size=trials)
    length[0] = steps
    for b, n in enumerate(length):
        diag[b, n:], off[b, n - 1 :] = np.nan, np.nan
    v = rng.normal(size=(trials, steps, m))
    xi = rng.normal(size=(4, trials, steps, m))
    f = factor(diag, off, length)
    z, (p, x), draws = f.solve(v), f.covariances(), f.sample(xi)
    assert not f.status.any()
    for b, n in enumerate(length):
        u = dense(diag[b, :n], off[b, : n - 1])
        inverse = np.linalg.inv(u).reshape(n, m, n, m)
        np.testing.assert_allclose(f.logdet[b], np.linalg.slogdet(u)[1], rtol=1e-12)
        lower = np.linalg.cholesky(u)
        np.testing.assert_allclose(
            z[b, :n].ravel(), np.linalg.solve(u, v[b, :n].ravel()), atol=1e-10
        )
        np.testing.assert_allclose(
            draws[:, b, :n].reshape(4, -1) @ lower, xi[:, b, :n].reshape(4, -1), atol=1e-10
        )
        for t in range(n):
            np.testing.assert_allclose(p[b, t], inverse[t, :, t], atol=1e-11)
            np.testing.assert_array_equal(p[b, t], p[b, t].T)
            np.testing.assert_allclose(
                f.R[b, t], lower[t * m : t * m + m, t * m : t * m + m].T, atol=1e-11
            )
        for t in range(n - 1):
            np.testing.assert_allclose(x[b, t], inverse[t, :, t + 1], atol=1e-11)
            np.testing.assert_allclose(
                f.C[b, t], lower[t * m + m : t * m + 2 * m, t * m : t * m + m].T, atol=1e-11
            )
        for beyond in (z[b, n:], p[b, n:], x[b, n - 1 :], draws[:, b, n:]):
            assert not beyond.any()


def test_equals_twin_on_a_long_chain():
    rng = np.random.default_rng(0)
    diag, off = random_chain(rng, 1, 300, 3)
    v = rng.normal(size=(1, 300, 3))
    f = factor(diag, off)
    upper, coupling, logdet = factor_twin(diag[0], off[0])
    np.testing.assert_allclose(f.R[0], upper, atol=1e-10)
    np.testing.assert_allclose(f.C[0], coupling, atol=1e-10)
    np.testing.assert_allclose(f.logdet[0], logdet, rtol=1e-12)
    np.testing.assert_allclose(f.solve(v)[0], solve_twin(upper, coupling, v[0]), atol=1e-9)
    for got, wanted in zip(f.covariances(), covariances_twin(upper, coupling), strict=True):
        np.testing.assert_allclose(got[0], wanted, atol=1e-10)


def test_samples_have_the_posterior_covariance():
    rng = np.random.default_rng(1)
    diag, off = random_chain(rng, 1, 4, 2)
    f = factor(diag, off)
    draws = f.sample(rng.normal(size=(200_000, 1, 4, 2))).reshape(-1, 8)
    wanted = np.linalg.inv(dense(diag[0], off[0]))
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    np.testing.assert_allclose(np.cov(draws.T) / scale, wanted / scale, atol=0.012)
    np.testing.assert_allclose(draws.mean(0) / np.sqrt(np.diag(wanted)), 0, atol=0.012)


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, np.inf])
def test_failed_pivot_is_a_status(bad):
    rng = np.random.default_rng(2)
    diag, off = random_chain(rng, 3, 5, 2)
    good = factor(diag, off)
    diag[1, 3, 1, 1] = bad
    if np.isfinite(bad):
        off[1, 2:] = 0
        diag[1, 3] = bad * np.eye(2)
    f = factor(diag, off)
    np.testing.assert_array_equal(f.status, [0, 4, 0])
    assert f.logdet[1] == np.inf
    np.testing.assert_array_equal(f.logdet[[0, 2]], good.logdet[[0, 2]])
    v = rng.normal(size=(3, 5, 2))
    results = [f.solve(v), *f.covariances(), f.sample(v[None])[0]]
    for result, wanted in zip(
        results, [good.solve(v), *good.covariances(), good.sample(v[None])[0]], strict=True
    ):
        assert not result[1].any()
        np.testing.assert_array_equal(result[[0, 2]], wanted[[0, 2]])


def test_log_determinant_of_extreme_scales():
    diag = np.stack([np.eye(10) * 1e250, np.eye(10) * 1e-250])[:, None]
    f = factor(diag, np.zeros((2, 0, 10, 10)))
    np.testing.assert_allclose(f.logdet, [10 * np.log(1e250), 10 * np.log(1e-250)], rtol=1e-13)


def test_threads_do_not_change_the_result():
    rng = np.random.default_rng(3)
    diag, off = random_chain(rng, 9, 900, 10)
    length = rng.integers(100, 900, size=9)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(factor(diag, off, length).covariances())
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="diag must be"):
        factor(np.zeros((2, 3, 2, 4)), np.zeros((2, 2, 2, 2)))
    with pytest.raises(ValueError, match="off must be"):
        factor(np.zeros((2, 3, 2, 2)), np.zeros((2, 3, 2, 2)))
    with pytest.raises(ValueError, match="length must hold"):
        factor(np.zeros((2, 3, 2, 2)), np.zeros((2, 2, 2, 2)), np.array([3, 4]))


@compiled
def _vector_steps(rows, y, p, cross, inverse, gain, z, x, size):
    """One call of every vector operation of a factorisation and a backward pass."""
    block = rows.size // 3
    m = len(size)
    vectors.eliminate(rows, block, 0, y, m, 0, size)
    vectors.eliminate(rows, 2 * block, block, y, 2 * m, m, size)
    z[:] = y
    vectors.back_substitute(rows, 2 * block, z, 2 * m, 2 * m, size)
    vectors.back_substitute(rows, block, z, m, 2 * m, size)
    vectors.forward_substitute(rows, block, 0, x, m, 0, size)
    vectors.forward_substitute(rows, 2 * block, block, x, 2 * m, m, size)
    vectors.invert_factor(inverse, 0, rows, block, size)
    vectors.smooth(rows, block, p, 0, m * m, cross, 0, inverse, 0, gain, 0, size)


def _loop_steps(rows, y, p, cross, inverse, gain, z, x, size):
    """The same with the ordinary loops, run as plain Python."""
    block = rows.size // 3
    m = len(size)
    loops.eliminate.py_func(rows, block, 0, y, m, 0, size)
    loops.eliminate.py_func(rows, 2 * block, block, y, 2 * m, m, size)
    z[:] = y
    loops.back_substitute.py_func(rows, 2 * block, z, 2 * m, 2 * m, size)
    loops.back_substitute.py_func(rows, block, z, m, 2 * m, size)
    loops.forward_substitute.py_func(rows, block, 0, x, m, 0, size)
    loops.forward_substitute.py_func(rows, 2 * block, block, x, 2 * m, m, size)
    loops.invert_factor.py_func(inverse, 0, rows, block, size)
    loops.smooth.py_func(rows, block, p, 0, m * m, cross, 0, inverse, 0, gain, 0, size)


def test_vector_operations_equal_ordinary_loops():
    m, w = 6, 8
    rng = np.random.default_rng(4)
    diag, off = random_chain(rng, 1, 2, m)
    rows = np.zeros((3, m, 2 * w))
    rows[1:, :, :m] = diag[0]
    rows[1, :, w : w + m] = off[0, 0]
    p = np.zeros((2, m, m))
    p[1] = diag[0, 0]
    start = [
        rows,
        rng.normal(size=3 * m),
        p,
        np.zeros((m, m)),
        np.zeros((m, w)),
        np.zeros((m, w)),
        np.zeros(3 * m),
        rng.normal(size=3 * m),
    ]
    results = []
    for steps in (_vector_steps, _loop_steps):
        arrays = [a.ravel().copy() for a in start]
        steps(*arrays, (0,) * m)
        results.append(arrays)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
