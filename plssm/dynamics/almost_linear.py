"""The almost-linear RNN: linear but for a few rectified units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plssm.dynamics._checks import checked, whole, write
from plssm.dynamics._known import diagonal, known
from plssm.dynamics._start_values import glorot, normalised_positive, same_every_time
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.one_layer import OneLayerDynamics, empty

__all__ = ["AlmostLinearRNN"]


class AlmostLinearRNN(OneLayerDynamics):
    r"""Almost-linear RNN: the last P of the M units are rectified, the others linear.

    .. math::
        z_t = A z_{t-1} + W \Phi(z_{t-1}) + h + C s_t + \epsilon_t, \qquad
        \Phi(z) = (z_1, \dots, z_{M-P}, \max(0, z_{M-P+1}), \dots, \max(0, z_M))

    A is diagonal and given as a vector; W is full, with its diagonal. There are 2^P linear
    regions, named by the signs of the last P states (`region`). Only the sum of A and the diagonal
    of W acts on a linear unit. Orbits are bounded where max|A| + the spectral norm of W is
    below 1. A fresh model has the values of `draw_start`, the same in every process, and unit
    noise.

    Args:
        dim: Number of states M.
        relu_units: Number of rectified units P, from 0 to M.
        inputs: Number of inputs K.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.

    Example:
        >>> dynamics = AlmostLinearRNN.from_parameters(
        ...     A=[0.5, 0.5], W=[[0.0, 1.0], [1.0, 0.0]], relu_units=1
        ... )
        >>> dynamics.step(torch.tensor([-2.0, -4.0], dtype=torch.float64)).tolist()
        [-1.0, -4.0]

    References:
        Brenner et al. 2024, Almost-linear RNNs yield highly interpretable symbolic codes in
        dynamical systems reconstruction, arXiv:2410.14240.
    """

    def __init__(
        self,
        dim: int,
        relu_units: int,
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
        self.relu_units = whole("relu_units", relu_units, 0, self.dim)
        self.A = empty(self.dim)
        self.W = empty(self.dim, self.dim)
        self.h = empty(self.dim)
        self.draw_start(same_every_time())

    @classmethod
    def from_parameters(
        cls, A: Any, W: Any, *, relu_units: int, h: Any = None, C: Any = None, **options: Any
    ) -> AlmostLinearRNN:
        """Makes an almost-linear RNN with known parameters.

        Args:
            A: Diagonal of the linear part [M].
            W: Weights of the units [M, M].
            relu_units: Number of rectified units P, the last ones.
            h: Bias [M]; default zero.
            C: Input matrix [M, K]; default no inputs.
            **options: `process_noise`, `initial_mean`, `initial_noise`, `initial` and
                `input_at_start`, as for `PLRNN.from_parameters`.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite, a variance is not positive, or `relu_units` is
                not a whole number from 0 to M.
        """
        A = diagonal(A)
        return known(cls, (len(A), relu_units), {"A": A, "W": W, "h": h, "C": C}, **options)

    def layer(self) -> HiddenLayer:
        """Returns the map without inputs; one unit per state, the first ones linear."""
        return HiddenLayer(
            decay=self.A, outer=self.W, bias=self.h, inner=None,
            thresholds=self.A.new_zeros(self.dim, 1), weights=self.A.new_ones(1),
            linear_units=self._linear,
        )  # fmt: skip

    def draw_start(self, generator: torch.Generator) -> None:
        """Draws the published start values; frozen parameters stay.

        A is the diagonal of a positive definite matrix with largest eigenvalue 1, W is normal with
        standard deviation 0.01, h = 0, and C is uniform with variance 2 / (M + K).
        """
        decay = normalised_positive(self.dim, generator).diagonal()
        weights = torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64)
        C = glorot(self.dim, self.n_inputs, generator)
        self._write_free(A=decay, W=0.01 * weights, h=0.0, C=C)

    # ---- closed-form update -------------------------------------------------------------------
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns [L, O, h, C] [M, M+P+1+K] and which entries are free.

        L is diag(A) with the columns of W that belong to linear units added, O the columns of the
        rectified ones. The entries of L that only A has are its diagonal.
        """
        linear, width = self._linear, self.dim + self.relu_units
        A, W, h, C = (p.detach() for p in (self.A, self.W, self.h, self.C))
        merged = torch.diag(A)
        merged[:, :linear] += W[:, :linear]
        theta = torch.cat([merged, W[:, linear:], h[:, None], C], dim=1)
        free = torch.zeros(theta.shape, dtype=torch.bool, device=theta.device)
        free[:, : self.dim].diagonal().fill_(self.A.requires_grad)
        if self.W.requires_grad:
            free[:, :linear] = free[:, self.dim : width] = True
        free[:, width] = self.h.requires_grad
        free[:, width + 1 :] = self.C.requires_grad
        return theta, free

    def assign_coefficients(self, theta: Tensor) -> None:
        """Writes [L, O, h, C] [M, M+P+1+K]; structural zeros and frozen parameters stay.

        The diagonal of L belongs to A and W together where a unit is linear: W takes the change,
        or A where W is frozen.
        """
        linear, width = self._linear, self.dim + self.relu_units
        old, free = self.coefficients()
        theta = torch.where(free, checked("theta", theta, tuple(old.shape)).to(old), old)
        merged, both = theta[:, : self.dim], torch.arange(self.dim, device=theta.device) < linear
        decay, W = self.A.detach().clone(), self.W.detach()
        if self.W.requires_grad:
            decay = torch.where(both, decay, merged.diagonal())
            kept = merged[:, :linear] - torch.diag(decay)[:, :linear]
            W = torch.cat([kept, theta[:, self.dim : width]], dim=1)
        elif self.A.requires_grad:
            decay = merged.diagonal() - torch.where(both, W.diagonal(), 0.0)
        write(self.A, decay)
        write(self.W, W)
        write(self.h, theta[:, width])
        write(self.C, theta[:, width + 1 :])

    @property
    def _linear(self) -> int:
        """Number of linear units M - P."""
        return self.dim - self.relu_units

    def _sizes(self) -> dict[str, int | bool]:
        return {"relu_units": self.relu_units}
