"""Writing known parameter values into dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from plssm.dynamics._checks import checked
from plssm.dynamics.noise import Noise, noise_kind
from plssm.errors import PlssmError

if TYPE_CHECKING:
    from plssm.dynamics.base import LatentDynamics

__all__ = ["assign_known", "noise_options"]


def noise_options(dim: int, process_noise: Any, initial_noise: Any) -> dict[str, str]:
    """Returns the constructor's noise arguments for given (co)variances.

    Args:
        dim: Number of states M.
        process_noise: Variance (a number), variances [M] or covariance [M, M].
        initial_noise: The same for z_1; None is the process noise.

    Returns:
        ``{"noise": kind, "initial_noise": kind}``.
    """
    initial_noise = process_noise if initial_noise is None else initial_noise
    return {
        "noise": noise_kind("process_noise", process_noise, dim),
        "initial_noise": noise_kind("initial_noise", initial_noise, dim),
    }


def assign_known(
    dynamics: LatentDynamics,
    values: dict[str, Any],
    *,
    process_noise: Any,
    initial_mean: Any,
    initial_noise: Any,
) -> None:
    """Writes given parameters and marks the dynamics as initialised.

    Args:
        dynamics: What to write into.
        values: Parameter values by name; None writes zeros.
        process_noise: Variance (a number), variances [M] or covariance [M, M].
        initial_mean: Mean of z_1 [M]; None is zero.
        initial_noise: Like `process_noise`, for z_1; None is the process noise.
    """
    for name, value in values.items():
        if value is None:
            value = torch.zeros_like(getattr(dynamics, name))
        setattr(dynamics, name, value)
    if initial_mean is not None:
        dynamics.initial.mean = initial_mean
    initial_noise = process_noise if initial_noise is None else initial_noise
    _assign_noise(dynamics.noise, "process_noise", process_noise)
    _assign_noise(dynamics.initial.noise, "initial_noise", initial_noise)
    dynamics.initialised = True


def _assign_noise(noise: Noise, name: str, value: Any) -> None:
    """Sets a variance or covariance; an error says whose."""
    value = checked(name, value)
    try:
        if value.ndim == 2:
            noise.covariance = value
        else:
            noise.variance = value
    except PlssmError as error:
        raise type(error)(f"{name}: {error}") from None
