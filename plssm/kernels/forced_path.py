"""Paths of the PLRNN family under teacher forcing, with gradients, in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plssm.kernels._lane_emitter import vector_width
from plssm.kernels._threads import side_by_side
from plssm.kernels.forced_lanes import (
    adjoint_lanes,
    adjoint_room,
    forward_lanes,
    forward_room,
    kept_units,
    lane_count,
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


class _Run:
    """One forward pass with what its adjoint needs, in groups of sequences side by side.

    Args:
        arguments: Those of an autograd function: layer, start, teacher, weight, drive.
        steps: T.
        keep: Whether an adjoint may follow.
    """

    def __init__(self, arguments: Sequence[Any], steps: int, *, keep: bool) -> None:
        *parameters, linear, start, teacher, weight, drive = arguments
        self.layer = (*(_array(p) for p in parameters), linear)
        self.dtype, self.steps = self.layer[0].dtype, steps
        (self.batch, self.dim), (self.size, self.bases) = start.shape, self.layer[4].shape
        self.lanes = _lanes(self.batch, steps * self.dim * self.size * 2, self.dtype)
        self.vectors = (0,) * (self.lanes // vector_width(self.dtype.itemsize))
        self.wide = -(-self.batch // self.lanes) * self.lanes
        self.firsts = range(0, self.wide, self.lanes)
        signals = (start[:, None], teacher, weight, drive)
        self.signals = tuple(self.by_time(x) for x in signals)
        kept = kept_units(self.dim, self.size, steps if keep else 1, self.lanes)
        sizes = (steps * self.dim * self.lanes, kept, steps * self.dim * self.lanes)
        self.states, self.units, self.errors = (
            [self.scratch(size) for _ in self.firsts] for size in sizes
        )

    def scratch(self, size: int) -> np.ndarray:
        """Memory for vectors: torch starts it at a multiple of 64 bytes."""
        kind = torch.float32 if self.dtype.itemsize == 4 else torch.float64
        return torch.empty(size, dtype=kind).numpy()

    def by_time(self, tensor: Tensor, beyond: float | None = None) -> np.ndarray:
        """A signal [B, T, M] as the loops read it: [T, M, B], filled up to whole lanes.

        Args:
            tensor: The signal; a first axis of length 0 or 1 stays as it is.
            beyond: What fills the lanes up; None repeats the last sequence.
        """
        x = tensor.detach().permute(1, 2, 0)
        if len(tensor) != self.batch or self.batch == self.wide or not tensor.shape[1]:
            return x.contiguous().numpy()
        whole = x.new_empty(*x.shape[:2], self.wide)
        whole[..., : self.batch] = x
        whole[..., self.batch :] = x[..., -1:] if beyond is None else beyond
        return whole.numpy()

    def by_sequence(self, array: np.ndarray) -> Tensor:
        """Back to [B, T, M]."""
        return torch.from_numpy(array).permute(2, 0, 1)[: self.batch]

    def signal(self, steps: int) -> np.ndarray:
        """Room for a signal [T, M, B]; with 0 steps one that is not there."""
        return np.empty((steps, self.dim, self.wide if steps else 0), self.dtype)

    def forward(
        self, group: int, path: np.ndarray, target: np.ndarray, precision: np.ndarray
    ) -> float:
        """Runs a group; returns the sum of its squared errors."""
        room = self.scratch(forward_room(self.dim, self.size, self.lanes))
        return forward_lanes(
            self.layer, *self.signals, path, target, precision, self.errors[group],
            self.states[group], self.units[group], room, self.firsts[group], self.vectors,
        )  # fmt: skip


class _Gradients:
    """Gradients in everything a run depends on.

    Args:
        run: The run.
        gradient: In the path [T, M, B], or empty: then the errors of the run are.
        scale: What gradient or errors are multiplied by.
        needs: Which of the arguments of the autograd functions need a gradient.
    """

    def __init__(
        self, run: _Run, gradient: np.ndarray, scale: float, needs: Sequence[bool]
    ) -> None:
        self.run, self.gradient, self.needs = run, gradient, needs
        self.scale = np.array([scale], run.dtype)
        self.learn = int(needs[5] or needs[6])
        self.sums = [
            tuple(np.zeros(p.shape, run.dtype) for p in run.layer[:7]) for _ in run.firsts
        ]
        self.start = run.signal(1)
        self.teacher = run.signal(run.steps if needs[9] else 0)
        self.drive = run.signal(run.steps if needs[11] else 0)

    def add(self, group: int) -> None:
        """Fills in what the sequences of a group contribute."""
        run = self.run
        room = run.scratch(adjoint_room(run.dim, run.size, run.bases, run.steps, run.lanes))
        adjoint_lanes(
            run.layer, run.signals[2], run.states[group], run.units[group], self.gradient,
            run.errors[group], self.scale, (*self.sums[group], self.learn), self.teacher,
            self.drive, self.start, room, run.firsts[group], run.vectors,
        )  # fmt: skip

    def tensors(self) -> list[Tensor | None]:
        """Gradients in the order of the autograd functions' arguments, up to the drive."""
        first, run, needs = self.sums[0], self.run, self.needs
        for others in self.sums[1:]:
            for total, other in zip(first, others, strict=True):
                total += other
        found = [torch.from_numpy(x) if n else None for x, n in zip(first, needs, strict=False)]
        return [
            *found,
            None,
            run.by_sequence(self.start)[:, 0] if needs[8] else None,
            run.by_sequence(self.teacher) if needs[9] else None,
            None,
            run.by_sequence(self.drive) if needs[11] else None,
        ]


