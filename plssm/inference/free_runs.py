"""Free runs of a map beside data: the measure by which a training is checked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import LatentDynamics
from plssm.inference.forced_rollout import free_rollout
from plssm.inference.teacher_signal import TeacherSignal
from plssm.metrics import power_spectrum_distance, state_space_divergence

__all__ = ["FreeRuns"]

LONGEST = 100_000  # steps of a trial that are compared
MANY, EACH = 16, 20_000  # runs from places all over long recordings, and their steps at most
SETTLE = 4  # times these steps that such runs go on before they are compared
ENOUGH = 40_000  # steps of these runs together, at least
LONG = 1000  # steps from which a trial is a long recording
SHORTEST = 50  # steps of a trial for its power spectrum
HISTOGRAM, POINTS = 5, 4000  # channels of a histogram; points of a mixture in more channels
COLLAPSED = 0.2  # spread, as a share of the data's, below which a run is no longer moving
PENALTY = 3.0  # what a collapsed run adds to the score


class FreeRuns:
    """Compares free runs with the trials they were started from.

    Long recordings without inputs are compared with the ends of longer runs from places all over
    them: maps whose runs look right for a long while, until they fall onto a fixed point or a
    cycle, are found out, and runs that no longer move count as collapsed. (Data that come to rest
    themselves are compared with runs from their places on.) Short or driven
    trials are compared with one run each, from their first observed state.

    Args:
        signal: Where the data point at; gives the predictions of states.
        batch: The trials.
        inputs: Whether the map has inputs.
    """

    def __init__(self, signal: TeacherSignal, batch: Batch, *, inputs: bool) -> None:
        self.signal, self.inputs = signal, batch.inputs if inputs else None
        self.length = batch.length.clamp_max(LONGEST)
        true = ((signal.data - signal.mean) / signal.sd).double().numpy()
        seen = signal.seen.all(-1).numpy()
        lengths = self.length.tolist()
        self.trials = [b for b, n in enumerate(lengths) if seen[b, :n].sum() > 1]
        self.truth = [true[b, :n][seen[b, :n]] for b, n in enumerate(lengths) if b in self.trials]
        _, known = signal.teacher(signal.y, signal.mask)
        whole = known[..., signal.seen_states].all(-1)
        self.patterns = [seen[b, : lengths[b]] for b in self.trials]
        self.settle = 0
        longest = int(self.length.max())
        places = whole.nonzero()
        self.long = self.inputs is None and longest >= LONG and bool(len(places) and self.trials)
        if self.long:
            self.places = places[torch.linspace(0, len(places) - 1, MANY).long()]
            self.steps = min(max(longest, ENOUGH // MANY), EACH)
            self.patterns = [max(self.patterns, key=len)] * MANY
            self.settle = SETTLE if self._alive().any() else 0
        else:
            rows = torch.arange(len(self.length))
            self.places = torch.stack([rows, whole.to(torch.uint8).argmax(1)], dim=1)
            self.steps = longest

    @property
    def comparable(self) -> bool:
        """Whether there are data to compare with."""
        return bool(self.truth) and bool((np.concatenate(self.truth).std(0) > 0).all())

    @torch.no_grad()
    def measures(
        self, dynamics: LatentDynamics, start: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Divergence, spectral distance, and the score: their sum, with 3 for a collapsed run.

        All are NaN where no sample is complete, so that there is nothing to compare with.

        Args:
            dynamics: The map.
            start: First states [B, M] from those the data point at.
        """
        if not self.comparable:
            return dict.fromkeys(("score", "d_stsp", "d_h"), np.nan)
        runs = self.runs(dynamics, start)
        if not all(np.isfinite(r).all() and np.abs(r).max() < 1e6 for r in runs):
            return {"score": np.inf, "d_stsp": np.inf, "d_h": 1.0}
        stride = 1
        if self.truth[0].shape[1] > HISTOGRAM:
            stride = max(sum(map(len, self.truth)) // POINTS, 1)
        pair = {"truth": [t[::stride] for t in self.truth], "pred": [r[::stride] for r in runs]}
        d_stsp = float(state_space_divergence(**pair, samples=500, floor=False))
        d_h = 0.0
        if min(map(len, self.truth)) >= SHORTEST:
            alike = self.observed(runs)
            d_h = float(power_spectrum_distance(truth=self.truth, pred=alike, floor=False))
        lost = PENALTY if self.long and self._collapsed(runs) else 0.0
        return {"score": d_stsp + d_h + lost, "d_stsp": d_stsp, "d_h": d_h}

    def runs(
        self, dynamics: LatentDynamics, start: Callable[[Tensor], Tensor]
    ) -> list[np.ndarray]:
        """The runs, in units of the data's spread."""
        signal, (trial, step) = self.signal, self.places.T
        inputs, steps = self.inputs, self.steps + signal.lead
        if inputs is not None:
            ahead = (step[:, None] + 1 + torch.arange(steps)).clamp_max(inputs.shape[1] - 1)
            inputs = inputs[trial[:, None], ahead]
        states, _ = signal.teacher(signal.y[trial, step], signal.mask[trial, step])
        z = start(states)
        for _ in range(self.settle):
            z = free_rollout(dynamics, z, self.steps)[:, -1]
        path = free_rollout(dynamics, z, steps, inputs)
        pred = ((signal.predict(path) - signal.mean) / signal.sd).double().numpy()
        if self.long:
            return list(pred)
        return [pred[b, : self.length[b]] for b in self.trials]

    def observed(self, runs: list[np.ndarray]) -> list[np.ndarray]:
        """The runs at the steps at which the data were observed."""
        pairs = zip(runs, self.patterns, strict=True)
        return [run[: len(seen)][seen[: len(run)]] for run, seen in pairs]

    def _collapsed(self, runs: list[np.ndarray]) -> bool:
        """Whether the end of a run hardly moves in a channel, where the end of the data does."""
        ends = [r[-len(r) // 4 :].std(0) for r in runs]
        return bool((np.array(ends) < COLLAPSED)[:, self._alive()].any())

    def _alive(self) -> np.ndarray:
        """Which channels still move at the end of the data [N], bool."""
        longest = max(self.truth, key=len)
        return longest[-len(longest) // 4 :].std(0) > 2 * COLLAPSED
