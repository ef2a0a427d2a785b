"""Read-outs: the regressors r(z) that the linear predictor of an observation model sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from plssm.errors import PlssmError, ShapeError
from plssm.kernels.gaussian_moments import relu_moments, relu_second_moments

__all__ = ["Identity", "Linear", "Readout", "Relu", "make_readout"]


class Readout(ABC):
    r"""Map from a latent state to the regressors of the linear predictor.

    .. math:: \eta = W \, r(z) + b + J n

    Attributes:
        name: The word by which a constructor selects the read-out.
        affine: Whether the predictor is affine in z.
        trainable: Whether the weight of the predictor is a free parameter.
    """

    name: ClassVar[str]
    affine: ClassVar[bool] = True
    trainable: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Regressors ``[..., M]`` at latent states ``[..., M]``."""

    def slope(self, z: Tensor) -> Tensor | None:
        """Derivative of each regressor ``[..., M]`` at z; None stands for ones."""
        return None

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the regressors under a Gaussian latent state.

        Args:
            mean: Latent mean ``[..., M]``.
            covariance: Latent covariance ``[..., M, M]``.

        Returns:
            E[r] ``[..., M]`` and Cov[r] ``[..., M, M]``.
        """
        return mean, covariance

    def start_weight(self, predictors: int, dim: int) -> Tensor:
        """Weight ``[predictors, M]`` of a fresh model, the same on every machine."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(predictors, dim, generator=generator, dtype=torch.float64)
        return weight / dim**0.5


class Linear(Readout):
    """Regressors are the latent states themselves."""

    name = "linear"

    def __call__(self, z: Tensor) -> Tensor:
        """Return z."""
        return z


class Identity(Readout):
    """The first N latent states are the predictors: the weight is fixed to [I 0]."""

    name = "identity"
    trainable = False

    def __call__(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def start_weight(self, predictors: int, dim: int) -> Tensor:
        """Weight [I 0] ``[predictors, M]``.

        Raises:
            ShapeError: When there are more predictors than latent states.
        """
        if predictors > dim:
            raise ShapeError(
                f"an identity read-out of {predictors} channels needs at least as many latent "
                f"states, got dim={dim}; use readout='linear' or a larger dim"
            )
        return torch.eye(predictors, dim, dtype=torch.float64)


class Relu(Readout):
    """Regressors are the rectified latent states max(0, z)."""

    name = "relu"
    affine = False

    def __call__(self, z: Tensor) -> Tensor:
        """Return max(0, z)."""
        return torch.relu(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return 1 where z > 0, else 0."""
        return (z > 0).to(z.dtype)

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean and covariance of rectified Gaussian variables (see the base class)."""
        dim = mean.shape[-1]
        flat_mean = mean.detach().reshape(-1, dim).to("cpu", torch.float64).contiguous().numpy()
        flat_cov = covariance.detach().reshape(-1, dim, dim).to("cpu", torch.float64)
        variance = torch.diagonal(flat_cov, dim1=-2, dim2=-1).contiguous().numpy()
        first, _ = relu_moments(flat_mean, variance)
        second = relu_second_moments(flat_mean, flat_cov.contiguous().numpy())
        first = torch.as_tensor(first).to(mean)
        second = torch.as_tensor(second).to(mean)
        centred = second - first[:, :, None] * first[:, None, :]
        return first.reshape(mean.shape), centred.reshape(covariance.shape)


def make_readout(name: str) -> Readout:
    """Read-out with the given name.

    Args:
        name: "linear", "relu" or "identity".

    Returns:
        The read-out.

    Raises:
        ValueError: For any other name.
    """
    known = {kind.name: kind for kind in (Linear, Relu, Identity)}
    if name not in known:
        raise PlssmError(f"unknown read-out {name!r}; choose one of {sorted(known)}")
    return known[name]()
