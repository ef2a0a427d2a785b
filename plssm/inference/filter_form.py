"""A model as the differentiable filter takes it: map, noise, first states, terms of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import LatentDynamics, LinearDynamics, OneLayerDynamics
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.augmented_states import AugmentedStates
from plssm.inference.filter_options import CHOICES
from plssm.kernels.innovation_filter import FilterPass, Hinges, filter_plain, innovation_filter
from plssm.model import StateSpaceModel

__all__ = ["PROPAGATIONS", "FilterForm", "check_propagation", "filter_form", "hinges_of"]

PROPAGATIONS = CHOICES["propagation"]


@dataclass(frozen=True)
class FilterForm:
    """The prior of a batch of trials on joined states, in tensors that follow the parameters.

    Args:
        step: The map of the joined states: :class:`Hinges`, or a function of states and step.
        noise: Process noise [D, D], singular where states carry the past along.
        first_mean: [B, D], of the first state before its data.
        first_covariance: [B, D, D].
        drive: What inputs add [B, T, D].
        length: Steps of each trial [B].
        matched: Whether the moments of the map's values are carried exactly.
    """

    step: Hinges | Callable[[Tensor, int], tuple[Tensor, Tensor]]
    noise: Tensor
    first_mean: Tensor
    first_covariance: Tensor
    drive: Tensor
    length: Tensor
    matched: bool = False

    def run(
        self, score: Tensor, information: Tensor, *, updates: Tensor | None = None,
        third: Tensor | None = None,
    ) -> FilterPass:  # fmt: skip
        """The filter's run through terms of the data (see :func:`filter_plain`)."""
        compiled = isinstance(self.step, Hinges) and score.device.type == "cpu"
        return (innovation_filter if compiled else filter_plain)(
            self.step, self.noise, self.first_mean, self.first_covariance, score, information,
            self.drive, length=self.length, updates=updates, third=third, matched=self.matched,
        )  # fmt: skip

    def started(self, mean: Tensor, covariance: Tensor, known: Tensor) -> FilterForm:
        """The form with other first states where they are known.

        Args:
            mean: [B, D].
            covariance: [D, D] or [B, D, D].
            known: bool [B].
        """
        return replace(
            self,
            first_mean=torch.where(known[:, None], mean, self.first_mean),
            first_covariance=torch.where(known[:, None, None], covariance, self.first_covariance),
        )


def hinges_of(dynamics: LatentDynamics) -> Hinges | None:
    """The map as one layer of hinges, with gradients; None where its class does not say it."""
    if isinstance(dynamics, LinearDynamics):
        m = dynamics.dim
        empty = dynamics.A.new_zeros(m, 0)
        return Hinges(dynamics.A, dynamics.h, empty, empty.T, empty[0])
    if not isinstance(dynamics, OneLayerDynamics):
        return None
    layer = dynamics.layer()
    linear = layer.linear_units
    seen = torch.eye(dynamics.dim).to(layer.decay) if layer.inner is None else layer.inner
    kinks, weights = layer.hinges()
    outer = (layer.outer[:, linear:, None] * weights).flatten(1)
    inner = seen[linear:].repeat_interleave(kinks.shape[1], 0)
    matrix = torch.diag(layer.decay) + layer.outer[:, :linear] @ seen[:linear]
    return Hinges(matrix, layer.bias, outer, inner, -kinks.flatten())


def check_propagation(who: str, model: StateSpaceModel, propagation: str) -> None:
    """Refuse unknown ways of carrying a state on, and moments of maps that are not known.

    Args:
        who: Who was asked.
        model: The model.
        propagation: "linearised" or "moments" (see :class:`FilterOptions`).

    Raises:
        PlssmError: If it is neither.
        CapabilityError: If the map is not one layer of hinges.
    """
    if propagation not in PROPAGATIONS:
        raise PlssmError(f"{who}: propagation is {propagation!r}, wanted one of {PROPAGATIONS}.")
    if propagation == "moments" and hinges_of(model.dynamics) is None:
        raise CapabilityError(
            f"{who}: propagation='moments' needs a map that is one layer of hinges, "
            f"{type(model.dynamics).__name__} is not; use propagation='linearised'."
        )


def filter_form(
    model: StateSpaceModel, batch: Batch, states: AugmentedStates, *,
    propagation: str = "linearised",
) -> FilterForm:  # fmt: skip
    """The prior of a batch on joined states.

    Args:
        model: The model; gradients follow its parameters.
        batch: The trials.
        states: What the states carry along.
        propagation: "linearised" or "moments" (see :class:`FilterOptions`); a map without hinges
            is linearised, which is exact if it is linear (:func:`check_propagation` refuses
            others).
    """
    dynamics, trials, size = model.dynamics, len(batch), states.size
    initial, inputs = dynamics.initial, batch.inputs if dynamics.n_inputs else None
    mean = dynamics.first_mean(inputs).expand(trials, model.dim)
    hinges, companion = hinges_of(dynamics), states.companion().to(mean)
    drive = mean.new_zeros(trials, batch.steps, size)
    if inputs is not None and hinges is not None:
        drive = _padded(dynamics.drive(inputs), size)
    wide = size > model.dim
    step = _Stepper(dynamics, None if hinges is not None else inputs, companion if wide else None)
    if hinges is not None:
        step = _joined(hinges, companion) if wide else hinges
    covariance = _padded(initial.noise.covariance, size, both=True)
    return FilterForm(
        step, _padded(dynamics.noise.covariance, size, both=True), _padded(mean, size),
        covariance.expand(trials, size, size), drive, batch.length,
        propagation == "moments" and hinges is not None and len(hinges.offset) > 0,
    )  # fmt: skip


def _padded(values: Tensor, size: int, *, both: bool = False) -> Tensor:
    """Zeros behind the last axis, or the last two."""
    more = size - values.shape[-1]
    return torch.nn.functional.pad(values, (0, more, 0, more) if both else (0, more))


def _joined(hinges: Hinges, companion: Tensor) -> Hinges:
    """The map of the latent states in front, linear memory behind."""
    size = len(companion)
    rows = size - len(hinges.bias)
    return Hinges(
        companion + _padded(hinges.linear, size, both=True),
        _padded(hinges.bias, size),
        torch.nn.functional.pad(hinges.outer, (0, 0, 0, rows)),
        _padded(hinges.inner, size),
        hinges.offset,
    )


@dataclass(frozen=True)
class _Stepper:
    """Any map, by its own step and Jacobian."""

    dynamics: LatentDynamics
    inputs: Tensor | None
    companion: Tensor | None

    def __call__(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = z[:, : self.dynamics.dim]
        s = None if self.inputs is None else self.inputs[:, t]
        after, jacobian = self.dynamics.step(state, s), self.dynamics.jacobian(state, s)
        if self.companion is None:
            return after, jacobian
        size = z.shape[1]
        matrix = self.companion + _padded(jacobian, size, both=True)
        return z @ self.companion.T + _padded(after, size), matrix
