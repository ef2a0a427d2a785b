"""Sufficient statistics of the transitions against Monte Carlo and a slow twin."""

import numpy as np
import pytest

from plssm.kernels.chain_statistics import chain_statistics, chain_statistics_plain


def gaussian_chains(rng, trials, steps, size, correlation=0.5):
    """Dense covariances [B, T M, T M] of a Markov chain, with means and lag-0 and lag-1 blocks."""
    precision = np.zeros((trials, steps * size, steps * size))
    for b in range(trials):
        for t in range(steps):
            here = slice(t * size, (t + 1) * size)
            a = rng.normal(size=(size, size)) * 0.5
            precision[b, here, here] += a @ a.T + np.eye(size) * 2
            if t:
                before = slice((t - 1) * size, t * size)
                J = rng.normal(size=(size, size)) * correlation
                precision[b, before, before] += J.T @ J
                precision[b, before, here] -= J.T
                precision[b, here, before] -= J
    dense = np.linalg.inv(precision)
    blocks = dense.reshape(trials, steps, size, steps, size)
    P = np.stack([blocks[:, t, :, t] for t in range(steps)], axis=1)
    X = np.zeros((trials, max(steps - 1, 0), size, size))
    for t in range(steps - 1):
        X[:, t] = blocks[:, t, :, t + 1]
    return rng.normal(size=(trials, steps, size)), P, X, dense


def assert_same(got, wanted, **tolerance):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("gates", ["identity", "general", "offset only", "none"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_equals_the_plain_twin_with_ragged_trials(gates, inputs):
    rng = np.random.default_rng(0)
    mean, P, X, _ = gaussian_chains(rng, 3, 6, 3)
    s = rng.normal(size=(3, 6, inputs)) if inputs else None
    length = np.array([6, 4, 1])
    inner = rng.normal(size=(4, 3)) if gates == "general" else None
    offset = {"general": rng.normal(size=4), "offset only": rng.normal(size=3)}.get(gates)
    options = {"inner": inner, "offset": offset, "gates": gates != "none"}
    wanted = chain_statistics_plain(mean, P, X, s, length, **options)
    for b, end in enumerate(length):  # what lies beyond the end must not matter
        mean[b, end:], P[b, end:], X[b, max(end - 1, 0) :] = np.nan, np.nan, np.nan
        if inputs:
            s[b, end:] = np.nan
    got = chain_statistics(mean, P, X, s, length, **options)
    assert_same(got, wanted, atol=1e-12)
    size = 3 + {"identity": 3, "general": 4, "offset only": 3, "none": 0}[gates] + 1 + inputs
    assert got[0].shape == (size, size) and got[1].shape == (3, size) and got[3] == 8
    np.testing.assert_allclose(got[0], got[0].T, atol=1e-13)


@pytest.mark.parametrize("general", [False, True])
def test_equals_monte_carlo(general):
    rng = np.random.default_rng(1)
    trials, steps, size, n = 2, 4, 2, 300_000
    mean, P, X, dense = gaussian_chains(rng, trials, steps, size)
    s = rng.normal(size=(trials, steps, 1))
    inner = rng.normal(size=(3, size)) if general else np.eye(size)
    offset = rng.normal(size=3) if general else np.zeros(size)
    terms = []
    for b in range(trials):
        z = mean[b].ravel() + rng.normal(size=(n, steps * size)) @ np.linalg.cholesky(dense[b]).T
        z = z.reshape(n, steps, size)
        relu = np.maximum(z[:, :-1] @ inner.T + offset, 0)
        fixed = np.broadcast_to(s[b, 1:], (n, steps - 1, 1))
        y = np.concatenate([z[:, :-1], relu, np.ones((n, steps - 1, 1)), fixed], axis=-1)
        terms.append(
            [
                np.einsum("nti,ntj->nij", y, y),
                np.einsum("nti,ntj->nij", z[:, 1:], y),
                np.einsum("nti,ntj->nij", z[:, 1:], z[:, 1:]),
            ]
        )
    got = chain_statistics(
        mean, P, X, s, np.full(trials, steps),
        inner=inner if general else None, offset=offset if general else None,
    )  # fmt: skip
    for k in range(3):
        draws = sum(t[k] for t in terms)
        error = draws.std(0) / np.sqrt(n) + 1e-9
        assert (np.abs(got[k] - draws.mean(0)) < 5 * error).all()


def test_many_steps_and_threads_give_the_same():
    rng = np.random.default_rng(2)
    mean = rng.normal(size=(2, 700, 3))
    _, P, X, _ = gaussian_chains(rng, 1, 4, 3)
    P, X = np.tile(P, (2, 175, 1, 1)), np.tile(X[:, :1], (2, 699, 1, 1))
    length = np.array([700, 555])
    wanted = chain_statistics_plain(mean, P, X, None, length)
    for threads in (1, 2, 5):
        got = chain_statistics(mean, P, X, None, length, threads=threads)
        assert_same(got, wanted, rtol=1e-11, atol=1e-10)


def test_shared_covariances_equal_repeated_ones():
    rng = np.random.default_rng(3)
    mean, P, X, _ = gaussian_chains(rng, 3, 5, 2)
    shared = chain_statistics(mean, P[:1], X[:1], None, np.array([5, 3, 2]))
    P, X = np.tile(P[:1], (3, 1, 1, 1)), np.tile(X[:1], (3, 1, 1, 1))
    assert_same(shared, chain_statistics(mean, P, X, None, np.array([5, 3, 2])), rtol=1e-14)


def test_certain_states_give_plain_sums():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(3, 8, 2))
    got = chain_statistics(z, np.zeros((3, 8, 2, 2)), np.zeros((3, 7, 2, 2)), None, np.full(3, 8))
    y = np.concatenate([z, np.maximum(z, 0), np.ones((3, 8, 1))], -1)[:, :-1].reshape(-1, 5)
    later = z[:, 1:].reshape(-1, 2)
    assert_same(got, (y.T @ y, later.T @ y, later.T @ later, 21), atol=1e-10)


def test_strongly_correlated_gates_equal_the_twin():
    rng = np.random.default_rng(5)
    mean, P, X, _ = gaussian_chains(rng, 1, 5, 2)
    inner = rng.normal(size=(6, 2))
    inner[1] = inner[0] + 0.3 * inner[2]
    got = chain_statistics(mean, P, X, None, np.array([5]), inner=inner)
    wanted = chain_statistics_plain(mean, P, X, None, np.array([5]), inner=inner)
    assert_same(got, wanted, atol=1e-6)  # the twin's nodes do not reach correlations near 1
    inner[1] = inner[0]  # the same gate twice
    got = chain_statistics(mean, P, X, None, np.array([5]), inner=inner)[0]
    np.testing.assert_allclose(got[2], got[3], rtol=1e-12)


def test_one_step_has_no_transition():
    got = chain_statistics(
        np.ones((3, 1, 2)), np.tile(np.eye(2), (3, 1, 1, 1)), np.zeros((3, 0, 2, 2)), None,
        np.ones(3, dtype=int),
    )  # fmt: skip
    assert got[3] == 0 and not got[0].any() and not got[1].any() and not got[2].any()
