"""Loading recordings by name: catalogue, refusals, and what each one becomes."""

from __future__ import annotations

import dataclasses
import re
import runpy
from importlib.util import find_spec

import numpy as np
import pytest

import plssm as ps
from plssm.data import load_recording, load_truth, recordings
from plssm.data._sources import SOURCES
from plssm.data.catalogue import is_available
from plssm.errors import DataError

FOLDER = [s.name for s in recordings() if s.place == "folder"]
NITIME = [s.name for s in recordings() if s.place == "nitime"]
SHIPPED = [s.name for s in recordings() if s.place == "shipped"]

# modality: kind, channels; trials; inputs
EXPECTED = {
    "fmri_nback": ({"bold": ("bold", 20), "stage": ("label", 1)}, 65, 5),
    "fmri_nback_subject": ({"bold": ("bold", 20)}, 1, 5),
    "fmri_localizer": ({"bold": ("bold", 6)}, 1, 10),
    "linear_track": ({"spikes": ("count", 31), "position": ("continuous", 2)}, 1, 0),
    "hippocampus_spikes_lfp": (
        {
            "spikes": ("count", 77),
            "lfp": ("continuous", 128),
            "position": ("continuous", 1),
            "speed": ("continuous", 1),
        },
        1,
        0,
    ),
    "m1_reaching": (
        {"spikes": ("count", 71), "velocity": ("continuous", 2), "target": ("label", 1)},
        2,
        0,
    ),
    "acc_delayed_alternation": ({"rates": ("continuous", 30), "side": ("label", 1)}, 14, 0),
    "eeg": ({"eeg": ("continuous", 64)}, 1, 0),
    "ecg": ({"ecg": ("continuous", 5)}, 1, 0),
    "membrane_potential": ({"potential": ("continuous", 6)}, 1, 0),
    "nitime_bold": ({"bold": ("bold", 28)}, 1, 0),
    "nitime_event_related": ({"bold": ("bold", 1)}, 1, 6),
    "nitime_grasshopper": ({"spikes": ("count", 1)}, 2, 1),
    "simulated_linear": ({"x": ("continuous", 6)}, 12, 1),
    "simulated_plrnn": ({"x": ("continuous", 10)}, 20, 0),
    "simulated_lorenz63": ({"x": ("continuous", 3)}, 1, 0),
}


def as_dataset(name):
    loaded, clock = load_recording(name), SOURCES[name].clock
    assert isinstance(loaded, ps.Recording) == bool(clock), "a clock is for recordings only"
    return loaded.to_dataset(**clock) if isinstance(loaded, ps.Recording) else loaded


def check(name):
    data = as_dataset(name)
    modalities, trials, inputs = EXPECTED[name]
    assert {m: (data.kinds[m], data.channels[m]) for m in data.names} == modalities
    assert len(data) == trials
    assert data.n_inputs == inputs
    return data


def test_every_recording_is_checked_here():
    assert list(EXPECTED) == list(SOURCES)


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_recording_has_a_datasheet(root, name):
    index = (root / "datasets" / "README.md").read_text(encoding="utf-8")
    assert name in index
    source = SOURCES[name]
    if source.place != "folder":
        return
    sheet = (root / "datasets" / f"{name}.md").read_text(encoding="utf-8")
    assert source.sha256 in sheet
    assert len(source.sha256) == 64
    assert (root / "datasets" / "convert" / f"{name}.py").is_file()
    for array, shape in source.arrays.items():
        assert array in sheet or array in {"label_names", "input_names"}
        if shape:
            assert "×".join(map(str, shape)) in sheet


@pytest.mark.parametrize("name", FOLDER)
def test_folder_recordings_load(recordings_folder, name):
    check(name)


