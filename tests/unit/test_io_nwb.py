"""NWB files: what the test writes is what comes in, and posteriors go back out unharmed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

import plssm as ps
from plssm.data import _nwb_columns, _nwb_file, _nwb_posterior, io_nwb, read_nwb
from plssm.data import write_posterior_nwb as write
from plssm.errors import CapabilityError, DataError, ShapeError

pynwb = pytest.importorskip("pynwb")

LABELS = ["left", "right", "", "left"]
TRIALS = np.array([[0.0, 1.0], [1.5, 2.7], [3.0, 3.5], [4.0, 5.0]])
SPIKES = {4: [0.1, 0.25, 2.05, 4.5], 9: [0.55, 4.95], 2: []}
SEEN = {4: [[0.0, 2.0], [4.0, 5.0]], 9: [[0.0, 5.0]], 2: [[0.0, 3.5]]}


def blank(**options):
    return pynwb.NWBFile(
        session_description="a session",
        identifier="rat1-20200101",
        session_start_time=datetime(2020, 1, 1, tzinfo=UTC),
        **options,
    )


def series(name, data, **options):
    options.setdefault("unit", "V")
    return pynwb.TimeSeries(name=name, data=np.asarray(data), **options)


def stored(file, path):
    with pynwb.NWBHDF5IO(str(path), mode="w") as handle:
        handle.write(file)
    return path


def position(name, rng, times):
    return pynwb.behavior.SpatialSeries(
        name=name, data=rng.normal(size=(len(times), 2)), timestamps=times, reference_frame="box"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file with one of each, and what is in it."""
    rng = np.random.default_rng(0)
    file = blank(
        session_id="s7", subject=pynwb.file.Subject(subject_id="rat1", species="Rattus rattus")
    )
    raw = rng.integers(-99, 99, size=(50, 2)).astype(np.int16)
    file.add_acquisition(
        series("lfp", raw, rate=10.0, starting_time=0.3, conversion=1e-3, offset=0.5)
    )
    cube = rng.normal(size=(10, 2, 3))
    cube[4, 1, 2] = np.nan
    file.add_acquisition(series("cube", cube, rate=2.0))
    times = np.array([0.02, 0.31, 0.5, 1.75, 2.2, 4.9])
    place = position("place", rng, times)
    module = file.create_processing_module(name="behavior", description="what it did")
    module.add(pynwb.behavior.Position(spatial_series=place))
    file.add_stimulus(series("light", [0.0, 1.0, 0.0], timestamps=[0.0, 1.0, 2.0]))
    file.add_unit_column(name="quality", description="sorting")
    for unit, spikes in SPIKES.items():
        file.add_unit(id=unit, spike_times=spikes, obs_intervals=SEEN[unit], quality=f"q{unit}")
    for name in ("choice", "go", "reward"):
        file.add_trial_column(name=name, description=name)
    for (start, stop), label in zip(TRIALS, LABELS):
        file.add_trial(
            start_time=start, stop_time=stop, choice=label, go=start + 0.2, reward=2 * start
        )
    file.add_epoch(start_time=0.0, stop_time=2.0, tags=["baseline"])
    licks = pynwb.event.EventsTable(name="licks", description="tongue")
    licks.add_column(name="side", description="left or right")
    for t, side in ((0.3, "r"), (0.7, "l"), (4.2, "r")):
        licks.add_row(timestamp=t, side=side)
    file.add_events_table(licks)
    path = stored(file, tmp_path_factory.mktemp("nwb") / "one.nwb")
    return SimpleNamespace(
        path=path, raw=raw, cube=cube, times=times, place=np.asarray(place.data)
    )


# ---- signals -----------------------------------------------------------------------------------


def test_series_keep_their_numbers_times_units_and_gaps(written):
    recording = read_nwb(written.path)
    assert set(recording.signals) == {"lfp", "cube", "place", "licks", "spikes"}
    lfp, cube, place = (recording.signals[n] for n in ("lfp", "cube", "place"))
    np.testing.assert_allclose(lfp.values, written.raw * 1e-3 + 0.5, rtol=1e-12)
    np.testing.assert_allclose(lfp.times, 0.3 + np.arange(50) / 10.0, rtol=1e-12)
    assert (lfp.unit, lfp.kind) == ("V", "continuous")
    np.testing.assert_array_equal(cube.values, written.cube.reshape(10, 6))
    assert np.isnan(cube.values[4, 5]) and cube.times[3] == 1.5
    np.testing.assert_array_equal(place.times, written.times)
    np.testing.assert_array_equal(place.values, written.place)
    assert (recording.subject, recording.session) == ("rat1", "s7")
    assert recording.meta["session_start"].startswith("2020-01-01T00:00:00")


