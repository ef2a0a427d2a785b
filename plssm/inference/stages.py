"""The stages of an EM fit: which map, which noise, which parameters, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["LEARNABLE", "Stage", "annealed_stages", "plain_stages"]

LEARNABLE = ("dynamics", "process_noise", "initial", "observations")


@dataclass(frozen=True)
class Stage:
    """One stage of an EM fit.

    Args:
        name: Name shown in the progress bar and the history.
        iterations: EM iterations at most.
        dynamics: ``"linear"`` replaces the map by a linear one of the same size for this stage;
            ``"model"`` uses the model's own.
        process_noise: Variance the process noise is held at; None leaves it to the data.
        learn: Groups of parameters that are updated: any of ``"dynamics"``, ``"process_noise"``,
            ``"initial"``, ``"observations"``.
    """

    name: str
    iterations: int
    dynamics: Literal["linear", "model"] = "model"
    process_noise: float | None = None
    learn: tuple[str, ...] = field(default=LEARNABLE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "learn", tuple(self.learn))
        unknown = set(self.learn) - set(LEARNABLE)
        if unknown:
            raise ValueError(
                f"Stage {self.name!r}: learn has {sorted(unknown)}, wanted some of {LEARNABLE}."
            )
        if self.iterations < 0:
            raise ValueError(f"Stage {self.name!r}: iterations is {self.iterations}, wanted >= 0.")
        if self.process_noise is not None and not self.process_noise > 0:
            raise ValueError(
                f"Stage {self.name!r}: process_noise is {self.process_noise}, wanted > 0."
            )


def plain_stages(iterations: int) -> tuple[Stage, ...]:
    """Everything is learned from the first iteration on."""
    return (Stage("em", iterations),)


def annealed_stages(iterations: int) -> tuple[Stage, ...]:
    """From a linear system to the piecewise-linear one, with falling process noise.

    Lowering the process noise step by step moves the burden of explaining the data from the noise
    to the map. A last stage sets the noise free again, so that the posterior and forecasts are
    calibrated.

    Args:
        iterations: Total number of EM iterations, shared out over the stages.

    References:
        Koppe et al. (2019), PLoS Comput Biol 15:e1007263, doi:10.1371/journal.pcbi.1007263.
    """
    share = max(iterations // 5, 1)
    kept = ("dynamics", "initial")
    return (
        Stage("linear", share, dynamics="linear", process_noise=1.0),
        Stage("noise 1", share, process_noise=1.0),
        Stage("noise 0.1", share, process_noise=0.1, learn=kept),
        Stage("noise 0.01", share, process_noise=0.01, learn=kept),
        Stage("free", max(iterations - 4 * share, 1)),
    )
