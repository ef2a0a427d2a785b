"""Dictionaries and npz files: what goes in comes out, and a broken file is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest

from plssm.data import Dataset, Recording, Signal, archive
from plssm.errors import DataError


def make(seed=0):
    rng = np.random.default_rng(seed)
    lengths = (6, 9, 4)
    x = [rng.normal(size=(n, 2)) for n in lengths]
    x[1][3] = np.nan
    return Dataset.from_arrays(
        {"x": x, "n": [rng.poisson(2.0, size=(n, 3)) for n in lengths],
         "bold": [rng.normal(size=(2, 2)), None, rng.normal(size=(1, 2))]},
        dt=0.25,
        kinds={"n": "count", "bold": "bold"},
        times={"bold": [[0.0, 0.9], None, [0.13]]},
        nuisance={"bold": [rng.normal(size=(2, 3)), None, rng.normal(size=(1, 3))]},
        inputs=[rng.normal(size=(n, 1)) for n in lengths],
        latent=[rng.normal(size=(n, 5)) for n in lengths],
        trials=["a", "b", "c"],
        subjects=["s", "s", "t"],
        sessions=["1", "2", "1"],
        starts=[0.0, 3.0, 7.5],
    ).hold_out("n", channels=[2])  # fmt: skip


def assert_same(a: Dataset, b: Dataset):
    assert (a.dt, a.kinds, a.trial_names) == (b.dt, b.kinds, b.trial_names)
    assert (a.subjects, a.sessions) == (b.subjects, b.sessions)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    for one, two in zip(a, b):
        assert one.start == two.start
        for group in ("values", "clock", "times", "nuisance", "hidden"):
            left, right = getattr(one, group), getattr(two, group)
            assert list(left) == list(right)
            for name in left:
                assert (left[name] is None) == (right[name] is None)
                if left[name] is not None:
                    np.testing.assert_allclose(left[name], right[name], atol=1e-12)
        for name in ("inputs", "latent"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_dictionary_gives_the_dataset_back():
    data = make()
    flat = data.to_dict()
    assert all(isinstance(v, np.ndarray) and v.dtype != object for v in flat.values())
    assert_same(Dataset.from_dict(flat), data)
    for part in data.split("time", (0.5, 0.5)):
        assert_same(Dataset.from_dict(part.to_dict()), part)


def test_a_file_gives_the_dataset_back_without_pickles(tmp_path):
    data = make()
    path = tmp_path / "new folder" / "data.npz"
    data.save(path)
    assert_same(Dataset.load(path), data)
    with np.load(path, allow_pickle=False) as file:
        assert_same(Dataset.from_dict(file), data)
    data.select(trials="a").save(path)
    assert Dataset.load(path).trial_names == ["a"]
    assert os.listdir(path.parent) == ["data.npz"]


def test_slice_timed_recordings_survive_a_file(tmp_path):
    rng = np.random.default_rng(0)
    signal = Signal(
        rng.normal(size=(5, 3)), np.arange(5) * 2.0, kind="bold",
        channel_delay_seconds=[0.0, 0.7, 1.4],
    )  # fmt: skip
    data = Recording({"bold": signal}).to_dataset(dt=0.5)
    data.save(tmp_path / "r.npz")
    again = Dataset.load(tmp_path / "r.npz")
    np.testing.assert_array_equal(again[0].clock["bold"], data[0].clock["bold"])
    np.testing.assert_array_equal(again.values("bold"), data.values("bold"))


def test_nested_flat_and_bare_keys():
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    expected = Dataset.from_arrays({"x": x}, 0.5, kinds={"x": "bold"})
    for mapping in (
        {"arrays": {"x": x}, "dt": 0.5, "kinds": {"x": "bold"}, "inputs": None, "times": None},
        {"arrays/x": x, "dt": np.array(0.5), "kinds/x": np.array("bold")},
        {"x": x, "dt": 0.5, "kinds": {"x": "bold"}},
    ):
        data = Dataset.from_dict(mapping)
        assert data.dt == 0.5 and data.kinds == expected.kinds
        np.testing.assert_array_equal(data.values("x"), x)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"dt": 1.0}, "no modality"),
        ({"x": np.arange(3.0), "input": np.arange(3.0)}, "'input'.*write 'inputs'"),
        ({"array/x": np.arange(3.0)}, "understood"),
    ],
)
def test_keys_that_cannot_be_understood(mapping, message):
    with pytest.raises(DataError, match=message):
        Dataset.from_dict(mapping)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    make().save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="data.npz.*truncated"):
            Dataset.load(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="data.npz"):
        Dataset.load(path)
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        Dataset.load(path)
    np.save(tmp_path / "one.npy", np.arange(3.0))
    with pytest.raises(DataError, match="one.npy"):
        Dataset.load(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        Dataset.load(tmp_path / "absent.npz")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    make().save(path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(archive.np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        make(1).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["data.npz"]
