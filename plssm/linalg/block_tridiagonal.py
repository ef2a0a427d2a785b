"""Block-tridiagonal symmetric positive definite systems, one per trial, of ragged length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plssm.kernels import _chain_loops as loops
from plssm.kernels._blocks import padded
from plssm.kernels._scratch import scratch
from plssm.kernels._threads import over_trials

__all__ = ["ChainFactor", "dense", "empty_factor", "factor", "trial_lengths"]


@dataclass(frozen=True, eq=False)
class ChainFactor:
    r"""Cholesky factor of a batch of block-tridiagonal matrices.

    .. math::
        U = L L^\top, \qquad R_t = L_{tt}^\top, \quad C_t = L_{tt}^{-1} U_{t,t+1}

    A trial whose factorisation failed has a non-zero status, an infinite log-determinant, and
    gives zeros in every result. So do the steps beyond a trial's end.

    Attributes:
        flat: The blocks [R_t | C_t], each padded to W columns, behind one block of zeros.
        logdet: [B], log |U|.
        status: [B], 0, or 1 + the step of the first pivot that was not positive and finite.
        length: [B], number of steps of each trial.
        dim: Size M of one block.
        quadratic: [B], v' U^-1 v of the right-hand side that was solved for; None without one.
    """

    flat: np.ndarray
    logdet: np.ndarray
    status: np.ndarray
    length: np.ndarray
    dim: int
    quadratic: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """Blocks [R_t | C_t] with their padding, [B, T, M, 2W]."""
        n, block = len(self.length), 2 * self.dim * padded(self.dim)
        return self.flat[block:].reshape(n, -1, self.dim, 2 * padded(self.dim))

    @property
    def steps(self) -> int:
        """Number of steps T of the padded batch."""
        return self.rows.shape[1]

    @property
    def R(self) -> np.ndarray:
        """Upper triangular diagonal blocks L_t', [B, T, M, M]."""
        return self.rows[..., : self.dim]

    @property
    def C(self) -> np.ndarray:
        """Blocks L_t^-1 U_{t,t+1}, [B, T-1, M, M]."""
        w = padded(self.dim)
        return self.rows[:, :-1, :, w : w + self.dim]

    def solve(self, v: np.ndarray) -> np.ndarray:
        """Solves U z = v.

        Args:
            v: [B, T, M].

        Returns:
            z, [B, T, M].
        """
        z = _copy(v, self.rows.shape[:3])
        self._run(loops.solve_trials, z.reshape(-1))
        return z

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        r"""Blocks of the inverse within one step: the posterior covariances.

        .. math::
            P_t = R_t^{-1} R_t^{-\top} + G_t P_{t+1} G_t^\top, \qquad X_t = -G_t P_{t+1}, \qquad
            G_t = R_t^{-1} C_t

        Returns:
            P [B, T, M, M], the diagonal blocks, and X [B, T-1, M, M] = Cov(z_t, z_{t+1}).
        """
        n, steps, m = self.rows.shape[:3]
        covariance = np.empty((n, steps, m, m))
        cross = np.empty((n, steps - 1, m, m))
        self._run(loops.select_inverse, covariance.reshape(-1), cross.reshape(-1))
        return covariance, cross

    def sample(self, xi: np.ndarray) -> np.ndarray:
        r"""Turns standard normal numbers into draws with covariance U^-1 and mean zero.

        .. math::
            z = L^{-\top} \xi

        Args:
            xi: [S, B, T, M].

        Returns:
            z, [S, B, T, M].
        """
        z = _copy(xi, (len(xi), *self.rows.shape[:3]))
        self._run(loops.sample_trials, z.reshape(-1), len(z))
        return z

    def _run(self, kernel: Callable, *arguments: np.ndarray | int) -> None:
        """Calls a kernel on all trials."""
        over_trials(
            kernel,
            (self.flat, *arguments, self.length, self.status),
            length=self.length,
            m=self.dim,
        )


def factor(diag: np.ndarray, off: np.ndarray, length: np.ndarray | None = None) -> ChainFactor:
    """Factors block-tridiagonal matrices.

    Args:
        diag: [B, T, M, M], diagonal blocks U_tt.
        off: [B, T-1, M, M], blocks U_{t,t+1} right of the diagonal.
        length: [B], number of steps of each trial; all T when None.

    Returns:
        The factor; a matrix that is not positive definite is reported in its status.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    diag = dense(diag)
    off = dense(off)
    if diag.ndim != 4 or diag.shape[2] != diag.shape[3]:
        raise ValueError(f"diag must be [B, T, M, M], got {diag.shape}")
    n, steps, m = diag.shape[:3]
    if off.shape != (n, steps - 1, m, m):
        raise ValueError(f"off must be {(n, steps - 1, m, m)}, got {off.shape}")
    result = empty_factor(n, steps, m, trial_lengths(length, n, steps), quadratic=False)
    over_trials(
        loops.factor_trials,
        (
            result.flat,
            diag.reshape(-1),
            off.reshape(-1),
            result.length,
            result.logdet,
            result.status,
        ),
        length=result.length,
        m=m,
    )
    return result


def empty_factor(
    n: int, steps: int, m: int, length: np.ndarray, *, quadratic: bool, passing: bool = False
) -> ChainFactor:
    """Allocates a factor; its blocks hold anything until a kernel has filled them.

    Args:
        n: Number of trials.
        steps: Number of steps T.
        m: Size of one block.
        length: [B], number of steps of each trial.
        quadratic: Whether a right-hand side is solved for with it.
        passing: Whether it is of use only until the thread asks for the next passing one.
    """
    block = m * 2 * padded(m)
    size = (1 + n * steps) * block
    flat = scratch(size) if passing else np.empty(size)
    flat[:block] = 0.0
    return ChainFactor(
        flat=flat,
        logdet=np.zeros(n),
        status=np.zeros(n, dtype=np.int64),
        length=length,
        dim=m,
        quadratic=np.zeros(n) if quadratic else None,
    )


def dense(x: np.ndarray) -> np.ndarray:
    """Returns a C-contiguous float64 array."""
    return np.require(x, np.float64, "CW")


def _copy(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a C-contiguous float64 copy of the wanted shape."""
    x = np.array(x, dtype=np.float64, order="C")
    if x.shape != shape:
        raise ValueError(f"expected an array of shape {shape}, got {x.shape}")
    return x


def trial_lengths(length: np.ndarray | None, n: int, steps: int) -> np.ndarray:
    """Returns the trial lengths as int64, checked."""
    if length is None:
        return np.full(n, steps, dtype=np.int64)
    length = np.ascontiguousarray(length, dtype=np.int64)
    if length.shape != (n,) or np.any(length < 1) or np.any(length > steps):
        raise ValueError(f"length must hold {n} numbers from 1 to {steps}, got {length}")
    return length
