"""State-space divergence against brute force, direct sums and closed forms."""

import math

import numpy as np
import pytest
import torch

from plssm.errors import DataError
from plssm.metrics import state_space_divergence
from plssm.metrics.state_space import MIXTURE_POINTS

A = 1e-5


def brute_force(truth, pred, limits, bins, smoothing=A):
    """Histogram divergence with every cell allocated."""
    edges = [np.linspace(low, high, bins + 1) for low, high in limits]
    p, q = (np.histogramdd(x, bins=edges)[0] for x in (truth, pred))
    p = (p + smoothing) / (p + smoothing).sum()
    q = (q + smoothing) / (q + smoothing).sum()
    return float(np.sum(p * np.log(p / q)))


def data_box(x):
    sd = x.std(axis=0)
    return np.stack([x.min(axis=0) - 0.1 * sd, x.max(axis=0) + 0.1 * sd], axis=1)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_histogram_equals_brute_force(channels):
    rng = np.random.default_rng(channels)
    truth = rng.standard_normal((500, channels))
    pred = 0.8 * rng.standard_normal((300, channels)) + 0.1
    got = state_space_divergence(truth=truth, pred=pred, bins=7, smoothing=1e-3)
    assert got == pytest.approx(brute_force(truth, pred, data_box(truth), 7, 1e-3), abs=1e-12)


def test_closed_form_of_a_two_cell_histogram():
    truth = np.repeat([0.25, 0.75], [3, 1])
    pred = np.repeat([0.25, 0.75], [1, 1])
    p = np.array([3 + A, 1 + A]) / (4 + 2 * A)
    got = state_space_divergence(truth=truth, pred=pred, bins=2, box=[[0.0, 1.0]])
    assert got == pytest.approx(np.sum(p * np.log(p / 0.5)), abs=1e-14)


def test_first_and_last_bin_and_the_upper_edge_count():
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    got = state_space_divergence(truth=truth, pred=np.array([0.0, 1.0]), bins=4, box=[[0.0, 1.0]])
    cells_p, cells_q = np.array([2, 0, 0, 2.0]) + A, np.array([1, 0, 0, 1.0]) + A
    p, q = cells_p / cells_p.sum(), cells_q / cells_q.sum()
    assert got == pytest.approx(np.sum(p * np.log(p / q)), abs=1e-14)
    assert got.settings["truth_outside"] == got.settings["pred_outside"] == 0.0


def test_five_channels_in_closed_form():
    # 30 points on the diagonal, each in its own one of 30**5 cells; pred has the first 10
    truth = np.repeat((np.arange(30) + 0.5)[:, None] / 30, 5, axis=1)
    got = state_space_divergence(truth=truth, pred=truth[:10], box=[[0.0, 1.0]] * 5)
    assert got.settings["method"] == "histogram"
    mass_p, mass_q = 30 + A * 30**5, 10 + A * 30**5
    want = 10 * (1 + A) / mass_p * math.log(mass_q / mass_p)
    want += 20 * (1 + A) / mass_p * math.log((1 + A) / A * mass_q / mass_p)
    want += (30**5 - 30) * A / mass_p * math.log(mass_q / mass_p)
    assert got == pytest.approx(want, rel=1e-10)


def test_itself_scores_zero():
    x = np.random.default_rng(0).standard_normal((3000, 3))
    assert abs(state_space_divergence(truth=x, pred=x)) < 1e-8
    assert abs(state_space_divergence(truth=x, pred=x, method="mixture")) < 1e-8


def test_points_outside_are_dropped_and_reported():
    rng = np.random.default_rng(1)
    truth, pred = rng.uniform(size=(400, 2)), rng.uniform(size=(300, 2))
    strayed = np.concatenate([pred, np.full((100, 2), 50.0)])
    inside = state_space_divergence(truth=truth, pred=pred, bins=5)
    got = state_space_divergence(truth=truth, pred=strayed, bins=5)
    assert got == pytest.approx(inside, abs=0.05)  # some of pred may lie outside the truth's box
    assert got.settings["pred_outside"] >= 0.25
    assert inside.settings["pred_outside"] < 0.05


