"""The best of several starts of EM: they compete by their evidence after a few iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.starts import StartPath

__all__ = [
    "ENOUGH",
    "LONG",
    "Contender",
    "best_start",
    "enough_trials",
    "searched_part",
    "too_short",
]

ROUNDS = 3
ENTRANTS = 8  # starts from each path
TRIAL = 5  # EM iterations of an entrant
FURTHER = 10  # more iterations of those that are kept
KEPT = 4  # contenders that go on
PARENTS = 2  # contenders from whose paths the next round starts
PROBES = 2  # entrants that tell whether a path is worth the others, where that is asked
PROMISE = 0.01  # nats per step by which they must then be better than the plain start
FEW = 50  # steps per latent dimension below which coordinates cannot be told
ENOUGH = 5000  # steps on which starts compete, about; of longer Gaussian data a part
LONG = 20_000  # steps of these beyond which fits that do not compete begin on a part, too


class Contender(Protocol):
    """A model on its way through EM."""

    evidence: float

    def advance(self, iterations: int) -> None:
        """EM iterations; the evidence stays -inf where they fail."""

    def smoothed(self) -> StartPath:
        """The posterior of its path."""


def best_start(
    paths: Sequence[StartPath],
    entrants: Callable[[StartPath, int], Iterable[Contender]],
    *,
    plain: Contender | None = None,
    steps: int = 0,
) -> Contender | None:
    """Successive halving of starts, several rounds of it.

    In each round some starts are made from every path, all get a few iterations of EM, and the
    best ones so far some more. The next round's starts come from the posterior paths of the best:
    EM cleans a path of noise well before it has moved kinks that are in wrong places, and on
    the clean path the right places can be seen.

    Args:
        paths: What the first round starts from.
        entrants: Makes at most so many contenders from a path.
        plain: A start without a search, where iterations are slow: paths of which the first
            entrants are hardly better get no more of them. Without any that are, it wins, and in a
            later round the best so far.
        steps: Number of steps that the starts are compared on.

    Returns:
        The one with the highest evidence; None where all failed.

    References:
        Jamieson & Talwalkar (2016), AISTATS, arXiv:1502.07943.
    """
    pool: list[Contender] = []
    veterans: set[int] = set()
    wanted = -np.inf
    if plain is not None:
        pool = _alive(_tried([plain]))
        wanted = plain.evidence + PROMISE * steps
    for last in [False] * (ROUNDS - 1) + [True]:
        fresh = [c for path in paths for c in _tried(entrants(path, ENTRANTS), wanted)]
        if plain is not None and not any(c.evidence > wanted for c in fresh):
            break
        pool = _alive([*pool, *fresh])[:KEPT]
        for contender in pool:
            if id(contender) not in veterans:
                contender.advance(FURTHER)
                veterans.add(id(contender))
        pool = _alive(pool)
        paths = [] if last else [c.smoothed() for c in pool[:PARENTS]]
    return pool[0] if pool else None


def _tried(entrants: Iterable[Contender], wanted: float = -np.inf) -> list[Contender]:
    """A few iterations for all, or only for the first where none of these gets so far."""
    tried: list[Contender] = []
    for several in (islice(waiting := iter(entrants), PROBES), waiting):
        for contender in several:
            contender.advance(TRIAL)
            tried.append(contender)
        if np.isfinite(wanted) and not any(c.evidence > wanted for c in tried):
            break
    return tried


def _alive(contenders: Iterable[Contender]) -> list[Contender]:
    """Those that have an evidence, best first."""
    return sorted((c for c in contenders if np.isfinite(c.evidence)), key=lambda c: -c.evidence)


def searched_part(batch: Batch, *, beyond: int = ENOUGH) -> BatchWindow | None:
    """The middle of long trials, of as many of them as make enough steps for a search.

    Args:
        batch: The trials.
        beyond: Steps of all trials together up to which they are not too long.

    Returns:
        The part as trials of its own; None where the data are not too long as they are.
    """
    steps = batch.length.clamp_max(ENOUGH)
    if int(batch.length.sum()) <= beyond:
        return None
    row = torch.from_numpy(enough_trials(batch.length.numpy()))
    windows = BatchWindows(batch, steps=ENOUGH, context=0)
    return windows.cut(row, (batch.length[row] - steps[row]) // 2)


def enough_trials(lengths: np.ndarray) -> np.ndarray:
    """Trials from everywhere that have enough steps together; the longest where these have not.

    Args:
        lengths: Steps of all trials.
    """
    steps = np.minimum(lengths, ENOUGH)
    count = min(max(round(ENOUGH / float(steps.mean())), 1), len(steps))
    row = np.unique(np.linspace(0, len(steps) - 1, count).round().astype(np.int64))
    if count == 1 or steps[row].sum() < ENOUGH / 2:
        row = np.sort(np.argsort(-lengths, kind="stable")[:count])
    return row


def too_short(batch: Batch, dim: int) -> bool:
    """Whether there are too few steps to tell coordinates of a state.

    Args:
        batch: The trials.
        dim: Dimensions of the state.
    """
    return int((batch.length - 1).sum()) < FEW * dim
