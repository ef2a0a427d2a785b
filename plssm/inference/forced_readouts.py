"""Which observations teacher forcing can use, their start values, and their teacher signal."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.errors import CapabilityError
from plssm.inference.affine_readout import selects, stack
from plssm.inference.convolved_signal import ConvolvedSignal, activity, without_nuisance
from plssm.inference.teacher_signal import AffineSignal, TeacherSignal, moments
from plssm.model import StateSpaceModel
from plssm.observations import BOLD, Gaussian
from plssm.observations.bold.deconvolution import nuisance_weights

__all__ = ["refuse_unforceable", "start_readouts", "teacher_signal"]


def teacher_signal(model: StateSpaceModel, batch: Batch) -> TeacherSignal:
    """The teacher signal of a model's observations.

    Args:
        model: The model.
        batch: Trials, in the model's precision.
    """
    convolved = any(isinstance(o, BOLD) for o in model.observations.values())
    return (ConvolvedSignal if convolved else AffineSignal)(model, batch)


def refuse_unforceable(model: StateSpaceModel) -> None:
    """Refuses models whose data do not say where the states are.

    Raises:
        CapabilityError: Naming the modality and what to use instead.
    """
    for name, observation in model.observations.items():
        why = ""
        if not isinstance(observation, (Gaussian, BOLD)):
            why = f"{type(observation).__name__} observations"
        elif not observation.quadratic:
            why = "a rectified read-out"
        elif observation.nuisance and not isinstance(observation, BOLD):
            why = "nuisance regressors"
        if why:
            raise CapabilityError(
                f"TeacherForcing draws the states to the data, which {why} ({name!r}) do not "
                "allow; use BOLD, Gaussian channels with a linear or identity read-out, or "
                "LaplaceEM."
            )
    channels = sum(o.channels for o in model.observations.values())
    known = [o for o in model.observations.values() if o.initialised and o.readout.trainable]
    if channels < model.dim and known and not selects(stack(model)[0]):
        raise CapabilityError(
            f"TeacherForcing: {channels} channels do not determine {model.dim} states through a "
            "mixing read-out; use readout='identity' (the first states are the channels), at most "
            f"{channels} states, or LaplaceEM."
        )


@torch.no_grad()
def start_readouts(model: StateSpaceModel, batch: Batch) -> None:
    """Starts read-outs that are all fresh: a state for every channel, or principal components.

    States have the units of the activity behind the channels, which of BOLD is deconvolved.

    Args:
        model: Changed in place; frozen parameters stay.
        batch: Training trials.
    """
    parts = list(model.observations.items())
    if any(o.initialised for _, o in parts):
        return
    grids = [_signals(o, batch, n) for n, o in parts]
    y, mask = (torch.cat(x, dim=-1) for x in zip(*grids, strict=True))
    mean, sd = moments(y, mask)
    channels, dim = y.shape[-1], model.dim
    weight = torch.diag(sd) @ torch.eye(channels, dim, dtype=sd.dtype)
    if channels > dim:
        weight = _principal(y, mask, mean, sd, dim)
    first = 0
    for _, observation in parts:
        rows = slice(first, first + observation.channels)
        first = rows.stop
        if observation.readout.trainable:
            for parameter, values in ((observation.weight, weight), (observation.bias, mean)):
                if parameter is not None and parameter.requires_grad:
                    parameter.copy_(values[rows])


def _signals(observation: Gaussian | BOLD, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Activity behind fresh channels, after their nuisance weights were set by regression."""
    m = batch.modalities[name]
    if observation.nuisance and observation.nuisance_weight.requires_grad:
        observation.nuisance_weight.copy_(nuisance_weights(m))
    return activity(observation, without_nuisance(observation, m), batch.steps)


def _principal(y: Tensor, mask: Tensor, mean: Tensor, sd: Tensor, dim: int) -> Tensor:
    """Weights [N, M] of the first principal components, scaled to unit variance."""
    z = torch.where(mask, (y - mean) / sd, 0.0).reshape(-1, y.shape[-1]).double()
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    top = vectors[:, -dim:].flip(1) * values[-dim:].flip(0).clamp_min(1e-12).sqrt()
    return sd[:, None] * top.to(sd)
