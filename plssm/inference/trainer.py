"""Training by gradients: updates, schedule, checks, the last good state, and resuming."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from plssm.errors import PlssmError
from plssm.inference.checkpoint import read_checkpoint, write_checkpoint
from plssm.inference.updates import FastUpdates, Moments, OwnUpdates

__all__ = [
    "Problem",
    "Trainer",
    "Training",
    "as_parts_of_one",
]

EPOCH = 50  # steps between two changes of the learning rate
PROBLEM = "problem."  # before names of a problem's tensors in a checkpoint
RAW = 5  # first updates of RAdam, too few for its second moments, along the gradient as it is
FAILURES = 5  # returns to the last good state after which training ends


class Problem(ABC):
    """What is trained: parameters, a loss, and measures of what they are worth.

    Attributes:
        recognition: What is learned beside the model to infer with, if anything is.
    """

    recognition: nn.Module | None = None

    @abstractmethod
    def parameters(self) -> Sequence[nn.Parameter]:
        """Returns the parameters that training changes, always in the same order."""

    @abstractmethod
    def loss(self, progress: float, generator: torch.Generator) -> Tensor:
        """Returns the loss of one random batch.

        Args:
            progress: How much of the training is over, 0 to 1.
            generator: The only source of randomness.
        """

    @abstractmethod
    def measures(self) -> dict[str, float]:
        """Returns what is shown and kept; ``score`` decides which state is best (lower).

        Where it is NaN the mean loss since the last check takes its place.
        """

    def fast(self, vector: nn.Parameter) -> FastUpdates | None:  # noqa: ARG002 (most have none)
        """Returns a faster way to make updates, where there is one.

        Args:
            vector: The parameters as one vector, of which they are parts.
        """
        return None

    def own_updates(self, vector: nn.Parameter) -> OwnUpdates | None:  # noqa: ARG002 (as above)
        """Returns updates in the place of RAdam's, where the problem has its own.

        Args:
            vector: The parameters as one vector, of which they are parts.
        """
        return None

    def project(self) -> None:  # noqa: B027 (most have no constraints)
        """Moves the parameters back to where they may be, after every update."""

    def went_back(self) -> None:  # noqa: B027 (most have nothing to do)
        """Called when training has gone back to the last good parameters."""

    def state(self) -> dict[str, float | Tensor]:
        """Returns numbers and tensors beside the parameters that resuming needs."""
        return {}

    def restore(self, state: dict[str, float | Tensor]) -> None:  # noqa: B027 (most have none)
        """Takes back what `state` returned."""


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Args:
        steps: Number of updates.
        learning_rate: At the start and at the end; it falls exponentially.
        clip: Largest norm of a gradient; longer ones are shortened.
        checks: How many times the measures are taken.
        patience: Checks without a better score after which training ends; 0 never ends early.
        checkpoint: File that an interrupted training goes on from; None keeps none.
        seconds_between: Seconds between two writes of that file.
        raw_start: Whether RAdam's first updates, steps along the gradient as it is, are made, at
            the start and after returns to the last good state. They can be thousands of times as
            long as those that follow; where they are not made, the parameters stay and the moments
            are gathered, so that a good start is not thrown away. Not with :meth:`Problem.fast`.
    """

    steps: int
    learning_rate: tuple[float, float] = (1e-3, 1e-5)
    clip: float = 10.0
    checks: int = 25
    patience: int = 0
    checkpoint: str | None = None
    seconds_between: float = 20.0
    raw_start: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", tuple(self.learning_rate))
        good = self.steps >= 1 and self.checks >= 1 and self.clip > 0 and self.patience >= 0
        if not good or len(self.learning_rate) != 2 or not min(self.learning_rate) > 0:
            raise PlssmError(
                f"Training: got {self}; wanted at least one step and one check, a positive clip "
                "and two positive learning rates."
            )