@pytest.mark.parametrize("name", NITIME)
def test_nitime_recordings_load(name):
    if find_spec("nitime") is None:
        pytest.skip("nitime is not installed (extra 'data')")
    check(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_simulated_sets_load_with_their_truth(name):
    data = check(name)
    latent = data.latent
    assert latent.shape[:2] == data.values("x").shape[:2]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_are_what_the_script_makes(root, tmp_path, name):
    script = runpy.run_path(str(root / "datasets" / "simulated" / "make.py"))
    made = script[name.removeprefix("simulated_")]()
    stored = root / "plssm" / "data" / "simulated" / f"{name}.npz"
    with np.load(stored, allow_pickle=False) as shipped:
        assert set(shipped.files) == set(made)
        for key in shipped.files:
            if shipped[key].dtype.kind == "f":
                np.testing.assert_allclose(made[key], shipped[key], rtol=1e-6, atol=1e-6)
            else:
                np.testing.assert_array_equal(made[key], shipped[key])


def test_truth_generates_the_data():
    """Noise of the simulated PLRNN: residuals at the true path have the stated variances."""
    data, truth = load_recording("simulated_plrnn"), load_truth("simulated_plrnn")
    z, x = data.latent, data.values("x")
    residual = x - (z @ truth["B"].T + truth["bias"])
    np.testing.assert_allclose(np.nanvar(residual, axis=(0, 1)), truth["noise"], rtol=0.15)
    step = z * truth["A"] + np.maximum(z, 0.0) @ truth["W"].T + truth["h"]
    moved = z[:, 1:] - step[:, :-1]
    np.testing.assert_allclose(moved.var(axis=(0, 1)), truth["process_noise"], rtol=0.15)
    with pytest.raises(DataError, match="only simulated sets.*'eeg'"):
        load_truth("eeg")


def test_a_recording_is_there_when_its_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("PLSSM_DATA", raising=False)
    here = {s.name for s in recordings() if is_available(s)}
    assert set(SHIPPED) <= here and not here & set(FOLDER)
    assert (NITIME[0] in here) == (find_spec("nitime") is not None)
    (tmp_path / "eeg").mkdir()
    (tmp_path / "eeg" / "eeg.npz").write_bytes(b"")
    assert is_available(SOURCES["eeg"], folder=tmp_path)
    monkeypatch.setenv("PLSSM_DATA", str(tmp_path))
    assert [n for n in FOLDER if is_available(SOURCES[n])] == ["eeg"]


# ---- refusals ------------------------------------------------------------------------------


def test_unknown_name():
    with pytest.raises(DataError, match="no recording has this name.*'lineartrack'.*linear_track"):
        load_recording("lineartrack")


@pytest.mark.parametrize("name", FOLDER)
def test_absent_recording_says_where_to_get_it(monkeypatch, tmp_path, name):
    source = SOURCES[name]
    monkeypatch.delenv("PLSSM_DATA", raising=False)
    wanted = [source.origin, source.licence, f"datasets/convert/{name}.py", "PLSSM_DATA"]
    with pytest.raises(DataError) as unset:
        load_recording(name)
    with pytest.raises(DataError) as empty:
        load_recording(name, folder=tmp_path)
    for text in (str(unset.value), str(empty.value)):
        assert all(part in text for part in wanted)
    assert str(tmp_path) in str(empty.value)


def store(folder, name, **changes):
    """An npz with the right shapes (zeros), or with some arrays changed or left out."""
    arrays = {k: np.zeros(shape) for k, shape in SOURCES[name].arrays.items()}
    arrays["potential_embedded"] = np.random.default_rng(0).normal(size=(11703, 6))
    arrays |= changes
    path = folder / name / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_other_bytes_need_a_word(tmp_path):
    store(tmp_path, "membrane_potential")
    with pytest.raises(DataError, match="checksum differs.*verify=False"):
        load_recording("membrane_potential", folder=tmp_path)
    data = load_recording("membrane_potential", folder=tmp_path, verify=False)
    assert data.values("potential").shape == (1, 11703, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"potential_embedded": None, "trace": np.zeros(3)}, "lacks an array.*potential_embedded"),
        ({"potential_embedded": np.zeros((5, 6))}, r"another shape.*\(5, 6\).*\(11703, 6\)"),
        ({"potential_embedded": np.array([{}], dtype=object)}, "pickled"),
    ],
)
def test_wrong_contents(tmp_path, changes, message):
    store(tmp_path, "membrane_potential", **changes)
    with pytest.raises(DataError, match=message):
        load_recording("membrane_potential", folder=tmp_path, verify=False)


