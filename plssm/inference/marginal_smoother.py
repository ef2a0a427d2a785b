"""Smoothed marginals from a filter that was linearised once, or matched moments."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.augmented_filter import run_filter, run_smoother
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.filter_options import FilterOptions
from plssm.inference.filtering import FilterRun, evidence_kind, filter_run
from plssm.inference.state_smoother import joined_states
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianMarginals

__all__ = ["rts_marginals", "smooth_marginals"]


def smooth_marginals(
    model: StateSpaceModel, batch: Batch, options: FilterOptions
) -> GaussianMarginals:
    """Smoothed posterior of a filter that matches moments; its evidence is the filter's.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.
        options: How the filter predicts and updates.

    Returns:
        Marginals of the latent states and covariances of neighbours.

    Raises:
        CapabilityError: If data have memory, which not all options serve.
    """
    options.refuse(model, batch)
    if not any(o.memory(batch.dt) for o in model.observations.values()):
        return rts_marginals(filter_run(model, batch, options))
    prior, states = ChainPrior.of(model.dynamics, batch), joined_states(model, batch.dt)
    run = run_filter(model, batch, prior, states, expected=options.propagation == "moments")
    mean, covariance, cross = run_smoother(run, states, prior)
    m = states.dim
    return GaussianMarginals(
        mean=mean[:, :, :m],
        marginal_covariance=covariance[:, :, :m, :m],
        lag_covariance=cross,
        length=torch.from_numpy(prior.length),
        log_evidence=run.evidence,
        evidence_kind=evidence_kind(model, prior, options),
    )


def rts_marginals(run: FilterRun) -> GaussianMarginals:
    r"""Rauch-Tung-Striebel smoother of a filter's run.

    .. math:: G_t = P_t E[J_t]^\top (P^-_{t+1})^{-1}, \qquad
        \hat z_t = m_t + G_t (\hat z_{t+1} - m^-_{t+1}), \qquad
        \hat P_t = P_t + G_t (\hat P_{t+1} - P^-_{t+1}) G_t^\top

    where :math:`P_t E[J_t]^\top` is the covariance of neighbouring states: of moment-matched ones
    exactly (Stein's lemma), of linearised ones by the Jacobian.

    Args:
        run: The filter's run.

    Returns:
        Marginals with the filter's evidence.

    References:
        Rauch, Tung and Striebel 1965, doi:10.2514/3.3166. Saerkkae 2013, Bayesian Filtering and
        Smoothing, doi:10.1017/CBO9781139344203, chapter 9.
    """
    filtered = run.marginals
    length = filtered.length.numpy()
    mean, covariance, ahead, spread = (
        np.nan_to_num(v.numpy())
        for v in (filtered.mean, filtered.covariance(), filtered.predicted_mean,
                  filtered.predicted_covariance)
    )  # fmt: skip
    steps, dim = mean.shape[1:]
    inside = np.arange(1, steps) < length[:, None]
    filled = np.where(inside[..., None, None], spread[:, 1:], np.eye(dim))
    crossed = run.jacobian @ covariance[:, :-1]
    gain = np.linalg.solve(filled, crossed).swapaxes(2, 3)
    gain = np.where(inside[..., None, None], gain, 0.0)
    lag = np.zeros_like(gain)
    for t in range(steps - 2, -1, -1):
        g = gain[:, t]
        mean[:, t] += (g @ (mean[:, t + 1] - ahead[:, t + 1])[..., None])[..., 0]
        change = g @ (covariance[:, t + 1] - spread[:, t + 1]) @ g.swapaxes(1, 2)
        covariance[:, t] += 0.5 * (change + change.swapaxes(1, 2))
        lag[:, t] = g @ covariance[:, t + 1]
    return GaussianMarginals(
        mean=mean,
        marginal_covariance=covariance,
        lag_covariance=lag,
        length=filtered.length,
        log_evidence=filtered.log_evidence,
        evidence_kind=filtered.evidence_kind,
    )
