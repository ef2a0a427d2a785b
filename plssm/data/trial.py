"""One trial of a dataset: plain numpy arrays on a latent clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from plssm.data.clock import first_step_from

__all__ = ["KINDS", "Trial"]

KINDS = ("continuous", "count", "label", "ordinal", "bold")
"""What the numbers of a modality mean: reals, counts, class indices, graded levels, BOLD."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial on its latent clock; NaN marks a missing entry.

    Args:
        values: Observations of each modality [n, N]; n = length unless it has its own clock.
        clock: Latent step of each sample [n], or None where sample i is step i.
        times: Sample times in seconds from the trial start [n], or None where sample i is step i.
        nuisance: Nuisance regressors [n, R] of the modalities that have some.
        hidden: Held-out values [n, N], NaN elsewhere, of the modalities that have some.
        inputs: Inputs [T, K], never NaN, or None.
        length: Latent steps T.
        start: Start of the trial in the recording, in seconds.
        name: Name of the trial.
        subject: Name of the subject.
        session: Name of the session.
        latent: True latent path [T, M] of simulated data, or None.
    """

    values: Mapping[str, np.ndarray]
    clock: Mapping[str, np.ndarray | None]
    times: Mapping[str, np.ndarray | None]
    nuisance: Mapping[str, np.ndarray] = field(default_factory=dict)
    hidden: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None
    length: int = 0
    start: float = 0.0
    name: str = "0"
    subject: str = "0"
    session: str = "0"
    latent: np.ndarray | None = None

    def steps(self, modality: str) -> np.ndarray:
        """Return the latent step of each sample of a modality [n], int64."""
        clock = self.clock[modality]
        return np.arange(self.length, dtype=np.int64) if clock is None else clock

    def seconds(self, modality: str, dt: float) -> np.ndarray:
        """Return the time of each sample of a modality [n], in seconds from the trial start."""
        times = self.times[modality]
        return np.arange(self.length) * dt if times is None else times

    def cut(self, first: int, last: int, dt: float) -> Trial:
        """Return the latent steps first, ..., last - 1 as a trial of their own.

        Samples on an own clock go with the latent step they belong to; their times are
        counted from the new start.

        Args:
            first: First latent step that is kept.
            last: One after the last latent step that is kept.
            dt: Seconds per latent step.

        Returns:
            The shorter trial; its arrays are views.
        """
        keep = {m: self._kept(m, first, last) for m in self.values}
        clock = {m: None if c is None else c[keep[m]] - first for m, c in self.clock.items()}
        times = {m: None if t is None else t[keep[m]] - first * dt for m, t in self.times.items()}
        return replace(
            self,
            values={m: v[keep[m]] for m, v in self.values.items()},
            clock=clock,
            times=times,
            nuisance={m: v[keep[m]] for m, v in self.nuisance.items()},
            hidden={m: v[keep[m]] for m, v in self.hidden.items()},
            inputs=None if self.inputs is None else self.inputs[first:last],
            length=last - first,
            start=self.start + first * dt,
            latent=None if self.latent is None else self.latent[first:last],
        )

    def window(self, start: float, stop: float, dt: float) -> Trial | None:
        """Return the steps that start in [start, stop) seconds, None where there are none."""
        first = max(first_step_from(start, dt), 0) if np.isfinite(start) else 0
        last = min(first_step_from(stop, dt), self.length) if np.isfinite(stop) else self.length
        return self.cut(first, last, dt) if last > first else None

    def _kept(self, modality: str, first: int, last: int) -> np.ndarray | slice:
        clock = self.clock[modality]
        return slice(first, last) if clock is None else (clock >= first) & (clock < last)
