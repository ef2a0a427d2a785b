"""The dendritic PLRNN: every unit is a sum of hinges at thresholds of its own."""

from __future__ import annotations

from typing import Any

import torch

from plssm.dynamics._checks import column_count, whole
from plssm.dynamics._known import diagonal, known
from plssm.dynamics._start_values import glorot, normalised_positive, same_every_time, uniform
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.one_layer import CoupledUnits, empty

__all__ = ["DendriticPLRNN"]


class DendriticPLRNN(CoupledUnits):
    r"""PLRNN with dendritic units: B hinges per state instead of one.

    .. math::
        z_t = A z_{t-1} + W \Phi(z_{t-1}) + h + C s_t + \epsilon_t, \qquad
        \Phi_m(z) = \sum_{b=1}^B \alpha_b \left[\max(0, z_m - H_{mb}) - \max(0, z_m)\right]

    A is diagonal and given as a vector, W has a zero diagonal; without `clipped` the second
    maximum is absent. A clipped unit gives at most :math:`\phi_m = \sum_b |\alpha_b H_{mb}|`, so
    that orbits are bounded where max|A| < 1, whatever the weights are: in the long run
    :math:`|z_i| \le (|W| \phi + |h|)_i / (1 - |A_i|)` without inputs. Otherwise max|A| plus the
    spectral norm of W times the sum of |alpha| below 1 is enough. A fresh model has the values of
    `draw_start`, the same in every process, and unit noise.

    Args:
        dim: Number of states M.
        bases: Number of hinges per unit B.
        inputs: Number of inputs K.
        clipped: Whether max(0, z) is subtracted from every hinge.
        mean_centered: Whether the units see z minus its mean over the states.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.

    Example:
        >>> dynamics = DendriticPLRNN.from_parameters(
        ...     A=[0.5, 0.5], W=[[0.0, 1.0], [0.0, 0.0]], alpha=[1.0, -2.0],
        ...     thresholds=[[0.0, 0.0], [-1.0, 1.0]], clipped=False,
        ... )
        >>> dynamics.step(torch.tensor([2.0, 3.0], dtype=torch.float64)).tolist()
        [1.0, 1.5]

    References:
        Brenner et al. 2022, Tractable dendritic RNNs for reconstructing nonlinear dynamical
        systems, arXiv:2207.02542.
    """

    def __init__(
        self,
        dim: int,
        bases: int,
        inputs: int = 0,
        *,
        clipped: bool = True,
        mean_centered: bool = False,
        noise: str = "diagonal",
        initial: str = "shared",
        initial_noise: str = "diagonal",
        input_at_start: bool = False,
    ) -> None:
        super().__init__(
            dim, inputs, noise=noise, initial=initial, initial_noise=initial_noise,
            input_at_start=input_at_start, mean_centered=mean_centered,
        )  # fmt: skip
        self.bases = whole("bases", bases, 1)
        self.clipped = bool(clipped)
        self.A = empty(self.dim)
        self.W = empty(self.dim, self.dim)
        self.h = empty(self.dim)
        self.alpha = empty(self.bases)
        self.thresholds = empty(self.dim, self.bases)
        self.draw_start(same_every_time())

    @classmethod
    def from_parameters(
        cls,
        A: Any,
        W: Any,
        *,
        alpha: Any,
        thresholds: Any,
        h: Any = None,
        C: Any = None,
        clipped: bool = True,
        mean_centered: bool = False,
        **options: Any,
    ) -> DendriticPLRNN:
        """Makes a dendritic PLRNN with known parameters.

        Args:
            A: Diagonal of the linear part [M].
            W: Couplings [M, M] with zero diagonal.
            alpha: Weights of the hinges [B], shared by the units.
            thresholds: Kinks H of the hinges [M, B].
            h: Bias [M]; default zero.
            C: Input matrix [M, K]; default no inputs.
            clipped: Whether max(0, z) is subtracted from every hinge.
            mean_centered: Whether the units see z minus its mean over the states.
            **options: `process_noise`, `initial_mean`, `initial_noise`, `initial` and
                `input_at_start`, as for `PLRNN.from_parameters`.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite, a variance is not positive, or W has a non-zero
                diagonal.
        """
        A = diagonal(A)
        sizes = (len(A), column_count("thresholds", thresholds, len(A), "B"))
        values = {"A": A, "W": W, "h": h, "alpha": alpha, "thresholds": thresholds, "C": C}
        return known(cls, sizes, values, clipped=clipped, mean_centered=mean_centered, **options)

    def layer(self) -> HiddenLayer:
        """Returns the map without inputs; one unit per state."""
        return HiddenLayer(
            decay=self.A, outer=self.couplings, bias=self.h, inner=self._seen(),
            thresholds=self.thresholds, weights=self.alpha, clipped=self.clipped,
        )  # fmt: skip

    def draw_start(self, generator: torch.Generator) -> None:
        """Draws start values for states of about unit variance; frozen parameters stay.

        The published ones: A + W is positive definite with largest eigenvalue 1, alpha is uniform
        within 1/sqrt(B), h = 0, and C is uniform with variance 2 / (M + K). Thresholds are uniform
        on (-2, 2), where standardised data lie.
        """
        together = normalised_positive(self.dim, generator)
        self._write_free(
            A=together.diagonal(),
            W=together - torch.diag(together.diagonal()),
            h=0.0,
            alpha=uniform(self.bases, bound=self.bases**-0.5, generator=generator),
            thresholds=uniform(self.dim, self.bases, bound=2.0, generator=generator),
            C=glorot(self.dim, self.n_inputs, generator),
        )

    def _sizes(self) -> dict[str, int | bool]:
        return {"bases": self.bases, "clipped": self.clipped, **super()._sizes()}
