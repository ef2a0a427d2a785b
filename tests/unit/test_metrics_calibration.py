"""Calibration: uniform for the true model, not for a wrong one; tables against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from plssm.errors import DataError
from plssm.metrics.calibration import coverage, pit_uniformity, pit_values, reliability
from plssm.metrics.labels import brier_score

SIZE = 4000


# ---- PIT values -------------------------------------------------------------------------------
def _counts(seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2.0, 1.0, SIZE)
    return rng.poisson(rate).astype(float), rate


def _poisson(y, rate):
    return {
        "cdf": scipy.stats.poisson.cdf(y, rate),
        "cdf_below": scipy.stats.poisson.cdf(y - 1, rate),
    }


def _negative_binomial(y, rate):
    law = scipy.stats.nbinom(1.0, 1 / (1 + rate))  # the same mean, more variance
    return {"cdf": law.cdf(y), "cdf_below": law.cdf(y - 1)}


@pytest.mark.parametrize(("law", "right"), [(_poisson, True), (_negative_binomial, False)])
def test_randomised_values_of_counts(law, right):
    y, rate = _counts()
    score = pit_uniformity(pit_values(truth=y, **law(y, rate)))
    assert (score.settings["p_value"] > 1e-3) == right
    assert (score < 3 * score.floor) == right


def test_values_without_randomisation_would_not_be_uniform():
    y, rate = _counts()
    plain = pit_values(truth=y, cdf=scipy.stats.poisson.cdf(y, rate))
    assert pit_uniformity(plain).settings["p_value"] < 1e-6


@pytest.mark.parametrize(("scale", "right"), [(1.0, True), (1.3, False), (0.75, False)])
def test_values_of_continuous_distributions(scale, right):
    rng = np.random.default_rng(1)
    mean = rng.normal(size=SIZE)
    y = rng.normal(mean, 1.0)
    u = pit_values(truth=y, cdf=scipy.stats.norm(mean, scale).cdf(y))
    np.testing.assert_array_equal(u, scipy.stats.norm(mean, scale).cdf(y))
    score = pit_uniformity(u)
    assert (score.settings["p_value"] > 1e-3) == right
    assert (score.settings["variance"] > 1 / 12 + 0.005) == (scale < 1)


@pytest.mark.parametrize(("draws", "right"), [(19, True), (1, True), (19, False)])
def test_ranks_among_draws_are_uniform_for_any_number_of_draws(draws, right):
    rng = np.random.default_rng(2)
    rate = rng.gamma(2.0, 1.0, SIZE)
    y = rng.poisson(rate).astype(float)
    samples = rng.poisson(rate if right else 1.3 * rate, (draws, SIZE))
    score = pit_uniformity(pit_values(truth=y, samples=torch.tensor(samples)))
    assert (score.settings["p_value"] > 1e-3) == right


@pytest.mark.parametrize("right", [True, False])
def test_levels_with_probabilities(right):
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(4), SIZE)
    y = (rng.random(SIZE)[:, None] > p.cumsum(1)[:, :-1]).sum(1)
    told = p if right else p**2 / (p**2).sum(1, keepdims=True)  # too sure of itself
    score = pit_uniformity(pit_values(truth=y, probabilities=told))
    assert (score.settings["p_value"] > 1e-3) == right
    edges = np.column_stack([np.zeros(SIZE), p.cumsum(1)])
    u = pit_values(truth=y, probabilities=p)
    rows = np.arange(SIZE)
    assert ((edges[rows, y] - 1e-12 <= u) & (u <= edges[rows, y + 1] + 1e-12)).all()


def test_missing_entries_stay_missing_and_the_seed_decides():
    y, rate = _counts()
    y[::3] = np.nan
    law = _poisson(np.nan_to_num(y), rate)
    u = pit_values(truth=y, **law)
    assert np.isnan(u[::3]).all() and np.isfinite(u[1::3]).all()
    np.testing.assert_array_equal(u, pit_values(truth=y, **law))
    assert not np.array_equal(u[1::3], pit_values(truth=y, seed=1, **law)[1::3])
    law["cdf"][1] = np.nan
    assert np.isnan(pit_values(truth=y, **law)[1])
    assert pit_values(truth=y.reshape(4, -1, 1), cdf=np.full((4, SIZE // 4, 1), 0.5)).shape == (
        4,
        SIZE // 4,
        1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got nothing, wanted exactly one of"),
        ({"cdf": [0.5], "samples": [[1.0]]}, "got samples, cdf"),
        ({"cdf_below": [0.5]}, "got cdf_below"),
        ({"cdf": [1.5]}, "not values of a distribution function; got 1.5"),
        ({"cdf": [0.5], "cdf_below": [0.7]}, "cdf_below is above cdf"),
        ({"cdf": [0.5, 0.5]}, "cdf does not fit the truth"),
        ({"samples": [1.0]}, r"samples do not fit.*wanted \(S, 1\)"),
        ({"probabilities": [[0.5, 0.5]]}, "label 2"),
    ],
)
def test_unclear_predictions_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        pit_values(truth=[2.0], **arguments)


# ---- uniformity -------------------------------------------------------------------------------
def test_distance_and_reference_by_hand():
    u = np.array([0.1, 0.4, 0.9, np.nan])
    score = pit_uniformity(u)
    ordered = np.sort(u[:3])
    up = np.arange(1, 4) / 3 - ordered
    assert score == pytest.approx(max(up.max(), (ordered - np.arange(3) / 3).max()))
    assert score.settings["count"] == 3
    # P(D <= d) for n = 1 is 2 d - 1 on [1/2, 1]: the median of a single value is 3/4
    assert pit_uniformity([0.2]).floor == pytest.approx(0.75)
    assert pit_uniformity([0.2]).settings["p_value"] == pytest.approx(2 * (1 - 0.8))


def test_the_floor_is_the_median_of_what_uniform_values_reach():
    rng = np.random.default_rng(0)
    scores = [pit_uniformity(rng.random(60)) for _ in range(400)]
    below = np.mean([s < s.floor for s in scores])
    assert abs(below - 0.5) < 4 * math.sqrt(0.25 / 400)
    rejected = np.mean([s.settings["p_value"] < 0.1 for s in scores])
    assert abs(rejected - 0.1) < 4 * math.sqrt(0.09 / 400)


def test_values_outside_the_unit_interval_are_refused():
    with pytest.raises(DataError, match="not PIT values; got 1.2"):
        pit_uniformity([0.5, 1.2])
    with pytest.raises(DataError, match="no observed entry"):
        pit_uniformity([np.nan])


# ---- coverage ---------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_bands_of_the_true_model_cover_as_they_say(level):
    rng = np.random.default_rng(4)
    mean = rng.normal(size=(3, 1000, 2))
    y = rng.normal(mean, 1.0)
    y[rng.random(y.shape) < 0.2] = np.nan
    low, high = scipy.stats.norm(mean, 1.0).interval(level)
    seen = ~np.isnan(y)
    got = coverage(truth=y, low=torch.tensor(low), high=high)
    assert got == np.mean(((low <= y) & (y <= high))[seen])
    assert abs(got - level) < 4 * math.sqrt(level * (1 - level) / seen.sum())


def test_edges_count_and_bands_that_are_nan_do_not():
    assert coverage(truth=[0.0, 1.0], low=[0.0, 0.0], high=[0.0, 1.0]) == 1.0
    assert coverage(truth=[0.0, 1.0], low=[-1.0, np.nan], high=2.0) == 0.5
    with pytest.raises(DataError, match="lower edge above the upper one; got 1 of 2"):
        coverage(truth=[0.0, 0.0], low=[1.0, -1.0], high=[-1.0, 1.0])
    with pytest.raises(DataError, match="low does not fit the truth"):
        coverage(truth=[0.0, 0.0], low=[1.0] * 3, high=2.0)


# ---- reliability ------------------------------------------------------------------------------
def test_table_by_hand():
    table = reliability(
        truth=[0, 1, 1, 0, np.nan], probabilities=[0.1, 0.15, 0.8, 1.0, 0.5], bins=5
    )
    assert table["low"].tolist() == [0.0, 0.8]
    np.testing.assert_allclose(table["high"], [0.2, 1.0])
    assert table["count"].tolist() == [2, 2]
    np.testing.assert_allclose(table["predicted"], [0.125, 0.9])
    np.testing.assert_allclose(table["observed"], [0.5, 0.5])
    assert table.attrs["calibration_error"] == pytest.approx(0.5 * 0.375 + 0.5 * 0.4)


def test_wilson_interval_equals_scipy():
    rng = np.random.default_rng(5)
    p = rng.random(300)
    y = rng.random(300) < p
    table = reliability(truth=y, probabilities=p)
    for row in table.itertuples():
        test = scipy.stats.binomtest(round(row.observed * row.count), row.count)
        low, high = test.proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose([row.low_95, row.high_95], [low, high], atol=1e-12)


def test_the_three_parts_make_up_the_brier_score():
    """Exactly, when every bin holds a single probability."""
    rng = np.random.default_rng(6)
    kinds = np.array([[0.1, 0.3, 0.6], [0.75, 0.05, 0.2], [0.45, 0.55, 0.0]])
    p = kinds[rng.integers(0, 3, 500)]
    y = rng.integers(0, 3, 500)
    parts = reliability(truth=y, probabilities=p, bins=100).attrs
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert 3 * total == pytest.approx(brier_score(truth=y, probabilities=p))
    assert parts["uncertainty"] == pytest.approx(1 / 3 * 2 / 3)


@pytest.mark.parametrize("right", [True, False])
def test_calibrated_probabilities_lie_on_the_diagonal(right):
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(3), SIZE)
    y = (rng.random(SIZE)[:, None] > p.cumsum(1)[:, :-1]).sum(1)
    told = p if right else p**3 / (p**3).sum(1, keepdims=True)
    table = reliability(truth=y, probabilities=told)
    inside = (table["low_95"] <= table["predicted"]) & (table["predicted"] <= table["high_95"])
    assert (inside.mean() >= 0.7) == right
    assert (table.attrs["calibration_error"] < 0.02) == right
    assert table["count"].sum() == 3 * SIZE


def test_tables_that_cannot_be_made_are_refused():
    with pytest.raises(DataError, match="bins is out of range"):
        reliability(truth=[0], probabilities=[[0.5, 0.5]], bins=0)
    with pytest.raises(DataError, match="a probability is missing"):
        reliability(truth=[0], probabilities=[[np.nan, 0.5]])
    with pytest.raises(DataError, match="not probabilities"):
        reliability(truth=[0, 1], probabilities=[0.5, 1.5])
