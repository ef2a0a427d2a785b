"""Chains whose log joint is quadratic once the regions of the map are held fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plssm.inference.chain_prior import LOG_2PI, ChainPrior
from plssm.kernels.chain import solve_chain
from plssm.kernels.mode_search import path_values
from plssm.linalg.banded import BandedFactor, BlockBanded
from plssm.linalg.block_tridiagonal import ChainFactor

__all__ = ["QuadraticTerms", "absolute", "linear_solve", "log_constant", "log_joint"]


def absolute(blocks: np.ndarray) -> np.ndarray:
    """Symmetric blocks ``[..., M, M]`` with their eigenvalues made positive."""
    values, vectors = np.linalg.eigh(blocks)
    if (values >= 0).all():
        return blocks
    return (vectors * np.abs(values)[..., None, :]) @ vectors.swapaxes(-1, -2)


@dataclass(frozen=True)
class QuadraticTerms:
    r"""Observation terms, expanded to second order in the latent path.

    .. math:: \log p(Y \mid Z) \approx c + \sum_t q_t^\top z_t - \tfrac12 z_t^\top R_t z_t

    Modalities whose samples depend on earlier steps, too (BOLD), add products of different steps:
    :math:`-\tfrac12 z^\top K z` with K block-banded and positive semi-definite.

    Args:
        constant: c of each trial ``[B]``.
        score: q ``[B, T, M]``.
        information: R ``[B | 1, T | 1, M, M]``.
        banded: Blocks of K on and right of the diagonal ``[B, T, w+1, M, M]``, block l of step t
            for the pair (t, t+l); zero beyond a trial's end. None without such modalities.
    """

    constant: np.ndarray
    score: np.ndarray
    information: np.ndarray
    banded: np.ndarray | None = None

    @property
    def memory(self) -> int:
        """Number w of earlier steps that a sample depends on."""
        return 0 if self.banded is None else self.banded.shape[2] - 1

    def value(self, z: np.ndarray) -> np.ndarray:
        """Value at paths ``[B, T, M]``, ``[B]``; ``score`` and ``z`` are 0 beyond the end."""
        return self.constant + ((self.score - 0.5 * self.curved(z)) * z).sum((1, 2))

    def curved(self, z: np.ndarray) -> np.ndarray:
        """Information times path, (R + K) z, ``[B, T, M]``."""
        return self._local(z) if self.banded is None else self._local(z) + self.spread(z)

    def _local(self, z: np.ndarray) -> np.ndarray:
        if self.information.shape[:2] == (1, 1):
            return z @ self.information[0, 0]
        return np.einsum("btij,btj->bti", self.information, z, optimize=False)

    def spread(self, z: np.ndarray) -> np.ndarray:
        """Banded part times path, K z, ``[B, T, M]``."""
        out = np.zeros_like(z)
        steps = z.shape[1]
        for lag in range(min(self.memory, steps - 1) + 1):
            block, here, there = (
                self.banded[:, : steps - lag, lag],
                z[:, : steps - lag],
                z[:, lag:],
            )
            out[:, : steps - lag] += (block @ there[..., None])[..., 0]
            if lag:
                out[:, lag:] += (here[..., None, :] @ block)[..., 0, :]
        return out

    def steering(self, z: np.ndarray) -> QuadraticTerms:
        """Terms of the same value and slope at z whose R has the absolute eigenvalues.

        A Newton step on them is well scaled and goes uphill where R is indefinite, too (the
        clipped R would know nothing about how far to go).
        """
        upright = absolute(self.information)
        if upright is self.information:
            return self
        change = QuadraticTerms(self.constant, self.score, upright - self.information)
        moved = change.curved(z)  # K comes from quadratic terms and stays
        return replace(
            self,
            constant=self.constant - 0.5 * (moved * z).sum((1, 2)),
            score=self.score + moved,
            information=self.information + change.information,
        )

    def select(self, trials: np.ndarray) -> QuadraticTerms:
        """The terms of some of the trials."""
        shared = self.information.shape[0] == 1
        return QuadraticTerms(
            self.constant[trials],
            self.score[trials],
            self.information if shared else self.information[trials],
            None if self.banded is None else self.banded[trials],
        )


def log_joint(prior: ChainPrior, terms: QuadraticTerms, path: np.ndarray) -> np.ndarray:
    """Log joint density of paths ``[B, T, M]`` with quadratic observation terms, ``[B]``."""
    value = path_values(
        prior.form,
        prior.drive,
        prior.precision,
        prior.initial_mean,
        prior.initial_precision,
        terms.information,
        terms.score,
        path,
        prior.length,
        packed=prior.packed,
    )
    if terms.banded is not None:
        value = value - 0.5 * (terms.spread(path) * path).sum((1, 2))
    return value + log_constant(prior, terms)


def log_constant(prior: ChainPrior, terms: QuadraticTerms) -> np.ndarray:
    """Part of the log joint density that does not depend on the path, ``[B]``."""
    constant = prior.initial_logdet + (prior.length - 1) * prior.logdet
    return terms.constant - 0.5 * (constant + prior.length * prior.dim * LOG_2PI)


def linear_solve(
    prior: ChainPrior,
    terms: QuadraticTerms,
    slope: np.ndarray,
    *,
    pins: np.ndarray | None = None,
    rho: float = 0.0,
) -> tuple[np.ndarray, ChainFactor | BandedFactor]:
    """Maximise the chain with hinge slopes held fixed and pinned gates held at 0.

    Args:
        prior: The latent prior.
        terms: Quadratic observation terms.
        slope: Slope of every hinge ``[B, T-1, P]``, between 0 and 1.
        pins: Gates held at 0 by a penalty, bool ``[B, T-1, P]``.
        rho: Stiffness of the penalty.

    Returns:
        The path ``[B, T, M]`` and the factor of its precision.
    """
    form = prior.form
    information, score = terms.information, terms.score
    if form.outer.shape[1]:
        jacobian = form.jacobian(slope)
        offset = form.regional_bias(slope) + prior.drive
    else:
        jacobian, offset = form.linear[None, None], form.bias + prior.drive
    if pins is not None and pins.any():
        information = np.array(np.broadcast_to(information, (*score.shape, score.shape[-1])))
        score = score.copy()
        b, t, p = np.nonzero(pins)
        normal = form.inner[p]
        np.add.at(information, (b, t), rho * normal[:, :, None] * normal[:, None, :])
        np.add.at(score, (b, t), -rho * form.offset[p, None] * normal)
    if terms.banded is not None:
        return _solve_banded(prior, jacobian, offset, information, score, terms.banded)
    return solve_chain(
        jacobian,
        offset,
        prior.precision,
        prior.initial_mean,
        prior.initial_precision,
        information,
        score,
        prior.length,
    )


def _solve_banded(
    prior: ChainPrior,
    jacobian: np.ndarray,
    offset: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    banded: np.ndarray,
) -> tuple[np.ndarray, BandedFactor]:
    """Solve of :func:`linear_solve` for a block-banded negative Hessian."""
    trials, steps, dim = score.shape
    blocks = np.zeros((trials, steps, max(banded.shape[2], 2), dim, dim))
    blocks[:, :, : banded.shape[2]] = banded
    blocks[:, :, 0] += information
    right = score.copy()
    blocks[:, 0, 0] += prior.initial_precision
    right[:, 0] += prior.initial_mean @ prior.initial_precision
    if steps > 1:
        inside = prior.inside()[..., None, None]
        pulled = np.where(inside, jacobian.swapaxes(-1, -2) @ prior.precision, 0.0)
        blocks[:, :-1, 0] += pulled @ jacobian
        blocks[:, 1:, 0] += np.where(inside, prior.precision, 0.0)
        blocks[:, :-1, 1] -= pulled
        right[:, :-1] -= (pulled @ offset[..., None])[..., 0]
        right[:, 1:] += np.where(inside[..., 0], offset, 0.0) @ prior.precision
    factor = BlockBanded(blocks, prior.length).cholesky()
    return factor.solve(right), factor
