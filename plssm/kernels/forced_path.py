"""Paths of the PLRNN family under teacher forcing, with gradients, in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plssm.kernels._lanes import vector_width
from plssm.kernels.forced_lanes import (
    adjoint_lanes,
    adjoint_room,
    forward_lanes,
    forward_room,
)

__all__ = ["forced_loss", "forced_path", "forced_path_plain"]

_ENOUGH = 2e6  # multiplications of a pass below which a second thread does not pay


def forced_path(
    layer: Any, start: Tensor, *, teacher: Tensor | None = None, weight: Tensor | None = None,
    drive: Tensor | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    r"""Iterates a one-layer map that is drawn to a teacher before each step.

    .. math::
        \tilde z_t = z_t + w_t \circ (\hat z_t - z_t), \qquad
        z_{t+1} = A \circ \tilde z_t + W \varphi(V \tilde z_t) + h + d_t

    The states returned are those before forcing: the predictions on which a loss is taken.
    Gradients flow to the layer, the start, the teacher and the drive, not to the weight.

    Args:
        layer: The map, with the attributes of :class:`plssm.dynamics.hidden_layer.HiddenLayer`,
            on the CPU, float32 or float64.
        start: z_1 [B, M].
        teacher: Teacher signal [B, T, M]; None runs freely.
        weight: Share w of the teacher, anything that broadcasts to [B, T, M]; 0 runs freely, 1
            replaces the state.
        drive: Added to every step [B, T, M]: inputs C s, noise; None is nothing.
        steps: T, where neither teacher nor drive says it.

    Returns:
        z_2 .. z_{T+1} [B, T, M].

    Raises:
        ValueError: If the shapes do not fit together.
    """
    given = [x.shape[1] for x in (teacher, drive) if x is not None]
    steps = given[0] if given else steps
    signals = _signals(start, teacher, weight, drive, steps)
    return _ForcedPath.apply(*_parameters(layer, start), start, *signals, steps)


def forced_loss(
    layer: Any, start: Tensor, *, target: Tensor, precision: Tensor,
    teacher: Tensor | None = None, weight: Tensor | None = None, drive: Tensor | None = None,
    count: int | None = None,
) -> Tensor:  # fmt: skip
    r"""Mean squared difference of a forced path (see `forced_path`) from a target.

    .. math:: \frac1n \sum_{b,t,m} \lambda_m^2 (z_{b,t+1,m} - y_{b,t,m})^2

    Equal to taking the loss of the path, in one pass: the path is never stored outside the cache.

    Args:
        layer: The map.
        start: z_1 [B, M].
        target: y [B, T, M]; NaN where nothing is compared.
        precision: lambda [M]; 0 for states that are not compared.
        teacher: Teacher signal [B, T, M], or None.
        weight: Share of the teacher.
        drive: Added to every step [B, T, M], or None.
        count: n; None is the number of entries of the target.

    Returns:
        A scalar, with gradients as those of `forced_path`.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    steps = target.shape[1]
    if tuple(target.shape) != (len(start), steps, start.shape[1]):
        raise ValueError(f"target: got {tuple(target.shape)}, wanted as many states as the start")
    signals = _signals(start, teacher, weight, drive, steps)
    count = target.numel() if count is None else count
    return _ForcedLoss.apply(
        *_parameters(layer, start), start, *signals, target, precision, count
    )  # fmt: skip


