"""Global Laplace approximation of the latent path: mode search, curvature, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.chain_prior import LOG_2PI, ChainPrior
from plssm.inference.cold_start import cold_mode
from plssm.inference.filter_sweeps import filtered_path
from plssm.inference.modality_weights import is_tempered
from plssm.inference.mode_search import ChainMode, find_mode
from plssm.inference.newton import expand, newton_mode
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["LaplaceResult", "laplace_posterior"]

LOOSENED = 10.0 ** np.arange(5, 0, -0.15)  # times the process noise, for a cold search
COARSE = 7  # of these steps at once where all trials have a better start
ROUGH = {"steps": 10, "max_solves": 8, "tolerance": 1e-4}  # how exactly


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
        tolerance: Relative gain of the log joint at which the outer Newton stops; also where the
            next step promises less than its power of 1.5.

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
        settings = {"steps": newton_steps, "max_solves": max_solves, "tolerance": tolerance}
        search = partial(newton_mode, model=model, batch=batch, **settings)
        if start is None:
            mode, kind = _cold_newton(prior, model, batch, search)
        else:
            mode, kind = search(prior, start=start)
    if is_tempered(model):
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


def _cold_newton(
    prior: ChainPrior,
    model: StateSpaceModel,
    batch: Batch,
    search: partial,
) -> tuple[ChainMode, str]:
    """Best mode from several starts, trial by trial.

    With a nearly deterministic map the log joint has many poor local maxima, and far from the data
    an expansion of the observation terms says little about them. Modalities whose terms are
    quadratic are known everywhere: the mode of these alone is one start. Searches with falling
    process noise lead to another: with much of it the path follows the observations; as it falls
    the path is led to where the map agrees with them. A third is the roughly filtered path.
    """
    if not prior.form.outer.shape[1] and all(o.concave for o in model.observations.values()):
        return search(prior, start=None)  # there is only one
    masks = [batch.modalities[n].mask for n, o in model.observations.items() if o.quadratic]
    seen = sum((m.flatten(1).any(1) for m in masks), torch.zeros(len(prior.length)))
    factors = LOOSENED[:: COARSE if seen.all() else 1]
    starts = [_led_path(prior, search, factors), filtered_path(model, batch, prior)]
    if seen.any():
        terms = expand(model, batch, np.zeros_like(starts[0]), quadratic=True)
        starts.append(cold_mode(prior, terms, max_solves=search.keywords["max_solves"]).path)
    first, *others = (search(prior, start=path) for path in starts if path is not None)
    if not others:
        return first
    path, value = first[0].path, first[0].value
    for other, _ in others:
        better = other.value > value + 1e-9 * (1 + np.abs(value))
        path = np.where(better[:, None, None], other.path, path)
        value = np.where(better, other.value, value)
    return search(prior, start=path)


def _led_path(prior: ChainPrior, search: partial, factors: np.ndarray) -> np.ndarray:
    """Path at the end of rough searches with multiples of the process noise."""
    path = None
    for factor in factors:
        rough, _ = search(prior.loosened(factor), start=path, **ROUGH)
        path = rough.path
    return path
