"""Filter and smoother in covariance form for models whose observations remember earlier states."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from plssm.data import Batch, Modality
from plssm.inference.augmented_states import Affine, AugmentedStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.step_samples import on_grid, one_step
from plssm.model import StateSpaceModel

__all__ = ["AugmentedRun", "run_filter", "run_smoother"]

NEWTON = 25


@dataclass
class AugmentedRun:
    """Filtered states of a batch, with what the smoother needs.

    Attributes:
        predicted: Mean and covariance before each step's data, ``[B, T, D]``, ``[B, T, D, D]``.
        filtered: The same after them.
        gains: Per step: C' a ``[B, D]`` and C' M C ``[B, D, D]`` (zeros without data).
        maps: The latent map left after each step.
        evidence: Log evidence ``[B]``.
    """

    predicted: tuple[np.ndarray, np.ndarray]
    filtered: tuple[np.ndarray, np.ndarray]
    gains: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    maps: list[Affine] = field(default_factory=list)
    evidence: np.ndarray | float = 0.0


class _StepTerms:
    """Observation terms of one step as a function of the stacked predictors ``[B, R]``."""

    def __init__(self, model: StateSpaceModel, samples: dict[str, Modality], rows: dict) -> None:
        self.parts = []
        for name, m in samples.items():
            observation = model.observations[name]
            with torch.no_grad():
                shift = torch.zeros(*m.y.shape[:2], observation.predictors, dtype=torch.float64)
                shift = shift + observation.bias
                covariates = observation.covariates(m)
                if covariates is not None and observation.n_covariates:
                    shift = shift + covariates @ observation.nuisance_weight.mT
            self.parts.append((observation, m, rows[name], shift.numpy()))

    def design(self) -> tuple[np.ndarray, np.ndarray]:
        """C ``[R, D]`` and d ``[B, R]`` of all samples of the step."""
        design = [np.tile(c, (m.y.shape[1], 1)) for _, m, c, _ in self.parts]
        shift = [d.reshape(len(d), -1) for *_, d in self.parts]
        return np.concatenate(design), np.concatenate(shift, axis=1)

    def at(self, eta: np.ndarray, *, positive: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log density ``[B]``, gradient ``[B, R]`` and curvature ``[B, R, R]``."""
        value, slopes, first = 0.0, [], 0
        curvature = np.zeros((*eta.shape, eta.shape[1]))
        for observation, m, _, shift in self.parts:
            shape = shift.shape
            size = shape[1] * shape[2]
            part = torch.from_numpy(np.ascontiguousarray(eta[:, first : first + size]))
            log_prob, g, c = observation.derivatives(part.view(shape), m, positive=positive)
            power = float(observation.tempering)
            value = value + power * log_prob.detach().numpy().sum((1, 2))
            slopes.append(power * g.detach().numpy().reshape(len(eta), size))
            c = power * c.detach().numpy()
            for k in range(shape[1]):
                block = c[:, k] if c.ndim == 4 else c[:, k, :, None] * np.eye(shape[2])
                part = slice(first + k * shape[2], first + (k + 1) * shape[2])
                curvature[:, part, part] = block
            first += size
        return value, np.concatenate(slopes, axis=1), curvature