def test_truncated_file(tmp_path):
    path = store(tmp_path, "membrane_potential")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="truncated"):
        load_recording("membrane_potential", folder=tmp_path, verify=False)


# ---- what the numbers mean -----------------------------------------------------------------


def test_nback_labels_repeat_in_every_run(recordings_folder):
    data = load_recording("fmri_nback")
    stage = data.values("stage").reshape(13, 5, 72)
    assert (stage == stage[:, :1]).all()
    assert data.dt == 3.0
    assert (data.subjects[7], data.sessions[7], data.trial_names[7]) == (
        "1",
        "3",
        "subject 1 run 3",
    )
    assert set(np.unique(stage)) == {0, 1, 2, 3, 4}
    assert data.n_inputs == 5 and data.without_inputs().n_inputs == 0
    one = data.select(subjects="4")
    assert len(one) == 5
    assert sum(len(test) for _, test in one.folds(by="session")) == 5


def test_nback_subject_has_motion_as_nuisance(recordings_folder):
    recording = load_recording("fmri_nback_subject")
    data = recording.to_dataset(dt=3.0)
    assert data.nuisance("bold").shape == (1, 360, 6)
    assert data.lengths.tolist() == [360]
    assert data.trials[0].clock["bold"] is None
    assert len(recording.signals["bold"].names) == 20


def test_localizer_counts_every_event_once(recordings_folder):
    recording = load_recording("fmri_localizer")
    for dt in (2.4, 0.3):
        inputs = recording.to_dataset(dt=dt).inputs
        assert inputs.sum() == 80
    order = recording.meta["conditions"]
    assert inputs[0, :, order.index("clicGaudio")].sum() == 5


def test_linear_track_counts_spikes_and_drops_lost_positions(recordings_folder):
    recording = load_recording("linear_track")
    data = as_dataset("linear_track")
    counts = data.values("spikes")[0]
    stop = recording.signals["spikes"].support.max()
    assert np.nansum(counts) == 28829
    assert stop > max(train.max() for train in recording.signals["spikes"].times)
    seconds = recording.signals["position"].times
    missing = np.isnan(recording.signals["position"].values).all(axis=1)
    assert missing[(seconds > 5390)].all()
    assert missing.sum() == 59833 + 1550
    assert (np.diff(seconds) > 0).all()


def test_the_rat_runs_in_the_stated_stretch(recordings_folder):
    recording = load_recording("linear_track")
    running = dataclasses.replace(recording, trials=[recording.meta["running_seconds"]])
    data = running.to_dataset(0.02, resample={"position": "last"})
    assert data.lengths.tolist() == [45150] and data[0].start == 4397.0
    spikes = np.concatenate(recording.signals["spikes"].times)
    assert np.isnan(data.values("spikes")[0]).any(axis=1).nonzero()[0].tolist() == [0]
    inside = ((spikes >= 4397.02) & (spikes < 5300.0)).sum()  # on from 4397.0023 s
    assert np.nansum(data.values("spikes")) == inside
    x = data.values("position")[0]
    lost = np.isnan(x[:, 0])
    assert lost[:1290].all() and lost[1320:].mean() < 0.01  # seen from 4423 s on
    assert SOURCES["linear_track"].seconds == recording.meta["running_seconds"]


def test_m1_parts_are_one_trial_each_and_lose_nothing(recordings_folder):
    data = load_recording("m1_reaching")
    train, test = (data.select(sessions=part) for part in ("train", "test"))
    assert train.lengths.tolist() == [1200] and test.lengths.tolist() == [1818]
    with np.load(recordings_folder / "m1_reaching" / "m1_reaching.npz") as stored:
        for part, one in (("train", train), ("test", test)):
            np.testing.assert_array_equal(one.values("spikes")[0], stored[f"counts_{part}"])
            np.testing.assert_array_equal(one.values("velocity")[0], stored[f"velocity_{part}"])
            np.testing.assert_array_equal(one.values("target")[0, :, 0], stored[f"target_{part}"])
        assert set(stored["target_train"]) == {0, 1, 2, 3}
    reaches = np.flatnonzero(np.diff(train.values("target")[0, :, 0])).size + 1
    assert reaches == 37


