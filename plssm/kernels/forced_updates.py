"""Many training steps of a PLRNN of the family under teacher forcing in one compiled call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from plssm.kernels._lane_emitter import vector_width
from plssm.kernels._update_steps import update_steps
from plssm.kernels.forced_lanes import adjoint_room, forward_room, kept_units, lane_count

__all__ = ["Draws", "ForcedUpdates", "MapSizes", "Penalty", "ValueCopies", "WindowSource"]


class ValueCopies(NamedTuple):
    """Values of a map as copies of parameters: ``sign * vector[index] + constant``.

    The values are, one after the other: decay [M], outer [M, L], bias [M], inner [L, M],
    thresholds [L, B], weights [B], input matrix [M, K], and the map from the seen to the hidden
    part of the first state.

    Attributes:
        index: Where the value is copied from [P], int64; -1 where it is a constant.
        sign: 1 or -1 [P].
        constant: What is added [P].
    """

    index: np.ndarray
    sign: np.ndarray
    constant: np.ndarray


class MapSizes(NamedTuple):
    """Sizes of a map.

    Attributes:
        dim: M.
        units: L.
        bases: B.
        inner: Rows of the inner matrix: L, or 0 without one.
        inputs: K.
        hidden: States whose start is a linear map of the others.
    """

    dim: int
    units: int
    bases: int
    inner: int
    inputs: int
    hidden: int


class WindowSource(NamedTuple):
    """What windows are cut from.

    Attributes:
        states: The states that samples point at [N, M]; NaN where missing, 0 where never seen.
        targets: What states are compared with [N, M]; NaN where they are not.
        response: What they are convolved with before [L, M]; its first L - 1 steps are not
            compared. None where they are compared as they are.
        ends: End of the trial of each sample [N], int64; empty where all windows are whole.
        inputs: Inputs [N, K].
        known: Which states are seen [M], bool.
        precision: By which differences are multiplied [M].
    """

    states: np.ndarray
    targets: np.ndarray
    response: np.ndarray | None
    ends: np.ndarray
    inputs: np.ndarray
    known: np.ndarray
    precision: np.ndarray


class Penalty(NamedTuple):
    """What is added to the loss: sum of ``quadratic / 2 x^2 + linear x``, and a constant.

    Attributes:
        linear: [n].
        quadratic: [n].
        constant: [1].
    """

    linear: np.ndarray
    quadratic: np.ndarray
    constant: np.ndarray


class Draws(NamedTuple):
    """The random choices of S steps.

    Attributes:
        starts: First sample of each window [S, batch], int64.
        shares: Share of the teacher at every step [S, T].
        jitter: Standard normal numbers [S, batch, T, M], or empty.
        spread: By which they are multiplied [M].
    """

    starts: np.ndarray
    shares: np.ndarray
    jitter: np.ndarray
    spread: np.ndarray


class ForcedUpdates:
    """Steps of RAdam on the loss of a forced path, without the interpreter between them.

    The loss is that of `forced_loss`, of states or of what a response makes of them, plus a
    quadratic penalty. One thread makes the steps.

    Args:
        copies: How the map follows from the vector of parameters.
        sizes: Sizes of the map.
        clipped: Whether its layer is clipped.
        linear_units: Number of leading units that are linear.
        source: What windows are cut from.
        penalty: What is added to the loss.
        limit: Largest absolute value of the decay.
        batch: Windows of a step.
        steps: T.
    """

    def __init__(
        self, copies: ValueCopies, sizes: MapSizes, *, clipped: bool, linear_units: int,
        source: WindowSource, penalty: Penalty, limit: float, batch: int, steps: int,
    ) -> None:  # fmt: skip
        self.copies, self.sizes, self.source, self.penalty = copies, sizes, source, penalty
        self.limit, self.dtype = limit, source.states.dtype
        m, size, bases = sizes.dim, sizes.units, sizes.bases
        width = vector_width(self.dtype.itemsize)
        lanes = lane_count(batch, self.dtype.itemsize)
        wide = -(-batch // lanes) * lanes
        self.vectors = (0,) * (lanes // width)
        first = m + m * size + m + sizes.inner * m + size * bases
        self.layout = (
            int(clipped), linear_units, int((copies.index[first : first + bases] >= 0).any())
        )  # fmt: skip
        shared = 1 if not len(source.ends) and not np.isnan(source.states).any() else wide
        drive = steps if sizes.inputs else 0
        self.signals = (
            self._room(1, m, wide), self._room(steps, m, wide), self._room(steps, m, shared),
            self._room(steps, m, wide), self._room(drive, m, wide if drive else 0),
        )  # fmt: skip
        convolved = steps if source.response is not None else 0
        self.backs = (
            self._room(drive, m, wide if drive else 0), self._room(1, m, wide),
            *(self._room(convolved, m, wide if convolved else 0) for _ in range(2)),
        )  # fmt: skip
        self.room = tuple(
            self._room(n)
            for n in (
                steps * m * lanes, steps * m * lanes, kept_units(m, size, steps, lanes),
                forward_room(m, size, lanes), adjoint_room(m, size, bases, steps, lanes),
            )
        )  # fmt: skip

    def _room(self, *shape: int) -> np.ndarray:
        """Memory for vectors: torch starts it at a multiple of 64 bytes."""
        kind = torch.float32 if self.dtype.itemsize == 4 else torch.float64
        return torch.empty(shape, dtype=kind).numpy()

    def run(
        self, vector: np.ndarray, moments: tuple[np.ndarray, np.ndarray], draws: Draws, *,
        done: int, rate: float, longest: float,
    ) -> np.ndarray:  # fmt: skip
        """Takes one step per draw.

        Args:
            vector: Parameters [n]; changed in place.
            moments: Average and average square of the gradients [n]; changed in place.
            draws: The random choices.
            done: Steps that the moments have seen.
            rate: Learning rate.
            longest: Largest norm of a gradient; longer ones are shortened.

        Returns:
            The losses of the steps; fewer than draws where a loss or gradient was not finite:
            that step is not made.
        """
        source, losses = self.source, np.empty(len(draws.starts))
        response = source.response
        response = np.zeros((1, self.sizes.dim), self.dtype) if response is None else response
        windows = (source.states, source.targets, source.ends, source.inputs, len(response) - 1)
        made = update_steps(
            vector, moments, tuple(self.copies), tuple(self.penalty), tuple(self.sizes),
            self.layout, windows, tuple(draws), source.known, response, source.precision,
            self.signals, self.backs, self.room, (done, rate, longest, self.limit), losses,
            self.vectors,
        )  # fmt: skip
        return losses[:made]