def test_signals_are_chosen_by_name_path_and_new_name(written):
    assert list(read_nwb(written.path, signals="lfp", units=[]).signals) == ["lfp"]
    chosen = read_nwb(written.path, signals={"pos": "Position/place"}, units=[]).signals
    assert list(chosen) == ["pos"]
    np.testing.assert_array_equal(chosen["pos"].values, written.place)
    light = read_nwb(written.path, signals=["stimulus/light"], units=[]).signals["light"]
    assert light.values[:, 0].tolist() == [0, 1, 0]
    counts = read_nwb(
        written.path, signals=["light"], units=[], kinds={"light": "count"}, trials=False
    ).to_dataset(1.0)
    assert counts.kinds == {"light": "count"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ["lpf"]}, "nothing of this name.*'lpf'.*acquisition/lfp"),
        ({"signals": ["trials/side"]}, "nothing of this name"),
        ({"inputs": "nope"}, "nothing of this name.*'nope'"),
        ({"kinds": {"lpf": "count"}}, "kinds names no signal.*lpf.*lfp"),
        ({"signals": {"spikes": "lfp"}}, "'spikes'.*same name"),
        ({"units": [4, 5]}, "'spikes'.*no such unit.*5.*4, 9, 2"),
        ({"trials": "licks"}, "no intervals.*timestamp"),
        ({"trials": "sessions"}, "nothing of this name.*'sessions'"),
        ({"signals": ["trials/choice@dawn"]}, "no column of times.*'dawn'.*start_time"),
        ({"kinds": {"lfp": "count"}}, "'lfp'.*not a whole number|'lfp'.*negative"),
    ],
)
def test_what_is_not_there_is_refused(written, options, message):
    with pytest.raises(DataError, match=message):
        read_nwb(written.path, **options)


def test_channels_have_their_own_conversion(tmp_path):
    file = blank()
    device = file.create_device(name="probe")
    group = file.create_electrode_group(name="g", description="", location="CA1", device=device)
    for _ in range(2):
        file.add_electrode(location="CA1", group=group)
    region = file.create_electrode_table_region(region=[0, 1], description="both")
    data = np.arange(8.0).reshape(4, 2)
    file.add_acquisition(
        pynwb.ecephys.ElectricalSeries(
            name="v", data=data, electrodes=region, rate=4.0, conversion=0.5, offset=1.0,
            channel_conversion=[1.0, 10.0],
        )
    )  # fmt: skip
    found = read_nwb(stored(file, tmp_path / "v.nwb")).signals["v"]
    np.testing.assert_allclose(found.values, data * 0.5 * np.array([1.0, 10.0]) + 1.0)


def test_names_that_are_not_unique_become_paths(tmp_path):
    file = blank()
    for module in ("left", "right"):
        made = file.create_processing_module(name=module, description="eye")
        made.add(series("pupil", np.arange(5.0), rate=1.0))
    file.add_acquisition(series("a.b", np.arange(5.0), rate=1.0))
    path = stored(file, tmp_path / "two.nwb")
    assert set(read_nwb(path).signals) == {
        "processing/left/pupil", "processing/right/pupil", "a_b"
    }  # fmt: skip
    assert list(read_nwb(path, signals=["left/pupil"]).signals) == ["pupil"]
    with pytest.raises(DataError, match="not unique.*left/pupil, processing/right/pupil"):
        read_nwb(path, signals=["pupil"])


def test_what_is_no_signal_is_left_out_or_refused(tmp_path, monkeypatch):
    file = blank()
    frames = pynwb.image.ImageSeries(
        name="video", data=np.zeros((3, 4, 4), dtype=np.uint8), unit="n.a.", rate=1.0
    )
    file.add_acquisition(frames)
    file.add_acquisition(series("x", np.arange(6.0), rate=1.0))
    path = stored(file, tmp_path / "v.nwb")
    assert list(read_nwb(path).signals) == ["x"]
    with pytest.raises(DataError, match="'video'.*images, which are no signal"):
        read_nwb(path, signals=["video"])
    monkeypatch.setattr(io_nwb, "LARGEST", 5)
    with pytest.raises(DataError, match=r"acquisition/x is too large.*signals=\[...\]"):
        read_nwb(path)
    assert len(read_nwb(path, signals=["x"]).signals["x"].values) == 6


