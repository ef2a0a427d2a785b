"""A model on its way through a training by gradients: what moves, and in which units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.inference.fisher_coordinates import (
    FisherCoordinates,
    MapCoordinates,
    ReadoutCoordinates,
    applied,
)
from plssm.model import StateSpaceModel

__all__ = ["ModelCoordinates"]


class ModelCoordinates:
    """A model's free parameters, regressions among them in units of their Fisher information.

    Args:
        model: The model; :meth:`write` changes it in place.
        batch: Training trials.
        path: A rough path [B, T, M] along which the information is taken; None leaves all
            parameters in their own units.
        noise: Variances of the process noise [M] in that information; None takes the map's.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        batch: Batch,
        path: Tensor | None,
        noise: Tensor | None = None,
    ) -> None:
        self.model = model
        self.parts = {} if path is None else _parts(model, batch, path, noise)

    def parameters(self) -> Sequence[nn.Parameter]:
        """What an optimiser moves."""
        mine = {id(p): p for p in self.model.parameters() if p.requires_grad}
        for name, part in self.parts.items():
            for held in part.replaced(self.model.get_submodule(name)):
                del mine[held]
        mine |= {id(part.values): part.values for part in self.parts.values()}
        return list(mine.values())

    def moving(self) -> StateSpaceModel:
        """The model whose parts follow from what is moved, with gradients."""
        return applied(self.model, self.parts) if self.parts else self.model

    def write(self) -> None:
        """Writes the coordinates into the model."""
        for name, part in self.parts.items():
            part.write(self.model.get_submodule(name))

    def ridge(self, *, held: bool = False) -> Tensor | float:
        """Half the sum of squares of the weights of the map's hinges, where it is a regression.

        Args:
            held: Leave out gradients.
        """
        if "dynamics" not in self.parts:
            return 0.0
        theta, dynamics = self.parts["dynamics"].coefficients(), self.model.dynamics
        theta = theta.detach() if held else theta
        hinges = theta[:, dynamics.dim : theta.shape[1] - 1 - dynamics.n_inputs]
        return 0.5 * hinges.square().sum()


def _parts(
    model: StateSpaceModel, batch: Batch, path: Tensor, noise: Tensor | None
) -> dict[str, FisherCoordinates]:
    """Coordinates of map and observation models, by the names of these modules."""
    inside, exact = batch.time_mask, batch.to(dtype=torch.float64)
    found = {"dynamics": MapCoordinates.of(model.dynamics, path, exact.inputs, inside, noise)}
    for name, observation in model.observations.items():
        m = exact.modalities[name]
        found[f"observations.{name}"] = ReadoutCoordinates.of(observation, m, path, inside)
    kept: dict[str, FisherCoordinates] = {}
    taken: set[int] = set()
    for name, part in found.items():
        mine = set() if part is None else set(part.replaced(model.get_submodule(name)))
        if mine and not mine & taken:  # what two parts share moves with the first
            kept[name] = part
            taken |= mine
    return kept
