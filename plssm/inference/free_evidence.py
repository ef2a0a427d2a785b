"""Evidence about single states as free numbers, where no network learns to give it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch
from plssm.inference.encoders import Potentials
from plssm.model import StateSpaceModel

__all__ = ["FreeEvidence"]

SMALL = 1e-2


@final
class FreeEvidence(Configurable, nn.Module):
    r"""Evidence of every step of every trial as free variational parameters.

    .. math:: \exp(r_t^\top z_t - \tfrac12 z_t^\top F_t^\top F_t z_t)

    For small data: nothing is amortised, so new trials are fitted anew.

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

    @torch.no_grad()
    def start(self, model: StateSpaceModel, batch: Batch, path: Tensor) -> None:
        r"""Starts at the observation models' expansions :math:`r = g + R \bar z`, F'F = R.

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
        values, vectors = torch.linalg.eigh(curvature)
        root = values.clamp_min(0).sqrt()
        root = torch.where(root > SMALL * root.amax().clamp_min(1e-12), root, SMALL)
        self.factor.copy_((vectors * root[..., None, :]).mT)
        self.shift.copy_(shift)

    def potentials(self, row: Tensor | None) -> Potentials:
        """Returns the evidence of some trials.

        Args:
            row: Their numbers [B]; None is all of them.
        """
        shift, factor = self.shift, self.factor
        if row is not None:
            shift, factor = shift[row], factor[row]
        return Potentials(shift, factor.mT @ factor)
