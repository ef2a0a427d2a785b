"""From seconds to the latent clock: every signal lands where its time says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plssm.data import Dataset, Events, Recording, Signal
from plssm.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def regular(rng, interval, duration, channels=2, start=0.0, **options):
    times = start + np.arange(round(duration / interval)) * interval
    return Signal(rng.normal(size=(len(times), channels)), times, **options)


# ---- events ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), dt=st.floats(0.01, 2.0), start=st.floats(-5.0, 5.0))
def test_spikes_are_counted_like_a_histogram(seed, dt, start):
    draw = np.random.default_rng(seed)
    units = tuple(draw.uniform(-8, 12, size=draw.poisson(40)) for _ in range(3))
    steps = 7
    data = Recording(
        {"n": Events(units, (-10.0, 40.0))}, trials=[[start, start + steps * dt]]
    ).to_dataset(dt, check_channels=False)
    edges = start + np.arange(steps + 1) * dt
    expected = np.stack([np.histogram(u[u < edges[-1]], edges)[0] for u in units], axis=1)
    np.testing.assert_array_equal(data.values("n")[0], expected)
    assert data.kinds == {"n": "count"}


def test_a_spike_on_a_border_belongs_to_the_step_that_begins_there():
    times = np.arange(10) * 0.1
    data = Recording({"n": Events((times,), (0.0, 1.0))}).to_dataset(0.1)
    assert data.values("n")[0, :, 0].tolist() == [1.0] * 10


def test_steps_outside_the_support_are_missing_not_zero():
    events = Events((np.array([0.05, 0.35, 0.95]), np.array([])), [[0.0, 0.25], [0.5, 0.8],
                                                                    [0.8, 1.0]])  # fmt: skip
    data = Recording({"n": events}, trials=[[0.0, 1.2]]).to_dataset(0.1, check_channels=False)
    seen = ~np.isnan(data.values("n")[0])
    assert seen[:, 0].tolist() == [True] * 2 + [False] * 3 + [True] * 5 + [False] * 2
    np.testing.assert_array_equal(seen[:, 0], seen[:, 1])
    assert np.nansum(data.values("n")) == 2
    one_unit = Events(np.array([0.1, 0.2]), (0.0, 1.0))
    assert len(one_unit.times) == 1


def test_units_may_be_seen_at_different_times():
    units = (np.array([0.05, 0.95]), np.array([0.15]), np.array([]))
    events = Events(
        units, (0.0, 0.8), unit_support=([0.0, 1.0], [[0.1, 0.3], [0.5, 0.7]], []), names="abc"
    )
    data = Recording({"n": events}, trials=[[0.0, 1.0]]).to_dataset(0.1, check_channels=False)
    seen = ~np.isnan(data.values("n")[0])
    assert np.flatnonzero(seen[:, 0]).tolist() == list(range(8))  # inside the common support
    assert np.flatnonzero(seen[:, 1]).tolist() == [1, 2, 5, 6]
    assert not seen[:, 2].any()
    assert np.nansum(data.values("n"), axis=1).tolist() == [[1, 1, 0]]
    driving = Recording({"n": Events(units[:1], (0.0, 1.0))}, inputs=events)
    with pytest.raises(DataError, match="inputs are not known over the whole trial"):
        driving.to_dataset(0.1)


# ---- signals -----------------------------------------------------------------------------------


def test_a_signal_at_dt_goes_straight_to_the_steps(rng):
    lfp = regular(rng, 0.05, 3.0, start=1.7)
    data = Recording({"lfp": lfp}, subject="a", session="b").to_dataset(0.05)
    assert data.lengths.tolist() == [60] and data[0].clock["lfp"] is None
    np.testing.assert_array_equal(data.values("lfp")[0], lfp.values)
    assert (data[0].start, data.subjects, data.sessions) == (1.7, ["a"], ["b"])


def test_trials_cut_a_signal_and_gaps_are_missing(rng):
    lfp = regular(rng, 0.1, 10.0)
    keep = np.setdiff1d(np.arange(100), [23, 24, 61])
    gappy = Signal(lfp.values[keep], lfp.times[keep])
    table = pd.DataFrame({"start": [2.0, 6.0], "stop": [3.0, 6.5], "name": ["go", "stop"]})
    data = Recording({"lfp": gappy}, trials=table).to_dataset(0.1)
    assert data.trial_names == ["go", "stop"] and data.lengths.tolist() == [10, 5]
    expected = lfp.values.copy()
    expected[[23, 24, 61]] = np.nan
    np.testing.assert_array_equal(data[0].values["lfp"], expected[20:30])
    np.testing.assert_array_equal(data[1].values["lfp"], expected[60:65])
    assert [t.start for t in data] == [2.0, 6.0]


def test_a_fast_signal_must_say_how(rng):
    lfp = regular(rng, 0.001, 1.0)
    recording = Recording({"lfp": lfp})
    with pytest.raises(DataError, match=r"'lfp'.*faster than dt.*0.001.*resample={'lfp': 'mean'}"):
        recording.to_dataset(0.05)
    mean = recording.to_dataset(0.05, resample={"lfp": "mean"}).values("lfp")[0]
    last = recording.to_dataset(0.05, resample={"lfp": "last"}).values("lfp")[0]
    blocks = lfp.values.reshape(20, 50, 2)
    np.testing.assert_allclose(mean, blocks.mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(last, blocks[:, -1])


def test_resampling_skips_missing_samples_and_leaves_empty_steps_missing(rng):
    values = rng.normal(size=(40, 2))
    values[3, 0] = values[:4, 1] = values[8:12] = np.nan
    recording = Recording({"x": Signal(values, np.arange(40) * 0.25)})
    mean = recording.to_dataset(1.0, resample={"x": "mean"}).values("x")[0]
    last = recording.to_dataset(1.0, resample={"x": "last"}).values("x")[0]
    assert mean[0, 0] == pytest.approx(values[:3, 0].mean()) and last[0, 0] == values[2, 0]
    assert np.isnan(mean[0, 1]) and np.isnan(mean[2]).all() and np.isnan(last[2]).all()
    gap = np.r_[0:8, 20:40]
    sparse = Recording({"x": Signal(values[gap], gap * 0.25)})
    assert np.isnan(sparse.to_dataset(1.0, resample={"x": "mean"}).values("x")[0, 2:5]).all()


def test_nuisance_goes_with_its_signal_to_the_steps(rng):
    motion = rng.normal(size=(40, 3))
    keep = np.setdiff1d(np.arange(40), [5])
    slow = Signal(rng.normal(size=(39, 2)), keep * 1.0, nuisance=motion[keep])
    placed = Recording({"x": slow}).to_dataset(1.0).nuisance("x")[0]
    np.testing.assert_array_equal(placed[keep], motion[keep])
    assert (placed[5] == 0).all()
    fast = Signal(rng.normal(size=(40, 2)), np.arange(40) * 0.5, nuisance=motion)
    mean = Recording({"x": fast}).to_dataset(2.0, resample={"x": "mean"}).nuisance("x")[0]
    np.testing.assert_allclose(mean, motion.reshape(10, 4, 3).mean(axis=1), atol=1e-12)
    counts = Signal(rng.poisson(1.0, (40, 2)), np.arange(40) * 0.5, kind="count", nuisance=motion)
    np.testing.assert_allclose(Recording({"n": counts}).to_dataset(2.0).nuisance("n")[0], mean)


def test_fast_counts_are_summed_and_a_step_with_a_missing_bin_is_missing(rng):
    counts = rng.poisson(1.0, size=(60, 3)).astype(float)
    counts[7, 1] = np.nan
    times = np.arange(60) * 0.01
    keep = np.arange(60) != 33
    recording = Recording({"n": Signal(counts[keep], times[keep], kind="count")})
    summed = recording.to_dataset(0.05).values("n")[0]
    expected = counts.reshape(12, 5, 3).sum(axis=1)
    expected[6] = np.nan
    np.testing.assert_array_equal(summed, expected)
    with pytest.raises(DataError, match="'n'.*cannot be resampled"):
        recording.to_dataset(0.05, resample={"n": "mean"})


def test_a_fast_label_takes_the_last_one(rng):
    labels = rng.integers(0, 3, size=(40, 1))
    recording = Recording({"c": Signal(labels, np.arange(40) * 0.1, kind="label")})
    data = recording.to_dataset(0.4, resample={"c": "last"})
    np.testing.assert_array_equal(data.values("c")[0], labels[3::4])
    with pytest.raises(DataError, match="'c'.*kind 'label'.*'last'"):
        recording.to_dataset(0.4, resample={"c": "mean"})


def test_a_slow_signal_keeps_its_samples_and_clock(rng):
    bold = regular(rng, 2.0, 40.0, kind="bold", nuisance=rng.normal(size=20))
    spikes = Events(tuple(rng.uniform(0, 40, size=(3, 50))), (0.0, 40.0))
    recording = Recording({"bold": bold, "spikes": spikes}, trials=[[0.0, 19.0], [19.0, 40.0]])
    data = recording.to_dataset(0.5)
    assert data.kinds == {"bold": "bold", "spikes": "count"}
    assert data.lengths.tolist() == [38, 42]
    assert data[0].clock["bold"].tolist() == list(range(0, 38, 4))
    assert data[1].clock["bold"].tolist() == [2 + 4 * i for i in range(10)]
    np.testing.assert_allclose(data[1].times["bold"] + 19.0, bold.times[10:])
    np.testing.assert_array_equal(data[1].values["bold"], bold.values[10:])
    np.testing.assert_array_equal(data[1].nuisance["bold"], bold.nuisance[10:])


def test_a_trial_may_hold_no_sample_of_a_slow_signal(rng):
    recording = Recording(
        {"x": regular(rng, 0.1, 4.0), "mood": Signal([1.0, 3.0], [0.5, 2.5], kind="ordinal")},
        trials=[[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]],
    )
    data = recording.to_dataset(0.1)
    assert [len(t.values["mood"]) for t in data] == [1, 0, 1]
    assert data.batch().modalities["mood"].mask[:, 0, 0].tolist() == [True, False, True]


def test_irregular_signals_fall_on_the_nearest_step():
    times = np.array([0.0, 1.26, 2.25, 2.74, 4.9])
    data = Recording({"x": Signal(np.arange(5.0), times)}, trials=[[0.0, 5.0]]).to_dataset(0.5)
    assert data[0].clock["x"].tolist() == [0, 3, 4, 5, 9]


def test_one_trial_spans_from_the_earliest_start_to_the_latest_end(rng):
    recording = Recording(
        {
            "lfp": regular(rng, 0.1, 5.0, start=2.0),
            "spikes": Events((np.array([1.1, 8.7]),), (1.0, 9.0)),
            "bold": regular(rng, 1.0, 6.0, start=1.5),
        }
    )
    data = recording.to_dataset(0.1)
    assert data.lengths.tolist() == [80] and data[0].start == 1.0
    seen = ~np.isnan(data.values("lfp")[0, :, 0])
    assert np.flatnonzero(seen).tolist() == list(range(10, 60))
    assert data[0].clock["bold"].tolist() == [5, 15, 25, 35, 45, 55]


def test_a_drifting_clock_is_refused_and_last_mends_it(rng):
    signal = regular(rng, 0.0995, 40.0)
    recording = Recording({"x": signal})
    with pytest.raises(DataError, match="'x'.*drifts.*'last'"):
        recording.to_dataset(0.1)
    data = recording.to_dataset(0.1, resample={"x": "last"})
    assert not np.isnan(data.values("x")).any()


def test_resample_may_name_slow_signals_but_not_unknown_ones(rng):
    recording = Recording({"x": regular(rng, 1.0, 9.0)})
    assert recording.to_dataset(0.1, resample={"x": "mean"})[0].clock["x"] is not None
    with pytest.raises(DataError, match="resample.*'y'"):
        recording.to_dataset(0.1, resample={"y": "mean"})


# ---- slice timing ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    delays=st.lists(st.floats(0.0, 1.9), min_size=1, max_size=6),
    dt=st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.9]),
)
def test_each_delayed_entry_lands_on_the_step_nearest_to_its_own_time(delays, dt):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(6, len(delays)))
    signal = Signal(
        values, np.arange(6) * 2.0, kind="bold", channel_delay_seconds=delays,
        nuisance=np.arange(6.0),
    )  # fmt: skip
    data = Recording({"bold": signal}, trials=[[0.0, 14.0]]).to_dataset(dt)
    trial = data[0]
    rows, clock = trial.values["bold"], trial.clock["bold"]
    assert (np.diff(trial.times["bold"]) > 0).all() and (np.diff(clock) >= 0).all()
    for channel, delay in enumerate(delays):
        seen = ~np.isnan(rows[:, channel])
        np.testing.assert_array_equal(rows[seen, channel], values[:, channel])
        exact = (signal.times + delay) / dt
        assert (np.abs(clock[seen] - exact) <= 0.5 + 1e-5).all()
        np.testing.assert_array_equal(trial.nuisance["bold"][seen, 0], np.arange(6.0))
    assert (~np.isnan(rows)).any(axis=1).all()


def test_delays_within_a_step_need_no_extra_rows(rng):
    signal = Signal(
        rng.normal(size=(5, 4)), np.arange(5) * 2.0, channel_delay_seconds=[0.0, 0.1, 0.2, 0.24]
    )
    data = Recording({"x": signal}).to_dataset(0.5)
    np.testing.assert_array_equal(data.values("x")[0], signal.values)
    assert data[0].clock["x"].tolist() == [0, 4, 8, 12, 16]


def test_delays_of_a_signal_at_dt_shift_its_channels(rng):
    signal = Signal(rng.normal(size=(8, 2)), np.arange(8) * 1.0, channel_delay_seconds=[0.0, 0.9])
    data = Recording({"x": signal}).to_dataset(1.0)
    np.testing.assert_array_equal(data.values("x")[0, :8, 0], signal.values[:, 0])
    np.testing.assert_array_equal(data.values("x")[0, 1:9, 1], signal.values[:, 1])
    assert np.isnan(data.values("x")[0, 0, 1])


# ---- inputs ------------------------------------------------------------------------------------


def test_an_input_signal_holds_its_last_value(rng):
    inputs = Signal(np.array([[0.0], [1.0], [5.0], [2.0]]), np.array([0.0, 0.31, 0.5, 0.78]))
    recording = Recording({"x": regular(rng, 0.1, 1.0)}, inputs=inputs)
    assert recording.to_dataset(0.1).inputs[0, :, 0].tolist() == [0, 0, 0, 1, 1, 5, 5, 2, 2, 2]
    same = regular(rng, 0.1, 1.0)
    data = Recording({"x": regular(rng, 0.1, 1.0)}, inputs=same).to_dataset(0.1)
    np.testing.assert_array_equal(data.inputs[0], same.values)


def test_input_events_are_counted(rng):
    clicks = Events((np.array([0.05, 0.06, 0.95]), np.array([0.5])), (0.0, 1.0))
    data = Recording({"x": regular(rng, 0.1, 1.0)}, inputs=clicks).to_dataset(0.1)
    assert data.inputs[0].sum(axis=0).tolist() == [3, 1] and data.inputs[0, 0, 0] == 2


@pytest.mark.parametrize(
    "inputs",
    [Signal(np.ones((5, 1)), np.arange(5) * 0.1 + 0.2), Events((np.array([0.5]),), (0.3, 0.9))],
)
def test_inputs_that_do_not_cover_a_trial_are_refused(rng, inputs):
    recording = Recording({"x": regular(rng, 0.1, 1.0)}, inputs=inputs)
    with pytest.raises(DataError, match="'inputs'.*trial '0'.*not known over the whole trial"):
        recording.to_dataset(0.1)


# ---- refusals ----------------------------------------------------------------------------------

T5 = np.arange(5.0)
X5 = np.arange(10.0).reshape(5, 2)

BAD = {
    "no signals": (lambda: Recording({}), "needs a signal"),
    "an array": (lambda: Recording({"x": X5}), "'x'.*neither a Signal nor Events"),
    "shapes": (lambda: Recording({"x": Signal(X5, T5[:4])}), r"'x'.*\(5, 2\).*\(4,\)"),
    "empty": (lambda: Recording({"x": Signal(X5[:0], T5[:0])}), "'x'.*disagree"),
    "unsorted": (lambda: Recording({"x": Signal(X5, T5[::-1])}), "'x'.*not sorted"),
    "duplicate": (lambda: Recording({"x": Signal(X5, [0, 1, 1, 2, 3])}), "'x'.*same time"),
    "NaN time": (lambda: Recording({"x": Signal(X5, [0, 1, np.nan, 2, 3])}), "'x'.*not finite"),
    "infinite": (lambda: Recording({"x": Signal(X5 / 0.0 + np.inf, T5)}), "'x'.*infinite"),
    "kind": (lambda: Recording({"x": Signal(X5, T5, kind="spike")}), "'x'.*unknown kind"),
    "counts": (lambda: Recording({"x": Signal(X5 - 3, T5, kind="count")}), "'x'.*negative"),
    "labels": (lambda: Recording({"x": Signal(X5 / 2, T5, kind="label")}), "'x'.*not a whole"),
    "nuisance": (lambda: Recording({"x": Signal(X5, T5, nuisance=T5[:3])}), "'x'.*nuisance"),
    "delays": (
        lambda: Recording({"x": Signal(X5, T5, channel_delay_seconds=[0.1])}),
        "'x'.*channel_delay_seconds",
    ),
    "long delays": (
        lambda: Recording({"x": Signal(X5, T5, channel_delay_seconds=[0.0, 1.0])}),
        "'x'.*whole sample interval",
    ),
    "support": (lambda: Recording({"n": Events((T5,), (3.0, 1.0))}), "'n'.*support"),
    "unit support": (
        lambda: Recording({"n": Events((T5, T5), (0.0, 5.0), unit_support=[[0.0, 1.0]])}),
        "'n'.*unit_support does not fit.*1 entries for 2 units",
    ),
    "unit intervals": (
        lambda: Recording({"n": Events((T5,), (0.0, 5.0), unit_support=[[2.0, 1.0]])}),
        "'n'.*unit_support",
    ),
    "unit names": (
        lambda: Recording({"n": Events((T5,), (0.0, 5.0), names=("a", "b"))}),
        "'n'.*2 names, wanted 1",
    ),
    "channel names": (
        lambda: Recording({"x": Signal(X5, T5, names=("a",))}),
        "'x'.*1 names, wanted 2",
    ),
    "event time": (lambda: Recording({"n": Events(([np.nan],), (0.0, 1.0))}), "'n'.*not finite"),
    "NaN input": (
        lambda: Recording({"x": Signal(X5, T5)}, inputs=Signal(X5 * np.nan, T5)),
        "'inputs'.*missing or infinite",
    ),
    "dt": (lambda: Recording({"x": Signal(X5, T5)}).to_dataset(0), "dt"),
    "trials": (
        lambda: Recording({"x": Signal(X5, T5)}, trials=[[2.0, 1.0]]).to_dataset(1.0),
        "trials are not windows",
    ),
    "trials shape": (
        lambda: Recording({"x": Signal(X5, T5)}, trials=[1.0, 2.0, 3.0]).to_dataset(1.0),
        "trials are not windows",
    ),
    "trial table": (
        lambda: Recording({"x": Signal(X5, T5)}, trials=pd.DataFrame({"start": [0.0]})).to_dataset(
            1.0
        ),
        "lacks columns.*stop",
    ),
    "short trial": (
        lambda: Recording({"x": Signal(X5, T5)}, trials=[[0, 4], [4.0, 4.5]]).to_dataset(1.0),
        "trial '1'.*empty",
    ),
    "NaN-only": (
        lambda: Recording({"x": Signal(X5, T5)}, trials=[[20.0, 25.0]]).to_dataset(1.0),
        "'x'.*NaN in every trial",
    ),
    "constant": (
        lambda: Recording({"x": Signal(np.ones((5, 1)), T5)}).to_dataset(1.0),
        "'x'.*never varies",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", BAD)
def test_refusal(name):
    make, message = BAD[name]
    with pytest.raises(DataError, match=message):
        make()


def test_the_border_checks_of_channels_can_be_switched_off():
    data = Recording({"x": Signal(np.ones((5, 1)), T5)}).to_dataset(1.0, check_channels=False)
    assert isinstance(data, Dataset) and (data.values("x") == 1).all()


def test_a_recording_prints_what_it_holds_not_its_values():
    rng = np.random.default_rng(0)
    spikes = Events(tuple(rng.uniform(0, 9, 1000) for _ in range(3)), support=(0.0, 9.0))
    lfp = Signal(np.where(rng.random((90, 2)) < 0.5, np.nan, 1.0), np.arange(90) / 10)
    drive = Signal(np.ones((90, 1)), np.arange(90) / 10)
    text = repr(Recording({"spikes": spikes, "lfp": lfp}, subject="rat", inputs=drive))
    assert "3 units, 3000 events, 0 to 9 s" in text
    assert "continuous, 2 channels, 90 samples" in text
    assert "'rat'" in text and "1 trial" in text and "inputs" in text
    assert len(text) < 400