def run_filter(
    model: StateSpaceModel,
    batch: Batch,
    prior: ChainPrior,
    states: AugmentedStates,
    *,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
    expected: bool = False,
) -> AugmentedRun:
    r"""Extended Kalman filter in covariance form, Laplace updates for any observation.

    .. math:: \eta^* = \eta^- + S a, \quad S = C P^- C^\top, \quad
              P = P^- - P^- C^\top \Lambda (I + S \Lambda)^{-1} C P^-

    Args:
        model: Model with float64 parameters.
        batch: Trials.
        prior: Their prior.
        states: The joined states.
        reference: Paths of the latent ``[B, T, M]`` and of the joined states ``[B, T, D]`` around
            which everything is linearised; None linearises around the filter's own estimates.
        expected: Carry exact means and covariances through the map, without linearising it.

    Returns:
        The run; steps beyond a trial's end hold predictions.
    """
    steps, trials = batch.steps, len(prior.length)
    grids = {n: on_grid(batch.modalities[n], steps) for n in model.observations}
    rows = {n: states.rows(o) for n, o in model.observations.items()}
    sigma = np.linalg.inv(prior.precision)
    shape = (trials, steps, states.size)
    run = AugmentedRun(*((np.zeros(shape), np.zeros((*shape, states.size))) for _ in range(2)))
    evidence = np.zeros(trials)
    mean, covariance = states.start(prior)
    for t in range(steps):
        if t:
            m = states.dim
            around, noise = mean[:, :m] if reference is None else reference[0][:, t - 1], sigma
            if expected:
                latent = np.ascontiguousarray(covariance[:, :m, :m])
                affine, rest = Affine.expected(prior, around, latent, t - 1)
                noise = sigma + rest
            else:
                affine = Affine.at(prior, around, t - 1)
            run.maps.append(affine)
            mean, covariance = states.predict(mean, covariance, affine)
            covariance[:, :m, :m] += noise
        run.predicted[0][:, t], run.predicted[1][:, t] = mean, covariance
        samples = {n: one_step(g, t) for n, g in grids.items()}
        samples = {n: m for n, m in samples.items() if bool(m.mask.any())}
        if samples:
            terms = _StepTerms(model, samples, rows)
            fixed = None if reference is None else reference[1][:, t]
            mean, covariance, gained, gains = _update(terms, mean, covariance, fixed)
            evidence += np.where(t < prior.length, gained, 0.0)
        else:
            gains = np.zeros_like(mean), np.zeros_like(covariance)
        run.gains.append(gains)
        run.filtered[0][:, t], run.filtered[1][:, t] = mean, covariance
    run.evidence = evidence
    return run


