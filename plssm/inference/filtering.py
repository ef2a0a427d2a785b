"""Causal filtering: what is known about each latent state from the data up to it."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch, Modality
from plssm.errors import CapabilityError
from plssm.inference.augmented_filter import run_filter
from plssm.inference.augmented_states import LagStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import filter_chain
from plssm.inference.filter_sweeps import filter_sweeps
from plssm.inference.laplace import laplace_posterior
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import QuadraticTerms, absolute
from plssm.inference.step_samples import on_grid, one_step
from plssm.kernels.gaussian_filter import FilterResult
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import EvidenceKind, FilteredMarginals

__all__ = ["filter_batch", "laplace_update"]

SWEEPS = 60  # runs of the compiled filter before a batch is filtered step by step
MOST_NUMBERS = 400_000_000  # of joint covariances held in memory


def filter_batch(model: StateSpaceModel, batch: Batch) -> FilteredMarginals:
    r"""Piecewise-linear extended Kalman filter in float64.

    .. math:: p(z_t \mid y_{1:t}) \approx \mathcal N(m_t, P_t), \qquad
              P_t^{-1} = (J P_{t-1} J^\top + \Sigma)^{-1} + R_t

    Exact for linear-Gaussian models. Observation terms that are not quadratic are expanded around
    the filtered path itself: the filter is run again until the path it gives is the one the terms
    were expanded around. Every step then is the Laplace update by its own observations. Trials
    for which that does not settle are filtered step by step.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.

    Returns:
        Filtered and one-step-predicted marginals, with the filter's log evidence.
    """
    prior = ChainPrior.of(model.dynamics, batch)
    if any(o.memory(batch.dt) for o in model.observations.values()):
        return _filter_lagged(model, batch, prior)
    if all(o.quadratic for o in model.observations.values()):
        terms = expand(model, batch, np.zeros((*prior.drive.shape[:1], batch.steps, prior.dim)))
        kind = "ekf" if prior.form.outer.shape[1] else "exact"
        return _marginals(prior, terms, filter_chain(prior, terms), kind)
    found = _filter_sweeps(model, batch, prior)
    return _filter_stepwise(model, batch, prior) if found is None else found


def _filter_sweeps(
    model: StateSpaceModel, batch: Batch, prior: ChainPrior
) -> FilteredMarginals | None:
    """Compiled filter, terms expanded around its own result; None where that does not settle."""
    start = laplace_posterior(model, batch).path
    _, terms, result = filter_sweeps(model, batch, prior, start, sweeps=SWEEPS)
    return None if result is None else _marginals(prior, terms, result, "ekf")


def _marginals(
    prior: ChainPrior, terms: QuadraticTerms, result: FilterResult, kind: EvidenceKind
) -> FilteredMarginals:
    return FilteredMarginals(
        mean=result.filtered_mean,
        filtered_covariance=result.filtered_covariance,
        predicted_mean=result.predicted_mean,
        predicted_covariance=result.predicted_covariance,
        length=torch.from_numpy(prior.length),
        log_evidence=result.log_increment.sum(1) + terms.constant,
        evidence_kind=kind,
    )


def _filter_lagged(model: StateSpaceModel, batch: Batch, prior: ChainPrior) -> FilteredMarginals:
    """Filter on the last w + 1 latent states, for observations with memory w."""
    states = LagStates(model, batch.dt)
    held = len(prior.length) * batch.steps * states.size**2
    if held > MOST_NUMBERS:
        raise CapabilityError(
            f"the causal posterior needs the joint covariance of {states.lags} latent states of "
            f"{states.dim} dimensions at {batch.steps} steps of {len(prior.length)} trials "
            f"({8 * held / 1e9:.1f} GB); use a dt nearer to the repetition time, fewer trials at "
            "a time, or causal=False"
        )
    run = run_filter(model, batch, prior, states)
    m = states.dim
    linear = not prior.form.outer.shape[1]
    exact = linear and all(o.quadratic for o in model.observations.values())
    return FilteredMarginals(
        mean=run.filtered[0][:, :, :m],
        filtered_covariance=run.filtered[1][:, :, :m, :m],
        predicted_mean=run.predicted[0][:, :, :m],
        predicted_covariance=run.predicted[1][:, :, :m, :m],
        length=torch.from_numpy(prior.length),
        log_evidence=run.evidence,
        evidence_kind="exact" if exact else "ekf",
        joint=run.filtered,
    )


def _filter_stepwise(model: StateSpaceModel, batch: Batch, prior: ChainPrior) -> FilteredMarginals:
    """One Newton search per step, all trials at once; for observation terms of any shape."""
    trials, steps, dim = len(prior.length), batch.steps, prior.dim
    grids = {n: on_grid(m, steps) for n, m in batch.modalities.items() if n in model.observations}
    mean, covariance = np.zeros((2, trials, steps, dim)), np.zeros((2, trials, steps, dim, dim))
    evidence = np.zeros(trials)
    sigma, sigma0 = np.linalg.inv(prior.precision), np.linalg.inv(prior.initial_precision)
    m, p = prior.initial_mean, np.tile(sigma0, (trials, 1, 1))
    form = prior.form
    for t in range(steps):
        if t:
            slope = (form.gates(m) > 0).astype(np.float64)
            jacobian = form.jacobian(slope) if slope.size else np.tile(form.linear, (trials, 1, 1))
            m = form.step(m) + prior.drive[:, t - 1]
            p = jacobian @ p @ jacobian.swapaxes(1, 2) + sigma
        mean[0, :, t], covariance[0, :, t] = m, p
        terms = [(model.observations[n], one_step(g, t)) for n, g in grids.items()]
        m, p, gained = laplace_update(terms, m, p)
        mean[1, :, t], covariance[1, :, t] = m, p
        evidence += np.where(t < prior.length, gained, 0.0)
    return FilteredMarginals(
        mean=mean[1],
        filtered_covariance=covariance[1],
        predicted_mean=mean[0],
        predicted_covariance=covariance[0],
        length=torch.from_numpy(prior.length),
        log_evidence=evidence,
        evidence_kind="ekf",
    )


def laplace_update(
    terms: list[tuple[ObservationModel, Modality]], m: np.ndarray, p: np.ndarray, newton: int = 25
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Laplace update of N(m, P) by one step's observations; posterior and log evidence."""
    precision = np.linalg.inv(p)
    z = m.copy()
    value = _penalised(terms, z, m, precision)
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
    terms: list[tuple[ObservationModel, Modality]],
    z: np.ndarray,
    move: np.ndarray,
    value: np.ndarray,
    m: np.ndarray,
    precision: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    step, best, best_value = np.ones(len(z)), z.copy(), value.copy()
    for _ in range(30):
        trial = z + step[:, None] * move
        reached = _penalised(terms, trial, m, precision)
        better = reached > best_value
        best[better], best_value[better] = trial[better], reached[better]
        if (best_value > value).all() or np.abs(step[:, None] * move).max() < 1e-9:
            break
        step = np.where(best_value > value, step, 0.5 * step)
    return best, best_value, float((best_value - value).max())


def _penalised(
    terms: list[tuple[ObservationModel, Modality]],
    z: np.ndarray,
    m: np.ndarray,
    precision: np.ndarray,
) -> np.ndarray:
    e = z - m
    value = -0.5 * ((precision @ e[..., None])[..., 0] * e).sum(1)
    with torch.no_grad():
        path = torch.from_numpy(z[:, None])
        return value + sum(float(o.tempering) * o.log_prob(y, path).numpy() for o, y in terms)


def _slopes(
    terms: list[tuple[ObservationModel, Modality]], z: np.ndarray, *, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    path = torch.from_numpy(z[:, None])
    score, curvature = np.zeros_like(z), np.zeros((*z.shape, z.shape[-1]))
    for observation, y in terms:
        local = observation.local(y, path, positive=positive)
        power = float(observation.tempering)
        score = score + power * local.score[:, 0].detach().numpy()
        curvature = curvature + power * local.curvature[:, 0].detach().numpy()
    return score, curvature
