"""Windows of a batch: all steps equally often, all modalities, clocks, masks and inputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from plssm.data import Dataset
from plssm.errors import PlssmError
from plssm.inference.batch_windows import BatchWindows

LENGTHS = (30, 12, 1, 7)


def recording(lengths=LENGTHS, seed=0):
    """Ragged trials with inputs, nuisance, missing entries, and a modality on an own clock."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, 2)) for n in lengths]
    for values in x:
        values[rng.random(values.shape) < 0.2] = np.nan
    times = [np.sort(rng.choice(4 * n, n // 2 + 1, replace=False)) / 4 for n in lengths]
    times = [np.minimum(t, n - 0.6) for t, n in zip(times, lengths)]
    times = [np.unique(t) for t in times]
    y = [rng.standard_normal((len(t), 3)) for t in times]
    return Dataset.from_arrays(
        {"x": x, "slow": y},
        times={"slow": times},
        nuisance={"slow": [rng.standard_normal((len(t), 2)) for t in times]},
        inputs=[rng.standard_normal((n, 2)) for n in lengths],
        subjects=["a", "b", "a", "b"][: len(lengths)],
    )


def every_window(windows):
    """All windows that may be drawn, each once."""
    rows, inner = [], []
    for r, length in enumerate(windows.batch.length.tolist()):
        starts = range(-windows.steps + 1, length)
        rows += [r] * len(starts)
        inner += list(starts)
    return windows.cut(torch.tensor(rows), torch.tensor(inner))


@pytest.mark.parametrize("steps", [1, 5, 12, 29])
@pytest.mark.parametrize("context", [0, 3])
def test_every_step_is_inner_in_equally_many_windows(steps, context):
    """Counted over all places a window may be drawn from, which are equally likely."""
    windows = BatchWindows(recording().batch(), steps=steps, context=context)
    drawn = every_window(windows)
    counts = torch.zeros(len(LENGTHS), max(LENGTHS))
    at = drawn.start[:, None] + torch.arange(drawn.weight.shape[1])
    for r, places, weight in zip(drawn.row, at, drawn.weight, strict=True):
        counts[r].index_add_(0, places.clamp_max(max(LENGTHS) - 1), weight.float())
    for r, length in enumerate(LENGTHS):
        assert (counts[r, :length] == steps).all()
        assert (counts[r, length:] == 0).all()
    assert len(drawn.row) == int(sum(n + steps - 1 for n in LENGTHS))
    share = drawn.weight.sum() / len(drawn.row) * windows.scale(1)
    assert float(share) == pytest.approx(sum(LENGTHS), rel=1e-12)


def test_draws_are_uniform_over_the_windows():
    windows = BatchWindows(recording().batch(), steps=4)
    drawn = windows.draw(40_000, torch.Generator().manual_seed(0))
    inner = drawn.start + torch.where(drawn.start > 0, 0, drawn.batch.length - 4)
    seen = Counter(zip(drawn.row.tolist(), inner.tolist()))
    places = sum(n + 3 for n in LENGTHS)
    by_row = torch.bincount(drawn.row, minlength=4) / 40_000
    wanted = torch.tensor([(n + 3) / places for n in LENGTHS])
    assert (by_row - wanted).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    assert len(seen) > places - 12  # short trials have windows that are cut on both sides


@pytest.mark.parametrize("count", [1, 6])
def test_sums_are_unbiased(count):
    """The mean of scaled sums over inner steps is the sum over all steps."""
    windows = BatchWindows(recording().batch(), steps=5, context=2)
    values = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)).double()
    total = sum(float(values[r, :n].sum()) for r, n in enumerate(LENGTHS))
    generator = torch.Generator().manual_seed(1)
    sums = []
    for _ in range(4000):
        drawn = windows.draw(count, generator)
        at = drawn.start[:, None] + torch.arange(drawn.weight.shape[1])
        there = values[drawn.row[:, None], at.clamp_max(29)]
        sums.append(windows.scale(count) * float((drawn.weight * there).sum()))
    error = np.std(sums) / len(sums) ** 0.5
    assert abs(np.mean(sums) - total) < 4 * error


@pytest.mark.parametrize("context", [0, 2])
def test_a_window_is_a_slice_of_the_dataset(context):
    """Values, masks, clocks, nuisance, inputs: as `Dataset.select(time=...)` gives them."""
    data = recording()
    windows = BatchWindows(data.batch(), steps=6, context=context)
    drawn = every_window(windows)
    assert not any(v.y.isnan().any() for v in drawn.batch.modalities.values())
    for i, (r, start, length) in enumerate(
        zip(drawn.row.tolist(), drawn.start.tolist(), drawn.batch.length.tolist(), strict=True)
    ):
        part = data.select(trials=[r]).select(time=(float(start), float(start + length)))
        want = part.batch()
        assert want.steps == length
        assert drawn.batch.subject[i] == want.subject[0]
        assert drawn.batch.trial[i] == want.trial[0]
        torch.testing.assert_close(drawn.batch.inputs[i, :length], want.inputs[0])
        assert (drawn.batch.inputs[i, length:] == 0).all()
        for name, m in want.modalities.items():
            got, samples = drawn.batch.modalities[name], m.y.shape[1]
            assert torch.equal(got.y[i, :samples], m.y[0])
            assert torch.equal(got.mask[i, :samples], m.mask[0])
            assert not got.mask[i, samples:].any()
            assert (got.y[i, samples:] == 0).all()
            assert (got.clock is None) == (m.clock is None)
            if m.clock is not None:
                assert torch.equal(got.clock[i, :samples], m.clock[0])
                assert torch.equal(got.nuisance[i, :samples], m.nuisance[0])
                assert (got.clock[i] >= 0).all() and (got.clock[i] < length).all()


def test_several_samples_in_a_step_keep_their_order():
    times = np.arange(24) / 4.0 + 0.01
    data = Dataset.from_arrays(
        {"x": np.zeros((6, 1)), "fast": np.arange(24.0)[:, None]},
        times={"fast": times},
        check_channels=False,
    )
    windows = BatchWindows(data.batch(), steps=2)
    drawn = windows.cut(torch.tensor([0]), torch.tensor([3]))
    fast = drawn.batch.modalities["fast"]
    want = data.select(time=(3.0, 5.0)).batch().modalities["fast"]
    assert torch.equal(fast.y, want.y)
    assert torch.equal(fast.clock, want.clock)


def test_whole_trials_come_without_replacement():
    data = recording()
    windows = BatchWindows(data.batch(), steps=30, context=4)
    every = windows.draw(9, torch.Generator().manual_seed(0))
    assert every.row.tolist() == [0, 1, 2, 3]
    assert every.weight.sum(1).tolist() == list(LENGTHS)
    assert windows.scale(9) == 1.0
    for name, m in data.batch().modalities.items():
        assert torch.equal(every.batch.modalities[name].y, m.y)
        assert torch.equal(every.batch.modalities[name].mask, m.mask)
    seen = Counter()
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        some = windows.draw(2, generator)
        assert len(set(some.row.tolist())) == 2
        seen.update(some.row.tolist())
    assert windows.scale(2) == 2.0
    assert min(seen.values()) > 140


def test_trials_of_one_step():
    data = recording((1, 1))
    drawn = BatchWindows(data.batch(), steps=1).draw(2, torch.Generator().manual_seed(0))
    assert drawn.batch.steps == 1
    assert drawn.weight.tolist() == [[1.0], [1.0]]


def test_precision_is_kept():
    windows = BatchWindows(recording().batch().to(dtype=torch.float32), steps=5)
    drawn = windows.draw(3, torch.Generator().manual_seed(0))
    assert drawn.weight.dtype == torch.float32
    assert drawn.batch.modalities["slow"].nuisance.dtype == torch.float32


def test_windows_without_steps_are_refused():
    with pytest.raises(PlssmError, match="steps"):
        BatchWindows(recording().batch(), steps=0)
