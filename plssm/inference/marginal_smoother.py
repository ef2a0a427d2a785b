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
from plssm.linalg.block_tridiagonal import empty_factor
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain, GaussianMarginals

__all__ = ["rts_chain", "smooth_marginals"]

FLOOR = 1e-14  # least variance, as a share of the largest


def smooth_marginals(
    model: StateSpaceModel, batch: Batch, options: FilterOptions
) -> GaussianChain | GaussianMarginals:
    """Smoothed posterior of a filter that matches moments; its evidence is the filter's.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.
        options: How the filter predicts and updates.

    Returns:
        Whole paths; marginals of the latent states and covariances of neighbours where data have
        memory.

    Raises:
        CapabilityError: If data have memory, which not all options serve.
    """
    options.refuse(model, batch)
    if not any(o.memory(batch.dt) for o in model.observations.values()):
        return rts_chain(filter_run(model, batch, options))
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


def rts_chain(run: FilterRun) -> GaussianChain:
    r"""Rauch-Tung-Striebel smoother of a filter's run, for whole paths.

    .. math:: z_t \mid z_{t+1}, y_{1:t} \sim \mathcal N\big(m_t + G_t (z_{t+1} - m^-_{t+1}),\;
        P_t - G_t P^-_{t+1} G_t^\top\big), \qquad G_t = P_t E[J_t]^\top (P^-_{t+1})^{-1}

    where :math:`P_t E[J_t]^\top` is the covariance of neighbouring states: of moment-matched ones
    exactly (Stein's lemma), of linearised ones by the Jacobian. These conditionals are the blocks
    of the path's precision, factored; compiled passes over the factor give mean and covariances.

    Args:
        run: The filter's run.

    Returns:
        The chain with the filter's evidence.

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
    trials, steps, dim = mean.shape
    eye, step = np.eye(dim), np.arange(steps)
    later = (step[1:] < length[:, None])[..., None, None]
    jacobian, before = run.jacobian, covariance[:, :-1]
    filled = np.where(later, spread[:, 1:], eye)
    gain = np.linalg.solve(filled, jacobian @ before).swapaxes(2, 3)
    gain = np.where(later, gain, 0.0)
    kept = eye - gain @ jacobian
    noise = filled - jacobian @ before @ jacobian.swapaxes(2, 3)
    left = kept @ before @ kept.swapaxes(2, 3) + gain @ noise @ gain.swapaxes(2, 3)
    covariance[:, :-1] = np.where(later, left, before)
    covariance[step >= length[:, None]] = eye
    factor = empty_factor(trials, steps, dim, length, quadratic=False)
    factor.rows[:] = 0.0
    root = _inverse_root(covariance)
    factor.R[:] = root
    factor.C[:] = -root[:, :-1] @ gain
    factor.logdet[:] = 2 * np.log(np.diagonal(root, axis1=2, axis2=3)).sum((1, 2))
    ahead = np.where(later[..., 0], mean[:, 1:] - ahead[:, 1:], 0.0)
    pull = np.zeros_like(mean)
    pull[:, :-1] = -(factor.C @ ahead[..., None])[..., 0]
    path = mean + factor.sample(pull[None])[0]
    return GaussianChain(
        path, factor, length=length, log_evidence=filtered.log_evidence.numpy(),
        evidence_kind=filtered.evidence_kind,
    )  # fmt: skip


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Upper triangular R with R'R the inverse of a covariance [..., M, M]."""
    covariance = 0.5 * (covariance + covariance.swapaxes(-1, -2))
    try:
        root = np.linalg.cholesky(covariance[..., ::-1, ::-1])
        return np.triu(np.linalg.inv(root[..., ::-1, ::-1]))
    except np.linalg.LinAlgError:  # of states that later ones leave hardly open
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, np.maximum(FLOOR * values[..., -1:], np.finfo(float).tiny))
        root = np.linalg.qr(vectors.swapaxes(-1, -2) / np.sqrt(values)[..., None])[1]
        return root * np.sign(np.diagonal(root, axis1=-2, axis2=-1))[..., None]
