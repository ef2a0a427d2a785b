"""Ways to make updates of parameters: several of RAdam's in one call, or others in their place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["FastUpdates", "Moments", "OwnUpdates"]


@dataclass(frozen=True)
class Moments:
    """What RAdam knows, and how long its next steps are.

    Attributes:
        average: Average gradient [n]; changed in place.
        squares: Average square [n]; changed in place.
        done: Updates so far.
        rate: Learning rate.
        longest: Largest norm of a gradient.
    """

    average: Tensor
    squares: Tensor
    done: int
    rate: float
    longest: float


class FastUpdates(ABC):
    """Several updates at once, equal to single ones but for rounding."""

    @abstractmethod
    def ready(self) -> int:
        """Returns how many updates can be made before one that must be made alone."""

    @abstractmethod
    def run(
        self, vector: Tensor, moments: Moments, progress: np.ndarray, generator: torch.Generator
    ) -> np.ndarray:
        """Makes updates.

        Args:
            vector: Parameters [n]; changed in place.
            moments: State of the optimiser; changed in place.
            progress: How much of the training is over at each update.
            generator: The only source of randomness.

        Returns:
            The losses; fewer than updates if one was not finite, where the updates end.
        """


class OwnUpdates(ABC):
    """Updates in the place of RAdam's."""

    @abstractmethod
    def update(self, vector: Tensor, progress: float, generator: torch.Generator) -> float | None:
        """Makes an update.

        Args:
            vector: Parameters [n]; changed in place.
            progress: How much of the training is over, 0 to 1.
            generator: The only source of randomness.

        Returns:
            The loss before it; None where it is not finite, and nothing was changed.
        """

    @abstractmethod
    def went_back(self) -> None:
        """Called when training has gone back to the last good parameters."""

    @abstractmethod
    def state(self) -> dict[str, float]:
        """Returns numbers beside the parameters that resuming needs."""

    @abstractmethod
    def restore(self, state: dict[str, float]) -> None:
        """Takes back what `state` returned."""
