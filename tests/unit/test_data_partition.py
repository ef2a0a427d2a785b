"""Select, split, folds, concat and hold_out: nothing is lost, nothing appears twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plssm.data import Dataset
from plssm.errors import DataError

DT = 0.1


def make(lengths=(12, 10, 15, 11), seed=0):
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, 3)) for n in lengths]
    x[0][2, 1] = np.nan
    times = [
        np.sort(rng.choice(np.arange(2 * n), n // 3, replace=False)) * DT / 2 for n in lengths
    ]
    return Dataset.from_arrays(
        {"x": x, "slow": [rng.normal(size=(len(t), 2)) for t in times]},
        dt=DT,
        times={"slow": times},
        nuisance={"slow": [rng.normal(size=(len(t), 4)) for t in times]},
        inputs=[rng.normal(size=(n, 2)) for n in lengths],
        latent=[rng.normal(size=(n, 2)) for n in lengths],
        trials=["a", "b", "c", "d"],
        subjects=["s", "s", "t", "t"],
        sessions=["1", "2", "1", "1"],
        starts=[0.0, 5.0, 0.0, 9.0],
    )


def test_select_by_name_number_mask_subject_and_session():
    data = make()
    assert data.select(trials=["c", "a"]).trial_names == ["c", "a"]
    assert data.select(trials="b").trial_names == ["b"]
    assert data.select(trials=[-1, 0]).trial_names == ["d", "a"]
    assert data.select(trials=2).trial_names == ["c"]
    assert data.select(trials=np.array([1, 3])).trial_names == ["b", "d"]
    assert data.select(trials=slice(1, 3)).trial_names == ["b", "c"]
    assert data.select(trials=[True, False, False, True]).trial_names == ["a", "d"]
    assert data.select(subjects="t").trial_names == ["c", "d"]
    assert data.select(sessions=["1"]).trial_names == ["a", "c", "d"]
    assert data.select(subjects=["s"], sessions="1").trial_names == ["a"]
    np.testing.assert_array_equal(data.select(trials="b").values("x")[0], data[1].values["x"])


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"trials": "z"}, "no such trial"),
        ({"trials": 4}, "no such trial"),
        ({"subjects": "z"}, "no such subject.*'z'"),
        ({"sessions": ["1", "9"]}, "no such session.*'9'"),
        ({"subjects": "t", "sessions": "2"}, "no trial meets"),
        ({"time": (50.0, 60.0)}, "no trial meets"),
        ({"time": (1.0, 1.0)}, "windows"),
        ({"time": "now"}, "windows"),
    ],
)
def test_select_refuses(conditions, message):
    with pytest.raises(DataError, match=message):
        make().select(**conditions)


def test_select_time_cuts_everything_at_the_same_steps():
    data = make()
    part = data.select(time=(0.3, 0.8))
    assert part.lengths.tolist() == [5] * 4
    for whole, piece in zip(data, part):
        np.testing.assert_array_equal(piece.values["x"], whole.values["x"][3:8])
        np.testing.assert_array_equal(piece.inputs, whole.inputs[3:8])
        np.testing.assert_array_equal(piece.latent, whole.latent[3:8])
        kept = (whole.clock["slow"] >= 3) & (whole.clock["slow"] < 8)
        np.testing.assert_array_equal(piece.values["slow"], whole.values["slow"][kept])
        np.testing.assert_array_equal(piece.nuisance["slow"], whole.nuisance["slow"][kept])
        np.testing.assert_array_equal(piece.clock["slow"], whole.clock["slow"][kept] - 3)
        np.testing.assert_allclose(
            piece.times["slow"], whole.times["slow"][kept] - 0.3, atol=1e-12
        )
        assert piece.start == pytest.approx(whole.start + 0.3)
    late = data.select(time=(1.1, np.inf))
    assert late.trial_names == ["a", "c"] and late.lengths.tolist() == [1, 4]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 40),
    cut=st.floats(0.1, 0.9),
    seed=st.integers(0, 1000),
)
def test_split_by_trial_is_a_partition(count, cut, seed):
    data = Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(count, 2, 1))})
    size = round(cut * count)
    if 0 < size < count:
        first, second = data.split("trial", (cut, 1 - cut), seed=seed)
        assert abs(len(first) - cut * count) <= 0.5 + 1e-9
        names = first.trial_names + second.trial_names
        assert sorted(names, key=int) == data.trial_names
        again = data.split("trial", (cut, 1 - cut), seed=seed)
        assert again[0].trial_names == first.trial_names
    else:
        with pytest.raises(DataError, match="empty"):
            data.split("trial", (cut, 1 - cut), seed=seed)


def test_split_shuffles_and_gives_as_many_parts_as_fractions():
    data = Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(20, 3, 1))})
    train, val, test = data.split(by="trial", fractions=(0.7, 0.1, 0.2), seed=0)
    assert (len(train), len(val), len(test)) == (14, 2, 4)
    assert train.trial_names != data.split(seed=1)[0].trial_names
    assert train.trial_names != data.trial_names[:14]
    (all_of_it,) = data.split("trial", (1.0,))
    assert len(all_of_it) == 20


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(12, 60), min_size=1, max_size=4),
    shares=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=4),
)
def test_split_by_time_puts_together_to_the_whole(lengths, shares):
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {"x": [rng.normal(size=(n, 2)) for n in lengths],
         "slow": [rng.normal(size=(n, 1)) for n in lengths]},
        dt=DT,
        times={"slow": [np.arange(n) * DT * 0.93 for n in lengths]},
        inputs=[rng.normal(size=(n, 1)) for n in lengths],
    )  # fmt: skip
    fractions = np.array(shares) / np.sum(shares)
    parts = data.split("time", tuple(fractions))
    assert len(parts) == len(shares)
    for i, whole in enumerate(data):
        pieces = [part[i] for part in parts]
        for get in (lambda t: t.values["x"], lambda t: t.values["slow"], lambda t: t.inputs):
            np.testing.assert_array_equal(np.concatenate([get(p) for p in pieces]), get(whole))
        seconds = np.concatenate([p.times["slow"] + p.start for p in pieces])
        np.testing.assert_allclose(seconds, whole.times["slow"], atol=1e-9)
        steps = np.concatenate([p.clock["slow"] + round(p.start / DT) for p in pieces])
        np.testing.assert_array_equal(steps, whole.clock["slow"])
        assert sum(p.length for p in pieces) == whole.length
        assert [p.name for p in pieces] == [whole.name] * len(pieces)


@pytest.mark.parametrize("by", ["trial", "time"])
@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2), (), (0.5, 0.5, 0.0), (0.99, 0.01)])
def test_split_refuses(by, fractions):
    with pytest.raises(DataError, match="whole|empty"):
        make().split(by, fractions)
    with pytest.raises(DataError, match="'trial' or 'time'"):
        make().split("session")


def test_folds_leave_one_group_out():
    data = make()
    pairs = list(data.folds())
    assert [test.trial_names for _, test in pairs] == [["a"], ["b"], ["c"], ["d"]]
    pairs = list(data.folds(by="session"))
    assert [test.trial_names for _, test in pairs] == [["a"], ["b"], ["c", "d"]]
    pairs = list(data.folds(by="subject"))
    assert [test.trial_names for _, test in pairs] == [["a", "b"], ["c", "d"]]
    for train, test in pairs:
        assert set(train.trial_names) | set(test.trial_names) == {"a", "b", "c", "d"}
        assert not set(train.subjects) & set(test.subjects)
    tests = [test.trial_names for _, test in data.folds(n=2, seed=3)]
    assert [len(t) for t in tests] == [2, 2] and sorted(sum(tests, [])) == ["a", "b", "c", "d"]


def test_folds_refuses():
    data = make()
    for call in (
        lambda: data.folds(n=5),
        lambda: data.folds(n=1),
        lambda: data.select(subjects="s").folds(by="subject"),
        lambda: data.folds(by="channel"),
    ):
        with pytest.raises(DataError, match="fold"):
            call()


def test_concat_restores_a_split_and_fills_absent_modalities():
    data = make()
    parts = [data.select(trials=[i]) for i in range(4)]
    whole = Dataset.concat(parts)
    assert whole.trial_names == data.trial_names
    np.testing.assert_array_equal(whole.values("x"), data.values("x"))
    np.testing.assert_array_equal(whole.nuisance("slow"), data.nuisance("slow"))
    rng = np.random.default_rng(1)
    one = Dataset.from_arrays({"x": rng.normal(size=(2, 5, 3))}, subjects="p")
    two = Dataset.from_arrays(
        {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=(6, 2)), "b": rng.normal(size=(2, 1))},
        kinds={"b": "bold"},
        times={"b": [0.0, 3.0]},
        nuisance={"b": rng.normal(size=(2, 3))},
        subjects="q",
    )
    both = Dataset.concat([one, two])
    assert both.kinds == {"x": "continuous", "y": "continuous", "b": "bold"}
    assert both.lengths.tolist() == [5, 5, 6] and both.subjects == ["p", "p", "q"]
    assert np.isnan(both.values("y")[:2]).all()
    batch = both.batch()
    assert batch.modalities["y"].clock is None and batch.modalities["x"].clock is None
    assert not batch.modalities["b"].mask[:2].any()
    assert batch.modalities["b"].nuisance.shape == (3, 2, 3)


def test_concat_of_an_own_and_a_latent_clock_keeps_every_sample_at_its_step():
    one = Dataset.from_arrays({"x": np.arange(4.0)})
    two = Dataset.from_arrays({"x": np.arange(2.0)}, times={"x": [0.0, 3.0]})
    batch = Dataset.concat([one, two]).batch()
    assert batch.modalities["x"].clock.tolist() == [[0, 1, 2, 3], [0, 3, 0, 0]]
    assert batch.modalities["x"].mask[:, :, 0].tolist() == [[True] * 4, [True, True, False, False]]


def test_concat_refuses():
    x = np.random.default_rng(0).normal(size=(5, 3))
    first = Dataset.from_arrays({"x": x})
    for other in (
        Dataset.from_arrays({"x": x}, dt=2.0),
        Dataset.from_arrays({"x": x[:, :2]}),
        Dataset.from_arrays({"x": np.round(np.abs(x))}, kinds={"x": "count"}),
        Dataset.from_arrays({"x": x}, inputs=x),
        Dataset.from_arrays({"x": x}, nuisance={"x": x}),
    ):
        with pytest.raises(DataError, match="dataset 1 cannot be joined"):
            Dataset.concat([first, other])
    with pytest.raises(DataError, match="nothing"):
        Dataset.concat([])


def test_hold_out_hides_exactly_what_was_asked_for_and_remembers_it():
    data = make()
    held = data.hold_out("x", channels=[1], times=(0.2, 0.5))
    before, after, hidden = data.values("x"), held.values("x"), held.hidden_values("x")
    chosen = np.zeros(before.shape, dtype=bool)
    chosen[:, 2:5, 1] = True
    seen = ~np.isnan(before)
    assert np.isnan(after[chosen]).all() and np.isnan(hidden[~chosen]).all()
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    np.testing.assert_array_equal(hidden[chosen & seen], before[chosen & seen])
    np.testing.assert_array_equal(held.reveal().values("x"), before)
    assert np.isnan(held.reveal().hidden_values("x")).all()
    np.testing.assert_array_equal(data.values("x"), before)
    assert np.isnan(data.hidden_values("x")).all()


def test_hold_out_can_be_repeated_and_follows_the_own_clock():
    data = make()
    held = data.hold_out("slow", times=[(0.0, 0.3), (0.6, 9.0)]).hold_out("slow", channels=-1)
    times = data.sample_times("slow")
    late = ((times < 0.3 - 1e-9) | (times >= 0.6 - 1e-9)) & ~np.isnan(times)
    chosen = np.repeat(late[:, :, None], 2, axis=2)
    chosen[:, :, 1] |= ~np.isnan(times)
    assert (np.isnan(held.hidden_values("slow")) == ~chosen).all()
    np.testing.assert_array_equal(held.reveal().values("slow"), data.values("slow"))
    parts = held.split("time", (0.5, 0.5))
    total = sum(np.isfinite(p.hidden_values("slow")).sum() for p in parts)
    assert total == chosen.sum()


def test_hold_out_of_a_whole_modality_passes_no_whole_dataset_check():
    held = make().hold_out("slow")
    assert np.isnan(held.values("slow")).all()
    assert len(held.split("trial", (0.5, 0.5))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "no such channel"),
        ({"channels": [0.5]}, "no such channel"),
        ({"channels": []}, "no such channel"),
        ({"times": (4.0, 5.0)}, "no observed entry"),
        ({"times": (0.5, 0.2)}, "windows"),
        ({"times": [0.1, 0.2, 0.3]}, "windows"),
    ],
)
def test_hold_out_refuses(options, message):
    with pytest.raises(DataError, match=message):
        make().hold_out("x", **options)
