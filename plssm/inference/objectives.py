"""What training through a filter maximises: innovations, or open-loop predictions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plssm.data import Batch, Dataset, Modality
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.augmented_states import AugmentedStates
from plssm.inference.innovations import Innovations
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["Innovation", "Objective", "OpenLoop", "WindowSteps"]

SCORES = ("log", "crps", "energy")
SPREADS = ("propagated", "free")
DRAWS = 16  # of an energy score


class WindowSteps(NamedTuple):
    """Steps of a training window.

    Attributes:
        before: Steps before the scored ones, which find the state.
        scored: Scored steps.
        closed: Whether the scored steps' data change the state.
    """

    before: int
    scored: int
    closed: bool


@dataclass(frozen=True)
class Objective(ABC):
    """What a training window is worth."""

    @abstractmethod
    def steps(self, window: int, warmup: int) -> WindowSteps:
        """Steps of a training window, given the engine's."""

    def refuse(self, model: StateSpaceModel, data: Dataset) -> None:  # noqa: B027 (most take all)
        """Refuse models and data that the objective is not defined for."""

    def head(self, model: StateSpaceModel) -> nn.Parameter | None:  # noqa: ARG002
        """What is learned beside the model, where something is."""
        return None

    @abstractmethod
    def value(
        self, found: Innovations, model: StateSpaceModel, head: nn.Parameter | None,
        batch: Batch, states: AugmentedStates, generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """What is maximised, for every window and step [B, T]."""


@dataclass(frozen=True)
class Innovation(Objective):
    r"""One-step-ahead log-densities with the state filtered all along (KAFFEE).

    .. math:: \sum_t \log p(y_t | y_{1:t-1})
        = -\tfrac12 \sum_t \log |2\pi S_t| + v_t^\top S_t^{-1} v_t

    The filter's own transition (I - K B) J contracts, so gradients stay bounded however chaotic
    the map is; and the covariance is the one that the map itself carries along.

    References:
        Herz, Pals, Durstewitz and Koppe 2026, arXiv:2605.31547.

    Example:
        >>> from plssm.inference import EKF, Innovation
        >>> EKF().objective == Innovation()
        True
        >>> Innovation().steps(window=100, warmup=20)  # 20 steps find the state
        WindowSteps(before=20, scored=100, closed=True)
    """

    def steps(self, window: int, warmup: int) -> WindowSteps:
        """Windows as the engine has them."""
        return WindowSteps(warmup, window, True)

    def value(
        self, found: Innovations, model: StateSpaceModel, head: nn.Parameter | None,
        batch: Batch, states: AugmentedStates, generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Innovation log-densities [B, T]."""
        return found.increment


@dataclass(frozen=True)
class OpenLoop(Objective):
    r"""Predictions without new data, up to a horizon: what others train, for comparison.

    .. math:: \sum_{k=1}^K \log p(y_{t+k} | y_{\le t})

    With a chaotic map and a horizon beyond that at which errors saturate, the likelihood is raised
    by maps that forget (core collapse), by noise in the place of dynamics (noise masking), or by
    spreads that do not follow the state (blind uncertainty). A horizon of one is one-step
    training.

    Args:
        horizon: K.
        score: "log", or of Gaussian channels minus the "crps" or the "energy" score.
        spread: "propagated": the covariance that the map carries along; "free": standard
            deviations of their own for every channel and horizon (a heteroscedastic head), for
            Gaussian channels. The model's process noise learns nothing from the latter.

    Example:
        >>> from plssm.inference import EKF, OpenLoop
        >>> engine = EKF(objective=OpenLoop(horizon=8, score="crps"))
        >>> engine.objective.steps(window=100, warmup=20)  # no data change the scored steps
        WindowSteps(before=20, scored=8, closed=False)
    """

    horizon: int = 20
    score: str = "log"
    spread: str = "propagated"

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.score not in SCORES or self.spread not in SPREADS:
            raise PlssmError(
                f"OpenLoop: got {self}; wanted horizon >= 1, score one of {SCORES}, spread "
                f"one of {SPREADS}."
            )

    def steps(self, window: int, warmup: int) -> WindowSteps:  # noqa: ARG002
        """The data before find the state; the horizon is scored."""
        return WindowSteps(max(warmup, 1), self.horizon, False)

    @property
    def _plain(self) -> bool:
        return self.score == "log" and self.spread == "propagated"

    def refuse(self, model: StateSpaceModel, data: Dataset) -> None:
        """Scores of predicted channels, and free spreads, are for Gaussian ones.

        Raises:
            CapabilityError: If there are others.
        """
        if self._plain:
            return
        for name, observation in model.observations.items():
            if not observation.quadratic or observation.coupled:
                raise CapabilityError(
                    f"{self} is defined for Gaussian channels, {name!r} is "
                    f"{type(observation).__name__}; use OpenLoop(score='log') or Innovation()."
                )
            if any(trial.clock[name] is not None for trial in data.trials):
                raise CapabilityError(
                    f"{self} is for modalities on the latent clock, {name!r} has its own; use "
                    "OpenLoop(score='log') or Innovation()."
                )

    def head(self, model: StateSpaceModel) -> nn.Parameter | None:
        """Logarithms of standard deviations [K, N of all modalities]."""
        if self.spread == "propagated":
            return None
        count = sum(o.channels for o in model.observations.values())
        return nn.Parameter(torch.zeros(self.horizon, count, dtype=torch.float64))

    def value(
        self, found: Innovations, model: StateSpaceModel, head: nn.Parameter | None,
        batch: Batch, states: AugmentedStates, generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """The score of every step [B, T]; higher is better."""
        if self._plain:
            return found.increment
        total = torch.zeros_like(found.increment)
        first = 0
        for name, observation in model.observations.items():
            m = batch.modalities[name]
            mean, covariance = _predicted(found, observation, m, states)
            own = None
            if head is not None:
                own = head[:, first : first + observation.channels].exp()
                first += observation.channels
                before = mean.shape[1] - len(own)
                own = torch.nn.functional.pad(own, (0, 0, before, 0), value=1.0)
            each = self._scores(m, mean, covariance, own, generator)
            total = total + float(observation.tempering) * each
        return total

    def _scores(
        self, m: Modality, mean: Tensor, covariance: Tensor, own: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Score of every step [B, T] of one modality."""
        variance = covariance.diagonal(dim1=-2, dim2=-1) if own is None else own.square()
        sd = variance.clamp_min(1e-12).sqrt()
        y = torch.where(m.mask, m.y, 0.0).to(mean)
        w = (y - mean) / sd
        if self.score == "log":
            each = -0.5 * (w.square() + math.log(2 * math.pi)) - sd.log()
            return torch.where(m.mask, each, 0.0).sum(-1)
        if self.score == "crps":
            inside = w * torch.erf(w / math.sqrt(2)) - 1 / math.sqrt(math.pi)
            each = sd * (inside + math.sqrt(2 / math.pi) * (-0.5 * w.square()).exp())
            return -torch.where(m.mask, each, 0.0).sum(-1)
        if own is not None:
            root = torch.diag_embed(own).expand_as(covariance)
        else:
            eye = 1e-10 * torch.eye(mean.shape[-1], dtype=mean.dtype)
            root = torch.linalg.cholesky(covariance + eye)
        shape = (DRAWS, *mean.shape)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype)
        drawn = mean + (root @ noise[..., None])[..., 0]
        far = (torch.where(m.mask, drawn - y, 0.0).square().sum(-1) + 1e-12).sqrt().mean(0)
        half = torch.where(m.mask, drawn[::2] - drawn[1::2], 0.0).square().sum(-1)
        apart = (half + 1e-12).sqrt().mean(0)
        return -(far - 0.5 * apart)


def _predicted(
    found: Innovations, observation: ObservationModel, m: Modality, states: AugmentedStates
) -> tuple[Tensor, Tensor]:
    """Mean [B, T, N] and covariance of the channels before each step's data."""
    rows = states.weights(observation)
    mean = found.run.predicted_mean @ rows.T + observation.bias
    covariates = observation.covariates(m)
    if covariates is not None and observation.n_covariates:
        mean = mean + covariates @ observation.nuisance_weight.T
    spread = rows @ found.run.predicted_covariance @ rows.T
    return mean, spread + torch.diag(observation.noise)
