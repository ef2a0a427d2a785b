"""Proper scores: against integrals, double loops, scipy and simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from plssm.errors import DataError
from plssm.metrics import (
    energy_score,
    ensemble_crps,
    gaussian_crps,
    gaussian_log_score,
    spread_skill,
)

NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ---- Gaussian predictions ---------------------------------------------------------------------
@pytest.mark.parametrize(("y", "m", "s"), [(0.3, 0.0, 1.0), (-2.0, 1.0, 0.4), (5.0, 4.0, 3.0)])
def test_crps_is_the_integral_of_squared_distance(y, m, s):
    law = scipy.stats.norm(m, s)
    below = scipy.integrate.quad(lambda x: law.cdf(x) ** 2, m - 40 * s, y)[0]
    above = scipy.integrate.quad(lambda x: law.sf(x) ** 2, y, m + 40 * s)[0]
    assert gaussian_crps(truth=y, mean=m, sd=s) == pytest.approx(below + above, abs=1e-7)


def test_a_sure_prediction_scores_its_absolute_error():
    assert gaussian_crps(truth=[1.0, 4.0], mean=[1.0, 2.0], sd=[0.0, 0.0]) == 1.0
    assert gaussian_log_score(truth=[1.0], mean=1.0, sd=0.0) == -math.inf


@pytest.mark.parametrize("score", [gaussian_crps, gaussian_log_score])
def test_calibrated_reference_is_the_expected_score(score, rng):
    sd = rng.uniform(0.5, 2.0, 40_000)
    found = score(truth=rng.normal(0, sd), mean=0.0, sd=sd)
    assert found == pytest.approx(found.references["calibrated"], abs=0.02)


@pytest.mark.parametrize(("mean", "sd"), [(0.3, 1.0), (0.0, 0.7), (0.0, 1.5)])
def test_truth_scores_best(mean, sd, rng):
    y = rng.normal(size=20_000)
    assert gaussian_crps(truth=y, mean=0, sd=1) < gaussian_crps(truth=y, mean=mean, sd=sd)
    assert gaussian_log_score(truth=y, mean=0, sd=1) > gaussian_log_score(
        truth=y, mean=mean, sd=sd
    )


def test_parts_by_horizon_and_channel(rng):
    y = rng.normal(size=(6, 4, 3))
    y[rng.random(y.shape) < 0.3] = NAN
    y[:, 2, :] = NAN
    sd = rng.uniform(0.5, 2, size=(4, 3))
    found = gaussian_crps(truth=torch.tensor(y), mean=torch.zeros(3), sd=sd)
    single = np.array(
        [
            gaussian_crps(truth=v, mean=0, sd=s) if np.isfinite(v) else NAN
            for v, s in zip(y.ravel(), np.broadcast_to(sd, y.shape).ravel(), strict=True)
        ]
    ).reshape(y.shape)
    assert found == pytest.approx(np.nanmean(single))
    keep = [0, 1, 3]
    np.testing.assert_allclose(found.per_step[keep], np.nanmean(single[:, keep], (0, 2)))
    assert np.isnan(found.per_step[2])
    np.testing.assert_allclose(found.per_dimension, np.nanmean(single[:, keep], (0, 1)))
    assert found.settings["count"] == np.isfinite(y).sum()


def test_log_score_against_scipy(rng):
    y, mean, sd = rng.normal(size=(3, 5)), rng.normal(size=5), rng.uniform(0.5, 2, 5)
    y[0, 1] = NAN
    wanted = np.nanmean(scipy.stats.norm(mean, sd).logpdf(y))
    assert gaussian_log_score(truth=y, mean=mean, sd=sd) == pytest.approx(wanted)


def _spd(rng, *shape, n):
    root = rng.normal(size=(*shape, n, n))
    return root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(n)


def test_log_score_of_vectors_marginalises_what_is_missing(rng):
    y, mean, covariance = rng.normal(size=(2, 4, 3)), rng.normal(size=3), _spd(rng, 2, 4, n=3)
    y[0, 0] = NAN
    y[0, 1, 2] = y[1, 2, 0] = NAN
    covariance[0, 0] = NAN  # nothing observed there
    wanted, per_step = 0.0, np.zeros(4)
    for b, t in itertools.product(range(2), range(4)):
        o = np.flatnonzero(np.isfinite(y[b, t]))
        if len(o):
            law = scipy.stats.multivariate_normal(mean[o], covariance[b, t][np.ix_(o, o)])
            per_step[t] += law.logpdf(y[b, t, o])
    wanted = per_step.sum() / np.isfinite(y).sum()
    found = gaussian_log_score(truth=y, mean=mean, covariance=covariance)
    assert found == pytest.approx(wanted)
    np.testing.assert_allclose(found.per_step, per_step / np.isfinite(y).sum((0, 2)))


def test_both_forms_of_the_log_score_agree(rng):
    y, sd = rng.normal(size=(7, 3)), rng.uniform(0.5, 2, 3)
    vectors = gaussian_log_score(truth=y, mean=0.0, covariance=np.diag(sd**2))
    entries = gaussian_log_score(truth=y, mean=0.0, sd=sd)
    assert vectors == pytest.approx(entries)
    assert vectors.references["calibrated"] == pytest.approx(entries.references["calibrated"])


# ---- ensembles --------------------------------------------------------------------------------
def _fair(truth, draws):
    """The definition, by double loop."""
    n = len(draws)
    error = np.mean([np.linalg.norm(x - truth) for x in draws])
    pairs = sum(np.linalg.norm(a - b) for a in draws for b in draws)
    return error - pairs / (2 * n * (n - 1))


def test_ensemble_scores_by_double_loop(rng):
    y, draws = rng.normal(size=(4, 3)), rng.normal(size=(6, 4, 3))
    y[1, 0] = NAN
    y[2] = NAN
    entries = [
        _fair(y[t, i], draws[:, t, i]) for t in range(4) for i in range(3) if y[t, i] == y[t, i]
    ]
    assert ensemble_crps(truth=y, samples=torch.tensor(draws)) == pytest.approx(np.mean(entries))
    vectors = {t: _fair(y[t, o], draws[:, t, o]) for t, o in
               ((0, [0, 1, 2]), (1, [1, 2]), (3, [0, 1, 2]))}  # fmt: skip
    found = energy_score(truth=y, samples=draws)
    assert found == pytest.approx(np.mean(list(vectors.values())))
    np.testing.assert_allclose(found.per_step, [vectors[0], vectors[1], NAN, vectors[3]])
    assert found.settings["count"] == 3 and found.settings["members"] == 6


def test_energy_score_of_one_channel_is_crps(rng):
    y, draws = rng.normal(size=(50, 1)), rng.normal(size=(9, 50, 1))
    assert energy_score(truth=y, samples=draws) == pytest.approx(
        ensemble_crps(truth=y, samples=draws)
    )


@pytest.mark.parametrize("members", [2, 5, 40])
def test_fair_score_does_not_depend_on_the_number_of_members(members, rng):
    y = rng.normal(0.4, 1.3, size=20_000)
    draws = rng.normal(size=(members, len(y)))
    exact = gaussian_crps(truth=y, mean=0.0, sd=1.0)
    assert ensemble_crps(truth=y, samples=draws) == pytest.approx(exact, abs=0.03)


def test_diverged_predictions_score_worst(rng):
    y, draws = np.array([[0.0, NAN]]), rng.normal(size=(3, 1, 2))
    draws[1, 0, 0] = math.inf
    assert ensemble_crps(truth=y, samples=draws) == math.inf
    assert energy_score(truth=y, samples=draws) == math.inf
    assert gaussian_crps(truth=y, mean=NAN, sd=1.0) == math.inf
    assert gaussian_log_score(truth=y, mean=NAN, sd=1.0) == -math.inf
    assert gaussian_log_score(truth=y, mean=0.0, covariance=np.full((2, 2), NAN)) == -math.inf
    assert math.isnan(spread_skill(truth=y, samples=draws))
    assert math.isnan(spread_skill(truth=y, mean=math.inf, sd=1.0))
    draws[1, 0] = (0.0, math.inf)  # nothing was observed there
    assert math.isfinite(ensemble_crps(truth=y, samples=draws))
    assert math.isfinite(energy_score(truth=y, samples=draws))
    assert math.isfinite(spread_skill(truth=y, samples=draws))


# ---- spread and skill -------------------------------------------------------------------------
@pytest.mark.parametrize("members", [2, 5, 50])
def test_spread_of_a_right_ensemble_is_its_error(members, rng):
    sd = np.array([1.0, 2.0, 4.0])[:, None]
    y = rng.normal(0, sd, size=(8000, 3, 2))
    found = spread_skill(truth=y, samples=rng.normal(0, sd, size=(members, 8000, 3, 2)))
    np.testing.assert_allclose(found.per_step, 1.0, atol=0.03)
    np.testing.assert_allclose(found.per_dimension, 1.0, atol=0.03)
    assert found == pytest.approx(1.0, abs=0.03)


def test_spread_skill_by_horizon():
    y = np.array([[[2.0], [3.0]], [[-2.0], [NAN]]])
    found = spread_skill(truth=y, mean=0.0, sd=[[1.0], [6.0]])
    np.testing.assert_allclose(found.per_step, [0.5, 2.0])
    assert found == pytest.approx(math.sqrt((1 + 1 + 36) / (4 + 4 + 9)))
    assert found.settings["spread"] == pytest.approx(math.sqrt(38 / 3))


# ---- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_crps(truth=[NAN], mean=0, sd=1), "no observed entry"),
        (lambda: gaussian_crps(truth=[1.0], mean=0, sd=-1.0), "sd is negative"),
        (lambda: gaussian_crps(truth=[1.0, 2.0], mean=np.zeros(3), sd=1), "mean does not fit"),
        (lambda: gaussian_log_score(truth=[1.0], mean=0), "exactly one of sd and covariance"),
        (
            lambda: gaussian_log_score(truth=[1.0, 2.0], mean=0, covariance=np.ones((2, 2))),
            "not positive definite",
        ),
        (
            lambda: gaussian_log_score(truth=[1.0, 2.0], mean=0, covariance=[[1, 0.5], [0, 1]]),
            "not symmetric",
        ),
        (lambda: ensemble_crps(truth=[1.0], samples=[[0.0]]), "S >= 2"),
        (lambda: ensemble_crps(truth=[1.0], samples=np.zeros((5, 2))), "draws on the first axis"),
        (lambda: energy_score(truth=1.0, samples=[0.0, 1.0]), "not a vector"),
        (lambda: spread_skill(truth=[1.0], mean=0), "mean and sd, or samples"),
        (lambda: spread_skill(truth=[1.0], mean=0, sd=1, samples=[[0.0]] * 2), "mean and sd"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call()
