"""Extended Rauch-Tung-Striebel smoothing: the filter's linearisation, backwards in time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import LinearDynamics
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.filter_terms import FilterTerms
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.innovations import SETTLED
from plssm.inference.modality_weights import is_tempered
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import linear_solve
from plssm.kernels.chain import solve_chain
from plssm.linalg.banded import BandedFactor
from plssm.linalg.block_tridiagonal import ChainFactor
from plssm.model import StateSpaceModel
from plssm.posterior import FilteredMarginals, GaussianChain, Posterior

__all__ = ["filter_posterior", "filtered_posterior"]


@torch.no_grad()
def filter_posterior(model: StateSpaceModel, batch: Batch) -> Posterior:
    r"""Smoothed posterior of the extended Kalman filter, with the filter's evidence.

    .. math:: G_t = P_t J_t^\top (P^-_{t+1})^{-1}, \qquad
        \hat z_t = m_t + G_t (\hat z_{t+1} - m^-_{t+1})

    Map and data are expanded around the filtered states. That is a linear-Gaussian chain, whose
    exact posterior this is; it is solved in one compiled pass, whole paths can be drawn from it.

    Args:
        model: Model with float64 parameters, any dynamics.
        batch: Trials, float64.

    Returns:
        The chain.

    References:
        Rauch, Tung and Striebel 1965, doi:10.2514/3.3166.
    """
    states = FilteredStates(model, batch)
    found = states.refresh(model)
    evidence = found.increment.sum(1)
    linear = isinstance(model.dynamics, LinearDynamics)
    kind = "exact" if linear and all(o.quadratic for o in model.observations.values()) else "ekf"
    kind = "tempered" if is_tempered(model) else kind
    settled = tuple("stationary" if m <= SETTLED else "max_passes" for m in found.moved.tolist())
    z = found.run.filtered_mean[..., : model.dim]
    solve = _banded if states.joined.size > model.dim else _chain
    mean, factor = solve(model, batch, z, found.terms)
    return GaussianChain(
        mean, factor, length=batch.length.numpy(), log_evidence=evidence.numpy(),
        evidence_kind=kind, status=settled,
    )  # fmt: skip


@torch.no_grad()
def filtered_posterior(model: StateSpaceModel, batch: Batch) -> FilteredMarginals:
    """What the filter knows at every step, for any dynamics whose data have no memory.

    Args:
        model: Model with float64 parameters.
        batch: Trials, float64.
    """
    found = FilteredStates(model, batch).refresh(model)
    run = found.run
    return FilteredMarginals(
        mean=run.filtered_mean, filtered_covariance=run.filtered_covariance,
        predicted_mean=run.predicted_mean, predicted_covariance=run.predicted_covariance,
        length=batch.length, log_evidence=found.increment.sum(1),
        evidence_kind="tempered" if is_tempered(model) else "ekf",
    )  # fmt: skip


def _chain(
    model: StateSpaceModel, batch: Batch, z: Tensor, terms: FilterTerms
) -> tuple[np.ndarray, ChainFactor]:
    """Path and factor of the chain linearised around states [B, T, M]."""
    dynamics, before = model.dynamics, z[:, :-1]
    inputs = batch.inputs if dynamics.n_inputs else None
    s = None if inputs is None else inputs[:, 1:]
    jacobian = dynamics.jacobian(before, s)
    offset = dynamics.step(before, s) - (jacobian @ before[..., None])[..., 0]
    return solve_chain(
        jacobian.numpy(), offset.numpy(), dynamics.noise.precision.numpy(),
        dynamics.first_mean(inputs).expand(len(batch), model.dim).numpy(),
        dynamics.initial.noise.precision.numpy(), terms.information.numpy(),
        terms.score.numpy(), batch.length.numpy(),
    )  # fmt: skip


def _banded(
    model: StateSpaceModel, batch: Batch, z: Tensor, terms: FilterTerms  # noqa: ARG001
) -> tuple[np.ndarray, ChainFactor | BandedFactor]:  # fmt: skip
    """The same where observations remember: their terms couple distant states."""
    prior, path = ChainPrior.of(model.dynamics, batch), z.numpy()
    slope = (prior.form.gates(path[:, :-1]) > 0).astype(np.float64)
    terms = expand(model, batch, path)
    if not all(o.concave for o in model.observations.values()):
        terms = terms.steering(path)
    return linear_solve(prior, terms, slope)
