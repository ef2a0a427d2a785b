"""Bad input is refused at the border with the place, what was got, what is wanted, and the fix."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plssm.data import Dataset
from plssm.errors import CapabilityError, DataError, PlssmError, ShapeError


def good(trials=3, steps=6, channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(trials, steps, channels))


def with_entry(value, index=(1, 2, 0), base=None):
    x = good() if base is None else base.astype(float)
    x[index] = value
    return x


COUNTS = np.arange(36).reshape(3, 6, 2)

BAD = {
    "no mapping": (lambda: Dataset.from_arrays(good()), ["named"]),
    "no modality": (lambda: Dataset.from_arrays({}), ["named"]),
    "too many axes": (
        lambda: Dataset.from_arrays({"x": good()[None]}),
        ["'x'", "(1, 3, 6, 2)", "[trials, T, N]"],
    ),
    "scalar": (lambda: Dataset.from_arrays({"x": 3.0}), ["'x'", "axes"]),
    "text": (lambda: Dataset.from_arrays({"x": ["a", "b"]}), ["'x'", "real numbers"]),
    "complex": (lambda: Dataset.from_arrays({"x": good() * 1j}), ["'x'", "real numbers"]),
    "ragged rows": (
        lambda: Dataset.from_arrays({"x": [[[1.0], [2.0, 3.0]], [[1.0]]]}),
        ["'x'", "trial '0'"],
    ),
    "numbers of trials": (
        lambda: Dataset.from_arrays({"x": good(), "y": good(trials=2)}),
        ["'y'", "trial", "got 2", "wanted 3"],
    ),
    "numbers of channels": (
        lambda: Dataset.from_arrays({"x": [good()[0], good()[0][:, :1]]}),
        ["'x'", "trial '1'", "channel", "1 here, 2"],
    ),
    "lengths": (
        lambda: Dataset.from_arrays({"x": good(), "y": good(steps=5)}),
        ["'y'", "trial '0'", "time", "5 steps", "6 steps", "times="],
    ),
    "input lengths": (
        lambda: Dataset.from_arrays({"x": good()}, inputs=good(steps=7)),
        ["'inputs'", "trial '0'", "7 steps", "6 steps"],
    ),
    "input trials": (
        lambda: Dataset.from_arrays({"x": good()}, inputs=good()[:2]),
        ["'inputs'", "got 2", "wanted 3"],
    ),
    "NaN input": (
        lambda: Dataset.from_arrays({"x": good()}, inputs=with_entry(np.nan)),
        ["'inputs'", "trial '1'", "channel 0, sample 2", "nan"],
    ),
    "missing input": (
        lambda: Dataset.from_arrays({"x": good()}, inputs=[good()[0], None, good()[0]]),
        ["'inputs'", "trial '1'"],
    ),
    "latent lengths": (
        lambda: Dataset.from_arrays({"x": good()}, latent=good(steps=7)),
        ["'latent'", "7 steps"],
    ),
    "NaN-only channel": (
        lambda: Dataset.from_arrays({"x": with_entry(np.nan, np.s_[:, :, 1])}),
        ["'x'", "channel 1", "NaN in every trial", "drop"],
    ),
    "zero variance": (
        lambda: Dataset.from_arrays({"x": with_entry(2.5, np.s_[:, :, 1])}),
        ["'x'", "channel 1", "zero variance", "2.5"],
    ),
    "infinite": (
        lambda: Dataset.from_arrays({"x": with_entry(-np.inf)}, trials=["a", "b", "c"]),
        ["'x'", "trial 'b'", "channel 0, sample 2", "-inf", "NaN"],
    ),
    "unsorted times": (
        lambda: Dataset.from_arrays({"x": good()}, times={"x": [0, 1, 3, 2, 4, 5]}),
        ["'x'", "trial '0'", "not sorted", "3 s then 2 s"],
    ),
    "duplicate times": (
        lambda: Dataset.from_arrays({"x": good()}, times={"x": [0, 1, 1, 2, 4, 5]}),
        ["'x'", "same time", "samples 1 and 2"],
    ),
    "NaN time": (
        lambda: Dataset.from_arrays({"x": good()}, times={"x": [0, 1, np.nan, 2, 4, 5]}),
        ["'x'", "sample 2", "not finite"],
    ),
    "number of times": (
        lambda: Dataset.from_arrays({"x": good()}, times={"x": np.arange(5)}),
        ["'x'", "5 times", "6, one per sample"],
    ),
    "shape of times": (
        lambda: Dataset.from_arrays({"x": good()}, times={"x": good()}),
        ["'x'", "time", "axes"],
    ),
    "time outside": (
        lambda: Dataset.from_arrays(
            {"x": good(), "y": good(steps=2)}, dt=0.1, times={"y": [0.0, 5.0]}
        ),
        ["'y'", "outside the trial", "5 s", "0.6"],
    ),
    "negative time": (
        lambda: Dataset.from_arrays({"x": good(steps=2)}, times={"x": [-3.0, 1.0]}),
        ["'x'", "outside the trial", "-3 s"],
    ),
    "negative count": (
        lambda: Dataset.from_arrays({"n": with_entry(-1, base=COUNTS)}, kinds={"n": "count"}),
        ["'n'", "trial '1'", "channel 0, sample 2", "negative", "-1"],
    ),
    "broken count": (
        lambda: Dataset.from_arrays({"n": with_entry(1.5, base=COUNTS)}, kinds={"n": "count"}),
        ["'n'", "whole number", "1.5"],
    ),
    "negative label": (
        lambda: Dataset.from_arrays({"c": with_entry(-1, base=COUNTS)}, kinds={"c": "label"}),
        ["'c'", "label", "0..K-1"],
    ),
    "broken ordinal": (
        lambda: Dataset.from_arrays({"c": with_entry(0.5, base=COUNTS)}, kinds={"c": "ordinal"}),
        ["'c'", "ordinal", "0..K-1"],
    ),
    "empty trial": (
        lambda: Dataset.from_arrays({"x": [good()[0], np.zeros((0, 2))]}),
        ["'x'", "trial '1'", "empty", "0 steps"],
    ),
    "nothing in a trial": (
        lambda: Dataset.from_arrays({"x": [good()[0], None]}),
        ["trial '1'", "no sample"],
    ),
    "nothing at all": (lambda: Dataset.from_arrays({"x": [None, None]}), ["'x'", "None"]),
    "unknown kind": (
        lambda: Dataset.from_arrays({"x": good()}, kinds={"x": "spikes"}),
        ["'x'", "'spikes'", "count"],
    ),
    "kinds": (lambda: Dataset.from_arrays({"x": good()}, kinds={"y": "count"}), ["kinds", "'y'"]),
    "times": (lambda: Dataset.from_arrays({"x": good()}, times={"y": [0.0]}), ["times", "'y'"]),
    "nuisance": (
        lambda: Dataset.from_arrays({"x": good()}, nuisance={"y": good()}),
        ["nuisance", "'y'"],
    ),
    "nuisance rows": (
        lambda: Dataset.from_arrays({"x": good()}, nuisance={"x": good(steps=5)}),
        ["'x'", "trial '0'", "(5, 2)", "[6, 2]"],
    ),
    "NaN nuisance": (
        lambda: Dataset.from_arrays({"x": good()}, nuisance={"x": with_entry(np.nan)}),
        ["'x'", "trial '1'", "regressor"],
    ),
    "dt zero": (lambda: Dataset.from_arrays({"x": good()}, dt=0.0), ["dt", "0.0"]),
    "dt negative": (lambda: Dataset.from_arrays({"x": good()}, dt=-1), ["dt", "-1"]),
    "dt NaN": (lambda: Dataset.from_arrays({"x": good()}, dt=float("nan")), ["dt", "nan"]),
    "dt text": (lambda: Dataset.from_arrays({"x": good()}, dt="fast"), ["dt", "fast"]),
    "names": (
        lambda: Dataset.from_arrays({"x": good()}, trials=["a"]),
        ["trials", "1 trials", "3, one per trial"],
    ),
    "subjects": (lambda: Dataset.from_arrays({"x": good()}, subjects=["a", "b"]), ["subjects"]),
    "no trials": (lambda: Dataset([], 1.0, {"x": "continuous"}), ["no trial"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refusal(name):
    make, parts = BAD[name]
    with pytest.raises(DataError) as caught:
        make()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_unknown_modality_everywhere():
    data = Dataset.from_arrays({"x": good()})
    for call in (data.values, data.hidden_values, data.nuisance, data.sample_times, data.hold_out):
        with pytest.raises(DataError, match="unknown modality.*'nope'.*'x'"):
            call("nope")


def test_checks_of_whole_channels_look_at_all_trials_and_can_be_switched_off():
    x = good()
    x[0, :, 1], x[1:, :, 0] = 1.0, np.nan
    assert Dataset.from_arrays({"x": x}).channels == {"x": 2}
    counts = Dataset.from_arrays({"n": np.zeros((2, 5, 3))}, kinds={"n": "count"})
    assert counts.values("n").sum() == 0
    constant = Dataset.from_arrays({"x": np.ones((4, 2))}, check_channels=False)
    assert (constant.values("x") == 1).all()
    for part in Dataset.from_arrays({"x": x}).split("trial", (1 / 3, 1 / 3, 1 / 3)):
        assert len(part) == 1


def test_an_error_knows_its_place_and_survives_pickling():
    error = DataError("bad", modality="x", trial=2, axis="time", got=1, wanted=2, fix="mend")
    assert str(error) == "modality 'x', trial '2', time axis: bad; got 1, wanted 2. Fix: mend."
    assert (error.modality, error.trial, error.axis, error.got) == ("x", "2", "time", 1)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.trial == "2"
    for kind in (DataError, ShapeError, CapabilityError):
        assert issubclass(kind, PlssmError) and issubclass(kind, ValueError)
