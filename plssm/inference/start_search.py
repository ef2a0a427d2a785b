"""The best of several starts of EM: they compete by their evidence after a few iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.starts import StartPath

__all__ = ["Contender", "best_start", "searched_part", "too_short"]

ROUNDS = 3
ENTRANTS = 8  # starts from each path
TRIAL = 5  # EM iterations of an entrant
FURTHER = 10  # more iterations of those that are kept
KEPT = 4  # contenders that go on
PARENTS = 2  # contenders from whose paths the next round starts
FEW = 50  # steps per latent dimension below which coordinates cannot be told
ENOUGH = 5000  # steps on which starts compete, about; of longer data a part


class Contender(Protocol):
    """A model on its way through EM."""

    evidence: float

    def advance(self, iterations: int) -> None:
        """EM iterations; the evidence stays -inf where they fail."""

    def smoothed(self) -> StartPath:
        """The posterior of its path."""


def best_start(
    paths: Sequence[StartPath],
    entrants: Callable[[StartPath, int], Sequence[Contender]],
) -> Contender | None:
    """Successive halving of starts, several rounds of it.

    In each round some starts are made from every path, all get a few iterations of EM, and the
    best ones so far some more. The next round's starts come from the posterior paths of the best:
    EM cleans a path of noise well before it has moved kinks that are in wrong places, and on
    the clean path the right places can be seen.

    Args:
        paths: What the first round starts from.
        entrants: Makes at most so many contenders from a path.

    Returns:
        The one with the highest evidence; None where all failed.

    References:
        Jamieson & Talwalkar (2016), AISTATS, arXiv:1502.07943.
    """
    pool: list[Contender] = []
    veterans: set[int] = set()
    for last in [False] * (ROUNDS - 1) + [True]:
        fresh = [c for path in paths for c in entrants(path, ENTRANTS)]
        for contender in fresh:
            contender.advance(TRIAL)
        alive = [c for c in [*pool, *fresh] if np.isfinite(c.evidence)]
        pool = sorted(alive, key=lambda c: -c.evidence)[:KEPT]
        for contender in pool:
            if id(contender) not in veterans:
                contender.advance(FURTHER)
                veterans.add(id(contender))
        pool.sort(key=lambda c: -c.evidence)
        paths = [] if last else [c.smoothed() for c in pool[:PARENTS]]
    return pool[0] if pool else None


def searched_part(batch: Batch) -> BatchWindow | None:
    """The middle of long trials, of as many of them as make enough steps for a search.

    Args:
        batch: The trials.

    Returns:
        The part as trials of its own; None where the data are not too long as they are.
    """
    steps = batch.length.clamp_max(ENOUGH)
    if int(batch.length.sum()) <= ENOUGH:
        return None
    count = max(round(ENOUGH / float(steps.double().mean())), 1)
    row = torch.linspace(0, len(batch) - 1, min(count, len(batch))).round().long()
    if len(row) == 1:
        row = batch.length.argmax()[None]
    windows = BatchWindows(batch, steps=ENOUGH, context=0)
    return windows.cut(row, (batch.length[row] - steps[row]) // 2)


def too_short(batch: Batch, dim: int) -> bool:
    """Whether there are too few steps to tell coordinates of a state.

    Args:
        batch: The trials.
        dim: Dimensions of the state.
    """
    return int((batch.length - 1).sum()) < FEW * dim
