"""`plssm demo`: the chosen recording and without it, any recording, and how each is made ready."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from plssm import cli
from plssm.cli import demo as module
from plssm.cli import materials, shortening
from plssm.cli.results import forecast_errors, reading
from plssm.data import Dataset, recordings
from plssm.data._sources import SOURCES
from plssm.data.catalogue import is_available
from plssm.dynamics import LinearDynamics
from plssm.errors import DataError
from plssm.fit import Fit
from plssm.model import StateSpaceModel
from plssm.observations import Categorical, Gaussian

PICTURES = {"latents", "observed", "forecast", "free_run", "convergence"}


def test_demo_on_the_real_recording(tmp_path, capsys):
    pytest.importorskip("nitime")
    assert cli.main(["demo", "--quick", "--dim", "3", "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    for words in ("28 regions", "persistence", "VAR(1)", "mean", "coverage of the 95 % band",
                  "log evidence", "seconds of fitting", "better than"):  # fmt: skip
        assert words in screen, words
    assert {p.stem for p in (tmp_path / "d").glob("*.png")} == PICTURES
    scores = pd.read_csv(tmp_path / "d" / "scores.csv", index_col="modality")
    assert f"{scores.loc['bold', 'error_5']:.3f}" in screen
    fit = Fit.load(tmp_path / "d" / "fit")
    assert fit.model.dim == 3 and len(fit.history) > 0


def test_the_held_out_stretch_is_never_seen(monkeypatch):
    pytest.importorskip("nitime")
    recording = module.load_recording(module.RECORDING)
    first = module._real(recording)
    values = np.array(recording.signals["bold"].values)
    values[200:] += 100.0
    object.__setattr__(recording.signals["bold"], "values", values)
    second = module._real(recording)
    assert first.train.lengths.tolist() == [200] and first.test.lengths.tolist() == [50]
    np.testing.assert_array_equal(first.train.values("bold"), second.train.values("bold"))
    assert not np.allclose(first.test.values("bold"), second.test.values("bold"))
    trained = first.train.values("bold")[0]
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(trained.std(0), 1, atol=1e-12)


def test_without_nitime_a_simulated_set_serves_and_says_so(tmp_path, capsys, monkeypatch):
    real = module.load_recording

    def absent(name, **options):
        if name == module.RECORDING:
            raise DataError("comes with nitime, which is absent", fix="pip install plssm[data]")
        return real(name, **options)

    monkeypatch.setattr(module, "load_recording", absent)
    small = ["--quick", "--dim", "3", "--iterations", "2"]
    assert cli.main(["demo", *small, "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    assert "SIMULATED" in screen and "pip install plssm[data]" in screen
    assert {p.stem for p in (tmp_path / "d").glob("*.png")} == PICTURES


def gaussian(channels):
    model = StateSpaceModel(LinearDynamics(2), {"x": Gaussian(channels)})
    return Fit(model)


def test_forecast_errors_of_the_mean():
    """By hand: two trials, targets from step warmup + n on, missing entries left out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 20, 2))
    x[0, 15, 1] = np.nan
    train = Dataset.from_arrays({"x": 3 * rng.normal(size=(2, 40, 2)) + 1})
    test = Dataset.from_arrays({"x": x})
    columns = {f"{k}_{n}": 0.1 * n for n in (1, 4) for k in ("error", "persistence", "var1")}
    scores = pd.DataFrame([columns], index=["x"])
    errors = forecast_errors(gaussian(2), scores, "x", steps=(1, 4), train=train, test=test)
    seen = train.values("x").reshape(-1, 2)
    for n in (1, 4):
        z = [(x[b, t, c] - seen[:, c].mean()) / seen[:, c].std()
             for b in range(2) for t in range(10 + n, 20) for c in range(2)
             if np.isfinite(x[b, t, c])]  # fmt: skip
        assert errors.loc[n, "mean"] == pytest.approx(np.mean(np.square(z)), rel=1e-12)
        assert errors.loc[n, "model"] == pytest.approx(0.1 * n)


def test_forecast_errors_of_the_most_frequent_class():
    """Labels: the share of held-out entries that are not the class seen most in training."""
    rng = np.random.default_rng(1)
    kinds = {"c": "label"}
    train = Dataset.from_arrays({"c": [0, 1, 1, 2, 1, 0]}, kinds=kinds)
    labels = rng.integers(0, 3, size=30)
    test = Dataset.from_arrays({"c": labels}, kinds=kinds)
    columns = {f"{k}_{n}": 0.5 for n in (1, 5) for k in ("error", "persistence", "var1")}
    scores = pd.DataFrame([columns], index=["c"])
    fit = Fit(StateSpaceModel(LinearDynamics(2), {"c": Categorical(3)}))
    errors = forecast_errors(fit, scores, "c", steps=(1, 5), train=train, test=test)
    for n in (1, 5):
        assert errors.loc[n, "majority"] == pytest.approx((labels[10 + n :] != 1).mean())


