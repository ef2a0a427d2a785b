"""What activity a BOLD signal speaks of: Wiener deconvolution on the grid of the scans."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

from plssm.observations.bold.convolution import band_weights, correlate
from plssm.observations.gaussian_channels import Regression

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["deconvolve", "nuisance_weights", "standardised"]

NOISE_SHARE = 0.3  # share of the signal's variance that is taken as noise
FADE_SECONDS = 5.0  # after which the activity is taken to have forgotten itself


def standardised(m: Modality, known: Tensor) -> Tensor:
    """Data of every channel without what known regressors explain, with a mean square of 1.

    Args:
        m: The modality (samples ``[B, n, N]``).
        known: Regressors ``[B, n, Q]``.

    Returns:
        ``[B, n, N]``, zero where nothing was observed.
    """
    flat, mask = known.flatten(0, 1), m.mask.flatten(0, 1)
    theta, regression = _regress(m, flat)
    deviation = (regression.squares(theta) / mask.sum(0).clamp_min(1)).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    return ((regression.y - flat @ theta.mT) * mask / scale).unflatten(0, m.y.shape[:2])


def nuisance_weights(m: Modality) -> Tensor:
    """Weights of the nuisance regressors in a regression of the data on them and one.

    Args:
        m: The modality (samples ``[B, n, N]``, regressors ``[B, n, R]``).

    Returns:
        ``[N, R]``.
    """
    if m.nuisance is None:
        return m.y.new_zeros(m.y.shape[-1], 0)
    one = m.nuisance.new_ones(*m.nuisance.shape[:-1], 1)
    theta, _ = _regress(m, torch.cat([one, m.nuisance], dim=-1).double().flatten(0, 1))
    return theta[:, 1:].to(m.y.dtype)


def _regress(m: Modality, flat: Tensor) -> tuple[Tensor, Regression]:
    """Coefficients ``[N, Q]`` of known regressors ``[B n, Q]``, and the regression."""
    y, mask = (part.flatten(0, 1).to(flat.dtype) for part in (m.y, m.mask))
    regression = Regression(y, mask, flat, flat.new_zeros(1, 0, 0))
    every = torch.ones(flat.shape[1], dtype=torch.bool)
    return regression.solve(flat.new_zeros(y.shape[1], flat.shape[1]), every), regression


def deconvolve(m: Modality, residual: Tensor, kernel: Tensor, *, tr_seconds: float) -> Tensor:
    r"""Wiener deconvolution: most probable activity at the scans under a stationary prior.

    .. math:: u_q = \rho u_{q-1} + \sqrt{1 - \rho^2} \, \epsilon_q, \qquad
        y_i = (h * u)_{q(i)} + \text{noise}, \qquad \rho = e^{-\mathrm{TR} / \tau}

    The grid of scans begins one kernel before the first scan, so that activity before the run
    may explain its beginning. Every trial has its own grid; channels that are seen at the same
    samples are solved together, those of other slices on grids of their own.

    Args:
        m: The modality (samples ``[B, n, N]``).
        residual: Standardised data ``[B, n, N]``.
        kernel: Response sampled once per scan, ``[L]`` or ``[N, L]``.
        tr_seconds: Seconds between scans.

    Returns:
        u ``[B, n, N]``, zero where nothing was observed.
    """
    rho = math.exp(-tr_seconds / FADE_SECONDS)
    out, mask = torch.zeros_like(residual), m.mask.numpy()
    shared = kernel.ndim == 1
    for b in range(len(mask)):
        for channels in _alike(mask[b]) if shared else np.arange(mask.shape[2])[:, None]:
            rows = np.flatnonzero(mask[b, :, channels[0]])
            if rows.size:
                step = rows if m.clock is None else m.clock[b].numpy()[rows]
                scan = np.rint((step - step[0]) * m.dt / tr_seconds).astype(np.int64)
                h = kernel if shared else kernel[channels[0]]
                place = np.ix_(rows, channels)
                values = residual[b].numpy()[place]
                out[b].numpy()[place] = _most_probable(torch.from_numpy(values), scan, h, rho)
    return out


def _alike(mask: np.ndarray) -> list[np.ndarray]:
    """Channels of a trial with the same mask, from ``[n, N]``."""
    _, group = np.unique(mask, axis=1, return_inverse=True)
    group = group.ravel()
    return [np.flatnonzero(group == g) for g in range(group.max() + 1)]


def _most_probable(values: Tensor, scan: np.ndarray, kernel: Tensor, rho: float) -> np.ndarray:
    """Activity at the scans of values ``[n, K]``, from a banded system over all scans."""
    lags = torch.arange(len(kernel), dtype=torch.float64)
    variance = float(kernel @ rho ** (lags - lags[:, None]).abs() @ kernel)
    noise = NOISE_SHARE / (1 - NOISE_SHARE) * variance
    before = len(kernel) - 1
    size = before + int(scan.max()) + 1
    place = torch.from_numpy(before + scan)
    counts = kernel.new_zeros(size, 1).index_add_(0, place, kernel.new_ones(len(place), 1))
    total = kernel.new_zeros(size, values.shape[1]).index_add_(0, place, values)
    band = band_weights(counts[None], kernel)[0, :, 0].numpy().T.copy()
    prior = noise / (1 - rho**2)
    band[0] += prior * (1 + rho**2)
    band[0, [0, -1]] -= prior * rho**2
    band[1, :-1] -= prior * rho
    right = correlate(total, kernel).numpy()
    return solveh_banded(band, right, lower=True, check_finite=False)[before + scan]
