"""Newton steps in parameters that every channel has for itself, such as a dispersion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plssm.errors import PlssmError
from plssm.observations.learning.expectation import Expansion, Expectation
from plssm.observations.learning.newton_fit import climb

__all__ = ["belong_to_channels", "fit_channel_parameters"]


def belong_to_channels(expectation: Expectation, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether every parameter has one row for each channel, and channels are independent."""
    model = expectation.model
    return not model.coupled and all(
        p.ndim >= 1 and p.shape[0] == model.channels for p in parameters
    )


def fit_channel_parameters(
    expectation: Expectation,
    parameters: Sequence[nn.Parameter],
    *,
    tolerance: float = 1e-4,
    iterations: int = 15,
) -> float:
    """Raise an expectation over parameters of the channels, in place, with the predictors held.

    Values, gradients and curvatures of all channels come from automatic differentiation, which
    takes one pass for each number that a channel has.

    Args:
        expectation: The expected log-likelihood.
        parameters: Parameters ``[N, ...]`` of which channel i has row i.
        tolerance: Relative gradient at which a channel is settled.
        iterations: Largest number of trials.

    Returns:
        By how much the expectation rose; the parameters are as before where it would not.
    """
    problem = _ChannelProblem(expectation, parameters)
    start = problem.read()
    end = climb(
        problem,
        start,
        free=torch.ones_like(start, dtype=torch.bool),
        ridge=torch.zeros_like(start),
        count=expectation.count,
        tolerance=tolerance,
        iterations=iterations,
    )
    moved = torch.isfinite(end.first) & (end.value > end.first)
    problem.write(torch.where(moved[:, None], end.theta, start))
    gain = float(problem(problem.read(), curvature=None).value.sum() - end.first.sum())
    if gain > 0:
        return gain
    problem.write(start)
    return 0.0


class _ChannelProblem:
    """The expectation of every channel as a function of its own parameters ``[N, J]``."""

    def __init__(self, expectation: Expectation, parameters: Sequence[nn.Parameter]) -> None:
        self.expectation, self.parameters = expectation, list(parameters)
        self.theta = expectation.coefficients.read().detach()

    def read(self) -> Tensor:
        """Parameters ``[N, J]``."""
        return self._rows(p.detach() for p in self.parameters)

    def write(self, values: Tensor) -> None:
        """Set the parameters."""
        widths = [p[0].numel() for p in self.parameters]
        with torch.no_grad():
            for p, columns in zip(self.parameters, values.split(widths, dim=1), strict=True):
                p.copy_(columns.reshape(p.shape))

    @staticmethod
    def _rows(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([v.flatten(1) if v.ndim > 1 else v[:, None] for v in values], dim=1)

    def __call__(self, values: Tensor, *, curvature: bool | None) -> Expansion:
        """Values, gradients and curvatures; with None only values, with False no curvatures."""
        self.write(values)
        parts = range(self.expectation.parts)
        try:
            found = [self._part(part, curvature) for part in parts]
        except PlssmError:
            raise
        except ValueError:  # a distribution refused its arguments: far outside
            found = [Expansion(values[:, 0] * torch.nan, values, torch.diag_embed(values))]
        return Expansion(*(None if x[0] is None else sum(x) for x in zip(*found, strict=True)))

    def _part(self, part: int, curvature: bool | None) -> Expansion:
        with torch.set_grad_enabled(curvature is not None):
            weights, eta, m = self.expectation.features(self.theta, part)
            density = self.expectation.model.masked_log_prob(eta, m)
            value = torch.tensordot(weights, density, dims=1).sum((0, 1))
        plain = value.detach().to("cpu", torch.float64)
        if curvature is None or not value.requires_grad:
            nothing = torch.zeros(len(plain), self._width, dtype=torch.float64)
            return Expansion(plain, nothing, torch.diag_embed(nothing) if curvature else None)
        gradient = self._rows(self._derivative(value.sum(), curvature))
        if not curvature:
            return Expansion(plain, gradient.detach().to("cpu", torch.float64), None)
        rows = [self._rows(self._derivative(g.sum(), True)) for g in gradient.unbind(1)]
        hessian = torch.stack(rows, dim=1).detach().to("cpu", torch.float64)
        gradient = gradient.detach().to("cpu", torch.float64)
        return Expansion(plain, gradient, -0.5 * (hessian + hessian.mT))

    @property
    def _width(self) -> int:
        return sum(p[0].numel() for p in self.parameters)

    def _derivative(self, value: Tensor, again: bool) -> list[Tensor]:
        """Derivatives of a sum in every parameter, zero where it does not depend on them."""
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in self.parameters]
        found = torch.autograd.grad(
            value, self.parameters, create_graph=again, retain_graph=again, allow_unused=True
        )
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found)]
