"""Which iteration of EM has the best free runs, beside the smoothed path of the data."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import LatentDynamics
from plssm.inference.free_runs import PENALTY, FreeRuns
from plssm.inference.latent_signal import LatentSignal
from plssm.inference.teacher_encoder import Belief

__all__ = ["FREE_SCORE", "KEPT", "SELECT", "FreeSelection", "beside_path"]

SELECT: Final = ("evidence", "free_runs")
FREE_SCORE, KEPT = "free_score", "kept"  # columns of the history
CHECKS = 25  # how often free runs are compared in a stage, at least (where it is as long)


def beside_path(path: Tensor, batch: Batch, *, driven: bool) -> FreeRuns:
    """Free runs that are compared with paths of the state.

    Args:
        path: States ``[B, T, M]``.
        batch: The trials.
        driven: Whether the map has inputs.
    """
    belief = Belief(path, torch.ones_like(path), batch.time_mask)
    return FreeRuns(LatentSignal(belief, path.shape[-1]), batch, inputs=driven)


class Rank(NamedTuple):
    """What states are compared by; the largest is the best.

    Attributes:
        moving: Whether no run comes to rest where the path does not.
        stage: Number of the stage.
        closeness: The score with its sign turned.
    """

    moving: bool
    stage: int
    closeness: float


@final
class FreeSelection:
    r"""Compares noise-free runs of a map with a smoothed path of the data, and keeps the best.

    .. math:: s = D_{stsp} + D_H \; (+ 3 \text{ where runs come to rest and the path does not})

    The evidence rests on what a map does near the data. What it does elsewhere is left open, and
    from one iteration to the next free runs can find a fixed point or a way out there, and lose it
    again (see :class:`~plssm.inference.free_runs.FreeRuns` for how they are run and compared). The
    smoothed path is what they are compared with because it has little noise, and exists for
    observations of any kind; up to three of its principal components are compared. The smaller the
    process noise, the more that path is the map's own: a later stage is preferred to one before,
    whatever the scores, unless all its runs come to rest or leave.

    Args:
        batch: The trials.
        driven: Whether the map has inputs.

    Attributes:
        state: What was kept with the best runs so far; None where all of them left.
        row: The row of the history that it belongs to.
        score: Its score; +inf without one.
    """

    def __init__(self, batch: Batch, *, driven: bool) -> None:
        self.batch, self.driven = batch, driven
        self.state: dict | None = None
        self.row: dict[str, Any] | None = None
        self.score, self._rank = math.inf, None

    @staticmethod
    def is_due(iteration: int, iterations: int) -> bool:
        """Whether free runs are compared at an iteration.

        Args:
            iteration: 0 to `iterations`.
            iterations: Length of the stage.
        """
        return iteration % max(iterations // CHECKS, 1) == 0

    @torch.no_grad()
    def compare(self, dynamics: LatentDynamics, path: Tensor) -> tuple[float, bool]:
        """How close free runs are to a path.

        Args:
            dynamics: The map.
            path: Means of the smoothed states ``[B, T, M]``.

        Returns:
            The score, +inf for runs that leave and where there is nothing to compare, and whether
            the runs move on.
        """
        found = beside_path(path, self.batch, driven=self.driven).measures(dynamics, lambda z: z)
        score = float(found["score"])
        if not math.isfinite(score):
            return math.inf, False
        return score, score < found["d_stsp"] + found["d_h"] + PENALTY / 2

    def consider(
        self, dynamics: LatentDynamics, state: dict, row: dict[str, Any], stage: int
    ) -> None:
        """Keeps a state if its runs are the best so far.

        Args:
            dynamics: The map.
            state: What to keep, with the means of the smoothed states as ``"mean"``.
            row: Its row of the history, which gets the score.
            stage: Number of the stage.
        """
        score, moving = self.compare(dynamics, state["mean"])
        row[FREE_SCORE], rank = score, Rank(moving, stage, -score)
        if math.isfinite(score) and (self._rank is None or rank > self._rank):
            self.state, self.row, self.score, self._rank = state, row, score, rank
