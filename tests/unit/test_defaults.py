"""The first model for a dataset: what is chosen for each kind of data, and its sizes."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.data import Dataset, Recording, Signal, load_recording
from plssm.defaults import default_model, default_observations
from plssm.errors import DataError


def mixed(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(2, 80, 4)),
        "n": rng.poisson(1.0, size=(2, 80, 6)),
        "c": rng.integers(0, 3, size=(2, 80, 1)),
        "licks": rng.integers(0, 2, size=(2, 80, 2)),
        "mood": [rng.integers(0, 4, size=(3, 2)), None],
        "bold": rng.normal(size=(2, 20, 7)),
    } | changes
    return Dataset.from_arrays(
        arrays,
        dt=0.5,
        kinds={"n": "count", "c": "label", "licks": "label", "mood": "ordinal", "bold": "bold"},
        times={"bold": np.arange(20) * 2.0, "mood": [[0.0, 9.0, 31.0], None]},
        nuisance={"bold": rng.normal(size=(20, 6)), "x": rng.normal(size=(80, 1))},
        inputs=np.ones((80, 3)),
    )


def test_each_kind_gets_its_model_in_the_size_of_the_data():
    data = mixed()
    found = default_observations(data)
    assert {n: type(o).__name__ for n, o in found.items()} == {
        "x": "Gaussian", "n": "Poisson", "c": "Categorical", "licks": "Bernoulli",
        "mood": "Ordinal", "bold": "BOLD",
    }  # fmt: skip
    assert (found["x"].channels, found["x"].nuisance) == (4, 1)
    assert (found["n"].channels, found["n"].bin_seconds) == (6, 0.5)
    assert found["c"].classes == 3 and found["licks"].channels == 2
    assert (found["mood"].channels, found["mood"].levels) == (2, 4)
    assert (found["bold"].channels, found["bold"].tr_seconds, found["bold"].nuisance) == (7, 2, 6)
    model = default_model(data)
    model.check(data)
    assert model.dim == 8  # 4 + 6 + 2 + 2 + 2 + 7 = 23 predictors; sqrt(46) = 6.8
    assert model.dynamics.n_inputs == 3
    assert default_model(data, 5).dim == 5


def test_classes_and_levels_that_are_held_out_count():
    c = np.zeros((2, 80, 1))
    c[0, 3:20:4] = 1
    c[1, 7] = 4
    held = mixed(c=c).hold_out("c", times=(3.0, 4.0))
    assert held.reveal().values("c").max() == 4 and np.nanmax(held.values("c")) == 1
    assert default_observations(held)["c"].classes == 5
    nothing = Dataset.from_arrays(
        {"c": np.full((5, 1), np.nan), "x": np.arange(5.0)}, kinds={"c": "label"},
        check_channels=False,
    )  # fmt: skip
    assert default_observations(nothing)["c"].classes == 2


@pytest.mark.parametrize(("channels", "dim"), [(1, 8), (32, 8), (33, 9), (72, 12), (200, 12)])
def test_the_latent_size_follows_the_predictors(channels, dim):
    x = np.random.default_rng(0).normal(size=(6, channels))
    assert default_model(Dataset.from_arrays({"x": x})).dim == dim


def test_the_interval_is_that_of_a_channel_whatever_is_missing_or_delayed():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 4))
    values[[3, 4, 11]] = np.nan
    for delays in (None, [0.0, 0.5, 1.0, 1.5]):
        bold = Signal(values, np.arange(20) * 2.2, kind="bold", channel_delay_seconds=delays)
        data = Recording({"bold": bold}).to_dataset(0.1)
        assert default_observations(data)["bold"].tr_seconds == pytest.approx(2.2)
    on_clock = Recording({"bold": Signal(values, np.arange(20) * 2.2, kind="bold")})
    data = on_clock.to_dataset(2.2)
    assert data[0].clock["bold"] is None
    assert default_observations(data)["bold"].tr_seconds == 2.2


def test_several_channels_of_many_classes_are_refused():
    labels = np.arange(12).reshape(6, 2) % 3
    data = Dataset.from_arrays({"c": labels}, kinds={"c": "label"})
    with pytest.raises(DataError, match="'c', channel axis.*2 channels, 3 classes.*own modality"):
        default_observations(data)


def test_recordings_have_a_model_that_describes_them(recordings_folder):
    data = load_recording("m1_reaching")
    model = default_model(data)
    model.check(data)
    assert model.observations["target"].classes == 4
    nback = load_recording("fmri_nback")
    model = default_model(nback)
    model.check(nback)
    assert model.observations["bold"].tr_seconds == 3.0
    assert model.observations["stage"].classes == 5
