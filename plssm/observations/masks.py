"""What a mask says, found without starting threads: masks are asked often and are small."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["complete", "observed_counts", "observed_samples"]


def _array(mask: Tensor) -> np.ndarray:
    return mask.detach().cpu().numpy()


def complete(mask: Tensor) -> bool:
    """Whether every entry is observed."""
    return bool(_array(mask).all())


def observed_counts(mask: Tensor) -> Tensor:
    """Number of observed entries of each channel, of a mask ``[B, n, N]``, as ``[N]`` float64."""
    seen = _array(mask).reshape(-1, mask.shape[-1])
    if seen.all():
        return torch.full(seen.shape[1:], float(len(seen)), dtype=torch.float64)
    return torch.from_numpy(seen.sum(0).astype(np.float64))


def observed_samples(mask: Tensor) -> Tensor:
    """Samples with an observed channel, of a mask ``[B, n, N]``, as bool ``[B n]`` on the CPU."""
    seen = _array(mask).reshape(-1, mask.shape[-1])
    if seen.shape[1] and seen.all():
        return torch.ones(len(seen), dtype=torch.bool)
    return torch.from_numpy(seen.any(-1))
