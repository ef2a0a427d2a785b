"""What a Gaussian filter does differently from the extended Kalman filter, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from plssm.data import Batch
from plssm.errors import CapabilityError, PlssmError
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["CHOICES", "FilterOptions", "rectified"]

CHOICES = {"propagation": ("linearised", "moments"), "update": ("laplace", "moments")}


@dataclass(frozen=True)
class FilterOptions:
    """How a Gaussian filter predicts, takes in data, and runs.

    Args:
        propagation: How the map carries a Gaussian on: ``"linearised"`` by its Jacobian at the
            mean, ``"moments"`` by the exact mean and covariance of the map's values.
        update: How data that are not Gaussian change it: ``"laplace"`` to the mode and its
            curvature, ``"moments"`` to the posterior mean and covariance, by quadrature.
        iterations: How often a causal filter linearises each step's map; from the second time on
            at the state before the step as the step's own data say it was.
        parallel: Whether the filter and the smoother run by scans over all steps at once.

    Raises:
        PlssmError: If a value is unknown, or two of them exclude each other.
    """

    propagation: str = "linearised"
    update: str = "laplace"
    iterations: int = 1
    parallel: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise PlssmError(
                    f"smooth: {name} is {getattr(self, name)!r}, wanted one of {choices}."
                )
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        if not whole or self.iterations < 1:
            raise PlssmError(
                f"smooth: iterations is {self.iterations!r}, wanted a whole number >= 1."
            )
        if not isinstance(self.parallel, bool):
            raise PlssmError(f"smooth: parallel is {self.parallel!r}, wanted True or False.")
        if self.iterations > 1 and self.propagation == "moments":
            raise PlssmError(
                "smooth: iterations repeat a linearisation, which propagation='moments' has none "
                "of; leave one of the two out."
            )
        if self.parallel and (self.iterations > 1 or "moments" in (self.propagation, self.update)):
            raise PlssmError(
                "smooth: parallel=True linearises whole paths; leave propagation, update and "
                "iterations out."
            )

    @property
    def matched(self) -> bool:
        """Whether any moments are matched, so that no mode of the path is looked for."""
        return "moments" in (self.propagation, self.update)

    def refuse(self, model: StateSpaceModel, batch: Batch) -> None:
        """Refuse what data with memory cannot be filtered with.

        Args:
            model: The model.
            batch: The trials.

        Raises:
            CapabilityError: If an observation remembers earlier states (BOLD).
        """
        wrong = {
            "update='moments'": self.update == "moments",
            "iterations": self.iterations > 1,
            "parallel=True": self.parallel,
            "rectified read-outs": any(rectified(o) for o in model.observations.values()),
        }
        for name, observation in model.observations.items():
            if any(wrong.values()) and observation.memory(batch.dt):
                asked = " and ".join(n for n, w in wrong.items() if w)
                raise CapabilityError(
                    f"smooth: Gaussian filters with {asked} need data that depend on the state "
                    f"of their own step, but {name!r} ({type(observation).__name__}) remembers "
                    "earlier ones; leave one of the two out, or use method='laplace'."
                )


def rectified(observation: ObservationModel) -> bool:
    """Whether an observation's predictors have kinks in the state.

    Args:
        observation: The observation model, bound to a number of states.
    """
    return observation.readout.slope(observation.weight.new_zeros(1, observation.dim)) is not None
