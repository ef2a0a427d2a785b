"""Plain statistics of counts: totals, smoothing for a start, moments of log-normal rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["lognormal_moments", "smoothed_counts", "totals"]

EVENTS_PER_WINDOW = 2.0  # counts that the smoothing window of a start signal should hold
WIDEST_WINDOW = 10.0  # its largest standard deviation, in bins
WINDOW = 2 * math.sqrt(math.pi)  # bins over which a Gaussian averages, per standard deviation
NARROWEST_WINDOW = 0.4  # below this standard deviation nothing is smoothed


def totals(m: Modality) -> tuple[Tensor, Tensor]:
    """Sum of the observed counts ``[N]`` and number of observed samples ``[N]``."""
    return torch.where(m.mask, m.y, 0.0).sum((0, 1)), m.mask.sum((0, 1))


def smoothed_counts(m: Modality) -> Tensor:
    r"""Counts smoothed in time, with half an event added to every window.

    .. math:: \textstyle\sum_s g_{t-s} y_s / \sum_s g_{t-s} + \tfrac12 / (2 \sqrt\pi \, \sigma)

    over the observed samples s of a trial. The Gaussian g has the standard deviation σ with which
    its window of :math:`2 \sqrt\pi \, \sigma` bins holds about two events of the channel, at most
    10 bins; large counts are not smoothed (a window of one bin).

    Args:
        m: Counts ``[B, n, N]``.

    Returns:
        Positive expected counts ``[B, n, N]``; from the channel's mean where nothing was observed
        within reach.
    """
    total, count = totals(m)
    mean = (total / count.clamp_min(1)).numpy()
    mask = m.mask.numpy().astype(np.float64)
    y = np.where(m.mask.numpy(), m.y.numpy(), 0.0).astype(np.float64)
    out = np.empty_like(y)
    for n, c in enumerate(mean):
        width = min(EVENTS_PER_WINDOW / (WINDOW * max(c, 1e-9)), WIDEST_WINDOW)
        weight, value = mask[..., n], y[..., n]
        if width > NARROWEST_WINDOW:
            weight, value = (
                gaussian_filter1d(v, width, axis=1, mode="constant") for v in (weight, value)
            )
        smooth = np.where(weight > 1e-3, value / np.maximum(weight, 1e-3), c)
        out[..., n] = np.maximum(smooth, 0.0) + 0.5 / max(WINDOW * width, 1.0)
    return torch.from_numpy(out).to(m.y)


def lognormal_moments(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of exponentials of Gaussian variables.

    .. math:: E\lambda_i = e^{m_i + V_{ii} / 2}, \qquad
        \mathrm{Cov}(\lambda_i, \lambda_j) = E\lambda_i \, E\lambda_j \, (e^{V_{ij}} - 1)

    Exponents are cut off where the result would overflow.

    Args:
        mean: ``[..., N]``.
        covariance: ``[..., N, N]``.

    Returns:
        ``[..., N]`` and ``[..., N, N]``.
    """
    bound = math.log(torch.finfo(mean.dtype).max) / 4
    half = 0.5 * torch.diagonal(covariance, dim1=-2, dim2=-1)
    first = (mean + half).clamp_max(bound).exp()
    growth = covariance.clamp_max(bound).expm1()
    return first, first[..., :, None] * first[..., None, :] * growth
