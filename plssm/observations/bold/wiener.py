"""Activity behind a BOLD signal by Wiener deconvolution in the frequency domain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["noise_level", "sources", "wiener"]

ORDER = 3  # of the differences that show the noise: smooth signals vanish in them
GAUSSIAN = 0.6745  # median absolute deviation of a standard normal variable
CUT_LEFT, CUT_RIGHT = 0.25, 0.5  # shares of the response that are unreliable at the edges
SMALLEST = 1e-5  # noise level, as a share of the signal's standard deviation


def noise_level(y: np.ndarray) -> float:
    r"""Standard deviation of white noise on a smooth series, from its third differences.

    .. math:: \hat\sigma = \mathrm{median}_t |\Delta^3 y_t| / (0.6745 \sqrt{20})

    The differences are the finest wavelet coefficients of a wavelet with three vanishing moments,
    at every place. First differences (Haar) overrate the noise of densely sampled series.

    Args:
        y: Series ``[T]``; NaN where missing.

    Returns:
        The level; 0 where no four samples in a row are seen.
    """
    d = np.diff(y, ORDER)
    d = d[~np.isnan(d)]
    if not d.size:
        return 0.0
    return float(np.median(np.abs(d))) / GAUSSIAN / math.sqrt(math.comb(2 * ORDER, ORDER))


def wiener(y: np.ndarray, kernel: np.ndarray, *, noise: float) -> np.ndarray:
    r"""Wiener filter with the spectrum of the series in place of that of its source.

    .. math:: \hat U(f) = \frac{\bar H(f) S(f)}{|H(f)|^2 S(f) + T \sigma^2} Y(f), \qquad
        S(f) = |Y(f)|^2

    Args:
        y: Series ``[T]`` with mean 0, taken as periodic.
        kernel: Response h ``[L]``.
        noise: Standard deviation of the noise.

    Returns:
        The source ``[T]``.

    References:
        Wiener 1949, Extrapolation, interpolation and smoothing of stationary time series;
        Volkmann et al. 2024, arXiv:2411.02949.
    """
    size = max(len(y), len(kernel))
    Y, H = np.fft.rfft(y, size), np.fft.rfft(kernel, size)
    S = np.abs(Y) ** 2
    scale = np.abs(H) ** 2 * S + size * noise**2
    U = np.conj(H) * S * Y / np.where(scale > 0, scale, 1.0)
    return np.fft.irfft(U, size)[: len(y)]


def sources(
    m: Modality, kernel: Tensor, *, tr_seconds: float, steps: int
) -> tuple[Tensor, Tensor]:
    r"""Activity on the latent clock, and where it is reliable, channel by channel.

    .. math:: y_i = (h * u)_{q(i)} + c + \varepsilon_i

    The filter works on the grid of the scans, where missing ones are interpolated; between scans
    that follow each other u is interpolated to the latent steps. What is near a missing scan or
    an edge (a quarter of the response at the left, half of it at the right) is not reliable.

    Args:
        m: The modality (samples ``[B, n, N]``).
        kernel: Response sampled once per scan, with sum 1, ``[L]`` or ``[N, L]``.
        tr_seconds: Seconds between scans.
        steps: Latent steps T.

    Returns:
        u ``[B, T, N]`` with the mean of the signal, 0 where it is not reliable, and where it is,
        bool.
    """
    y, mask = m.y.double().numpy(), m.mask.numpy()
    trials, samples, channels = y.shape
    clock = None if m.clock is None else m.clock.numpy()
    kernels = kernel.detach().double().expand(channels, -1).numpy()
    out, known = np.zeros((trials, steps, channels)), np.zeros((trials, steps, channels), bool)
    mean = (y * mask).sum((0, 1)) / np.maximum(mask.sum((0, 1)), 1)
    for b, n in np.ndindex(trials, channels):
        rows = np.flatnonzero(mask[b, :, n])
        if len(rows) < 2:
            continue
        if clock is not None:
            rows = rows[np.argsort(clock[b][rows], kind="stable")]
        step = rows if clock is None else clock[b][rows]
        place = np.rint((step - step[0]) * m.dt / tr_seconds).astype(np.int64)
        found = _source(y[b, rows, n] - mean[n], place, kernels[n])
        grid = np.arange(step[0], step[-1] + 1)
        at = np.interp(grid, step, place)
        out[b, grid, n] = np.interp(at, np.arange(len(found)), found) + mean[n]
        known[b, grid, n] = ~np.isnan(out[b, grid, n])
    out = torch.from_numpy(np.where(known, out, 0.0))
    return out.to(m.y.dtype), torch.from_numpy(known)


def _source(values: np.ndarray, place: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Activity at all scans, NaN where it is not reliable."""
    size = int(place[-1]) + 1
    total, count = (np.bincount(place, w, minlength=size) for w in (values, np.ones(len(values))))
    seen = count > 0
    series = np.where(seen, total / np.maximum(count, 1), np.nan)
    noise = max(noise_level(series), SMALLEST * float(np.nanstd(series)))
    scans = np.arange(size)
    whole = np.interp(scans, scans[seen], series[seen])
    found = wiener(whole, kernel, noise=noise)
    left, right = int(CUT_LEFT * len(kernel)), int(CUT_RIGHT * len(kernel))
    good = seen & (scans >= left) & (scans < size - right)
    return np.where(good, found, np.nan)
