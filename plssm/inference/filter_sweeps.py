"""Causal filter of any observations, by runs of the filter for quadratic ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plssm.data import Batch
from plssm.inference.augmented_filter import run_filter
from plssm.inference.augmented_states import LagStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import filter_chain
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import QuadraticTerms
from plssm.kernels.gaussian_filter import FilterResult
from plssm.model import StateSpaceModel

__all__ = ["filter_sweeps", "filtered_path"]

SETTLED = 1e-8  # largest move of the filtered path between two runs, in posterior sd
QUICK = 12  # runs that are enough for a start
LARGEST = 60  # joined states for which a filter is a cheap start


def filter_sweeps(
    model: StateSpaceModel, batch: Batch, prior: ChainPrior, z: np.ndarray, *, sweeps: int,
    run: Callable[[ChainPrior, QuadraticTerms], FilterResult] = filter_chain,
) -> tuple[np.ndarray, QuadraticTerms, FilterResult | None]:  # fmt: skip
    """Run the filter with terms expanded around its own result until that stays.

    Args:
        model: Model without memory.
        batch: Trials.
        prior: Their prior.
        z: Path to expand around first ``[B, T, M]``.
        sweeps: Runs at most; steps are halved in the second half of them.
        run: The filter for quadratic terms.

    Returns:
        The filtered path, the terms around it, and the filter's result where it has settled on
        the exact terms (otherwise None).
    """
    inside = batch.time_mask.numpy()[..., None]
    for sweep in range(sweeps):
        with np.errstate(over="ignore", invalid="ignore"):
            terms = expand(model, batch, z)
        if not np.isfinite(terms.information).all():
            return z, terms, None
        safe = terms.steering(z)
        result = run(prior, safe)
        if not np.isfinite(result.filtered_mean).all():
            return z, terms, None
        move = np.where(inside, result.filtered_mean - z, 0.0)
        sd = np.sqrt(np.diagonal(result.filtered_covariance, axis1=2, axis2=3))
        if np.abs(move / np.where(inside, sd, 1.0)).max() < SETTLED:
            return z, terms, result if safe is terms else None
        z = z + move * (1.0 if sweep < sweeps // 2 else 0.5)
    return z, terms, None


def filtered_path(model: StateSpaceModel, batch: Batch, prior: ChainPrior) -> np.ndarray | None:
    """Roughly filtered path ``[B, T, M]``, a start of a mode search; None where it is costly."""
    shape = (len(prior.length), batch.steps, prior.dim)
    if not any(o.memory(batch.dt) for o in model.observations.values()):
        return filter_sweeps(model, batch, prior, np.zeros(shape), sweeps=QUICK)[0]
    states = LagStates(model, batch.dt)
    if states.size > LARGEST:
        return None
    mean = run_filter(model, batch, prior, states).filtered[0][:, :, : states.dim]
    mean[np.arange(batch.steps) >= prior.length[:, None]] = 0.0
    return mean if np.isfinite(mean).all() else None
