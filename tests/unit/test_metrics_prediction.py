"""Prediction error against plain numpy."""

import copy
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from plssm.errors import DataError
from plssm.metrics import Measure, prediction_error


def test_plain_mean_squared_error():
    rng = np.random.default_rng(0)
    truth, pred = rng.standard_normal((2, 60, 3))
    got = prediction_error(truth=truth, pred=pred)
    assert got == pytest.approx(np.mean((truth - pred) ** 2))
    np.testing.assert_allclose(got.per_dimension, ((truth - pred) ** 2).mean(axis=0))
    assert got.per_step is None
    assert got.floor == 0.0
    assert prediction_error(truth=truth[:, 0], pred=pred[:, 0]) == pytest.approx(
        got.per_dimension[0]
    )


def test_origins_and_steps():
    rng = np.random.default_rng(1)
    truth, pred = rng.standard_normal((2, 40, 5, 3))
    got = prediction_error(truth=truth, pred=torch.tensor(pred))
    square = (truth - pred) ** 2
    assert got == pytest.approx(square.mean())
    np.testing.assert_allclose(got.per_step, square.mean(axis=(0, 2)))
    np.testing.assert_allclose(got.per_dimension, square.mean(axis=(0, 1)))


def test_missing_entries_are_left_out():
    rng = np.random.default_rng(2)
    truth, pred = rng.standard_normal((2, 30, 4, 3))
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[..., 2] = np.nan
    pred[..., 2] = np.inf  # never looked at
    got = prediction_error(truth=truth, pred=pred)
    square = (truth - pred) ** 2
    assert got == pytest.approx(np.nanmean(square[..., :2]))
    np.testing.assert_allclose(got.per_step, np.nanmean(square[..., :2], axis=(0, 2)))
    assert math.isnan(got.per_dimension[2])
    assert got.settings["missing"] == int(np.isnan(truth).sum())


def test_the_training_mean_scores_one():
    rng = np.random.default_rng(3)
    train = rng.standard_normal((500, 3)) * [1.0, 5.0, 0.1] + [0.0, 3.0, -2.0]
    mean = np.broadcast_to(train.mean(axis=0), train.shape)
    assert prediction_error(truth=train, pred=mean, scale=train.std(axis=0)) == pytest.approx(1.0)
    assert prediction_error(truth=train, pred=mean, scale=2.0) == pytest.approx(
        prediction_error(truth=train, pred=mean) / 4
    )


def test_noise_makes_the_floor():
    rng = np.random.default_rng(4)
    signal = rng.standard_normal((200_000, 2))
    sd, scale = np.array([0.5, 2.0]), np.array([1.0, 4.0])
    truth = signal + sd * rng.standard_normal(signal.shape)
    got = prediction_error(truth=truth, pred=signal, scale=scale, noise=sd**2)
    assert got.floor == pytest.approx(0.25)
    assert got == pytest.approx(got.floor, rel=0.01)


def test_trials_in_a_list_are_pooled():
    rng = np.random.default_rng(5)
    truth = [rng.standard_normal((n, 2)) for n in (5, 1, 9)]
    pred = [rng.standard_normal(t.shape) for t in truth]
    want = prediction_error(truth=np.concatenate(truth), pred=np.concatenate(pred))
    assert prediction_error(truth=truth, pred=pred) == want


def test_a_broken_prediction_scores_infinity():
    truth, pred = np.zeros((2, 10, 2))
    pred[3, 1] = np.nan
    got = prediction_error(truth=truth, pred=pred)
    assert got == math.inf
    np.testing.assert_array_equal(got.per_dimension, [0.0, math.inf])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((9, 2))}, "different shapes"),
        ({"truth": np.zeros((10, 1))}, "different shapes"),
        ({"truth": np.zeros((0, 2)), "pred": np.zeros((0, 2))}, "is empty"),
        ({"truth": np.full((10, 2), np.nan)}, "no observed entry"),
        ({"truth": np.full((10, 2), np.inf)}, "infinite"),
        ({"scale": 0.0}, "scale is out of range"),
        ({"scale": [1.0, 1.0, 1.0]}, "scale has the wrong shape"),
        ({"noise": -1.0}, "noise is out of range"),
        ({"truth": np.zeros((1, 2, 3, 4))}, "wrong shape"),
    ],
)
def test_clear_refusals(change, message):
    with pytest.raises(DataError, match=message):
        prediction_error(**({"truth": np.zeros((10, 2)), "pred": np.zeros((10, 2))} | change))


def test_a_measure_is_a_float():
    score = Measure(0.5, floor=0.25, settings={"bins": 30}, per_dimension=np.array([0.5]))
    assert isinstance(score, float)
    assert score == 0.5
    assert f"{score:.2f}" == "0.50"
    assert json.loads(json.dumps(score)) == 0.5
    assert np.array([score]).dtype == np.float64
    assert pd.DataFrame({"d": [score, 1.0]})["d"].dtype == np.float64
    assert str(score) == "0.5 (floor 0.25)"
    assert str(Measure(2.0)) == "2 (floor unavailable)"
    for twin in (copy.copy(score), copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert (twin, twin.floor, twin.settings) == (score, 0.25, {"bins": 30})
        assert twin.per_dimension == score.per_dimension
