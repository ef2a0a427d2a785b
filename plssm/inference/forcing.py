"""Schemes of teacher forcing: how strongly a training sequence is drawn to the data, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from plssm.analysis import time_scales
from plssm.data import Batch, Dataset
from plssm.errors import PlssmError
from plssm.inference.forced_readouts import refuse_unforceable, start_readouts
from plssm.inference.forced_training import ForcedTraining
from plssm.inference.forcing_strength import ESTIMATORS, optimal_alpha, spectral_size
from plssm.inference.parts import make_part
from plssm.inference.residual_noise import fit_noise
from plssm.inference.trainer import Problem
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.teacher_forcing import TeacherForcing

__all__ = [
    "GTF",
    "Forcing",
    "ForcingScheme",
    "SparseTF",
    "forcing_interval",
    "make_scheme",
]

_HOLD = 0.999  # how slowly an adaptive alpha falls


@dataclass
class Forcing:
    """A scheme at work: shares of the teacher, and what it has learned about them.

    Args:
        scheme: The scheme.
        alpha: The present strength.
    """

    scheme: ForcingScheme
    alpha: float

    def shares(self, steps: int, progress: float, generator: torch.Generator) -> Tensor:
        """Returns the share of the teacher at every step but the first, which starts there.

        Args:
            steps: T.
            progress: How much of the training is over, 0 to 1.
            generator: Source of randomness.

        Returns:
            Shares [T]; the first is 0.
        """
        share = self.scheme.shares(steps, progress, self, generator)
        share[0] = 0.0
        return share


@dataclass(frozen=True)
class ForcingScheme(ABC):
    """How strongly the states of a training sequence are drawn to the data.

    A scheme also says what is trained: the teacher comes from the data by the inverse of a
    read-out, unless a scheme has its own problem.

    Attributes:
        least_squares: Whether what is trained is a :class:`ForcedTraining`, a sum of squares.
    """

    least_squares: ClassVar[bool] = False

    def begin(self) -> Forcing:
        """Returns the scheme ready for the first step."""
        return Forcing(self, 0.0)

    @abstractmethod
    def shares(
        self, steps: int, progress: float, forcing: Forcing, generator: torch.Generator
    ) -> Tensor:
        """Returns the share of the teacher at every step [T] (see :meth:`Forcing.shares`)."""

    @property
    def adaptive(self) -> bool:
        """Whether the strength follows the Jacobians of the model."""
        return False

    def adapt(self, jacobians: Tensor, forcing: Forcing) -> None:  # noqa: B027 (most do not)
        """Adjusts the strength to Jacobians [B, T, M, M] at the teacher's states."""

    # ---- what is trained ----------------------------------------------------------------------
    def for_data(self, data: Dataset) -> Self:  # noqa: ARG002 (most know all they need)
        """Returns the scheme with what was left to the data filled in."""
        return self

    def refuse(self, model: StateSpaceModel) -> None:
        """Refuses models that cannot be trained this way.

        Raises:
            CapabilityError: Naming the modality and what to use instead.
        """
        refuse_unforceable(model)

    def start(self, model: StateSpaceModel, batch: Batch) -> None:
        """Starts observation models that are fresh; frozen parameters stay."""
        start_readouts(model, batch)

    def problem(
        self, engine: TeacherForcing, model: StateSpaceModel, batch: Batch, check: Batch, *,
        seed: int,
    ) -> Problem:  # fmt: skip
        """Returns what is trained (arguments as of :class:`ForcedTraining`)."""
        return ForcedTraining(engine, model, batch, check, seed=seed)

    def fit_noise(
        self, model: StateSpaceModel, data: Dataset, *, seed: int,
        recognition: nn.Module | None = None,  # noqa: ARG002 (most have none)
    ) -> None:  # fmt: skip
        """Fits process and observation noise of a trained model; the model changes in place.

        Args:
            model: The model.
            data: Training trials.
            seed: Seed of the fit.
            recognition: The encoder that was trained with it, if there is one.
        """
        fit_noise(model, data, seed=seed)