def test_acc_side_is_one_label_in_the_last_bin(recordings_folder):
    data = load_recording("acc_delayed_alternation")
    for trial in data.trials:
        assert trial.steps("side").tolist() == [27]
    assert set(data.values("side").ravel()) == {0.0, 1.0}


def test_nitime_regions_are_not_their_tissue_averages():
    if find_spec("nitime") is None:
        pytest.skip("nitime is not installed (extra 'data')")
    recording = load_recording("nitime_bold")
    bold = recording.signals["bold"]
    assert bold.values.shape == (250, 28)
    assert bold.names[0] == "LCau"
    assert bold.times[1] == pytest.approx(1.89)
    tissue = np.array([recording.meta["tissue"][k] for k in ("WM", "Vent", "Brain")]).T
    together = np.corrcoef(np.hstack([bold.values, tissue]).T)
    assert np.abs(together[:28, 28:]).max() < 0.15


# ---- conversion scripts, on small originals in the layout they describe -----------------------


def convert(root, tmp_path, name, *sources):
    import subprocess
    import sys

    script = root / "datasets" / "convert" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, sources), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / name / f"{name}.npz", allow_pickle=False) as made:
        return dict(made)


def cells(items):
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def test_convert_linear_track(root, tmp_path):
    from scipy.io import savemat

    trains = [np.array([1.0, 2.5]), np.array([0.5, 0.7, 9.0])]
    tetrodes = cells(
        [cells([{"time": trains[0][:, None]}, np.zeros((0, 0))]), np.zeros((0, 0)),
         cells([{"time": trains[1][:, None]}, np.zeros((0, 0))])]
    )  # fmt: skip
    savemat(tmp_path / "spikes.mat", {"spikes": tetrodes})
    rows = np.array([(30000, 10, 20, 0, 0), (30500, 11, 21, 0, 0)], dtype="<u4,<u2,<u2,<u2,<u2")
    header = b"<Start settings>\nclockrate: 30000\n<End settings>\n"
    (tmp_path / "track").write_bytes(header + rows.tobytes())
    made = convert(root, tmp_path, "linear_track", tmp_path / "spikes.mat", tmp_path / "track")
    np.testing.assert_array_equal(made["spike_times_seconds"], np.concatenate(trains))
    np.testing.assert_array_equal(made["spike_unit"], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(made["position_times_seconds"], [1.0, 30500 / 30000])
    np.testing.assert_array_equal(made["position_pixels"], [[10, 20], [11, 21]])


def test_convert_matlab_cells(root, tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    rates = rng.random((3, 4, 5))  # unit, trial, bin
    savemat(
        tmp_path / "acc.mat",
        {"SCMall": cells(list(rates)), "TrType": [2, 3, 2, 3], "meR": rates.mean((1, 2))},
    )
    made = convert(root, tmp_path, "acc_delayed_alternation", tmp_path / "acc.mat")
    np.testing.assert_allclose(made["rates_hz"], rates.transpose(1, 2, 0), rtol=1e-6)

    bold, stage = rng.random((2, 3, 4, 6)), rng.integers(0, 5, (2, 3, 6))
    subjects = cells(
        [
            {
                "X": cells(list(bold[s])),
                "C_": cells([np.eye(5)[:, run] for run in stage[s]]),
                "Inp": cells(list(np.zeros((3, 5, 6)))),
            }
            for s in range(2)
        ]
    )
    savemat(tmp_path / "nback.mat", {"Data": subjects})
    made = convert(root, tmp_path, "fmri_nback", tmp_path / "nback.mat")
    np.testing.assert_allclose(made["bold"], bold.transpose(0, 1, 3, 2), rtol=1e-6)
    np.testing.assert_array_equal(made["labels"], stage)


def test_conversion_scripts_download_nothing(root):
    for script in (root / "datasets" / "convert").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"urllib|requests|pooch|http", text), script
