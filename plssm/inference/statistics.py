"""Expected sums over transitions that the closed-form M-step needs, under a Gaussian chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.base import PiecewiseLinear
from plssm.kernels.chain_statistics import chain_statistics
from plssm.posterior import GaussianChain

__all__ = ["TransitionStatistics", "exact_statistics", "regional_statistics"]


@dataclass(frozen=True)
class TransitionStatistics:
    r"""Expected sums over trials and steps t = 2..T, with y = [z; phi(z); 1; s].

    Args:
        regressors: :math:`\sum E[y_{t-1} y_{t-1}^\top]`, ``[R, R]``.
        targets: :math:`\sum E[z_t y_{t-1}^\top]`, ``[M, R]``.
        squares: :math:`\sum E[z_t z_t^\top]`, ``[M, M]``.
        count: Number of transitions.
    """

    regressors: np.ndarray
    targets: np.ndarray
    squares: np.ndarray
    count: int

    def residual(self, theta: np.ndarray) -> np.ndarray:
        r"""Expected sum of squared residuals :math:`\sum E[e_t e_t^\top]`, ``[M, M]``."""
        crossed = theta @ self.targets.T
        return self.squares - crossed - crossed.T + theta @ self.regressors @ theta.T


def exact_statistics(
    dynamics: PiecewiseLinear, posterior: GaussianChain, batch: Batch
) -> TransitionStatistics:
    r"""Statistics with :math:`\phi(z) = \mathrm{relu}(G z + g)`, exact under the Gaussian chain.

    They contain the bivariate normal cdf of every pair of hinges.

    Args:
        dynamics: Latent dynamics with a ReLU form.
        posterior: Posterior of the batch.
        batch: The trials (for the inputs).
    """
    form = dynamics.relu_form()
    gated = form.outer.shape[1] > 0
    general = gated and not form.identity_gates
    sums = chain_statistics(
        *posterior.arrays(),
        _inputs(dynamics, batch),
        posterior.length.numpy(),
        inner=form.inner if general else None,
        offset=form.offset if general else None,
        gates=gated,
        threads=torch.get_num_threads(),
    )
    return TransitionStatistics(*sums[:3], int(sums[3]))


def regional_statistics(
    dynamics: PiecewiseLinear, posterior: GaussianChain, batch: Batch, slope: np.ndarray
) -> TransitionStatistics:
    r"""Statistics with every hinge replaced by its line in the region of the mode.

    .. math:: \phi_t(z) = d_t \odot (G z + g)

    This is the linearisation that defines the Laplace covariance, so that an EM step maximises
    the expected log density of the same Gaussian chain whose evidence is reported.

    Args:
        dynamics: Latent dynamics with a ReLU form.
        posterior: Posterior of the batch.
        batch: The trials (for the inputs).
        slope: Slopes d of the hinges at the mode ``[B, T-1, P]``.
    """
    form = dynamics.relu_form()
    mean, covariance, cross = posterior.arrays()
    inside = np.arange(slope.shape[1]) < (posterior.length.numpy() - 1)[:, None]
    z, p, x, d = mean[:, :-1][inside], covariance[:, :-1][inside], cross[inside], slope[inside]
    after, p_after = mean[:, 1:][inside], covariance[:, 1:][inside]
    columns = [z, d * form.gates(z), np.ones((len(z), 1))]
    inputs = _inputs(dynamics, batch)
    if inputs is not None:
        columns.append(inputs[:, 1:][inside])
    y = np.concatenate(columns, axis=1)
    m, g = z.shape[1], d.shape[1]
    to_gates = p if form.identity_gates else p @ form.inner.T
    both = to_gates if form.identity_gates else form.inner @ to_gates
    ahead = x if form.identity_gates else form.inner @ x
    regressors, targets = y.T @ y, after.T @ y
    regressors[:m, :m] += p.sum(0)
    mixed = np.einsum("tij,tj->ij", to_gates, d)
    regressors[:m, m : m + g] += mixed
    regressors[m : m + g, :m] += mixed.T
    regressors[m : m + g, m : m + g] += np.einsum("tij,ti,tj->ij", both, d, d, optimize=False)
    targets[:, :m] += x.sum(0).T
    targets[:, m : m + g] += np.einsum("tji,tj->ij", ahead, d)
    return TransitionStatistics(regressors, targets, after.T @ after + p_after.sum(0), len(z))


def _inputs(dynamics: PiecewiseLinear, batch: Batch) -> np.ndarray | None:
    return batch.inputs.numpy() if batch.inputs is not None and dynamics.n_inputs else None
