"""Windows for training: inside one trial, from observed samples, all places equally likely."""

from __future__ import annotations

import torch

from plssm.inference.windows import Windows


def recording(lengths=(30, 12, 3), channels=2):
    """Samples that tell where they come from: trial, and step."""
    steps = max(lengths)
    y = torch.zeros(len(lengths), steps, channels)
    for b, n in enumerate(lengths):
        y[b, :n, 0], y[b, :n, 1] = b, torch.arange(n)
    mask = (torch.arange(steps) < torch.tensor(lengths)[:, None])[..., None].expand(y.shape)
    return y, mask.clone(), torch.tensor(lengths)


def test_windows_are_consecutive_and_stay_in_a_trial():
    y, mask, length = recording()
    windows = Windows(y, mask, length, None, steps=6)
    drawn = windows.draw(500, torch.Generator().manual_seed(0))
    assert drawn.y.shape == (500, 6, 2)
    for one, seen in zip(drawn.y, drawn.mask.all(-1), strict=True):
        inside = one[seen]
        assert len(set(inside[:, 0].tolist())) == 1
        assert (inside[:, 1].diff() == 1).all()
        assert (one[~seen] == 0).all()
        assert len(inside) == (3 if inside[0, 0] == 2 else 6)
    starts = {(int(a), int(b)) for a, b in drawn.y[:, 0]}
    assert starts == {(0, i) for i in range(25)} | {(1, i) for i in range(7)} | {(2, 0)}


def test_complete_recordings_have_no_mask():
    y, mask, length = recording((9, 9))
    windows = Windows(y, mask, length, None, steps=4)
    assert windows.draw(3, torch.Generator().manual_seed(0)).mask is None


def test_windows_begin_at_observed_samples():
    y, mask, length = recording((20,))
    mask[0, ::2, 0] = False
    drawn = Windows(y, mask, length, None, steps=5).draw(50, torch.Generator().manual_seed(0))
    assert drawn.mask[:, 0].all()
    mask[0, :, 0] = False  # never complete: begin where something is seen
    drawn = Windows(y, mask, length, None, steps=5).draw(50, torch.Generator().manual_seed(0))
    assert drawn.mask[:, 0].any(-1).all()


def test_inputs_go_with_their_samples():
    y, mask, length = recording((15, 8))
    drawn = Windows(y, mask, length, 10 * y[..., 1:], steps=5).draw(
        20, torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(drawn.inputs[..., 0], 10 * drawn.y[..., 1])


def test_a_recording_shorter_than_a_window():
    y, mask, length = recording((1, 1))
    drawn = Windows(y, mask, length, None, steps=9).draw(4, torch.Generator().manual_seed(0))
    assert drawn.y.shape == (4, 1, 2)


def test_what_must_be_known_first_decides_where_windows_begin_and_how_long_they_are():
    """Beginnings are taken from `first` alone; no window is longer than what follows one."""
    y, mask, length = recording((30, 12, 3))
    first = torch.zeros(3, 30, 1, dtype=torch.bool)
    first[0, 22:], first[1, 4:12], first[2, 2] = True, True, True
    windows = Windows(y, mask, length, None, steps=12, first=first, least=1)
    drawn = windows.draw(300, torch.Generator().manual_seed(0))
    assert drawn.y.shape == (300, 8, 2)
    assert {(int(a), int(b)) for a, b in drawn.y[:, 0]} == {(0, 22), (1, 4)}
    windows = Windows(y, mask, length, None, steps=6, first=first)
    drawn = windows.draw(300, torch.Generator().manual_seed(0))
    wanted = {(0, 22), (0, 23), (0, 24), (1, 4), (1, 5), (1, 6), (2, 2)}
    assert {(int(a), int(b)) for a, b in drawn.y[:, 0]} == wanted
