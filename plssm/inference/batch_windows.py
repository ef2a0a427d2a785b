"""Windows of latent steps cut at random from a batch, with all its modalities and clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from plssm.data import Batch, Modality
from plssm.errors import PlssmError

__all__ = ["BatchWindow", "BatchWindows"]


class BatchWindow(NamedTuple):
    """Windows as trials of their own.

    Attributes:
        batch: The windows: all modalities (own clocks count from the window's first step), inputs,
            lengths.
        weight: 1 at inner steps, 0 at context steps and beyond the end [B, T].
        row: Which trial a window is from [B].
        start: Its first step there, context included [B].
    """

    batch: Batch
    weight: Tensor
    row: Tensor
    start: Tensor


class BatchWindows:
    r"""Draws windows such that every step of every trial is equally often an inner one.

    .. math:: \sum_{r,t} f_{rt}
        = \mathbb E\Big[ c \sum_{i=1}^n \sum_{t \in \text{inner}_i} f_{r_i t} \Big], \qquad
        c = \frac{\sum_r (T_r + L - 1)}{n L}

    A trial r is drawn with probability proportional to T_r + L - 1, then the first of L inner
    steps from -L + 1 .. T_r - 1; what lies outside the trial is cut off. Where L is at least as
    long as every trial, whole trials are drawn instead, without replacement.

    Args:
        batch: The trials.
        steps: Inner steps L of a window.
        context: Steps before and after the inner ones, where the trial has them.
        after: Steps after them, where they are not as many as before.

    Raises:
        PlssmError: If there is no step in a window.

    Example:
        >>> import numpy as np, torch, plssm as ps
        >>> data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(2, 90, 3))})
        >>> windows = BatchWindows(data.batch(), steps=20, context=5)
        >>> drawn = windows.draw(4, torch.Generator().manual_seed(0))
        >>> len(drawn.batch), bool((drawn.weight.sum(1) <= 20).all())
        (4, True)
    """

    def __init__(
        self, batch: Batch, *, steps: int, context: int = 0, after: int | None = None
    ) -> None:
        if steps < 1 or context < 0 or (after is not None and after < 0):
            raise PlssmError(
                f"BatchWindows: steps is {steps} and context {context}, wanted steps of at least "
                "1 and a context of at least 0."
            )
        self.batch, self.steps, self.context = batch, int(steps), int(context)
        self.after = self.context if after is None else int(after)
        self.whole = steps >= batch.steps
        self._places = batch.length + self.steps - 1  # where a window may begin, by trial
        self._end = self._places.cumsum(0)
        self._clocks = {
            name: _ascending(m.clock, m.mask.any(-1), batch.steps)
            for name, m in batch.modalities.items()
            if m.clock is not None
        }
        self._dtype = next(iter(batch.modalities.values())).y.dtype

    def scale(self, count: int) -> float:
        """Returns c: a sum over all steps is c times the mean sum over inner steps of a draw.

        Args:
            count: Number of windows n in a draw.
        """
        if self.whole:
            return len(self.batch) / min(count, len(self.batch))
        return float(self._end[-1]) / (count * self.steps)

    def draw(self, count: int, generator: torch.Generator) -> BatchWindow:
        """Draws windows.

        Args:
            count: Number of windows; of whole trials there are no more than all.
            generator: Source of randomness.

        Returns:
            The windows.
        """
        if self.whole:
            trials = len(self.batch)
            row = torch.arange(trials)
            if count < trials:
                row = torch.randperm(trials, generator=generator)[:count]
            return self.cut(row, torch.zeros_like(row))
        place = torch.randint(int(self._end[-1]), (count,), generator=generator)
        row = torch.searchsorted(self._end, place, right=True)
        return self.cut(row, place - (self._end - self._places)[row] - self.steps + 1)

    def cut(self, row: Tensor, inner: Tensor) -> BatchWindow:
        """Cuts given windows.

        Args:
            row: Trial of each window [B].
            inner: Its first inner step [B]; -L + 1 up to the last step of the trial.

        Returns:
            The windows.
        """
        length = self.batch.length[row]
        start = (inner - self.context).clamp_min(0)
        stop = torch.minimum(inner + self.steps + self.after, length)
        steps = torch.arange(int((stop - start).max()))
        at = start[:, None] + steps
        inside = at < stop[:, None]
        first, last = inner[:, None], (inner + self.steps)[:, None]
        weight = (inside & (at >= first) & (at < last)).to(self._dtype)
        at = torch.minimum(at, length[:, None] - 1)
        rows = row[:, None]
        modalities = {
            name: self._own_clock(name, m, row, (start, stop))
            if m.clock is not None
            else _taken(m, rows, at.clamp_max(m.y.shape[1] - 1), inside & (at < m.y.shape[1]))
            for name, m in self.batch.modalities.items()
        }
        inputs = self.batch.inputs
        if inputs is not None:
            inputs = torch.where(inside[..., None], inputs[rows, at], 0.0)
        chosen = row.tolist()
        batch = replace(
            self.batch,
            modalities=modalities,
            inputs=inputs,
            length=stop - start,
            subject=[self.batch.subject[r] for r in chosen],
            trial=[self.batch.trial[r] for r in chosen],
        )
        return BatchWindow(batch, weight, row, start)

    def _own_clock(
        self, name: str, m: Modality, row: Tensor, between: tuple[Tensor, Tensor]
    ) -> Modality:
        """The samples of a modality with an own clock that belong to steps of the windows."""
        order, clock = self._clocks[name]
        earlier = row * (self.batch.steps + 1)
        first, end = (torch.searchsorted(clock, earlier + t)[:, None] for t in between)
        count = max(int((end - first).max()), 1)  # a sample at least, that is not observed
        at = first + torch.arange(count)
        inside = at < end
        at = at.clamp_max(len(clock) - 1)
        taken = _taken(m, row[:, None], order[at], inside)
        steps = clock[at] - (earlier + between[0])[:, None]
        return replace(taken, clock=torch.where(inside, steps, 0))


def _taken(m: Modality, rows: Tensor, at: Tensor, inside: Tensor) -> Modality:
    """Samples [B, n] of a modality, zero and not observed where they are not inside."""
    keep = inside[..., None]
    nuisance = m.nuisance
    return replace(
        m,
        y=torch.where(keep, m.y[rows, at], 0.0),
        mask=m.mask[rows, at] & keep,
        nuisance=None if nuisance is None else torch.where(keep, nuisance[rows, at], 0.0),
    )


def _ascending(clock: Tensor, seen: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Samples of all trials, one trial after the other, each ordered by latent step.

    Args:
        clock: Latent steps of the samples [B, n]; padding has step 0 and stands at the end.
        seen: Where a sample has an observed channel [B, n].
        steps: T. Padding is put at step T.

    Returns:
        Numbers of the samples in their trial [B n], and b (T + 1) + their step [B n], ascending.
    """
    padding = (clock < clock.cummax(1).values) & (clock == 0) & ~seen
    clock, order = torch.where(padding, steps, clock).sort(dim=1, stable=True)
    earlier = torch.arange(len(clock))[:, None] * (steps + 1)
    return order.flatten(), (earlier + clock).flatten()
