"""Time scales against closed forms: AR(1), sines, Gaussian mutual information."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from plssm.analysis import (
    TimeScales,
    autocorrelation,
    delayed_mutual_information,
    predictability_time,
    time_scales,
)
from plssm.data.synthetic import lorenz63
from plssm.errors import DataError


def autoregression(phi, steps, seed=0):
    """AR(1) of variance 1 in its stationary distribution."""
    noise = np.random.default_rng(seed).standard_normal(steps)
    noise[1:] *= math.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise)


def direct_autocorrelation(trials, lags):
    """Pairs one by one."""
    mean, variance = np.nanmean(np.concatenate(trials)), np.nanvar(np.concatenate(trials))
    out = []
    for k in range(lags):
        pairs = [
            (t[i] - mean) * (t[i + k] - mean)
            for t in trials
            for i in range(len(t) - k)
            if not np.isnan(t[i] + t[i + k])
        ]
        out.append(np.mean(pairs) / variance if pairs else np.nan)
    return np.array(out)


def test_autocorrelation_pair_by_pair_with_gaps_and_ragged_trials():
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal((n, 2)).cumsum(axis=0) for n in (40, 7, 1, 25)]
    trials[0][rng.random((40, 2)) < 0.3] = np.nan
    got = autocorrelation(trials, lags=30)
    for i in range(2):
        want = direct_autocorrelation([t[:, i] for t in trials], 30)
        np.testing.assert_allclose(got[:, i], want, atol=1e-10)
    assert got[0] == pytest.approx(1.0)
    lone = [np.array([1.0, np.nan, 2.0, np.nan, 5.0, np.nan])]
    assert np.isnan(autocorrelation(lone, lags=4)[[1, 3]]).all()


def test_autocorrelation_of_an_autoregression():
    x = np.stack([autoregression(phi, 400_000, seed) for seed, phi in enumerate((0.5, 0.9))], 1)
    got = autocorrelation(x, lags=20)
    np.testing.assert_allclose(got, np.array([0.5, 0.9]) ** np.arange(20)[:, None], atol=0.015)
    # first k with phi^k < 1/e: 2 for 0.5; 10 for 0.9 (0.9^9 = 0.387, 0.9^10 = 0.349)
    np.testing.assert_array_equal(time_scales(x, lags=20).decorrelation, [2, 10])


def test_a_sine_decorrelates_after_a_fifth_of_its_period():
    t = np.arange(5000)
    x = np.sin(2 * np.pi * t / 50)
    np.testing.assert_allclose(
        autocorrelation(x, lags=60)[:, 0], np.cos(2 * np.pi * np.arange(60) / 50), atol=0.002
    )
    found = time_scales(x, lags=60).decorrelation
    assert found == math.ceil(50 * math.acos(math.exp(-1)) / (2 * math.pi)) == 10


def test_a_local_minimum_above_the_threshold_counts():
    # slow part 0.8 of the variance: rho stays above 0.6 and has its first minimum at half of 20
    t = np.arange(4000)
    slow, fast = np.cos(2 * np.pi * t / 2000), np.cos(2 * np.pi * t / 20)
    x = math.sqrt(0.8) * slow + math.sqrt(0.2) * fast
    assert autocorrelation(x, lags=40).min() > math.exp(-1)
    assert time_scales(x, lags=40).decorrelation == 10


def test_mutual_information_of_gaussians_in_closed_form():
    phi = 0.9
    x = autoregression(phi, 1_000_000)
    got = delayed_mutual_information(x, lags=8)[:, 0]
    want = -0.5 * np.log(1 - phi ** (2 * np.arange(1, 8)))
    np.testing.assert_allclose(got[1:], want, atol=0.015)


def test_mutual_information_against_a_histogram_of_pairs():
    rng = np.random.default_rng(1)
    trials = [rng.standard_normal(n) for n in (300, 200, 2)]
    trials[0][rng.random(300) < 0.2] = np.nan
    got = delayed_mutual_information(trials, lags=5, bins=6)[:, 0]
    pooled = np.concatenate(trials)
    edges = np.linspace(np.nanmin(pooled), np.nanmax(pooled), 7)
    for k in range(5):
        pairs = np.array([(t[j], t[j + k]) for t in trials for j in range(len(t) - k)])
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        p = np.histogramdd(pairs, bins=[edges, edges])[0] / len(pairs)
        a, b = p.sum(axis=1), p.sum(axis=0)
        entropy = [-np.sum(v[v > 0] * np.log(v[v > 0])) for v in (a, b, p)]
        assert got[k] == pytest.approx(entropy[0] + entropy[1] - entropy[2], abs=1e-12)


def test_mutual_information_of_a_period():
    # a period of 40: half of it later every value is known exactly again
    x = np.sin(2 * np.pi * (np.arange(40_000) + 0.3) / 40)
    information = delayed_mutual_information(x, lags=40)[:, 0]
    assert information[20] == pytest.approx(information[0], rel=0.05)


def test_the_forcing_interval_is_the_smaller_median():
    nan = math.nan
    assert TimeScales(np.array([4.0, 9.0, 7.0]), np.array([nan, 30, 20])).forcing_interval == 7
    assert TimeScales(np.array([nan]), np.array([12.0])).forcing_interval == 12
    with pytest.raises(DataError, match="neither decorrelates"):
        _ = TimeScales(np.array([nan]), np.array([nan])).forcing_interval


def test_lorenz63_forgets_in_a_sixth_of_a_unit_of_time():
    # the first minimum of mutual information of x is a textbook value, 0.16 to 0.18
    found = time_scales(lorenz63(60_000, 0.01, seed=1)[0])
    assert 14 <= found.information[0] <= 18
    assert 13 <= found.forcing_interval <= 24


def test_units_sign_order_and_type_do_not_matter():
    x = lorenz63(3000, 0.02)[0]
    want = time_scales(x)
    for other in (torch.tensor(x), 3 * x - 5, x[None], [x]):
        got = time_scales(other)
        np.testing.assert_array_equal(got.decorrelation, want.decorrelation)
        np.testing.assert_array_equal(got.information, want.information)


def test_predictability_time_doubles_an_error():
    assert math.exp(0.9056 * 0.01 * predictability_time(0.9056, dt=0.01)) == pytest.approx(2.0)
    assert predictability_time(math.log(2)) == pytest.approx(1.0)
    assert predictability_time(0.0) == predictability_time(-1.0) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_scales(np.ones(500)), "constant"),
        (lambda: time_scales(np.full(500, np.nan)), "constant, empty"),
        (lambda: time_scales(np.r_[np.arange(500.0), np.inf]), "infinite"),
        (lambda: time_scales(np.arange(50.0)), "lags do not fit"),
        (lambda: time_scales([np.zeros((200, 2)), np.zeros((200, 3))]), "not a series"),
        (lambda: delayed_mutual_information(np.arange(500.0), bins=1), "bins"),
        (lambda: predictability_time(math.nan), "out of range"),
        (lambda: predictability_time(1.0, dt=0.0), "out of range"),
    ],
)
def test_clear_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call()
