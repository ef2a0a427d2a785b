"""Linear dynamics, the reference every nonlinear model is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics._checks import checked, write
from plssm.dynamics._known import known
from plssm.dynamics._start_values import stable_start
from plssm.dynamics.base import PiecewiseLinear
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import ShapeError

__all__ = ["LinearDynamics"]


class LinearDynamics(PiecewiseLinear):
    r"""Linear dynamics with Gaussian noise.

    .. math:: z_t = A z_{t-1} + h + C s_t + \epsilon_t

    A fresh model has a stable random A (the same in every process), h = 0, C = 0 and unit noise.

    Args:
        dim: Number of states M.
        inputs: Number of inputs K.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.

    Example:
        >>> dynamics = LinearDynamics.from_parameters(A=[[0.5]], h=[1.0], process_noise=[0.1])
        >>> dynamics.step(torch.tensor([2.0], dtype=torch.float64)).item()
        2.0
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
    ) -> None:
        super().__init__(
            dim, inputs, noise=noise, initial=initial, initial_noise=initial_noise,
            input_at_start=input_at_start,
        )  # fmt: skip
        a, w = stable_start(self.dim)
        self.A = nn.Parameter(torch.diag(a) + w)
        self.h = nn.Parameter(torch.zeros(self.dim, dtype=torch.float64))

    @classmethod
    def from_parameters(
        cls,
        A: Any,
        h: Any = None,
        *,
        C: Any = None,
        process_noise: Any = 1.0,
        initial_mean: Any = None,
        initial_noise: Any = None,
        initial: str = "shared",
        input_at_start: bool = False,
    ) -> LinearDynamics:
        """Makes linear dynamics with known parameters.

        Args:
            A: Transition matrix [M, M].
            h: Bias [M]; default zero.
            C: Input matrix [M, K]; default no inputs.
            process_noise: Variance (a number), variances [M] or covariance [M, M].
            initial_mean: Mean of z_1 [M]; default zero.
            initial_noise: Like `process_noise`, for z_1; default the process noise.
            initial: "shared" or "tied".
            input_at_start: Whether s_1 moves the mean of z_1.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite or a variance is not positive.
        """
        A = checked("A", A)
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise ShapeError(f"A: got shape {tuple(A.shape)}, wanted (M, M)")
        return known(
            cls, A.shape[:1], {"A": A, "h": h, "C": C}, process_noise=process_noise,
            initial_mean=initial_mean, initial_noise=initial_noise, initial=initial,
            input_at_start=input_at_start,
        )  # fmt: skip

    def region(self, z: Tensor) -> Tensor:
        """Returns no bits: z [..., M] to bool [..., 0]."""
        return torch.zeros(*z.shape[:-1], 0, dtype=torch.bool, device=z.device)

    def affine(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """Returns A [..., M, M] and h [..., M] for every state."""
        batch = region.shape[:-1]
        return self.A.expand(*batch, -1, -1), self.h.expand(*batch, -1)

    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns A z + h + C s: z [..., M] and s [..., K] to [..., M]."""
        return z @ self.A.T + self.h + self.drive(s)

    def draw_start(self, generator: torch.Generator) -> None:
        """Draws a stable A, its diagonal in (0.5, 0.9) and small couplings; h = 0 and C = 0."""
        a, w = stable_start(self.dim, generator)
        self._write_free(A=torch.diag(a) + w, h=0.0, C=0.0)

    def relu_form(self) -> ReluForm:
        """Returns the map as a ReLU form without gates."""
        A, h, C = (p.detach().cpu().double().numpy() for p in (self.A, self.h, self.C))
        none = np.zeros((self.dim, 0))
        return ReluForm(A, h, none, none.T, np.zeros(0), C)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns [A, h, C] [M, M+1+K] and which entries are free."""
        blocks = (self.A, self.h[:, None], self.C)
        free = [torch.full(b.shape, b.requires_grad) for b in blocks]
        return torch.cat([b.detach() for b in blocks], dim=1), torch.cat(free, dim=1)

    def assign_coefficients(self, theta: Tensor) -> None:
        """Writes [A, h, C] [M, M+1+K]; frozen parameters stay as they are."""
        old, free = self.coefficients()
        theta = torch.where(free, checked("theta", theta, tuple(old.shape)).to(old), old)
        write(self.A, theta[:, : self.dim])
        write(self.h, theta[:, self.dim])
        write(self.C, theta[:, self.dim + 1 :])
