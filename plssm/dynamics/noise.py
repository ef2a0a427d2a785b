"""Gaussian noise as a part that dynamics are composed of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from plssm.dynamics._checks import checked, positive, write
from plssm.errors import PlssmError, ShapeError

__all__ = ["Diagonal", "Full", "Isotropic", "Noise", "make_noise", "noise_kind"]

_LOG_2PI = math.log(2.0 * math.pi)


class Noise(nn.Module, ABC):
    r"""Zero-mean Gaussian noise with a covariance that stays positive definite.

    .. math:: e \sim N(0, \Sigma)

    The unconstrained parameters are what optimisers move; `covariance` and `variance` are what
    users and closed-form updates read and set. The values come back as they were set up to
    rounding (relative error below 1e-14). Freeze with ``noise.requires_grad_(False)``.

    Args:
        dim: Number of components M.
    """

    kind: str

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = int(dim)

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Diagonal of the covariance [M]; assign to it to set it."""

    @variance.setter
    @abstractmethod
    def variance(self, value: Any) -> None: ...

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance [M, M]; assign to it to set it."""

    @covariance.setter
    @abstractmethod
    def covariance(self, value: Any) -> None: ...

    @property
    @abstractmethod
    def precision(self) -> Tensor:
        """Inverse covariance [M, M]."""

    @property
    @abstractmethod
    def logdet(self) -> Tensor:
        """Logarithm of the covariance's determinant, a scalar."""

    @abstractmethod
    def whiten(self, e: Tensor) -> Tensor:
        """Maps noise to unit noise: e [..., M] to [..., M] with covariance I."""

    @abstractmethod
    def colour(self, xi: Tensor) -> Tensor:
        """Maps unit noise to this noise: xi [..., M] to [..., M] with covariance Sigma."""

    @abstractmethod
    def _assign_moment(self, second_moment: Tensor, floor: float) -> None:
        """Sets the maximum-likelihood covariance for a second moment [M, M]."""

    @property
    def frozen(self) -> bool:
        """True when no parameter may be changed by a fit."""
        return not any(p.requires_grad for p in self.parameters())

    def log_prob(self, e: Tensor) -> Tensor:
        r"""Log-density of noise values.

        .. math:: -\tfrac12 (e^\top \Sigma^{-1} e + \log|\Sigma| + M \log 2\pi)

        Args:
            e: Noise values [..., M].

        Returns:
            Log-densities [...].
        """
        squares = self.whiten(e).square().sum(-1)
        return -0.5 * (squares + self.logdet + self.dim * _LOG_2PI)

    def sample(
        self, shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws noise values.

        Args:
            shape: Leading shape of the draw.
            generator: Source of randomness.

        Returns:
            Noise [*shape, M], differentiable in the parameters.
        """
        raw = next(self.parameters())
        xi = torch.randn(
            (*shape, self.dim), generator=generator, dtype=raw.dtype, device=raw.device
        )
        return self.colour(xi)

    def assign_moment(self, second_moment: Tensor, floor: float = 1e-5) -> None:
        """Sets the covariance in closed form from a mean second moment; nothing when frozen.

        This is the maximum of the expected log-density under the noise's own constraint: the
        diagonal part, the full matrix, or the mean variance.

        Args:
            second_moment: Mean of e e' [M, M].
            floor: Smallest variance (smallest eigenvalue for full noise).
        """
        if self.frozen:
            return
        moment = checked("second moment", second_moment, (self.dim, self.dim))
        self._assign_moment(0.5 * (moment + moment.T), floor)

    def __repr__(self) -> str:
        """Says the kind and the size."""
        return f"{type(self).__name__}({self.dim})"


class Diagonal(Noise):
    """Independent noise with one variance per component.

    Args:
        dim: Number of components M.
        variance: Initial variance, a number or [M].

    Example:
        >>> noise = Diagonal(2, variance=[1.0, 4.0])
        >>> noise.covariance.diagonal().tolist()
        [1.0, 4.0]
    """

    kind = "diagonal"

    def __init__(self, dim: int, *, variance: Any = 1.0) -> None:
        super().__init__(dim)
        self.log_variance = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.variance = variance

    @property
    def variance(self) -> Tensor:
        """Variances [M]; assign a number or [M]."""
        return self.log_variance.exp()

    @variance.setter
    def variance(self, value: Any) -> None:
        value = _per_component("variance", value, self.dim)
        write(self.log_variance, positive("variance", value).log())

    @property
    def covariance(self) -> Tensor:
        """Covariance [M, M]; assign a diagonal matrix."""
        return torch.diag(self.variance)

    @covariance.setter
    def covariance(self, value: Any) -> None:
        self.variance = _only_diagonal(value, self.dim)

    @property
    def precision(self) -> Tensor:
        """Inverse covariance [M, M]."""
        return torch.diag((-self.log_variance).exp())

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the covariance's determinant."""
        return self.log_variance.sum()

    def whiten(self, e: Tensor) -> Tensor:
        """Maps noise [..., M] to unit noise [..., M]."""
        return e * (-0.5 * self.log_variance).exp()

    def colour(self, xi: Tensor) -> Tensor:
        """Maps unit noise [..., M] to noise [..., M]."""
        return xi * (0.5 * self.log_variance).exp()

    def _assign_moment(self, second_moment: Tensor, floor: float) -> None:
        self.variance = second_moment.diagonal().clamp_min(floor)


class Isotropic(Noise):
    """Independent noise with one variance for all components.

    Args:
        dim: Number of components M.
        variance: Initial variance, a number.

    Example:
        >>> Isotropic(3, variance=4.0).variance.tolist()
        [4.0, 4.0, 4.0]
    """

    kind = "isotropic"

    def __init__(self, dim: int, *, variance: Any = 1.0) -> None:
        super().__init__(dim)
        self.log_variance = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.variance = variance

    @property
    def variance(self) -> Tensor:
        """Variances [M], all equal; assign a number or equal entries [M]."""
        return self.log_variance.exp().expand(self.dim)

    @variance.setter
    def variance(self, value: Any) -> None:
        value = _per_component("variance", value, self.dim)
        if not (value == value[0]).all():
            raise PlssmError("variance: isotropic noise has one variance, got different entries")
        write(self.log_variance, positive("variance", value)[0].log())

    @property
    def covariance(self) -> Tensor:
        """Covariance [M, M]; assign a multiple of the identity."""
        return torch.diag(self.variance)

    @covariance.setter
    def covariance(self, value: Any) -> None:
        self.variance = _only_diagonal(value, self.dim)

    @property
    def precision(self) -> Tensor:
        """Inverse covariance [M, M]."""
        return torch.diag((-self.log_variance).exp().expand(self.dim))

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the covariance's determinant."""
        return self.dim * self.log_variance

    def whiten(self, e: Tensor) -> Tensor:
        """Maps noise [..., M] to unit noise [..., M]."""
        return e * (-0.5 * self.log_variance).exp()

    def colour(self, xi: Tensor) -> Tensor:
        """Maps unit noise [..., M] to noise [..., M]."""
        return xi * (0.5 * self.log_variance).exp()

    def _assign_moment(self, second_moment: Tensor, floor: float) -> None:
        self.variance = second_moment.diagonal().mean().clamp_min(floor)


class Full(Noise):
    r"""Noise with any positive definite covariance, held as its Cholesky factor.

    .. math:: \Sigma = L L^\top, \quad L_{ii} = e^{\ell_{ii}}

    Args:
        dim: Number of components M.
        variance: Initial variances, a number or [M].

    Example:
        >>> noise = Full(2)
        >>> noise.covariance = [[2.0, 0.5], [0.5, 1.0]]
        >>> bool(abs(noise.covariance[0, 1] - 0.5) < 1e-15)
        True
    """

    kind = "full"

    def __init__(self, dim: int, *, variance: Any = 1.0) -> None:
        super().__init__(dim)
        self.log_factor = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))
        self.variance = variance

    @property
    def factor(self) -> Tensor:
        """Lower Cholesky factor L [M, M] of the covariance."""
        return self.log_factor.tril(-1) + torch.diag(self.log_factor.diagonal().exp())

    @property
    def variance(self) -> Tensor:
        """Variances [M]; assigning a number or [M] makes the covariance diagonal."""
        return self.factor.square().sum(-1)

    @variance.setter
    def variance(self, value: Any) -> None:
        value = positive("variance", _per_component("variance", value, self.dim))
        write(self.log_factor, torch.diag(0.5 * value.log()))

    @property
    def covariance(self) -> Tensor:
        """Covariance [M, M]; assign a symmetric positive definite matrix."""
        factor = self.factor
        return factor @ factor.T

    @covariance.setter
    def covariance(self, value: Any) -> None:
        value = checked("covariance", value, (self.dim, self.dim))
        scale = value.abs().max()
        if (value - value.T).abs().max() > 1e-8 * scale:
            raise PlssmError("covariance: must be symmetric")
        factor, status = torch.linalg.cholesky_ex(0.5 * (value + value.T))
        if int(status):
            raise PlssmError(
                "covariance: must be positive definite, the smallest eigenvalue is "
                f"{float(torch.linalg.eigvalsh(value)[0]):g}"
            )
        write(self.log_factor, factor.tril(-1) + torch.diag(factor.diagonal().log()))

    @property
    def precision(self) -> Tensor:
        """Inverse covariance [M, M]."""
        return torch.cholesky_inverse(self.factor)

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the covariance's determinant."""
        return 2.0 * self.log_factor.diagonal().sum()

    def whiten(self, e: Tensor) -> Tensor:
        """Maps noise [..., M] to unit noise [..., M]."""
        flat = torch.linalg.solve_triangular(self.factor, e.reshape(-1, self.dim).T, upper=False)
        return flat.T.reshape(e.shape)

    def colour(self, xi: Tensor) -> Tensor:
        """Maps unit noise [..., M] to noise [..., M]."""
        return xi @ self.factor.T

    def _assign_moment(self, second_moment: Tensor, floor: float) -> None:
        values, vectors = torch.linalg.eigh(second_moment)
        if values[0] < floor:
            second_moment = (vectors * values.clamp_min(floor)) @ vectors.T
        self.covariance = second_moment


