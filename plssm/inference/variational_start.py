"""Where variational inference begins: a rough model, and a rough path under it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plssm.data import Batch, Dataset
from plssm.dynamics import LatentDynamics, PiecewiseLinear
from plssm.inference.base import working_copy
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.stages import Stage
from plssm.inference.start_search import ENOUGH, LONG, enough_trials
from plssm.inference.starts import observed_path, predictable_path, state_path
from plssm.model import StateSpaceModel

__all__ = ["rough_path", "started_model", "stretch"]

LINEAR = 25  # EM iterations of the linear model that a piecewise-linear map starts from
NOISE = 0.1  # most process-noise variance of a map's start, for states of unit variance
LEAST = 1e-3  # least, as a share of it
WHOLE = 2  # EM iterations of all data after that


def started_model(
    model: StateSpaceModel, data: Dataset, *, start: str, seed: int, iterations: int = 20
) -> StateSpaceModel:
    """A float64 copy of a model whose fresh parts have data-driven start values.

    Maps with a closed-form M-step start from some EM iterations (LaplaceEM), whose regressions
    solve at once what gradients approach slowly; others are drawn at random, and the observation
    models start from components of the data. Of long Gaussian data EM sees a stretch, and all of
    them in two iterations more.

    Args:
        model: The model; never changed.
        data: Training trials.
        start: "auto", "data" or "model".
        seed: Seed of what is drawn.
        iterations: EM iterations; with 0 the posterior of a linear model is all there is.

    Returns:
        The copy.
    """
    copy, dynamics = working_copy(model), model.dynamics
    quadratic = all(o.quadratic for o in model.observations.values())
    parts = (dynamics, *model.observations.values())
    fresh = {"data": True, "model": False}.get(start)
    if not any(not p.initialised if fresh is None else fresh for p in parts):
        return copy
    closed = isinstance(dynamics, PiecewiseLinear) and dynamics.coefficients() is not None
    if closed:
        stages = None
        if dynamics.initialised if fresh is None else not fresh:
            stages = (Stage("start", 0),)
        elif not iterations:
            stages = (Stage("linear", LINEAR, dynamics="linear"), Stage("start", 0))
        weights = {name: float(o.tempering) for name, o in model.observations.items()}
        options = {"seed": seed, "modality_weights": weights}
        engine = LaplaceEM(start=start, iterations=max(iterations, 1), stages=stages, **options)
        short = iterations and stages is None and quadratic
        some = stretch(data) if short else data
        begun = _after(engine, copy, some)
        if some is data:
            return begun
        everything = (Stage("all data", WHOLE),)
        return _after(LaplaceEM(start="model", stages=everything, **options), begun, data)
    batch = data.batch()
    if all(o.readout.trainable for o in copy.observations.values()):
        path = (state_path if quadratic else predictable_path)(copy, batch, copy.dim)
    else:  # the states are what is observed
        path = observed_path(copy, batch)
    z = torch.from_numpy(np.ascontiguousarray(path.mean))
    for name, observation in copy.observations.items():
        if fresh or not observation.initialised:
            observation.init_from(batch.modalities[name], z)
    if fresh or not dynamics.initialised:
        left = _start_map(copy.dynamics, z, batch, torch.Generator().manual_seed(seed))
        for noise, value in ((copy.dynamics.noise, left), (copy.dynamics.initial.noise, 1.0)):
            if not noise.frozen:
                noise.variance = value
    return copy


def _after(engine: LaplaceEM, model: StateSpaceModel, data: Dataset) -> StateSpaceModel:
    """What EM makes of a model."""
    (run,) = engine.trainings(model, data, None, False)
    if run.interrupted:
        raise KeyboardInterrupt
    return working_copy(run.model)


def stretch(data: Dataset) -> Dataset:
    """All of short data; of long ones some trials, and the first part of trials that are long.

    Args:
        data: The trials.
    """
    if data.lengths.sum() <= LONG:
        return data
    rows = enough_trials(np.asarray(data.lengths)).tolist()
    return data.select(trials=rows, time=(0.0, (ENOUGH - 0.5) * data.dt))


def _start_map(
    dynamics: LatentDynamics, z: Tensor, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Starts a map from the transitions of a rough path; variances of the process noise [M]."""
    later = batch.time_mask[:, 1:]
    if not bool(later.any()):
        dynamics.draw_start(generator)
        return torch.full((dynamics.dim,), NOISE, dtype=z.dtype)
    inputs = None if batch.inputs is None else batch.inputs[:, 1:][later].to(z)
    left = dynamics.regress_start(z[:, :-1][later], z[:, 1:][later], inputs, generator)
    return left.clamp(LEAST * NOISE, NOISE)


def rough_path(model: StateSpaceModel, data: Dataset) -> Tensor:
    """What the observations by themselves say about the path, smoothed by a slow random walk.

    Args:
        model: The model, float64.
        data: The trials.

    Returns:
        The path [B, T, M]; zeros beyond a trial's end.
    """
    path = observed_path(model, data.batch()).mean
    return torch.from_numpy(np.ascontiguousarray(path))
