"""Gaussian expectations of what a distribution says about its observations."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "NODES",
    "ExpectedDerivatives",
    "channelwise_moments",
    "coupled_moments",
    "expected_derivatives",
    "gauss_hermite",
    "matched_points",
    "normal_sobol",
    "square_root",
]

NODES = 10  # of the expectations that an M-step maximises
_AT_ONCE = 12_000  # predictors that are worked on at the same time: they stay in the cache


@lru_cache(maxsize=32)
def gauss_hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``[n]`` and weights ``[n]`` of the Gauss-Hermite rule for a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()


@lru_cache(maxsize=32)
def normal_sobol(points: int, dim: int, seed: int = 0) -> Tensor:
    """Scrambled Sobol points ``[points, dim]`` carried to a standard normal."""
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    uniform = engine.draw(points, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return torch.special.ndtri(uniform)


@lru_cache(maxsize=32)
def matched_points(points: int, dim: int, seed: int = 0) -> Tensor:
    """Quasi-random points ``[points, dim]`` with mean zero and covariance one, exactly.

    They come in pairs x and -x, so that all odd moments vanish too.

    Args:
        points: Number of points; more are taken where dim needs them (2 dim).
        dim: Number of dimensions.
        seed: Seed of the scrambling.
    """
    pairs = max(-(-points // 2), dim)
    half = normal_sobol(pairs, dim, seed)
    lower = torch.linalg.cholesky(half.mT @ half / pairs)
    half = torch.linalg.solve_triangular(lower, half.mT, upper=False).mT
    return torch.cat([half, -half])


def square_root(covariance: Tensor) -> Tensor:
    """A matrix R with R R' = covariance, for any positive semi-definite ``[..., K, K]``."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    failed = failed > 0
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(covariance[failed])
        root = root.clone()
        root[failed] = vectors * values.clamp_min(0.0).sqrt()[..., None, :]
    return root


class ExpectedDerivatives(NamedTuple):
    r"""Expected log-density under a Gaussian predictor, and its partial derivatives.

    .. math:: F(\mu, v) = E[\log p(y \mid \eta)], \qquad \eta \sim N(\mu, v)

    All of one shape.

    Attributes:
        value: F.
        mean: Derivative in the mean.
        variance: Derivative in the variance.
        mean_mean: Second derivative in the mean.
        mean_variance: Mixed second derivative.
        variance_variance: Second derivative in the variance.
    """

    value: Tensor
    mean: Tensor
    variance: Tensor
    mean_mean: Tensor
    mean_variance: Tensor
    variance_variance: Tensor


