"""Predictors of the samples of one modality for many latent draws, a block at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from plssm.observations.base import ObservationModel

__all__ = ["GivenPredictors", "PathPredictors", "Predictors", "last_features"]

BLOCK = 16_000_000  # numbers of windows of states held at a time


class Predictors(ABC):
    """Predictors ``[S, B, n, K]`` of S latent draws, without the need to hold them all.

    Args:
        draws: Latent draws S.
        counts: Samples of each trial ``[B]``.
        width: Predictors K.
    """

    def __init__(self, draws: int, counts: Sequence[int], width: int) -> None:
        self.draws = int(draws)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.width = int(width)

    @property
    def trials(self) -> int:
        """Number of trials B."""
        return len(self.counts)

    @property
    def samples(self) -> int:
        """Samples n of the longest trial."""
        return int(self.counts.max(initial=0))

    @abstractmethod
    def block(self, trials: slice, samples: slice) -> Tensor:
        """Predictors of some samples of some trials that all have them, ``[S, b, n, K]``."""

    @property
    @abstractmethod
    def rectangular(self) -> bool:
        """Whether several trials can be had in one block."""

    @abstractmethod
    def trial(self, b: int) -> Predictors:
        """The predictors of one trial."""

    def blocks(self, most: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (trials, samples, predictors) that cover every sample once.

        Args:
            most: Largest number of samples in a block, all its trials together.
        """
        if self.samples == 0:
            empty = torch.zeros((self.draws, self.trials, 0, self.width), dtype=torch.float64)
            yield slice(0, self.trials), slice(0, 0), empty
            return
        if self.rectangular and self.trials * self.samples <= most:
            places = [(slice(0, self.trials), slice(0, self.samples))]
        else:
            places = [
                (slice(b, b + 1), slice(first, min(first + most, int(count))))
                for b, count in enumerate(self.counts)
                for first in range(0, int(count), most)
            ]
        for trials, samples in places:
            yield trials, samples, self.block(trials, samples)


class GivenPredictors(Predictors):
    """Predictors that are held in memory.

    Args:
        features: ``[S, B, n, K]``.
        counts: Samples of each trial ``[B]``; all n where absent.
    """

    def __init__(self, features: Tensor, counts: Sequence[int] | None = None) -> None:
        draws, trials, samples, width = features.shape
        super().__init__(draws, [samples] * trials if counts is None else counts, width)
        self._features = features.detach()

    @property
    def rectangular(self) -> bool:
        """Whether all trials have the same number of samples."""
        return bool((self.counts == self.samples).all())

    def block(self, trials: slice, samples: slice) -> Tensor:
        """Predictors of some samples of some trials ``[S, b, n, K]``."""
        return self._features[:, trials, samples]

    def trial(self, b: int) -> GivenPredictors:
        """The predictors of one trial."""
        return GivenPredictors(self._features[:, b : b + 1, : int(self.counts[b])])


class PathPredictors(Predictors):
    """Predictors computed from latent paths when they are asked for.

    What is held are the latent draws: S times (latent steps) times M numbers.

    Args:
        observation: The observation model.
        paths: Latent draws of each trial ``[S, T_b, M]``.
        clocks: Step of each sample in these paths ``[n_b]``; None where sample i is step i.
        covariates: Covariates of the samples of each trial ``[n_b, R]``, or None.
        dt: Seconds per latent step.
    """

    def __init__(
        self,
        observation: ObservationModel,
        paths: Sequence[Tensor],
        clocks: Sequence[Tensor | None],
        covariates: Sequence[Tensor | None],
        *,
        dt: float,
    ) -> None:
        counts = [z.shape[1] if c is None else len(c) for z, c in zip(paths, clocks, strict=True)]
        super().__init__(len(paths[0]), counts, observation.predictors)
        self._observation = observation
        self._paths, self._clocks, self._covariates = list(paths), list(clocks), list(covariates)
        self._dt = dt
        self._memory = observation.memory(dt)

    @property
    def rectangular(self) -> bool:
        """One trial at a time, since each has its own path."""
        return self.trials == 1

    def trial(self, b: int) -> PathPredictors:
        """The predictors of one trial."""
        parts = [self._paths[b]], [self._clocks[b]], [self._covariates[b]]
        return PathPredictors(self._observation, *parts, dt=self._dt)

    def block(self, trials: slice, samples: slice) -> Tensor:
        """Predictors of some samples of one trial ``[S, 1, n, K]``."""
        b = trials.start
        known = self._covariates[b]
        known = None if known is None else known[samples]
        clock = self._clocks[b]
        steps = torch.arange(samples.start, samples.stop) if clock is None else clock[samples]
        first, last = max(int(steps.min()) - self._memory, 0), int(steps.max())
        path = self._paths[b][:, first : last + 1]
        if path.shape[1] > len(steps) * (self._memory + 1):  # a few samples far apart
            return last_features(
                self._observation, self._windows(path, steps - first), known, self._dt
            )[:, None]
        with torch.no_grad():
            features = self._observation.features_along(
                path, clock=steps - first, nuisance=known, dt=self._dt
            )
        return features[:, None]

    def _windows(self, path: Tensor, steps: Tensor) -> Tensor:
        """States that the samples at some steps depend on, ``[S, n, w + 1, M]``."""
        padded = torch.nn.functional.pad(path, (0, 0, self._memory, 0))
        return padded[:, steps[:, None] + torch.arange(self._memory + 1)]


def last_features(
    observation: ObservationModel, window: Tensor, nuisance: Tensor | None, dt: float
) -> Tensor:
    """Predictors at the last step of each window of states.

    Args:
        observation: The observation model.
        window: As many states as it remembers and the present one ``[S, n, w + 1, M]``.
        nuisance: Covariates of the last steps ``[n, R]``.
        dt: Seconds per latent step.

    Returns:
        ``[S, n, predictors]``.
    """
    draws, count, length, dim = window.shape
    clock, parts = torch.tensor([length - 1]), []
    # a convolution may hold each window as often as it has steps
    block = max(BLOCK // (draws * length**2 * dim), 1) if length > 1 else max(count, 1)
    with torch.no_grad():
        for first in range(0, max(count, 1), block):
            part = slice(first, first + block)
            r = None if nuisance is None else nuisance[part, None]
            made = observation.features_along(window[:, part], clock=clock, nuisance=r, dt=dt)
            parts.append(made[:, :, 0])
    return torch.cat(parts, dim=1)
