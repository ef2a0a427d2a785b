"""The log posterior density of a model's free parameters, through a differentiable filter."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from plssm.data import Dataset
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import working_copy
from plssm.inference.filter_form import check_propagation, filter_form
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.innovations import innovations
from plssm.inference.model_coordinates import ModelCoordinates
from plssm.inference.variational_start import rough_path
from plssm.model import StateSpaceModel

__all__ = ["FilterLikelihood", "Slope"]


class Slope(NamedTuple):
    """What the likelihood says at a point.

    Attributes:
        increments: log p(y_t | y_1..t-1) of all steps of all trials [N].
        likelihood: Gradient of their sum [P].
        prior: Gradient of the log prior [P].
        log_prior: The log prior, up to a constant.
    """

    increments: Tensor
    likelihood: Tensor
    prior: Tensor
    log_prior: float


class FilterLikelihood:
    r"""Log posterior density of a model's free parameters, through a Gaussian filter.

    .. math:: \sum_t \log p_\theta(y_t | y_{1:t-1}) - \tfrac{r}{2} \|W_\theta\|^2 - g(\theta)
        - \tfrac12 \|\sigma - \hat\sigma\|^2

    Coefficients that are regressions are in units of their Fisher information, everything else is
    in its own. g is the map's own regularizer. The last term is a unit prior on the parameters of
    the covariance of first states (logarithms of variances), where trials are fewer than 2M: the
    likelihood has no maximum in them then.

    Args:
        model: The model; a copy is taken.
        data: The training data.
        ridge: Precision r of the prior on the weights of the hinges.
        propagation: How the filter carries a state on (see :class:`FilterOptions`).
    """

    def __init__(
        self, model: StateSpaceModel, data: Dataset, *, ridge: float = 0.0,
        propagation: str = "linearised",
    ) -> None:  # fmt: skip
        self.model, self.batch, self.ridge = working_copy(model), data.batch(), ridge
        check_propagation("parameter_draws", model, propagation)
        self.propagation = propagation
        path = rough_path(self.model, data)
        self.coordinates = ModelCoordinates(self.model, self.batch, path)
        self.parts = [p for p in self.coordinates.parameters() if p.numel()]
        filtered = FilteredStates(self.model, self.batch, propagation=propagation)
        self.states, self.point = filtered.joined, None
        if not all(o.quadratic for o in self.model.observations.values()):
            filtered.refresh(self.model)
            self.point = filtered.point
        self.origin = self.vector()
        first = {id(p) for p in self.model.dynamics.initial.noise.parameters()}
        few = len(self.batch) < 2 * self.model.dim
        self._first = [few and id(p) in first for p in self.parts]

    def vector(self) -> Tensor:
        """All free parameters, one after the other [P]."""
        if not self.parts:
            raise CapabilityError(
                "the model has no free parameter, so there is no uncertainty about it; set "
                "requires_grad_(True) on what is not known"
            )
        return torch.cat([p.detach().flatten() for p in self.parts])

    @torch.no_grad()
    def move(self, point: Tensor) -> None:
        """Sets all free parameters.

        Args:
            point: Their values [P].
        """
        sizes = [p.numel() for p in self.parts]
        for part, values in zip(self.parts, point.split(sizes), strict=True):
            part.copy_(values.view_as(part))

    def model_at(self, point: Tensor) -> StateSpaceModel:
        """A model of its own with other values of the free parameters.

        Args:
            point: Their values [P].
        """
        self.move(point)
        self.coordinates.write()
        return copy.deepcopy(self.model)

    def increments(self, model: StateSpaceModel) -> Tensor:
        """The log-densities of all steps [N], with gradients.

        Args:
            model: The model that follows from the parameters (``coordinates.moving()``).
        """
        form = filter_form(model, self.batch, self.states, propagation=self.propagation)
        found = innovations(model, self.batch, self.states, form, point=self.point)
        return found.increment[self.batch.time_mask]

    def log_prior(self, model: StateSpaceModel) -> Tensor:
        """Log density of the parameters before the data, up to a constant.

        Args:
            model: The model that follows from the parameters.
        """
        value = self.ridge * self.coordinates.ridge() + model.dynamics.penalty()
        starts = self.origin.split([p.numel() for p in self.parts])
        for part, start, first in zip(self.parts, starts, self._first, strict=True):
            if first:
                value = value + 0.5 * (part.flatten() - start).square().sum()
        return -torch.as_tensor(value, dtype=torch.float64)

    def slope(self, point: Tensor) -> Slope:
        """Value and gradient.

        Args:
            point: Values of the free parameters [P].
        """
        self.move(point)
        model = self.coordinates.moving()
        each, prior = self.increments(model), self.log_prior(model)
        rise = self._gradient(each.sum())
        return Slope(each.detach(), rise, self._gradient(prior), float(prior.detach()))

    @torch.no_grad()
    def value(self, point: Tensor) -> float:
        """The log posterior density, up to a constant; -inf where the filter breaks down.

        Args:
            point: Values of the free parameters [P].
        """
        self.move(point)
        try:
            model = self.coordinates.moving()
            value = float(self.increments(model).sum() + self.log_prior(model))
        except (PlssmError, torch.linalg.LinAlgError):
            return -math.inf
        return value if math.isfinite(value) else -math.inf

    def _gradient(self, value: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(self.origin)
        found = torch.autograd.grad(value, self.parts, allow_unused=True)
        pairs = zip(found, self.parts, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