def _update(
    terms: _StepTerms, mean: np.ndarray, covariance: np.ndarray, reference: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Laplace update of N(m, P); new moments, log evidence, and the smoother's gains."""
    design, shift = terms.design()
    prior_eta = mean @ design.T + shift
    crossed = covariance @ design.T
    s = design @ crossed
    if reference is None:
        eta, a, value = _mode(terms, prior_eta, s)
        _, _, curvature = terms.at(eta, positive=False)
        if (np.linalg.slogdet(np.eye(len(shift[0])) + s @ curvature)[0] <= 0).any():
            curvature = terms.at(eta, positive=True)[2]
        solved = np.linalg.solve(np.eye(len(shift[0])) + s @ curvature, s)
    else:
        fixed = reference @ design.T + shift
        density, g, curvature = terms.at(fixed, positive=False)
        solved = np.linalg.solve(np.eye(len(shift[0])) + s @ curvature, s)
        pull = g + (curvature @ (fixed - prior_eta)[..., None])[..., 0]
        eta = prior_eta + (solved @ pull[..., None])[..., 0]
        moved = eta - fixed
        curved = (curvature @ moved[..., None])[..., 0]
        a = g - curved
        value = (
            density + ((g - 0.5 * curved) * moved).sum(1) - 0.5 * ((eta - prior_eta) * a).sum(1)
        )
    m = curvature - curvature @ solved @ curvature  # Lambda (I + S Lambda)^-1
    m = 0.5 * (m + m.swapaxes(1, 2))
    logdet = np.linalg.slogdet(np.eye(len(shift[0])) + s @ curvature)[1]
    updated = mean + (crossed @ a[..., None])[..., 0]
    spread = covariance - crossed @ m @ crossed.swapaxes(1, 2)
    spread = 0.5 * (spread + spread.swapaxes(1, 2))
    return updated, spread, value - 0.5 * logdet, (a @ design, design.T @ m @ design)


def _mode(
    terms: _StepTerms, prior_eta: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximum of log density minus 1/2 a' S a over eta = eta^- + S a; eta, a and its value."""
    eta, a = prior_eta.copy(), np.zeros_like(prior_eta)
    eye = np.eye(prior_eta.shape[1])
    value, g, curvature = terms.at(eta, positive=True)
    for _ in range(NEWTON):
        pull = g + (curvature @ (eta - prior_eta)[..., None])[..., 0]
        moved = np.linalg.solve(eye + s @ curvature, (s @ pull[..., None]))[..., 0]
        target = pull - (curvature @ moved[..., None])[..., 0]
        step, best, gained = np.ones(len(eta)), value.copy(), np.zeros(len(eta), dtype=bool)
        kept_a, kept_eta = a.copy(), eta.copy()
        for _ in range(30):
            trial = a + step[:, None] * (target - a)
            at = prior_eta + (s @ trial[..., None])[..., 0]
            reached = terms.at(at, positive=True)[0] - 0.5 * ((at - prior_eta) * trial).sum(1)
            better = ~gained & (reached >= best)
            kept_a[better], kept_eta[better], best[better] = (
                trial[better],
                at[better],
                reached[better],
            )
            gained |= better
            if gained.all():
                break
            step = np.where(gained, step, 0.5 * step)
        done = best - value <= 1e-11 * (1 + np.abs(value))
        a, eta, value = kept_a, kept_eta, best
        if done.all():
            break
        _, g, curvature = terms.at(eta, positive=True)
    return eta, a, value


def run_smoother(
    run: AugmentedRun, states: AugmentedStates, prior: ChainPrior
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Bryson-Frazier smoother: no covariance is inverted, so singular ones are fine.

    .. math:: r^-_t = C^\top a_t + (I - C^\top M C P^-) G^\top r^-_{t+1}, \qquad
              \hat z_t = m^-_t + P^-_t r^-_t

    Args:
        run: The filter's run.
        states: The joined states.
        prior: The prior of the trials.

    Returns:
        Smoothed mean ``[B, T, D]``, covariance ``[B, T, D, D]`` and cross-covariance of the
        latent states Cov(z_t, z_{t+1}) ``[B, T-1, M, M]``.

    References:
        Bryson and Frazier (1963); de Jong (1989), doi:10.1080/01621459.1989.10478871.
    """
    means, covariances = run.predicted
    trials, steps, size = means.shape
    mean, covariance = np.empty_like(means), np.empty_like(covariances)
    cross = np.zeros((trials, max(steps - 1, 0), states.dim, states.dim))
    r, n = np.zeros((trials, size)), np.zeros((trials, size, size))
    eye = np.eye(size)
    for t in reversed(range(steps)):
        inside = t < prior.length
        pull, curved = run.gains[t]
        kept = eye - covariances[:, t] @ curved  # I - K C
        if t + 1 < steps:
            # rows of (G (I - K C))' applied from the right
            forward = eye - n @ covariances[:, t + 1]
            lag = states.back(forward.swapaxes(1, 2), run.maps[t]).swapaxes(1, 2)
            lag = covariances[:, t] @ kept.swapaxes(1, 2) @ lag
            cross[:, t] = lag[:, : states.dim, : states.dim]
            r = states.back(r[:, None], run.maps[t])[:, 0]
            n = states.back(states.back(n, run.maps[t]).swapaxes(1, 2), run.maps[t])
        r = pull + (kept.swapaxes(1, 2) @ r[..., None])[..., 0]
        n = curved + kept.swapaxes(1, 2) @ n @ kept
        r[~inside], n[~inside] = 0.0, 0.0
        mean[:, t] = means[:, t] + (covariances[:, t] @ r[..., None])[..., 0]
        covariance[:, t] = covariances[:, t] - covariances[:, t] @ n @ covariances[:, t]
    return mean, covariance, cross
