"""The piecewise-linear recurrent neural network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics._checks import checked, write
from plssm.dynamics._known import diagonal, known
from plssm.dynamics._start_values import glorot, normalised_positive, stable_start
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.one_layer import CoupledUnits
from plssm.dynamics.regularization import ManifoldAttractor

__all__ = ["PLRNN"]


class PLRNN(CoupledUnits):
    r"""Piecewise-linear recurrent neural network.

    .. math::
        z_t = A z_{t-1} + W \max(0, z_{t-1}) + h + C s_t + \epsilon_t

    A is diagonal and given as a vector; W has a zero diagonal. Orbits are bounded where
    max|A| + the spectral norm of W is below 1. A fresh model has stable random A
    in (0.5, 0.9) and small W (the same in every process), h = 0, C = 0 and unit noise.

    Args:
        dim: Number of states M.
        inputs: Number of inputs K.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.
        regularizer: Quadratic prior on A, W and h, or None.
        mean_centered: Whether the units see z minus its mean over the states,
            max(0, z - mean(z)).

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
        mean_centered: bool = False,
    ) -> None:
        super().__init__(
            dim, inputs, noise=noise, initial=initial, initial_noise=initial_noise,
            input_at_start=input_at_start, mean_centered=mean_centered,
        )  # fmt: skip
        if regularizer is not None:
            regularizer.rows(self.dim)  # refuses units that do not exist
        self.regularizer = regularizer
        a, w = stable_start(self.dim)
        self.A, self.W = nn.Parameter(a), nn.Parameter(w)
        self.h = nn.Parameter(torch.zeros(self.dim, dtype=torch.float64))

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
        mean_centered: bool = False,
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
            mean_centered: Whether the units see z minus its mean over the states.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite, a variance is not positive, or W has a non-zero
                diagonal.
        """
        A = diagonal(A)
        return known(
            cls, A.shape, {"A": A, "W": W, "h": h, "C": C}, process_noise=process_noise,
            initial_mean=initial_mean, initial_noise=initial_noise, initial=initial,
            input_at_start=input_at_start, regularizer=regularizer, mean_centered=mean_centered,
        )  # fmt: skip

    def layer(self) -> HiddenLayer:
        """Returns the map without inputs; one unit per state, its kink at zero."""
        zero = self.A.new_zeros(self.dim, 1)
        return HiddenLayer(
            decay=self.A, outer=self.couplings, bias=self.h, inner=self._seen(),
            thresholds=zero, weights=self.A.new_ones(1),
        )  # fmt: skip

    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns A z + W max(0, z) + h + C s: z [..., M] and s [..., K] to [..., M]."""
        seen = z - z.mean(-1, keepdim=True) if self.mean_centered else z
        return z * self.A + seen.clamp_min(0.0) @ self.couplings.T + self.h + self.drive(s)

    def draw_start(self, generator: torch.Generator) -> None:
        """Draws the published start values; frozen parameters stay.

        A + W is positive definite with largest eigenvalue 1, h = 0, and C is uniform with
        variance 2 / (M + K).
        """
        together = normalised_positive(self.dim, generator)
        self._write_free(
            A=together.diagonal(), W=together - torch.diag(together.diagonal()), h=0.0,
            C=glorot(self.dim, self.n_inputs, generator),
        )  # fmt: skip

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns [A, W, h, C] [M, 2M+1+K] and which entries are free.

        With centred units the columns of W belong to max(0, z - mean(z)).
        """
        dim, tensors = self.dim, (self.A, self.W, self.h, self.C)
        A, W, h, C = (p.detach().cpu().numpy() for p in tensors)
        theta = np.zeros((dim, 2 * dim + 1 + C.shape[1]), dtype=A.dtype)
        free, own = np.zeros(theta.shape, dtype=bool), np.arange(dim)
        theta[:, dim : 2 * dim], theta[:, 2 * dim], theta[:, 2 * dim + 1 :] = W, h, C
        theta[own, own], theta[own, dim + own] = A, 0.0
        free[own, own], free[:, dim : 2 * dim] = self.A.requires_grad, self.W.requires_grad
        free[own, dim + own], free[:, 2 * dim] = False, self.h.requires_grad
        free[:, 2 * dim + 1 :] = self.C.requires_grad
        device = self.A.device
        return torch.from_numpy(theta).to(device), torch.from_numpy(free).to(device)

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
