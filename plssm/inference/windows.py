"""Windows cut at random from recordings of any length, for training by gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Window", "Windows"]


class Window(NamedTuple):
    """Windows of consecutive samples, side by side.

    Attributes:
        y: Samples [B, T, N], zero where missing.
        mask: Where a sample is observed [B, T, N], bool; None where all are.
        inputs: Inputs [B, T, K], or None.
    """

    y: Tensor
    mask: Tensor | None
    inputs: Tensor | None


class Windows:
    """Draws windows that lie inside one trial each and begin at an observed sample.

    All places in all trials are equally likely. A trial shorter than a window gives one window,
    padded with missing samples.

    Args:
        y: Samples [B, T, N], padded; zero where missing.
        mask: Where a sample is observed [B, T, N], bool.
        length: Steps of each trial [B].
        inputs: Inputs [B, T, K], or None.
        steps: Steps of a window.
        first: What must be known of the sample a window begins with [B, T, F], bool; None is the
            mask.
        least: Windows that are cut short by the end of a trial have more samples than this.
    """

    def __init__(
        self, y: Tensor, mask: Tensor, length: Tensor, inputs: Tensor | None, *, steps: int,
        first: Tensor | None = None, least: int = 0,
    ) -> None:  # fmt: skip
        inside = torch.arange(y.shape[1]) < length[:, None]
        self.y, self.mask = y[inside], mask[inside]
        self.inputs = None if inputs is None else inputs[inside]
        end = length.cumsum(0)
        self.end = torch.repeat_interleave(end, length)
        good = _best(self.mask if first is None else first[inside])
        row = torch.arange(len(self.y))
        earliest = torch.stack([part.nonzero()[:1].sum() for part in good.split(length.tolist())])
        earliest = torch.repeat_interleave(earliest + end - length, length)
        self.steps = min(steps, int((self.end - earliest).max()))
        useful = (row == earliest) & (self.end - row > least)
        whole = (row + self.steps <= self.end) | useful
        self.starts = (whole & good).nonzero()[:, 0]
        self.complete = bool(self.mask.all()) and self.steps <= int(length.min())
        self._ahead = torch.arange(self.steps)

    def draw_starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws the first samples of windows [B], as rows of all trials one after the other."""
        return self.starts[torch.randint(len(self.starts), (count,), generator=generator)]

    def draw(self, count: int, generator: torch.Generator) -> Window:
        """Draws windows.

        Args:
            count: Number of windows B.
            generator: Source of randomness.

        Returns:
            The windows.
        """
        start = self.draw_starts(count, generator)
        rows = start[:, None] + self._ahead
        if self.complete:
            return Window(self.y[rows], None, None if self.inputs is None else self.inputs[rows])
        end = self.end[start][:, None]
        inside = rows < end
        rows = torch.minimum(rows, end - 1)
        mask = self.mask[rows] & inside[..., None]
        y = torch.where(inside[..., None], self.y[rows], 0.0)
        inputs = None if self.inputs is None else self.inputs[rows]
        return Window(y, mask, inputs)


def _best(known: Tensor) -> Tensor:
    """Places that windows may begin at: known completely where there are any, or in part."""
    for good in (known.all(1), known.any(1)):
        if bool(good.any()):
            return good
    return torch.ones_like(known[:, 0])
