"""Global Laplace approximation of the latent path: mode search, curvature, evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plssm.data import Batch
from plssm.inference.chain_prior import LOG_2PI, ChainPrior
from plssm.inference.cold_start import cold_mode
from plssm.inference.mode_search import find_mode
from plssm.inference.newton import expand, newton_mode
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["LaplaceResult", "laplace_posterior"]


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
        mode, kind = newton_mode(
            prior,
            model,
            batch,
            start,
            steps=newton_steps,
            max_solves=max_solves,
            tolerance=tolerance,
        )
    if any(float(o.tempering) != 1.0 for o in model.observations.values()):
        kind = "tempered"
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
