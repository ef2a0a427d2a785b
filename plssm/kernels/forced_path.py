"""Paths of the PLRNN family under teacher forcing, with gradients, in compiled code."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

__all__ = ["forced_path", "forced_path_plain"]

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
    batch, dim = start.shape
    given = [x.shape[1] for x in (teacher, drive) if x is not None]
    steps = given[0] if given else steps
    if steps is None or any(n != steps for n in given):
        raise ValueError(f"steps: got {given or None}, wanted one number of steps")
    if (teacher is None) != (weight is None):
        raise ValueError("teacher and weight: wanted both or neither")
    empty = start.new_empty(0, 0, dim)
    for name, x in (("teacher", teacher), ("drive", drive)):
        if x is not None and tuple(x.shape) != (batch, steps, dim):
            raise ValueError(f"{name}: got {tuple(x.shape)}, wanted {(batch, steps, dim)}")
    teacher = empty if teacher is None else teacher.to(start.dtype)
    weight = empty if weight is None else _shares(weight.detach().to(start), batch, steps, dim)
    drive = empty if drive is None else drive.to(start.dtype)
    inner = start.new_empty(0, dim) if layer.inner is None else layer.inner
    clip = layer.weights.sum()[None] if layer.clipped else layer.weights.new_zeros(1)
    return _ForcedPath.apply(
        layer.decay, layer.outer, layer.bias, inner, layer.thresholds, layer.weights, clip,
        layer.linear_units, start, teacher, weight, drive, steps,
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
    shares = (
        nothing
        if weight is None
        else weight.detach().expand(len(start), steps, start.shape[1]).unbind(1)
    )
    drives = nothing if drive is None else drive.unbind(1)
    z, path = start, []
    for target, share, force in zip(teachers, shares, drives, strict=True):
        z = step(z if target is None else z + share * (target - z))
        z = z if force is None else z + force
        path.append(z)
    return torch.stack(path, dim=1)


class _ForcedPath(torch.autograd.Function):
    """The compiled recurrence and its adjoint."""

    @staticmethod
    def forward(ctx, *arguments):
        *parameters, linear, start, teacher, weight, drive, steps = arguments
        layer = (*(_dense(p) for p in parameters), linear)
        batch, dim = start.shape
        dtype, size = layer[0].dtype, len(layer[4])
        vectors, groups = _groups(batch, steps * dim * size * 2, dtype)
        path = np.empty((batch, steps, dim), dtype)
        arrays = (_array(start), _array(teacher), _array(weight), _array(drive))
        lanes = len(vectors) * vector_width(dtype.itemsize)
        hidden = size if len(layer[3]) else 0
        kept = [
            (_scratch(steps * dim * lanes, start), _scratch(steps * hidden * lanes, start))
            for _ in groups
        ]
        rooms = [_scratch(forward_room(dim, size, lanes), start) for _ in groups]

        def run(group):
            first, count = groups[group]
            forward_lanes(layer, *arrays, path, *kept[group], rooms[group], first, count, vectors)

        _each(run, len(groups))
        ctx.layer, ctx.kept, ctx.plan = layer, kept, (groups, vectors)
        ctx.like = start.detach()
        ctx.weight, ctx.shapes = arrays[2], [tuple(x.shape) for x in (teacher, drive)]
        return torch.from_numpy(path)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        layer, (groups, vectors), dtype = ctx.layer, ctx.plan, ctx.layer[0].dtype
        needs = ctx.needs_input_grad
        batch, steps, dim = gradient.shape
        learn = int(needs[5] or needs[6])
        sums = [(*(np.zeros(p.shape, dtype) for p in layer[:7]), learn) for _ in groups]
        gradient, none = _array(gradient.contiguous()), np.empty((0, 0, dim), dtype)
        to_teacher = np.empty(ctx.shapes[0], dtype) if needs[9] else none
        to_drive = np.empty(ctx.shapes[1], dtype) if needs[11] else none
        to_start = np.empty((batch, dim), dtype)
        lanes = len(vectors) * vector_width(dtype.itemsize)
        needed = adjoint_room(dim, *layer[4].shape, steps, lanes)
        rooms = [_scratch(needed, ctx.like) for _ in groups]

        def run(group):
            first, count = groups[group]
            adjoint_lanes(
                layer, ctx.weight, *ctx.kept[group], gradient, sums[group],
                to_teacher, to_drive, to_start, rooms[group], first, count, vectors,
            )  # fmt: skip

        _each(run, len(groups))
        totals = [sum(parts[1:], parts[0]) for parts in zip(*(s[:7] for s in sums), strict=True)]
        outs = [torch.from_numpy(x) if n else None for x, n in zip(totals, needs, strict=False)]
        to_teacher, to_drive = (
            torch.from_numpy(x) if n else None
            for x, n in ((to_teacher, needs[9]), (to_drive, needs[11]))
        )
        start = torch.from_numpy(to_start) if needs[8] else None
        return (*outs, None, start, to_teacher, None, to_drive, None)


def _shares(weight: Tensor, batch: int, steps: int, dim: int) -> Tensor:
    """The teacher's share with all axes, that of the sequences only where they differ."""
    weight.expand(batch, steps, dim)  # refuses what does not broadcast
    return weight.expand(len(weight) if weight.ndim == 3 else 1, steps, dim)


def _dense(tensor: Tensor) -> np.ndarray:
    """A parameter as a contiguous array of its own type for the compiled loops."""
    return tensor.detach().contiguous().numpy()


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor of the batch as a contiguous array, so that the loops are compiled only once."""
    return tensor.detach().contiguous().numpy()


def _scratch(size: int, like: Tensor) -> np.ndarray:
    """Memory for vectors: torch starts it at a multiple of 64 bytes."""
    return like.new_empty(size).numpy()


def _groups(batch: int, work: int, dtype: np.dtype) -> tuple[tuple, list[tuple[int, int]]]:
    """Groups of sequences that are worked on side by side, (first, count), and their vectors.

    A group has up to 16 lanes (8 in few sequences); where a second thread pays, each has a part.
    """
    threads = torch.get_num_threads() if work * batch > _ENOUGH else 1
    width = vector_width(dtype.itemsize)
    share = -(-batch // threads)
    most = 16 if share > 8 else 8
    most = max(min(most, width * (1 << max(0, (-(-share // width)) - 1).bit_length())), width)
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
