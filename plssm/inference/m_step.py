"""Closed-form M-step of EM: coefficients, noise and initial state from expected statistics."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.inference.normal_equations import NormalEquations, Quadratic
from plssm.inference.statistics import TransitionStatistics
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.posterior import GaussianChain

__all__ = [
    "hold_process_noise",
    "moments_for",
    "pool_trial_means",
    "ridge_penalty",
    "update_coefficients",
    "update_initial",
    "update_observations",
    "update_process_noise",
]


def update_coefficients(
    dynamics: PiecewiseLinear,
    statistics: TransitionStatistics,
    posterior: GaussianChain,
    batch: Batch,
    trial_means: np.ndarray | None = None,
    *,
    ridge: float = 0.0,
) -> NormalEquations | None:
    r"""Maximise the expected log density of the transitions over the free coefficients.

    .. math:: z_t = \theta\, [z_{t-1}; \mathrm{relu}(G z_{t-1} + g); 1; s_t] + \varepsilon_t

    Frozen entries stay on the known side, quadratic priors (manifold-attractor regularisation) are
    included.

    Args:
        dynamics: Dynamics with closed-form coefficients; changed in place.
        statistics: Expected sums.
        posterior: Posterior of the batch (first states, for inputs that act at the start).
        batch: The trials.
        trial_means: Mean of z_1 of each trial, for ``initial="tied"``.
        ridge: Precision of a zero-mean Gaussian prior on the weights of the hinges.

    Returns:
        The equations that were solved, with the coefficients before; None where none are free.
    """
    theta, free = (np.asarray(c.detach()).copy() for c in dynamics.coefficients())
    if not free.any():
        return None
    precision = dynamics.noise.precision.detach().numpy()
    terms = [Quadratic(precision, statistics.regressors, statistics.targets)]
    if dynamics.input_at_start and dynamics.n_inputs:
        terms.append(_start_term(dynamics, posterior, batch, theta.shape[1], trial_means))
    equations = NormalEquations(theta, free, tuple(terms), *_prior(dynamics, theta.shape, ridge))
    theta = equations.solution()
    if np.isfinite(theta).all():
        dynamics.assign_coefficients(torch.from_numpy(theta))
    return equations


def ridge_penalty(dynamics: PiecewiseLinear, ridge: float) -> float:
    """Negative log density, up to a constant, of the ridge prior on the hinge weights."""
    coefficients = dynamics.coefficients()
    if coefficients is None:  # the map is held, and the penalty with it
        return 0.0
    theta = np.asarray(coefficients[0].detach())
    return 0.5 * ridge * float((_hinge_columns(dynamics, theta) ** 2).sum())


def _hinge_columns(dynamics: PiecewiseLinear, table: np.ndarray) -> np.ndarray:
    """The columns of a coefficient table that belong to the hinges (a view)."""
    return table[:, dynamics.dim : table.shape[1] - 1 - dynamics.n_inputs]


def _prior(
    dynamics: PiecewiseLinear, shape: tuple[int, ...], ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and targets of the quadratic prior: the dynamics' own plus the ridge."""
    prior = dynamics.prior()
    weight, target = (
        (np.zeros(shape), np.zeros(shape))
        if prior is None
        else (p.detach().numpy().copy() for p in prior)
    )
    pulled = _hinge_columns(dynamics, weight)
    aimed = _hinge_columns(dynamics, target)
    aimed *= pulled / np.maximum(pulled + ridge, 1e-300)
    pulled += ridge
    return weight, target


def _start_term(
    dynamics: PiecewiseLinear,
    posterior: GaussianChain,
    batch: Batch,
    width: int,
    trial_means: np.ndarray | None,
) -> Quadratic:
    """z_1 = mu0 + C s_1 + noise tells about C, too, when inputs act at the start."""
    k = dynamics.n_inputs
    s = batch.inputs[:, 0].numpy()
    shared = trial_means is None
    mean = dynamics.initial.mean.detach().numpy() if shared else trial_means
    first = posterior.arrays()[0][:, 0] - mean
    regressors, targets = np.zeros((width, width)), np.zeros((dynamics.dim, width))
    regressors[-k:, -k:] = s.T @ s
    targets[:, -k:] = first.T @ s
    noise = dynamics.initial.noise if shared else dynamics.noise
    return Quadratic(noise.precision.detach().numpy(), regressors, targets)