_KINDS: dict[str, type[Noise]] = {c.kind: c for c in (Diagonal, Full, Isotropic)}


def make_noise(kind: str, dim: int) -> Noise:
    """Makes noise with unit variance.

    Args:
        kind: "diagonal", "full" or "isotropic".
        dim: Number of components M.

    Returns:
        The noise.

    Raises:
        PlssmError: If there is no such kind.
    """
    if kind not in _KINDS:
        raise PlssmError(f"noise: got {kind!r}, wanted one of {sorted(_KINDS)}")
    return _KINDS[kind](dim)


def noise_kind(name: str, value: Any, dim: int) -> str:
    """Says which kind of noise a given covariance is: a number, [M] or [M, M].

    Args:
        name: What the error message calls the value.
        value: The variance, variances or covariance.
        dim: Number of components M.

    Returns:
        "isotropic", "diagonal" or "full".

    Raises:
        ShapeError: If the shape is none of the three.
    """
    shape = tuple(checked(name, value).shape)
    kinds = {(): "isotropic", (dim,): "diagonal", (dim, dim): "full"}
    if shape not in kinds:
        raise ShapeError(f"{name}: got shape {shape}, wanted a number, ({dim},) or ({dim}, {dim})")
    return kinds[shape]


def _per_component(name: str, value: Any, dim: int) -> Tensor:
    """A number or [M] as [M]."""
    tensor = checked(name, value)
    return tensor.expand(dim).clone() if tensor.ndim == 0 else checked(name, tensor, (dim,))


def _only_diagonal(value: Any, dim: int) -> Tensor:
    """The diagonal [M] of a matrix that has nothing else."""
    matrix = checked("covariance", value, (dim, dim))
    if (matrix - torch.diag(matrix.diagonal())).abs().any():
        raise PlssmError(
            "covariance: this noise is diagonal, got non-zero off-diagonal entries; "
            "choose noise='full'"
        )
    return matrix.diagonal().clone()
