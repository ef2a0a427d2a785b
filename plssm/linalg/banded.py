"""Symmetric positive definite matrices of any block bandwidth, one per trial, of ragged length."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import lapack

from plssm.kernels._banded_inverse import select_banded_inverse
from plssm.linalg.block_tridiagonal import dense, trial_lengths

__all__ = ["BandedFactor", "BlockBanded"]


@dataclass(frozen=True, eq=False)
class BlockBanded:
    """Block-banded symmetric matrices, given by the blocks on and right of the diagonal.

    Blocks that would lie beyond a trial's end are ignored.

    Args:
        blocks: [B, T, w+1, M, M], block l of step t is U_{t,t+l}.
        length: [B], number of steps of each trial; all T when None.

    Raises:
        ValueError: If the shapes do not fit together.

    Example:
        >>> blocks = np.array([[[4.0], [1.0]], [[4.0], [0.0]]]).reshape(1, 2, 2, 1, 1)
        >>> round(float(BlockBanded(blocks).cholesky().logdet[0]), 6)  # log 15
        2.70805
    """

    blocks: np.ndarray
    length: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        """Checks the shapes."""
        blocks = dense(self.blocks)
        if blocks.ndim != 5 or blocks.shape[3] != blocks.shape[4] or 0 in blocks.shape:
            raise ValueError(f"blocks must be [B, T, w+1, M, M], got {blocks.shape}")
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "length", trial_lengths(self.length, *blocks.shape[:2]))

    def cholesky(self) -> BandedFactor:
        """Factors every trial with LAPACK's banded Cholesky decomposition.

        Returns:
            The factor; a matrix that is not positive definite is reported in its status.
        """
        n, steps, lags, m = self.blocks.shape[:4]
        bands, logdet = [], np.full(n, np.inf)
        status = np.zeros(n, dtype=np.int64)
        for b in range(n):
            band, info = lapack.dpbtrf(self._band(b).T, lower=1, overwrite_ab=1)
            pivots = band[0]
            bad = ~(np.isfinite(pivots) & (pivots > 0))
            if info > 0 or bad.any():
                first = info - 1 if info > 0 else int(bad.argmax())
                status[b] = 1 + min(first, int(bad.argmax()) if bad.any() else first) // m
            else:
                logdet[b] = 2 * np.log(pivots).sum()
            bands.append(band)
        return BandedFactor(tuple(bands), logdet, status, self.length, (n, steps, lags, m))

    def _band(self, b: int) -> np.ndarray:
        """Returns one trial as [T M, (w+1) M]: column j from the diagonal downwards."""
        n = int(self.length[b])
        lags, m = self.blocks.shape[2:4]
        blocks = self.blocks[b, :n].copy()
        for lag in range(1, lags):
            blocks[max(n - lag, 0) :, lag] = 0.0
        band = np.zeros((n, m, lags * m))
        for i in range(m):
            band[:, i, : lags * m - i] = blocks[:, :, i].reshape(n, lags * m)[:, i:]
        return band.reshape(n * m, lags * m)


@dataclass(frozen=True, eq=False)
class BandedFactor:
    r"""Cholesky factor U = L L' of a batch of block-banded matrices.

    A trial whose factorisation failed has a non-zero status, an infinite log-determinant, and
    gives zeros in every result. So do the steps beyond a trial's end.

    Attributes:
        bands: One array per trial, [(w+1) M, T M], L in LAPACK's lower banded storage.
        logdet: [B], log |U|.
        status: [B], 0, or 1 + the step of the first pivot that was not positive and finite.
        length: [B], number of steps of each trial.
        shape: (B, T, w+1, M).
    """

    bands: tuple[np.ndarray, ...]
    logdet: np.ndarray
    status: np.ndarray
    length: np.ndarray
    shape: tuple[int, int, int, int]

    def solve(self, v: np.ndarray) -> np.ndarray:
        """Solves U z = v.

        Args:
            v: [B, T, M].

        Returns:
            z, [B, T, M].
        """
        v = self._checked(v, 3)
        z = np.zeros_like(v)
        for b, n in self._good():
            z[b, :n] = lapack.dpbtrs(self.bands[b], v[b, :n].reshape(-1), lower=1)[0].reshape(
                n, -1
            )
        return z

    def sample(self, xi: np.ndarray) -> np.ndarray:
        r"""Turns standard normal numbers into draws with covariance U^-1 and mean zero.

        .. math::
            z = L^{-\top} \xi

        Args:
            xi: [S, B, T, M].

        Returns:
            z, [S, B, T, M].
        """
        xi = self._checked(xi, 4)
        z = np.zeros_like(xi)
        for b, n in self._good():
            right = xi[:, b, :n].reshape(len(xi), -1).T
            draws = lapack.dtbtrs(self.bands[b], right, uplo="L", trans="T")[0]
            z[:, b, :n] = draws.T.reshape(len(xi), n, -1)
        return z

    def covariances(self) -> np.ndarray:
        r"""Blocks of the inverse inside the band, Cov(z_t, z_{t+l}) for l = 0..w.

        .. math::
            G_t = L_{t+1:t+w,\,t} L_{tt}^{-1}, \qquad
            Z_{t+1:t+w,\,t} = -Z_{\text{next}} G_t, \qquad
            Z_{tt} = L_{tt}^{-\top} L_{tt}^{-1} + G_t^\top Z_{\text{next}} G_t

        Returns:
            [B, T, w+1, M, M].

        References:
            Takahashi, Fagan and Chen 1973, Formation of a sparse bus impedance matrix;
            Erisman and Tinney 1975, doi:10.1145/360680.360704.
        """
        out = np.zeros((*self.shape, self.shape[3]))
        for b, n in self._good():
            select_banded_inverse(self.bands[b].T, out[b, :n])
        return out

    def _good(self) -> list[tuple[int, int]]:
        """Returns index and length of the trials whose factorisation succeeded."""
        return [(b, int(n)) for b, n in enumerate(self.length) if self.status[b] == 0]

    def _checked(self, x: np.ndarray, ndim: int) -> np.ndarray:
        """Returns a float64 array [..., B, T, M]."""
        x = dense(x)
        n, steps, _, m = self.shape
        if x.ndim != ndim or x.shape[-3:] != (n, steps, m):
            raise ValueError(f"expected an array of shape [..., {n}, {steps}, {m}], got {x.shape}")
        return x
