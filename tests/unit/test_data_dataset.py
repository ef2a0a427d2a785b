"""Dataset: the forms it takes, what it hands out, and what it looks like."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from plssm.data import KINDS, Dataset, Trial
from plssm.errors import DataError


def ragged(rng, lengths=(7, 4, 9), channels=3, missing=0.2):
    arrays = [rng.normal(size=(n, channels)) for n in lengths]
    for array in arrays:
        array[rng.random(array.shape) < missing] = np.nan
    return arrays


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_every_form_of_an_array_gives_the_same_trial(rng):
    x = rng.normal(size=(11, 2))
    x[3, 1] = np.nan
    forms = [
        x,
        x[None],
        [x],
        torch.from_numpy(x),
        [torch.from_numpy(x)],
        pd.DataFrame(x, columns=["a", "b"]),
        [pd.DataFrame(x)],
        np.ma.masked_invalid(x),
        x.tolist(),
    ]
    for form in forms:
        data = Dataset.from_arrays({"x": form}, dt=0.5)
        assert len(data) == 1
        np.testing.assert_array_equal(data[0].values["x"], x)
        assert data[0].values["x"].dtype == np.float64
    flat = Dataset.from_arrays({"x": x[:, 0]})
    np.testing.assert_array_equal(flat.values("x"), x[None, :, :1])
    integers = Dataset.from_arrays({"x": np.arange(5)}, kinds={"x": "count"})
    np.testing.assert_array_equal(integers.values("x")[0, :, 0], np.arange(5.0))
    nullable = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")})
    np.testing.assert_array_equal(
        Dataset.from_arrays({"x": nullable})[0].values["x"][:, 0], [1, np.nan, 3]
    )


def test_ragged_trials_keep_their_values_and_lengths(rng):
    arrays = ragged(rng)
    data = Dataset.from_arrays({"x": arrays}, dt=0.1, trials=["a", "b", "c"], subjects="s")
    assert isinstance(data, TorchDataset)
    assert all(isinstance(t, Trial) for t in data)
    assert data.lengths.tolist() == [7, 4, 9] and data.lengths.dtype == np.int64
    assert data.trial_names == ["a", "b", "c"] and data.subjects == ["s"] * 3
    assert data.channels == {"x": 3} and data.names == ["x"] and data.kinds == {"x": "continuous"}
    values = data.values("x")
    assert values.shape == (3, 9, 3)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(values[i, : len(array)], array)
        assert np.isnan(values[i, len(array) :]).all()
    one_dimensional = Dataset.from_arrays({"x": [a[:, 0] for a in ragged(rng, missing=0)]})
    assert one_dimensional.channels == {"x": 1}


def test_what_was_handed_in_is_copied(rng):
    x = rng.normal(size=(5, 2))
    data = Dataset.from_arrays({"x": x}, inputs=x)
    x[:] = 0
    assert (data.values("x") != 0).all() and (data.inputs != 0).all()


def test_own_clock_samples_belong_to_the_nearest_step_ties_to_the_earlier():
    times = np.array([0.0, 0.14, 0.15, 0.26, 0.35, 0.39])
    data = Dataset.from_arrays(
        {"slow": np.arange(6.0), "x": np.arange(4.0)}, dt=0.1, times={"slow": times}
    )
    assert data[0].clock["slow"].tolist() == [0, 1, 1, 3, 3, 3]
    assert data[0].clock["x"] is None and data[0].times["x"] is None
    np.testing.assert_array_equal(data.sample_times("slow")[0], times)
    np.testing.assert_allclose(data.sample_times("x")[0], np.arange(4) * 0.1)
    assert data.lengths.tolist() == [4]


@settings(max_examples=50, deadline=None)
@given(
    dt=st.floats(1e-3, 10.0),
    gaps=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12),
)
def test_length_and_clock_of_a_dataset_with_only_own_clocks(dt, gaps):
    times = (np.cumsum(gaps) - gaps[0]) * dt
    data = Dataset.from_arrays(
        {"x": np.arange(len(gaps)) + 0.5}, dt=dt, times={"x": times}, check_channels=False
    )
    length = int(data.lengths[0])
    assert length == np.floor(times[-1] / dt + 1e-6) + 1
    starts = np.arange(length) * dt
    distance = np.abs(times[:, None] - starts)
    clock = data[0].clock["x"]
    chosen = np.take_along_axis(distance, clock[:, None], axis=1)[:, 0]
    assert (chosen <= distance.min(axis=1) + 2e-6 * dt).all()
    assert (np.diff(clock) >= 0).all()


def test_a_trial_may_lack_a_modality(rng):
    x, bold = ragged(rng, missing=0), [rng.normal(size=(2, 2)), None, rng.normal(size=(4, 2))]
    data = Dataset.from_arrays(
        {"x": [x[0], None, x[2]], "y": x, "bold": bold},
        dt=1.0,
        times={"bold": [[0.0, 3.0], None, [0.0, 2.0, 4.0, 6.0]]},
        subjects=["a", "b", "c"],
    )
    assert np.isnan(data[1].values["x"]).all() and data[1].values["x"].shape == (4, 3)
    assert data[1].values["bold"].shape == (0, 2)
    assert data.values("bold").shape == (3, 4, 2)
    batch = data.batch()
    assert not batch.modalities["bold"].mask[1].any() and not batch.modalities["x"].mask[1].any()
    nan = Dataset.from_arrays({"x": [x[0], np.full((4, 3), np.nan)]})
    assert np.isnan(nan[1].values["x"]).all()
    shared = Dataset.from_arrays(
        {"y": x, "z": [np.arange(2.0), None, np.arange(2.0)]}, times={"z": [0.0, 2.0]}
    )
    assert np.isnan(shared[1].values["z"]).all() and shared[1].values["z"].shape == (2, 1)


def test_inputs_latent_and_nuisance_are_padded_with_nan(rng):
    x = ragged(rng)
    inputs = [rng.normal(size=(len(a), 2)) for a in x]
    latent = [rng.normal(size=(len(a), 5)) for a in x]
    nuisance = [rng.normal(size=(len(a), 4)) for a in x]
    data = Dataset.from_arrays({"x": x}, inputs=inputs, latent=latent, nuisance={"x": nuisance})
    assert data.n_inputs == 2
    assert data.inputs.shape == (3, 9, 2) and data.latent.shape == (3, 9, 5)
    assert np.isnan(data.inputs[1, 4:]).all() and np.isnan(data.latent[1, 4:]).all()
    np.testing.assert_array_equal(data.nuisance("x")[0, :7], nuisance[0])
    bare = Dataset.from_arrays({"x": x})
    assert bare.inputs is None and bare.latent is None and bare.nuisance("x") is None
    assert bare.n_inputs == 0
    drift = np.linspace(-1, 1, 6)
    common = Dataset.from_arrays({"x": rng.normal(size=(2, 6, 3))}, nuisance={"x": drift})
    np.testing.assert_array_equal(common.nuisance("x")[1, :, 0], drift)


def test_lengths_and_hidden_values_can_be_given(rng):
    data = Dataset.from_arrays(
        {"x": [[1.0, np.nan], [2.0, 3.0]]},
        times={"x": [0.0, 2.0]},
        lengths=[9],
        hidden={"x": [[np.nan, 5.0], [np.nan, np.nan]]},
    )
    assert data.lengths.tolist() == [9]
    assert data.reveal().values("x")[0].tolist() == [[1.0, 5.0], [2.0, 3.0]]
    for lengths in ([0], [1.5], [9, 9], [2]):
        with pytest.raises(DataError):
            Dataset.from_arrays({"x": np.arange(2.0)}, times={"x": [0.0, 2.5]}, lengths=lengths)
    with pytest.raises(DataError, match=r"'x'.*\(3, 1\)"):
        Dataset.from_arrays({"x": np.arange(2.0)}, hidden={"x": np.arange(3.0)})


def test_single_step_trials(rng):
    data = Dataset.from_arrays({"x": rng.normal(size=(3, 1, 2))}, dt=2.0)
    assert data.lengths.tolist() == [1, 1, 1] and data.batch().time_mask.all()
    Dataset.from_arrays({"x": rng.normal(size=(1, 2))})


def test_from_pandas_puts_rows_on_a_grid():
    frame = pd.DataFrame(
        {
            "session": ["m", "m", "m", "m", "n", "n", "n"],
            "trial": [0, 0, 0, 1, 1, 1, 1],
            "t": [5.0, 5.1, 5.3, 9.0, 2.0, 2.1, 2.2],
            "a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            "b": [0, 1, 0, 1, None, 1, 0],
            "spikes": [0, 1, 2, 3, 4, 5, 6],
        }
    )
    data = Dataset.from_pandas(
        frame,
        columns={"x": ["a", "b"], "n": "spikes"},
        time="t",
        trial="trial",
        session="session",
        kinds={"n": "count"},
    )
    assert data.dt == pytest.approx(0.1)
    assert data.trial_names == ["0", "1", "1"] and data.sessions == ["m", "m", "n"]
    assert data.lengths.tolist() == [4, 1, 3]
    np.testing.assert_array_equal(data[0].values["x"][:, 0], [1, 2, np.nan, 3])
    np.testing.assert_array_equal(data[2].values["x"][:, 1], [np.nan, 1, 0])
    np.testing.assert_allclose([t.start for t in data], [5.0, 9.0, 2.0])
    plain = Dataset.from_pandas(frame[["a", "spikes"]], {"x": ["a"]}, inputs="spikes", dt=0.2)
    assert plain.dt == 0.2 and plain.n_inputs == 1 and plain.lengths.tolist() == [7]
    everything = Dataset.from_pandas(frame[["t", "a", "b"]].iloc[:3], time="t")
    assert everything.channels == {"x": 2}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"columns": {"x": ["nowhere"]}}, "nowhere"),
        ({"t": [0.0, 0.2, 0.1]}, {"time": "t"}, "not sorted"),
        ({"t": [0.0, 0.1, 0.1]}, {"time": "t"}, "same time"),
        ({"t": [0.0, 0.1, 0.25]}, {"time": "t", "dt": 0.1}, "grid"),
        ({"t": [0.0, 0.01, 0.02]}, {"time": "t", "dt": 0.1}, "grid"),
        ({"a": ["u", "v", "w"]}, {"columns": {"x": ["a"]}}, "numbers"),
        ({}, {"columns": {}}, "no modality"),
        ({}, {"inputs": ["u"]}, "missing or infinite"),
    ],
)
def test_from_pandas_refuses(change, options, message):
    frame = pd.DataFrame({"t": [0.0, 0.1, 0.2], "a": [1.0, 2.0, 3.0], "u": [0.0, np.nan, 1.0]})
    with pytest.raises(DataError, match=message):
        Dataset.from_pandas(frame.assign(**change), **{"columns": {"x": ["a"]}, **options})


def test_repr_says_what_is_there(rng):
    x = ragged(rng, missing=0)
    x[0][0, 0] = np.nan
    data = Dataset.from_arrays(
        {"x": x, "bold": rng.normal(size=(3, 2, 4))},
        dt=0.05,
        kinds={"bold": "bold"},
        times={"bold": [0.0, 0.15]},
        nuisance={"bold": rng.normal(size=(2, 6))},
        inputs=[np.ones((len(a), 2)) for a in x],
        subjects=["a", "b", "b"],
    ).hold_out("bold", channels=0)
    text = repr(data)
    for part in (
        "3 trials",
        "2 subjects",
        "4 to 9 steps of 0.05 s",
        "x: continuous, 3 channels",
        "1.7% missing",
        "bold: bold, 4 channels, own clock (2 samples), 6 nuisance regressors",
        "25.0% held out",
        "inputs: 2",
    ):
        assert part in text, text


def test_a_torch_loader_can_use_it(rng):
    data = Dataset.from_arrays({"x": ragged(rng)}, dt=0.1)
    batches = list(DataLoader(data, batch_size=2, collate_fn=data.collate))
    assert [len(b) for b in batches] == [2, 1]
    torch.testing.assert_close(batches[1].modalities["x"].y, data.batch([2]).modalities["x"].y)


def test_kinds_are_the_five_of_the_design():
    assert KINDS == ("continuous", "count", "label", "ordinal", "bold")


def test_one_input_series_drives_all_trials_alike():
    drive = np.arange(12.0).reshape(6, 2)
    x = np.random.default_rng(0).normal(size=(3, 6, 1))
    data = Dataset.from_arrays({"x": x}, inputs=drive)
    np.testing.assert_array_equal(data.inputs, np.broadcast_to(drive, (3, 6, 2)))
    ragged = [x[0], x[1, :4]]
    with pytest.raises(DataError, match="input"):
        Dataset.from_arrays({"x": ragged}, inputs=drive)