@pytest.mark.parametrize(
    ("model", "coverage", "words", "absent"),
    [
        ([0.5, 0.6], 0.95, ["persistence at 1, 5 of 1, 5 steps"], ["out of reach", "Coverage"]),
        ([1.5, 1.6], 0.90, ["persistence nowhere", "out of reach", "Coverage"], []),
        ([0.5, 1.6], 0.95, ["mean at 1 of 1, 5 steps", "out of reach"], ["Coverage"]),
    ],
)
def test_the_reading_says_what_the_numbers_say(model, coverage, words, absent):
    errors = pd.DataFrame({"model": model}, index=[1, 5])
    for rival in ("persistence", "VAR(1)", "mean"):
        errors[rival] = 1.0
    text = reading(errors, pd.Series({"coverage_95": coverage}), "continuous")
    assert all(w in text for w in words) and not any(w in text for w in absent)
    assert max(map(len, text.splitlines())) < 80


def test_the_reading_of_labels_and_of_nothing():
    errors = pd.DataFrame(
        {"model": [0.2], "persistence": [0.1], "VAR(1)": [0.3], "majority": [0.5]}, index=[1]
    )
    text = reading(errors, pd.Series({"accuracy": 0.8}), "label")
    assert "VAR(1) at 1 of 1" in text and "majority at 1" in text and "persistence nowhere" in text
    assert "out of reach" not in text and "Coverage" not in text
    wild = pd.DataFrame({"model": [1.0, 40.0], "mean": [1.5, 1.5]}, index=[1, 10])
    assert "softplus" in reading(wild, pd.Series(), "count")
    assert "softplus" not in reading(wild[:1], pd.Series(), "count")
    assert "softplus" not in reading(wild, pd.Series(), "continuous")
    assert "Nothing of it was seen" in reading(errors * np.nan, pd.Series(), "label")


# ---- any recording of the catalogue -----------------------------------------------------------


