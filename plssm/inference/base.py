"""What every inference engine is: hyper-parameters, a refusal, trainings and an inference."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from plssm.data import Dataset
from plssm.fit import Fit
from plssm.inference.modality_weights import check_weights
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["Engine", "Run", "all_restarts", "best_of", "working_copy"]


class Run(NamedTuple):
    """One training from its own start values.

    Attributes:
        restart: Its number.
        score: What it is worth; lower is better, NaN is worst.
        model: What it has learned.
        history: One row per iteration or check.
        recognition: What was learned beside the model to infer with, if anything was.
        interrupted: Whether Ctrl-C ended it.
    """

    restart: int
    score: float
    model: StateSpaceModel
    history: pd.DataFrame
    recognition: nn.Module | None = None
    interrupted: bool = False


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

    def fit(
        self,
        model: StateSpaceModel,
        data: Dataset,
        *,
        validation: Dataset | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Fit a copy of ``model`` to ``data``; an interruption (Ctrl-C) keeps the best so far.

        Args:
            model: The model; never changed.
            data: Training trials.
            validation: Trials that decide which restart (and which state of a training by
                gradients) is best; the training data where absent.
            progress: Show a progress bar; None shows it where someone can see it.

        Returns:
            The best fit; ``fit.history`` has the course of all restarts, and which is selected.

        Raises:
            DataError: If the data do not match the model.
            CapabilityError: If the engine cannot treat the model.
        """
        self.check_training(model, data)
        if validation is not None:
            self.check(model, validation)
        began = time.perf_counter()
        runs = self.trainings(model, data, validation, progress)
        best = best_of(runs)
        tables = [run.history.assign(restart=run.restart) for run in runs]
        history = pd.concat(tables, ignore_index=True)
        history["selected"] = history["restart"] == best.restart
        return Fit.after_training(
            best.model, self, data, history=history, seconds=time.perf_counter() - began,
            recognition=best.recognition,
        )  # fmt: skip

    @abstractmethod
    def trainings(
        self,
        model: StateSpaceModel,
        data: Dataset,
        validation: Dataset | None,
        progress: bool | None,
    ) -> Sequence[Run]:
        """Trains copies of a model that was checked, one for each restart (see :meth:`fit`)."""

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


def all_restarts(name: str, restarts: int, train: Callable[[int], Run]) -> list[Run]:
    """Trainings one after the other, up to one that Ctrl-C ended; those before are kept.

    Args:
        name: The engine's, for warnings.
        restarts: How many.
        train: Trains the restart of a number.

    Raises:
        KeyboardInterrupt: If the first one was interrupted before it began.
    """
    runs: list[Run] = []
    for restart in range(restarts):
        try:
            runs.append(train(restart))
        except KeyboardInterrupt:  # while it was being started
            if not runs:
                raise
            warnings.warn(
                f"{name} was interrupted before restart {restart} began; the best one so far is "
                "kept.",
                RuntimeWarning,
                stacklevel=4,
            )
            runs[-1] = runs[-1]._replace(interrupted=True)
        if runs[-1].interrupted:
            break
    return runs


def best_of(runs: Sequence[Run]) -> Run:
    """The training with the lowest score; the first one where none has a score."""
    return min(runs, key=lambda run: math.inf if math.isnan(run.score) else run.score)


def working_copy(model: StateSpaceModel, dtype: torch.dtype = torch.float64) -> StateSpaceModel:
    """A deep copy in the precision an engine works in."""
    return copy.deepcopy(model).to(dtype)
