"""Running a compiled system: transient, inner steps, noise and one random stream per trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from plssm.data.validation import check_dt
from plssm.errors import DataError

__all__ = ["Start", "simulate"]

Start = Sequence[float] | np.ndarray | None

_BLOCK = 1_000_000
"""Numbers drawn at a time."""


def simulate(
    path: Callable,
    dim: int,
    parameters: tuple[float, ...],
    steps: int,
    dt: float,
    trials: int,
    seed: int,
    transient: float,
    process_noise: float | Sequence[float],
    start: Start,
    max_step: float,
    draw_start: Callable[[np.random.Generator], Sequence[float] | np.ndarray],
) -> np.ndarray:
    """Return paths of a compiled system.

    Args:
        path: One of the functions of :mod:`plssm.data.flows`.
        dim: Dimension of the state.
        parameters: Parameters in the order of the vector field.
        steps: Rows of each path.
        dt: Time between rows.
        trials: Number of paths.
        seed: Decides initial states and noise; each trial has its own stream.
        transient: Time that passes before the first row.
        process_noise: Noise per square root of time, a number or one per dimension.
        start: Initial state [dim] or [trials, dim], None to draw one.
        max_step: Largest inner step.
        draw_start: Draws an initial state.

    Returns:
        States [trials, steps, dim].

    Raises:
        DataError: If a size is impossible or a path leaves the finite numbers.
    """
    dt = check_dt(dt)
    if steps < 1 or trials < 1 or transient < 0 or not max_step > 0:
        raise DataError(
            "nothing to simulate",
            got=f"steps={steps}, trials={trials}, transient={transient}, max_step={max_step}",
            wanted="steps >= 1, trials >= 1, transient >= 0, max_step > 0",
        )
    noise = np.broadcast_to(np.asarray(process_noise, dtype=np.float64), (dim,)).copy()
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise DataError("process_noise is a standard deviation", got=noise, wanted=">= 0")
    inner, skip = int(np.ceil(dt / max_step - 1e-9)), int(np.ceil(transient / dt - 1e-9))
    p = np.array(parameters, dtype=np.float64)
    run = partial(_run, path, p, noise, dt, max(inner, 1))
    out = np.empty((trials, steps, dim))
    for i, child in enumerate(np.random.SeedSequence(seed).spawn(trials)):
        generator = np.random.default_rng(child)
        state = _initial(start, i, trials, dim) if start is not None else draw_start(generator)
        state = np.array(state, dtype=np.float64)
        run(state, generator, -skip, np.empty((skip, dim)))
        run(state, generator, 0, out[i])
    if not np.isfinite(out).all():
        raise DataError(
            "the path left the finite numbers",
            trial=int(np.argwhere(~np.isfinite(out))[0, 0]),
            fix="make max_step or process_noise smaller, or start nearer to the attractor",
        )
    return out


def _run(
    path: Callable,
    p: np.ndarray,
    noise: np.ndarray,
    dt: float,
    inner: int,
    state: np.ndarray,
    generator: np.random.Generator,
    first: int,
    out: np.ndarray,
) -> None:
    # Fills out and moves state on; noise is drawn for a block of rows at a time.
    dim = len(state)
    block = max(_BLOCK // (inner * dim), 1) if noise.any() else max(len(out), 1)
    for row in range(0, len(out), block):
        part = out[row : row + block]
        kicks = np.empty((0, inner, dim))
        if noise.any():
            draws = generator.standard_normal((len(part), inner, dim))
            kicks = noise * np.sqrt(dt / inner) * draws
        path(state, p, kicks, first + row, dt, inner, part)


def _initial(start: Start, trial: int, trials: int, dim: int) -> np.ndarray:
    states = np.asarray(start, dtype=np.float64)
    if states.shape not in ((dim,), (trials, dim)):
        raise DataError(
            "start has the wrong shape",
            got=states.shape,
            wanted=f"({dim},) or ({trials}, {dim})",
        )
    return states if states.ndim == 1 else states[trial]
