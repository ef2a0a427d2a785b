"""The table of a reconstruction against the measures called one by one and numpy's quantiles."""

import copy
import math

import numpy as np
import pandas as pd
import pytest

from plssm.data.synthetic import lorenz63, lorenz96
from plssm.errors import DataError
from plssm.metrics import (
    Measure,
    power_spectrum_distance,
    reconstruction,
    reference_runs,
    state_space_divergence,
)


@pytest.fixture(scope="module")
def orbits():
    path = lorenz63(8_000, dt=0.02, trials=6, seed=0)
    return (path - path[0].mean(axis=0)) / path[0].std(axis=0)


def test_reference_runs_have_mean_and_spread_of_the_truth():
    rng = np.random.default_rng(0)
    truth = [rng.standard_normal((n, 2)) * [1, 5] + [3, -1] for n in (400, 100)]
    runs = reference_runs(truth=truth, pred=rng.standard_normal((100_000, 2)), seed=1)
    pooled = np.concatenate(truth)
    np.testing.assert_array_equal(runs["fixed point"][0], np.tile(pooled.mean(0), (100_000, 1)))
    noise = runs["white noise"][0]
    np.testing.assert_allclose(noise.mean(axis=0), pooled.mean(axis=0), atol=0.06)
    np.testing.assert_allclose(noise.std(axis=0), pooled.std(axis=0), rtol=0.01)
    assert np.abs((noise[1:] * noise[:-1]).mean(0) - noise.mean(0) ** 2).max() < 0.3
    ragged = reference_runs(truth=truth, pred=truth)
    assert [r.shape for r in ragged["white noise"]] == [(400, 2), (100, 2)]
    assert not np.array_equal(noise, reference_runs(truth=truth, pred=noise)["white noise"][0])


@pytest.mark.parametrize("method", ["histogram", "mixture"])
def test_references_are_what_those_runs_score(orbits, method):
    truth, pred = orbits[0][:2000], orbits[1][:1000]
    runs = reference_runs(truth=truth, pred=pred, seed=3)
    options = {"truth": truth, "method": method, "samples": 100, "seed": 3}
    got = state_space_divergence(pred=pred, references=True, **options)
    spectrum = power_spectrum_distance(truth=truth, pred=pred, references=True, seed=3)
    for name, run in runs.items():
        assert got.references[name] == state_space_divergence(pred=run[0], **options)
        assert spectrum.references[name] == power_spectrum_distance(truth=truth, pred=run)
    assert spectrum.references["fixed point"] == 1.0
    assert state_space_divergence(pred=pred, **options).references == {}


def test_the_mixture_in_ten_channels_has_floor_and_references():
    # in ten channels the mixture tells an attractor from its mean and from noise
    path = lorenz96(12_000, 0.05, dim=10, trials=2, seed=0)
    path = (path - path[0].mean(axis=0)) / path[0].std(axis=0)
    scores = [
        state_space_divergence(truth=path[0], pred=path[1][:4000], references=True, seed=s)
        for s in range(3)
    ]
    assert len(set(scores)) == 3
    for score in scores:
        assert score.settings["method"] == "mixture"
        assert score.settings["floor_pairs"] == 2
        assert abs(score - score.floor) < 0.1
        assert score.references["fixed point"] > 10 * abs(score)
        assert score.references["white noise"] > 3 * abs(score)


def test_a_measure_keeps_its_references():
    score = Measure(0.25, floor=0.0625, references={"fixed point": 16.3})
    assert str(score) == "0.25 (floor 0.0625, fixed point 16.3)"
    assert copy.deepcopy(score).references == {"fixed point": 16.3}


