"""Causal filtering: what is known about each latent state from the data up to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plssm.data import Batch, Modality
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import filter_chain
from plssm.inference.laplace import expand
from plssm.inference.quadratic_chain import absolute
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import FilteredMarginals

__all__ = ["filter_batch"]


def filter_batch(model: StateSpaceModel, batch: Batch) -> FilteredMarginals:
    r"""Piecewise-linear extended Kalman filter in float64.

    .. math:: p(z_t \mid y_{1:t}) \approx \mathcal N(m_t, P_t), \qquad
              P_t^{-1} = (J P_{t-1} J^\top + \Sigma)^{-1} + R_t

    Exact for linear-Gaussian models. Observation terms that are not quadratic enter by a Newton
    search of their own at every step.

    Args:
        model: Model with float64 parameters and a ReLU form.
        batch: Trials, float64.

    Returns:
        Filtered and one-step-predicted marginals, with the filter's log evidence.
    """
    prior = ChainPrior.of(model.dynamics, batch)
    if all(o.quadratic for o in model.observations.values()):
        return _filter_quadratic(model, batch, prior)
    return _filter_stepwise(model, batch, prior)


def _filter_stepwise(model: StateSpaceModel, batch: Batch, prior: ChainPrior) -> FilteredMarginals:
    """One Newton search per step, all trials at once; for observation terms of any shape."""
    trials, steps, dim = len(prior.length), batch.steps, prior.dim
    grids = {n: _on_grid(m, steps) for n, m in batch.modalities.items() if n in model.observations}
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
        terms = [(model.observations[n], _one_step(g, t)) for n, g in grids.items()]
        m, p, gained = _update(terms, m, p)
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


def _on_grid(m: Modality, steps: int) -> Modality:
    """Samples arranged by latent step, at most k each: arrays ``[B, T, k, ...]``."""
    trials, samples, channels = m.y.shape
    clock = torch.arange(samples).expand(trials, -1) if m.clock is None else m.clock
    seen = m.mask.any(-1)
    rank = torch.zeros_like(clock)
    if m.clock is not None:
        for b in range(trials):
            order = clock[b].argsort(stable=True)
            order = order[seen[b][order]]
            steps_of = clock[b][order]
            rank[b, order] = torch.arange(len(order)) - torch.searchsorted(steps_of, steps_of)
    deepest = int(torch.where(seen, rank, 0).max()) + 1 if seen.any() else 1
    b, i = seen.nonzero(as_tuple=True)
    place = (b, clock[b, i], rank[b, i])

    def arrange(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        out = values.new_zeros((trials, steps, deepest, values.shape[-1]))
        out[place] = values[b, i]
        return out

    return Modality(arrange(m.y), arrange(m.mask), None, arrange(m.nuisance), m.dt)


def _one_step(grid: Modality, t: int) -> Modality:
    """The samples of one latent step, all on a clock of length one."""
    y = grid.y[:, t]
    nuisance = None if grid.nuisance is None else grid.nuisance[:, t]
    clock = torch.zeros(y.shape[:2], dtype=torch.int64)
    return Modality(y, grid.mask[:, t], clock, nuisance, grid.dt)


def _update(
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
        return value + sum(o.log_prob(y, path).numpy() for o, y in terms)


def _slopes(
    terms: list[tuple[ObservationModel, Modality]], z: np.ndarray, *, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    path = torch.from_numpy(z[:, None])
    score, curvature = np.zeros_like(z), np.zeros((*z.shape, z.shape[-1]))
    for observation, y in terms:
        local = observation.local(y, path, positive=positive)
        score = score + local.score[:, 0].detach().numpy()
        curvature = curvature + local.curvature[:, 0].detach().numpy()
    return score, curvature


def _filter_quadratic(
    model: StateSpaceModel, batch: Batch, prior: ChainPrior
) -> FilteredMarginals:
    """Compiled filter; all observation terms are quadratic in the latent state."""
    trials, steps, dim = len(prior.length), batch.steps, prior.dim
    terms = expand(model, batch, np.zeros((trials, steps, dim)))
    form, result = prior.form, filter_chain(prior, terms)
    return FilteredMarginals(
        mean=result.filtered_mean,
        filtered_covariance=result.filtered_covariance,
        predicted_mean=result.predicted_mean,
        predicted_covariance=result.predicted_covariance,
        length=torch.from_numpy(prior.length),
        log_evidence=result.log_increment.sum(1) + terms.constant,
        evidence_kind="ekf" if form.outer.shape[1] else "exact",
    )
