"""Innovations: statsmodels, brute force, the evidence of a filter, and levels under the null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

import plssm as ps
from plssm.errors import DataError
from plssm.metrics import (
    gaussian_innovations,
    gaussian_log_score,
    nees,
    nis,
    standardised_innovations,
    whiteness,
)

NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def _spd(rng, *shape, n):
    root = rng.normal(size=(*shape, n, n))
    return root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(n)


# ---- a filter from the formulas, independent of the package -----------------------------------
A = np.array([[0.9, 0.3], [-0.3, 0.85]])
B = np.array([[1.0, 0.0], [0.4, 1.0], [0.0, -0.7]])
BIAS, Q, R = np.array([0.5, -1.0, 0.0]), np.diag([0.2, 0.1]), np.diag([0.3, 0.5, 0.2])


def _simulate(rng, trials, steps, missing=0.0):
    z = rng.multivariate_normal(np.zeros(2), np.eye(2), trials)
    states, data = [], []
    for _ in range(steps):
        states.append(z)
        data.append(z @ B.T + BIAS + rng.multivariate_normal(np.zeros(3), R, trials))
        z = z @ A.T + rng.multivariate_normal(np.zeros(2), Q, trials)
    states, data = np.stack(states, 1), np.stack(data, 1)
    data[rng.random(data.shape) < missing] = NAN
    return states, data


def _kalman(y, q=Q):
    """Predicted and filtered moments, one trial after another."""
    out = [np.full((*y.shape[:2], *s), NAN) for s in ((2,), (2, 2), (2,), (2, 2))]
    for b in range(len(y)):
        m, p = np.zeros(2), np.eye(2)
        for t in range(y.shape[1]):
            out[0][b, t], out[1][b, t] = m, p
            o = np.flatnonzero(np.isfinite(y[b, t]))
            h, r = B[o], R[np.ix_(o, o)]
            gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
            m, p = m + gain @ (y[b, t, o] - h @ m - BIAS[o]), p - gain @ h @ p
            out[2][b, t], out[3][b, t] = m, p
            m, p = A @ m, A @ p @ A.T + q
    return out


def _innovations(y, moments):
    return gaussian_innovations(
        y, moments[0], predicted_covariance=moments[1], weight=B, bias=BIAS, noise=R
    )


# ---- innovations ------------------------------------------------------------------------------
def test_densities_of_innovations_sum_to_the_evidence(rng):
    """The chain rule of probabilities ties the moments of the package's filter to its evidence."""
    trials = [v[:n] for v, n in zip(_simulate(rng, 3, 40, missing=0.2)[1], (40, 25, 1))]
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A, h=np.zeros(2), process_noise=Q, initial_mean=np.zeros(2), initial_noise=[1.0, 1.0]
    )
    observation = ps.observations.Gaussian.from_parameters(B, BIAS, noise=np.diag(R))
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    posterior = ps.smooth(model, ps.Dataset.from_arrays({"x": trials}), causal=True)
    y = np.full((3, 40, 3), NAN)
    for b, trial in enumerate(trials):
        y[b, : len(trial)] = trial
    v, S = gaussian_innovations(
        y,
        posterior.predicted_mean,
        predicted_covariance=posterior.predicted_covariance,
        weight=observation.weight,
        bias=observation.bias,
        noise=observation.noise,
    )
    total = gaussian_log_score(truth=v, mean=0.0, covariance=S) * np.isfinite(v).sum()
    assert total == pytest.approx(float(posterior.log_evidence.sum()), rel=1e-9)
    assert nis(v, S).settings["entries"] == np.isfinite(y).sum()


def test_forms_of_the_noise(rng):
    y, m, p = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), _spd(rng, 5, n=2)
    options = dict(predicted_covariance=p, weight=B)
    v, S = gaussian_innovations(y, m, noise=0.5, **options)
    np.testing.assert_allclose(v, y - np.stack([B @ row for row in m]))
    np.testing.assert_allclose(S, np.stack([B @ x @ B.T + np.eye(3) / 2 for x in p]))
    for same in (np.full(3, 0.5), np.eye(3) / 2):
        np.testing.assert_array_equal(gaussian_innovations(y, m, noise=same, **options)[1], S)


