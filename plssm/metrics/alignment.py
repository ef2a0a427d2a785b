"""Do predicted covariances point where errors grow, and grow when they grow?"""

from __future__ import annotations

import numpy as np

__all__ = ["frobenius_alignment", "leading_cosine", "log_norm", "log_trace"]

DEGENERATE = 1e-9
"""Relative distance below which two leading values are one."""


def leading_cosine(covariance: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    r"""Cosine between the leading directions of a covariance and of a tangent product.

    .. math:: |e_1(P)^\top u_1(\Phi)|

    with u_1 the leading left singular vector. Where several directions lead alike, as in a
    multiple of the identity, it is the root mean square over all choices among them.

    Args:
        covariance: P ``[..., N, N]``.
        tangent: Phi ``[..., N, M]``.

    Returns:
        Between 0 and 1, ``[...]``.
    """
    values, axes = np.linalg.eigh(covariance)
    own = values >= values[..., -1:] * (1 - DEGENERATE)
    directions, sizes, _ = np.linalg.svd(tangent, full_matrices=False)
    grown = sizes >= sizes[..., :1] * (1 - DEGENERATE)
    squares = np.einsum("...ij,...ik->...jk", axes, directions) ** 2
    total = np.einsum("...j,...jk,...k->...", own, squares, grown)
    return np.sqrt(np.minimum(total / (own.sum(-1) * grown.sum(-1)), 1.0))


def frobenius_alignment(covariance: np.ndarray, other: np.ndarray) -> np.ndarray:
    r"""Cosine between two matrices in the Frobenius inner product.

    .. math:: \frac{\langle A, B \rangle}{\|A\|_F \|B\|_F}

    Args:
        covariance: A ``[..., N, N]``.
        other: B ``[..., N, N]``.

    Returns:
        Between -1 and 1, ``[...]``; NaN where a matrix is zero.
    """
    with np.errstate(invalid="ignore"):
        a, b = (x / np.abs(x).max((-2, -1), keepdims=True) for x in (covariance, other))
    norms = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    return np.clip((a * b).sum((-2, -1)) / norms, -1.0, 1.0)


def log_trace(covariance: np.ndarray) -> np.ndarray:
    """Logarithm of the total variance, ``[..., N, N]`` to ``[...]``."""
    return np.log(np.einsum("...ii->...", covariance))


def log_norm(tangent: np.ndarray) -> np.ndarray:
    """Logarithm of the Frobenius norm, ``[..., N, M]`` to ``[...]``."""
    return np.log(np.linalg.norm(tangent, axis=(-2, -1)))
