"""Update of Gaussian states to the mean and the covariance of their posterior, by quadrature."""

from __future__ import annotations

import functools

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

from plssm.inference.filter_options import rectified
from plssm.inference.step_updates import StepTerms, laplace_update, penalised

__all__ = ["moment_update"]

GRID = {1: 40, 2: 24, 3: 16, 4: 9, 5: 6}  # nodes along each direction of the predictors
POINTS = 4096  # scattered nodes where the predictors have more directions
PASSES = 3  # each around the moments of the one before
ROOM = 4_000_000  # numbers of predictors held at a time


def moment_update(
    terms: StepTerms, m: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Posterior mean, covariance and log evidence of N(m, P) and one step's observations.

    .. math:: Z = \int \mathcal N(z; m, P) \, p(y | z) \, dz, \qquad
        m' = E[z | y], \quad P' = \mathrm{Cov}[z | y]

    The integrand differs from the Laplace approximation only along the directions that the
    predictors see. Up to five of them are integrated by Gauss-Hermite products, more by
    quasi-random Gaussian points; nodes are placed by the Laplace approximation first, then twice
    by the moments found. Where an integral overflows, the Laplace update stays.

    Args:
        terms: Models and samples of the step.
        m: Means [B, M].
        p: Covariances [B, M, M].

    Returns:
        Means, covariances, and log evidences [B].

    References:
        Naylor and Smith 1982, doi:10.2307/2347995. Sobol' 1967,
        doi:10.1016/0041-5553(67)90144-9.
    """
    z, covariance, laplace = laplace_update(terms, m, p)
    if not terms:
        return z, covariance, laplace
    root = np.linalg.cholesky(0.5 * (covariance + covariance.swapaxes(1, 2)))
    basis = _seen(terms, root)
    size = basis.shape[2]
    nodes, log_weight = _grid(size) if size in GRID else _scattered(size)
    precision = np.linalg.inv(p)
    centre = np.zeros((len(m), size))
    scale = np.tile(np.eye(size), (len(m), 1, 1))
    for _ in range(PASSES):
        x = centre + np.einsum("bij,sj->sbi", scale, nodes)
        density = _density(terms, z, basis, x, m, precision)
        log_ratio = density + (log_weight + 0.5 * (nodes**2).sum(1))[:, None]
        total = logsumexp(log_ratio, axis=0) + np.linalg.slogdet(scale)[1]
        share = np.exp(log_ratio - logsumexp(log_ratio, axis=0))
        found = np.einsum("sb,sbi->bi", share, x)
        apart = x - found
        spread = np.einsum("sb,sbi,sbj->bij", share, apart, apart)
        good = np.isfinite(total) & np.isfinite(spread).all((1, 2))
        good &= np.linalg.eigvalsh(np.where(good[:, None, None], spread, 1.0))[:, 0] > 0
        centre = np.where(good[:, None], found, centre)
        kept = np.where(good[:, None, None], spread, scale @ scale.swapaxes(1, 2))
        scale = np.linalg.cholesky(kept)
    evidence = total + np.linalg.slogdet(root)[1] - 0.5 * np.linalg.slogdet(p)[1]
    mean = z + (basis @ centre[..., None])[..., 0]
    change = kept - np.eye(size)
    matched = covariance + basis @ change @ basis.swapaxes(1, 2)
    return (
        np.where(good[:, None], mean, z),
        np.where(good[:, None, None], matched, covariance),
        np.where(good, evidence, laplace),
    )


def _seen(terms: StepTerms, root: np.ndarray) -> np.ndarray:
    """Directions of the states [B, M, r], whitened, that the predictors change along."""
    size = root.shape[1]
    if any(rectified(o) for o, _ in terms):
        return root
    weight = np.concatenate([o.weight.detach().numpy() for o, _ in terms])
    rank = max(min(np.linalg.matrix_rank(weight), size), 1)  # one where nothing is seen
    if rank == size:
        return root
    along = np.linalg.svd(weight @ root, full_matrices=False)[2][:, :rank]
    return root @ along.swapaxes(1, 2)


def _density(
    terms: StepTerms, z: np.ndarray, basis: np.ndarray, x: np.ndarray, m: np.ndarray,
    precision: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Log integrand at points x [S, B, r], some of them at a time."""
    widest = max(samples.y.shape[1] * o.predictors for o, samples in terms)
    many = max(1, ROOM // (x.shape[1] * max(widest, z.shape[1])))
    out = []
    for start in range(0, len(x), many):
        at = z + np.einsum("bij,sbj->sbi", basis, x[start : start + many])
        with np.errstate(over="ignore", invalid="ignore"):
            out.append(penalised(terms, at, m, precision))
    return np.concatenate(out)


@functools.cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite products: nodes [S, size] and the logarithms of their weights [S]."""
    nodes, weights = hermegauss(GRID[size])
    grid = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, size)
    logs = np.log(weights / weights.sum())
    many = np.stack(np.meshgrid(*[logs] * size, indexing="ij"), -1).reshape(-1, size)
    return grid, many.sum(1)


@functools.cache
def _scattered(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Quasi-random points [S, size], equally weighted, with the first three Gaussian moments."""
    half = ndtri(qmc.Sobol(size, seed=0).random(POINTS // 2).clip(1e-12, 1 - 1e-12))
    half = np.linalg.solve(np.linalg.cholesky(half.T @ half / len(half)), half.T).T
    return np.concatenate([half, -half]), np.full(POINTS, -np.log(POINTS))
