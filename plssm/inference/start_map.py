"""The first parameters of a map from a path, and the path that known observations see."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from plssm.data import Batch
from plssm.inference.laplace import laplace_posterior
from plssm.inference.m_step import update_coefficients, update_initial, update_process_noise
from plssm.inference.starts import StartPath, observed_path
from plssm.inference.statistics import TransitionStatistics, regional_statistics
from plssm.model import StateSpaceModel

__all__ = ["known_path", "start_dynamics"]

START_FLOOR = 1e-3  # smallest variance of a start, for latents of unit variance


def known_path(
    model: StateSpaceModel, batch: Batch, fresh: Collection[str], *, known_map: bool,
    trial_means: np.ndarray | None,
) -> StartPath:  # fmt: skip
    """The path that the observations with known parameters see, under the map if that is known.

    Args:
        model: The model.
        batch: The training trials.
        fresh: Names of the observations that have no parameters yet.
        known_map: Whether the map has.
        trial_means: Means of the first states of the trials ``[B, M]``, or None.
    """
    held = {n: o for n, o in model.observations.items() if n not in fresh}
    part = StateSpaceModel(model.dynamics, held)
    if known_map:
        result = laplace_posterior(part, batch, trial_means=trial_means)
        if not result.failed:
            return StartPath.of(result.posterior, model, batch)
    return observed_path(part, batch)


def start_dynamics(
    model: StateSpaceModel, batch: Batch, path: StartPath, ridge: float
) -> np.ndarray | None:
    """One M-step from a start path; the map changes in place.

    Args:
        model: The model.
        batch: The training trials.
        path: The path, with its spread.
        ridge: Precision of the prior on the weights of the hinges.

    Returns:
        Means of the first states of the trials ``[B, M]``, or None.
    """
    statistics = _regress(model, batch, path, ridge)
    means = update_initial(model.dynamics, path, batch, START_FLOOR)
    update_process_noise(model.dynamics, statistics, path, batch, means, START_FLOOR)
    return means


def _regress(
    model: StateSpaceModel, batch: Batch, path: StartPath, ridge: float
) -> TransitionStatistics:
    """Fit the map to a path, with every hinge on its side of the kink."""
    form = model.dynamics.relu_form()
    slope = (form.gates(path.mean[:, :-1]) > 0).astype(np.float64)
    if not form.outer.shape[1]:
        slope = slope[..., :0]
    statistics = regional_statistics(model.dynamics, path, batch, slope)
    update_coefficients(model.dynamics, statistics, path, batch, ridge=ridge)
    return statistics
