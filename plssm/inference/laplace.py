"""Global Laplace approximation of the latent path: mode search, curvature, evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.chain_prior import LOG_2PI, ChainPrior
from plssm.inference.cold_start import cold_mode
from plssm.inference.mode_search import ChainMode, find_mode
from plssm.inference.quadratic_chain import QuadraticTerms, linear_solve
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["LaplaceResult", "expand", "laplace_posterior"]

STALLED = 1e-6  # a Newton step that promises more than this, relative, and gains nothing


@dataclass(frozen=True)
class LaplaceResult:
    """Outcome of one E-step.

    Args:
        posterior: The Gaussian chain around the mode.
        path: The mode ``[B, T, M]``, zeros beyond a trial's end.
        slope: Slopes of the hinges at the mode ``[B, T-1, P]``.
        joint: Log joint density at the mode, ``[B]``.
        logdet: Log determinant of the negative Hessian, ``[B]``.
        status: How the search of each trial stopped: ``"stationary"``, ``"stalled"`` (no step
            towards the maximum gains anything: a kink of the read-out), ``"max_solves"`` or
            ``"failed"``.
        solves: Block-tridiagonal solves of the slowest trial.
        pinned: Units whose maximum lies on a kink, all trials together.
    """

    posterior: GaussianChain
    path: np.ndarray
    slope: np.ndarray
    joint: np.ndarray
    logdet: np.ndarray
    status: tuple[str, ...]
    solves: int
    pinned: int

    @property
    def evidence(self) -> float:
        """Laplace log evidence of all trials together, in nats."""
        return float(self.posterior.log_evidence.sum())

    @property
    def failed(self) -> bool:
        """Whether the approximation is unusable (no positive-definite curvature, not finite)."""
        return "failed" in self.status or not np.isfinite(self.evidence)


def laplace_posterior(
    model: StateSpaceModel,
    batch: Batch,
    *,
    start: np.ndarray | None = None,
    trial_means: np.ndarray | None = None,
    max_solves: int = 400,
    newton_steps: int = 40,
    tolerance: float = 1e-10,
) -> LaplaceResult:
    r"""Gaussian approximation of p(Z | Y) around its mode, exact for linear-Gaussian models.

    .. math:: \log p(Y) \approx \log p(Y, Z^*) + \tfrac{TM}{2}\log 2\pi - \tfrac12\log|U(Z^*)|

    Args:
        model: Model with float64 parameters.
        batch: Trials, float64.
        start: Path the search starts from ``[B, T, M]``.
        trial_means: Mean of z_1 of each trial ``[B, M]``, for ``initial="tied"``.
        max_solves: Linear solves of one region search.
        newton_steps: Outer Newton steps on observation terms that are not quadratic.
        tolerance: Relative gain of the log joint at which the outer Newton stops.

    Returns:
        Posterior, evidence and how the search stopped.

    Raises:
        CapabilityError: If the latent map is not one layer of hinges.

    References:
        Koppe et al. (2019), PLoS Comput Biol 15:e1007263, doi:10.1371/journal.pcbi.1007263.
    """
    prior = ChainPrior.of(model.dynamics, batch, trial_means=trial_means)
    quadratic = all(o.quadratic for o in model.observations.values())
    if quadratic:
        terms = expand(model, batch, np.zeros((*prior.drive.shape[:1], batch.steps, prior.dim)))
        if start is None:
            mode = cold_mode(prior, terms, max_solves=max_solves)
        else:
            mode = find_mode(prior, terms, start, max_solves=max_solves)
        kind = "exact" if mode.slope.shape[2] == 0 else "laplace"
    else:
        mode = _newton(prior, model, batch, start, newton_steps, max_solves, tolerance)
        mode, kind = _true_curvature(prior, model, batch, mode)
    logdet = np.asarray(mode.factor.logdet)
    evidence = mode.value + 0.5 * prior.length * prior.dim * LOG_2PI - 0.5 * logdet
    posterior = GaussianChain(
        mode.path,
        mode.factor,
        length=prior.length,
        log_evidence=evidence,
        evidence_kind=kind,
        status=mode.status,
    )
    solves, pinned = int(mode.solves.max()), int(mode.pinned.sum())
    return LaplaceResult(
        posterior, mode.path, mode.slope, mode.value, logdet, mode.status, solves, pinned
    )


def expand(
    model: StateSpaceModel, batch: Batch, z: np.ndarray, *, positive: bool = False
) -> QuadraticTerms:
    """Second-order expansion of all observation terms at a path."""
    path = torch.from_numpy(z)
    constant, score, information = 0.0, 0.0, 0.0
    for name, observation in model.observations.items():
        local = observation.local(batch.modalities[name], path, positive=positive)
        curvature = local.curvature.detach().numpy()
        slope = local.score.detach().numpy()
        if curvature.shape[:2] == (1, 1):
            curved = z @ curvature[0, 0]
        else:
            curved = (curvature @ z[..., None])[..., 0]
        constant = constant + (
            local.log_prob.detach().numpy() - ((slope + 0.5 * curved) * z).sum((1, 2))
        )
        score = score + (slope + curved)
        information = information + curvature
    return QuadraticTerms(constant, score, np.ascontiguousarray(information))


def _log_joint(
    prior: ChainPrior, model: StateSpaceModel, batch: Batch, z: np.ndarray
) -> np.ndarray:
    value, path = prior.log_prob(z), torch.from_numpy(z)
    with torch.no_grad():
        for name, observation in model.observations.items():
            value = value + observation.log_prob(batch.modalities[name], path).numpy()
    return value


def _newton(
    prior: ChainPrior,
    model: StateSpaceModel,
    batch: Batch,
    start: np.ndarray | None,
    steps: int,
    max_solves: int,
    tolerance: float,
) -> ChainMode:
    """Damped Newton on the observation terms; each step is a region search of its own."""
    trials = len(prior.length)
    z = np.zeros((trials, batch.steps, prior.dim)) if start is None else start.copy()
    value = _log_joint(prior, model, batch, z)
    if start is None:
        terms = expand(model, batch, z).steering(z)
        target = cold_mode(prior, terms, max_solves=max_solves).path
        z, _, value = _backtrack(prior, model, batch, z, target, value)
    solves, done = np.zeros(trials, dtype=np.int64), np.zeros(trials, dtype=bool)
    for _ in range(steps):
        terms = expand(model, batch, z).steering(z)
        mode = find_mode(prior, terms, z, max_solves=max_solves)
        solves += np.where(done, 0, mode.solves)
        promised = mode.value - value
        target = np.where(done[:, None, None], z, mode.path)  # trials do not wait for each other
        z, gained, value = _backtrack(prior, model, batch, z, target, value)
        done = done | (gained <= tolerance * (1 + np.abs(value)))
        if done.all():
            break
    near = promised <= STALLED * (1 + np.abs(value))
    status = tuple(
        s if s != "stationary" else "max_solves" if not d else "stationary" if n else "stalled"
        for s, d, n in zip(mode.status, done, near, strict=True)
    )
    return ChainMode(z, mode.slope, value, mode.factor, status, solves, mode.pinned)


def _backtrack(
    prior: ChainPrior,
    model: StateSpaceModel,
    batch: Batch,
    z: np.ndarray,
    target: np.ndarray,
    value: np.ndarray,
    halvings: int = 30,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move each trial towards its target as far as its log joint rises; gain and new value."""
    step = np.ones(len(value))
    best, best_value = z.copy(), value.copy()
    for _ in range(halvings):
        trial = z + step[:, None, None] * (target - z)
        reached = _log_joint(prior, model, batch, trial)
        better = reached > best_value
        best[better], best_value[better] = trial[better], reached[better]
        if (best_value > value).all() or np.abs(step[:, None, None] * (target - z)).max() < 1e-9:
            break
        step = np.where(best_value > value, step, 0.5 * step)
    return best, best_value - value, best_value


def _true_curvature(
    prior: ChainPrior, model: StateSpaceModel, batch: Batch, mode: ChainMode
) -> tuple[ChainMode, str]:
    """Refactor at the exact negative Hessian; where it is indefinite keep the step curvature."""
    terms, kind = expand(model, batch, mode.path), "laplace"
    _, factor = linear_solve(prior, terms, mode.slope)
    indefinite = np.asarray(factor.status) != 0
    if indefinite.any():
        safe = expand(model, batch, mode.path, positive=True)
        chosen = np.where(indefinite[:, None, None, None], safe.information, terms.information)
        _, factor = linear_solve(prior, replace(terms, information=chosen), mode.slope)
        kind = "laplace (majorised)"
    refactored = ChainMode(
        mode.path, mode.slope, mode.value, factor, mode.status, mode.solves, mode.pinned
    )
    return refactored, kind
