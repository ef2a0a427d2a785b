"""Measures for labels and counts against definitions written out, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from plssm.errors import DataError
from plssm.metrics.counts import bits_per_spike
from plssm.metrics.labels import (
    accuracy,
    balanced_accuracy,
    brier_score,
    log_score,
    ranked_probability_score,
)

SCORES = [brier_score, ranked_probability_score, log_score]


def _case(shape=(3, 8, 1), classes=4, seed=0, missing=0.3):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), shape)
    y = rng.integers(0, classes, shape).astype(float)
    y[rng.random(shape) < missing] = np.nan
    return y, p


# ---- accuracy ---------------------------------------------------------------------------------
def test_accuracy_and_recall_by_hand():
    truth = [0, 0, 0, 0, 1, 1, 2, np.nan]
    pred = [0, 0, 0, 1, 1, 0, 0, 2]
    assert accuracy(truth=truth, pred=pred) == 4 / 7
    assert balanced_accuracy(truth=truth, pred=pred) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


def test_accuracy_takes_probabilities_and_tensors_and_trials():
    y, p = _case()
    seen = ~np.isnan(y)
    wanted = np.mean(p.argmax(-1)[seen] == y[seen])
    assert accuracy(truth=y, pred=p) == wanted
    assert accuracy(truth=torch.tensor(y), pred=torch.tensor(p, dtype=torch.float32)) == wanted
    assert accuracy(truth=y, pred=p.argmax(-1)) == wanted
    parts = [0, 1, 2]
    assert accuracy(truth=[y[i] for i in parts], pred=[p[i] for i in parts]) == wanted
    recalls = [np.mean(p.argmax(-1)[y == c] == c) for c in range(4)]
    assert balanced_accuracy(truth=y, pred=p) == pytest.approx(np.mean(recalls))


def test_always_the_same_answer_has_a_balanced_accuracy_of_one_over_the_classes():
    rng = np.random.default_rng(0)
    y = rng.choice(3, p=[0.8, 0.15, 0.05], size=400)
    assert balanced_accuracy(truth=y, pred=np.zeros(400)) == pytest.approx(1 / 3)
    assert balanced_accuracy(truth=y * 2, pred=np.zeros(400)) == pytest.approx(1 / 3)


def test_a_prediction_that_is_nan_is_wrong():
    p = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    assert accuracy(truth=[0, 0, 1], pred=p) == pytest.approx(2 / 3)
    assert accuracy(truth=[0, 0, 1], pred=[0, np.nan, 1]) == pytest.approx(2 / 3)
    assert accuracy(truth=[0, np.nan, 1], pred=p) == 1.0


# ---- proper scores ----------------------------------------------------------------------------
def test_scores_equal_their_definitions():
    y, p = _case()
    brier, ranked, log = [], [], []
    for i in np.ndindex(y.shape):
        if np.isnan(y[i]):
            continue
        c = int(y[i])
        brier.append(sum((p[i][k] - (k == c)) ** 2 for k in range(4)))
        ranked.append(sum((p[i][: k + 1].sum() - (c <= k)) ** 2 for k in range(4)))
        log.append(math.log(p[i][c]))
    assert brier_score(truth=y, probabilities=p) == pytest.approx(np.mean(brier))
    assert ranked_probability_score(truth=y, probabilities=p) == pytest.approx(np.mean(ranked))
    assert log_score(truth=y, probabilities=torch.tensor(p)) == pytest.approx(np.mean(log))
    single = np.asarray(p, dtype=np.float32)
    assert brier_score(truth=y, probabilities=single) == pytest.approx(np.mean(brier), rel=1e-5)


def test_best_and_worst_values():
    sure, y = np.eye(4), np.arange(4)
    assert brier_score(truth=y, probabilities=sure) == 0
    assert brier_score(truth=y, probabilities=sure[::-1]) == 2
    assert ranked_probability_score(truth=y, probabilities=sure) == 0
    assert ranked_probability_score(truth=[0, 3], probabilities=sure[[3, 0]]) == 3
    assert ranked_probability_score(truth=[0], probabilities=sure[[1]]) == 1
    assert log_score(truth=y, probabilities=sure) == 0
    assert log_score(truth=[0], probabilities=sure[[1]]) == -math.inf


def test_ranked_score_of_samples_is_the_continuous_ranked_probability_score():
    """RPS = integral of (F - 1)^2 = E|x - y| - E|x - x'| / 2 for levels at unit distance."""
    y, p = _case(shape=(50,), missing=0.0)
    k = np.arange(4)
    first = (p * abs(k - y[:, None])).sum(1)
    second = np.einsum("ni,nj,ij->n", p, p, abs(k[:, None] - k))
    wanted = np.mean(first - second / 2)
    assert ranked_probability_score(truth=y, probabilities=p) == pytest.approx(wanted)


