"""Checks of given parameter values, in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plssm.errors import PlssmError, ShapeError

__all__ = ["checked", "column_count", "input_count", "positive", "whole", "write"]


def checked(name: str, value: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Returns the value as a finite float64 tensor of the wanted shape.

    Args:
        name: What the error message calls the value.
        value: Number, sequence, array or tensor.
        shape: Wanted shape; None accepts any.

    Returns:
        A detached float64 copy on the CPU.

    Raises:
        ShapeError: If the shape is another one.
        PlssmError: If an entry is not finite.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().to(device="cpu", dtype=torch.float64, copy=True)
    else:
        tensor = torch.from_numpy(np.array(value, dtype=np.float64, order="C"))
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ShapeError(f"{name}: got shape {tuple(tensor.shape)}, wanted {tuple(shape)}")
    if not torch.isfinite(tensor).all():
        raise PlssmError(f"{name}: all entries must be finite, got NaN or infinity")
    return tensor


def positive(name: str, value: Tensor) -> Tensor:
    """Returns the value if every entry is above zero.

    Raises:
        PlssmError: If an entry is zero or negative.
    """
    if not (value > 0).all():
        smallest = float(value.min())
        raise PlssmError(f"{name}: variances must be positive, the smallest is {smallest:g}")
    return value


@torch.no_grad()
def write(parameter: nn.Parameter, value: Tensor) -> None:
    """Writes values into a parameter, keeping its dtype and device."""
    parameter.copy_(value)


def input_count(C: Any, dim: int) -> int:
    """The number of inputs K of an input matrix [M, K]; None has none."""
    return 0 if C is None else column_count("C", C, dim, "K")


def column_count(name: str, value: Any, rows: int, letter: str) -> int:
    """The number of columns of a matrix [rows, letter].

    Raises:
        ShapeError: If it has another shape.
    """
    shape = tuple(checked(name, value).shape)
    if len(shape) != 2 or shape[0] != rows:
        raise ShapeError(f"{name}: got shape {shape}, wanted ({rows}, {letter})")
    return shape[1]


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns a size.

    Raises:
        PlssmError: If it is not a whole number between `least` and `most`.
    """
    good = isinstance(value, (int, float)) and float(value).is_integer() and value >= least
    if not good or (most is not None and value > most):
        to = f"at least {least}" if most is None else f"from {least} to {most}"
        raise PlssmError(f"{name}: got {value!r}, wanted a whole number {to}")
    return int(value)