def test_a_file_without_anything_to_read(tmp_path):
    path = stored(blank(), tmp_path / "empty.nwb")
    with pytest.raises(DataError, match="nothing to read.*an empty file"):
        read_nwb(path)
    with pytest.raises(DataError, match="no units with spike times"):
        read_nwb(path, units=[1])


# ---- units -------------------------------------------------------------------------------------


def test_units_are_seen_in_their_own_intervals(written):
    recording = read_nwb(written.path, signals=[], trials=False)
    events = recording.signals["spikes"]
    assert events.names == ("4", "9", "2")
    assert [t.tolist() for t in events.times] == list(SPIKES.values())
    data = recording.to_dataset(0.5, check_channels=False)
    # steps of half a second from 0 to 5 s, by hand
    expected = np.zeros((10, 3))
    expected[[0, 9], 0] = [2, 1]
    expected[[1, 9], 1] = 1
    expected[4:8, 0] = expected[7:, 2] = np.nan
    np.testing.assert_array_equal(data.values("spikes")[0], expected)
    assert recording.meta["units"].loc[9, "quality"] == "q9"


def test_units_are_chosen_by_id_and_by_modality(written):
    areas = read_nwb(written.path, signals=[], units={"ca1": [2, 4], "ca3": [9]}).signals
    assert {n: e.names for n, e in areas.items()} == {"ca1": ("2", "4"), "ca3": ("9",)}
    assert areas["ca3"].unit_support is None
    assert areas["ca3"].support.tolist() == [[0.0, 5.0]]
    assert areas["ca1"].times[1].tolist() == SPIKES[4]


def test_units_without_intervals_are_seen_over_everything_that_was_read(tmp_path):
    file = blank()
    file.add_unit(spike_times=[0.5, 1.0])
    file.add_unit(spike_times=[3.0])
    file.add_acquisition(series("x", np.arange(9.0), rate=1.0, starting_time=-2.0))
    path = stored(file, tmp_path / "u.nwb")
    assert read_nwb(path).signals["spikes"].support.tolist() == [[-2.0, 6.0]]
    assert read_nwb(path, signals=[]).signals["spikes"].support.tolist() == [[0.5, 3.0]]


def test_a_unit_with_no_stated_interval_among_others_that_have_one(tmp_path):
    file = blank()
    file.add_unit(spike_times=[0.5, 1.0], obs_intervals=[[0.0, 2.0]])
    file.add_unit(spike_times=[3.0], obs_intervals=np.zeros((0, 2)))
    data = read_nwb(stored(file, tmp_path / "u.nwb")).to_dataset(1.0)
    np.testing.assert_array_equal(data.values("spikes")[0], [[1, 0], [1, 0], [np.nan, 0]])


# ---- trials, columns, events, invalid times -------------------------------------------------


def test_trials_with_gaps_and_their_columns(written):
    recording = read_nwb(written.path, signals=["lfp"], units=[])
    table = recording.trials
    np.testing.assert_array_equal(table[["start", "stop"]], TRIALS)
    assert table["choice"].tolist() == LABELS and table["name"].tolist() == list("0123")
    data = recording.to_dataset(0.1)
    assert data.lengths.tolist() == [10, 12, 5, 10]
    assert [t.start for t in data] == TRIALS[:, 0].tolist()
    np.testing.assert_allclose(
        data[1].values["lfp"], (written.raw * 1e-3 + 0.5)[12:24], rtol=1e-12
    )
    chosen = data.select(trials=(table["choice"] == "left").to_numpy())
    assert chosen.trial_names == ["0", "3"]


def test_other_tables_of_trials_or_none(written):
    kwargs = dict(signals=["lfp"], units=[])
    assert len(read_nwb(written.path, trials=False, **kwargs).to_dataset(0.1)) == 1
    epochs = read_nwb(written.path, trials="epochs", **kwargs)
    assert epochs.trials[["start", "stop"]].to_numpy().tolist() == [[0.0, 2.0]]
    assert "tags" not in epochs.trials


