"""Expected sums over transitions that the closed-form M-step needs, under a Gaussian chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from plssm.data import Batch
from plssm.dynamics.base import PiecewiseLinear
from plssm.kernels.chain_statistics import chain_statistics
from plssm.kernels.regional_sums import regional_sums
from plssm.posterior import GaussianChain

__all__ = [
    "TransitionStatistics",
    "exact_statistics",
    "regional_statistics",
    "transition_statistics",
]


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


def transition_statistics(
    dynamics: PiecewiseLinear,
    posterior: GaussianChain,
    batch: Batch,
    slope: np.ndarray,
    *,
    exact: bool = False,
) -> TransitionStatistics:
    """Statistics of the kind asked for; those without hinges are of one kind.

    Args:
        dynamics: Latent dynamics with a ReLU form.
        posterior: Posterior of the batch.
        batch: The trials (for the inputs).
        slope: Slopes of the hinges at the mode ``[B, T-1, P]``.
        exact: Moments of the hinges under the Gaussian instead of those of the region of the mode.
    """
    if exact or not slope.shape[2]:
        return exact_statistics(dynamics, posterior, batch)
    return regional_statistics(dynamics, posterior, batch, slope)


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
    length = posterior.length.numpy()
    sums = regional_sums(
        covariance, cross, slope, length, inner=None if form.identity_gates else form.inner
    )
    inside = np.arange(slope.shape[1]) < (length - 1)[:, None]
    z, d, after = (_rows(x, inside) for x in (mean[:, :-1], slope, mean[:, 1:]))
    columns = [z, d * form.gates(z) if d.shape[1] else d, np.ones((len(z), 1))]
    inputs = _inputs(dynamics, batch)
    if inputs is not None:
        columns.append(_rows(inputs[:, 1:], inside))
    y = np.concatenate(columns, axis=1)
    m, g = z.shape[1], d.shape[1]
    regressors, targets = y.T @ y, after.T @ y
    regressors[:m, :m] += sums.here
    regressors[:m, m : m + g] += sums.mixed
    regressors[m : m + g, :m] += sums.mixed.T
    regressors[m : m + g, m : m + g] += sums.gates
    targets[:, :m] += sums.cross.T
    targets[:, m : m + g] += sums.ahead.T
    return TransitionStatistics(regressors, targets, after.T @ after + sums.after, len(z))


def _rows(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values ``[B, T-1, K]`` of the transitions that exist, one row each."""
    return values.reshape(inside.size, values.shape[-1]) if inside.all() else values[inside]


def _inputs(dynamics: PiecewiseLinear, batch: Batch) -> np.ndarray | None:
    return batch.inputs.numpy() if batch.inputs is not None and dynamics.n_inputs else None
