"""What one EM iteration changes: the parameters of a model and the means of its trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["EMParameters"]


@dataclass(frozen=True)
class EMParameters:
    """A copy of everything that EM moves, also as one vector.

    Args:
        state: The model's state dictionary.
        trial_means: Mean of z_1 of each trial ``[B, M]``, or None.
    """

    state: dict[str, Tensor]
    trial_means: np.ndarray | None

    def vector(self) -> np.ndarray:
        """All numbers ``[P]``."""
        parts = [v.reshape(-1).numpy() for v in self.state.values() if v.is_floating_point()]
        if self.trial_means is not None:
            parts.append(self.trial_means.ravel())
        return np.concatenate(parts).astype(np.float64)

    def at(self, vector: np.ndarray) -> EMParameters:
        """Parameters with other numbers.

        Args:
            vector: The numbers ``[P]``.
        """
        state, first = dict(self.state), 0
        for name, value in self.state.items():
            if value.is_floating_point():
                new = vector[first : first + value.numel()].reshape(value.shape)
                state[name] = torch.from_numpy(new.copy()).to(value.dtype)
                first += value.numel()
        means = self.trial_means
        return EMParameters(state, None if means is None else vector[first:].reshape(means.shape))
