"""Gaussian proposals of a particle filter, from observation terms shared by all particles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.base import LatentDynamics, PiecewiseLinear
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import CapabilityError
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.filter_sweeps import filter_sweeps
from plssm.inference.filtering import SWEEPS
from plssm.inference.laplace import laplace_posterior
from plssm.inference.newton import expand
from plssm.inference.quadratic_chain import QuadraticTerms
from plssm.inference.step_samples import on_grid, one_step
from plssm.inference.step_updates import laplace_update
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["Tilt", "Transition", "guide_terms", "look_ahead", "no_terms"]


@dataclass(frozen=True)
class Transition:
    r"""Where states lead to, for any dynamics: :math:`z_t \sim N(F(z_{t-1}, s_t), \Sigma)`.

    Args:
        dynamics: The latent dynamics, float64.
        form: Their ReLU form, None where there is none.
        inputs: Inputs ``[B, T, K]``, or None.
        drive: C s_t ``[B, T, M]``, for the ReLU form.
        initial_mean: Mean of z_1 ``[B, M]``.
        initial_covariance: Covariance of z_1 ``[M, M]``.
        covariance: Sigma ``[M, M]``.
        length: Latent steps of each trial ``[B]``.
    """

    dynamics: LatentDynamics
    form: ReluForm | None
    inputs: torch.Tensor | None
    drive: np.ndarray
    initial_mean: np.ndarray
    initial_covariance: np.ndarray
    covariance: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, dynamics: LatentDynamics, batch: Batch) -> Transition:
        """Read the transition of a batch from the dynamics."""
        trials = len(batch.length)
        inputs = batch.inputs if dynamics.n_inputs else None
        drive = np.zeros((trials, batch.steps, dynamics.dim))
        with torch.no_grad():
            if inputs is not None:
                drive = drive + dynamics.drive(inputs).numpy()
            first = dynamics.first_mean(inputs).expand(trials, dynamics.dim).numpy().copy()
            covariances = [n.covariance.numpy() for n in (dynamics.initial.noise, dynamics.noise)]
        length = batch.length.numpy()
        return cls(dynamics, _form(dynamics), inputs, drive, first, *covariances, length)

    def select(self, trials: slice) -> Transition:
        """The transition of some of the trials."""
        return Transition(
            self.dynamics,
            self.form,
            None if self.inputs is None else self.inputs[trials],
            self.drive[trials],
            self.initial_mean[trials],
            self.initial_covariance,
            self.covariance,
            self.length[trials],
        )

    def after(self, z: np.ndarray, t: int) -> np.ndarray:
        """Mean of the states of step t that come from states ``[..., B, P, M]``."""
        if self.form is not None:
            return self.form.step(z) + self.drive[:, t, None]
        with torch.no_grad():
            return self.dynamics.step(torch.from_numpy(z), self._inputs(z.shape, t)).numpy()

    def jacobian(self, z: np.ndarray, t: int) -> np.ndarray:
        """Jacobian of the map to step t at states ``[B, 1, M]``, ``[B, M, M]``."""
        with torch.no_grad():
            at = torch.from_numpy(z)
            return self.dynamics.jacobian(at, self._inputs(z.shape, t))[:, 0].numpy()

    def _inputs(self, shape: tuple[int, ...], t: int) -> torch.Tensor | None:
        if self.inputs is None:
            return None
        return self.inputs[:, t, None].expand(*shape[:-1], -1)


def _form(dynamics: LatentDynamics) -> ReluForm | None:
    """The map as ReLU gates; None where it has no such form."""
    if not isinstance(dynamics, PiecewiseLinear):
        return None
    try:
        return dynamics.relu_form()
    except CapabilityError:
        return None


@dataclass(frozen=True)
class Tilt:
    r"""A Gaussian around f, tilted by a quadratic term: its normaliser and how to draw from it.

    .. math:: N(z; f, Q) \, e^{q^\top z - z^\top R z / 2}
        = e^{k + a^\top f - f^\top H f / 2} \, N(z; G f + g, Y Y^\top), \qquad
        G = (I + Q R)^{-1}, \; g = G Q q, \; a = G^\top q, \; H = G^\top R

    Args:
        gain: G ``[B | 1, T | 1, M, M]``.
        shift: g ``[B, T, M]``.
        root: Y ``[B | 1, T | 1, M, M]``.
        slope: a ``[B, T, M]``.
        bend: H ``[B | 1, T | 1, M, M]``.
        level: k ``[B, T]``.
    """

    gain: np.ndarray
    shift: np.ndarray
    root: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    level: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray, information: np.ndarray, score: np.ndarray) -> Tilt:
        """Tilt of N(f, Q) by terms R ``[B | 1, T | 1, M, M]`` and q ``[B, T, M]``."""
        eye = np.eye(len(covariance))
        inverse = np.linalg.solve(
            eye + information @ covariance, np.broadcast_to(eye, information.shape)
        )
        slope = (inverse @ score[..., None])[..., 0]
        shift = slope @ covariance
        lower = np.linalg.cholesky(covariance)
        inner = np.linalg.cholesky(eye + lower.T @ information @ lower)
        root = lower @ np.linalg.inv(inner).swapaxes(-1, -2)
        logdet = 2 * np.log(np.diagonal(inner, axis1=-2, axis2=-1)).sum(-1)
        bend = inverse @ information
        return cls(
            gain=np.ascontiguousarray(inverse.swapaxes(-1, -2)),
            shift=shift,
            root=root,
            slope=slope,
            bend=0.5 * (bend + bend.swapaxes(-1, -2)),
            level=0.5 * (score * shift).sum(-1) - 0.5 * logdet,
        )

    def at(self, t: int) -> tuple[np.ndarray, ...]:
        """The six arrays of one step, with the trial as the only leading axis."""
        return tuple(part[:, t if part.shape[1] > 1 else 0] for part in self._parts())

    def of_trial(self, b: int, first: int, last: int) -> tuple[np.ndarray, ...]:
        """The six arrays of some steps of one trial, with the step as the only leading axis."""
        mine = (part[b if len(part) > 1 else 0] for part in self._parts())
        return tuple(part[first:last] if len(part) > 1 else part for part in mine)

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.gain, self.shift, self.root, self.slope, self.bend, self.level


def guide_terms(
    model: StateSpaceModel, batch: Batch, transition: Transition
) -> tuple[QuadraticTerms, bool]:
    """Quadratic terms of the observations that guide the particles, and whether they are exact.

    Observations that remember earlier states have no part in them. Counts and labels are expanded
    around the path of an extended Kalman filter.

    Args:
        model: The model, float64.
        batch: Trials.
        transition: Their transition.
    """
    part = _guiding_part(model, batch, transition)
    if part is None:
        return no_terms((len(batch), batch.steps, model.dim)), False
    if all(o.quadratic for o in part.observations.values()):
        zero = np.zeros((len(batch), batch.steps, model.dim))
        return expand(part, batch, zero), len(part.observations) == len(model.observations)
    return _expanded(part, batch, _filtered_path(part, batch, transition)), False


def look_ahead(model: StateSpaceModel, batch: Batch, transition: Transition) -> QuadraticTerms:
    r"""Quadratic terms of what the data of each step and of all later ones say about its state.

    .. math:: \Lambda_t = R_t + J_t^\top H_{t+1} J_t, \qquad
              \lambda_t = q_t + J_t^\top (a_{t+1} - H_{t+1} b_t)

    with H and a of :class:`Tilt` by the terms of the next step, and the map linearised around the
    mode of the whole path, :math:`F(z) \approx J_t z + b_t`. For linear-Gaussian models these are
    :math:`\log p(y_{t:T} \mid z_t)`, and particles guided by them have no error.

    Args:
        model: The model, float64.
        batch: Trials.
        transition: Their transition.

    References:
        Guarniero, Johansen and Lee 2017, doi:10.1080/01621459.2016.1222291.
    """
    part = _guiding_part(model, batch, transition)
    if part is None:
        return no_terms((len(batch), batch.steps, model.dim))
    if transition.form is not None:
        path = laplace_posterior(part, batch).path
    else:
        path = _filter_any(part, batch, transition)
    terms = _expanded(part, batch, path)
    shape = (*path.shape, path.shape[2])
    information, score = np.array(np.broadcast_to(terms.information, shape)), terms.score.copy()
    for t in range(batch.steps - 2, -1, -1):
        later = slice(t + 1, t + 2)
        tilt = Tilt.of(transition.covariance, information[:, later], score[:, later])
        slope, bend = _linearised(tilt, transition, path[:, t], t + 1)
        inside = (t + 1 < transition.length)[:, None]
        score[:, t] += np.where(inside, slope, 0.0)
        information[:, t] += np.where(inside[..., None], bend, 0.0)
    return QuadraticTerms(terms.constant, score, information)


def _linearised(
    tilt: Tilt, transition: Transition, z: np.ndarray, t: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score and information about states of one step in a tilt of step t, around ``[B, M]``."""
    jacobian = transition.jacobian(z[:, None], t)
    offset = transition.after(z[:, None], t)[:, 0] - (jacobian @ z[..., None])[..., 0]
    back, bend = jacobian.swapaxes(1, 2), tilt.bend[:, 0]
    pull = tilt.slope[:, 0] - (bend @ offset[..., None])[..., 0]
    return (back @ pull[..., None])[..., 0], back @ bend @ jacobian


