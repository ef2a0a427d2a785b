"""The distribution of a trial's first state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from plssm.dynamics._checks import checked, write
from plssm.dynamics.noise import make_noise
from plssm.errors import PlssmError

__all__ = ["Initial"]


class Initial(nn.Module):
    r"""Distribution of the first state of a trial.

    .. math:: z_1 \sim N(\mu_0, \Sigma_0)

    Args:
        dim: Number of components M.
        kind: "shared" (one mean and covariance for all trials) or "tied" (the published form: the
            covariance is the process noise's and each training trial has its own mean; what is
            stored here is what new trials use).
        noise: Kind of the covariance: "diagonal", "full" or "isotropic".
    """

    def __init__(self, dim: int, *, kind: str = "shared", noise: str = "diagonal") -> None:
        super().__init__()
        if kind not in ("shared", "tied"):
            raise PlssmError(f"initial: got {kind!r}, wanted 'shared' or 'tied'")
        self.kind = kind
        self.mean = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.noise = make_noise(noise, dim)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigning values to `mean` writes them into the parameter, after a check."""
        if name != "mean" or isinstance(value, nn.Parameter):
            return super().__setattr__(name, value)
        write(self.mean, checked("initial mean", value, tuple(self.mean.shape)))

    def __repr__(self) -> str:
        """Says the kind, the size and the noise."""
        return f"Initial({self.noise.dim}, kind={self.kind!r}, noise={self.noise.kind!r})"
