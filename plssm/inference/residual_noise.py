"""Process and observation noise of a model whose map was trained without them."""

from __future__ import annotations

import itertools
import warnings

import torch
from torch import nn

from plssm.data import Dataset
from plssm.dynamics import PiecewiseLinear
from plssm.inference.forced_readouts import teacher_signal
from plssm.inference.laplace import laplace_posterior
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.stages import Stage
from plssm.inference.teacher_signal import TeacherSignal, moments
from plssm.model import StateSpaceModel

__all__ = ["fit_noise"]

STEPS, FEWER = 1500, 400  # latent steps from which variances and their levels are estimated
WORK = 2e6  # steps times squared memory of the observations: a minute or so with three states
ITERATIONS = 10
PROCESS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # variances tried, times that of the states
OBSERVED = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # variances tried, times that of the channels


def fit_noise(
    model: StateSpaceModel, data: Dataset, *, seed: int = 0, spread: torch.Tensor | None = None
) -> None:
    """Fits process noise, first state and observation noise by EM, with map and read-out held.

    Args:
        model: Changed in place.
        data: Training trials; at most 1500 steps are used, fewer with a long response.
        seed: Seed of the engine.
        spread: Variance of the states [M], where the observation models were trained as well:
            only their Gaussian noise is fitted then. None reads it off the data.
    """
    if not isinstance(model.dynamics, PiecewiseLinear):
        warnings.warn(
            f"the noise of {type(model.dynamics).__name__} was not fitted: it is not piecewise "
            "linear; posteriors use the noise the model started with.",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    held = [p for p in _held(model, trained=spread is not None) if p.requires_grad]
    part = _shortened(data, _enough(model, data.dt, STEPS))
    if not model.dynamics.initialised:
        _best_level(model, _shortened(data, _enough(model, data.dt, FEWER)), spread)
    stage = Stage("noise", ITERATIONS, learn=("process_noise", "initial", "observations"))
    engine = LaplaceEM(seed=seed, stages=(stage,), start="model")
    try:
        for p in held:
            p.requires_grad_(False)
        fit = engine.fit(model, part, progress=False)
    finally:
        for p in held:
            p.requires_grad_(True)
    model.load_state_dict(fit.model.state_dict())


def _best_level(
    model: StateSpaceModel, data: Dataset, spread_of_states: torch.Tensor | None
) -> None:
    """Sets both noises to the pair of levels, relative to the data, with the best evidence."""
    batch, dynamics = data.batch(), model.dynamics
    if spread_of_states is None:
        states = _spread(teacher_signal(model, batch))
        free = [(n, o) for n, o in model.observations.items() if o.log_noise.requires_grad]
    else:
        states, free = spread_of_states, []
    spread = {n: moments(batch.modalities[n].y, batch.modalities[n].mask)[1] ** 2 for n, _ in free}

    def set_levels(process: float, observed: float) -> None:
        if not dynamics.noise.frozen:
            dynamics.noise.covariance = process * torch.diag(states)
        for name, observation in free:
            observation.noise = observed * spread[name]

    found = []
    for levels in itertools.product(PROCESS, OBSERVED if free else (1.0,)):
        set_levels(*levels)
        result = laplace_posterior(model, batch)
        found.append((-float("inf") if result.failed else result.evidence, levels))
    set_levels(*max(found)[1])


def _spread(signal: TeacherSignal) -> torch.Tensor:
    """Variance of the states that the data point at [M]; of hidden ones, the mean of the rest."""
    states, known = signal.teacher(signal.y, signal.mask)
    count = known.sum((0, 1))
    mean = states.sum((0, 1)) / count.clamp_min(1)
    square = torch.where(known, states - mean, 0.0).square().sum((0, 1)) / count.clamp_min(1)
    seen = (count > 1) & (square > 0)
    rest = square[seen].mean() if bool(seen.any()) else square.new_ones(())
    return torch.where(seen, square, rest).detach()


def _held(model: StateSpaceModel, *, trained: bool) -> list[nn.Parameter]:
    """Parameters of the map and of the read-outs, or of trained observations all but noise."""
    dynamics = model.dynamics
    free = {*dynamics.noise.parameters(), *dynamics.initial.parameters()}
    found = [p for p in dynamics.parameters() if p not in free]
    for observation in model.observations.values():
        found += [
            p
            for n, p in observation.named_parameters()
            if n in ("weight", "bias") or (trained and n != "log_noise")
        ]
    return found


def _enough(model: StateSpaceModel, dt: float, most: int) -> int:
    """Steps that are used: fewer where samples remember many, but five times the memory."""
    memory = max(o.memory(dt) for o in model.observations.values())
    return min(most, max(int(WORK / (1 + memory) ** 2), 5 * memory))


def _shortened(data: Dataset, steps: int) -> Dataset:
    """The first trials, and of the last of them the first part, up to a number of steps."""
    seconds, kept = steps * data.dt, []
    for i, trial in enumerate(data.trials):
        kept.append(i)
        seconds -= trial.length * data.dt
        if seconds <= 0:
            break
    part = data.select(trials=kept)
    if max(t.length for t in part.trials) > steps:
        part = part.select(time=(0.0, steps * data.dt))
    return part
