"""Paths under teacher forcing for any latent dynamics: compiled where the family allows it."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.dynamics import LatentDynamics, OneLayerDynamics
from plssm.kernels.forced_path import forced_loss, forced_path, forced_path_plain

__all__ = ["force", "forced_error", "forced_rollout", "free_rollout"]


def force(z: Tensor, target: Tensor, alpha: Tensor | float) -> Tensor:
    r"""Draws states to a target.

    .. math:: \tilde z = (1 - \alpha) z + \alpha \hat z

    Args:
        z: States [..., M].
        target: What they are drawn to [..., M].
        alpha: Share of the target, 0 (free) to 1 (forced).

    Returns:
        Forced states [..., M].
    """
    return z + alpha * (target - z)


def forced_rollout(
    dynamics: LatentDynamics, start: Tensor, teacher: Tensor, weight: Tensor,
    inputs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Iterates a map that is drawn to a teacher before each step.

    Args:
        dynamics: The map; a member of the family on the CPU runs in compiled code.
        start: z_1 [B, M].
        teacher: Teacher signal [B, T, M].
        weight: Share of the teacher, anything that broadcasts to [B, T, M].
        inputs: Inputs of the steps arrived at [B, T, K], or None.

    Returns:
        The states before forcing, z_2 .. z_{T+1} [B, T, M].
    """
    options = {"teacher": teacher, "weight": weight, "drive": _drive(dynamics, inputs)}
    if _compiled(dynamics, start):
        return forced_path(dynamics.layer(), start, **options)
    return forced_path_plain(dynamics.step, start, **options)


def forced_error(
    dynamics: LatentDynamics, start: Tensor, teacher: Tensor, weight: Tensor,
    inputs: Tensor | None = None, *, target: Tensor, precision: Tensor, count: int,
) -> Tensor:  # fmt: skip
    r"""Mean squared difference of a forced path from a target, state by state.

    .. math:: \frac1n \sum_{b,t,m} \lambda_m^2 (z_{b,t+1,m} - y_{b,t,m})^2

    Args:
        dynamics: The map.
        start: z_1 [B, M].
        teacher: Teacher signal [B, T, M].
        weight: Share of the teacher.
        inputs: Inputs of the steps arrived at [B, T, K], or None.
        target: y [B, T, M]; NaN where nothing is compared.
        precision: lambda [M].
        count: n.

    Returns:
        A scalar.
    """
    if _compiled(dynamics, start):
        return forced_loss(
            dynamics.layer(), start, teacher=teacher, weight=weight, target=target,
            drive=_drive(dynamics, inputs), precision=precision, count=count,
        )  # fmt: skip
    path = forced_rollout(dynamics, start, teacher, weight, inputs)
    seen = ~target.isnan()
    error = torch.where(seen, path - torch.where(seen, target, 0.0), 0.0)
    return (precision * error).square().sum() / count


@torch.no_grad()
def free_rollout(
    dynamics: LatentDynamics, start: Tensor, steps: int, inputs: Tensor | None = None
) -> Tensor:
    """Iterates a map freely from several states, without gradients.

    Args:
        dynamics: The map; a member of the family on the CPU runs all states side by side.
        start: States [B, M].
        steps: T.
        inputs: Inputs of the steps arrived at [B, T, K], or None.

    Returns:
        The states after the start [B, T, M].
    """
    if _compiled(dynamics, start):
        return forced_path(dynamics.layer(), start, drive=_drive(dynamics, inputs), steps=steps)
    return dynamics.rollout(start, steps, inputs=inputs, noise=False)


def _compiled(dynamics: LatentDynamics, start: Tensor) -> bool:
    return isinstance(dynamics, OneLayerDynamics) and start.device.type == "cpu"


def _drive(dynamics: LatentDynamics, inputs: Tensor | None) -> Tensor | None:
    return None if inputs is None else dynamics.drive(inputs)