def test_standardised_innovations_use_the_block_of_what_was_seen(rng):
    v, S = rng.normal(size=(2, 6, 3)), _spd(rng, 2, 6, n=3)
    mask = rng.random(v.shape) < 0.6
    mask[0, 0] = False
    mask[0, 1] = True
    wanted = np.full(v.shape, NAN)
    for b, t in itertools.product(range(2), range(6)):
        o = np.flatnonzero(mask[b, t])
        if len(o):
            block = S[b, t][np.ix_(o, o)]
            wanted[b, t, o] = np.linalg.inv(scipy.linalg.sqrtm(block)) @ v[b, t, o]
    np.testing.assert_allclose(standardised_innovations(v, S, mask=mask), wanted, atol=1e-10)
    holes = torch.tensor(np.where(mask, v, NAN))
    np.testing.assert_allclose(
        standardised_innovations(holes, torch.tensor(S)), wanted, atol=1e-10
    )


# ---- normalised squares -----------------------------------------------------------------------
def test_nis_by_hand(rng):
    v, S = rng.normal(size=(2, 5, 3)), _spd(rng, 2, 5, n=3)
    v[0, 2, 1] = v[1, 3] = NAN
    squares, entries = np.zeros(5), np.zeros(5)
    for b, t in itertools.product(range(2), range(5)):
        o = np.flatnonzero(np.isfinite(v[b, t]))
        squares[t] += v[b, t, o] @ np.linalg.solve(S[b, t][np.ix_(o, o)], v[b, t, o])
        entries[t] += len(o)
    found = nis(v, S)
    assert found == pytest.approx(squares.sum() / 26) and found.settings["entries"] == 26
    np.testing.assert_allclose(found.per_step, squares / entries)
    assert found.settings["low_95"] == pytest.approx(scipy.stats.chi2.ppf(0.025, 26))
    assert found.settings["high_95"] == pytest.approx(scipy.stats.chi2.ppf(0.975, 26))


def test_a_right_filter_is_consistent_and_wrong_ones_are_not(rng):
    states, y = _simulate(rng, 20, 100, missing=0.3)
    for scale, consistent in ((1.0, True), (0.25, False), (4.0, False)):
        moments = _kalman(y, scale * Q)
        squares = nis(*_innovations(y, moments))
        errors = nees(truth=states, mean=moments[2], covariance=moments[3])
        assert squares.settings["consistent"] == consistent
        assert (squares.settings["p_value"] > 0.01) == consistent
        assert (errors.settings["within"] > 0.85) == consistent
        if not consistent:
            assert (squares > 1) == (errors > 1) == (scale < 1)


def test_level_of_the_interval(rng):
    """A share of .95 of right predictions is inside, up to binomial error (four deviations)."""
    S = _spd(rng, n=3)
    runs = 600
    v = rng.multivariate_normal(np.zeros(3), S, (runs, 30))
    v[rng.random(v.shape) < 0.2] = NAN
    found = [nis(x, S).settings for x in v]
    inside = np.mean([x["consistent"] for x in found])
    assert abs(inside - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)
    assert scipy.stats.kstest([x["p_value"] for x in found], "uniform").pvalue > 1e-3


def test_alignment_of_states(rng):
    """An invertible read-out leaves the error as it is; a wide one compares what it reads out."""
    truth, mean, p = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 6, 3)), _spd(rng, 4, 6, n=3)
    plain = nees(truth=truth, mean=mean, covariance=p)
    turn, shift = rng.normal(size=(3, 3)), rng.normal(size=3)
    turned = nees(
        truth=truth @ turn.T + shift, mean=mean, covariance=p, readout=turn, offset=shift
    )
    assert turned == pytest.approx(plain)
    first = nees(truth=truth[..., :1], mean=mean, covariance=p, readout=np.eye(3)[:1])
    wanted = np.mean((truth - mean)[..., 0] ** 2 / p[..., 0, 0])
    assert first == pytest.approx(wanted) and first.settings["entries"] == 24


