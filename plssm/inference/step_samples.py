"""Samples of a modality arranged by the latent step they belong to."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Modality

__all__ = ["on_grid", "one_step"]


def on_grid(m: Modality, steps: int) -> Modality:
    """Samples arranged by latent step, at most k each: arrays ``[B, T, k, ...]``."""
    trials, samples, channels = m.y.shape
    clock = torch.arange(samples).expand(trials, -1) if m.clock is None else m.clock
    seen = m.mask.any(-1)
    rank = torch.zeros_like(clock)
    if m.clock is not None:
        for b in range(trials):
            order = clock[b].argsort(stable=True)
            order = order[seen[b][order]]
            steps_of = clock[b][order]
            rank[b, order] = torch.arange(len(order)) - torch.searchsorted(steps_of, steps_of)
    deepest = int(torch.where(seen, rank, 0).max()) + 1 if seen.any() else 1
    b, i = seen.nonzero(as_tuple=True)
    place = (b, clock[b, i], rank[b, i])

    def arrange(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        out = values.new_zeros((trials, steps, deepest, values.shape[-1]))
        out[place] = values[b, i]
        return out

    return Modality(arrange(m.y), arrange(m.mask), None, arrange(m.nuisance), m.dt)


def one_step(grid: Modality, t: int) -> Modality:
    """The samples of one latent step, all on a clock of length one."""
    y = grid.y[:, t]
    nuisance = None if grid.nuisance is None else grid.nuisance[:, t]
    clock = torch.zeros(y.shape[:2], dtype=torch.int64)
    return Modality(y, grid.mask[:, t], clock, nuisance, grid.dt)
