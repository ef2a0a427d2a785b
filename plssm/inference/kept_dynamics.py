"""Whether a training has kept its map's own dynamics: free runs beside those of its start."""

from __future__ import annotations

import math
from typing import Final

import torch

from plssm.data import Batch
from plssm.dynamics import OneLayerDynamics
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.free_runs import PENALTY
from plssm.inference.free_selection import beside_path
from plssm.model import StateSpaceModel

__all__ = ["SELECT", "KeptDynamics"]

SELECT: Final = ("auto", "likelihood", "free_runs")
SHARE, MORE = 0.25, 0.05  # how much worse than the start's a score may be: a share of it, and this


class KeptDynamics:
    r"""Compares noise-free runs of a map with the filtered states, and the score with the start's.

    .. math:: s = D_{stsp} + D_H, \qquad s \le 1.25\, s_{start} + 0.05

    The likelihood of one-step innovations says nothing about what a map does where data never or
    hardly come by; there it may get a fixed point or a cycle that free runs fall onto sooner or
    later (see :class:`~plssm.inference.free_runs.FreeRuns` for how they are run). Filtered states
    are what free runs are compared with because they have little noise, and exist for observations
    of any kind.

    Args:
        model: The model at its start.
        batch: The trials.
        known: Whether the map is known at the start, and trained on.
        select: "likelihood": nothing is compared; "free_runs": always; "auto": where the map is
            known, trials are long and not driven, and free runs of the start do not come to rest.

    Attributes:
        limit: The largest score that is good enough; None before the first measure.
    """

    def __init__(self, model: StateSpaceModel, batch: Batch, *, known: bool, select: str) -> None:
        self.batch, self.auto, self.limit = batch, select == "auto", None
        self.driven = model.dynamics.n_inputs > 0 and batch.inputs is not None
        family = isinstance(model.dynamics, OneLayerDynamics)
        self.on = select == "free_runs" or (self.auto and known and family and not self.driven)

    @torch.no_grad()
    def measures(self, model: StateSpaceModel, states: FilteredStates) -> dict[str, float]:
        """Divergence, spectral distance and score, and whether that is ``kept`` near the start's.

        Args:
            model: The model as it is.
            states: Filtered states, of a pass through all trials with this model.

        Returns:
            Nothing where nothing is compared.
        """
        if not self.on:
            return {}
        mean = states.point[..., : model.dim]
        free = beside_path(mean, self.batch, driven=self.driven)
        if self.auto and not free.long:
            self.on = False
            return {}
        found = free.measures(model.dynamics, lambda z: z)
        score = found["score"]
        if self.limit is None:
            self.on = math.isfinite(score) and not (self.auto and score >= PENALTY)
            self.limit = (1 + SHARE) * score + MORE
        if not self.on:
            return {}
        kept = score <= self.limit
        return {"d_stsp": found["d_stsp"], "d_h": found["d_h"], "free_score": score, "kept": kept}

    def state(self) -> dict[str, float]:
        """What resuming needs."""
        return {"on": float(self.on), "limit": math.nan if self.limit is None else self.limit}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back what `state` returned."""
        self.on = bool(state["on"])
        self.limit = None if math.isnan(state["limit"]) else state["limit"]
