"""Power-spectrum distance against scipy on hand-made spectra."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.signal import periodogram
from scipy.spatial.distance import euclidean

from plssm.errors import DataError
from plssm.metrics import power_spectra, power_spectrum_distance


def reference(truth, pred, smoothing):
    """Hellinger distance per channel from scipy's periodogram and euclidean distance."""
    out = []
    for x, y in zip(truth.T, pred.T, strict=True):
        spectra = []
        for v in (x, y):
            v = (v - v.mean()) / v.std()
            power = periodogram(v, scaling="spectrum")[1]
            power[1 : len(power) - (len(v) % 2 == 0)] /= 2  # scipy counts both sides
            if smoothing:
                power = gaussian_filter1d(power, smoothing).clip(0)
            spectra.append(power / power.sum())
        out.append(euclidean(*np.sqrt(spectra)) / math.sqrt(2))
    return np.array(out)


@pytest.mark.parametrize("smoothing", [0, 1, 20])
@pytest.mark.parametrize("length", [64, 301])
def test_equals_scipy(smoothing, length):
    rng = np.random.default_rng(length)
    truth = rng.standard_normal((length, 3)).cumsum(axis=0)
    pred = rng.standard_normal((length, 3)) + 5
    got = power_spectrum_distance(truth=truth, pred=pred, smoothing=smoothing)
    want = reference(truth, pred, smoothing)
    np.testing.assert_allclose(got.per_dimension, want, atol=1e-10)
    assert got == pytest.approx(want.mean(), abs=1e-10)


def test_two_sines_are_disjoint():
    t = np.arange(1000)
    a, b = np.sin(2 * np.pi * 0.05 * t), np.sin(2 * np.pi * 0.2 * t)
    got = power_spectrum_distance(truth=a, pred=b, smoothing=0)
    assert got == pytest.approx(1.0, abs=1e-6)
    assert power_spectrum_distance(truth=a, pred=b, smoothing=1) == pytest.approx(1.0, abs=1e-6)


def test_closed_form_of_two_lines():
    # shares (1/2, 1/2) against (1/5, 4/5): H^2 = 1 - sqrt(1/10) - sqrt(4/10)
    t = np.arange(400)
    low, high = np.sin(2 * np.pi * 20 * t / 400), np.cos(2 * np.pi * 90 * t / 400)
    got = power_spectrum_distance(truth=low + high, pred=low + 2 * high, smoothing=0)
    assert got == pytest.approx(math.sqrt(1 - math.sqrt(0.1) - math.sqrt(0.4)), abs=1e-9)


@pytest.mark.parametrize("length", [500, 5000])
def test_itself_scores_zero_at_any_length(length):
    x = np.random.default_rng(0).standard_normal((length, 2)).cumsum(axis=0)
    assert abs(power_spectrum_distance(truth=x, pred=x)) < 1e-8
    assert abs(power_spectrum_distance(truth=[x] * 3, pred=x)) < 1e-8


def test_invariances_and_bounds():
    rng = np.random.default_rng(1)
    truth, pred = rng.standard_normal((2, 256, 3))
    pred = pred.cumsum(axis=0)
    score = power_spectrum_distance(truth=truth, pred=pred)
    same = [
        power_spectrum_distance(truth=3 * truth + 7, pred=-0.1 * pred - 2),
        power_spectrum_distance(truth=truth[::-1], pred=pred),
        power_spectrum_distance(truth=pred, pred=truth),
        power_spectrum_distance(truth=torch.tensor(truth), pred=torch.tensor(pred)),
    ]
    assert same == pytest.approx([score] * 4, abs=1e-9)
    assert 0 < score < 1


def test_lengths_are_cut_to_the_shorter():
    rng = np.random.default_rng(2)
    truth, pred = rng.standard_normal((300, 2)), rng.standard_normal((200, 2))
    got = power_spectrum_distance(truth=truth, pred=pred)
    assert got == power_spectrum_distance(truth=truth[:200], pred=pred)
    assert got.settings["steps"] == 200


def test_spectra_are_averaged_over_trials():
    rng = np.random.default_rng(3)
    truth, pred = rng.standard_normal((2, 3, 128, 2))
    p = np.mean([power_spectra([x], smoothing=5) for x in truth], axis=0)
    q = np.mean([power_spectra([10 * x + 1], smoothing=5) for x in pred], axis=0)
    np.testing.assert_allclose(p.sum(axis=0), 1.0)
    want = np.sqrt(1 - np.sqrt(p * q).sum(axis=0)).mean()
    got = power_spectrum_distance(truth=truth, pred=list(pred), smoothing=5)
    assert got == pytest.approx(want, abs=1e-9)
    padded = np.concatenate([truth, np.full((3, 9, 2), np.nan)], axis=1)
    assert power_spectrum_distance(truth=padded, pred=pred, smoothing=5) == got


def test_a_constant_prediction_scores_one_and_a_broken_one_infinity():
    rng = np.random.default_rng(4)
    truth = rng.standard_normal((200, 2))
    assert power_spectrum_distance(truth=truth, pred=np.full((200, 2), 0.3)) == 1.0
    half = truth.copy()
    half[:, 0] = -1e6
    got = power_spectrum_distance(truth=truth, pred=half)
    np.testing.assert_allclose(got.per_dimension, [1.0, 0.0])
    broken = truth.copy()
    broken[150:] = np.nan
    assert power_spectrum_distance(truth=truth, pred=broken) == math.inf
    assert power_spectrum_distance(truth=truth, pred=broken[:160]) == math.inf


def test_floor_from_pairs_of_blocks():
    rng = np.random.default_rng(5)
    truth, pred = rng.standard_normal((400, 2)), rng.standard_normal((100, 2))
    got = power_spectrum_distance(truth=truth, pred=pred, smoothing=2)
    blocks = truth.reshape(4, 100, 2)
    want = [reference(blocks[i], blocks[i + 2], 2).mean() for i in (0, 1)]
    assert got.floor == pytest.approx(np.median(want), abs=1e-9)
    equal = power_spectrum_distance(truth=truth, pred=truth)
    assert math.isnan(equal.floor)
    assert equal.settings["floor"] == "floor unavailable at this length"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((50, 3))}, "different numbers of channels"),
        ({"truth": np.full((50, 2), np.nan)}, "missing or infinite"),
        ({"truth": np.ones((50, 2))}, "does not vary"),
        ({"pred": np.ones((1, 2))}, "too short"),
        ({"smoothing": -1}, "smoothing is out of range"),
        ({"smoothing": np.nan}, "smoothing is out of range"),
    ],
)
def test_clear_refusals(change, message):
    x = np.random.default_rng(0).standard_normal((50, 2))
    with pytest.raises(DataError, match=message):
        power_spectrum_distance(**({"truth": x, "pred": x} | change))
