"""What moves on from the parameters that an M-step found, so that EM needs fewer iterations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.em_parameters import EMParameters
from plssm.inference.extrapolation import Extrapolation
from plssm.inference.map_newton import MapInformation, NewtonSteps
from plssm.inference.normal_equations import NormalEquations
from plssm.inference.stages import Stage
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["Acceleration", "Maximised", "Moved", "acceleration_of"]

MEMORY = 5  # earlier EM steps from which the next is extrapolated


@final
@dataclass(frozen=True)
class Maximised:
    """An M-step: from where and by what.

    Attributes:
        before: The parameters before it.
        posterior: The posterior path at these.
        slope: Slopes of the hinges ``[B, T-1, P]``.
        equations: What was solved for the map; None where it was not learned.
    """

    before: EMParameters
    posterior: GaussianChain
    slope: np.ndarray
    equations: NormalEquations | None


@final
@dataclass(frozen=True)
class Moved:
    """Parameters to try next, and how far the path is expected to follow, ``[B, T, M]``."""

    parameters: EMParameters
    shift: np.ndarray | None = None


class Acceleration(ABC):
    """Moves on from the parameters of M-steps, and learns whether that was good."""

    @abstractmethod
    def after(
        self, model: StateSpaceModel, plain: EMParameters, made: Maximised, batch: Batch
    ) -> Moved | None:
        """Where to go on from an M-step; None to stay.

        Args:
            model: The model with the parameters of the M-step; it may be changed.
            plain: These parameters.
            made: How they were found.
            batch: The trials.
        """

    def gained(self, nats: float) -> None:  # noqa: B027
        """Learn what the last step of any kind gained."""

    def forget(self) -> None:  # noqa: B027
        """Learn that the last step was no good."""


@final
class _Plain(Acceleration):
    """EM as it is."""

    def after(
        self, model: StateSpaceModel, plain: EMParameters, made: Maximised, batch: Batch
    ) -> None:
        return None


@final
class _Extrapolated(Acceleration):
    """All parameters, from the last steps of EM."""

    def __init__(self) -> None:
        self._steps = Extrapolation(MEMORY)

    def after(
        self, model: StateSpaceModel, plain: EMParameters, made: Maximised, batch: Batch
    ) -> Moved | None:
        point = made.before.vector()
        moved = self._steps.after(point, plain.vector() - point)
        if moved is None or not np.isfinite(moved).all():
            return None
        return Moved(plain.at(moved))

    def forget(self) -> None:
        self._steps.forget()


@final
class _Newton(Acceleration):
    """The map, by how the path follows it."""

    def __init__(self, values: int) -> None:
        self._steps = NewtonSteps(values)

    def after(
        self, model: StateSpaceModel, plain: EMParameters, made: Maximised, batch: Batch
    ) -> Moved | None:
        dynamics, equations = model.dynamics, made.equations
        if equations is None or not self._steps.begun:
            return None
        em = np.asarray(dynamics.coefficients()[0].detach()) - equations.theta
        information = MapInformation(equations, dynamics, made.posterior, made.slope, batch)
        step = self._steps.after(information, np.where(equations.free, em, 0.0))
        if step is None:
            return None
        dynamics.assign_coefficients(torch.from_numpy(equations.theta + step.move))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        return Moved(EMParameters(state, plain.trial_means), step.shift)

    def gained(self, nats: float) -> None:
        self._steps.gained(nats)

    def forget(self) -> None:
        self._steps.forget()


def acceleration_of(stage: Stage, values: int) -> Acceleration:
    """The acceleration that a stage asks for.

    Args:
        stage: The stage.
        values: Number of observed values.
    """
    if stage.newton:
        return _Newton(values)
    return _Extrapolated() if stage.accelerated else _Plain()
