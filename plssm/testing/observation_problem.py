"""The problems on which the contract of an observation model is tested."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from plssm.data.batch import Modality
from plssm.observations.base import ObservationModel

__all__ = ["ObservationProblem"]


class ObservationProblem(ABC):
    """A bound model with perturbed parameters, and data of three trials with gaps.

    Attributes:
        dim: Number of latent states to bind to.
        perturbation: Standard deviation of the noise put on the trainable parameters.
        tolerance: Relative tolerance of comparisons that are exact in theory.
        draws: Number of Monte Carlo draws.
    """

    dim: int = 3
    perturbation: float = 0.3
    tolerance: float = 1e-8
    draws: int = 4000

    @abstractmethod
    def create(self) -> ObservationModel:
        """Return a fresh observation model, bound or not."""

    def _model(self) -> ObservationModel:
        model = self.create()
        model.bind(self.dim if model.dim is None else model.dim)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.add_(self.perturbation * noise.to(p))
        self.model = model
        return model

    def _path(self, model: ObservationModel, steps: int, *, seed: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(3, steps, model.dim, generator=generator, dtype=torch.float64)

    def _covariance(self, z: Tensor) -> Tensor:
        """Covariance of states; of paths, with the lags that the model remembers."""
        if z.ndim == 3 and self.model.memory(1.0):
            return self._lagged(z)
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(*z.shape, z.shape[-1], generator=generator, dtype=torch.float64)
        return 0.1 * root @ root.mT

    def _joint_root(self, z: Tensor) -> Tensor:
        """A root R of a covariance R R' of whole paths ``[B, T * M, T * M]``."""
        trials, steps, dim = z.shape
        generator = torch.Generator().manual_seed(3)
        shape = (trials, steps * dim, steps * dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64) * (0.1 / steps) ** 0.5

    def _lagged(self, z: Tensor) -> Tensor:
        """Cov(z_t, z_{t+l}) of the joint covariance ``[B, T, w+1, M, M]``."""
        trials, steps, dim = z.shape
        root = self._joint_root(z)
        joint = (root @ root.mT).reshape(trials, steps, dim, steps, dim).transpose(2, 3)
        lagged = z.new_zeros(trials, steps, self.model.memory(1.0) + 1, dim, dim)
        for lag in range(min(lagged.shape[2], steps)):
            for t in range(steps - lag):
                lagged[:, t, lag] = joint[:, t, t + lag]
        return lagged

    def _draw_paths(self, z: Tensor, covariance: Tensor) -> Tensor:
        """Paths around a mean with a covariance that :meth:`_covariance` gave ``[S, B, T, M]``."""
        generator = torch.Generator().manual_seed(9)
        xi = torch.randn((self.draws, *z.shape), generator=generator, dtype=torch.float64)
        if self.model.memory(1.0):
            moved = torch.einsum("bij,sbj->sbi", self._joint_root(z), xi.flatten(2))
            return z + moved.reshape(xi.shape)
        return z + torch.einsum("btij,sbtj->sbti", torch.linalg.cholesky(covariance), xi)

    def _features(self, z: Tensor, steps: Tensor, nuisance: Tensor | None) -> Tensor:
        """Predictors of samples at steps ``[B, n]`` of known paths ``[B, T, M]``."""
        if not self.model.memory(1.0):
            return self.model.features(torch.take_along_dim(z, steps[..., None], 1), nuisance)
        rows = [
            self.model.features_along(
                z[b], clock=steps[b], nuisance=None if nuisance is None else nuisance[b]
            )
            for b in range(len(z))
        ]
        return torch.stack(rows)

    @staticmethod
    def _dense(curvature: Tensor) -> Tensor:
        """Matrix ``[B, T * M, T * M]`` of a curvature, banded or one block per step."""
        if curvature.ndim == 4:
            curvature = curvature.unsqueeze(2)
        trials, steps, lags, dim = curvature.shape[:4]
        out = curvature.new_zeros(trials, steps, dim, steps, dim)
        for lag in range(min(lags, steps)):
            for t in range(steps - lag):
                out[:, t, :, t + lag] = curvature[:, t, lag]
                out[:, t + lag, :, t] = curvature[:, t, lag].mT
        return out.reshape(trials, steps * dim, steps * dim)

    def _modality(self, model: ObservationModel, z: Tensor, *, clock: str = "latent") -> Modality:
        """Three trials, the second shorter, the third of one step, with missing entries."""
        generator = torch.Generator().manual_seed(4)
        steps = z.shape[-2]
        length = torch.tensor([steps, max(1, steps - 2), 1])
        samples = {"latent": steps, "own": steps + 2, "slow": max(1, steps - 2)}[clock]
        index = torch.arange(samples).expand(3, -1)
        inside = index < length[:, None]
        if clock != "latent":  # sorted, with repeats and gaps; the padding of a trial has clock 0
            raw = torch.rand(3, samples, generator=generator)
            index = (raw * length[:, None]).long().sort(-1).values
            inside = torch.arange(samples) < torch.tensor([[samples], [samples - 1], [2]])
            index = torch.where(inside, index, 0)
        shape = (3, samples, model.nuisance)
        nuisance = torch.randn(shape, generator=generator, dtype=torch.float64)
        features = self._features(z, index.clamp_max(steps - 1), nuisance)
        y = model.sample(features, generator).to(torch.float64)
        mask = torch.rand(y.shape, generator=generator) > 0.25
        mask[0, 2 % samples] = False
        mask[:, 0] = True
        mask = mask & inside[..., None]
        return Modality(
            y=torch.where(mask, y, 0.0),
            mask=mask,
            clock=None if clock == "latent" else index,
            nuisance=nuisance if model.nuisance else None,
        )

    def _problem(
        self, *, steps: int = 7, clock: str = "latent"
    ) -> tuple[ObservationModel, Modality, Tensor]:
        model = self._model()
        z = self._path(model, steps)
        return model, self._modality(model, z, clock=clock), z

    def _close(self, got: Tensor, wanted: Tensor, *, tolerance: float | None = None) -> None:
        limit = self.tolerance if tolerance is None else tolerance
        torch.testing.assert_close(
            got.detach(), wanted.detach().to(got.dtype), rtol=limit, atol=limit
        )
