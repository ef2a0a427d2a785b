"""Writing known parameter values into dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from plssm.dynamics._checks import checked, input_count
from plssm.dynamics.noise import Noise, noise_kind
from plssm.errors import PlssmError, ShapeError

if TYPE_CHECKING:
    from plssm.dynamics.base import LatentDynamics

__all__ = ["diagonal", "known"]

Dynamics = TypeVar("Dynamics", bound="LatentDynamics")


def diagonal(A: Any) -> Tensor:
    """Returns a decay A [M] that is given as the diagonal of a matrix.

    Raises:
        ShapeError: If it is not a vector.
    """
    A = checked("A", A)
    if A.ndim != 1:
        raise ShapeError(
            f"A: got shape {tuple(A.shape)}, wanted (M,); A is diagonal, give its diagonal"
        )
    return A


def known(
    make: Callable[..., Dynamics],
    sizes: tuple[int, ...],
    values: dict[str, Any],
    *,
    process_noise: Any = 1.0,
    initial_mean: Any = None,
    initial_noise: Any = None,
    **options: Any,
) -> Dynamics:
    """Makes dynamics with known parameters.

    Args:
        make: The class.
        sizes: Its sizes before the number of inputs, M first.
        values: Parameter values by name, with the input matrix C; None writes zeros.
        process_noise: Variance (a number), variances [M] or covariance [M, M].
        initial_mean: Mean of z_1 [M]; None is zero.
        initial_noise: Like `process_noise`, for z_1; None is the process noise.
        **options: Further arguments of the constructor.

    Returns:
        The dynamics, marked as initialised.
    """
    dim = sizes[0]
    kinds = _noise_options(dim, process_noise, initial_noise)
    dynamics = make(*sizes, input_count(values["C"], dim), **kinds, **options)
    _assign(
        dynamics, values, process_noise=process_noise, initial_mean=initial_mean,
        initial_noise=initial_noise,
    )  # fmt: skip
    return dynamics


def _noise_options(dim: int, process_noise: Any, initial_noise: Any) -> dict[str, str]:
    """The constructor's noise arguments for given (co)variances."""
    initial_noise = process_noise if initial_noise is None else initial_noise
    return {
        "noise": noise_kind("process_noise", process_noise, dim),
        "initial_noise": noise_kind("initial_noise", initial_noise, dim),
    }


def _assign(
    dynamics: LatentDynamics,
    values: dict[str, Any],
    *,
    process_noise: Any,
    initial_mean: Any,
    initial_noise: Any,
) -> None:
    """Writes given parameters and marks the dynamics as initialised."""
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
