"""The Gaussian-noise piecewise-linear prior over a batch of latent paths, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from plssm.data import Batch
from plssm.dynamics.base import LatentDynamics
from plssm.dynamics.relu_form import ReluForm
from plssm.kernels.packed_prior import PackedPrior, pack_prior

__all__ = ["ChainPrior"]

LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class ChainPrior:
    r"""Everything the E-step needs to know about p(Z) of a batch of trials.

    .. math:: z_1 \sim \mathcal N(\mu_1, \Sigma_0), \quad
              z_t \sim \mathcal N(F(z_{t-1}, s_t), \Sigma)

    Args:
        form: The latent map F, one layer of hinges.
        precision: Inverse process-noise covariance ``[M, M]``.
        logdet: Log determinant of the process-noise covariance.
        initial_mean: Mean of z_1 of each trial ``[B, M]``.
        initial_precision: Inverse covariance of z_1 ``[M, M]``.
        initial_logdet: Log determinant of the covariance of z_1.
        drive: Input term C s of the step arrived at, ``[B, T-1, M]``; zeros without inputs.
        length: Latent steps of each trial ``[B]``.
    """

    form: ReluForm
    precision: np.ndarray
    logdet: float
    initial_mean: np.ndarray
    initial_precision: np.ndarray
    initial_logdet: float
    drive: np.ndarray
    length: np.ndarray

    @classmethod
    def of(
        cls, dynamics: LatentDynamics, batch: Batch, *, trial_means: np.ndarray | None = None
    ) -> ChainPrior:
        """Read the prior of a batch from the dynamics.

        Args:
            dynamics: Latent dynamics with a ReLU form.
            batch: The trials.
            trial_means: Initial mean of each trial ``[B, M]`` (``initial="tied"``, where the
                covariance of z_1 is the process noise's); otherwise the shared distribution.

        Raises:
            CapabilityError: If the map is not one layer of hinges.
        """
        form = dynamics.relu_form()
        trials, steps = len(batch.length), batch.steps
        mean = dynamics.initial.mean.detach().numpy()
        initial_mean = np.tile(mean, (trials, 1)) if trial_means is None else trial_means.copy()
        drive = np.zeros((trials, max(steps - 1, 0), dynamics.dim))
        if batch.inputs is not None and dynamics.n_inputs:
            driven = batch.inputs.numpy().astype(np.float64) @ form.inputs.T
            drive = np.ascontiguousarray(driven[:, 1:])
            if dynamics.input_at_start:
                initial_mean = initial_mean + driven[:, 0]
        noise = dynamics.noise
        initial = dynamics.initial.noise if trial_means is None else noise
        return cls(
            form=form,
            precision=np.ascontiguousarray(noise.precision.detach().numpy()),
            logdet=float(noise.logdet.detach()),
            initial_mean=np.ascontiguousarray(initial_mean),
            initial_precision=np.ascontiguousarray(initial.precision.detach().numpy()),
            initial_logdet=float(initial.logdet.detach()),
            drive=drive,
            length=batch.length.numpy(),
        )

    @cached_property
    def packed(self) -> PackedPrior:
        """The prior as the compiled searches take it."""
        return pack_prior(
            self.form,
            self.drive,
            self.precision,
            self.initial_mean,
            self.initial_precision,
            self.length,
        )

    @property
    def dim(self) -> int:
        """Number of latent dimensions M."""
        return self.precision.shape[0]

    def select(self, trials: np.ndarray) -> ChainPrior:
        """The prior of some of the trials."""
        return ChainPrior(
            self.form,
            self.precision,
            self.logdet,
            self.initial_mean[trials],
            self.initial_precision,
            self.initial_logdet,
            self.drive[trials],
            self.length[trials],
        )

    def loosened(self, factor: float) -> ChainPrior:
        """The prior with a multiple of the process-noise covariance."""
        logdet = self.logdet + self.dim * np.log(factor)
        return replace(self, precision=self.precision / factor, logdet=logdet)

    def inside(self) -> np.ndarray:
        """Which transitions t -> t+1 belong to a trial, bool ``[B, T-1]``."""
        return np.arange(self.drive.shape[1])[None, :] < (self.length - 1)[:, None]

    def residual(self, z: np.ndarray) -> np.ndarray:
        """Process noise implied by a path: ``z_{t+1} - F(z_t, s_{t+1})``, ``[B, T-1, M]``."""
        form = self.form
        predicted = z[:, :-1] @ form.linear.T + form.bias + self.drive
        if form.outer.shape[1]:
            predicted += np.maximum(form.gates(z[:, :-1]), 0.0) @ form.outer.T
        e = z[:, 1:] - predicted
        e[~self.inside()] = 0.0
        return e

    def log_prob(self, z: np.ndarray) -> np.ndarray:
        """Log density of paths ``[B, T, M]``, ``[B]`` in nats."""
        first = z[:, 0] - self.initial_mean
        e = self.residual(z)
        quadratic = ((first @ self.initial_precision) * first).sum(1)
        quadratic += ((e @ self.precision) * e).sum((1, 2))
        constant = self.initial_logdet + (self.length - 1) * self.logdet
        return -0.5 * (quadratic + constant + self.length * self.dim * LOG_2PI)
