"""Paths under teacher forcing for any latent dynamics: compiled where the family allows it."""

from __future__ import annotations

from torch import Tensor

from plssm.dynamics import LatentDynamics
from plssm.kernels.forced_path import forced_path, forced_path_plain

__all__ = ["force", "forced_rollout"]


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
        dynamics: The map; one with a `layer` on the CPU runs in compiled code.
        start: z_1 [B, M].
        teacher: Teacher signal [B, T, M].
        weight: Share of the teacher, anything that broadcasts to [B, T, M].
        inputs: Inputs of the steps arrived at [B, T, K], or None.

    Returns:
        The states before forcing, z_2 .. z_{T+1} [B, T, M].
    """
    drive = None if inputs is None else dynamics.drive(inputs)
    options = {"teacher": teacher, "weight": weight, "drive": drive}
    layer = getattr(dynamics, "layer", None)
    if layer is not None and start.device.type == "cpu":
        return forced_path(layer(), start, **options)
    return forced_path_plain(dynamics.step, start, **options)
