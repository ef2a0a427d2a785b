"""Data of a model that are missing, clocked and driven like others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from plssm.data import Dataset
from plssm.data.trial import Trial
from plssm.errors import PlssmError
from plssm.model import StateSpaceModel

__all__ = ["replicate"]


def replicate(model: StateSpaceModel, data: Dataset, *, seed: int) -> Dataset:
    """Draws data from a model: the trials, clocks, inputs and missing entries of given ones.

    Args:
        model: The model.
        data: Data that fit it.
        seed: Seed of all draws.

    Returns:
        A Dataset with ``.latent``; what is missing or held out in the data is missing.

    Raises:
        DataError: If the data do not fit the model.
        PlssmError: If a path leaves the finite numbers.
    """
    model.check(data)
    generator = torch.Generator().manual_seed(seed)
    trials = [_replicated(model, trial, data.dt, generator) for trial in data]
    return Dataset(tuple(trials), data.dt, data.kinds)


@torch.no_grad()
def _replicated(
    model: StateSpaceModel, trial: Trial, dt: float, generator: torch.Generator
) -> Trial:
    """One trial."""
    inputs = None
    if model.dynamics.n_inputs:
        inputs = model.stacked_inputs(trial.inputs, trial.length, 1)
    z = model.dynamics.sample(trial.length, inputs=inputs, generator=generator)
    if not bool(torch.isfinite(z).all()):
        raise PlssmError(
            "replicate: a free run of the model left the finite numbers, so it has no data like "
            "these; fit again with other restarts"
        )
    values = {}
    for name, observation in model.observations.items():
        seen = trial.values[name]
        regressors = None
        if observation.nuisance:
            regressors = torch.from_numpy(np.array(trial.nuisance[name], dtype=np.float64))[None]
        clock = torch.from_numpy(trial.steps(name))
        features = observation.features_along(z, clock=clock, nuisance=regressors, dt=dt)
        drawn = observation.sample_sequence(features, seed=generator, dt=dt)[0]
        values[name] = np.where(np.isnan(seen), np.nan, drawn.to(torch.float64).numpy())
    return replace(trial, values=values, hidden={}, latent=z[0].numpy())
