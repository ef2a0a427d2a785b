"""From data to teacher signals: the states that Gaussian channels point at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch, Modality
from plssm.errors import CapabilityError
from plssm.inference.step_samples import on_grid
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian

__all__ = ["TeacherSignal", "moments", "refuse_unforceable", "start_readouts"]


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
                f"TeacherForcing draws the states to the data, which {why} ({name!r}) do not "
                "allow; use Gaussian channels with a linear or identity read-out, or LaplaceEM."
            )
    channels = sum(o.channels for o in model.observations.values())
    known = [o for o in model.observations.values() if o.initialised and o.readout.trainable]
    if channels < model.dim and known and not _selects(_stack(model)[0]):
        raise CapabilityError(
            f"TeacherForcing: {channels} channels do not determine {model.dim} states through a "
            "mixing read-out; use readout='identity' (the first states are the channels), at most "
            f"{channels} states, or LaplaceEM."
        )


@torch.no_grad()
def start_readouts(model: StateSpaceModel, batch: Batch) -> None:
    """Starts read-outs that are all fresh: a state for every channel, or principal components.

    Args:
        model: Changed in place; frozen parameters stay.
        batch: Training trials.
    """
    parts = list(model.observations.items())
    grids = [_on_clock(batch.modalities[n], batch.steps) for n, _ in parts]
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
        if any(o.initialised for _, o in parts):
            continue
        if observation.readout.trainable:
            for parameter, values in ((observation.weight, weight), (observation.bias, mean)):
                if parameter is not None and parameter.requires_grad:
                    parameter.copy_(values[rows])


class TeacherSignal:
    r"""The affine read-out of all Gaussian channels, and its inverse.

    .. math:: x_t = B z_t + b, \qquad \hat z_t = B^+ (x_t - b)

    Where every channel sees one state of its own (an identity read-out, or more states than
    channels), only these states are forced, each where its channel is observed. Otherwise all
    states are, at steps whose channels are all observed. No gradient flows through the inverse.

    Args:
        model: The model.
        batch: Training trials, in the model's precision.

    Attributes:
        selects: Whether every channel sees a state of its own.
        seen_states: Which states the channels say something about [M], bool.
        mean: Mean of each channel [N].
        sd: Its standard deviation [N].
    """

    def __init__(self, model: StateSpaceModel, batch: Batch) -> None:
        self.model = model
        self.names = list(model.observations.keys())
        grids = [_on_clock(batch.modalities[n], batch.steps) for n in self.names]
        self.y, self.mask = (torch.cat(parts, dim=-1) for parts in zip(*grids, strict=True))
        self.mean, self.sd = moments(self.y, self.mask)
        weight = _stack(model)[0].detach()
        self.selects, self._precision = _selects(weight), 1.0 / self.sd
        self.seen_states = (weight != 0).any(0) | (not self.selects)
        if self.selects:
            self._learn_selection()

    # ---- the read-out --------------------------------------------------------------------------
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
        if self.selects:
            return self._own(z) if self._plain else self._own(z) * self._gain + self._bias
        weight, bias = _stack(self.model)
        return z @ weight.T + bias

    def _own(self, z: Tensor) -> Tensor:
        """The state that each channel sees [..., N]."""
        return z if self._in_order else z[..., self._column]

    def _learn_selection(self) -> None:
        """Notes which state each channel sees, and in what units."""
        weight, bias = (x.detach() for x in _stack(self.model))
        self._column = (weight != 0).to(torch.uint8).argmax(1)
        self._gain, self._bias = weight.gather(1, self._column[:, None])[:, 0], bias
        self._state_precision = self.sd.new_zeros(weight.shape[1])
        self._state_precision[self._column] = (self._gain / self.sd).abs()
        self._plain = bool((self._gain == 1).all() and (bias == 0).all())
        everything = torch.arange(weight.shape[1])
        self._in_order = torch.equal(self._column, everything)

    # ---- the teacher ---------------------------------------------------------------------------
    @torch.no_grad()
    def teacher(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states that samples point at, and which of them are known.

        Args:
            y: Samples [..., N].
            mask: Where they are observed [..., N]; None where all are.

        Returns:
            States [..., M] (0 where unknown) and where they are known, bool [..., M] or [M].
        """
        if self.selects:
            return self._selected(y, mask)
        weight, bias = _stack(self.model)
        states = (y - bias) @ torch.linalg.pinv(weight).T
        if mask is None:
            return states, self.seen_states
        known = mask.all(-1, keepdim=True).expand(states.shape)
        return torch.where(known, states, 0.0), known

    def _selected(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        own = y if self._plain else (y - self._bias) / self._gain
        if mask is not None:
            own = torch.where(mask, own, 0.0)
        if self._in_order:
            return own, self.seen_states if mask is None else mask
        states = y.new_zeros(*y.shape[:-1], self.model.dim)
        states[..., self._column] = own
        if mask is None:
            return states, self.seen_states
        known = torch.zeros_like(states, dtype=torch.bool)
        known[..., self._column] = mask
        return states, known

    def target(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """Returns what the states are compared with where the read-out selects.

        Args:
            y: Samples [..., N].
            mask: Where they are observed [..., N]; None where all are.

        Returns:
            States [..., M], NaN where unknown; the precision of each state [M], such that errors
            are in units of their channel's spread; and the number of samples.
        """
        states, known = self._selected(y, mask)
        if mask is None:
            return states, self._state_precision, y.numel()
        states = torch.where(known, states, torch.nan)
        return states, self._state_precision, max(int(mask.sum()), 1)

    def loss(self, z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean squared error of the observed samples, every channel in units of its spread.

        Args:
            z: States [..., M].
            y: Samples [..., N].
            mask: Where they are observed [..., N]; None where all are.
        """
        error = (self.predict(z) - y) * self._precision
        if mask is None:
            return error.square().mean()
        error = torch.where(mask, error, 0.0)
        return error.square().sum() / mask.sum().clamp_min(1)


def _on_clock(m: Modality, steps: int) -> tuple[Tensor, Tensor]:
    """Samples on the latent clock [B, T, N], their mean where a step has several, and the mask."""
    if m.clock is None:
        return m.y, m.mask
    grid = on_grid(m, steps)
    count = grid.mask.sum(2)
    return (grid.y * grid.mask).sum(2) / count.clamp_min(1), count > 0


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


def moments(y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
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