def expected_derivatives(
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    mean: Tensor,
    variance: Tensor,
    *,
    nodes: int = NODES,
) -> ExpectedDerivatives:
    r"""Expectation of a log-density by Gauss-Hermite quadrature, with the sum's own derivatives.

    .. math:: F = \sum_k w_k \, \ell(\mu + x_k \sqrt v), \qquad
        F_v = \frac{1}{2 \sqrt v} \sum_k w_k x_k \, \ell'(\mu + x_k \sqrt v)

    and so on. Where the variance is too small for these quotients, :math:`F_v = F_{\mu\mu} / 2`,
    which holds for the integral and there to rounding for the sum.

    Args:
        derivatives: Map from predictors ``[c, ...]`` to the log-density, its derivative and the
            negative second derivative.
        mean: ``[...]``.
        variance: ``[...]``, not negative.
        nodes: Number of Gauss-Hermite nodes.

    Returns:
        Expectation and derivatives, each ``[...]``.
    """
    x, w = (torch.from_numpy(a).to(mean) for a in gauss_hermite(nodes))
    deviation = variance.sqrt()
    sums = [mean.new_zeros(k, mean.numel()) for k in (1, 2, 3)]
    step = max(1, min(nodes, _AT_ONCE // max(mean.numel(), 1)))
    for part in torch.arange(nodes, device=mean.device).split(step):
        eta = mean + x[part].view(-1, *(1,) * mean.ndim) * deviation
        powers = torch.stack([w[part], w[part] * x[part], w[part] * x[part] ** 2])
        for total, values in zip(sums, derivatives(eta), strict=True):
            total.addmm_(powers[: len(total)], values.reshape(len(part), -1))
    (value,), (slope, tilt), (curvature, skew, spread) = (
        total.unflatten(1, mean.shape) for total in sums
    )
    small = torch.finfo(mean.dtype).eps ** 0.5
    safe = variance.clamp_min(small)
    by_variance = torch.where(variance > small, tilt / safe.sqrt(), -curvature)
    return ExpectedDerivatives(
        value=value,
        mean=slope,
        variance=0.5 * by_variance,
        mean_mean=-curvature,
        mean_variance=-0.5 * skew / safe.sqrt(),
        variance_variance=-0.25 * (spread + by_variance) / safe,
    )


def _conditional_moments(distribution: Distribution) -> tuple[Tensor, Tensor]:
    mean = distribution.mean
    if not distribution.has_enumerate_support or bool(torch.isfinite(mean).all()):
        return mean, distribution.variance
    levels = distribution.enumerate_support().to(mean.dtype)
    probability = distribution.log_prob(levels).exp()
    mean = (probability * levels).sum(0)
    return mean, (probability * (levels - mean) ** 2).sum(0)


def _known_predictors(
    distribution: Callable[[Tensor], Distribution], features: Tensor
) -> tuple[Tensor, Tensor]:
    mean, variance = _conditional_moments(distribution(features))
    return mean, torch.diag_embed(variance)


def _hermite(points: np.ndarray) -> np.ndarray:
    """Orthonormal Hermite polynomials of order 1 .. n-1 at n points ``[n-1, n]``."""
    rows = [np.ones_like(points), points]
    for k in range(1, len(points) - 1):
        rows.append((points * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    return np.stack(rows[1:])


def channelwise_moments(
    distribution: Callable[[Tensor], Distribution],
    mean: Tensor,
    covariance: Tensor,
    *,
    nodes: int = 32,
) -> tuple[Tensor, Tensor]:
    r"""Moments of observations whose channels each depend on one Gaussian predictor.

    The conditional mean of channel i is expanded in Hermite polynomials of its standardised
    predictor, so that (Mehler's formula)

    .. math::
        \mathrm{Cov}(\mu_i, \mu_j) = \sum_{k \ge 1} \rho_{ij}^k a_{ik} a_{jk}, \qquad
        a_{ik} = E[\mu_i(\eta_i) \, \mathrm{He}_k(x_i)] / \sqrt{k!}

    and the expected conditional variance is added to the diagonal.

    Args:
        distribution: Map from predictors ``[..., N]`` to a distribution of the same batch shape.
        mean: Mean of the predictors ``[..., N]``.
        covariance: Their covariance ``[..., N, N]``.
        nodes: Number of Gauss-Hermite nodes.

    Returns:
        Mean ``[..., N]`` and covariance ``[..., N, N]`` of the observations.
    """
    if not bool(covariance.any()):
        return _known_predictors(distribution, mean)
    points, weights = (torch.as_tensor(a).to(mean) for a in gauss_hermite(nodes))
    deviation = torch.diagonal(covariance, dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    shape = (nodes,) + (1,) * mean.ndim
    conditional, variance = _conditional_moments(
        distribution(mean + points.view(shape) * deviation)
    )
    first = torch.tensordot(weights, conditional, dims=1)
    extra = torch.tensordot(weights, variance, dims=1)
    basis = torch.as_tensor(_hermite(gauss_hermite(nodes)[0])).to(mean) * weights
    coefficients = torch.tensordot(basis, conditional - first, dims=1)
    outer = deviation[..., :, None] * deviation[..., None, :]
    correlation = torch.where(outer > 0, covariance / outer.clamp_min(1e-300), 0.0).clamp(-1, 1)
    second = torch.diag_embed(extra)
    power = torch.ones_like(correlation)
    for a in coefficients:
        power = power * correlation
        second = second + power * a[..., :, None] * a[..., None, :]
    return first, second


def coupled_moments(
    distribution: Callable[[Tensor], Distribution],
    mean: Tensor,
    covariance: Tensor,
    *,
    points: int = 1024,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Moments of observations that depend jointly on several Gaussian predictors.

    Args:
        distribution: Map from predictors ``[..., K]`` to a distribution of batch shape
            ``[..., N]``.
        mean: Mean of the predictors ``[..., K]``.
        covariance: Their covariance ``[..., K, K]``.
        points: Number of scrambled Sobol points.
        seed: Seed of the scrambling.

    Returns:
        Mean ``[..., N]`` and covariance ``[..., N, N]`` of the observations.
    """
    if not bool(covariance.any()):
        return _known_predictors(distribution, mean)
    xi = normal_sobol(points, mean.shape[-1], seed).to(mean)
    root = square_root(covariance)
    features = mean + torch.einsum("...ij,sj->s...i", root, xi)
    conditional, variance = _conditional_moments(distribution(features))
    first = conditional.mean(0)
    centred = conditional - first
    second = torch.einsum("s...i,s...j->...ij", centred, centred) / points
    return first, second + torch.diag_embed(variance.mean(0))