# ---- whiteness --------------------------------------------------------------------------------
def test_one_trial_is_the_test_of_ljung_and_box(rng):
    diagnostic = pytest.importorskip("statsmodels.stats.diagnostic")
    x = rng.normal(size=(300, 2))
    x[1:, 1] += 0.2 * x[:-1, 1]
    found = whiteness(torch.tensor(x), lags=12)
    for i in range(2):
        wanted = diagnostic.acorr_ljungbox(x[:, i], lags=12)
        np.testing.assert_allclose(found.statistic[:, i], wanted["lb_stat"])
        np.testing.assert_allclose(found.p_value[:, i], wanted["lb_pvalue"], rtol=1e-6)
        wanted = diagnostic.acorr_ljungbox(x[:, i] ** 2, lags=12)
        np.testing.assert_allclose(found.squared_statistic[:, i], wanted["lb_stat"])
        np.testing.assert_allclose(found.squared_p_value[:, i], wanted["lb_pvalue"], rtol=1e-6)


def test_one_trial_is_the_test_of_hosking(rng):
    api = pytest.importorskip("statsmodels.tsa.api")
    results = api.VAR(rng.normal(size=(250, 3)) @ rng.normal(size=(3, 3))).fit(1)
    found = whiteness(np.asarray(results.resid), lags=8)
    for lags in (2, 8):
        wanted = results.test_whiteness(nlags=lags, adjusted=True).test_statistic
        assert found.portmanteau[lags - 1] == pytest.approx(wanted)
        p = scipy.stats.chi2.sf(wanted, 9 * lags)
        assert found.portmanteau_p_value[lags - 1] == pytest.approx(p)


def test_hosking_by_its_formula(rng):
    x = rng.normal(size=(120, 2)) @ np.array([[1.0, 0.8], [0.0, 0.5]])
    n, c = len(x), x - x.mean(0)
    inverse = np.linalg.inv(c.T @ c / n)
    total = 0.0
    for lag in range(1, 6):
        C = c[lag:].T @ c[:-lag] / n
        total += n**2 / (n - lag) * np.trace(C.T @ inverse @ C @ inverse)
    assert whiteness(x, lags=5).portmanteau[-1] == pytest.approx(total)


def test_pairs_stay_in_their_trial_and_skip_what_is_missing(rng):
    x = rng.normal(size=(3, 30, 2))
    x[rng.random(x.shape) < 0.25] = NAN
    x[2, 20:] = NAN
    found = whiteness(x, lags=4)
    for i in range(2):
        seen = x[..., i][np.isfinite(x[..., i])]
        n, c, total = len(seen), x[..., i] - seen.mean(), 0.0
        for lag in range(1, 5):
            pairs = [
                c[b, t] * c[b, t - lag]
                for b in range(3) for t in range(lag, 30)
                if np.isfinite(c[b, t]) and np.isfinite(c[b, t - lag])
            ]  # fmt: skip
            r = sum(pairs) / np.sum((seen - seen.mean()) ** 2)
            total += n * (n + 2) * r**2 / len(pairs)
            assert found.autocorrelation[lag - 1, i] == pytest.approx(r)
            assert found.statistic[lag - 1, i] == pytest.approx(total)
        assert found.count[i] == n


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_level_under_the_null(missing, rng):
    """White series are refused in 5 % of cases, up to binomial error (four deviations)."""
    runs, channels = 500, 2
    root = np.array([[1.0, 0.0], [0.6, 0.8]])
    refused = {"one": 0, "squares": 0, "together": 0}
    for _ in range(runs):
        x = rng.normal(size=(4, 100, channels)) @ root.T
        x[rng.random(x.shape) < missing] = NAN
        test = whiteness(x, lags=10)
        refused["one"] += (test.p_value[-1] < 0.05).sum()
        refused["squares"] += (test.squared_p_value[-1] < 0.05).sum()
        refused["together"] += test.portmanteau_p_value[-1] < 0.05
    for name, count in refused.items():
        tests = runs * (1 if name == "together" else channels)
        assert abs(count / tests - 0.05) < 4 * math.sqrt(0.05 * 0.95 / runs), name


