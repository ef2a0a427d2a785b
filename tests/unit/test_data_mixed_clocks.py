"""Spikes, labels now and then and slow BOLD in one dataset: counts, clocks and masks by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.data import Dataset, Events, Recording, Signal
from plssm.errors import DataError

NAN = np.nan
DT = 0.5

# Two trials, [0, 4) and [4, 10.2) seconds: 8 and 12 steps. Spike times in whole milliseconds;
# unit 1 is lost from 1.0 to 1.6 s, the probe sees nothing after 9 s.
SPIKES = Events(
    ([0.001, 0.499, 0.5, 3.999, 4.0, 8.75], [0.25, 1.2, 1.75, 6.001, 6.002]),
    support=(0.0, 9.0),
    unit_support=([[0.0, 9.0]], [[0.0, 1.0], [1.6, 9.0]]),
)
CHOICE = Signal([2, 0, 1, 2], [1.1, 3.3, 7.76, 7.9], kind="label")
BOLD = Signal(
    np.array([[0.1, 10], [0.2, NAN], [0.3, 30], [0.4, 40], [0.5, 50]]),
    [0.0, 2.5, 5.0, 7.5, 10.0],
    kind="bold",
    nuisance=[0.0, 1.0, 2.0, 3.0, 4.0],
)
FIRST = [[2, 1], [1, 0], [0, NAN], [0, NAN], [0, 0], [0, 0], [0, 0], [1, 0]]
SECOND = [[1, 0], [0, 0], [0, 0], [0, 0], [0, 2], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0],
          [NAN, NAN], [NAN, NAN]]  # fmt: skip
FIRST[3] = [0, NAN]  # the step from 1.5 s on is not wholly seen: unit 1 is back at 1.6 s only


def recording(**options):
    options = {"spikes": SPIKES, "choice": CHOICE, "bold": BOLD} | options
    return Recording(
        {n: s for n, s in options.items() if s is not None},
        trials=[[0.0, 4.0], [4.0, 10.2]],
        subject="a",
    )


@pytest.fixture
def data():
    return recording().to_dataset(DT)


def test_counts_clocks_and_lengths_are_those_worked_out_by_hand(data):
    assert data.kinds == {"spikes": "count", "choice": "label", "bold": "bold"}
    assert data.lengths.tolist() == [8, 12]
    first, second = data.trials
    np.testing.assert_array_equal(first.values["spikes"], FIRST)
    np.testing.assert_array_equal(second.values["spikes"], SECOND)
    assert first.clock["spikes"] is None and second.clock["spikes"] is None
    # the nearest step of 0.5 s: 1.1 -> 2, 3.3 -> 7; 3.76 -> 8 and 3.9 -> 8 of the second trial
    assert first.values["choice"][:, 0].tolist() == [2, 0]
    assert first.clock["choice"].tolist() == [2, 7]
    assert second.values["choice"][:, 0].tolist() == [1, 2]
    assert second.clock["choice"].tolist() == [8, 8]
    np.testing.assert_allclose(second.times["choice"], [3.76, 3.9])
    # scans every 2.5 s: steps 0 and 5; then 1 and 3.5 s from the start of the second trial, whose
    # last whole step ends at 6 s, where the scan after these would be
    assert first.clock["bold"].tolist() == [0, 5]
    assert second.clock["bold"].tolist() == [2, 7]
    np.testing.assert_array_equal(first.values["bold"], BOLD.values[:2])
    np.testing.assert_array_equal(second.values["bold"], BOLD.values[2:4])
    assert second.nuisance["bold"][:, 0].tolist() == [2, 3]


def test_the_batch_holds_zeros_and_masks_where_nothing_was_seen(data):
    batch = data.batch()
    assert batch.length.tolist() == [8, 12] and batch.steps == 12
    spikes, choice, bold = (batch.modalities[n] for n in ("spikes", "choice", "bold"))
    assert spikes.clock is None and spikes.y.shape == (2, 12, 2)
    seen = np.zeros((2, 12, 2), dtype=bool)
    seen[0, :8] = ~np.isnan(FIRST)
    seen[1] = ~np.isnan(SECOND)
    np.testing.assert_array_equal(spikes.mask, seen)
    assert spikes.y.sum() == 2 + 1 + 1 + 1 + 1 + 2 + 1  # every spike that was seen, once
    assert choice.mask.all() and choice.clock.tolist() == [[2, 7], [8, 8]]
    assert bold.mask.tolist() == [[[True, True], [True, False]], [[True, True]] * 2]
    assert bold.clock.tolist() == [[0, 5], [2, 7]] and bold.y[0, 1].tolist() == [0.2, 0]
    assert bold.nuisance[:, :, 0].tolist() == [[0, 1], [2, 3]]
    for modality in batch.modalities.values():
        assert torch.isfinite(modality.y).all() and not modality.y[~modality.mask].any()
        assert modality.dt == DT


def test_binned_counts_at_one_kilohertz_are_summed_like_the_events():
    rng = np.random.default_rng(0)
    fine = rng.poisson(0.01, size=(4000, 3))
    times = np.arange(4000) * 1e-3
    trains = tuple(np.repeat(times, fine[:, k]) for k in range(3))
    for dt in (0.02, 0.05, 0.5):
        binned = Recording({"n": Signal(fine, times, kind="count")}).to_dataset(dt)
        events = Recording({"n": Events(trains, (0.0, 4.0))}).to_dataset(dt)
        np.testing.assert_array_equal(binned.values("n"), events.values("n"))
        by_hand = fine.reshape(-1, round(dt * 1000), 3).sum(axis=1)
        np.testing.assert_array_equal(binned.values("n")[0], by_hand)


def test_a_finer_clock_moves_nothing_but_the_steps():
    coarse, fine = recording().to_dataset(0.5), recording().to_dataset(0.1)
    for modality in ("choice", "bold"):
        for a, b in zip(coarse, fine):
            kept = len(a.values[modality])  # the finer clock keeps more of the end of a trial
            assert len(b.values[modality]) - kept == (modality == "bold" and a.name == "1")
            np.testing.assert_array_equal(a.values[modality], b.values[modality][:kept])
            np.testing.assert_allclose(a.times[modality], b.times[modality][:kept])
            assert (np.abs(b.clock[modality] * 0.1 - b.times[modality]) <= 0.05 + 1e-9).all()
    summed = fine[0].values["spikes"].reshape(8, 5, 2).sum(axis=1)
    np.testing.assert_array_equal(summed, FIRST)


# ---- modalities that a trial or a subject lacks ------------------------------------------------


def test_a_subject_without_a_modality_joins_the_others(data):
    other = Recording({"spikes": Events(([0.1], [0.2, 0.3]), (0.0, 2.0))}, subject="b").to_dataset(
        DT
    )
    both = Dataset.concat([data, other])
    assert both.subjects == ["a", "a", "b"] and both.names == ["spikes", "choice", "bold"]
    lone = both[2]
    assert lone.values["bold"].shape == (0, 2) and lone.values["choice"].shape == (0, 1)
    assert lone.nuisance["bold"].shape == (0, 1)
    batch = both.batch()
    assert not batch.modalities["bold"].mask[2].any()
    np.testing.assert_array_equal(both.values("spikes")[:2], data.values("spikes"))
    np.testing.assert_array_equal(lone.values["spikes"], other[0].values["spikes"])
    turned = Dataset.concat([other, data])  # the order decides names only
    assert turned.names == ["spikes", "choice", "bold"]
    np.testing.assert_array_equal(turned[1].values["bold"], data[0].values["bold"])
    alone = both.select(subjects="b")
    assert alone.names == both.names and alone.batch().modalities["bold"].y.shape == (1, 0, 2)


def test_what_was_joined_can_be_cut_held_out_saved_and_revealed(data, tmp_path):
    other = Recording({"choice": Signal([1, 0], [0.0, 4.5], kind="label")}, subject="b")
    both = Dataset.concat([data.hold_out("bold"), other.to_dataset(DT)])
    assert both[2].values["spikes"].shape == (10, 2) and np.isnan(both[2].values["spikes"]).all()
    both.save(tmp_path / "both.npz")
    for again in (Dataset.load(tmp_path / "both.npz"), Dataset.from_dict(both.to_dict())):
        assert again.kinds == both.kinds and again.lengths.tolist() == both.lengths.tolist()
        for a, b in zip(both, again):
            for m in both.names:
                np.testing.assert_array_equal(a.values[m], b.values[m])
                np.testing.assert_array_equal(a.steps(m), b.steps(m))
    np.testing.assert_array_equal(both.reveal()[1].values["bold"], data[1].values["bold"])
    early, late = both.split(by="time", fractions=(0.5, 0.5))
    assert early.lengths.tolist() == [4, 6, 5] and late.lengths.tolist() == [4, 6, 5]
    assert late[2].clock["choice"].tolist() == [4] and early[2].clock["choice"].tolist() == [0]
    assert late[2].values["bold"].shape == (0, 2)
    assert [b.modalities["spikes"].y.shape[1] for b in (early.batch(), late.batch())] == [6, 6]


def test_one_subject_at_the_latent_clock_and_one_slower():
    rng = np.random.default_rng(1)
    fast = Dataset.from_arrays({"x": rng.normal(size=(6, 2))}, 1.0, subjects="fast")
    slow = Dataset.from_arrays(
        {"x": rng.normal(size=(2, 2))}, 1.0, times={"x": [0.0, 4.2]}, subjects="slow"
    )
    both = Dataset.concat([fast, slow])
    modality = both.batch().modalities["x"]
    assert modality.clock[0].tolist() == list(range(6))
    assert modality.clock[1, :2].tolist() == [0, 4]
    assert modality.mask[:, :, 0].tolist() == [[True] * 6, [True] * 2 + [False] * 4]


def test_trials_without_a_modality_are_none_in_a_list():
    x = [np.arange(6.0).reshape(3, 2), np.ones((4, 2)), np.zeros((2, 2))]
    data = Dataset.from_arrays(
        {"x": x, "n": [None, np.arange(4), [[1], [0]]], "bold": [[[1.0], [2.0]], None, None]},
        dt=1.0,
        kinds={"n": "count", "bold": "bold"},
        times={"bold": [[0.0, 1.9], None, None]},
        nuisance={"bold": [[[0.5], [0.7]], None, None]},
    )
    assert data.lengths.tolist() == [3, 4, 2]
    assert np.isnan(data[0].values["n"]).all() and data[0].values["n"].shape == (3, 1)
    assert [len(t.values["bold"]) for t in data] == [2, 0, 0]
    assert data[1].nuisance["bold"].shape == (0, 1)
    masks = {m: v.mask.any(-1).any(-1).tolist() for m, v in data.batch().modalities.items()}
    assert masks == {"x": [True] * 3, "n": [False, True, True], "bold": [True, False, False]}
    # times given once for all trials: a trial without the modality has samples, all missing
    shared = Dataset.from_arrays(
        {"x": x[:2], "y": [None, [1.0, 2.0]]}, 1.0, times={"y": [0.0, 2.0]}
    )
    assert np.isnan(shared[0].values["y"]).all() and shared[0].clock["y"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(dt=0.25), ["dataset 1", "dt", "got 0.25", "wanted 0.5"]),
        (dict(kinds={"spikes": "continuous"}), ["'spikes'", "kind", "continuous", "count"]),
        (dict(channels=3), ["'spikes'", "number of channels", "got 3", "wanted 2"]),
        (dict(inputs=np.ones((5, 2))), ["number of inputs", "got 2", "wanted 0"]),
    ],
)
def test_what_cannot_be_joined_says_why(data, change, words):
    values = np.arange(5 * change.pop("channels", 2)).reshape(5, -1)
    options = {"dt": DT, "kinds": {"spikes": "count"}} | change
    other = Dataset.from_arrays({"spikes": values}, **options)
    with pytest.raises(DataError) as caught:
        Dataset.concat([data, other])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_regressors_of_one_subject_only_are_refused_by_name(data):
    other = recording(bold=Signal(BOLD.values, BOLD.times, kind="bold")).to_dataset(DT)
    with pytest.raises(DataError, match="'bold'.*number of regressors differs; got 0, wanted 1"):
        Dataset.concat([data, other])


# ---- impossible values of each kind ------------------------------------------------------------


def from_arrays(kind, values):
    return Dataset.from_arrays({"y": [values, values]}, kinds={"y": kind}, trials=["u", "v"])


def on_own_clock(kind, values):
    times = {"y": np.arange(len(values)) * 3.0}
    return Dataset.from_arrays({"y": values}, kinds={"y": kind}, times=times)


def hidden(kind, values):
    fine = np.where(np.isfinite(values), 0.0, values)
    return Dataset.from_arrays({"y": fine}, kinds={"y": kind}, hidden={"y": values})


def recorded(kind, values):
    return Recording({"y": Signal(values, np.arange(len(values)), kind=kind)})


def loaded(kind, values):
    flat = Dataset.from_arrays({"y": values}).to_dict()
    return Dataset.from_dict({**flat, "kinds/y": kind})


NOUN = {"count": "a count", "label": "a label", "ordinal": "an ordinal level"}
FIX = {"count": "raw counts", "label": "0..K-1", "ordinal": "0..K-1"}


@pytest.mark.parametrize("make", [from_arrays, on_own_clock, hidden, recorded, loaded])
@pytest.mark.parametrize("kind", NOUN)
@pytest.mark.parametrize(
    ("value", "what"),
    [(-1.0, "is negative"), (0.5, "is not a whole number"), (np.inf, "infinite value")],
)
def test_impossible_values_are_refused_with_place_and_fix(make, kind, value, what):
    values = np.array([[0.0, 1.0], [2.0, NAN], [1.0, value], [0.0, 1.0]])
    if make is loaded and np.isinf(value):
        values = np.array([[0.0, 1.0], [2.0, 1.0], [1.0, value]])
        with pytest.raises(DataError, match="infinite value"):
            Dataset.from_arrays({"y": values})
        return
    with pytest.raises(DataError) as caught:
        make(kind, values)
    text = str(caught.value)
    noun = NOUN[kind] if what != "infinite value" else ""
    for part in (f"modality 'y', trial '{'u' if make is from_arrays else caught.value.trial}'",
                 "channel 1, sample 2", f"{noun} {what}".strip(), f"got {value:g}"):  # fmt: skip
        assert part in text, (part, text)
    assert ("NaN" if what == "infinite value" else FIX[kind]) in text


@pytest.mark.parametrize("kind", NOUN)
def test_possible_values_of_each_kind_pass(kind):
    values = np.array([[0.0, 3.0], [NAN, 0.0], [7.0, 1.0]])
    np.testing.assert_array_equal(from_arrays(kind, values)[0].values["y"], values)
    flags = np.array([[True, False], [False, True]])
    assert from_arrays(kind, flags).values("y")[0].tolist() == [[1, 0], [0, 1]]
    data = recorded(kind, values).to_dataset(1.0)
    np.testing.assert_array_equal(data.values("y")[0], values)
