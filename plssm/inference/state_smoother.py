"""Iterated extended Kalman smoother in covariance form, for observations with memory, too."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.augmented_filter import AugmentedRun, run_filter, run_smoother
from plssm.inference.augmented_states import AugmentedStates, LagStates, ResponseStates
from plssm.inference.chain_prior import ChainPrior
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianMarginals

__all__ = ["joined_states", "smooth_states"]

PASSES = 50
SETTLED = 1e-8  # largest move of the smoothed path between two passes, in posterior sd


def joined_states(model: StateSpaceModel, dt: float) -> AugmentedStates:
    """The latent state with what the observations need of the past.

    A few linear states per latent dimension where every observation with memory asks for them
    (``BOLD(kernel="states")``), otherwise the last latent states themselves.

    Args:
        model: The model.
        dt: Seconds per latent step.
    """
    remembering = [o for o in model.observations.values() if o.memory(dt)]
    if remembering and all(getattr(o, "kernel", None) == "states" for o in remembering):
        return ResponseStates(model, dt)
    return LagStates(model, dt)


def smooth_states(model: StateSpaceModel, batch: Batch) -> GaussianMarginals:
    r"""Smoothed posterior by filter and Bryson-Frazier smoother on the joined states.

    Map and observations are linearised around the smoothed path of the pass before, until it
    stays. For linear-Gaussian models one pass is exact; otherwise the path it settles on is a mode
    of the posterior (Bell 1994), unless it keeps jumping between linear regions.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.

    Returns:
        Marginals of the latent states; ``status`` says whether the path settled.

    References:
        Bell (1994), doi:10.1137/0804035.
    """
    prior = ChainPrior.of(model.dynamics, batch)
    states = joined_states(model, batch.dt)
    linear = not prior.form.outer.shape[1]
    exact = linear and all(o.quadratic for o in model.observations.values())
    run = run_filter(model, batch, prior, states)
    mean, covariance, cross = run_smoother(run, states, prior)
    settled = np.full(len(prior.length), exact)
    for _ in range(0 if exact else PASSES):
        before = mean
        reference = before[:, :, : states.dim], before
        run = run_filter(model, batch, prior, states, reference=reference)
        mean, covariance, cross = run_smoother(run, states, prior)
        settled = _moved(mean, before, covariance, prior, states.dim) < SETTLED
        if settled.all():
            break
    return _marginals(run, prior, states.dim, mean, covariance, cross, settled, exact)


def _moved(
    mean: np.ndarray, before: np.ndarray, covariance: np.ndarray, prior: ChainPrior, dim: int
) -> np.ndarray:
    """Largest move of each trial's latent path in posterior sd, ``[B]``."""
    inside = np.arange(mean.shape[1]) < prior.length[:, None]
    variance = np.diagonal(covariance, axis1=2, axis2=3)[..., :dim]
    move = np.abs(mean - before)[..., :dim] / np.sqrt(np.maximum(variance, 1e-300))
    return np.where(inside[..., None], move, 0.0).max((1, 2))


def _marginals(
    run: AugmentedRun,
    prior: ChainPrior,
    dim: int,
    mean: np.ndarray,
    covariance: np.ndarray,
    cross: np.ndarray,
    settled: np.ndarray,
    exact: bool,
) -> GaussianMarginals:
    return GaussianMarginals(
        mean=mean[:, :, :dim],
        marginal_covariance=covariance[:, :, :dim, :dim],
        lag_covariance=cross,
        length=torch.from_numpy(prior.length),
        log_evidence=run.evidence,
        evidence_kind="exact" if exact else "ekf",
        status=tuple("stationary" if s else "max_passes" for s in settled),
    )