def test_nothing_inside_and_not_finite_score_infinity():
    x = np.random.default_rng(0).standard_normal((100, 2))
    broken = x.copy()
    broken[60:] = np.nan
    assert state_space_divergence(truth=x, pred=x + 100) == math.inf
    for method in ("histogram", "mixture"):
        assert state_space_divergence(truth=x, pred=broken, method=method) == math.inf
    broken[60:] = np.inf
    assert state_space_divergence(truth=x, pred=broken) == math.inf


def test_invariances_of_the_histogram():
    rng = np.random.default_rng(2)
    truth, pred = rng.standard_normal((400, 3)), rng.standard_normal((400, 3))
    score = state_space_divergence(truth=truth, pred=pred, bins=6)
    stretch, shift = np.array([2.0, 4.0, 0.5]), np.array([8.0, -4.0, 1.0])
    same = [
        state_space_divergence(truth=truth * stretch + shift, pred=pred * stretch + shift, bins=6),
        state_space_divergence(truth=truth[::-1], pred=rng.permutation(pred), bins=6),
        state_space_divergence(truth=truth[:, [2, 0, 1]], pred=pred[:, [2, 0, 1]], bins=6),
        state_space_divergence(truth=torch.tensor(truth), pred=torch.tensor(pred), bins=6),
    ]
    assert same == pytest.approx([score] * 4, abs=1e-9)


def test_boxes():
    rng = np.random.default_rng(3)
    truth, pred = rng.standard_normal((1000, 2)), rng.standard_normal((1000, 2))
    mean, sd = truth.mean(axis=0), truth.std(axis=0)
    limits = np.stack([mean - 2 * sd, mean + 2 * sd], axis=1)
    got = state_space_divergence(truth=truth, pred=pred, bins=5, box="two-sigma")
    assert got == pytest.approx(brute_force(truth, pred, limits, 5), abs=1e-12)
    assert got == state_space_divergence(truth=truth, pred=pred, bins=5, box=limits)
    assert 0.05 < got.settings["truth_outside"] < 0.13  # 1 - 0.954**2


def direct_mixture(truth, pred, scaling, samples, seed):
    """The mixture divergence written out, in one piece."""
    rng = np.random.default_rng(seed)
    at = truth[rng.integers(len(truth), size=samples)]
    at = at + math.sqrt(scaling) * rng.standard_normal(at.shape)

    def log_density(centres):
        square = ((at[:, None] - centres[None]) ** 2).sum(axis=-1)
        return np.log(np.exp(-square / (2 * scaling)).mean(axis=1))

    return np.mean(log_density(truth) - log_density(pred))


@pytest.mark.parametrize("scaling", [0.3, 1.0])
def test_mixture_equals_the_direct_sum(scaling):
    rng = np.random.default_rng(4)
    truth, pred = rng.standard_normal((300, 7)), 1.2 * rng.standard_normal((250, 7))
    got = state_space_divergence(truth=truth, pred=pred, scaling=scaling, samples=600, seed=5)
    assert got.settings["method"] == "mixture"
    assert got == pytest.approx(direct_mixture(truth, pred, scaling, 600, 5), abs=1e-10)


def test_mixture_against_the_gaussian_closed_form():
    # one centre each: KL between N(a, s I) and N(b, s I) is |a - b|^2 / (2 s)
    a, b = np.zeros((1, 6)), np.full((1, 6), 0.5)
    got = state_space_divergence(truth=a, pred=b, scaling=0.5, samples=40_000)
    assert got == pytest.approx(1.5, abs=4 * math.sqrt(3.0 / 40_000))


def test_mixture_stays_finite_far_away():
    a = np.zeros((10, 6))
    got = state_space_divergence(truth=a, pred=a + 1e3)
    assert got == pytest.approx(6e6 / 2, rel=0.01)


