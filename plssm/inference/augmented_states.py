"""States that carry the past along, so that observations with memory become functions of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plssm.inference.chain_prior import ChainPrior
from plssm.kernels.moment_filter import propagate_moments
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["AugmentedStates", "LagStates", "ResponseStates"]


class AugmentedStates(ABC):
    r"""A latent state joined with what later observations still need of the past.

    .. math:: \tilde z_t = [z_t; \text{memory}_t], \qquad \eta_t = C \tilde z_t + d

    The joined state has singular process noise: no precision matrix exists, and everything works
    with covariances.

    Attributes:
        dim: Number M of latent states.
        size: Number of joined states.
    """

    dim: int
    size: int

    @abstractmethod
    def predict(
        self, mean: np.ndarray, covariance: np.ndarray, affine: Affine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[B, size]`` and covariance ``[B, size, size]`` one step on, without noise."""

    @abstractmethod
    def back(self, vector: np.ndarray, affine: Affine) -> np.ndarray:
        """Transposed transition applied to rows ``[B, n, size]``."""

    @abstractmethod
    def weights(self, observation: ObservationModel) -> Tensor:
        """C of one modality ``[predictors, size]``, with gradients."""

    @abstractmethod
    def companion(self) -> Tensor:
        """The part of the transition that is not the latent map ``[size, size]``."""

    def rows(self, observation: ObservationModel) -> np.ndarray:
        """C of one modality as a plain array ``[predictors, size]``."""
        return self.weights(observation).detach().numpy()

    def start(self, prior: ChainPrior) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance at the first step; the past is zero."""
        trials, dim = prior.initial_mean.shape
        mean, covariance = np.zeros((trials, self.size)), np.zeros((trials, self.size, self.size))
        mean[:, :dim] = prior.initial_mean
        covariance[:, :dim, :dim] = np.linalg.inv(prior.initial_precision)
        return mean, covariance


@dataclass(frozen=True)
class Affine:
    """The latent map around one state of each trial: z -> J z + b.

    Args:
        jacobian: J ``[B, M, M]``.
        offset: b ``[B, M]``, inputs included.
    """

    jacobian: np.ndarray
    offset: np.ndarray

    @classmethod
    def at(cls, prior: ChainPrior, z: np.ndarray, t: int) -> Affine:
        """The map from step t to t + 1 in the regions of states ``[B, M]``."""
        form = prior.form
        slope = (form.gates(z) > 0).astype(np.float64)
        if not slope.size:
            jacobian = np.tile(form.linear, (len(z), 1, 1))
            return cls(jacobian, form.bias + prior.drive[:, t])
        return cls(form.jacobian(slope), form.regional_bias(slope) + prior.drive[:, t])

    @classmethod
    def expected(
        cls, prior: ChainPrior, m: np.ndarray, p: np.ndarray, t: int
    ) -> tuple[Affine, np.ndarray]:
        """The best linear map from step t to t + 1 of states N(m, P), and what it leaves over.

        Args:
            prior: The latent prior.
            m: Means ``[B, M]``.
            p: Covariances ``[B, M, M]``.
            t: The step.

        Returns:
            The map, with the expected Jacobian, and the covariance of the rest ``[B, M, M]``.
        """
        form = prior.form
        maps = form.linear, form.bias, form.outer, form.inner, form.offset
        mean, jacobian, rest = propagate_moments(*maps, m, p)
        offset = mean - (jacobian @ m[..., None])[..., 0] + prior.drive[:, t]
        return cls(jacobian, offset), rest

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """J z + b for states ``[B, M]``."""
        return (self.jacobian @ z[..., None])[..., 0] + self.offset


class LagStates(AugmentedStates):
    """The last w + 1 latent states, newest first: exact for any observation with memory w.

    Args:
        model: The model.
        dt: Seconds per latent step.
    """

    def __init__(self, model: StateSpaceModel, dt: float) -> None:
        self.dim, self.dt = model.dim, dt
        self.lags = 1 + max(o.memory(dt) for o in model.observations.values())
        self.size = self.dim * self.lags

    def predict(
        self, mean: np.ndarray, covariance: np.ndarray, affine: Affine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shift the lags by one and put the new state in front."""
        m, kept = self.dim, self.size - self.dim
        ahead, spread = np.empty_like(mean), np.empty_like(covariance)
        ahead[:, m:], spread[:, m:, m:] = mean[:, :kept], covariance[:, :kept, :kept]
        ahead[:, :m] = affine(mean[:, :m])
        crossed = affine.jacobian @ covariance[:, :m]
        spread[:, :m, m:] = crossed[:, :, :kept]
        spread[:, m:, :m] = spread[:, :m, m:].swapaxes(1, 2)
        spread[:, :m, :m] = crossed[:, :, :m] @ affine.jacobian.swapaxes(1, 2)
        return ahead, spread

    def back(self, vector: np.ndarray, affine: Affine) -> np.ndarray:
        """Transposed shift."""
        m, kept = self.dim, self.size - self.dim
        out = np.zeros_like(vector)
        out[..., :kept] = vector[..., m:]
        out[..., :m] += vector[..., :m] @ affine.jacobian
        return out

    def weights(self, observation: ObservationModel) -> Tensor:
        """Weights of the lags, zeros for lags that the modality does not reach."""
        flat = observation.lag_weights(self.dt).flatten(1)
        return nn.functional.pad(flat, (0, self.size - flat.shape[1]))

    def companion(self) -> Tensor:
        """Every lag becomes the next one."""
        return torch.diag(torch.ones(self.size - self.dim, dtype=torch.float64), -self.dim)


