"""The path around which a recognition model expands the model: a guarded Newton search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.inference.chains import LinearChain, chain_mean
from plssm.inference.encoders import Potentials
from plssm.model import StateSpaceModel

__all__ = ["expand_along", "find_path"]

STEPS = 30  # Newton steps at most
LENGTHS = (1.0, 0.4, 0.1, 0.02)  # of a Newton step, of which the best is taken
GAIN = 1e-5, 1e-3  # of the log joint, relative and in nats, below which a trial stays where it is


@torch.no_grad()
def find_path(
    model: StateSpaceModel, batch: Batch, path: Tensor, evidence: Potentials,
    names: Sequence[str], chain: Callable[[Tensor], LinearChain], start: Tensor | None,
) -> Tensor:  # fmt: skip
    """Climbs the log joint density of path and data, every trial by itself.

    Args:
        model: The model.
        batch: The trials.
        path: Where the search begins [B, T, M].
        evidence: What is said of the modalities that are not expanded.
        names: Modalities that are expanded.
        chain: The model's map linearised along a path.
        start: First step of each trial in its recording [B]; None is 0.

    Returns:
        The path [B, T, M].
    """
    weight = torch.ones(path.shape[:2], dtype=path.dtype)
    if start is not None:
        weight[:, 0] = (start == 0).to(path.dtype)
    best, moving = _log_joint(model, batch, path, weight), torch.ones(len(path), dtype=torch.bool)
    lengths = torch.tensor(LENGTHS, dtype=path.dtype)[:, None, None, None]
    for _ in range(STEPS):
        known = expand_along(model, batch, path, names)
        known = Potentials(*(a + b for a, b in zip(known, evidence, strict=True)))
        tried = path + lengths * (chain_mean(known, chain(path), batch.length) - path)
        values = _log_joint(model, batch, tried, weight).nan_to_num(nan=-torch.inf)
        value, which = values.max(0)
        better = moving & (value > best)
        path = torch.where(better[:, None, None], tried[which, torch.arange(len(path))], path)
        enough = value - best > GAIN[0] * best.abs() + GAIN[1]
        best = torch.where(better, value, best)
        moving = better & enough
        if not bool(moving.any()):
            break
    return path


@torch.no_grad()
def expand_along(
    model: StateSpaceModel, batch: Batch, path: Tensor, names: Sequence[str]
) -> Potentials:
    r"""What some modalities say about a path near by, :math:`r = g + R z, \Lambda = R`.

    Args:
        model: The model.
        batch: The trials.
        path: Where the log-densities are expanded [B, T, M].
        names: The modalities.
    """
    found = Potentials.none(path, path.shape[-1])
    for name in names:
        observation = model.observations[name]
        local = observation.local(batch.modalities[name], path, positive=True)
        bend = (observation.tempering * local.curvature).to(path.dtype)
        shift = observation.tempering * local.score + (bend @ path[..., None])[..., 0]
        found = Potentials(found.shift + shift.to(path.dtype), found.precision + bend)
    return found


def _log_joint(model: StateSpaceModel, batch: Batch, z: Tensor, weight: Tensor) -> Tensor:
    """Log joint density, without the first state of windows that begin inside a recording."""
    total = model.dynamics.log_prob(z, batch.inputs, batch.length, weight=weight)
    for name, observation in model.observations.items():
        if name in batch.modalities:
            total = total + observation.tempering * observation.log_prob(batch.modalities[name], z)
    return total
