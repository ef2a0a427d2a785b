"""Runs of training steps that go through compiled code as a whole, where a problem allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from plssm.dynamics import OneLayerDynamics
from plssm.inference.compiled_map import CompiledMap, compiled_map, draw_windows
from plssm.inference.forcing_strength import EVERY
from plssm.inference.updates import FastUpdates, Moments
from plssm.kernels.forced_lanes import lane_count
from plssm.kernels.forced_updates import Draws, ForcedUpdates

if TYPE_CHECKING:
    from plssm.inference.forced_training import ForcedTraining

__all__ = ["CompiledUpdates"]

_NUMBERS = 2**22  # random numbers of noise that are drawn in advance
_MANY = 4  # threads, and groups of sequences for them, that are worth single steps
_ENOUGH = 2e7  # multiplications of a pass from which they are


class CompiledUpdates(FastUpdates):
    """Steps of a :class:`ForcedTraining` in compiled code, with the draws of the single steps.

    Args:
        problem: A problem that `of` accepts.
        found: Its map.
    """

    def __init__(self, problem: ForcedTraining, found: CompiledMap) -> None:
        self.problem = problem
        self.updates = ForcedUpdates(
            **found._asdict(), batch=problem.engine.batch_size, steps=problem.windows.steps - 1
        )

    @classmethod
    def of(cls, problem: ForcedTraining, vector: nn.Parameter) -> CompiledUpdates | None:
        """Returns the steps of a problem; None where they cannot be compiled as a whole.

        They can where :func:`compiled_map` finds the map, and further threads would not pay.

        Args:
            problem: The problem.
            vector: Its parameters.
        """
        dynamics, batch = problem.model.dynamics, problem.engine.batch_size
        if isinstance(dynamics, OneLayerDynamics) and _groups(batch, vector) >= _MANY:
            work = batch * problem.windows.steps * dynamics.layer().outer.numel()
            if work > _ENOUGH:
                return None
        found = compiled_map(problem, vector)
        return None if found is None else cls(problem, found)

    def ready(self) -> int:
        """Returns how many steps can be taken before one that must be taken alone."""
        if self.problem.engine.scheme.adaptive:
            return -self.problem.steps_done % EVERY
        numbers = self.updates.signals[1].size if self.problem.engine.noise else 1
        return max(_NUMBERS // numbers, 1)

    def run(
        self, vector: Tensor, moments: Moments, progress: np.ndarray, generator: torch.Generator
    ) -> np.ndarray:
        """Takes steps (see the base class)."""
        before, strength = generator.get_state(), self.problem.forcing.alpha
        losses = self.updates.run(
            vector.detach().numpy(), (moments.average.numpy(), moments.squares.numpy()),
            self._draw(progress, generator), done=moments.done, rate=moments.rate,
            longest=moments.longest,
        )  # fmt: skip
        tried = min(len(losses) + 1, len(progress))
        if len(losses) < len(progress):  # as if the steps after the failed one were never drawn
            generator.set_state(before)
            self.problem.forcing.alpha = strength
            self._draw(progress[:tried], generator)
        self.problem.steps_done += tried
        return losses

    def _draw(self, progress: np.ndarray, generator: torch.Generator) -> Draws:
        """The random choices of single steps, in their order."""
        return draw_windows(self.problem, self.problem.engine.batch_size, progress, generator)


def _groups(batch: int, vector: Tensor) -> int:
    """Groups of sequences for torch's threads, of which each takes one at a time."""
    if torch.get_num_threads() < _MANY:
        return 1
    share = -(-batch // torch.get_num_threads())
    return -(-batch // lane_count(share, vector.element_size()))
