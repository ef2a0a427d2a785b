"""Random start values of fresh dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["glorot", "normalised_positive", "same_every_time", "stable_start", "uniform"]


def same_every_time() -> torch.Generator:
    """The source of a constructor's start values, alike in every process."""
    return torch.Generator().manual_seed(0)


def stable_start(dim: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Returns a diagonal and an off-diagonal matrix that make a contracting map.

    The diagonal is uniform on (0.5, 0.9); couplings are small, 0.1 N(0, 1/M), and each row is
    scaled so that a_i + sum_j |w_ij| <= 0.95. The map then contracts in the maximum norm whichever
    gates are on.

    Args:
        dim: Number of states M.
        generator: Source of randomness; None gives the same values in every call.

    Returns:
        a [M] and w [M, M] with zero diagonal, float64.
    """
    generator = same_every_time() if generator is None else generator
    a = 0.5 + 0.4 * torch.rand(dim, generator=generator, dtype=torch.float64)
    w = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * 0.1 / dim**0.5
    w.fill_diagonal_(0.0)
    room = (0.95 - a) / w.abs().sum(1).clamp_min(1e-12)
    return a, w * room.clamp_max(1.0)[:, None]


def normalised_positive(dim: int, generator: torch.Generator) -> Tensor:
    r"""Returns a random positive definite matrix whose largest eigenvalue is 1.

    .. math:: K = (R^\top R / M + I) / \lambda_{\max}, \qquad R_{ij} \sim N(0, 1)

    Its diagonal is in (0, 1); with a single state it is 1.

    Args:
        dim: Number of states M.
        generator: Source of randomness.

    Returns:
        K [M, M], float64.

    References:
        Talathi & Vartak 2016, Improving performance of recurrent neural network with relu
        nonlinearity, arXiv:1511.03771.
    """
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    matrix = root.T @ root / dim + torch.eye(dim, dtype=torch.float64)
    return matrix / torch.linalg.eigvalsh(matrix)[-1]


def uniform(*shape: int, bound: float, generator: torch.Generator) -> Tensor:
    """Returns float64 values [shape], uniform on (-bound, bound)."""
    return bound * (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0)


def glorot(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Returns uniform values [rows, columns] of variance 2 / (rows + columns).

    References:
        Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural
        networks, AISTATS, PMLR 9:249-256.
    """
    bound = (6.0 / (rows + columns)) ** 0.5
    return uniform(rows, columns, bound=bound, generator=generator)