class _ForcedPath(torch.autograd.Function):
    """The compiled recurrence and its adjoint."""

    @staticmethod
    def forward(ctx, *arguments):
        run = _Run(arguments[:-1], arguments[-1], keep=any(ctx.needs_input_grad))
        path, unused = run.signal(run.steps), run.layer[0]
        _each(lambda g: run.forward(g, path, run.signal(0), unused), len(run.firsts))
        ctx.run = run
        return run.by_sequence(path)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        run = ctx.run
        found = _Gradients(run, run.by_time(gradient, 0.0), 1.0, ctx.needs_input_grad)
        _each(found.add, len(run.firsts))
        return (*found.tensors(), None)


class _ForcedLoss(torch.autograd.Function):
    """The loss of a forced path; its gradients are taken in the same pass."""

    @staticmethod
    def forward(ctx, *arguments):
        *rest, target, precision, count = arguments
        start, run = rest[8], _Run(rest, target.shape[1], keep=any(ctx.needs_input_grad))
        target = run.by_time(target.to(start.dtype), torch.nan)
        precision = _array(precision.to(start.dtype))
        found = _Gradients(run, run.signal(0), 2.0 / count, ctx.needs_input_grad)
        totals = [0.0] * len(run.firsts)

        def both(group: int) -> None:
            totals[group] = run.forward(group, run.signal(0), target, precision)
            if any(ctx.needs_input_grad):
                found.add(group)

        _each(both, len(run.firsts))
        ctx.found = found
        return start.new_tensor(sum(totals) / count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        scale, found = float(gradient), ctx.found.tensors()
        if scale != 1.0:
            found = [None if x is None else scale * x for x in found]
        return (*found, None, None, None)


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, so that the loops are compiled only once."""
    return tensor.detach().contiguous().numpy()


def _lanes(batch: int, work: int, dtype: np.dtype) -> int:
    """Sequences side by side; where a second thread pays, each has a part."""
    threads = torch.get_num_threads() if work * batch > _ENOUGH else 1
    return lane_count(-(-batch // threads), dtype.itemsize)


def _each(run: Callable[[int], None], groups: int) -> None:
    """Calls run(group) for all groups, on as many threads as torch has."""
    threads = min(torch.get_num_threads(), groups)

    def share(first: int, _: int) -> None:
        for group in range(first, groups, threads):
            run(group)

    side_by_side(share, [(first, groups) for first in range(threads)])
