"""Multimodal teacher forcing: the teacher is what an encoder makes of all modalities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from plssm.data import Batch, Dataset
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.forcing import Forcing, ForcingScheme, SparseTF, forcing_interval
from plssm.inference.multimodal_training import MultimodalTraining
from plssm.inference.residual_noise import fit_noise
from plssm.inference.trainer import Problem
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.teacher_forcing import TeacherForcing

__all__ = ["MTF"]

PART = 5000  # steps of the data that decoders are started from
ALONE = 0.1  # share of an annealed training in which only encoder and decoders learn


@dataclass(frozen=True)
class MTF(ForcingScheme):
    r"""Multimodal teacher forcing: an encoder of all modalities gives the sparse teacher.

    .. math:: \min\; -\log p(x_t \mid \hat z_t) - \log p(x_t \mid z_t)
        - \log N(\hat z_t; z_t, R) - H(q_t), \qquad \hat z_t \sim q_t(z \mid X)

    Encoder, decoders (the model's observation models) and map are trained together on one
    objective in nats per step: data given the sample, data given the path of the map, how close
    the two are, and the entropy of the encoder, which is rewarded. So labels or counts alone can
    teach the map. Observations of any kind and in any number may be missing at any step: the
    encoder says nothing where nothing is observed, and nothing is forced there.

    The teacher must be a sample: a mean, which has no noise, tells the path in small details what
    the encoder knows of the coming steps, and the map learns to read them instead of the dynamics.

    The encoder is ``fit.recognition``: ``fit.recognition(fit.model, data.batch()).mean`` are the
    states [B, T, K] that it makes of data, in the coordinates of the map.

    Args:
        interval: Steps between two replacements of the state; "auto" takes it from the decay of
            correlations in the data.
        states: Number K of states that are forced; None is all. The others are free: at the
            start of a sequence they are a learned linear map of the K, and fresh decoders do not
            see them.
        hidden: Width of the encoder's networks; multiples of 16 are fast.
        causal: Whether the encoder looks at the present step and earlier ones only, so that a
            teacher knows nothing of the steps that the map is to predict from it.
        reconstruction: Weight of the data given the sample.
        observation: Weight of the data given the path.
        consistency: Weight of the sample given the path.
        annealed: Whether the weight of the reconstruction falls to zero during training, and those
            of observation and consistency are zero for the first tenth.

    References:
        Brenner, Hess, Koppe and Durstewitz 2024, Integrating multimodal data for joint generative
        modeling of complex dynamics, ICML, arXiv:2212.07892.
    """

    interval: int | str = 10
    states: int | None = None
    hidden: int = 16
    causal: bool = False
    reconstruction: float = 1.0
    observation: float = 1.0
    consistency: float = 1.0
    annealed: bool = False

    def __post_init__(self) -> None:
        SparseTF(self.interval)  # refuses intervals that are none
        if self.hidden < 1 or (self.states is not None and self.states < 1):
            raise PlssmError(f"MTF: states={self.states}, hidden={self.hidden}, wanted >= 1.")
        if min(self.reconstruction, self.observation, self.consistency) < 0:
            raise PlssmError("MTF: the weights of the loss must not be negative.")

    def shares(
        self, steps: int, progress: float, forcing: Forcing, generator: torch.Generator
    ) -> Tensor:
        """Returns ones at the multiples of the interval [T]."""
        return SparseTF(self.interval).shares(steps, progress, forcing, generator)

    def weights(self, progress: float) -> dict[str, float]:
        """Returns the weights of the terms of the loss.

        Args:
            progress: How much of the training is over, 0 to 1.
        """
        falling = 1.0 - progress if self.annealed else 1.0
        later = 0.0 if self.annealed and progress < ALONE else 1.0
        return {
            "reconstruction": falling * self.reconstruction,
            "observation": later * self.observation,
            "consistency": later * self.consistency,
            "entropy": 1.0,
        }

    def for_data(self, data: Dataset) -> Self:
        """Returns the scheme with an interval for these data, if that was left open."""
        if self.interval != "auto":
            return self
        return replace(self, interval=forcing_interval(data))

    def refuse(self, model: StateSpaceModel) -> None:
        """Refuses more forced states than there are.

        Raises:
            CapabilityError: Saying how many there are.
        """
        if self.states is not None and self.states > model.dim:
            raise CapabilityError(
                f"MTF: {self.states} states are to be forced, the map has {model.dim}; use "
                f"states=None or at most {model.dim}."
            )

    @torch.no_grad()
    def start(self, model: StateSpaceModel, batch: Batch) -> None:
        """Starts fresh decoders: intercepts and scales from the data, weights of no great size."""
        part = BatchWindows(batch, steps=PART)
        row = torch.arange(min(len(batch), max(PART // max(batch.steps, 1), 1)))
        few = part.cut(row, torch.zeros_like(row)).batch
        for name, observation in model.observations.items():
            weight = observation.weight
            if observation.initialised:
                continue
            drawn = weight.clone()
            if weight.requires_grad:
                path = weight.new_zeros(len(few), few.steps, model.dim)
                observation.init_from(few.modalities[name], path)
                weight.copy_(drawn)
                weight[:, self.states or model.dim :] = 0.0

    def problem(
        self, engine: TeacherForcing, model: StateSpaceModel, batch: Batch, check: Batch, *,
        seed: int,
    ) -> Problem:  # fmt: skip
        """Returns what is trained (see the base class)."""
        return MultimodalTraining(engine, self, model, batch, check, seed=seed)

    @torch.no_grad()
    def fit_noise(
        self, model: StateSpaceModel, data: Dataset, *, seed: int,
        recognition: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Fits process noise, first state and Gaussian noise, with all else held."""
        kind = next(recognition.parameters()).dtype
        belief = recognition(model, data.batch().to(dtype=kind))
        states = belief.mean[belief.known].double().var(0, unbiased=False)
        spread = states.new_full((model.dim,), float(states.mean()))
        spread[: len(states)] = states
        with torch.enable_grad():
            fit_noise(model, data, seed=seed, spread=spread.clamp_min(1e-6))
