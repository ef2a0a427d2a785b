"""The shallow PLRNN: one hidden layer of rectified units of any number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plssm.dynamics._checks import column_count, whole
from plssm.dynamics._known import diagonal, known
from plssm.dynamics._start_values import glorot, normalised_positive, same_every_time, uniform
from plssm.dynamics.hidden_layer import HiddenLayer
from plssm.dynamics.one_layer import OneLayerDynamics, check_centring, empty

__all__ = ["ShallowPLRNN"]


class ShallowPLRNN(OneLayerDynamics):
    r"""Shallow PLRNN: L hidden units that see combinations of the M states.

    .. math::
        z_t = A z_{t-1} + W_1 \left[\max(0, W_2 z_{t-1} + h_2) - \max(0, W_2 z_{t-1})\right]
              + h_1 + C s_t + \epsilon_t

    A is diagonal and given as a vector; without `clipped` the second maximum is absent. A clipped
    unit gives at most :math:`|h_2|`, so that orbits are bounded where max|A| < 1, whatever the
    weights are: in the long run :math:`|z_i| \le (|W_1|\,|h_2| + |h_1|)_i / (1 - |A_i|)` without
    inputs. Otherwise max|A| plus the product of the spectral norms of W1 and W2 below 1 is enough.
    A fresh model has the values of `draw_start`, the same in every process, and unit noise.

    Args:
        dim: Number of states M.
        hidden: Number of hidden units L.
        inputs: Number of inputs K.
        clipped: Whether max(0, W2 z) is subtracted. A clipped unit with h2 = 0 does nothing.
        mean_centered: Whether the units see z minus its mean over the states.
        noise: Process noise: "diagonal", "full" or "isotropic".
        initial: "shared" or "tied".
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 moves the mean of z_1.

    Example:
        >>> dynamics = ShallowPLRNN.from_parameters(
        ...     A=[0.5, 0.5], W1=[[2.0], [0.0]], W2=[[1.0, 1.0]], h1=[0.0, 1.0], h2=[1.0]
        ... )
        >>> dynamics.step(torch.tensor([2.0, -4.0], dtype=torch.float64)).tolist()
        [1.0, -1.0]
        >>> dynamics.step(torch.tensor([20.0, 4.0], dtype=torch.float64)).tolist()
        [12.0, 3.0]

    References:
        Hess, Monfared, Brenner & Durstewitz 2023, Generalized teacher forcing for learning chaotic
        dynamics, arXiv:2306.04406.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
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
            input_at_start=input_at_start,
        )  # fmt: skip
        self.hidden = whole("hidden", hidden, 1)
        self.clipped = bool(clipped)
        self.mean_centered = check_centring(mean_centered, self.dim)
        self.A = empty(self.dim)
        self.W1 = empty(self.dim, self.hidden)
        self.W2 = empty(self.hidden, self.dim)
        self.h1 = empty(self.dim)
        self.h2 = empty(self.hidden)
        self.draw_start(same_every_time())

    @classmethod
    def from_parameters(
        cls,
        A: Any,
        W1: Any,
        W2: Any,
        *,
        h1: Any = None,
        h2: Any = None,
        C: Any = None,
        clipped: bool = True,
        mean_centered: bool = False,
        **options: Any,
    ) -> ShallowPLRNN:
        """Makes a shallow PLRNN with known parameters.

        Args:
            A: Diagonal of the linear part [M].
            W1: Weights of the hidden units [M, L].
            W2: What the hidden units see [L, M].
            h1: Bias [M]; default zero.
            h2: Bias of the hidden units [L]; default zero.
            C: Input matrix [M, K]; default no inputs.
            clipped: Whether max(0, W2 z) is subtracted.
            mean_centered: Whether the units see z minus its mean over the states.
            **options: `process_noise`, `initial_mean`, `initial_noise`, `initial` and
                `input_at_start`, as for `PLRNN.from_parameters`.

        Returns:
            The dynamics, marked as initialised.

        Raises:
            ShapeError: If a shape does not fit.
            PlssmError: If a value is not finite or a variance is not positive.
        """
        A = diagonal(A)
        sizes = (len(A), column_count("W1", W1, len(A), "L"))
        values = {"A": A, "W1": W1, "W2": W2, "h1": h1, "h2": h2, "C": C}
        return known(cls, sizes, values, clipped=clipped, mean_centered=mean_centered, **options)

    def layer(self) -> HiddenLayer:
        """Returns the map without inputs; the kinks of W2 z are at -h2."""
        seen = self.W2 - self.W2.mean(1, keepdim=True) if self.mean_centered else self.W2
        return HiddenLayer(
            decay=self.A, outer=self.W1, bias=self.h1, inner=seen, thresholds=-self.h2[:, None],
            weights=self.A.new_ones(1), clipped=self.clipped,
        )  # fmt: skip

    def draw_start(self, generator: torch.Generator) -> None:
        """Draws the published start values; frozen parameters stay.

        A is the diagonal of a positive definite matrix with largest eigenvalue 1; W1 and W2 are
        uniform within 1/sqrt(L) and 1/sqrt(M), h2 within 1/sqrt(L) where the layer is clipped and
        otherwise 0; h1 = 0, and C is uniform with variance 2 / (M + K).
        """
        wide = self.hidden**-0.5
        self._write_free(
            A=normalised_positive(self.dim, generator).diagonal(),
            W1=uniform(self.dim, self.hidden, bound=wide, generator=generator),
            W2=uniform(self.hidden, self.dim, bound=self.dim**-0.5, generator=generator),
            h1=0.0,
            h2=uniform(self.hidden, bound=wide, generator=generator) if self.clipped else 0.0,
            C=glorot(self.dim, self.n_inputs, generator),
        )

    def regress_start(
        self, before: Tensor, after: Tensor, inputs: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Hidden units drawn, with kinks among the states; A, W1, h1 and C by ridge regression.

        Where one of the latter is frozen all of them keep the values of `draw_start`.

        Args:
            before: States [n, M].
            after: States one step later [n, M].
            inputs: Inputs of the step arrived at [n, K], or None.
            generator: Source of randomness.

        Returns:
            Mean squares of what is left [M].
        """
        self.draw_start(generator)
        with torch.no_grad():
            place = torch.randint(len(before), (self.hidden,), generator=generator)
            seen = self.layer().units(before)
            self._write_free(h2=-seen[place, torch.arange(self.hidden)])
            layer = self.layer()
            shared = [layer.activate(layer.units(before)), torch.ones_like(before[:, :1])]
            shared += [inputs.to(before)] if self.n_inputs and inputs is not None else []
            theta = _ridge_rows(before, torch.cat(shared, 1), after, self.hidden)
            values = {"A": theta[:, 0], "W1": theta[:, 1 : 1 + self.hidden]}
            values["h1"] = theta[:, 1 + self.hidden]
            if self.n_inputs and inputs is not None:
                values["C"] = theta[:, 2 + self.hidden :]
            if any(not self.get_parameter(name).requires_grad for name in values):
                return (after - self.step(before, inputs)).square().mean(0)
            if self.clipped:  # the others follow what A may be
                values["A"] = values["A"].clamp(-self.decay_limit, self.decay_limit)
                own = torch.zeros_like(before)
                theta = _ridge_rows(own, torch.cat(shared, 1), after - before * values["A"],
                                    self.hidden)  # fmt: skip
                values["W1"] = theta[:, 1 : 1 + self.hidden]
                values["h1"] = theta[:, 1 + self.hidden]
                if "C" in values:
                    values["C"] = theta[:, 2 + self.hidden :]
            self._write_free(**values)
            return (after - self.step(before, inputs)).square().mean(0)

    def _sizes(self) -> dict[str, int | bool]:
        return {"hidden": self.hidden, "clipped": self.clipped, **super()._sizes()}


RIDGE = 1e-3  # on weights of units, for states of unit variance, times the number of pairs


def _ridge_rows(own: Tensor, shared: Tensor, after: Tensor, units: int) -> Tensor:
    """Regression of each state on itself and on what all share, [M, 1 + shared]."""
    rows, scale = [], shared.square().mean().clamp_min(1e-12)
    for i in range(own.shape[1]):
        read = torch.cat([own[:, i : i + 1], shared], 1)
        ridge = torch.full((read.shape[1],), 1e-9, dtype=read.dtype)
        ridge[1 : 1 + units] = RIDGE
        gram = read.T @ read / len(read) + torch.diag(ridge * scale)
        rows.append(torch.linalg.solve(gram, read.T @ after[:, i] / len(read)))
    return torch.stack(rows)