class ResponseStates(AugmentedStates):
    r"""A few linear states per latent dimension and response (HRF) in place of its whole past.

    .. math:: s_t = A_h s_{t-1} + b_h z_{t-1}, \qquad (h * z)_t = c_h^\top s_t + d_h z_t

    Args:
        model: The model; observations with memory give their response by ``response(dt)``.
        dt: Seconds per latent step.
    """

    def __init__(self, model: StateSpaceModel, dt: float) -> None:
        self.dim, self.dt = model.dim, dt
        self.responses: dict[int, tuple[int, tuple]] = {}
        size = self.dim
        blocks = []
        for observation in model.observations.values():
            if observation.memory(dt):
                response = tuple(np.asarray(part) for part in observation.response(dt))
                self.responses[id(observation)] = (size, response)
                blocks.append((size, response))
                size += self.dim * len(response[1])
        self.size, eye = size, np.eye(self.dim)
        self.fixed = np.zeros((size, size))
        for first, (a, b, _, _) in blocks:
            part = slice(first, first + self.dim * len(b))
            self.fixed[part, part] = np.kron(a, eye)
            self.fixed[part, : self.dim] = np.kron(b[:, None], eye)

    def _transition(self, affine: Affine) -> np.ndarray:
        out = np.tile(self.fixed, (len(affine.offset), 1, 1))
        out[:, : self.dim, : self.dim] = affine.jacobian
        return out

    def predict(
        self, mean: np.ndarray, covariance: np.ndarray, affine: Affine
    ) -> tuple[np.ndarray, np.ndarray]:
        """One linear step."""
        g = self._transition(affine)
        ahead = (g @ mean[..., None])[..., 0]
        ahead[:, : self.dim] += affine.offset
        return ahead, g @ covariance @ g.swapaxes(1, 2)

    def back(self, vector: np.ndarray, affine: Affine) -> np.ndarray:
        """Transposed step."""
        return vector @ self._transition(affine)

    def weights(self, observation: ObservationModel) -> Tensor:
        """Weights of the latent state and of its responses."""
        weight = observation.weight
        if id(observation) not in self.responses:
            return nn.functional.pad(weight, (0, self.size - self.dim))
        first, (_, b, c, d) = self.responses[id(observation)]
        ends = self.size - first - self.dim * len(b)
        parts = [float(d) * weight, weight.new_zeros(len(weight), first - self.dim)]
        parts += [
            torch.kron(torch.from_numpy(c)[None], weight),
            weight.new_zeros(len(weight), ends),
        ]
        return torch.cat(parts, dim=1)

    def companion(self) -> Tensor:
        """The filters of the responses."""
        return torch.from_numpy(self.fixed)
