"""Gaussian vectors with missing entries: covariances of what was seen, and their roots."""

from __future__ import annotations

from typing import Any

import numpy as np

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats

__all__ = [
    "checked_covariances",
    "covariance_of",
    "noise_covariance",
    "seen_covariances",
    "whiten",
]

SYMMETRY = 1e-8
"""Largest share of a covariance's scale by which its two triangles may differ."""


def covariance_of(x: Any, shape: tuple[int, ...], role: str) -> np.ndarray:
    """Read covariances and broadcast them to the vectors they belong to.

    Args:
        x: ``[N, N]`` or ``[..., N, N]``.
        shape: Shape of the vectors ``[..., N]``.
        role: Name of the argument, for the error messages.

    Returns:
        ``[..., N, N]``, a view where they were broadcast.

    Raises:
        DataError: When the shapes do not fit.
    """
    array = as_floats(x, role)
    wanted = (*shape, shape[-1])
    try:
        return np.broadcast_to(array, wanted)
    except ValueError as error:
        raise DataError(
            f"{role} does not fit the vectors",
            got=array.shape,
            wanted=f"{wanted}",
            fix="give one matrix for all, or one for each vector",
        ) from error


def noise_covariance(x: Any, size: int, role: str) -> np.ndarray:
    """One covariance from a number, variances or a matrix.

    Args:
        x: A number, ``[N]`` or ``[N, N]``.
        size: N.
        role: Name of the argument, for the error messages.

    Returns:
        ``[N, N]``.

    Raises:
        DataError: When it has another shape, or is not finite, symmetric, positive semidefinite.
    """
    array = as_floats(x, role)
    if array.ndim < 2 and array.shape in ((), (size,)):
        array = np.diag(np.broadcast_to(array, (size,)))
    if array.shape != (size, size):
        raise DataError(
            f"{role} has the wrong shape",
            got=array.shape,
            wanted=f"a number, ({size},) variances or a ({size}, {size}) covariance",
        )
    return checked_covariances(array, role)


def checked_covariances(x: np.ndarray, role: str) -> np.ndarray:
    """Refuse matrices that are no covariances.

    Args:
        x: ``[..., N, N]``.
        role: Name of the argument, for the error messages.

    Returns:
        The same array.

    Raises:
        DataError: When a matrix is not finite, symmetric and positive semidefinite.
    """
    if not np.isfinite(x).all():
        raise DataError(f"{role} is not finite", wanted="covariances")
    scale = np.abs(x).max((-2, -1), initial=0.0)
    skew = np.abs(x - np.swapaxes(x, -2, -1)).max((-2, -1), initial=0.0)
    if (skew > SYMMETRY * scale).any():
        raise DataError(f"{role} is not symmetric", wanted="covariances")
    least = np.linalg.eigvalsh(x)[..., 0]
    if (least < -SYMMETRY * scale).any():
        raise DataError(
            f"{role} has negative variances",
            got=f"eigenvalue {least.min():.3g}",
            wanted="positive semidefinite matrices",
        )
    return x


def seen_covariances(covariance: np.ndarray, seen: np.ndarray, role: str) -> np.ndarray:
    """Covariances of the entries seen; unseen ones become independent with variance one.

    Args:
        covariance: ``[..., N, N]``; anything where nothing was seen.
        seen: Which entries were seen, bool ``[..., N]``.
        role: Name of the argument, for the error messages.

    Returns:
        ``[..., N, N]``, symmetric; the block of what was seen is that of `covariance`.

    Raises:
        DataError: When a block that is needed is not finite or not symmetric.
    """
    both = seen[..., :, None] & seen[..., None, :]
    block = np.where(both, covariance, np.eye(seen.shape[-1]))
    if not np.isfinite(block).all():
        raise DataError(
            f"{role} is not finite where something was observed",
            got=f"{int((~np.isfinite(block)).any((-2, -1)).sum())} matrices with NaN or inf",
            fix="set the vectors to NaN where there is no prediction",
        )
    turned = np.swapaxes(block, -2, -1)
    if (np.abs(block - turned) > SYMMETRY * np.abs(block).max((-2, -1), initial=0.0,
                                                           keepdims=True)).any():  # fmt: skip
        raise DataError(f"{role} is not symmetric", wanted="covariances")
    return (block + turned) / 2


def whiten(
    vectors: np.ndarray, covariance: np.ndarray, seen: np.ndarray, role: str
) -> tuple[np.ndarray, np.ndarray]:
    r"""Unit-variance vectors by the symmetric root of the covariance of what was seen.

    .. math:: e = S_{oo}^{-1/2} v_o, \qquad \log |S_{oo}|

    Args:
        vectors: ``[..., N]``; anything where not seen.
        covariance: ``[..., N, N]``.
        seen: Which entries were seen, bool ``[..., N]``.
        role: Name of the covariance, for the error messages.

    Returns:
        e ``[..., N]``, NaN where not seen, and log-determinants ``[...]``, 0 where nothing was.

    Raises:
        DataError: When a covariance is not positive definite where something was seen.
    """
    values, axes = np.linalg.eigh(seen_covariances(covariance, seen, role))
    singular = (values <= np.finfo(np.float64).eps * values[..., -1:]).any(-1)
    if singular.any():
        worst = tuple(int(i) for i in np.argwhere(singular)[0])
        raise DataError(
            f"{role} is not positive definite",
            axis=f"entry {worst}" if worst else None,
            got=f"eigenvalues from {values[worst][0]:.3g} to {values[worst][-1]:.3g}",
            wanted="covariances of full rank",
            fix="include the observation noise",
        )
    filled = np.where(seen, vectors, 0.0)
    along = np.einsum("...ji,...j->...i", axes, filled) / np.sqrt(values)
    unit = np.einsum("...ij,...j->...i", axes, along)
    return np.where(seen, unit, np.nan), np.log(values).sum(-1)
