"""The piecewise-linear recurrent neural network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics._checks import checked, input_count, write
from plssm.dynamics._known import assign_known, noise_options
from plssm.dynamics._start_values import stable_start
from plssm.dynamics.base import PiecewiseLinear
from plssm.dynamics.regularization import ManifoldAttractor
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import PlssmError, ShapeError

__all__ = ["PLRNN"]


class PLRNN(PiecewiseLinear):
    r"""Piecewise-linear recurrent neural network.

    .. math::
        z_t = A z_{t-1} + W \max(0, z_{t-1}) + h + C s_t + \epsilon_t

    A is diagonal and given as a vector; W has a zero diagonal. A fresh model has stable random A
    in (0.5, 0.9) and small W (the same in every process), h = 0, C = 0 and unit noise.

    Args:
        dim: Number of states M.
        inputs: Number of inputs K.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.
        regularizer: Quadratic prior on A, W and h, or None.

    Example:
        >>> dynamics = PLRNN.from_parameters(
        ...     A=[0.5, 0.5], W=[[0.0, 1.0], [0.0, 0.0]], h=[0.0, 1.0], process_noise=[0.1, 0.1]
        ... )
        >>> dynamics.step(torch.tensor([2.0, -4.0], dtype=torch.float64)).tolist()
        [1.0, -1.0]

    References:
        Durstewitz 2017, A state space approach for piecewise-linear recurrent neural networks,
        doi:10.1371/journal.pcbi.1005542; Koppe et al. 2019, doi:10.1371/journal.pcbi.1007263.
    """

    _coupled: Tensor

    def __init__(
        self,
        dim: int,
        inputs: int = 0,
        *,
        noise: str = "diagonal",
        initial: str = "shared",
        initial_noise: str = "diagonal",
        input_at_start: bool = False,
        regularizer: ManifoldAttractor | None = None,
    ) -> None:
        super().__init__(
            dim, inputs, noise=noise, initial=initial, initial_noise=initial_noise,
            input_at_start=input_at_start,
        )  # fmt: skip
        if regularizer is not None:
            regularizer.rows(self.dim)  # refuses units that do not exist
        self.regularizer = regularizer
        a, w = stable_start(self.dim)
        self.A, self.W = nn.Parameter(a), nn.Parameter(w)
        self.h = nn.Parameter(torch.zeros(self.dim, dtype=torch.float64))
        self.register_buffer("_coupled", ~torch.eye(self.dim, dtype=torch.bool), persistent=False)

    @classmethod
    def from_parameters(
        cls,
        A: Any,
        W: Any,
        *,
        h: Any = None,
        C: Any = None,
        process_noise: Any = 1.0,
        initial_mean: Any = None,
        initial_noise: Any = None,
        initial: str = "shared",
        input_at_start: bool = False,
        regularizer: ManifoldAttractor | None = None,
    ) -> PLRNN:
        """Makes a PLRNN with known parameters.

        Args:
            A: Diagonal of the linear part [M].
            W: Couplings [M, M] with zero diagonal.
            h: Bias [M]; default zero.
            C: Input matrix [M, K]; default no inputs.
            process_noise: Variance (a number), variances [M] or covariance [M, M].
            initial_mean: Mean of z_1 [M]; default zero.
            initial_noise: Like `process_noise`, for z_1; default the process noise.
            initial: "shared" or "tied".
            input_at_start: Whether s_1 moves the mean of z_1.
            regularizer: Quadratic prior on A, W and h, or None.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite, a variance is not positive, or W has a non-zero
                diagonal.
        """
        A = checked("A", A)
        if A.ndim != 1:
            raise ShapeError(
                f"A: got shape {tuple(A.shape)}, wanted (M,); A is diagonal, give its diagonal"
            )
        dim = A.shape[0]
        self = cls(
            dim, input_count(C, dim), initial=initial, input_at_start=input_at_start,
            regularizer=regularizer, **noise_options(dim, process_noise, initial_noise),
        )  # fmt: skip
        assign_known(
            self, {"A": A, "W": W, "h": h, "C": C}, process_noise=process_noise,
            initial_mean=initial_mean, initial_noise=initial_noise,
        )  # fmt: skip
        return self

    def check_parameter(self, name: str, value: Tensor) -> None:
        """Refuses a non-zero diagonal of W.

        Raises:
            PlssmError: If W [M, M] has one.
        """
        if name == "W" and value.diagonal().any():
            raise PlssmError(
                "W: the diagonal must be zero, got "
                f"{[round(x, 6) for x in value.diagonal().tolist()]}; it acts on max(0, z) only, "
                "so move self-couplings to A (add the diagonal of W to A)"
            )

    @property
    def couplings(self) -> Tensor:
        """W [M, M] as it acts: without a diagonal, so that no gradient can give it one."""
        return self.W * self._coupled

    def region(self, z: Tensor) -> Tensor:
        """Returns which units are positive: z [..., M] to bool [..., M]."""
        return z > 0

    def affine(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the affine map of each region.

        Args:
            region: Gates [..., M], boolean or any number between 0 and 1.

        Returns:
            J = A + W diag(region) [..., M, M] and h [..., M].
        """
        gates = region.to(self.W.dtype)[..., None, :]
        return torch.diag(self.A) + self.couplings * gates, self.h.expand(*region.shape[:-1], -1)

    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns A z + W max(0, z) + h + C s: z [..., M] and s [..., K] to [..., M]."""
        return z * self.A + z.clamp_min(0.0) @ self.couplings.T + self.h + self.drive(s)

    def relu_form(self) -> ReluForm:
        """Returns the map as ReLU gates on the states themselves."""
        tensors = (self.A, self.W, self.h, self.C)
        A, W, h, C = (p.detach().cpu().double().numpy() for p in tensors)
        W = W * self._coupled.cpu().numpy()
        return ReluForm(np.diag(A), h, W, np.eye(self.dim), np.zeros(self.dim), C)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns [A, W, h, C] [M, 2M+1+K] and which entries are free."""
        dim, tensors = self.dim, (self.A, self.W, self.h, self.C)
        A, W, h, C = (p.detach().cpu().numpy() for p in tensors)
        theta = np.zeros((dim, 2 * dim + 1 + C.shape[1]), dtype=A.dtype)
        free, own = np.zeros(theta.shape, dtype=bool), np.arange(dim)
        theta[:, dim : 2 * dim], theta[:, 2 * dim], theta[:, 2 * dim + 1 :] = W, h, C
        theta[own, own], theta[own, dim + own] = A, 0.0
        free[own, own], free[:, dim : 2 * dim] = self.A.requires_grad, self.W.requires_grad
        free[own, dim + own], free[:, 2 * dim] = False, self.h.requires_grad
        free[:, 2 * dim + 1 :] = self.C.requires_grad
        return tuple(torch.from_numpy(x).to(self.A.device) for x in (theta, free))

    def assign_coefficients(self, theta: Tensor) -> None:
        """Writes [A, W, h, C] [M, 2M+1+K]; structural zeros and frozen parameters stay."""
        dim = self.dim
        old, free = self.coefficients()
        theta = torch.where(free, checked("theta", theta, tuple(old.shape)).to(old), old)
        write(self.A, theta[:, :dim].diagonal())
        write(self.W, theta[:, dim : 2 * dim])
        write(self.h, theta[:, 2 * dim])
        write(self.C, theta[:, 2 * dim + 1 :])

    def prior(self) -> tuple[Tensor, Tensor] | None:
        """Returns weights and targets [M, 2M+1+K] of the regulariser, or None."""
        if self.regularizer is None:
            return None
        weight, target = self.regularizer.quadratic(dim=self.dim, inputs=self.n_inputs)
        return weight.to(self.C), target.to(self.C)

    def penalty(self) -> Tensor:
        """Returns the regulariser's penalty, a scalar to subtract from an objective."""
        prior = self.prior()
        if prior is None:
            return super().penalty()
        blocks = (torch.diag(self.A), self.couplings, self.h[:, None], self.C)
        weight, target = prior
        return 0.5 * (weight * (torch.cat(blocks, dim=1) - target).square()).sum()
