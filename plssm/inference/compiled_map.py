"""A map under teacher forcing as plain arrays, for code that is compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics import LatentDynamics, OneLayerDynamics
from plssm.errors import PlssmError
from plssm.inference.teacher_signal import StateTargets
from plssm.kernels.forced_updates import Draws, MapSizes, Penalty, ValueCopies, WindowSource

if TYPE_CHECKING:
    from plssm.inference.forced_training import ForcedTraining

__all__ = ["CompiledMap", "compiled_map", "copied_values", "draw_windows", "quadratic_penalty"]


class CompiledMap(NamedTuple):
    """Everything that the loss of a forced path follows from.

    Attributes:
        copies: How the map follows from the vector of its parameters.
        sizes: Sizes of the map.
        clipped: Whether its layer is clipped.
        linear_units: Number of leading units that are linear.
        source: What windows are cut from.
        penalty: What is added to the loss.
        limit: Largest absolute value of the decay.
    """

    copies: ValueCopies
    sizes: MapSizes
    clipped: bool
    linear_units: int
    source: WindowSource
    penalty: Penalty
    limit: float


def compiled_map(problem: ForcedTraining, vector: nn.Parameter) -> CompiledMap | None:
    """Returns what a problem trains as plain arrays; None where there is no such form.

    There is one where the map is a member of the family whose layer repeats its parameters, the
    penalty is quadratic, and each channel sees one state.

    Args:
        problem: The problem.
        vector: Its parameters.
    """
    dynamics, windows = problem.model.dynamics, problem.windows
    if not isinstance(dynamics, OneLayerDynamics) or not vector.is_cpu:
        return None
    with torch.no_grad():
        compared = problem.signal.by_state(windows.y, windows.mask)
    kind = type(dynamics)
    own = kind.drive is not LatentDynamics.drive
    own |= kind.bound_orbits is not OneLayerDynamics.bound_orbits
    if compared is None or own:
        return None
    try:
        copies = copied_values(vector, lambda: _values(problem))
        penalty = quadratic_penalty(vector, list(problem.parameters()), problem.penalty)
    except (RuntimeError, ValueError, ArithmeticError, PlssmError):
        return None  # the map is not defined for the parameters tried
    if copies is None or penalty is None:
        return None
    layer = dynamics.layer()
    units, bases = layer.thresholds.shape
    inner = 0 if layer.inner is None else units
    sizes = MapSizes(dynamics.dim, units, bases, inner, _inputs(problem), len(problem.hidden))
    limit = dynamics.decay_limit if problem.engine.bounded else np.inf
    source = _source(problem, compared)
    return CompiledMap(copies, sizes, layer.clipped, layer.linear_units, source, penalty, limit)


def draw_windows(
    problem: ForcedTraining, batch: int, progress: np.ndarray, generator: torch.Generator
) -> Draws:
    """Makes the random choices of single steps, in their order.

    Args:
        problem: The problem.
        batch: Windows of a step.
        progress: How much of the training is over at each step.
        generator: Source of randomness.
    """
    windows, count = problem.windows, len(progress)
    steps, real = windows.steps - 1, problem.signal.y.dtype
    noisy = count if problem.engine.noise else 0
    starts = torch.empty(count, batch, dtype=torch.int64)
    shares = torch.empty(count, steps, dtype=real)
    jitter = torch.empty(noisy, batch, steps, problem.model.dim, dtype=real)
    for s, share in enumerate(progress):
        starts[s] = windows.draw_starts(batch, generator)
        if noisy:
            torch.randn(jitter.shape[1:], generator=generator, dtype=real, out=jitter[s])
        shares[s] = problem.forcing.shares(steps, float(share), generator)
    spread = problem.jitter.numpy().astype(jitter.numpy().dtype)
    return Draws(starts.numpy(), shares.numpy(), jitter.numpy(), spread)


@contextmanager
def _left_as_it_was(vector: Tensor) -> Iterator[None]:
    """Puts parameters back after trials, without gradients."""
    kept = vector.detach().clone()
    with torch.no_grad():
        try:
            yield
        finally:
            vector.copy_(kept)


def copied_values(vector: Tensor, read: Callable[[], Tensor]) -> ValueCopies | None:
    """Finds out which values are copies of parameters, by trying several.

    Args:
        vector: Parameters [n]; the same afterwards.
        read: Returns the values [P] that follow from them.

    Returns:
        The copies; None where a value is anything else than a parameter, its negative, or a
        constant.
    """
    kept, count = vector.detach().clone(), vector.numel()
    generator = torch.Generator().manual_seed(0)
    trials = [torch.zeros(count), torch.arange(1.0, count + 1)]
    trials += [scale * torch.randn(count, generator=generator) for scale in (1e-2, 1.0, 1e2)]
    trials += [-trial for trial in trials]
    found = []
    with _left_as_it_was(vector):
        for trial in trials:
            vector.copy_(trial)
            found.append(read().double())
    constant, numbers = found[0], found[1] - found[0]
    index = numbers.abs().round().long() - 1
    if count >= 2**24 or bool((index >= count).any()):
        return None
    sign = numbers.sign()
    for trial, values in zip(trials, found, strict=True):
        copy = sign * trial.to(vector.dtype).double()[index.clamp_min(0)]
        if not torch.equal(torch.where(index >= 0, copy, constant), values):
            return None
    real = kept.numpy().dtype
    held = torch.where(index >= 0, 0.0, constant)
    return ValueCopies(index.numpy(), sign.numpy().astype(real), held.numpy().astype(real))


def _values(problem: ForcedTraining) -> Tensor:
    """The map's values, in the order of :class:`ValueCopies`."""
    dynamics = problem.model.dynamics
    layer = dynamics.layer()
    inner = [] if layer.inner is None else [layer.inner]
    parts = [layer.decay, layer.outer, layer.bias, *inner, layer.thresholds, layer.weights]
    parts += [dynamics.C] if _inputs(problem) else []
    return torch.cat([p.flatten() for p in [*parts, problem.first_state]])


