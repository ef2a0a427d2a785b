"""Process and observation noise of a model whose map was trained without them."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from plssm.data import Dataset
from plssm.dynamics import PiecewiseLinear
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.stages import Stage
from plssm.model import StateSpaceModel

__all__ = ["fit_noise"]

STEPS = 4000  # latent steps that are enough to estimate variances
ITERATIONS = 10


def fit_noise(model: StateSpaceModel, data: Dataset, *, seed: int = 0) -> None:
    """Fits process noise, first state and observation noise by EM, with map and read-out held.

    Args:
        model: Changed in place.
        data: Training trials; at most 4000 steps are used.
        seed: Seed of the engine.
    """
    if not isinstance(model.dynamics, PiecewiseLinear):
        warnings.warn(
            f"the noise of {type(model.dynamics).__name__} was not fitted: it is not piecewise "
            "linear; posteriors use the noise the model started with.",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    held = [p for p in _held(model) if p.requires_grad]
    model.dynamics.noise.covariance = 1e-2 * torch.eye(model.dim, dtype=torch.float64)
    stage = Stage("noise", ITERATIONS, learn=("process_noise", "initial", "observations"))
    engine = LaplaceEM(seed=seed, stages=(stage,), start="model")
    try:
        for p in held:
            p.requires_grad_(False)
        fit = engine.fit(model, _shortened(data), progress=False)
    finally:
        for p in held:
            p.requires_grad_(True)
    model.load_state_dict(fit.model.state_dict())


def _held(model: StateSpaceModel) -> list[nn.Parameter]:
    """Parameters of the map and of the read-outs."""
    dynamics = model.dynamics
    free = {*dynamics.noise.parameters(), *dynamics.initial.parameters()}
    found = [p for p in dynamics.parameters() if p not in free]
    for observation in model.observations.values():
        found += [p for n, p in observation.named_parameters() if n in ("weight", "bias")]
    return found


def _shortened(data: Dataset) -> Dataset:
    """The first trials, and of the last of them the first part, up to a number of steps."""
    seconds, kept = STEPS * data.dt, []
    for i, trial in enumerate(data.trials):
        kept.append(i)
        seconds -= trial.length * data.dt
        if seconds <= 0:
            break
    part = data.select(trials=kept)
    if max(t.length for t in part.trials) > STEPS:
        part = part.select(time=(0.0, STEPS * data.dt))
    return part
