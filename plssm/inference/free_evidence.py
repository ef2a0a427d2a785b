"""Evidence about single states as free numbers, where no network learns to give it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch
from plssm.inference.chains import LinearChain, couple, linearised
from plssm.inference.encoders import Potentials
from plssm.inference.path_distribution import GaussianPath
from plssm.model import StateSpaceModel

__all__ = ["FreeEvidence"]

SMALL = 1e-2  # least factor, in units of the precision of a state, that a gradient reaches


@final
class FreeEvidence(Configurable, nn.Module):
    r"""Evidence of every step of every trial as free variational parameters.

    .. math:: \exp(s_t^\top x_t - \tfrac12 x_t^\top F_t^\top F_t x_t), \qquad
        x_t = R_t (z_t - c_t)

    s and F are learned. Means c of the path and roots R of the precisions of single states, both
    those of the start, make the numbers alike: a unit of each moves the posterior about as far,
    and a precision that changes leaves the mean where it is. For small data: nothing is amortised,
    so new trials are fitted anew.

    Args:
        trials: Number of trials B.
        steps: Latent steps T of the longest.
        dim: Latent states M.
    """

    def __init__(self, trials: int, steps: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        kind = {"dtype": torch.float64}
        self.shift = nn.Parameter(torch.zeros(trials, steps, dim, **kind))
        self.factor = nn.Parameter(torch.zeros(trials, steps, dim, dim, **kind))
        self.register_buffer("centre", torch.zeros(trials, steps, dim, **kind))
        self.register_buffer("root", torch.eye(dim, **kind).repeat(trials, steps, 1, 1))

    @torch.no_grad()
    def start(self, model: StateSpaceModel, batch: Batch, path: Tensor) -> None:
        r"""Starts at the observation models' expansions :math:`r = g + R \bar z`, Lambda = R.

        Args:
            model: The model, float64.
            batch: The trials.
            path: A rough path [B, T, M].
        """
        shift, curvature = torch.zeros_like(self.shift), torch.zeros_like(self.factor)
        for name, observation in model.observations.items():
            local = observation.local(batch.modalities[name], path, positive=True)
            block = local.curvature
            if block.ndim == 5:  # banded: what one step says by itself
                block = block[:, :, 0]
            power = observation.tempering
            shift += power * (local.score + (block @ path[..., None])[..., 0])
            curvature += power * block
        mean, root = _around(model, batch, path, Potentials(shift, curvature))
        self.centre.copy_(mean)
        self.root.copy_(root)
        left = torch.linalg.inv(root.mT)
        values, vectors = torch.linalg.eigh(left @ curvature @ left.mT)
        size = values.clamp_min(0).sqrt().clamp_min(SMALL)
        self.factor.copy_((vectors * size[..., None, :]).mT)
        rest = shift - (curvature @ mean[..., None])[..., 0]
        self.shift.copy_((left @ rest[..., None])[..., 0])

    def potentials(self, row: Tensor | None) -> Potentials:
        """Returns the evidence of some trials.

        Args:
            row: Their numbers [B]; None is all of them.
        """
        known = self.shift, self.factor, self.root, self.centre
        shift, factor, root, centre = known if row is None else (x[row] for x in known)
        factor = factor @ root
        precision = factor.mT @ factor
        shift = root.mT @ shift[..., None] + precision @ centre[..., None]
        return Potentials(shift[..., 0], precision)


def _around(
    model: StateSpaceModel, batch: Batch, path: Tensor, evidence: Potentials
) -> tuple[Tensor, Tensor]:
    """Mean c [B, T, M] given all evidence, and upper R with R'R the inverse of each Cov(z_t)."""
    dynamics = model.dynamics
    jacobian, offset = linearised(dynamics, path, batch.inputs)
    first = dynamics.initial.noise.precision
    begin = dynamics.first_mean(batch.inputs).expand(len(batch), -1) @ first
    link = LinearChain(
        jacobian, offset, dynamics.noise.precision, first.expand(len(batch), -1, -1), begin
    )
    found = GaussianPath(*couple(evidence, link, batch.length))
    one = torch.eye(len(first), dtype=first.dtype)
    spread = torch.where(batch.time_mask[..., None, None], found.covariance(), one)
    return found.mean, torch.linalg.cholesky(torch.linalg.inv(spread)).mT
