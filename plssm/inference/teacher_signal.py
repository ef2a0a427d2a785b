"""From data to teacher signals: states that Gaussian channels point at, and predictions of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.errors import CapabilityError
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian

__all__ = ["TeacherSignal", "refuse_unforceable"]


def refuse_unforceable(model: StateSpaceModel) -> None:
    """Refuses models whose data do not say where the states are.

    Raises:
        CapabilityError: Naming the modality and what to use instead.
    """
    for name, observation in model.observations.items():
        why = ""
        if not isinstance(observation, Gaussian):
            why = f"{type(observation).__name__} observations"
        elif not observation.quadratic:
            why = "a rectified read-out"
        elif observation.nuisance:
            why = "nuisance regressors"
        if why:
            raise CapabilityError(
                f"TeacherForcing draws the states to the data, which {why} ({name!r}) do not allow;"
                " use Gaussian channels with a linear or identity read-out, or LaplaceEM."
            )
    channels = sum(o.channels for o in model.observations.values())
    known = [o for o in model.observations.values() if o.initialised and o.readout.trainable]
    if channels < model.dim and known and not _selects(_stack(model)[0]):
        raise CapabilityError(
            f"TeacherForcing: {channels} channels do not determine {model.dim} states through a "
            "mixing read-out; use readout='identity' (the first states are the channels), at most "
            f"{channels} states, or LaplaceEM."
        )


class TeacherSignal:
    r"""The affine read-out of all Gaussian channels, and its inverse.

    .. math:: x_t = B z_t + b, \qquad \hat z_t = B^+ (x_t - b)

    Where every channel sees one state of its own (an identity read-out, or more states than
    channels), only these states are forced, each where its channel is observed. Otherwise all
    states are, at steps whose channels are all observed. No gradient flows through the inverse.

    Args:
        model: The model, which the signal changes when it learns; fresh read-outs are started.
        batch: Training trials, in the model's precision.
    """

    def __init__(self, model: StateSpaceModel, batch: Batch) -> None:
        self.model = model
        self.names = list(model.observations.keys())
        y = [batch.modalities[n].y for n in self.names]
        mask = [batch.modalities[n].mask for n in self.names]
        self.y, self.mask = torch.cat(y, dim=-1), torch.cat(mask, dim=-1)
        self.mean, self.sd = _moments(self.y, self.mask)
        self._start()
        self.selects = _selects(_stack(model)[0])

    # ---- the read-out --------------------------------------------------------------------------
    def _start(self) -> None:
        """Starts fresh read-outs: a state for every channel, or principal components."""
        fresh = [o for o in self.model.observations.values() if not o.initialised]
        if not fresh or len(fresh) < len(self.names):
            return
        channels, dim = self.y.shape[-1], self.model.dim
        weight = torch.diag(self.sd) @ torch.eye(channels, dim, dtype=self.sd.dtype)
        if channels > dim:
            weight = _principal(self.y, self.mask, self.mean, self.sd, dim)
        first = 0
        with torch.no_grad():
            for observation in fresh:
                rows = slice(first, first + observation.channels)
                first = rows.stop
                if observation.readout.trainable:
                    observation.weight.copy_(weight[rows])
                    if observation.bias is not None:
                        observation.bias.copy_(self.mean[rows])

    def parameters(self) -> list[nn.Parameter]:
        """Read-out parameters that training changes: those of a mixing read-out."""
        if self.selects:
            return []
        found = []
        for observation in self.model.observations.values():
            found += [p for p in (observation.weight, observation.bias) if p is not None]
        return [p for p in found if isinstance(p, nn.Parameter) and p.requires_grad]

    def predict(self, z: Tensor) -> Tensor:
        """Returns what the channels would be: z [..., M] to [..., N]."""
        weight, bias = _stack(self.model)
        return z @ weight.T + bias

    # ---- the teacher ---------------------------------------------------------------------------
    @torch.no_grad()
    def teacher(self, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states that samples point at, and which of them are known.

        Args:
            y: Samples [..., N].
            mask: Where they are observed [..., N].

        Returns:
            States [..., M] (0 where unknown) and where they are known [..., M], bool.
        """
        weight, bias = _stack(self.model)
        if not self.selects:
            known = mask.all(-1, keepdim=True).expand(*mask.shape[:-1], weight.shape[1])
            states = (y - bias) @ torch.linalg.pinv(weight).T
            return torch.where(known, states, 0.0), known
        column = (weight != 0).to(torch.uint8).argmax(1)
        own = weight.gather(1, column[:, None])[:, 0]
        states = y.new_zeros(*y.shape[:-1], weight.shape[1])
        known = torch.zeros_like(states, dtype=torch.bool)
        states[..., column] = torch.where(mask, (y - bias) / own, 0.0)
        known[..., column] = mask
        return states, known

    @property
    def seen_states(self) -> Tensor:
        """Which states the channels say something about [M], bool."""
        weight = _stack(self.model)[0]
        return (weight != 0).any(0) if self.selects else torch.ones(weight.shape[1]).bool()

    def loss(self, z: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of the observed samples, every channel in units of its spread.

        Args:
            z: States [..., M].
            y: Samples [..., N].
            mask: Where they are observed [..., N].
        """
        error = torch.where(mask, (self.predict(z) - y) / self.sd, 0.0)
        return error.square().sum() / mask.sum().clamp_min(1)


def _stack(model: StateSpaceModel) -> tuple[Tensor, Tensor]:
    """Weight [N, M] and intercept [N] of all channels."""
    parts = list(model.observations.values())
    none = [o.weight.new_zeros(o.channels) for o in parts]
    biases = [n if o.bias is None else o.bias for o, n in zip(parts, none, strict=True)]
    if len(parts) == 1:
        return parts[0].weight, biases[0]
    return torch.cat([o.weight for o in parts]), torch.cat(biases)


def _selects(weight: Tensor) -> bool:
    """Whether every channel sees one state, and no two see the same."""
    seen = weight != 0
    return bool((seen.sum(1) == 1).all() and (seen.sum(0) <= 1).all())


def _moments(y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over its observed samples (1 where flat)."""
    values = np.where(mask.numpy(), y.double().numpy(), np.nan).reshape(-1, y.shape[-1])
    mean, sd = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    return torch.from_numpy(mean).to(y), torch.from_numpy(sd).to(y)


def _principal(y: Tensor, mask: Tensor, mean: Tensor, sd: Tensor, dim: int) -> Tensor:
    """Weights [N, M] of the first principal components, scaled to unit variance."""
    z = torch.where(mask, (y - mean) / sd, 0.0).reshape(-1, y.shape[-1]).double()
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    top = vectors[:, -dim:].flip(1) * values[-dim:].flip(0).clamp_min(1e-12).sqrt()
    return sd[:, None] * top.to(sd)