def forced_path_plain(
    step: Callable[[Tensor], Tensor], start: Tensor, *, teacher: Tensor | None = None,
    weight: Tensor | None = None, drive: Tensor | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Does what `forced_path` does for any map, as a plain loop with automatic differentiation.

    Args:
        step: The map, [B, M] to [B, M].
        start: [B, M].
        teacher: [B, T, M] or None.
        weight: Anything that broadcasts to [B, T, M], or None.
        drive: [B, T, M] or None.
        steps: T, where neither teacher nor drive says it.

    Returns:
        [B, T, M].
    """
    given = teacher if teacher is not None else drive
    steps = steps if given is None else given.shape[1]
    nothing = (None,) * steps
    teachers = nothing if teacher is None else teacher.unbind(1)
    shares, drives = nothing, nothing if drive is None else drive.unbind(1)
    if weight is not None:
        shares = weight.detach().expand(len(start), steps, start.shape[1]).unbind(1)
    z, path = start, []
    for target, share, force in zip(teachers, shares, drives, strict=True):
        z = step(z if target is None else z + share * (target - z))
        z = z if force is None else z + force
        path.append(z)
    return torch.stack(path, dim=1)


def _parameters(layer: Any, start: Tensor) -> tuple:
    """The layer as arguments of the autograd functions; without an inner matrix, an empty one."""
    inner = start.new_empty(0, start.shape[1]) if layer.inner is None else layer.inner
    clip = layer.weights.sum()[None] if layer.clipped else layer.weights.new_zeros(1)
    return (
        layer.decay, layer.outer, layer.bias, inner, layer.thresholds, layer.weights, clip,
        layer.linear_units,
    )  # fmt: skip


def _signals(
    start: Tensor, teacher: Tensor | None, weight: Tensor | None, drive: Tensor | None,
    steps: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Teacher, weight and drive in one precision, empty where there are none.

    The weight keeps an axis of length 1 where it is the same for all sequences.
    """
    batch, dim = start.shape
    if steps is None or any(x is not None and x.shape[1] != steps for x in (teacher, drive)):
        raise ValueError(f"steps: got {steps}, wanted one number of steps for all signals")
    if (teacher is None) != (weight is None):
        raise ValueError("teacher and weight: wanted both or neither")
    empty = start.new_empty(0, 0, dim)
    for name, x in (("teacher", teacher), ("drive", drive)):
        if x is not None and tuple(x.shape) != (batch, steps, dim):
            raise ValueError(f"{name}: got {tuple(x.shape)}, wanted {(batch, steps, dim)}")
    if weight is not None:
        weight = weight.detach().to(start)
        weight.expand(batch, steps, dim)  # refuses what does not broadcast
        weight = weight.expand(len(weight) if weight.ndim == 3 else 1, steps, dim)
    return tuple(empty if x is None else x.to(start.dtype) for x in (teacher, weight, drive))


@dataclass
class _Run:
    """One forward pass with what its adjoint needs, in groups of sequences side by side."""

    layer: tuple
    signals: tuple  # start, teacher, weight, drive
    steps: int

    def __post_init__(self) -> None:
        start = self.signals[0]
        self.dtype, (self.batch, self.dim) = start.dtype, start.shape
        self.size, self.bases = self.layer[4].shape
        work = self.steps * self.dim * self.size * 2
        self.vectors, self.groups = _groups(self.batch, work, self.dtype)
        self.lanes = len(self.vectors) * vector_width(self.dtype.itemsize)
        hidden = self.size if len(self.layer[3]) else 0
        self.states, self.units, self.errors = (
            [self.scratch(self.steps * n * self.lanes) for _ in self.groups]
            for n in (self.dim, hidden, self.dim)
        )

    def scratch(self, size: int) -> np.ndarray:
        """Memory for vectors: torch starts it at a multiple of 64 bytes."""
        kind = torch.float32 if self.dtype.itemsize == 4 else torch.float64
        return torch.empty(size, dtype=kind).numpy()

    @property
    def none(self) -> np.ndarray:
        """A signal that is not there."""
        return np.empty((0, 0, self.dim), self.dtype)

    def forward(self, group: int, path: np.ndarray, target: np.ndarray, precision: np.ndarray):
        """Runs a group; returns the sum of its squared errors."""
        room = self.scratch(forward_room(self.dim, self.size, self.lanes))
        return forward_lanes(
            self.layer, *self.signals, path, target, precision, self.errors[group],
            self.states[group], self.units[group], room, *self.groups[group], self.vectors,
        )  # fmt: skip

    def adjoint(self, gradient: np.ndarray, scale: float, needs: tuple[bool, ...]) -> _Gradients:
        """Makes room for the gradients that are needed; `_Gradients.add` fills it by group."""
        return _Gradients(self, gradient, scale, needs)


class _Gradients:
    """Gradients in everything a run depends on.

    Args:
        run: The run.
        gradient: In the path [B, T, M], or empty: then the errors of the run times `scale`.
        scale: What errors are multiplied by.
        needs: Which of the arguments of the autograd functions need a gradient.
    """

    def __init__(
        self, run: _Run, gradient: np.ndarray, scale: float, needs: tuple[bool, ...]
    ) -> None:
        self.run, self.gradient, self.needs = run, gradient, needs
        self.scale = run.dtype.type(scale)
        shape = (run.batch, run.steps, run.dim)
        self.learn = int(needs[5] or needs[6])
        self.sums = [
            tuple(np.zeros(p.shape, run.dtype) for p in run.layer[:7]) for _ in run.groups
        ]
        self.start = np.empty((run.batch, run.dim), run.dtype)
        self.teacher = np.empty(shape, run.dtype) if needs[9] else run.none
        self.drive = np.empty(shape, run.dtype) if needs[11] else run.none

    def add(self, group: int) -> None:
        """Fills in what the sequences of a group contribute."""
        run = self.run
        room = adjoint_room(run.dim, run.size, run.bases, run.steps, run.lanes)
        adjoint_lanes(
            run.layer, run.signals[2], run.states[group], run.units[group], self.gradient,
            run.errors[group], self.scale, (*self.sums[group], self.learn), self.teacher,
            self.drive, self.start, run.scratch(room), *run.groups[group], run.vectors,
        )  # fmt: skip

    def tensors(self) -> Iterator[Tensor | None]:
        """Gradients in the order of the autograd functions' arguments, up to the drive."""
        first = self.sums[0]
        for others in self.sums[1:]:
            for total, other in zip(first, others, strict=True):
                total += other
        arrays = (*first, None, self.start, self.teacher, None, self.drive)
        for array, needed in zip(arrays, self.needs, strict=False):
            yield torch.from_numpy(array) if needed and array is not None else None


def _prepare(arguments: tuple, steps: int) -> _Run:
    """A run from the arguments of an autograd function: layer, start and signals."""
    *parameters, linear, start, teacher, weight, drive = arguments
    layer = (*(_array(p) for p in parameters), linear)
    return _Run(layer, tuple(_array(x) for x in (start, teacher, weight, drive)), steps)


class _ForcedPath(torch.autograd.Function):
    """The compiled recurrence and its adjoint."""

    @staticmethod
    def forward(ctx, *arguments):
        run = _prepare(arguments[:-1], arguments[-1])
        path = np.empty((run.batch, run.steps, run.dim), run.dtype)
        unused = np.empty(run.dim, run.dtype)
        _each(lambda g: run.forward(g, path, run.none, unused), len(run.groups))
        ctx.run = run
        return torch.from_numpy(path)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        found = ctx.run.adjoint(_array(gradient), 1.0, ctx.needs_input_grad)
        _each(found.add, len(ctx.run.groups))
        return (*found.tensors(), None)


class _ForcedLoss(torch.autograd.Function):
    """The loss of a forced path; its gradients are taken in the same pass."""

    @staticmethod
    def forward(ctx, *arguments):
        *rest, target, precision, count = arguments
        run = _prepare(tuple(rest), target.shape[1])
        target, precision = _array(target.to(rest[8])), _array(precision.to(rest[8]))
        found = run.adjoint(run.none, 2.0 / count, ctx.needs_input_grad)
        totals = [0.0] * len(run.groups)

        def both(group: int) -> None:
            totals[group] = run.forward(group, run.none, target, precision)
            if any(ctx.needs_input_grad):
                found.add(group)

        _each(both, len(run.groups))
        ctx.found = found
        return rest[8].new_tensor(sum(totals) / count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        scale = float(gradient)
        parts = ctx.found.tensors()
        if scale != 1.0:
            parts = (None if p is None else scale * p for p in parts)
        return (*parts, None, None, None)


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, so that the loops are compiled only once."""
    return tensor.detach().contiguous().numpy()


def _groups(batch: int, work: int, dtype: np.dtype) -> tuple[tuple, list[tuple[int, int]]]:
    """Groups of sequences that are worked on side by side, (first, count), and their vectors.

    A group has up to 16 lanes (8 in few sequences); where a second thread pays, each has a part.
    """
    threads = torch.get_num_threads() if work * batch > _ENOUGH else 1
    width = vector_width(dtype.itemsize)
    share = -(-batch // threads)
    most = max(16 if share > 8 else 8, width)
    groups = [(i, min(most, batch - i)) for i in range(0, batch, most)]
    return (0,) * (most // width), groups


def _each(run: Callable[[int], None], groups: int) -> None:
    """Calls run(group) for all groups, on as many threads as torch has."""
    threads = min(torch.get_num_threads(), groups)
    if threads < 2:
        for group in range(groups):
            run(group)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(groups)))
