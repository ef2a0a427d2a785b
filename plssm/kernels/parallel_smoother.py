r"""Kalman filter and smoother by associative scans over time: log2 T levels instead of T steps.

.. math::
    z_t = F_t z_{t-1} + c_t + \mathcal N(0, \Sigma), \qquad
    \log p(y_t | z_t) = q_t^\top z_t - \tfrac12 z_t^\top R_t z_t + \text{const}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from plssm.kernels.innovation_filter import FilterPass

__all__ = ["SmootherPass", "associative_scan", "parallel_filter", "parallel_smoother"]


class SmootherPass(NamedTuple):
    """Smoothed moments; zeros beyond a trial's end.

    Attributes:
        mean: [B, T, M].
        covariance: [B, T, M, M].
        cross: Cov(z_t, z_t+1) [B, T-1, M, M].
    """

    mean: Tensor
    covariance: Tensor
    cross: Tensor


Parts = tuple[Tensor, ...]


def associative_scan(combine: Callable[[Parts, Parts], Parts], parts: Parts) -> Parts:
    """All prefixes x_1, x_1 o x_2, ... along the second axis, by combining neighbours.

    Args:
        combine: The associative operation o, on any number of elements at once.
        parts: Tensors [B, T, ...] that make up the elements.

    Returns:
        The prefixes, in tensors of the same shapes.

    References:
        Blelloch 1989, doi:10.1109/12.42122.
    """
    steps = parts[0].shape[1]
    if steps < 2:
        return parts
    even, odd = tuple(x[:, ::2] for x in parts), tuple(x[:, 1::2] for x in parts)
    pairs = odd[0].shape[1]
    ends = associative_scan(combine, combine(tuple(x[:, :pairs] for x in even), odd))
    later = tuple(x[:, 1:] for x in even)
    if later[0].shape[1]:
        before = tuple(x[:, : later[0].shape[1]] for x in ends)
        later = combine(before, later)
    starts = tuple(torch.cat([x[:, :1], y], 1) for x, y in zip(even, later, strict=True))
    return tuple(_interleaved(x, y) for x, y in zip(starts, ends, strict=True))


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """x_1, y_1, x_2, y_2, ..., where there may be one x more."""
    pairs = odd.shape[1]
    both = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return torch.cat([both, even[:, pairs:]], 1)


def _filter_combine(one: Parts, two: Parts) -> Parts:
    """Two spans of time as one: p(z_k | z_i, y) is N(A z_i + b, C), p(y | z_i) is eta, J."""
    a1, b1, c1, eta1, j1 = one
    a2, b2, c2, eta2, j2 = two
    eye = torch.eye(a1.shape[-1], dtype=a1.dtype, device=a1.device)
    inverse = torch.linalg.inv(eye + c1 @ j2)
    ahead = a2 @ inverse
    back = a1.mT @ inverse.mT
    b = _apply(ahead, b1 + _apply(c1, eta2)) + b2
    eta = _apply(back, eta2 - _apply(j2, b1)) + eta1
    return ahead @ a1, b, _even(ahead @ c1 @ a2.mT + c2), eta, _even(back @ j2 @ a1 + j1)


def _smooth_combine(one: Parts, two: Parts) -> Parts:
    """Two spans of time, the later one first: z_i given z_k is N(E z_k + g, L)."""
    e2, g2, l2 = one
    e1, g1, l1 = two
    return e1 @ e2, _apply(e1, g2) + g1, _even(e1 @ l2 @ e1.mT + l1)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _even(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def parallel_filter(
    transition: Tensor,
    offset: Tensor,
    noise: Tensor,
    first_mean: Tensor,
    first_covariance: Tensor,
    score: Tensor,
    information: Tensor,
    *,
    length: Tensor | None = None,
) -> FilterPass:
    r"""Kalman filter of affine maps by an associative scan; differentiable, on any device.

    Elements are p(z_t | z_t-1, y_t) and p(y_t | z_t-1):

    .. math::
        A = (I + \Sigma R)^{-1} F, \quad b = (I + \Sigma R)^{-1} (c + \Sigma q), \quad
        C = (I + \Sigma R)^{-1} \Sigma, \quad
        \eta = F^\top (I + R \Sigma)^{-1} (q - R c), \quad J = F^\top (I + R \Sigma)^{-1} R F

    Args:
        transition: F [B, T-1, M, M], of the step from t to t + 1.
        offset: c [B, T-1, M].
        noise: Sigma [M, M], may be singular.
        first_mean: [B, M], of the first state before its data.
        first_covariance: [B, M, M].
        score: q [B, T, M]; zero where nothing is observed.
        information: R [B or 1, T or 1, M, M]; zero where nothing is observed.
        length: Steps of each trial [B]; all T when None.

    Returns:
        Moments and log increments (see `filter_plain`), zeros beyond a trial's end.

    References:
        Saerkkae and Garcia-Fernandez 2021, doi:10.1109/TAC.2020.2976316.
    """
    batch, steps, dim = score.shape
    information = information.expand(batch, steps, dim, dim)
    inside = _inside(score, length)
    eye = torch.eye(dim, dtype=score.dtype, device=score.device)
    f = torch.cat([torch.zeros_like(first_covariance)[:, None], transition], 1)
    c = torch.cat([first_mean[:, None], offset], 1)
    spread = torch.cat([first_covariance[:, None], noise.expand(batch, steps - 1, dim, dim)], 1)
    inverse = torch.linalg.inv(eye + spread @ information)
    back = f.mT @ inverse.mT
    parts = (
        inverse @ f, _apply(inverse, c + _apply(spread, score)), _even(inverse @ spread),
        _apply(back, score - _apply(information, c)), _even(back @ information @ f),
    )  # fmt: skip
    _, mean, covariance, _, _ = associative_scan(_filter_combine, parts)
    before = torch.cat([first_mean[:, None], _apply(transition, mean[:, :-1]) + offset], 1)
    ahead = _even(transition @ covariance[:, :-1] @ transition.mT) + noise
    before_cov = torch.cat([first_covariance[:, None], ahead], 1)
    pulled = _apply(information, before)
    g = score - pulled
    gained = ((score - 0.5 * pulled) * before).sum(-1) + 0.5 * (g * _apply(covariance, g)).sum(-1)
    gained = gained - 0.5 * torch.linalg.slogdet(eye + before_cov @ information)[1]
    found = gained, before, before_cov, mean, covariance
    return FilterPass(*(_blank(x, inside) for x in found))


def parallel_smoother(
    transition: Tensor, run: FilterPass, *, length: Tensor | None = None
) -> SmootherPass:
    r"""Rauch-Tung-Striebel smoother by an associative scan backwards in time.

    .. math:: E_t = P_t F_t^\top (P^-_{t+1})^{-1}, \quad g_t = m_t - E_t m^-_{t+1}, \quad
        L_t = P_t - E_t P^-_{t+1} E_t^\top

    Args:
        transition: F [B, T-1, M, M].
        run: The filter's run; predictions must not be singular.
        length: Steps of each trial [B]; all T when None.

    Returns:
        Smoothed moments, zeros beyond a trial's end.

    References:
        Saerkkae and Garcia-Fernandez 2021, doi:10.1109/TAC.2020.2976316.
    """
    mean, covariance = run.filtered_mean, run.filtered_covariance
    later = _inside(mean, length)[:, 1:]
    eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    ahead = torch.where(later[..., None, None], run.predicted_covariance[:, 1:], eye)
    crossed = transition @ covariance[:, :-1]
    gain = torch.linalg.solve(ahead, crossed).mT
    gain = torch.where(later[..., None, None], gain, 0.0)
    gain = torch.cat([gain, torch.zeros_like(covariance[:, -1:])], 1)
    shift = mean - _apply(gain, _next(run.predicted_mean))
    rest = _even(covariance - gain @ _next(run.predicted_covariance) @ gain.mT)
    parts = tuple(x.flip(1) for x in (gain, shift, rest))
    _, smoothed, spread = (x.flip(1) for x in associative_scan(_smooth_combine, parts))
    inside = _inside(mean, length)
    return SmootherPass(
        _blank(smoothed, inside), _blank(spread, inside),
        _blank(gain[:, :-1] @ spread[:, 1:], later),
    )  # fmt: skip


def _next(x: Tensor) -> Tensor:
    """What follows each step; the last one is repeated, where nothing is taken from it."""
    return torch.cat([x[:, 1:], x[:, -1:]], 1)


def _inside(values: Tensor, length: Tensor | None) -> Tensor:
    """Which steps belong to a trial, bool [B, T]."""
    batch, steps = values.shape[:2]
    if length is None:
        return torch.ones(batch, steps, dtype=torch.bool, device=values.device)
    return torch.arange(steps, device=values.device) < length.to(values.device)[:, None]


def _blank(values: Tensor, inside: Tensor) -> Tensor:
    """Zeros beyond a trial's end."""
    return torch.where(inside.view(*inside.shape, *[1] * (values.ndim - 2)), values, 0.0)