@dataclass(frozen=True)
class SparseTF(ForcingScheme):
    r"""The state is replaced by the teacher at regular intervals and runs freely between.

    .. math:: \tilde z_t = \hat z_t \text{ for } t = 1 + k \tau, \qquad \tilde z_t = z_t
        \text{ otherwise}

    Args:
        interval: tau in steps; 0 never forces inside a sequence. "auto" is left to the engine,
            which takes it from the decay of correlations in the data.
        spread: The interval of each batch is drawn from interval - spread .. interval + spread.
        annealed: Whether the interval grows from 1 to its value during training.

    References:
        Mikhaeil, Monfared and Durstewitz 2022, arXiv:2110.07238; Brenner et al. 2022,
        arXiv:2207.02542.
    """

    least_squares: ClassVar[bool] = True
    interval: int | str = "auto"
    spread: int = 0
    annealed: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.interval, int) and self.interval >= 0
        if not whole and self.interval != "auto":
            raise PlssmError(
                f"SparseTF: interval is {self.interval!r}, wanted 0 or more, or auto."
            )
        if self.spread < 0 or (whole and 0 < self.interval <= self.spread):
            raise PlssmError(f"SparseTF: spread is {self.spread}, wanted 0 up to interval - 1.")

    def shares(
        self, steps: int, progress: float, forcing: Forcing, generator: torch.Generator
    ) -> Tensor:
        """Returns ones at the multiples of the interval [T]."""
        share, interval = torch.zeros(steps), int(self.interval)
        if not interval:
            return share
        if self.annealed:
            interval = int((interval - 1) * progress) + 1
        if self.spread:
            change = torch.randint(-self.spread, self.spread + 1, (), generator=generator)
            interval = max(interval + int(change), 1)
        share[::interval] = 1.0
        return share

    def for_data(self, data: Dataset) -> Self:
        """Returns the scheme with an interval for these data, if that was left open."""
        if self.interval != "auto":
            return self
        return replace(self, interval=forcing_interval(data))


@dataclass(frozen=True)
class GTF(ForcingScheme):
    r"""Generalised teacher forcing: the state is drawn to the teacher at every step.

    .. math:: \tilde z_t = (1 - \alpha) z_t + \alpha \hat z_t

    Gradients shrink by 1 - alpha per step, so that they do not explode where
    (1 - alpha) sigma <= 1 for the size sigma of the Jacobians.

    Args:
        alpha: Strength, 0 (free) to 1 (forced); where it starts if it changes.
        final_alpha: Strength at the end, approached exponentially; None keeps it.
        adaptive_by: "" for none, or how the size of the Jacobians is estimated, from which
            alpha = 1 - 1 / sigma follows: "product" (largest over sequences of the geometric mean
            of spectral norms), "mean" (norm of the mean Jacobian), "explog" (norm of the
            exponential of the mean logarithm), "maximum" (largest norm).
        hold: How slowly a falling estimate is followed, per estimate.

    References:
        Hess et al. 2023, Generalized teacher forcing for learning chaotic dynamics,
        arXiv:2306.04406.
    """

    least_squares: ClassVar[bool] = True
    alpha: float = 0.3
    final_alpha: float | None = None
    adaptive_by: str = ""
    hold: float = field(default=_HOLD)

    def __post_init__(self) -> None:
        for name in ("alpha", "final_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise PlssmError(f"GTF: {name} is {value}, wanted between 0 and 1.")
        if self.final_alpha is not None and (not self.alpha > 0 or not self.final_alpha > 0):
            raise PlssmError("GTF: alpha and final_alpha must be above 0 to change exponentially.")
        if self.adaptive_by not in ("", *ESTIMATORS):
            raise PlssmError(
                f"GTF: adaptive_by is {self.adaptive_by!r}, wanted one of {sorted(ESTIMATORS)}."
            )

    @property
    def adaptive(self) -> bool:
        """Whether alpha follows the Jacobians of the model."""
        return bool(self.adaptive_by)

    def begin(self) -> Forcing:
        """Returns the scheme with alpha where it starts."""
        return Forcing(self, self.alpha)

    def shares(
        self, steps: int, progress: float, forcing: Forcing, generator: torch.Generator
    ) -> Tensor:
        """Returns alpha at every step [T]."""
        if self.final_alpha is not None:
            forcing.alpha = self.alpha * (self.final_alpha / self.alpha) ** progress
        return torch.full((steps,), forcing.alpha)

    def adapt(self, jacobians: Tensor, forcing: Forcing) -> None:
        """Follows the estimate at once where it rises, slowly where it falls."""
        alpha = optimal_alpha(spectral_size(jacobians, self.adaptive_by))
        if alpha > forcing.alpha:
            forcing.alpha = alpha
        else:
            forcing.alpha = self.hold * forcing.alpha + (1 - self.hold) * alpha


def make_scheme(value: ForcingScheme | Mapping[str, Any]) -> ForcingScheme:
    """Returns a scheme from itself or from what `part_settings` gives.

    Raises:
        PlssmError: If it is neither.
    """
    wanted = f"TeacherForcing: scheme is {value!r}, wanted GTF(), SparseTF() or MTF()."
    return make_part(value, ForcingScheme, wanted)


def forcing_interval(data: Dataset) -> int:
    """An interval for sparse forcing, from the decay of correlations in the data.

    Continuous modalities are looked at, or all where there are none.
    """
    names = [n for n, kind in data.kinds.items() if kind == "continuous"] or data.names
    trials = [np.concatenate([t.values[n] for n in names], axis=1) for t in data.trials]
    lags = min(100, max(len(t) for t in trials) // 2)
    return time_scales(trials, lags=lags).forcing_interval