def _guiding_part(
    model: StateSpaceModel, batch: Batch, transition: Transition
) -> StateSpaceModel | None:
    """The model with the modalities that have a part in the proposal; None without any."""

    def guides(observation: ObservationModel) -> bool:
        driven = observation.n_covariates > observation.nuisance  # by its own past: no single step
        return not observation.memory(batch.dt) and not (driven and transition.form is None)

    names = [n for n, o in model.observations.items() if guides(o)]
    return model.only(*names) if names else None


def _expanded(part: StateSpaceModel, batch: Batch, path: np.ndarray) -> QuadraticTerms:
    """Upright terms around a path; none where the expansion overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        terms = expand(part, batch, path)
    if np.isfinite(terms.information).all() and np.isfinite(terms.score).all():
        return terms.steering(path)
    return no_terms(path.shape)


def no_terms(shape: tuple[int, int, int]) -> QuadraticTerms:
    """Terms that say nothing, for trials, steps and states."""
    return QuadraticTerms(np.zeros(shape[0]), np.zeros(shape), np.zeros((1, 1, *shape[2:] * 2)))


def _filtered_path(part: StateSpaceModel, batch: Batch, transition: Transition) -> np.ndarray:
    """Filtered path ``[B, T, M]`` of observations without memory."""
    if transition.form is not None:
        prior = ChainPrior.of(part.dynamics, batch)
        start = np.zeros((len(prior.length), batch.steps, prior.dim))
        path, _, settled = filter_sweeps(part, batch, prior, start, sweeps=SWEEPS)
        if settled is not None or any(
            o.n_covariates > o.nuisance for o in part.observations.values()
        ):
            return path
    return _filter_any(part, batch, transition)


def _filter_any(part: StateSpaceModel, batch: Batch, transition: Transition) -> np.ndarray:
    """Mean of an extended Kalman filter with Laplace updates, for any dynamics."""
    grids = {n: on_grid(batch.modalities[n], batch.steps) for n in part.observations}
    mean, p = transition.initial_mean, np.tile(transition.initial_covariance, (len(batch), 1, 1))
    path = np.zeros((len(batch), batch.steps, part.dim))
    for t in range(batch.steps):
        if t:
            jacobian = transition.jacobian(mean[:, None], t)
            mean = transition.after(mean[:, None], t)[:, 0]
            p = jacobian @ p @ jacobian.swapaxes(1, 2) + transition.covariance
        terms = [(part.observations[n], one_step(g, t)) for n, g in grids.items()]
        mean, p, _ = laplace_update(terms, mean, p)
        path[:, t] = mean
    path[np.arange(batch.steps) >= transition.length[:, None]] = 0.0
    return path