def test_columns_of_trials_become_samples(written):
    recording = read_nwb(
        written.path,
        signals={"choice": "trials/choice", "late": "trials/choice@go", "r": "trials/reward"},
        units=[],
    )
    assert recording.meta["classes"] == {"choice": ["left", "right"], "late": ["left", "right"]}
    data = recording.to_dataset(0.1)
    assert data.kinds == {"choice": "label", "late": "label", "r": "continuous"}
    np.testing.assert_array_equal(data.values("choice")[:, 0, 0], [0, 1, np.nan, 0])
    assert [int(t.clock["choice"][0]) for t in data] == [0, 0, 0, 0]
    assert [int(t.clock["late"][0]) for t in data] == [2, 2, 2, 2]
    np.testing.assert_array_equal(data.values("r")[:, 0, 0], 2 * TRIALS[:, 0])


def test_event_tables_are_events_by_value_of_a_column(written):
    events = read_nwb(written.path, signals={"licks": "licks", "side": "licks/side"}).signals
    assert [t.tolist() for t in events["licks"].times] == [[0.3, 0.7, 4.2]]
    assert events["side"].names == ("l", "r")
    assert [t.tolist() for t in events["side"].times] == [[0.7], [0.3, 4.2]]
    starts = read_nwb(written.path, signals=["epochs"]).signals["epochs"]
    assert [t.tolist() for t in starts.times] == [[0.0]]


@pytest.mark.filterwarnings("ignore:AnnotationSeries is deprecated")
def test_annotations_and_labelled_events_are_units(tmp_path):
    file = blank()
    file.add_acquisition(
        pynwb.misc.AnnotationSeries(
            name="notes", data=["cue", "tone", "cue"], timestamps=[0.1, 0.2, 0.9]
        )
    )
    table = pynwb.event.EventsTable(name="marks", description="of the experimenter")
    for t, note in ((0.0, "b"), (1.0, "a")):
        table.add_row(timestamp=t, annotation=note)
    file.add_events_table(table)
    recording = read_nwb(stored(file, tmp_path / "e.nwb"))
    notes, marks = recording.signals["notes"], recording.signals["marks"]
    assert notes.names == ("cue", "tone") and marks.names == ("a", "b")
    assert [t.tolist() for t in notes.times] == [[0.1, 0.9], [0.2]]
    assert notes.support.tolist() == [[0.0, 1.0]]
    # the extension ndx-events has timestamps, numbers and the labels these stand for
    events = SimpleNamespace(data=np.array([1, 0, 1], dtype=np.uint8), labels=["off", "on"])
    assert _nwb_columns.label_names(events).tolist() == ["on", "off", "on"]
    assert _nwb_columns.label_names(SimpleNamespace(timestamps=[1.0])) is None


def test_invalid_times_are_missing_everywhere(tmp_path):
    file = blank()
    file.add_acquisition(series("x", np.arange(10.0), rate=1.0))
    file.add_unit(spike_times=[0.5, 4.5, 8.5], obs_intervals=[[0.0, 10.0]])
    file.add_invalid_time_interval(start_time=4.0, stop_time=6.0)
    data = read_nwb(stored(file, tmp_path / "i.nwb")).to_dataset(1.0)
    x, n = data.values("x")[0, :, 0], data.values("spikes")[0, :, 0]
    assert np.flatnonzero(np.isnan(x)).tolist() == [4, 5]
    assert np.flatnonzero(np.isnan(n)).tolist() == [4, 5]
    assert np.nansum(n) == 2


@pytest.mark.parametrize(
    ("holes", "left"),
    [
        ([], [[0, 4], [6, 9]]),
        ([[1, 2]], [[0, 1], [2, 4], [6, 9]]),
        ([[3, 7]], [[0, 3], [7, 9]]),
        ([[-1, 10]], []),
        ([[4, 6]], [[0, 4], [6, 9]]),
        ([[0, 1], [8, 9], [0.5, 2]], [[2, 4], [6, 8]]),
    ],
)
def test_intervals_without_others(holes, left):
    got = _nwb_columns.without(np.array([[0.0, 4.0], [6.0, 9.0]]), np.reshape(holes, (-1, 2)))
    assert got.tolist() == left


def test_a_stimulus_drives_the_dynamics(written):
    kwargs = dict(signals=["lfp"], units=[], trials=False)
    data = read_nwb(written.path, inputs="light", **kwargs).to_dataset(0.1)
    # one row per step: the last value before its end; the recording starts at 0.3 s, light at 1 s
    assert np.flatnonzero(data.inputs[0, :, 0]).tolist() == list(range(7, 17))
    driven = read_nwb(written.path, signals=["place"], units=[], inputs="licks/side", trials=False)
    assert driven.inputs.names == ("l", "r")