class Trainer:
    """Runs the updates of a problem.

    The parameters become parts of one vector, so that an update, a norm and a copy are one call
    each; problems that have a faster way make many updates in one call (:meth:`Problem.fast`). A
    loss or gradient that is not finite takes training back to the last check, with half
    the learning rate. With the same seed the result is the same, whether or not the run was
    interrupted.

    Args:
        problem: What is trained; its parameters change in place.
        training: How long and how fast.
        seed: Seed of every random choice.
        identity: What a checkpoint must belong to (settings and data).

    Attributes:
        rows: One row of measures per check.
        interrupted: Whether Ctrl-C ended the training.
    """

    def __init__(
        self, problem: Problem, training: Training, *, seed: int, identity: str = ""
    ) -> None:
        self.problem, self.training, self.identity = problem, training, identity
        self.parameters = list(problem.parameters())
        if not self.parameters:
            raise PlssmError("training: nothing to learn, all parameters are frozen.")
        self.vector = as_parts_of_one(self.parameters)
        self.optimiser = torch.optim.RAdam(
            [self.vector], lr=training.learning_rate[0], foreach=False
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: list[dict] = []
        self.step, self.failures, self.slower, self.idle = 0, 0, 1.0, 0
        self.best, self.good = self.vector.detach().clone(), self.vector.detach().clone()
        self.best_score, self.seconds = float("inf"), 0.0
        self.interrupted = False
        self._own = problem.own_updates(self.vector)
        self._fast = problem.fast(self.vector) if self._own is None else None
        self._marks = _marks(training.steps, training.checks)

    # ---- running -------------------------------------------------------------------------------
    def run(self, report: Callable[[int, dict], None] | None = None) -> pd.DataFrame:
        """Trains to the end, and leaves the parameters with the best score in place.

        Args:
            report: Called after every check with the step and the measures, and once with the step
                and the loss when everything is compiled: after the first update, or the first run
                of updates where they come in runs.

        Returns:
            One row per check: step, loss, learning rate, measures, seconds.
        """
        self._resume()
        began, written = time.perf_counter() - self.seconds, time.perf_counter()
        total, training, told = 0.0, self.training, False
        if not self.rows:
            self.problem.project()
            self._check(float("nan"), report)
        try:
            while self.step < training.steps:
                losses = self.update_some()
                total += sum(losses)
                if self.failures > FAILURES:
                    break
                if not losses:
                    continue
                self.seconds = time.perf_counter() - began
                if report is not None and not told and (self._fast is None or len(losses) > 1):
                    report(self.step, {"loss": losses[-1]})
                    told = True
                if self.step in self._marks:
                    self._check(total / (self.step - self._marks[self.step]), report)
                    total = 0.0
                    if training.patience and self.idle >= training.patience:
                        break
                if (
                    training.checkpoint
                    and time.perf_counter() - written > training.seconds_between
                    and self.step in self._marks
                ):
                    self._write()
                    written = time.perf_counter()
        except KeyboardInterrupt:
            self.interrupted = True
            warnings.warn(
                "training was interrupted; the best parameters so far are kept.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._copy(self.best if self.best_score < float("inf") else self.good)
        self.problem.project()
        if training.checkpoint and not self.interrupted:
            self._write()
        return pd.DataFrame(self.rows)

    def update_some(self) -> list[float]:
        """Makes one update, or those up to the next check or learning rate.

        Returns:
            The losses of the updates made. The one after them was not finite where there are fewer
            than wanted, or none; training has gone back then.
        """
        progress = self.step / self.training.steps
        if self._own is not None:
            return self._own_update(self._own, progress)
        if self.step % EPOCH == 0:
            first, last = self.training.learning_rate
            for group in self.optimiser.param_groups:
                group["lr"] = self.slower * first * (last / first) ** progress
        state = self.optimiser.state.get(self.vector)
        ready = self._fast.ready() if self._fast is not None and state else 0
        if not ready:
            loss = self._update(progress)
            losses, count = np.array([] if loss is None else [loss]), 1
        else:
            losses, count = self._run_of_updates(ready, state)
        self.step += len(losses)
        if len(losses) < count:
            self._go_back()
        return losses.tolist()

    def _own_update(self, own: OwnUpdates, progress: float) -> list[float]:
        """One update of the problem's own."""
        loss = own.update(self.vector, progress, self.generator)
        if loss is None:
            own.went_back()
            self._go_back()
            return []
        self.step += 1
        self.problem.project()
        return [loss]

    def _run_of_updates(self, ready: int, state: dict[str, Tensor]) -> tuple[np.ndarray, int]:
        """Updates up to the next check or learning rate, `ready` at most; how many were wanted."""
        check = next(mark for mark in self._marks if mark > self.step)
        count = min(ready, check - self.step, EPOCH - self.step % EPOCH)
        moments = Moments(
            state["exp_avg"], state["exp_avg_sq"], int(state["step"]),
            self.optimiser.param_groups[0]["lr"], self.training.clip,
        )  # fmt: skip
        steps = np.arange(self.step, self.step + count)
        losses = self._fast.run(self.vector, moments, steps / self.training.steps, self.generator)
        state["step"] += len(losses)
        return losses, count

    def _update(self, progress: float) -> float | None:
        """One update; None where the loss or its gradient is not finite."""
        loss = self.problem.loss(progress, self.generator)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        flat = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(gradients, self.parameters, strict=True)
        ]
        gradient = torch.cat(flat)
        value, norm = float(loss.detach()), float(gradient.norm())
        if not (norm < float("inf") and value == value):
            return None
        if norm > self.training.clip:
            gradient *= self.training.clip / norm
        self.vector.grad = gradient
        held = self.vector.detach().clone() if self._gathering() else None
        self.optimiser.step()
        if held is not None:
            self._copy(held)
        self.problem.project()
        return value

    def _gathering(self) -> bool:
        """Whether this update is one of the first and not to be made."""
        state = self.optimiser.state.get(self.vector)
        return not self.training.raw_start and (not state or int(state["step"]) < RAW)

    def _go_back(self) -> None:
        """Returns to the last good state with half the learning rate."""
        self.failures += 1
        self.slower *= 0.5
        self._copy(self.good)
        self.problem.project()
        self.problem.went_back()
        self.optimiser.state.clear()
        for group in self.optimiser.param_groups:
            group["lr"] *= 0.5
        warnings.warn(
            f"step {self.step}: the loss is not finite; training goes on from the last good "
            "parameters with smaller steps."
            if self.failures <= FAILURES
            else f"step {self.step}: the loss is not finite for the {self.failures}th time; "
            "training ends and the best parameters so far are kept.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _check(self, loss: float, report: Callable[[int, dict], None] | None) -> None:
        """Takes the measures, and keeps the state if it is the best."""
        rate = self.optimiser.param_groups[0]["lr"] if self._own is None else math.nan
        measures = self.problem.measures()
        if math.isnan(measures["score"]):
            measures["score"] = loss if self.rows else float("inf")
        row = {"step": self.step, "loss": loss, "learning_rate": rate}
        row |= measures | {"seconds": self.seconds}
        self.rows.append(row)
        if math.isfinite(measures["score"]) or not math.isfinite(self.best_score):
            self.good.copy_(self.vector.detach())
        if measures["score"] < self.best_score:
            self.best.copy_(self.vector.detach())
            self.best_score, self.idle = measures["score"], 0
        elif not self._gathering():
            self.idle += 1
        if report is not None:
            report(self.step, row)

    def _copy(self, values: Tensor) -> None:
        with torch.no_grad():
            self.vector.copy_(values)

    # ---- checkpoints ---------------------------------------------------------------------------
    def _write(self) -> None:
        state = self.optimiser.state[self.vector]
        tensors = {
            "vector": self.vector.detach(), "best": self.best, "good": self.good,
            "generator": self.generator.get_state(),
        }  # fmt: skip
        tensors |= {f"optimiser.{k}": v for k, v in state.items()}
        beside = self.problem.state()
        own = {} if self._own is None else self._own.state()
        tensors |= {PROBLEM + k: v for k, v in beside.items() if isinstance(v, Tensor)}
        numbers = {
            "identity": self.identity, "step": self.step, "failures": self.failures,
            "slower": self.slower, "idle": self.idle, "best_score": self.best_score,
            "seconds": self.seconds, "learning_rate": self.optimiser.param_groups[0]["lr"],
            "rows": self.rows, "own": own,
            "problem": {k: v for k, v in beside.items() if not isinstance(v, Tensor)},
        }  # fmt: skip
        write_checkpoint(Path(self.training.checkpoint), tensors, numbers)

    def _resume(self) -> None:
        """Goes on from the checkpoint, where there is one of the same settings and data."""
        path = self.training.checkpoint
        if not path or not Path(path).exists():
            return
        tensors, numbers = read_checkpoint(Path(path))
        if numbers["identity"] != self.identity:
            raise PlssmError(
                f"the checkpoint {path} belongs to other settings or data; delete it to start "
                "afresh, or give another file."
            )
        self._copy(tensors["vector"])
        self.problem.project()
        self.best.copy_(tensors["best"])
        self.good.copy_(tensors["good"])
        self.generator.set_state(tensors["generator"])
        self.optimiser.state[self.vector] = {
            k.split(".")[1]: v for k, v in tensors.items() if k.startswith("optimiser.")
        }
        for group in self.optimiser.param_groups:
            group["lr"] = numbers["learning_rate"]
        for name in ("step", "failures", "slower", "idle", "best_score", "seconds", "rows"):
            setattr(self, name, numbers[name])
        held = {k.removeprefix(PROBLEM): v for k, v in tensors.items() if k.startswith(PROBLEM)}
        self.problem.restore(numbers["problem"] | held)
        if self._own is not None:
            self._own.restore(numbers["own"])


def _marks(steps: int, checks: int) -> dict[int, int]:
    """Steps at which measures are taken, and the one before each."""
    ends = sorted({max(round(steps * (i + 1) / checks), 1) for i in range(checks)})
    return dict(zip(ends, [0, *ends[:-1]], strict=True))


def as_parts_of_one(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """Makes parameters views of one vector, which is returned."""
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    first = 0
    for p in parameters:
        p.data = vector.data[first : first + p.numel()].view_as(p)
        first += p.numel()
    return vector
