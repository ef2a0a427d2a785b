"""Estimates of how fast gradients grow along a sequence, from Jacobians at the data's states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ESTIMATORS", "EVERY", "optimal_alpha", "spectral_size"]

EVERY = 5  # steps between two estimates of alpha


def optimal_alpha(size: float) -> float:
    r"""Returns the weakest forcing under which gradients do not grow.

    .. math:: \alpha^* = \max(0, 1 - 1 / \sigma)
    """
    return max(0.0, 1.0 - 1.0 / size) if size > 0 else 0.0


def spectral_size(jacobians: Tensor, estimator: str) -> float:
    """Returns the size sigma of Jacobians along sequences, the largest over sequences.

    Args:
        jacobians: [B, T, M, M].
        estimator: A name in ESTIMATORS.

    References:
        Hess et al. 2023, arXiv:2306.04406.
    """
    return float(ESTIMATORS[estimator](jacobians.detach().double()).max())


def _norms(jacobians: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(jacobians, ord=2)


def _product(jacobians: Tensor) -> Tensor:
    """Geometric mean of the norms, which bounds that of the product [B]."""
    return _norms(jacobians).clamp_min(1e-300).log().mean(1).exp()


def _mean(jacobians: Tensor) -> Tensor:
    """Norm of the mean [B]."""
    return _norms(jacobians.mean(1))


def _explog(jacobians: Tensor) -> Tensor:
    """Norm of the exponential of the mean logarithm [B]; Jacobians without one are left out."""
    values, vectors = torch.linalg.eig(jacobians)
    logs = vectors @ torch.diag_embed(values.log()) @ torch.linalg.pinv(vectors)
    good = torch.isfinite(torch.view_as_real(logs)).flatten(2).all(-1)
    logs = torch.where(good[..., None, None], logs, 0.0)
    count = good.sum(1).clamp_min(1)
    return _norms(torch.matrix_exp(logs.sum(1) / count[:, None, None]))


def _maximum(jacobians: Tensor) -> Tensor:
    """Largest norm [B]."""
    return _norms(jacobians).amax(1)


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": _product,
    "mean": _mean,
    "explog": _explog,
    "maximum": _maximum,
}
