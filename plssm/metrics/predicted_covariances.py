"""Covariances that a model predicts, in the coordinates in which they are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plssm.errors import DataError, ShapeError
from plssm.metrics.arrays import as_floats
from plssm.metrics.gaussians import checked_covariances, noise_covariance
from plssm.metrics.tangents import start_covariances, transported_covariance

__all__ = ["PredictedCovariances", "sandwich"]


@dataclass(frozen=True)
class PredictedCovariances:
    """What a model predicts of S origins at H horizons, in the coordinates of the comparison."""

    matrix: np.ndarray  # [N, M], from states to those coordinates
    start: np.ndarray  # P_0, [S, N, N] or [N, N]
    tangent: np.ndarray  # Phi_k, [S, H, N, M]
    carried: np.ndarray  # Phi_k P_0 Phi_k', [S, H, N, N]
    noise: np.ndarray  # Q_k, [S, H, N, N]
    tested: np.ndarray  # P_k, [S, H, N, N]
    excess: np.ndarray  # P_k - Q_k, [S, H, N, N]
    volume: np.ndarray  # log |P_k| / 2, [S, H]
    share: np.ndarray  # tr Q_k / tr P_k of what is transported, [S, H]

    @classmethod
    def of(
        cls,
        system: Any,
        z: Any,
        at: np.ndarray,
        covariance: Any,
        q: Any,
        inputs: Any,
        readout: Any,
    ) -> PredictedCovariances:
        """Transport covariances with the model's own Jacobians."""
        moved = transported_covariance(
            system, z, covariance=covariance, noise=q, steps=int(at[-1]), inputs=inputs
        )
        m = moved.tangent.shape[-1]
        b = np.eye(m) if readout is None else as_floats(readout, "readout")
        if b.ndim != 2 or b.shape[1] != m:
            raise ShapeError(f"readout: got shape {b.shape}, wanted [N, {m}]")
        p = start_covariances(covariance, moved.tangent.shape[:1], m)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            tangent, noise, tested = (
                b @ x[:, at - 1] for x in (moved.tangent, moved.noise, moved.covariance)
            )
            noise, tested = noise @ b.T, tested @ b.T
            carried = sandwich(tangent, p)
            share = _trace(noise) / _trace(tested)
        volume = moved.log_volume[:, at - 1] if readout is None else _volumes(tested)
        start = b @ p @ b.T
        return cls(b, start, tangent, carried, noise, tested, carried, volume, share)

    def replaced(self, predicted: Any) -> PredictedCovariances:
        """Put covariances that are given in the place of the transported ones."""
        tested = as_floats(predicted, "predicted")
        if tested.shape != self.tested.shape:
            raise ShapeError(
                f"predicted: got shape {tested.shape}, wanted {self.tested.shape} "
                "(origins, horizons, states, states)"
            )
        fine = np.isfinite(tested).all((-2, -1))
        checked_covariances(tested[fine], "predicted")
        return replace(self, tested=tested, excess=tested - self.noise, volume=_volumes(tested))

    def finite(self) -> np.ndarray:
        """Origins whose covariances are finite at all horizons, [S]."""
        every = (self.tested, self.noise, self.carried)
        return np.logical_and.reduce([np.isfinite(x).all((1, 2, 3)) for x in every])

    def slopes(self, times: np.ndarray) -> np.ndarray:
        """Least-squares slope of the log-volume over time at each origin, [S, 1]."""
        if len(times) < 2:
            return np.full((len(self.volume), 1), np.nan)
        centred = times - times.mean()
        fine = np.isfinite(self.volume).all(1, keepdims=True)
        slope = np.where(fine, self.volume, 0.0) @ centred[:, None] / (centred**2).sum()
        return np.where(fine, slope, np.nan)

    def noise_ratio(self, noise: Any, reference: Any) -> float:
        """Total process noise of the model over that of the reference."""
        n, m = self.matrix.shape
        own = self.matrix @ noise_covariance(as_floats(noise, "noise"), m, "noise") @ self.matrix.T
        true = noise_covariance(reference, n, "reference_noise")
        if not np.trace(true) > 0:
            raise DataError("reference_noise is zero: there is nothing to compare with",
                            fix="leave it out")  # fmt: skip
        return float(np.trace(own) / np.trace(true))


def sandwich(tangent: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Phi P Phi' of [S, H, N, M] and [S, M, M] or [M, M]."""
    middle = start[:, None] if start.ndim == 3 else start
    return tangent @ middle @ np.swapaxes(tangent, -2, -1)


def _trace(x: np.ndarray) -> np.ndarray:
    return np.einsum("...ii->...", x)


def _volumes(covariance: np.ndarray) -> np.ndarray:
    """Half the log-determinant; NaN where the matrix is not positive definite."""
    fine = np.isfinite(covariance).all((-2, -1))
    eye = np.eye(covariance.shape[-1])
    sign, log_det = np.linalg.slogdet(np.where(fine[..., None, None], covariance, eye))
    return np.where(fine & (sign > 0), log_det / 2, np.nan)
