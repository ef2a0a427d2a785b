"""What every inference engine is: hyper-parameters, a refusal, a fit and an inference."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from plssm.data import Dataset
from plssm.inference.modality_weights import check_weights
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

if TYPE_CHECKING:
    from plssm.fit import Fit

__all__ = ["Engine", "working_copy"]


@dataclass
class Engine(ABC):
    """An inference method as a set of hyper-parameters.

    Engines hold no results and no data: the same engine may fit any number of models. They are
    dataclasses, so they print, compare, and map to TOML.

    Args:
        seed: Seed of every random choice.
        modality_weights: How much each modality counts in the posterior of the latent path: None
            (all 1, the proper likelihood), a dict such as ``{"choice": 5.0}``, or
            ``"null-fisher"`` (see :func:`plssm.inference.modality_weights.temper`).
    """

    seed: int = 0
    modality_weights: dict[str, float] | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_weights(self.modality_weights)

    @abstractmethod
    def fit(
        self,
        model: StateSpaceModel,
        data: Dataset,
        *,
        validation: Dataset | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Fit a copy of ``model`` to ``data``; ``model`` itself is never changed."""

    @abstractmethod
    def infer(self, model: StateSpaceModel, data: Dataset, *, causal: bool = False) -> Posterior:
        """Posterior of the latent paths with all parameters fixed."""

    def check(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse, before any work starts, what this engine cannot do.

        Raises:
            DataError: If the data do not match the model.
            CapabilityError: If the engine cannot treat the model.
        """
        model.check(data)

    def check_training(self, model: StateSpaceModel, data: Dataset) -> None:
        """As :meth:`check`, and refuse data from which the model cannot be learned."""
        self.check(model, data)
        for name, observation in model.observations.items():
            observation.check_training(data, name)

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters as plain JSON-able values."""
        return dataclasses.asdict(self)


def working_copy(model: StateSpaceModel, dtype: torch.dtype = torch.float64) -> StateSpaceModel:
    """A deep copy in the precision an engine works in."""
    return copy.deepcopy(model).to(dtype)
