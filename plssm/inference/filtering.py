"""Causal filtering: what is known about each latent state from the data up to it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from plssm.data import Batch
from plssm.errors import CapabilityError
from plssm.inference.augmented_filter import run_filter
from plssm.inference.augmented_states import LagStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import filter_chain, moment_chain
from plssm.inference.filter_options import FilterOptions
from plssm.inference.filter_sweeps import filter_sweeps
from plssm.inference.laplace import laplace_posterior
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import QuadraticTerms
from plssm.inference.stepwise_filter import filter_stepwise, predict
from plssm.kernels.gaussian_filter import FilterResult
from plssm.model import StateSpaceModel
from plssm.posterior import EvidenceKind, FilteredMarginals

__all__ = ["FilterRun", "evidence_kind", "filter_batch", "filter_run"]

SWEEPS = 60  # runs of the compiled filter before a batch is filtered step by step
MOST_NUMBERS = 400_000_000  # of joint covariances held in memory


class FilterRun(NamedTuple):
    """A filter's marginals, and how its map carried them on.

    Attributes:
        marginals: Filtered and predicted moments.
        jacobian: The (expected) Jacobian of the map between neighbouring steps [B, T-1, M, M].
    """

    marginals: FilteredMarginals
    jacobian: np.ndarray


def filter_batch(
    model: StateSpaceModel, batch: Batch, options: FilterOptions | None = None
) -> FilteredMarginals:
    r"""Piecewise-linear extended Kalman filter in float64, or one that matches moments.

    .. math:: p(z_t \mid y_{1:t}) \approx \mathcal N(m_t, P_t), \qquad
              P_t^{-1} = (J P_{t-1} J^\top + \Sigma)^{-1} + R_t

    Exact for linear-Gaussian models. Observation terms that are not quadratic are expanded around
    the filtered path itself: the filter is run again until the path it gives is the one the terms
    were expanded around. Every step then is the Laplace update by its own observations. Trials
    for which that does not settle are filtered step by step.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.
        options: Other predictions and updates; the extended Kalman filter when None.

    Returns:
        Filtered and one-step-predicted marginals, with the filter's log evidence.

    Raises:
        CapabilityError: If data have memory, which not all options serve.
    """
    options = options or FilterOptions()
    options.refuse(model, batch)
    if any(o.memory(batch.dt) for o in model.observations.values()):
        return _filter_lagged(model, batch, options)
    return filter_run(model, batch, options).marginals


def filter_run(model: StateSpaceModel, batch: Batch, options: FilterOptions) -> FilterRun:
    """The filter of observations without memory.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.
        options: How to predict and update.
    """
    prior = ChainPrior.of(model.dynamics, batch)
    kind = evidence_kind(model, prior, options)
    quadratic = all(o.quadratic for o in model.observations.values())
    run = moment_chain if options.propagation == "moments" else filter_chain
    result = None
    if options.iterations == 1 and quadratic:
        terms = expand(model, batch, np.zeros((len(prior.length), batch.steps, prior.dim)))
        result = run(prior, terms)
    elif options.iterations == 1 and options.update == "laplace":
        start = laplace_posterior(model, batch).path
        _, terms, result = filter_sweeps(model, batch, prior, start, sweeps=SWEEPS, run=run)
    if result is not None:
        return _compiled_run(prior, terms, result, options, kind)
    found = filter_stepwise(model, batch, prior, options)
    marginals = FilteredMarginals(
        mean=found.filtered[0],
        filtered_covariance=found.filtered[1],
        predicted_mean=found.predicted[0],
        predicted_covariance=found.predicted[1],
        length=torch.from_numpy(prior.length),
        log_evidence=found.evidence,
        evidence_kind=kind,
    )
    return FilterRun(marginals, found.jacobian)


def evidence_kind(
    model: StateSpaceModel, prior: ChainPrior, options: FilterOptions
) -> EvidenceKind:
    """What the evidence of a filter is.

    Args:
        model: The model.
        prior: Its prior.
        options: How the filter predicts and updates.
    """
    linear = not prior.form.outer.shape[1]
    quadratic = all(o.quadratic for o in model.observations.values())
    if linear and quadratic:
        return "exact"
    matched = not linear and options.propagation == "moments"
    matched = matched or (not quadratic and options.update == "moments")
    return "moments" if matched else "ekf"


def _compiled_run(
    prior: ChainPrior, terms: QuadraticTerms, result: FilterResult, options: FilterOptions,
    kind: EvidenceKind,
) -> FilterRun:  # fmt: skip
    marginals = FilteredMarginals(
        mean=result.filtered_mean,
        filtered_covariance=result.filtered_covariance,
        predicted_mean=result.predicted_mean,
        predicted_covariance=result.predicted_covariance,
        length=torch.from_numpy(prior.length),
        log_evidence=result.log_increment.sum(1) + terms.constant,
        evidence_kind=kind,
    )
    expected = options.propagation == "moments"
    before = result.filtered_mean[:, :-1], result.filtered_covariance[:, :-1]
    return FilterRun(marginals, predict(prior, *before, expected=expected)[2])


def _filter_lagged(
    model: StateSpaceModel, batch: Batch, options: FilterOptions
) -> FilteredMarginals:
    """Filter on the last w + 1 latent states, for observations with memory w."""
    prior = ChainPrior.of(model.dynamics, batch)
    states = LagStates(model, batch.dt)
    held = len(prior.length) * batch.steps * states.size**2
    if held > MOST_NUMBERS:
        raise CapabilityError(
            f"the causal posterior needs the joint covariance of {states.lags} latent states of "
            f"{states.dim} dimensions at {batch.steps} steps of {len(prior.length)} trials "
            f"({8 * held / 1e9:.1f} GB); use a dt nearer to the repetition time, fewer trials at "
            "a time, or causal=False"
        )
    expected = options.propagation == "moments"
    run = run_filter(model, batch, prior, states, expected=expected)
    m = states.dim
    return FilteredMarginals(
        mean=run.filtered[0][:, :, :m],
        filtered_covariance=run.filtered[1][:, :, :m, :m],
        predicted_mean=run.predicted[0][:, :, :m],
        predicted_covariance=run.predicted[1][:, :, :m, :m],
        length=torch.from_numpy(prior.length),
        log_evidence=run.evidence,
        evidence_kind=evidence_kind(model, prior, options),
        joint=run.filtered,
    )
