"""A first model for a dataset: one observation model per modality, by the kind of its data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from plssm.data import Dataset
from plssm.dynamics import PLRNN
from plssm.errors import DataError
from plssm.model import StateSpaceModel
from plssm.observations import (
    BOLD,
    Bernoulli,
    Categorical,
    Gaussian,
    ObservationModel,
    Ordinal,
    Poisson,
)

__all__ = ["default_model", "default_observations"]

SMALLEST, LARGEST = 8, 12
"""Bounds of the default number of latent dimensions."""


def default_observations(data: Dataset) -> dict[str, ObservationModel]:
    """Return an observation model for each modality, chosen by its kind and sized by the data.

    ==========  ===========================================================================
    continuous  `Gaussian`
    count       `Poisson`, its bin as long as the interval between samples
    label       `Categorical`; `Bernoulli` for several channels of two classes
    ordinal     `Ordinal`
    bold        `BOLD`, its repetition time the interval between samples
    ==========  ===========================================================================

    Classes and levels are counted over all trials, held-out entries included, so that a part of
    the data that lacks one still gets a model that knows it.

    Args:
        data: The dataset, before it is split.

    Returns:
        Fresh observation models by modality, in the order of the dataset.

    Raises:
        DataError: If a modality has several channels of labels with more than two classes.

    Example:
        >>> import plssm as ps
        >>> data = ps.Dataset.from_arrays(
        ...     {"spikes": [[0, 2], [1, 0], [0, 1]], "choice": [0, 2, 1]},
        ...     dt=0.05,
        ...     kinds={"spikes": "count", "choice": "label"},
        ... )
        >>> found = default_observations(data)
        >>> found["spikes"].bin_seconds, found["choice"].classes
        (0.05, 3)
    """
    return {name: _MAKERS[kind](data, name) for name, kind in data.kinds.items()}


def default_model(data: Dataset, dim: int | None = None) -> StateSpaceModel:
    r"""Return a fresh PLRNN with the default observation model of each modality.

    .. math:: M = \min(\max(8, \lceil \sqrt{2 K} \rceil), 12)

    latent dimensions for K predictors in total, where no number is given. It is a start, not a
    choice: compare fits of several sizes on validation data.

    Args:
        data: The dataset, before it is split.
        dim: Number M of latent dimensions.

    Example:
        >>> import plssm as ps
        >>> model = default_model(ps.data.load_recording("simulated_plrnn"))
        >>> model.dim, model.observations["x"].channels
        (8, 10)
    """
    observations = default_observations(data)
    if dim is None:
        predictors = sum(observation.predictors for observation in observations.values())
        dim = min(max(math.ceil(math.sqrt(2 * predictors)), SMALLEST), LARGEST)
    return StateSpaceModel(PLRNN(dim, inputs=data.n_inputs), observations)


def _gaussian(data: Dataset, name: str) -> ObservationModel:
    return Gaussian(data.channels[name], nuisance=_regressors(data, name))


def _poisson(data: Dataset, name: str) -> ObservationModel:
    return Poisson(
        data.channels[name],
        bin_seconds=_interval(data, name),
        nuisance=_regressors(data, name),
    )


def _labels(data: Dataset, name: str) -> ObservationModel:
    classes, channels = _levels(data, name), data.channels[name]
    if channels == 1:
        return Categorical(classes, nuisance=_regressors(data, name))
    if classes > 2:
        raise DataError(
            "several channels of labels with more than two classes have no default model",
            modality=name,
            axis="channel",
            got=f"{channels} channels, {classes} classes",
            wanted="one channel, or two classes",
            fix="give each channel of labels its own modality",
        )
    return Bernoulli(channels, nuisance=_regressors(data, name))


def _ordinal(data: Dataset, name: str) -> ObservationModel:
    return Ordinal(data.channels[name], _levels(data, name), nuisance=_regressors(data, name))


def _bold(data: Dataset, name: str) -> ObservationModel:
    return BOLD(
        data.channels[name],
        tr_seconds=_interval(data, name),
        nuisance=_regressors(data, name),
    )


_MAKERS: dict[str, Callable[[Dataset, str], ObservationModel]] = {
    "continuous": _gaussian,
    "count": _poisson,
    "label": _labels,
    "ordinal": _ordinal,
    "bold": _bold,
}


def _regressors(data: Dataset, name: str) -> int:
    found = data.trials[0].nuisance.get(name)
    return 0 if found is None else int(found.shape[1])


def _levels(data: Dataset, name: str) -> int:
    """Number of classes or levels, at least two."""
    largest = 1.0
    for trial in data.trials:
        for values in (trial.values[name], trial.hidden.get(name, np.zeros((0, 1)))):
            largest = max(largest, float(np.nanmax(values, initial=1.0)))
    return int(largest) + 1


def _interval(data: Dataset, name: str) -> float:
    """Seconds between the samples of a channel; dt where they are on the latent clock."""
    if all(trial.times[name] is None for trial in data.trials):
        return data.dt
    gaps = []
    for trial in data.trials:
        seconds = np.asarray(trial.seconds(name, data.dt))
        seen = ~np.isnan(trial.values[name])
        if name in trial.hidden:
            seen |= ~np.isnan(trial.hidden[name])
        gaps += [np.diff(seconds[column]) for column in seen.T]
    every = np.concatenate(gaps)
    if not every.size:
        return data.dt
    return float(np.median(every[every < 1.5 * every.min()]))