def test_what_the_tests_see(rng):
    noise = rng.normal(size=(1, 3001, 3))
    coloured = noise[:, 1:] + 0.2 * noise[:, :-1]
    assert (whiteness(coloured).p_value[-1] < 1e-6).all()
    crossed = np.stack([noise[:, 1:, 0], noise[:, :-1, 0]], -1)  # white each, one leads the other
    test = whiteness(crossed)
    assert (test.p_value[-1] > 1e-3).all() and test.portmanteau_p_value[-1] < 1e-6
    volatile, size = np.zeros(3000), 1.0
    for t in range(3000):
        volatile[t] = math.sqrt(size) * noise[0, t, 0]
        size = 0.6 + 0.4 * volatile[t] ** 2
    test = whiteness(volatile[:, None], lags=1)
    assert test.p_value[-1, 0] > 1e-4 and test.squared_p_value[-1, 0] < 1e-6


def test_innovations_of_a_right_filter_are_white(rng):
    _, y = _simulate(rng, 4, 300, missing=0.2)
    right, wrong = (
        whiteness(standardised_innovations(*_innovations(y, _kalman(y, scale * Q))))
        for scale in (1.0, 0.05)
    )
    assert right.portmanteau_p_value[-1] > 1e-3 > wrong.portmanteau_p_value[-1]


def test_table(rng):
    test = whiteness(rng.normal(size=(2, 60, 2)), lags=3)
    table = test.table()
    assert list(table.index) == ["channel 0", "channel 1", "together"]
    assert table.loc["together", "statistic"] == test.portmanteau[-1]
    assert table.loc["together", "count"] == 240
    assert "lags 1 to 3" in str(test) and "<table" in test._repr_html_()


# ---- refusals ---------------------------------------------------------------------------------
ROWS = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nis([1.0], [[1.0]]), "wrong number of axes"),
        (lambda: nis(ROWS * NAN, np.eye(2)), "no observed entry"),
        (lambda: nis(ROWS, np.eye(3)), "does not fit the vectors"),
        (lambda: nis(ROWS, np.diag([1.0, -1.0])), "not positive definite"),
        (lambda: nis(ROWS, np.diag([1.0, NAN])), "not finite where something was observed"),
        (lambda: nis(ROWS, [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (lambda: nis(ROWS, np.eye(2), mask=np.ones((5, 2))), "mask does not fit"),
        (lambda: nees(truth=ROWS, mean=ROWS[:, :1], covariance=np.eye(1)), "pass readout"),
        (lambda: nees(truth=ROWS, mean=ROWS[:3], covariance=np.eye(2)), "mean does not fit"),
        (
            lambda: nees(truth=ROWS, mean=ROWS, covariance=np.eye(2), readout=np.eye(3)),
            "readout has the wrong shape",
        ),
        (
            lambda: gaussian_innovations(
                ROWS, ROWS[:3], predicted_covariance=np.eye(2), weight=np.eye(2), noise=1
            ),
            "every latent step",
        ),
        (
            lambda: gaussian_innovations(
                ROWS, ROWS, predicted_covariance=np.eye(2), weight=np.eye(3), noise=1
            ),
            "weight has the wrong shape",
        ),
        (
            lambda: gaussian_innovations(
                ROWS, ROWS, predicted_covariance=np.eye(2), weight=np.eye(2), noise=[1, -1]
            ),
            "negative variances",
        ),
        (lambda: whiteness(ROWS, lags=6), "from 1 to 5"),
        (lambda: whiteness(ROWS[:, :1] * [1.0, 0.0], lags=2), "channel 1.*does not vary"),
        (lambda: whiteness(ROWS, lags=2), "not positive definite"),
        (lambda: whiteness([[1.0], [NAN], [2.0], [NAN], [0.0]], lags=1), "that far apart"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call()