def test_mixture_uses_the_first_points_of_both():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((MIXTURE_POINTS + 5, 1)), rng.standard_normal((40, 1))
    later = np.concatenate([x[:MIXTURE_POINTS], np.full((5, 1), 99.0)])
    options = {"method": "mixture", "samples": 20, "floor": False}
    scores = [state_space_divergence(truth=v, pred=y, **options) for v in (x, later)]
    assert scores[0] == scores[1]
    assert scores[0].settings["truth_used"] == MIXTURE_POINTS


def test_trials_are_pooled_and_padding_is_ignored():
    rng = np.random.default_rng(7)
    trials = [rng.standard_normal((n, 2)) for n in (30, 50, 20)]
    padded = np.full((3, 50, 2), np.nan)
    for i, trial in enumerate(trials):
        padded[i, : len(trial)] = trial
    pooled = np.concatenate(trials)
    guess = [0.9 * t for t in trials]
    want = state_space_divergence(truth=pooled, pred=0.9 * pooled, bins=5)
    assert state_space_divergence(truth=trials, pred=guess, bins=5) == want
    assert state_space_divergence(truth=padded, pred=0.9 * padded, bins=5) == want
    assert state_space_divergence(truth=torch.tensor(padded), pred=guess, bins=5) == want


def test_a_diverged_trial_is_not_padding():
    rng = np.random.default_rng(8)
    truth, pred = rng.standard_normal((2, 3, 40, 2))
    pred[1, 20:] = np.nan
    assert state_space_divergence(truth=truth, pred=pred, bins=5) == math.inf
    assert state_space_divergence(truth=truth[0], pred=pred[1], bins=5) == math.inf


def test_floor_is_the_median_over_pairs_of_truth_blocks():
    rng = np.random.default_rng(9)
    truth, pred = rng.standard_normal((1000, 2)), rng.standard_normal((250, 2))
    got = state_space_divergence(truth=truth, pred=pred, bins=6)
    blocks = truth.reshape(4, 250, 2)
    want = [brute_force(blocks[i], blocks[i + 2], data_box(truth), 6) for i in (0, 1)]
    assert got.floor == pytest.approx(np.median(want), abs=1e-12)
    assert got.settings["floor_pairs"] == 2
    short = state_space_divergence(truth=truth, pred=truth[:501], bins=6)
    assert math.isnan(short.floor)
    assert short.settings["floor"] == "floor unavailable at this length"
    assert math.isnan(state_space_divergence(truth=truth, pred=pred, floor=False).floor)


def test_one_point_each():
    got = state_space_divergence(truth=[[0.5]], pred=[[0.5]], box=[[0.0, 1.0]])
    assert got == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((5, 2))}, "different numbers of channels"),
        ({"truth": np.zeros((0, 3))}, "truth is empty"),
        ({"pred": np.zeros((0, 3))}, "pred is empty"),
        ({"truth": np.full((5, 3), np.nan)}, "missing or infinite"),
        ({"truth": np.full((1, 5, 3), np.nan)}, "every entry is NaN"),
        ({"truth": np.array([[1.0, 2, 3], [np.inf, 5, 6]])}, "step 1, channel 0"),
        ({"truth": np.ones((9, 3))}, "does not vary"),
        ({"truth": np.zeros((2, 2, 2, 3))}, "wrong number of axes"),
        ({"truth": [np.zeros((4, 3)), np.zeros((4, 2))]}, "different numbers of channels"),
        ({"truth": "orbit"}, "not numeric"),
        ({"bins": 0}, "bins is out of range"),
        ({"smoothing": 0.0}, "smoothing is out of range"),
        ({"method": "kde"}, "unknown method"),
        ({"box": "all"}, "unknown box"),
        ({"box": [[0.0, 1.0]]}, "the box does not fit"),
        ({"box": [[1.0, 0.0]] * 3}, "the box does not fit"),
        ({"bins": 10**7}, "too many cells"),
    ],
)
def test_clear_refusals(change, message):
    x = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(DataError, match=message):
        state_space_divergence(**({"truth": x, "pred": x} | change))
