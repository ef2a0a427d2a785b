"""Gaussian filter in a loop over time, for observations and updates of any kind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plssm.data import Batch
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.filter_options import FilterOptions
from plssm.inference.moment_update import moment_update
from plssm.inference.step_updates import StepTerms, laplace_update, penalised, step_terms
from plssm.kernels.moment_filter import propagate_moments
from plssm.model import StateSpaceModel

__all__ = ["StepwiseRun", "filter_stepwise", "predict"]

NARROW = 1e-12  # distance of two slopes of a hinge that are the same


class StepwiseRun(NamedTuple):
    """What a filter knows at every step of every trial; predictions beyond a trial's end.

    Attributes:
        predicted: Mean [B, T, M] and covariance [B, T, M, M] before each step's data.
        filtered: The same after them.
        jacobian: The (expected) Jacobian of the map between neighbouring steps [B, T-1, M, M].
        evidence: Log evidence [B].
    """

    predicted: tuple[np.ndarray, np.ndarray]
    filtered: tuple[np.ndarray, np.ndarray]
    jacobian: np.ndarray
    evidence: np.ndarray


def predict(
    prior: ChainPrior, m: np.ndarray, p: np.ndarray, *, expected: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance and Jacobian of the map's values at Gaussian states, without noise.

    Args:
        prior: The latent prior.
        m: Means [..., M].
        p: Covariances [..., M, M].
        expected: Whether all three are exact expectations; otherwise the map is linearised.
    """
    form = prior.form
    if expected:
        maps = form.linear, form.bias, form.outer, form.inner, form.offset
        mean, jacobian, rest = propagate_moments(*maps, m, p)
        return mean, jacobian @ p @ jacobian.swapaxes(-1, -2) + rest, jacobian
    jacobian = _jacobian(prior, (form.gates(m) > 0).astype(np.float64), m.shape[:-1])
    return form.step(m), jacobian @ p @ jacobian.swapaxes(-1, -2), jacobian


def _jacobian(prior: ChainPrior, slope: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Jacobians [..., M, M] of hinges with given slopes."""
    if slope.size:
        return prior.form.jacobian(slope)
    return np.broadcast_to(prior.form.linear, (*lead, prior.dim, prior.dim)).copy()


def filter_stepwise(
    model: StateSpaceModel, batch: Batch, prior: ChainPrior, options: FilterOptions
) -> StepwiseRun:
    """One update per step, all trials at once; for observation terms of any shape.

    Args:
        model: Model without memory.
        batch: The trials.
        prior: Their prior.
        options: How to predict and update.
    """
    trials, steps, dim = len(prior.length), batch.steps, prior.dim
    at = step_terms(model, batch)
    mean, covariance = np.zeros((2, trials, steps, dim)), np.zeros((2, trials, steps, dim, dim))
    jacobians, evidence = np.zeros((trials, max(steps - 1, 0), dim, dim)), np.zeros(trials)
    sigma, sigma0 = np.linalg.inv(prior.precision), np.linalg.inv(prior.initial_precision)
    update = moment_update if options.update == "moments" else laplace_update
    m, p = prior.initial_mean, np.tile(sigma0, (trials, 1, 1))
    for t in range(steps):
        terms, before = at(t), (m, p)
        if t:
            m, p, jacobians[:, t - 1] = predict(
                prior, m, p, expected=options.propagation == "moments"
            )
            m, p = m + prior.drive[:, t - 1], p + sigma
        mean[0, :, t], covariance[0, :, t] = m, p
        if t and options.iterations > 1 and terms:
            m, p, jacobians[:, t - 1] = _relinearised(
                prior, before, prior.drive[:, t - 1], sigma, terms, options.iterations
            )
        m, p, gained = update(terms, m, p)
        mean[1, :, t], covariance[1, :, t] = m, p
        evidence += np.where(t < prior.length, gained, 0.0)
    return StepwiseRun((mean[0], covariance[0]), (mean[1], covariance[1]), jacobians, evidence)


def _relinearised(
    prior: ChainPrior, before: tuple[np.ndarray, np.ndarray], drive: np.ndarray,
    sigma: np.ndarray, terms: StepTerms, iterations: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    r"""Prediction by the map linearised where the step's own data put the state before it.

    .. math:: \bar z = m + G (m' - m^-), \quad G = P J^\top (P^-)^{-1}, \qquad
        J = L + O \, \mathrm{diag}(d) \, I, \quad d_p \in \partial \max(0, \bar g_p)

    A hinge that its own linearisation opens and closes in turn gets the slope between 0 and 1
    that puts the state on its kink, by bisection: then (z, m') is a mode of both states' joint
    density. Of all passes the one with the highest joint density is taken.

    Args:
        prior: The latent prior.
        before: Filtered mean [B, M] and covariance [B, M, M] of the step before.
        drive: What inputs add [B, M].
        sigma: Process noise [M, M].
        terms: Models and samples of the step.
        iterations: Linearisations.

    Returns:
        Mean and covariance of the prediction, and the Jacobian.

    References:
        Jazwinski 1970, Stochastic Processes and Filtering Theory, chapter 8. Garcia-Fernandez,
        Svensson and Saerkkae 2017, doi:10.1109/TAC.2016.2592681.
    """
    (m, p), form = before, prior.form
    precision = np.linalg.inv(p)
    slope = (form.gates(m) > 0).astype(np.float64)
    low, high = np.full(slope.shape, -1.0), np.full(slope.shape, 2.0)  # not seen yet
    best, highest = None, np.full(len(m), -np.inf)
    for _ in range(iterations):
        jacobian = _jacobian(prior, slope, m.shape[:1])
        shift = form.regional_bias(slope) if slope.size else form.bias
        ahead = (jacobian @ m[..., None])[..., 0] + shift + drive
        spread = jacobian @ p @ jacobian.swapaxes(1, 2) + sigma
        after = laplace_update(terms, ahead, spread)[0]
        pull = np.linalg.solve(spread, (after - ahead)[..., None])
        back = m + (p @ jacobian.swapaxes(1, 2) @ pull)[..., 0]
        value = penalised(terms, after, form.step(back) + drive, prior.precision)
        value = value + penalised([], back, m, precision)
        found, better = (ahead, spread, jacobian), value > highest
        best = found if best is None else tuple(
            np.where(better.reshape(-1, *[1] * (x.ndim - 1)), x, y)
            for x, y in zip(found, best, strict=True)
        )  # fmt: skip
        highest = np.maximum(value, highest)
        opened = form.gates(back) > 0
        low = np.where(opened & (slope < 1), np.maximum(low, slope), low)
        high = np.where(~opened & (slope > 0), np.minimum(high, slope), high)
        both = (low >= 0) & (high <= 1)
        wanted = np.where(both, 0.5 * (low + high), opened.astype(np.float64))
        if np.abs(wanted - slope).max(initial=0.0) < NARROW:
            break
        slope = wanted
    return best
