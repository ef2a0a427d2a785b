"""Batches: padded, filled, masked, on any device and dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.data import Batch, Dataset, Modality
from plssm.errors import DataError


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    lengths = (5, 3, 8)
    x = [rng.normal(size=(n, 2)) for n in lengths]
    x[2][4, 0] = np.nan
    return Dataset.from_arrays(
        {"x": x, "bold": [rng.normal(size=(2, 3)), None, rng.normal(size=(3, 3))]},
        dt=0.5,
        kinds={"bold": "bold"},
        times={"bold": [[0.0, 1.6], None, [0.0, 1.5, 3.2]]},
        nuisance={"bold": [rng.normal(size=(2, 1)), None, rng.normal(size=(3, 1))]},
        inputs=[rng.normal(size=(n, 1)) for n in lengths],
        trials=["a", "b", "c"],
        subjects=["s", "s", "t"],
    )


def test_a_batch_equals_the_trials(data):
    batch = data.batch()
    assert isinstance(batch, Batch) and isinstance(batch.modalities["x"], Modality)
    assert len(batch) == 3 and batch.steps == 8 and batch.dt == 0.5
    assert batch.length.dtype == torch.int64 and batch.length.tolist() == [5, 3, 8]
    assert batch.trial == ["a", "b", "c"] and batch.subject == ["s", "s", "t"]
    assert batch.time_mask.sum(dim=1).tolist() == [5, 3, 8]
    assert batch.time_mask.dtype == torch.bool
    for name in data.names:
        m, values = batch.modalities[name], data.values(name)
        assert m.y.shape == values.shape and m.mask.dtype == torch.bool
        assert torch.isfinite(m.y).all()
        np.testing.assert_array_equal(m.mask.numpy(), ~np.isnan(values))
        np.testing.assert_array_equal(m.y.numpy(), np.nan_to_num(values))
    assert batch.modalities["x"].clock is None and batch.modalities["x"].nuisance is None
    bold = batch.modalities["bold"]
    assert bold.clock.dtype == torch.int64
    assert bold.clock.tolist() == [[0, 3, 0], [0, 0, 0], [0, 3, 6]]
    assert torch.isfinite(bold.nuisance).all() and bold.nuisance.shape == (3, 3, 1)
    np.testing.assert_array_equal(batch.inputs.numpy(), np.nan_to_num(data.inputs))


def test_indices_dtype_and_device(data):
    batch = data.batch([2, 0], dtype=torch.float32, device="cpu")
    assert batch.trial == ["c", "a"] and batch.steps == 8
    assert batch.modalities["x"].y.dtype == torch.float32 and batch.inputs.dtype == torch.float32
    assert batch.modalities["bold"].nuisance.dtype == torch.float32
    assert data.batch(1).steps == 3 and data.batch("b").trial == ["b"]
    back = batch.to(dtype=torch.float64)
    assert back.modalities["x"].y.dtype == torch.float64
    assert back.modalities["bold"].clock.dtype == torch.int64
    assert batch.to(device="cpu").modalities["x"].y.dtype == torch.float32
    with pytest.raises(DataError, match="no such trial"):
        data.batch([5])
    with pytest.raises(DataError, match="needs a trial"):
        data.batch([])


def test_a_batch_shares_no_memory_with_the_dataset(data):
    before = data.values("x")
    data.batch().modalities["x"].y.fill_(9.0)
    np.testing.assert_array_equal(data.values("x"), before)


def test_hidden_batch_shows_exactly_the_hidden_entries(data):
    held = data.hold_out("x", channels=[1], times=(1.0, 2.0))
    visible, hidden = held.batch(), held.hidden_batch()
    full = data.batch()
    for name in data.names:
        seen, kept = visible.modalities[name].mask, hidden.modalities[name].mask
        assert not (seen & kept).any()
        torch.testing.assert_close(seen | kept, full.modalities[name].mask)
        both = visible.modalities[name].y + hidden.modalities[name].y
        torch.testing.assert_close(both, full.modalities[name].y)
    assert hidden.modalities["x"].mask.sum() == 2 + 1 + 2
    assert not hidden.modalities["bold"].mask.any()
    torch.testing.assert_close(hidden.inputs, full.inputs)
    torch.testing.assert_close(hidden.modalities["bold"].clock, full.modalities["bold"].clock)
    assert not data.hidden_batch().modalities["x"].mask.any()