def update_process_noise(
    dynamics: PiecewiseLinear,
    statistics: TransitionStatistics,
    posterior: GaussianChain,
    batch: Batch,
    trial_means: np.ndarray | None,
    floor: float,
) -> None:
    """Set the process noise to the mean squared residual (pooled with z_1 when tied).

    Args:
        dynamics: Dynamics whose coefficients are up to date; changed in place.
        statistics: Expected sums.
        posterior: Posterior of the batch.
        batch: The trials.
        trial_means: Mean of z_1 of each trial, for ``initial="tied"``.
        floor: Smallest variance, unless the noise is below it already.
    """
    total, count = statistics.residual(_map_weights(dynamics)), statistics.count
    if trial_means is not None:
        first = _undriven_start(dynamics, posterior, batch)
        total = total + _scatter(posterior, first - trial_means).sum(0)
        count += len(first)
    if count:
        floor = min(floor, float(dynamics.noise.variance.detach().min()))
        dynamics.noise.assign_moment(torch.from_numpy(total / count), floor)


def _map_weights(dynamics: PiecewiseLinear) -> np.ndarray:
    """The map as weights ``[M, M+P+1+K]`` of [z; relu(I z + o); 1; s]."""
    coefficients = dynamics.coefficients()
    if coefficients is not None:
        return np.asarray(coefficients[0].detach())
    form = dynamics.relu_form()
    return np.concatenate([form.linear, form.outer, form.bias[:, None], form.inputs], axis=1)


def _undriven_start(
    dynamics: LatentDynamics, posterior: GaussianChain, batch: Batch
) -> np.ndarray:
    """Mean of z_1 of each trial without what the first input adds to it, ``[B, M]``."""
    first = posterior.arrays()[0][:, 0]
    if dynamics.input_at_start and dynamics.n_inputs:
        first = first - batch.inputs[:, 0].numpy() @ dynamics.C.detach().numpy().T
    return first


def _scatter(posterior: GaussianChain, centred: np.ndarray) -> np.ndarray:
    """E[(z_1 - m)(z_1 - m)'] of each trial for ``centred = E[z_1] - m``, ``[B, M, M]``."""
    return posterior.arrays()[1][:, 0] + centred[:, :, None] * centred[:, None, :]


def update_initial(
    dynamics: LatentDynamics, posterior: GaussianChain, batch: Batch, floor: float
) -> np.ndarray | None:
    r"""Set the distribution of z_1.

    Shared: :math:`\mu_0` is the mean over trials, :math:`\Sigma_0` the mean scatter around it,
    kept as it is with fewer than 2M trials (it would collapse). Tied: one mean per trial; the
    shared mean, for new trials, is their average. A frozen mean is that of every trial.

    Args:
        dynamics: Dynamics; changed in place.
        posterior: Posterior of the batch.
        batch: The trials.
        floor: Smallest variance.

    Returns:
        Mean of z_1 of each trial ``[B, M]`` when tied, otherwise None.
    """
    first = _undriven_start(dynamics, posterior, batch)
    initial = dynamics.initial
    if initial.mean.requires_grad:
        with torch.no_grad():
            initial.mean.copy_(torch.from_numpy(first.mean(0)))
    mean = initial.mean.detach().numpy()
    if initial.kind == "tied":
        return first.copy() if initial.mean.requires_grad else np.tile(mean, (len(first), 1))
    if len(first) >= 2 * dynamics.dim and not initial.noise.frozen:
        scatter = _scatter(posterior, first - mean)
        initial.noise.assign_moment(torch.from_numpy(scatter.mean(0)), floor)
    return None


def pool_trial_means(dynamics: LatentDynamics, trial_means: np.ndarray) -> None:
    """End a fit with tied initial means: new trials get their average, with their spread.

    Args:
        dynamics: Dynamics; changed in place.
        trial_means: Mean of z_1 of each training trial ``[B, M]``.
    """
    centred = trial_means - trial_means.mean(0)
    spread = centred.T @ centred / len(trial_means)
    covariance = dynamics.noise.covariance.detach() + torch.from_numpy(spread)
    dynamics.initial.noise.assign_moment(covariance, 0.0)


def update_observations(model: StateSpaceModel, posterior: GaussianChain, batch: Batch) -> None:
    """Maximise the expected log-likelihood of every modality over its own parameters.

    Args:
        model: The model; its observation models are changed in place.
        posterior: Posterior of the batch, or any path with the same moments.
        batch: The trials.
    """
    for name, observation in model.observations.items():
        if any(p.requires_grad for p in observation.parameters()):
            observation.m_step(batch.modalities[name], *moments_for(observation, posterior, batch))


def moments_for(
    observation: ObservationModel, posterior: GaussianChain, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the path in the form the M-step of an observation model takes."""
    w = observation.memory(batch.dt)
    mean, covariance, _ = posterior.arrays()
    if w:
        covariance = posterior.lagged(w)
    return torch.from_numpy(mean), torch.from_numpy(np.ascontiguousarray(covariance))


def hold_process_noise(dynamics: PiecewiseLinear, variance: float) -> None:
    """Set the process noise to one variance for all states, unless it is frozen.

    Args:
        dynamics: Dynamics; changed in place.
        variance: The variance.
    """
    if not dynamics.noise.frozen:
        dynamics.noise.covariance = variance * torch.eye(dynamics.dim, dtype=torch.float64)