def test_the_table_holds_the_measures(orbits):
    truth, pred = orbits[0], {"good": orbits[1:4, :2000], "bad": list(0.5 * orbits[4:, :2000])}
    table = reconstruction(truth=truth, pred=pred, bins=12, seed=5)
    flat = [*pred["good"], *pred["bad"]]
    d = [state_space_divergence(truth=truth, pred=p, bins=12) for p in flat]
    h = [power_spectrum_distance(truth=truth, pred=p) for p in flat]
    np.testing.assert_array_equal(table.runs["D_stsp"], d)
    np.testing.assert_array_equal(table.runs["D_H"], h)
    np.testing.assert_array_equal(table.runs["outside"], [m.settings["pred_outside"] for m in d])
    assert table.runs.index.tolist() == [(m, i) for m in pred for i in range(len(pred[m]))]
    assert table.references.loc["floor", "D_stsp"] == d[0].floor
    assert table.references.loc["floor", "D_H"] == h[0].floor
    noise = reference_runs(truth=truth, pred=flat[0], seed=5)["white noise"]
    assert table.references.loc["white noise", "D_stsp"] == state_space_divergence(
        truth=truth, pred=noise, bins=12
    )
    summary = table.summary()
    for q, name in ((0.25, "lower"), (0.5, "median"), (0.75, "upper")):
        assert summary.loc["good", ("D_stsp", name)] == pytest.approx(np.quantile(d[:3], q))
        assert summary.loc["bad", ("D_H", name)] == pytest.approx(np.quantile(h[3:], q))
    assert summary.loc["good", ("runs", "number")] == 3
    assert summary.loc["fixed point", ("D_H", "median")] == 1.0


def test_diverged_and_collapsed_runs_are_counted_not_dropped(orbits):
    diverged = orbits[1].copy()
    diverged[100:] = np.nan
    flat = orbits[2] * [1.0, 1.0, 0.1]
    table = reconstruction(truth=orbits[0], pred=[diverged, flat, orbits[3], diverged])
    assert table.runs["D_stsp"].tolist()[0] == table.runs["D_H"].tolist()[3] == math.inf
    assert table.runs["diverged"].tolist() == [True, False, False, True]
    assert table.runs["collapsed"].tolist() == [False, True, False, False]
    row = table.summary().loc["model"]
    assert row["D_stsp", "median"] == row["D_stsp", "upper"] == math.inf
    assert row["D_stsp", "lower"] == pytest.approx(
        0.25 * table.runs["D_stsp"].min() + 0.75 * table.runs["D_stsp"].iloc[1]
    )
    assert (row["diverged", "share"], row["collapsed", "share"]) == (0.5, 0.25)
    text = str(table)
    assert "inf" in text and "unavailable" in text and "white noise" in text
    assert "[" in text and "[" not in str(reconstruction(truth=orbits[0], pred=[orbits[1]]))


def test_further_measures_bring_their_references(orbits):
    table = reconstruction(truth=orbits[0], pred={"a": orbits[1:3], "b": orbits[3:6]})
    errors = {
        "a": [
            Measure(0.2, floor=0.1, references={"persistence": 0.9}, settings={"steps": 5}),
            0.4,
        ],
        "b": [0.5, 0.6, 1.0],
    }
    more = table.add("error", errors)
    more = more.add(
        "exponent", {"a": [0.9, 1.0], "b": [0.8, 0.7, 0.6]}, references={"true": 0.906}
    )
    assert "error" not in table.runs
    assert more.runs["error"].tolist() == [0.2, 0.4, 0.5, 0.6, 1.0]
    assert more.settings["error"] == {"steps": 5}
    assert more.references.loc["floor", "error"] == 0.1
    assert more.references.loc["persistence", "error"] == 0.9
    assert more.references.loc["true", "exponent"] == 0.906
    assert pd.isna(more.references.loc["true", "D_stsp"])
    assert more.summary().loc["b", ("exponent", "median")] == 0.7
    alone = reconstruction(truth=orbits[0], pred=orbits[1:3]).add("x", [1.0, math.nan])
    assert math.isnan(alone.summary().loc["model", ("x", "median")])
    with pytest.raises(DataError, match="do not fit the runs"):
        table.add("error", {"a": [1.0], "b": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="do not fit the runs"):
        table.add("error", [1.0, 2.0])


def test_a_run_may_consist_of_trials():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((3, 50, 6))
    pred = rng.standard_normal((2, 3, 40, 6))
    table = reconstruction(truth=truth, pred=pred)
    assert "outside" not in table.runs
    want = state_space_divergence(truth=truth, pred=pred[1])
    assert table.runs["D_stsp"].iloc[1] == want


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        ([], "no runs"),
        ({"a": []}, "no runs"),
        ([np.zeros((50, 2)), np.zeros((40, 2))], "different lengths"),
        ([np.zeros((50, 3))], "different numbers of channels"),
    ],
)
def test_clear_refusals(pred, message):
    truth = np.random.default_rng(0).standard_normal((60, 2))
    with pytest.raises(DataError, match=message):
        reconstruction(truth=truth, pred=pred)
