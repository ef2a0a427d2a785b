"""Updates of Gaussian states by the data of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from plssm.data import Batch, Modality
from plssm.inference.quadratic_chain import absolute
from plssm.inference.step_samples import on_grid, one_step
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.clock import scatter
from plssm.observations.local import pull_back

__all__ = ["StepTerms", "laplace_update", "penalised", "step_terms"]

StepTerms = list[tuple[ObservationModel, Modality]]


def step_terms(model: StateSpaceModel, batch: Batch) -> Callable[[int], StepTerms]:
    """The observations of single steps, none of which may remember earlier states.

    Args:
        model: The model.
        batch: The trials.

    Returns:
        A function of the step: each modality's model and samples, all covariates (past counts,
        too) in the place of the nuisance regressors. Modalities without any are left out.
    """
    grids = {}
    for name, observation in model.observations.items():
        m = batch.modalities[name]
        grids[name] = on_grid(replace(m, nuisance=observation.covariates(m)), batch.steps)

    def at(t: int) -> StepTerms:
        samples = {n: one_step(g, t) for n, g in grids.items()}
        return [(model.observations[n], m) for n, m in samples.items() if bool(m.mask.any())]

    return at


def laplace_update(
    terms: StepTerms, m: np.ndarray, p: np.ndarray, newton: int = 25
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Laplace update of N(m, P) by one step's observations; posterior and log evidence.

    Args:
        terms: Models and samples of the step.
        m: Means [B, M].
        p: Covariances [B, M, M].
        newton: Newton steps at most.
    """
    precision = np.linalg.inv(p)
    z = m.copy()
    value = penalised(terms, z, m, precision)
    for _ in range(newton):
        score, curvature = _slopes(terms, z)
        curvature = absolute(curvature)
        gradient = score - (precision @ (z - m)[..., None])[..., 0]
        move = np.linalg.solve(precision + curvature, gradient[..., None])[..., 0]
        z, value, gained = _line_search(terms, z, move, value, m, precision)
        if gained <= 1e-10 * (1 + np.abs(value).max()):
            break
    exact = _slopes(terms, z)[1]
    bad = np.linalg.eigvalsh(precision + exact)[:, 0] <= 0
    if bad.any():
        exact[bad] = _slopes(terms, z, positive=True)[1][bad]
    total = precision + exact
    logdet = np.linalg.slogdet(total)[1] + np.linalg.slogdet(p)[1]
    return z, np.linalg.inv(total), value - 0.5 * logdet


def _line_search(
    terms: StepTerms,
    z: np.ndarray,
    move: np.ndarray,
    value: np.ndarray,
    m: np.ndarray,
    precision: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    step, best, best_value = np.ones(len(z)), z.copy(), value.copy()
    for _ in range(30):
        trial = z + step[:, None] * move
        reached = penalised(terms, trial, m, precision)
        better = reached > best_value
        best[better], best_value[better] = trial[better], reached[better]
        if (best_value > value).all() or np.abs(step[:, None] * move).max() < 1e-9:
            break
        step = np.where(best_value > value, step, 0.5 * step)
    return best, best_value, float((best_value - value).max())


def penalised(terms: StepTerms, z: np.ndarray, m: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Log density of the data less (z - m)'P^-1(z - m) / 2 at states [..., B, M], as [..., B].

    Args:
        terms: Models and samples of the step.
        z: States.
        m: Means [B, M].
        precision: P^-1 [B, M, M].
    """
    e = z - m
    value = -0.5 * ((precision @ e[..., None])[..., 0] * e).sum(-1)
    with torch.no_grad():
        for observation, samples in terms:
            eta = _features(observation, samples, z)
            density = observation.masked_log_prob(eta, samples).sum((-2, -1))
            value = value + float(observation.tempering) * density.numpy()
    return value


def _features(observation: ObservationModel, m: Modality, z: np.ndarray) -> torch.Tensor:
    """Predictors of a step's samples [..., B, k, K]."""
    state = torch.from_numpy(z)[..., None, :]
    state = state.expand(*z.shape[:-1], m.y.shape[1], z.shape[-1])
    return observation.features(state, m.nuisance)


def _slopes(
    terms: StepTerms, z: np.ndarray, *, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [B, M] and negative Hessian [B, M, M] of the log density of the data."""
    score, curvature = np.zeros_like(z), np.zeros((*z.shape, z.shape[-1]))
    for observation, m in terms:
        with torch.no_grad():
            eta = _features(observation, m, z)
        _, slope, bent = observation.derivatives(eta, m, positive=positive)
        here = torch.from_numpy(z)[:, None].expand(*eta.shape[:2], z.shape[-1])
        slope, bent = pull_back(
            slope, bent, observation.weight.detach(), observation.readout.slope(here),
            coupled=observation.coupled,
        )  # fmt: skip
        power = float(observation.tempering)
        score = score + power * scatter(slope, m.clock, 1)[:, 0].detach().numpy()
        curvature = curvature + power * scatter(bent, m.clock, 1)[:, 0].detach().numpy()
    return score, curvature