# ---- files that cannot be read -------------------------------------------------


def test_files_that_are_none(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="there is no file.*absent.nwb"):
        read_nwb(tmp_path / "absent.nwb")
    text = tmp_path / "text.nwb"
    text.write_text("no HDF5", encoding="utf-8")
    with pytest.raises(DataError, match="cannot read text.nwb.*wanted an NWB 2 file"):
        read_nwb(text)
    import h5py

    with h5py.File(tmp_path / "other.nwb", "w") as other:
        other["x"] = np.zeros(3)
    with pytest.raises(DataError, match="cannot read other.nwb.*version"):
        read_nwb(tmp_path / "other.nwb")
    cut = tmp_path / "cut.nwb"
    cut.write_bytes(written.path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot read cut.nwb.*truncated"):
        read_nwb(cut)


def test_without_pynwb_the_message_says_what_to_install(monkeypatch, written):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(CapabilityError, match=r"pip install plssm\[io\]"):
        read_nwb(written.path)
    with pytest.raises(CapabilityError, match=r"pip install plssm\[io\]"):
        write("x.nwb", None, None)


# ---- posteriors back out -------------------------------------------------


def ragged(**options):
    """Two trials in the wrong order with a gap, and a modality on its own clock."""
    rng = np.random.default_rng(1)
    options = {"starts": [5.0, 0.0], "subjects": "rat1", "sessions": "s7"} | options
    return ps.Dataset.from_arrays(
        {"x": [rng.normal(size=(8, 3)), rng.normal(size=(5, 3))], "c": [[[0], [2]], [[1]]]},
        dt=0.5,
        kinds={"c": "label"},
        times={"c": [[0.5, 3.1], [1.0]]},
        trials=["b", "a"],
        **options,
    )


@pytest.fixture(scope="module")
def smoothed():
    model = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters(A=0.9 * np.eye(2), process_noise=[0.1, 0.1]),
        {"x": ps.observations.Gaussian.from_parameters(np.ones((3, 2)), noise=[0.1] * 3)},
    )
    data = ragged()
    return ps.smooth(model, data, method="laplace"), data


def test_a_posterior_comes_back_from_a_new_file(tmp_path, smoothed):
    posterior, data = smoothed
    path = write(
        tmp_path / "p.nwb", posterior, data, session_start=datetime(2024, 5, 1, tzinfo=UTC)
    )
    again = read_nwb(path, trials="latent_trials")
    assert (again.subject, again.session) == ("rat1", "s7")
    assert again.meta["session_start"].startswith("2024-05-01")
    assert again.trials["trial"].tolist() == ["a", "b"]
    assert again.trials[["start", "stop"]].to_numpy().tolist() == [[0.0, 2.5], [5.0, 9.0]]
    evidence = again.trials["log_evidence"].to_numpy()
    np.testing.assert_allclose(evidence, posterior.log_evidence.numpy()[::-1], rtol=1e-12)
    mean, sd = again.signals["latent_mean"], again.signals["latent_sd"]
    np.testing.assert_allclose(mean.times, np.r_[np.arange(5), 10 + np.arange(8)] * 0.5)
    expected = np.concatenate([posterior.mean[1, :5], posterior.mean[0]])
    np.testing.assert_array_equal(mean.values, expected)
    variances = posterior.covariance().diagonal(dim1=-2, dim2=-1)
    np.testing.assert_allclose(sd.values**2, np.concatenate([variances[1, :5], variances[0]]))
    on_clock = again.to_dataset(0.5)
    np.testing.assert_array_equal(on_clock[1].values["latent_mean"], posterior.mean[0])


def test_one_trial_has_a_rate(tmp_path):
    data = ps.Dataset.from_arrays({"x": np.arange(6.0)}, dt=0.2, starts=[3.0])
    values = np.random.default_rng(0).normal(size=(1, 6, 2))
    path = write(tmp_path / "one.nwb", (values, abs(values)), data)
    with pynwb.NWBHDF5IO(str(path), mode="r") as handle:
        made = handle.read().processing["plssm"]["latent_mean"]
        assert (made.rate, made.starting_time) == (5.0, 3.0)
    np.testing.assert_array_equal(read_nwb(path).signals["latent_sd"].values, abs(values[0]))


