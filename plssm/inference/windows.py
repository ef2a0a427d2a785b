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
    """

    def __init__(
        self, y: Tensor, mask: Tensor, length: Tensor, inputs: Tensor | None, *, steps: int
    ) -> None:
        inside = torch.arange(y.shape[1]) < length[:, None]
        self.y, self.mask = y[inside], mask[inside]
        self.inputs = None if inputs is None else inputs[inside]
        end = length.cumsum(0)
        self.end = torch.repeat_interleave(end, length)
        first = torch.repeat_interleave(end - length, length)
        row = torch.arange(len(self.y))
        self.steps = min(steps, int(length.max()))
        whole = (row + self.steps <= self.end) | (row == first)
        self.starts = self._best(whole)
        self.complete = bool(self.mask.all()) and self.steps <= int(length.min())
        self._ahead = torch.arange(self.steps)

    def _best(self, whole: Tensor) -> Tensor:
        """Places whose first sample is observed: completely where there are any, or in part."""
        for seen in (self.mask.all(1), self.mask.any(1), whole):
            places = (whole & seen).nonzero()[:, 0]
            if len(places):
                return places
        return whole.nonzero()[:, 0]

    def draw(self, count: int, generator: torch.Generator) -> Window:
        """Draws windows.

        Args:
            count: Number of windows B.
            generator: Source of randomness.

        Returns:
            The windows.
        """
        start = self.starts[torch.randint(len(self.starts), (count,), generator=generator)]
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
