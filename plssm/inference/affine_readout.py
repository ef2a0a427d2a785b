"""The affine read-out of all channels of a model, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plssm.model import StateSpaceModel

__all__ = ["AffineReadout", "selects", "stack"]


class AffineReadout:
    r"""The affine read-out of all channels, and its inverse.

    .. math:: x_t = B z_t + b, \qquad \hat z_t = B^+ (x_t - b)

    Where every channel sees one state of its own (an identity read-out, or more states than
    channels), only these states are known, each where its channel is observed. Otherwise all
    states are, at steps whose channels are all observed. No gradient flows through the inverse.

    Args:
        model: The model, in the precision of training.
        sd: Standard deviation of each channel [N].

    Attributes:
        selects: Whether every channel sees a state of its own.
        seen_states: Which states the channels say something about [M], bool.
        column: Where the read-out selects, the state each channel sees [N].
        state_precision: Where the read-out selects, what turns errors of states into errors of
            channels in units of their spread [M].
    """

    def __init__(self, model: StateSpaceModel, sd: Tensor) -> None:
        self.model = model
        weight, bias = (x.detach() for x in stack(model))
        self.selects = selects(weight)
        self.seen_states = (weight != 0).any(0) | (not self.selects)
        if not self.selects:
            return
        self.column = (weight != 0).to(torch.uint8).argmax(1)
        self._gain, self._bias = weight.gather(1, self.column[:, None])[:, 0], bias
        self.state_precision = sd.new_zeros(weight.shape[1])
        self.state_precision[self.column] = (self._gain / sd).abs()
        self._plain = bool((self._gain == 1).all() and (bias == 0).all())
        self._in_order = torch.equal(self.column, torch.arange(weight.shape[1]))

    def parameters(self) -> list[nn.Parameter]:
        """Returns what training changes: weight and intercept of a mixing read-out."""
        if self.selects:
            return []
        found = []
        for observation in self.model.observations.values():
            found += [p for p in (observation.weight, observation.bias) if p is not None]
        return [p for p in found if isinstance(p, nn.Parameter) and p.requires_grad]

    def predict(self, z: Tensor) -> Tensor:
        """Returns what the channels would be: z [..., M] to [..., N]."""
        if not self.selects:
            weight, bias = stack(self.model)
            return z @ weight.T + bias
        own = z if self._in_order else z[..., self.column]
        return own if self._plain else own * self._gain + self._bias

    @torch.no_grad()
    def states(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the states that samples point at, and which of them are known.

        Args:
            y: Samples [..., N].
            mask: Where they are observed [..., N]; None where all are.

        Returns:
            States [..., M] (0 where unknown) and where they are known, bool [..., M] or [M].
        """
        if self.selects:
            return self._selected(y, mask)
        weight, bias = stack(self.model)
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
        states[..., self.column] = own
        if mask is None:
            return states, self.seen_states
        known = torch.zeros_like(states, dtype=torch.bool)
        known[..., self.column] = mask
        return states, known


def stack(model: StateSpaceModel) -> tuple[Tensor, Tensor]:
    """Weight [N, M] and intercept [N] of all channels."""
    parts = list(model.observations.values())
    none = [o.weight.new_zeros(o.channels) for o in parts]
    biases = [n if o.bias is None else o.bias for o, n in zip(parts, none, strict=True)]
    if len(parts) == 1:
        return parts[0].weight, biases[0]
    return torch.cat([o.weight for o in parts]), torch.cat(biases)


def selects(weight: Tensor) -> bool:
    """Whether every channel sees one state, and no two see the same."""
    seen = weight != 0
    return bool((seen.sum(1) == 1).all() and (seen.sum(0) <= 1).all())
