"""Expected log-likelihood of BOLD as a function of the haemodynamic response alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plssm.observations.bold.convolution import windows
from plssm.observations.clock import scatter
from plssm.observations.local import khatri_rao

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["ResponseStatistics"]


@dataclass(frozen=True, eq=False)
class ResponseStatistics:
    r"""What the data say about the kernel when everything else is known.

    .. math:: E[\log p] = \text{const} + \sum_n \left( c_n^\top h_n
        - \tfrac12 h_n^\top S_n h_n \right), \qquad
        c_{n,l} = \sum_i \frac{r_{in}}{\gamma_n} B_n E[z_{k(i)-l}], \qquad
        S_{n,ll'} = \sum_i \frac{1}{\gamma_n} B_n E[z_{k(i)-l} z_{k(i)-l'}^\top] B_n^\top

    with r the data without intercept and nuisance.

    Args:
        linear: c ``[K, L]``, K = N or, summed over the channels of a shared kernel, 1.
        gram: S ``[K, L, L]``.
    """

    linear: Tensor
    gram: Tensor

    @classmethod
    def of(
        cls,
        m: Modality,
        residual: Tensor,
        mean: Tensor,
        lagged: Tensor | None,
        weight: Tensor,
        noise: Tensor,
        *,
        lags: int,
        shared: bool,
    ) -> ResponseStatistics:
        """Statistics under a Gaussian path.

        Args:
            m: The modality (samples ``[B, n, N]``).
            residual: Data without intercept and nuisance ``[B, n, N]``.
            mean: Latent mean ``[B, T, M]``; may be NaN beyond a trial's end.
            lagged: Cov(z_t, z_{t+l}) ``[B, T, L, M, M]``, likewise; None for a known path.
            weight: B ``[N, M]``.
            noise: Variances ``[N]``.
            lags: Length L of the kernel.
            shared: Whether all channels have the same kernel.

        Returns:
            The statistics.
        """
        steps = mean.shape[1]
        counts = scatter(m.mask.to(mean.dtype) / noise, m.clock, steps)
        total = scatter(torch.where(m.mask, residual, 0.0) / noise, m.clock, steps)
        past = windows(mean.nan_to_num(0.0) @ weight.mT, lags).flatten(0, 1).transpose(0, 1)
        linear = torch.einsum("npl,pn->nl", past, total.flatten(0, 1))
        gram = past.mT @ (past * counts.flatten(0, 1).mT[..., None])
        if lagged is not None:
            gram = gram + _spread(counts, lagged, weight, lags)
        if shared:
            linear, gram = linear.sum(0, keepdim=True), gram.sum(0, keepdim=True)
        return cls(linear.to(torch.float64), gram.to(torch.float64))

    def value(self, kernel: Tensor) -> Tensor:
        """Expected log-density up to a constant for a kernel ``[L]`` or ``[N, L]``, ``[K]``."""
        h = kernel.reshape(-1, kernel.shape[-1])
        curved = (self.gram @ h[..., None]).squeeze(-1)
        return ((self.linear - 0.5 * curved) * h).sum(-1)


def _spread(counts: Tensor, lagged: Tensor, weight: Tensor, lags: int) -> Tensor:
    """Part of S that comes from the covariance of the path ``[N, L, L]``."""
    variance = lagged.nan_to_num(0.0).flatten(-2) @ khatri_rao(weight).mT  # [B, T, L, N]
    ahead = windows(counts, lags, ahead=True)  # [B, T, N, L]
    by_gap = torch.einsum("btnj,btdn->njd", ahead, variance)
    step = torch.arange(lags)
    gap = step - step[:, None]  # entry (l, j): both lags and how far they lie apart
    upper = torch.where(gap >= 0, by_gap[:, step, gap.clamp_min(0)], 0.0)
    return upper + upper.mT - torch.diag_embed(torch.diagonal(upper, dim1=-2, dim2=-1))
