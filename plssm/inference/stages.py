"""The stages of an EM fit: which map, which noise, which parameters, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from plssm.errors import PlssmError

__all__ = [
    "LEARNABLE",
    "Stage",
    "annealed_stages",
    "held_stages",
    "plain_stages",
    "searched_stages",
]

LEARNABLE = ("dynamics", "process_noise", "initial", "observations")


@dataclass(frozen=True)
class Stage:
    """One stage of an EM fit.

    Args:
        name: Name shown in the progress bar and the history.
        iterations: EM iterations at most.
        dynamics: ``"linear"`` fits a linear stand-in for the whole model in this stage, whose
            smoothed path the next stage starts from; ``"model"`` uses the model itself.
        process_noise: Variance the process noise is held at; None leaves it to the data.
        begin: ``"last"`` goes on from where the stage before ended, ``"best"`` from the end of
            the earlier stage with the best evidence.
        learn: Groups of parameters that are updated: any of ``"dynamics"``, ``"process_noise"``,
            ``"initial"``, ``"observations"``.
        accelerated: Whether the latent path is found anew first, and steps are extrapolated from
            the last ones (with a plain step where that is not better). It needs a free process
            noise: what held noise is for is to keep EM from the nearest optimum.
        newton: Whether the map takes Newton steps once EM gains little: M-steps that know how the
            path follows the map. An iteration takes little longer, and gains as much as ten of EM
            where the process noise is small, so that the path has to follow.
    """

    name: str
    iterations: int
    dynamics: Literal["linear", "model"] = "model"
    process_noise: float | None = None
    begin: Literal["last", "best"] = "last"
    learn: tuple[str, ...] = field(default=LEARNABLE)
    accelerated: bool = False
    newton: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "learn", tuple(self.learn))
        unknown = set(self.learn) - set(LEARNABLE)
        if unknown:
            raise PlssmError(
                f"Stage {self.name!r}: learn has {sorted(unknown)}, wanted some of {LEARNABLE}."
            )
        if self.dynamics not in ("linear", "model"):
            raise PlssmError(
                f"Stage {self.name!r}: dynamics is {self.dynamics!r}, wanted linear or model."
            )
        if self.iterations < 0:
            raise PlssmError(f"Stage {self.name!r}: iterations is {self.iterations}, wanted >= 0.")
        if self.process_noise is not None and not self.process_noise > 0:
            raise PlssmError(
                f"Stage {self.name!r}: process_noise is {self.process_noise}, wanted > 0."
            )
        if self.process_noise is not None and self.accelerated:
            raise PlssmError(
                f"Stage {self.name!r}: accelerated is True, and process_noise is held; leave one "
                "of the two out."
            )
        if self.newton and self.accelerated:
            raise PlssmError(
                f"Stage {self.name!r}: newton and accelerated are both True; leave one out."
            )


def plain_stages(iterations: int) -> tuple[Stage, ...]:
    """Everything is learned from the first iteration on."""
    return (Stage("em", iterations),)


def searched_stages(iterations: int) -> tuple[Stage, ...]:
    """For starts that were searched for: after the linear system everything is free at once.

    Args:
        iterations: EM iterations of the piecewise-linear model; the linear one has 50 of its own.
    """
    return (
        Stage("linear", 50, dynamics="linear", accelerated=True),
        Stage("free", iterations, accelerated=True),
    )


def annealed_stages(iterations: int, *, newton: bool = True) -> tuple[Stage, ...]:
    """From a linear system to the piecewise-linear one, with falling process noise.

    Lowering the process noise step by step moves the burden of explaining the data from the noise
    to the map; it is stated for latents of unit variance. Before that and at the end the noise is
    free: the last stage begins at the best evidence so far, so that truly noisy systems do not
    suffer from the annealing, and the posterior and forecasts are calibrated.

    Args:
        iterations: EM iterations of the piecewise-linear stages together; the linear stage, which
            costs little, has at least 50 of its own.
        newton: Whether the map takes Newton steps; 50 iterations with them mostly get farther than
            200 without.

    References:
        Koppe et al. (2019), PLoS Comput Biol 15:e1007263, doi:10.1371/journal.pcbi.1007263.
    """

    def share(percent: int) -> int:
        return max(iterations * percent // 100, 1)

    return (
        Stage("linear", max(share(8), 50), dynamics="linear"),
        Stage("free start", share(16), newton=newton),
        Stage("noise 0.01", share(8), process_noise=1e-2, newton=newton),
        Stage("noise 0.001", share(16), process_noise=1e-3, newton=newton),
        Stage("noise 0.0001", share(26), process_noise=1e-4, newton=newton),
        Stage("free", share(34), begin="best", newton=newton),
    )


def held_stages(iterations: int, *, newton: bool = True) -> tuple[Stage, ...]:
    """For free runs of systems with little noise: the process noise is held small throughout.

    Held at 1e-4 (for latents of unit variance) the path has to follow the map over many steps, so
    that errors of the map cannot hide in the noise. With more latents than the system has
    dimensions, nothing then says what the map does beside the few dimensions of the data, and
    free runs escape there. Holding the noise at 1e-3 for the last quarter spreads the posterior
    over these directions too, which makes the map contract along them. It can also cost a map
    what it had. Use ``LaplaceEM(stages=held_stages(50), ridge=10.0, select="free_runs")``, which
    keeps the iteration with the best free runs. The noise is never estimated: forecast spreads are
    those of the held noise.

    Args:
        iterations: EM iterations of the piecewise-linear stages together; the linear stage has 25
            of its own.
        newton: Whether the map takes Newton steps; without them EM needs ten times as many
            iterations.
    """
    last = max(iterations // 4, 1)
    return (
        Stage("linear", 25, dynamics="linear"),
        Stage("noise 0.0001", max(iterations - last, 1), process_noise=1e-4, newton=newton),
        Stage("noise 0.001", last, process_noise=1e-3, newton=newton),
    )
