"""Stable random start values of fresh dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stable_start"]


def stable_start(dim: int) -> tuple[Tensor, Tensor]:
    """Returns a diagonal and an off-diagonal matrix that make a contracting map.

    The diagonal is uniform on (0.5, 0.9); couplings are small, 0.1 N(0, 1/M), and each row is
    scaled so that a_i + sum_j |w_ij| <= 0.95. The map then contracts in the maximum norm whichever
    gates are on. The values are the same in every call.

    Args:
        dim: Number of states M.

    Returns:
        a [M] and w [M, M] with zero diagonal, float64.
    """
    generator = torch.Generator().manual_seed(0)
    a = 0.5 + 0.4 * torch.rand(dim, generator=generator, dtype=torch.float64)
    w = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * 0.1 / dim**0.5
    w.fill_diagonal_(0.0)
    room = (0.95 - a) / w.abs().sum(1).clamp_min(1e-12)
    return a, w * room.clamp_max(1.0)[:, None]