def _inputs(problem: ForcedTraining) -> int:
    return 0 if problem.windows.inputs is None else problem.model.dynamics.n_inputs


@torch.no_grad()
def _source(problem: ForcedTraining, compared: StateTargets) -> WindowSource:
    """Teacher and targets of all samples, with their gaps."""
    windows, signal = problem.windows, problem.signal
    states, known = signal.teacher(windows.y, windows.mask)
    seen = signal.seen_states
    real, response = states.numpy().dtype, compared.response
    return WindowSource(
        torch.where(seen & ~known, torch.nan, states).contiguous().numpy(),
        compared.targets.contiguous().numpy(),
        None if response is None else np.ascontiguousarray(response.numpy(), real),
        np.empty(0, np.int64) if windows.complete else windows.end.numpy(),
        np.empty((0, 0), real) if not _inputs(problem) else windows.inputs.contiguous().numpy(),
        seen.numpy(),
        compared.precision.numpy().astype(real),
    )


def quadratic_penalty(
    vector: nn.Parameter, parameters: Sequence[nn.Parameter], read: Callable[[], Tensor | None]
) -> Penalty | None:
    """Finds out which penalty a function is, by trying several parameters.

    Args:
        vector: Parameters [n]; the same afterwards.
        parameters: Its parts.
        read: Returns the penalty that follows from them, a scalar; None is nothing.

    Returns:
        The penalty; None where it is not a sum of squares and multiples of single parameters.
    """
    kept, real = vector.detach().clone(), vector.detach().numpy().dtype
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(0)).to(kept)
    with _left_as_it_was(vector):
        tried = [(x, *_value_and_slope(vector, parameters, read, x))
                 for x in (torch.zeros_like(kept), torch.ones_like(kept), noise)]  # fmt: skip
    (_, constant, linear), (_, _, after), (x, value, slope) = tried
    quadratic = after - linear
    expected = (constant + linear @ x + 0.5 * quadratic @ x.square(), linear + quadratic * x)
    tolerance = {"rtol": 1e3 * torch.finfo(vector.dtype).eps, "atol": 1e-12}
    alike = zip(expected, (value, slope), strict=True)
    if not all(torch.allclose(a, b, **tolerance) for a, b in alike):
        return None
    arrays = (linear.numpy(), quadratic.numpy(), constant.reshape(1).numpy())
    return Penalty(*(np.ascontiguousarray(a, dtype=real) for a in arrays))


def _value_and_slope(
    vector: nn.Parameter, parameters: Sequence[nn.Parameter], read: Callable[[], Tensor | None],
    at: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A function's value and gradient in all parameters."""
    vector.copy_(at)
    with torch.enable_grad():
        total = read()
    if total is None:
        return at.new_zeros(()), torch.zeros_like(at)
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for g, p in zip(slopes, parameters, strict=True)
    ]
    return total.detach(), torch.cat(flat)
