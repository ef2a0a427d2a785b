"""Between the latent clock and the clock of the samples: gather, and its adjoint scatter-add."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.errors import ShapeError

__all__ = ["gather", "scatter"]


def _flat_index(clock: Tensor, steps: int) -> Tensor:
    trial = torch.arange(clock.shape[0], device=clock.device)[:, None]
    return (trial * steps + clock).reshape(-1)


def gather(values: Tensor, clock: Tensor | None, samples: int, *, event: int = 1) -> Tensor:
    """Take the latent step of each sample.

    Args:
        values: ``[..., B, T, *event]`` on the latent clock.
        clock: Latent step of each sample ``[B, n]``; None means sample i is step i.
        samples: Number n of samples.
        event: Number of axes after the time axis.

    Returns:
        ``[..., B, n, *event]``.

    Raises:
        ShapeError: When a modality without clock has more samples than there are latent steps.
    """
    axis = values.ndim - event - 1
    steps = values.shape[axis]
    if clock is None:
        if samples > steps:
            raise ShapeError(
                f"a modality without its own clock has {samples} samples for {steps} latent "
                "steps; give the samples a clock or a longer latent path"
            )
        return values if samples == steps else values.narrow(axis, 0, samples)
    flat = values.flatten(axis - 1, axis)
    taken = flat.index_select(axis - 1, _flat_index(clock, steps))
    return taken.unflatten(axis - 1, tuple(clock.shape))


def scatter(values: Tensor, clock: Tensor | None, steps: int) -> Tensor:
    """Add what belongs to each sample onto the latent clock (adjoint of :func:`gather`).

    Args:
        values: ``[B, n, *event]`` on the clock of the samples.
        clock: Latent step of each sample ``[B, n]``; repeated steps add up; None means sample i
            is step i.
        steps: Number T of latent steps.

    Returns:
        ``[B, T, *event]``.
    """
    trials, samples = values.shape[:2]
    if clock is None and samples == steps:
        return values
    out = values.new_zeros((trials, steps, *values.shape[2:]))
    if clock is None:
        out[:, :samples] = values
        return out
    flat = out.view(trials * steps, *values.shape[2:])
    flat.index_add_(0, _flat_index(clock, steps), values.reshape(-1, *values.shape[2:]))
    return out
