"""Linear chains that couple the steps of a recognition model's path."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plssm.dynamics.base import LatentDynamics
from plssm.inference.encoders import Potentials
from plssm.inference.path_distribution import GaussianPath
from plssm.kernels.chain import solve_chain

__all__ = ["LinearChain", "PathTerms", "chain_mean", "couple", "linearised", "times", "uncoupled"]


class LinearChain(NamedTuple):
    r"""A chain of linear-Gaussian steps, :math:`z_{t+1} = J_t z_t + u_t + \epsilon_t`.

    Attributes:
        jacobian: J, broadcasts to [B, T-1, M, M].
        offset: u [B, T-1, M].
        precision: Inverse covariance of the noise [M, M].
        first_precision: Precision of the first state [B, M, M].
        first_shift: That times its mean [B, M].
    """

    jacobian: Tensor
    offset: Tensor
    precision: Tensor
    first_precision: Tensor
    first_shift: Tensor


class PathTerms(NamedTuple):
    r"""A Gaussian path :math:`N(U^{-1} r, U^{-1})` by its blocks.

    Attributes:
        shift: r [B, T, M].
        diag: U_tt [B, T, M, M].
        off: U_{t,t+1} [B, T-1, M, M], or [1, 1, M, M]; None where steps are independent.
        length: Steps of each trial [B].
    """

    shift: Tensor
    diag: Tensor
    off: Tensor | None
    length: Tensor


def couple(evidence: Potentials, chain: LinearChain, length: Tensor) -> PathTerms:
    r"""Returns the product of evidence about single states and a chain.

    .. math:: U_{tt} = \Lambda_t + Q^{-1} + J_t^\top Q^{-1} J_t, \qquad
        U_{t,t+1} = -J_t^\top Q^{-1}

    Args:
        evidence: Potentials of the steps.
        chain: The chain.
        length: Steps of each trial [B].
    """
    trials, steps, dim = evidence.shift.shape
    leaves = torch.arange(steps - 1) < length[:, None] - 1
    pull = (chain.precision @ chain.jacobian).mT  # J' Q^-1
    around = (pull @ chain.jacobian) * leaves[..., None, None]
    driven = (pull @ chain.offset[..., None])[..., 0] * leaves[..., None]
    zero = evidence.shift.new_zeros(trials, 1, dim)
    first, start = chain.first_precision[:, None], chain.first_shift[:, None]
    arrived = torch.cat([first, chain.precision.expand(trials, steps - 1, dim, dim)], dim=1)
    blank = first.new_zeros(trials, 1, dim, dim)
    diag = evidence.precision + arrived + torch.cat([around, blank], dim=1)
    shift = evidence.shift + torch.cat([start, chain.offset @ chain.precision], dim=1)
    shift = shift - torch.cat([driven, zero], dim=1)
    off = -pull if pull.ndim == 4 else -pull.expand(1, 1, dim, dim)
    return PathTerms(shift, diag, off, length)


def uncoupled(terms: PathTerms) -> PathTerms:
    r"""Returns the path with independent steps that is closest to a Gaussian path p.

    .. math:: \arg\min_q KL(q \,\|\, p) = \prod_t N(z_t; \mu_t, U_{tt}^{-1}), \qquad
        \mu = U^{-1} r

    Args:
        terms: The path p.
    """
    mean = GaussianPath(*terms).mean
    return PathTerms((terms.diag @ mean[..., None])[..., 0], terms.diag, None, terms.length)


def times(terms: PathTerms, z: Tensor) -> Tensor:
    """The precision times a path, U z [B, T, M]; what the shift is if z is the mean."""
    out = (terms.diag @ z[..., None])[..., 0]
    if terms.off is None or z.shape[1] == 1:
        return out
    inside = torch.arange(1, z.shape[1]) < terms.length[:, None]
    off = terms.off * inside[..., None, None]
    ahead = (off @ z[:, 1:, :, None])[..., 0]
    back = (off.mT @ z[:, :-1, :, None])[..., 0]
    none = torch.zeros_like(out[:, :1])
    return out + torch.cat([ahead, none], dim=1) + torch.cat([none, back], dim=1)


@torch.no_grad()
def chain_mean(evidence: Potentials, chain: LinearChain, length: Tensor) -> Tensor:
    """Mean of the path [B, T, M] that evidence and chain give, without gradients."""
    trials, steps, dim = evidence.shift.shape
    information, score = evidence.precision.double().clone(), evidence.shift.double().clone()
    information[:, 0] += chain.first_precision
    score[:, 0] += chain.first_shift
    nothing = np.zeros((dim, dim))
    jacobian = chain.jacobian.double()
    jacobian = jacobian.expand(1, 1, dim, dim) if jacobian.ndim == 2 else jacobian
    mean, _ = solve_chain(
        jacobian.numpy(), chain.offset.double().numpy(), chain.precision.double().numpy(),
        np.zeros((trials, dim)), nothing, information.numpy(), score.numpy(), length.numpy(),
    )  # fmt: skip
    return torch.from_numpy(mean).to(evidence.shift.dtype)


def linearised(
    dynamics: LatentDynamics, path: Tensor, inputs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Jacobians [B, T-1, M, M] and offsets [B, T-1, M] of the map along a path [B, T, M]."""
    before = path[:, :-1]
    arrived = None if inputs is None or not dynamics.n_inputs else inputs[:, 1:].to(path)
    jacobian = dynamics.jacobian(before, arrived)
    after = dynamics.step(before, arrived)
    return jacobian, after - (jacobian @ before[..., None])[..., 0]
