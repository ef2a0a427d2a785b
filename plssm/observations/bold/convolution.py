"""Causal convolution along time, its adjoint, and its second moments, as one tensor product each.

Everything is zero before the first step. A kernel is one for all features ``[L]`` or one for each
feature ``[F, L]``; entry l is the weight of the value l steps ago.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "band_sums",
    "band_weights",
    "convolve",
    "convolved_covariance",
    "correlate",
    "lag_products",
    "windows",
]


def convolve(values: Tensor, kernel: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Causal convolution along time, of the values or of linear combinations of them.

    .. math:: x_t = \sum_{l=0}^{L-1} h_l \, W z_{t-l}

    What is not finite stays where it belongs: it reaches the L steps from its own on, no others,
    and no gradient.

    Args:
        values: z ``[..., T, F]``.
        kernel: h ``[L]``, or one for each column of the result.
        weight: W ``[K, F]``; None leaves the values as they are.

    Returns:
        ``[..., T, K]`` (K = F without weight).
    """
    bad = ~torch.isfinite(values)
    some = bool(bad.any())
    if some:
        values = torch.where(bad, 0.0, values)
    out = _by_blocks(values if weight is None else values @ weight.mT, kernel)
    if not some:
        return out
    if weight is not None:
        bad = bad.any(-1, keepdim=True)
    count = bad.to(torch.int64).cumsum(-2)
    passed = nn.functional.pad(count, (0, 0, kernel.shape[-1], 0))[..., : count.shape[-2], :]
    return torch.where(count > passed, torch.nan, out)


def correlate(values: Tensor, kernel: Tensor) -> Tensor:
    r"""Adjoint of :func:`convolve`.

    .. math:: y_t = \sum_{l=0}^{L-1} h_l \, x_{t+l}

    Args:
        values: x ``[..., T, F]``.
        kernel: h ``[L]`` or ``[F, L]``.

    Returns:
        ``[..., T, F]``.
    """
    return convolve(values.flip(-2), kernel).flip(-2)


def _by_blocks(values: Tensor, kernel: Tensor) -> Tensor:
    """Convolution by products with Toeplitz matrices that span one block and the one before."""
    steps, length = values.shape[-2], kernel.shape[-1]
    size = min(max(length - 1, 1), steps)
    count = -(-steps // size)
    # time i of a block sees column c of [block before, block]: it is i + size - c steps ago
    ago = torch.arange(size)[:, None] + size - torch.arange(2 * size)
    ago = torch.where((ago >= 0) & (ago < length), ago, length).to(kernel.device)
    toeplitz = nn.functional.pad(kernel, (0, 1))[..., ago]
    padded = nn.functional.pad(values, (0, 0, size, count * size - steps))
    blocks = padded.unflatten(-2, (count + 1, size))
    pairs = torch.cat([blocks[..., :-1, :, :], blocks[..., 1:, :, :]], dim=-2)
    if kernel.ndim == 1:
        columns = pairs.movedim(-2, 0)  # one large product instead of many small ones
        out = toeplitz @ columns.reshape(2 * size, -1)
        out = out.view(size, *columns.shape[1:]).movedim(0, -2)
    else:
        out = torch.einsum("fic,...cf->...if", toeplitz, pairs)
    return out.flatten(-3, -2)[..., :steps, :]


def windows(values: Tensor, length: int, *, ahead: bool = False) -> Tensor:
    """Each value together with those before it (or after it), zeros beyond the ends.

    Args:
        values: ``[..., T, F]``.
        length: Number L of values in a window.
        ahead: Look at the steps t, ..., t+L-1 instead of t, ..., t-L+1.

    Returns:
        ``[..., T, F, L]``, entry l of step t is the value at t - l (at t + l).
    """
    if ahead:
        return nn.functional.pad(values, (0, 0, 0, length - 1)).unfold(-2, length, 1)
    return nn.functional.pad(values, (0, 0, length - 1, 0)).unfold(-2, length, 1).flip(-1)


def lag_products(kernel: Tensor) -> Tensor:
    """Products of kernel weights that lie l apart, h_j h_{j-l}.

    Args:
        kernel: h ``[..., L]``.

    Returns:
        ``[..., L, L]``, entry (j, l), zero for l > j.
    """
    length = kernel.shape[-1]
    steps = torch.arange(length, device=kernel.device)
    ago = steps[:, None] - steps
    ago = torch.where(ago >= 0, ago, length)
    return kernel[..., :, None] * nn.functional.pad(kernel, (0, 1))[..., ago]


def band_weights(counts: Tensor, kernel: Tensor) -> Tensor:
    r"""Band of the matrix H' D H, with H the convolution and D a diagonal of counts.

    .. math:: a_{t,l} = \sum_{j=l}^{L-1} h_j \, h_{j-l} \, n_{t+j}

    Args:
        counts: n, number of samples at each step, ``[B, T, G]``.
        kernel: h ``[L]`` or ``[G, L]``.

    Returns:
        a ``[B, T, G, L]``, entry l of step t for the pair (t, t+l).
    """
    ahead = windows(counts, kernel.shape[-1], ahead=True)
    products = lag_products(kernel)
    if kernel.ndim == 1:
        return ahead @ products
    return torch.einsum("btgj,gjl->btgl", ahead, products)


def band_sums(weights: Tensor, lagged: Tensor) -> Tensor:
    r"""Sum of the covariances of a convolved path over samples, of every trial and group.

    .. math:: \sum_i n_i \, \mathrm{Cov}[(h * z)_i]
        = \sum_t a_{t,0} V_{t,t} + \sum_t \sum_{l \ge 1} a_{t,l} (V_{t,t+l} + V_{t,t+l}^\top)

    Args:
        weights: a of :func:`band_weights` ``[B, T, G, L]``.
        lagged: Cov(z_t, z_{t+l}) ``[B, T, L, M, M]``; may be NaN where no weight falls.

    Returns:
        ``[B, G, M, M]``.
    """
    used = (weights != 0).any(-2)
    if not bool(torch.isfinite(lagged).all()):
        lagged = torch.where(used[..., None, None], lagged, 0.0)
    dim = lagged.shape[-1]
    flat = weights.transpose(1, 2)
    same = (flat[..., 0] @ lagged[:, :, 0].flatten(-2)).unflatten(-1, (dim, dim))
    every = (flat.flatten(-2) @ lagged.flatten(-2).flatten(1, 2)).unflatten(-1, (dim, dim))
    return every + every.mT - same


def convolved_covariance(lagged: Tensor, kernel: Tensor) -> Tensor:
    r"""Covariance of a convolved path at every step.

    .. math:: \mathrm{Cov}[(h * z)_t] = \sum_{l,l'} h_l h_{l'} \, \mathrm{Cov}(z_{t-l}, z_{t-l'})

    Args:
        lagged: Cov(z_t, z_{t+l}) ``[B, T, L, M, M]``; NaN counts as zero.
        kernel: h ``[L]``.

    Returns:
        ``[B, T, M, M]``.
    """
    dim = lagged.shape[-1]
    total = lagged.new_zeros(*lagged.shape[:2], dim, dim)
    for lag, weight in enumerate(lag_products(kernel).unbind(-1)):
        block = lagged[:, :, lag].flatten(-2).nan_to_num(0.0)
        part = convolve(block, weight).unflatten(-1, (dim, dim))
        total += part if lag == 0 else part + part.mT
    return total
