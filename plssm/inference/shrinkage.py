"""The quadratic penalty that keeps a trained map from growing."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.dynamics import LatentDynamics

__all__ = ["shrinkage"]

_KINKS = ("h2", "thresholds")  # where kinks stand is a place, not a size


def shrinkage(dynamics: LatentDynamics) -> Tensor:
    r"""Returns how far the map's parameters are from those of a line attractor.

    .. math:: \|1 - A\|^2 + \sum_{\theta \ne A} \|\theta\|^2

    The kinks of hidden units, and noise and initial state, do not count.

    Args:
        dynamics: The dynamics.

    References:
        Schmidt et al. 2021, Identifying nonlinear dynamical systems with multiple time scales and
        long-range dependencies, arXiv:1910.03471; Hess et al. 2023, arXiv:2306.04406.
    """
    parts = [
        (p - 1.0 if name == "A" else p).square().sum()
        for name, p in dynamics.named_parameters()
        if not name.startswith(("noise.", "initial.")) and name not in _KINKS
    ]
    return torch.stack(parts).sum()
