"""Mode and factor of a chain with piecewise-linear or linear Gaussian dynamics."""

from __future__ import annotations

import numpy as np

from plssm.kernels import _chain_loops as loops
from plssm.kernels._blocks import padded
from plssm.kernels._threads import over_trials
from plssm.linalg.block_tridiagonal import (
    ChainFactor,
    dense,
    empty_factor,
    trial_lengths,
)

__all__ = ["checked", "joint_bases", "solve_chain", "strides"]


def solve_chain(
    jacobian: np.ndarray,
    offset: np.ndarray,
    precision: np.ndarray,
    initial_mean: np.ndarray,
    initial_precision: np.ndarray,
    information: np.ndarray,
    score: np.ndarray,
    length: np.ndarray | None = None,
) -> tuple[np.ndarray, ChainFactor]:
    r"""Solves for the mode of a conditionally linear Gaussian chain.

    .. math::
        -\tfrac12 \|z_1 - \mu_1\|^2_{\Sigma_0^{-1}}
        - \tfrac12 \sum_t \|z_{t+1} - J_t z_t - u_t\|^2_{\Sigma^{-1}}
        + \sum_t \left( q_t^\top z_t - \tfrac12 z_t^\top R_t z_t \right)
        = -\tfrac12 z^\top U z + v^\top z + \text{const}

    Axes of length 1 in `jacobian` and `information` are shared by all trials or all steps.

    Args:
        jacobian: [B or 1, T-1 or 1, M, M], J_t maps z_t to z_{t+1}.
        offset: [B, T-1, M], u_t, added on arrival at step t+1.
        precision: [M, M], inverse of the process noise covariance.
        initial_mean: [B, M], mean of the first state.
        initial_precision: [M, M], inverse of the covariance of the first state.
        information: [B or 1, T or 1, M, M], R_t, curvature of the observation terms.
        score: [B, T, M], q_t, linear part of the observation terms.
        length: [B], number of steps of each trial; all T when None.

    Returns:
        The mode [B, T, M] (zero beyond a trial's end) and the factor of U, with v'U^-1 v in its
        `quadratic`.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    mode = np.array(score, dtype=np.float64, order="C")
    if mode.ndim != 3:
        raise ValueError(f"score must be [B, T, M], got {mode.shape}")
    n, steps, m = mode.shape
    jacobian = checked("jacobian", jacobian, (n, steps - 1, m, m), shared=True)
    offset = checked("offset", offset, (n, steps - 1, m))
    precision = checked("precision", precision, (m, m))
    initial_mean = checked("initial_mean", initial_mean, (n, m))
    initial_precision = checked("initial_precision", initial_precision, (m, m))
    information = checked("information", information, (n, steps, m, m), shared=True)
    mode[:, 0] += initial_mean @ initial_precision.T
    bases = joint_bases(precision, initial_precision, jacobian)
    result = empty_factor(n, steps, m, trial_lengths(length, n, steps), quadratic=True)
    over_trials(
        loops.assemble_and_solve,
        (
            result.flat,
            mode.reshape(-1),
            result.quadratic,
            jacobian.reshape(-1),
            strides(jacobian, n, steps - 1),
            offset.reshape(-1),
            bases.reshape(-1),
            information.reshape(-1),
            strides(information, n, steps),
            result.length,
            result.logdet,
            result.status,
        ),
        length=result.length,
        m=m,
    )
    return mode, result


def joint_bases(
    precision: np.ndarray, initial: np.ndarray, jacobian: np.ndarray | None = None
) -> np.ndarray:
    """Returns joint rows [Q | 0] and [Q0 | 0], without and with the terms of a shared J."""
    m = len(precision)
    w = padded(m)
    bases = np.zeros((4, m, 2 * w))
    bases[0::2, :, :m] = precision
    bases[1::2, :, :m] = initial
    if jacobian is not None and jacobian.shape[:2] == (1, 1):
        pull = jacobian[0, 0].T @ precision
        bases[2:, :, :m] += pull @ jacobian[0, 0]
        bases[2:, :, w : w + m] = -pull
    return bases


def strides(array: np.ndarray, trials: int, steps: int) -> tuple[int, int]:
    """Returns the distances between trials and steps in memory, zero where they are shared."""
    block = array.shape[2] * array.shape[3]
    step = block if array.shape[1] == steps and steps > 1 else 0
    return (block * array.shape[1] if array.shape[0] > 1 else 0), step


def checked(
    name: str, array: np.ndarray, shape: tuple[int, ...], *, shared: bool = False
) -> np.ndarray:
    """Returns a C-contiguous array that has the shape, up to shared leading axes."""
    array = dense(array)
    fits = array.ndim == len(shape) and all(
        got == wanted or (shared and axis < 2 and got == 1)
        for axis, (got, wanted) in enumerate(zip(array.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"{name} must be {shape}, got {array.shape}")
    return array