@pytest.mark.parametrize("score", SCORES)
def test_telling_the_truth_pays(score):
    """Proper: in expectation nothing beats the true probabilities."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    sign = -1 if score is log_score else 1

    def expected(q):
        return sum(p[c] * sign * score(truth=[c], probabilities=q[None]) for c in range(4))

    rng = np.random.default_rng(0)
    others = [(1 - e) * p + e * rng.dirichlet(np.ones(4)) for e in (0.05, 0.2, 1.0)]
    assert all(expected(q) > expected(p) for q in others)


@pytest.mark.parametrize("score", SCORES)
def test_probabilities_that_are_not_finite_score_worst(score):
    p = np.array([[0.5, 0.5], [np.nan, np.nan]])
    worst = -math.inf if score is log_score else math.inf
    assert score(truth=[0, 1], probabilities=p) == worst
    assert math.isfinite(score(truth=[0, np.nan], probabilities=p))


@pytest.mark.parametrize(
    ("truth", "probabilities", "message"),
    [
        ([0, 1], [0.5, 0.5], r"do not fit the truth; got truth \(2,\).*wanted \(2, K\)"),
        ([0, 2], [[0.5, 0.5]] * 2, "label without a probability; got label 2, wanted .* 0 to 1"),
        ([0, 1], [[0.5, 0.6]] * 2, "not probabilities.*softmax"),
        ([0, 1], [[1.5, -0.5]] * 2, "not probabilities"),
        ([0.5, 1], [[0.5, 0.5]] * 2, "not a label; got 0.5"),
        ([-1, 1], [[0.5, 0.5]] * 2, "not a label; got -1"),
        ([np.nan] * 2, [[0.5, 0.5]] * 2, "no observed entry"),
        (["a", "b"], [[0.5, 0.5]] * 2, "truth is not an array of numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth, probabilities, message):
    for score in SCORES:
        with pytest.raises(DataError, match=message):
            score(truth=truth, probabilities=probabilities)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"different shapes; got truth \(3,\), pred \(2,\)"):
        accuracy(truth=[0, 1, 2], pred=[0, 1])
    with pytest.raises(DataError, match="2 arrays"):
        accuracy(truth=[np.zeros((2, 1)), np.zeros((2, 2))], pred=np.zeros(4))


# ---- bits per spike ---------------------------------------------------------------------------
def _spikes(seed=0, units=5):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.4, (3, 40, units))
    counts = rng.poisson(rates).astype(float)
    counts[rng.random(counts.shape) < 0.2] = np.nan
    return counts, rates, np.array(rng.gamma(2.0, 0.4, units))


def test_bits_per_spike_from_poisson_log_likelihoods_of_scipy():
    counts, rates, null = _spikes()
    seen = ~np.isnan(counts)
    y = np.where(seen, counts, 0)
    gain = scipy.stats.poisson.logpmf(y, rates) - scipy.stats.poisson.logpmf(y, null)
    gain = np.where(seen, gain, 0.0)
    got = bits_per_spike(counts=counts, rates=torch.tensor(rates), null_rates=null)
    assert got == pytest.approx(gain.sum() / y.sum() / math.log(2))
    each = gain.sum((0, 1)) / y.sum((0, 1)) / math.log(2)
    np.testing.assert_allclose(got.per_dimension, each)
    assert got.settings["spikes"] == y.sum() and got.settings["observed"] == seen.sum()
    weighted = each @ y.sum((0, 1)) / y.sum()
    assert got == pytest.approx(weighted)


def test_without_null_rates_the_mean_of_the_counts_is_the_constant():
    counts, rates, _ = _spikes()
    mean = np.nanmean(counts, axis=(0, 1))
    got = bits_per_spike(counts=counts, rates=rates)
    assert got == pytest.approx(bits_per_spike(counts=counts, rates=rates, null_rates=mean))
    assert bits_per_spike(counts=counts, rates=mean) == pytest.approx(0.0, abs=1e-12)


def test_a_rate_twice_too_high_costs_what_it_should():
    """(y log 2 - rate) / (y log 2) for counts equal to the null rate."""
    got = bits_per_spike(counts=[3.0, 3.0], rates=[6.0, 6.0], null_rates=3.0)
    assert got == pytest.approx(1 - 1 / math.log(2))


def test_impossible_rates_score_minus_infinity():
    counts = np.array([[1.0, 0.0], [2.0, np.nan]])
    for bad in (0.0, -1.0, np.nan, np.inf):
        rates = np.array([[1.0, 1.0], [bad, 1.0]])
        got = bits_per_spike(counts=counts, rates=rates, null_rates=[1.0, 1.0])
        assert got == -math.inf
    nothing = np.array([[1.0, 0.0], [2.0, np.nan]])
    silent = bits_per_spike(counts=counts, rates=nothing, null_rates=[1.5, 0.0])
    assert math.isfinite(silent) and math.isnan(silent.per_dimension[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": [[0.0], [0.0]], "rates": [[1.0], [1.0]]}, "no spike; got 2 zeros"),
        ({"counts": [[0.5]], "rates": [[1.0]]}, "counts are not counts; got 0.5"),
        ({"counts": [[-1.0]], "rates": [[1.0]]}, "got -1"),
        ({"counts": [[np.nan]], "rates": [[1.0]]}, "counts has no observed entry"),
        ({"counts": [[1.0, 2.0]], "rates": [[1.0] * 3]}, r"rates does not fit.*\(1, 3\)"),
        (
            {"counts": [[1.0, 2.0]], "rates": [[1.0, 1.0]], "null_rates": [1.0, 0.0]},
            "unit 1: the null rate does not allow the counts; got null rate 0 with 2 spikes",
        ),
    ],
)
def test_counts_that_cannot_be_scored_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        bits_per_spike(**arguments)
