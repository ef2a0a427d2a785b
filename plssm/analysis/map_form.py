"""What analyses of piecewise-linear maps take: a ReLU form, and plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plssm.dynamics.relu_form import ReluForm
from plssm.errors import CapabilityError

__all__ = ["map_form", "to_array"]


def map_form(dynamics: Any, *, who: str) -> ReluForm:
    """Returns the ReLU form of piecewise-linear dynamics, or of a ReluForm itself.

    Args:
        dynamics: The map.
        who: The function that asks, for the error.

    Raises:
        CapabilityError: The map is not piecewise linear.
    """
    if isinstance(dynamics, ReluForm):
        return dynamics
    if not hasattr(dynamics, "relu_form"):
        raise CapabilityError(
            f"{who}: {type(dynamics).__name__} is not piecewise linear; pass dynamics that "
            "have a ReLU form (relu_form), or a ReluForm"
        )
    return dynamics.relu_form()


def to_array(values: Any) -> np.ndarray:
    """Returns a float64 array of an array, a tensor or nested lists."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