def test_list_says_what_is_here_and_what_is_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PLSSM_DATA", raising=False)
    assert cli.main(["demo", "--list"]) == 0
    rows = {r.split("│")[1].strip(): r for r in capsys.readouterr().out.splitlines() if "│" in r}
    assert set(rows) == {s.name for s in recordings()}
    assert "yes" in rows["simulated_plrnn"] and "no: PLSSM_DATA" in rows["eeg"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--recording", "eggs"], ["no recording has this name", "eeg"]),
        (["--recording", "eeg"], ["not on this machine", "datasets/convert/eeg.py"]),
    ],
)
def test_recordings_that_cannot_be_had_leave_no_folder(tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.delenv("PLSSM_DATA", raising=False)
    assert cli.main(["demo", *argv, "--out", str(tmp_path / "d")]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and not (tmp_path / "d").exists()


def test_demo_of_a_shipped_recording(tmp_path, capsys):
    argv = ["--recording", "simulated_linear", "--dim", "3", "--iterations", "3"]
    assert cli.main(["demo", *argv, "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    for words in ("linear dynamics with inputs", "10 trials are fitted, 2 are held out",
                  "driven by 1 input", "1 start, 3 iterations", "Held out: x, 2 trials",
                  "VAR(1)", "log evidence"):  # fmt: skip
        assert words in screen, words
    assert {p.stem for p in (tmp_path / "d").glob("*.png")} == PICTURES
    fit = Fit.load(tmp_path / "d" / "fit")
    assert fit.model.dim == 3 and fit.model.dynamics.n_inputs == 1


def several_kinds(seed=0):
    """Spikes, labels, levels, slow BOLD and a real-valued signal of five short trials."""
    rng = np.random.default_rng(seed)
    slow = np.sin(np.arange(40) * 0.3 + rng.normal(size=(5, 1)))
    return Dataset.from_arrays(
        {
            "spikes": rng.poisson(np.exp(0.5 * slow))[..., None].repeat(4, axis=-1),
            "x": slow[..., None] * [1.0, -2.0] + 0.1 * rng.normal(size=(5, 40, 2)),
            "choice": (slow > 0.3)[..., None] + (slow > -0.3)[..., None] * 1,
            "mood": np.digitize(slow, [-0.5, 0.0, 0.5])[..., None],
            "bold": rng.normal(size=(5, 20, 3)),
        },
        dt=1.0,
        kinds={"spikes": "count", "choice": "label", "mood": "ordinal", "bold": "bold"},
        times={"bold": np.arange(20) * 2.0},
    )


def test_demo_of_every_kind_of_data_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(materials, "load_recording", lambda name: several_kinds())
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: path.touch())
    argv = ["--recording", "simulated_plrnn", "--dim", "2", "--iterations", "2"]
    assert cli.main(["demo", *argv, "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    for words in ("Poisson observations of spikes", "Gaussian observations of x",
                  "Categorical observations of choice", "Ordinal observations of mood",
                  "BOLD observations of bold", "majority", "frequencies", "bits per spike",
                  "accuracy one step ahead", "ranked probability score",
                  "4 trials are fitted, 1 is held out"):  # fmt: skip
        assert words in screen, words
    pictures = {p.stem for p in (tmp_path / "d").glob("*.png")}
    drawn = {f"{kind}_{name}" for kind in ("observed", "forecast", "free_run")
             for name in ("spikes", "x", "mood", "bold")}  # fmt: skip
    assert pictures == drawn | {"latents", "convergence"}
    scores = pd.read_csv(tmp_path / "d" / "scores.csv", index_col="modality")
    assert list(scores.index) == ["spikes", "x", "choice", "mood", "bold"]
    fit = Fit.load(tmp_path / "d" / "fit")
    assert fit.model.observations["choice"].classes == 3


# ---- how a recording is made ready ------------------------------------------------------------


def test_a_demo_takes_the_first_subject_and_a_bounded_number_of_steps():
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {"x": rng.normal(size=(4, 1000, 2))}, 0.1, subjects=["a", "a", "b", "b"]
    )
    notes = []
    one = shortening.first_subject(data, notes)
    assert one.subjects == ["a", "a"] and notes == ["the first of 2 subjects only"]
    assert shortening.shortened(one, notes) is one and len(notes) == 1
    short = shortening.shortened(data, notes)
    assert short.lengths.tolist() == [750] * 4
    assert notes[1] == "the first 750 of 1000 steps of each trial only"
    scans = Dataset.from_arrays({"x": rng.normal(size=(4000, 2))}, kinds={"x": "bold"})
    assert shortening.shortened(scans, []).lengths.tolist() == [1500]
    many = Dataset.from_arrays({"x": rng.normal(size=(500, 9, 1))})
    assert shortening.shortened(many, notes).lengths.sum() <= 3000
    assert notes[2] == "the first 333 of 500 trials only"


def test_what_is_held_out_depends_on_sessions_and_trials():
    x = np.random.default_rng(0).normal(size=(5, 100, 2))
    parts = Dataset.from_arrays({"x": x}, sessions=["train", "test", "test", "train", "test"])
    train, test, how = shortening.held_out_part(parts, 0)
    assert (len(train), len(test)) == (2, 3) and "authors" in how
    train, test, how = shortening.held_out_part(Dataset.from_arrays({"x": x}), 0)
    assert (len(train), len(test)) == (4, 1) and "4 trials are fitted" in how
    train, test, how = shortening.held_out_part(Dataset.from_arrays({"x": x[0]}), 7)
    assert (train.lengths[0], test.lengths[0]) == (80, 13) and "gap of 7" in how
    np.testing.assert_array_equal(test.values("x")[0], x[0, 87:])


def test_channels_that_tell_nothing_are_left_out_and_the_rest_z_scored_by_what_is_fitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 70)) * 3 + 1
    x[:32, 2], x[:32, 5] = 4.0, np.nan
    n = rng.poisson(1.0, size=(40, 3))
    n[:, 1] = 0
    dead = np.zeros(40)
    data = Dataset.from_arrays(
        {"x": x, "n": n, "dead": dead}, kinds={"n": "count", "dead": "label"},
        times={"n": np.arange(40.0)}, nuisance={"n": np.arange(40.0)}, inputs=np.ones(40),
        check_channels=False,
    )  # fmt: skip
    train, test, _ = shortening.held_out_part(data, 0)
    notes = []
    kept = shortening.useful_channels(train, notes)
    assert notes == [
        "x: without 2 of 70 channels, silent or lost", "x: the first 64 of 68 channels only",
        "n: without 1 of 3 channels, silent or lost",
        "dead: without 1 of 1 channels, silent or lost",
    ]  # fmt: skip
    assert kept["n"].tolist() == [0, 2] and "dead" not in kept
    expected = [k for k in range(66) if k not in (2, 5)]
    assert kept["x"].tolist() == expected
    first, second = shortening.scaled(train, (train, test), kept)
    assert first.names == ["x", "n"] and first.n_inputs == 1
    centre, spread = x[:32, expected].mean(0), x[:32, expected].std(0)
    np.testing.assert_allclose(second.values("x")[0], (x[32:, expected] - centre) / spread)
    np.testing.assert_array_equal(first.values("n")[0], n[:32, [0, 2]])
    assert second[0].clock["n"].tolist() == list(range(8))
    assert second.nuisance("n")[0, :, 0].tolist() == list(range(32, 40))


@pytest.mark.parametrize("name", [s.name for s in recordings()])
def test_every_recording_of_the_catalogue_can_be_made_ready(recordings_folder, name):
    source = SOURCES[name]
    if not is_available(source):
        pytest.skip(f"{name} is not on this machine")
    material = materials.recording_material(name)
    train, test = material.train, material.test
    for part in (train, test):
        material.model.check(part)
    assert train.lengths.sum() + test.lengths.sum() <= (1500 if "bold" in train.names else 3000)
    assert {m: len(n) for m, n in material.names.items()} == train.channels
    for m, kind in train.kinds.items():
        seen = np.concatenate([t.values[m] for t in train.trials])
        assert (np.nanmax(seen, axis=0) > np.nanmin(seen, axis=0)).all()
        if kind in ("continuous", "bold"):
            np.testing.assert_allclose(np.nanmean(seen, axis=0), 0, atol=1e-9)
            np.testing.assert_allclose(np.nanstd(seen, axis=0), 1, atol=1e-9)
    assert source.title in material.story
