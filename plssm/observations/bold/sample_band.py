"""How samples of a convolved path tie latent steps together: curvature and summed covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plssm.errors import ShapeError
from plssm.observations.bold.convolution import band_sums, band_weights
from plssm.observations.clock import scatter
from plssm.observations.local import khatri_rao

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["SampleBand", "lags_of"]


@dataclass(frozen=True, eq=False)
class SampleBand:
    r"""Bands of H' D H, with H the convolution and D what was observed of each channel.

    Args:
        weights: Bands of the groups ``[B, T, G, L]``; channels with the same kernel and mask are
            one group.
        group: Group of each channel ``[N]``.
    """

    weights: Tensor
    group: Tensor

    @classmethod
    def of(cls, m: Modality, kernel: Tensor, steps: int) -> SampleBand:
        """Bands of the samples of a modality.

        Args:
            m: The modality (samples ``[B, n, N]``).
            kernel: h ``[L]``, or one for each channel ``[N, L]``.
            steps: Number T of latent steps.

        Returns:
            The bands.
        """
        mask, group = m.mask, torch.arange(m.mask.shape[-1], device=m.mask.device)
        if kernel.ndim == 1 and bool((mask == mask[..., :1]).all()):
            mask, group = mask[..., :1], torch.zeros_like(group)
        elif kernel.ndim == 1:
            patterns, group = torch.unique(mask.flatten(0, 1), dim=1, return_inverse=True)
            mask = patterns.unflatten(0, mask.shape[:2])
        counts = scatter(mask.to(kernel.dtype), m.clock, steps)
        return cls(band_weights(counts, kernel), group)

    def curvature(self, weight: Tensor, noise: Tensor) -> Tensor:
        """Negative Hessian of the log-density in the path ``[B, T, L, M, M]``.

        Args:
            weight: B ``[N, M]``.
            noise: Variances ``[N]``.
        """
        block = self.weights.transpose(2, 3) @ self._information(weight, noise)
        return block.unflatten(-1, (weight.shape[1], weight.shape[1]))

    def lost(self, lagged: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
        """Twice the expected log-density that the uncertainty of the path costs ``[B]``.

        Args:
            lagged: Cov(z_t, z_{t+l}) ``[B, T, L, M, M]``.
            weight: B ``[N, M]``.
            noise: Variances ``[N]``.
        """
        spread = band_sums(self.weights, lagged).flatten(-2)
        return (spread * self._information(weight, noise)).sum((1, 2))

    def spread(self, lagged: Tensor) -> Tensor:
        """Covariance of the convolved path, summed over the observed samples of each channel.

        Args:
            lagged: Cov(z_t, z_{t+l}) ``[B, T, L, M, M]``.

        Returns:
            ``[N, M, M]``, or ``[1, M, M]`` when all channels are one group.
        """
        total = band_sums(self.weights, lagged).sum(0)
        return total if len(total) == 1 else total[self.group]

    def _information(self, weight: Tensor, noise: Tensor) -> Tensor:
        """B' G^-1 B over the channels of each group ``[G, M * M]``."""
        each = khatri_rao(weight) / noise[:, None]
        groups = self.weights.shape[2]
        return each.new_zeros(groups, each.shape[1]).index_add_(0, self.group, each)


def lags_of(covariance: Tensor | None, lags: int, *, dt: float) -> Tensor | None:
    """Covariances at the first lags of a posterior.

    Args:
        covariance: Cov(z_t, z_{t+l}) ``[B, T, w+1, M, M]``, or None.
        lags: Number L of lags that are needed.
        dt: Seconds per latent step.

    Returns:
        ``[B, T, L, M, M]``, or None.

    Raises:
        ShapeError: When there are fewer lags.
    """
    if covariance is None:
        return None
    if covariance.ndim != 5 or covariance.shape[2] < lags:
        raise ShapeError(
            f"BOLD remembers {lags - 1} latent steps of {dt:g} s: it needs the covariances of the "
            f"path up to that lag, [B, T, {lags}, M, M], got {tuple(covariance.shape)}"
        )
    return covariance[:, :, :lags]