def test_extending_a_copy_leaves_the_source_as_it_is(tmp_path, written, smoothed):
    before = written.path.read_bytes()
    path = write(tmp_path / "more.nwb", *smoothed, source=written.path)
    assert written.path.read_bytes() == before
    old, new = read_nwb(written.path), read_nwb(path)
    assert set(new.signals) == set(old.signals) | {"latent_mean", "latent_sd"}
    np.testing.assert_array_equal(new.signals["place"].values, written.place)
    assert new.meta["identifier"] == "rat1-20200101"
    with pytest.raises(DataError, match="already has these.*latent_mean.*name="):
        write(tmp_path / "again.nwb", *smoothed, source=path)
    write(path, *smoothed, source=path, name="second")
    assert {"latent_mean", "second_mean"} <= set(read_nwb(path).signals)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more.nwb"]


@pytest.mark.parametrize("at", ["_add", "opened"])
def test_a_failure_leaves_the_source_and_no_rubbish(tmp_path, written, smoothed, monkeypatch, at):
    path = tmp_path / "mine.nwb"
    path.write_bytes(written.path.read_bytes())

    def broken(place, *args):
        if at == "_add" or str(place).endswith(".part.nwb"):
            raise OSError("disk full")
        return _nwb_file.opened(place)

    monkeypatch.setattr(_nwb_posterior, at, broken)
    with pytest.raises(OSError, match="disk full"):
        write(path, *smoothed, source=path)
    assert path.read_bytes() == written.path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.nwb"]


def test_predictions_stand_beside_the_posterior(tmp_path, smoothed):
    posterior, data = smoothed
    rng = np.random.default_rng(2)
    mean, sd = rng.normal(size=(2, 8, 3)), rng.random((2, 8, 3))
    probabilities = rng.random((2, 2, 3))
    label = SimpleNamespace(
        has_classes=True, class_probabilities=lambda: probabilities[:, :, None]
    )
    predictions = {"x": (mean, sd), "c": label}
    signals = read_nwb(write(tmp_path / "p.nwb", posterior, data, predictions=predictions)).signals
    np.testing.assert_array_equal(signals["x_mean"].values, np.r_[mean[1, :5], mean[0]])
    np.testing.assert_array_equal(signals["x_sd"].values, np.r_[sd[1, :5], sd[0]])
    np.testing.assert_allclose(signals["c_probabilities"].times, [1.0, 5.5, 8.1])
    np.testing.assert_array_equal(
        signals["c_probabilities"].values, np.r_[probabilities[1, :1], probabilities[0]]
    )
    fit = ps.Fit(ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)}))
    ahead = fit.forecast(data, 8)["x"]
    signals = read_nwb(
        write(tmp_path / "q.nwb", posterior, data, predictions={"x": ahead})
    ).signals
    mean, variance = ahead.moments()
    np.testing.assert_allclose(signals["x_mean"].values, np.r_[mean[1, :5], mean[0]])
    np.testing.assert_allclose(signals["x_sd"].values ** 2, np.r_[variance[1, :5], variance[0]])


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, written, smoothed):
    posterior, data = smoothed
    pair = (np.zeros((2, 8, 2)), np.zeros((2, 8, 2)))
    path = tmp_path / "p.nwb"
    with pytest.raises(DataError, match="exists.*source="):
        write(written.path, posterior, data)
    with pytest.raises(DataError, match=r"trial 'a'.*overlap.*'b' has ended.*starts="):
        write(path, pair, ragged(starts=None))
    with pytest.raises(DataError, match="one session of one subject.*2 of them"):
        write(path, pair, ragged(subjects=["r1", "r2"]))
    with pytest.raises(ShapeError, match=r"starts: got \(1,\), wanted 2"):
        write(path, pair, data, starts=[0.0])
    with pytest.raises(ShapeError, match=r"posterior mean: got shape \(2, 6, 2\).*8 steps"):
        write(path, (pair[0][:, :6], pair[1]), data)
    with pytest.raises(DataError, match="unknown modality.*'y'"):
        write(path, posterior, data, predictions={"y": pair})
    with pytest.raises(ShapeError, match=r"x mean: got shape \(2, 8\)"):
        write(path, posterior, data, predictions={"x": (np.zeros((2, 8)), np.zeros((2, 8)))})
    with pytest.raises(FileNotFoundError):
        write(path, posterior, data, source=tmp_path / "absent.nwb")
    assert list(tmp_path.iterdir()) == []
    write(path, pair, ragged(starts=None), starts=[10.0, 0.0])
