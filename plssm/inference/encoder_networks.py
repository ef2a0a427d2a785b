"""Networks over time that leave trials of a padded batch independent of each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from plssm.errors import PlssmError

__all__ = ["NETWORKS", "Convolutions", "Recurrent", "StepWise", "make_network"]

WIDTH, LAYERS = 11, 2  # steps of a convolution, and convolutions before the last layer
NETWORKS = ("conv", "gru", "mlp", "none")


class Convolutions(nn.Module):
    """Temporal convolutions; what lies beyond a trial's end is zero in every layer.

    Args:
        inputs: Features of each step.
        hidden: Width.
        outputs: Numbers wanted of each step; zero at the start.
    """

    reach = LAYERS * (WIDTH // 2)

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * LAYERS]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, WIDTH, padding=WIDTH // 2, dtype=torch.float64)
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.last = _silent(hidden, outputs)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Returns [B, T, outputs] for features [B, T, inputs] and steps that exist [B, T, 1]."""
        x, inside = x.mT, inside.mT
        for layer in self.layers:
            x = nn.functional.silu(layer(x)) * inside
        return self.last(x.mT)


class Recurrent(nn.Module):
    """A gated recurrent network in both directions (arguments as of :class:`Convolutions`)."""

    reach = 50

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cells = nn.GRU(
            inputs, hidden, batch_first=True, bidirectional=True, dtype=torch.float64
        )
        self.last = _silent(2 * hidden, outputs)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Returns [B, T, outputs] (see :class:`Convolutions`)."""
        length = inside[..., 0].sum(1).long().cpu()
        packed = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(
            self.cells(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return self.last(out)


class StepWise(nn.Module):
    """The same network for each step by itself (arguments as of :class:`Convolutions`)."""

    reach = 0

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * LAYERS]
        self.layers = nn.ModuleList(
            nn.Linear(a, b, dtype=torch.float64)
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.last = _silent(hidden, outputs)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:  # noqa: ARG002 (steps are apart)
        """Returns [B, T, outputs] (see :class:`Convolutions`)."""
        for layer in self.layers:
            x = nn.functional.silu(layer(x))
        return self.last(x)


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """A layer that gives zeros until it has learned something."""
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def make_network(name: str, inputs: int, hidden: int, outputs: int) -> nn.Module | None:
    """The network of that name; None for "none".

    Raises:
        PlssmError: For any other name.
    """
    known = {"conv": Convolutions, "gru": Recurrent, "mlp": StepWise}
    if name == "none":
        return None
    if name not in known:
        raise PlssmError(f"encoder network {name!r}: wanted one of {NETWORKS}.")
    return known[name](inputs, hidden, outputs)
