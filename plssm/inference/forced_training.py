"""What teacher forcing trains: windows of data, forced paths, and free runs as the measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch
from plssm.dynamics import OneLayerDynamics
from plssm.inference.forced_rollout import forced_error, forced_rollout
from plssm.inference.shrinkage import shrinkage
from plssm.inference.teacher_signal import TeacherSignal
from plssm.inference.trainer import Problem
from plssm.inference.windows import Windows
from plssm.metrics import power_spectrum_distance, state_space_divergence
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.teacher_forcing import TeacherForcing

__all__ = ["ForcedTraining"]

LONGEST = 100_000  # steps of the free runs that are compared with the data
HISTOGRAM, POINTS = 5, 4000  # channels of a histogram; points of a mixture in more channels
SHORTEST = 50  # steps of a trial for its power spectrum


class ForcedTraining(Problem):
    """Predictions one step ahead along forced sequences.

    Args:
        engine: The settings.
        model: A working copy in the precision of the training; changed in place.
        batch: Training trials in that precision.
        check: Trials that free runs are compared with.
        seed: Seed of the start values.
    """

    def __init__(
        self, engine: TeacherForcing, model: StateSpaceModel, batch: Batch, check: Batch, *,
        seed: int,
    ) -> None:  # fmt: skip
        self.engine, self.model = engine, model
        self.signal = TeacherSignal(model, batch)
        length, inputs = batch.length, batch.inputs if model.dynamics.n_inputs else None
        self.windows = Windows(
            self.signal.y, self.signal.mask, length, inputs, steps=engine.sequence + 1
        )
        self.forcing = engine.scheme.begin()
        self.hidden = (~self.signal.seen_states).nonzero()[:, 0]
        seen, generator = model.dim - len(self.hidden), torch.Generator().manual_seed(seed)
        bound = (6.0 / max(model.dim, 1)) ** 0.5
        values = (2 * torch.rand(len(self.hidden), seen, generator=generator) - 1) * bound
        self.first_state = nn.Parameter(values.to(self.signal.y))
        self.check, self.steps_done = check, 0
        self.checked = TeacherSignal(model, check)
        self.samples = max(int(self.signal.mask.sum()), 1)
        self._penalised = bool(model.dynamics.penalty().requires_grad)
        self._jitter = engine.noise * self._spread()

    def parameters(self) -> Sequence[nn.Parameter]:
        """The map, a mixing read-out, and the map to the hidden part of the first state."""
        dynamics = self.model.dynamics
        fixed = {*dynamics.noise.parameters(), *dynamics.initial.parameters()}
        found = [p for p in dynamics.parameters() if p.requires_grad and p not in fixed]
        found += self.signal.parameters()
        return [p for p in [*found, self.first_state] if p.numel()]

    def loss(self, progress: float, generator: torch.Generator) -> Tensor:
        """Mean squared error of the un-forced predictions in a batch of windows."""
        engine, signal, dynamics = self.engine, self.signal, self.model.dynamics
        y, mask, inputs = self.windows.draw(engine.batch_size, generator)
        before, after = (None, None) if mask is None else (mask[:, :-1], mask[:, 1:])
        teacher, known = signal.teacher(y[:, :-1], before)
        if engine.noise:
            draws = torch.randn(teacher.shape, generator=generator, dtype=teacher.dtype)
            teacher = torch.addcmul(teacher, draws, self._jitter)
        share = self.forcing.shares(teacher.shape[1], progress, generator).to(teacher)
        run = (dynamics, self.start(teacher[:, 0]), teacher, known * share[:, None])
        run = (*run, None if inputs is None else inputs[:, 1:])
        if signal.selects:
            target, precision, count = signal.target(y[:, 1:], after)
            total = forced_error(*run, target=target, precision=precision, count=count)
        else:
            total = signal.loss(forced_rollout(*run), y[:, 1:], after)
        self._adapt(teacher)
        if engine.shrink:
            own = self.first_state.square().sum()
            total = total + engine.shrink * (shrinkage(dynamics) + own)
        if self._penalised:
            total = total + dynamics.penalty() / self.samples
        return total

    def project(self) -> None:
        """Keeps the orbits of clipped maps bounded, if wanted."""
        if self.engine.bounded and isinstance(self.model.dynamics, OneLayerDynamics):
            self.model.dynamics.bound_orbits()

    def _spread(self) -> Tensor:
        """Standard deviation of the forced states [M]."""
        states, known = self.signal.teacher(self.signal.y, self.signal.mask)
        count = known.sum((0, 1)).clamp_min(1)
        mean = states.sum((0, 1)) / count
        return (torch.where(known, states - mean, 0.0).square().sum((0, 1)) / count).sqrt()

    def start(self, teacher: Tensor) -> Tensor:
        """First states [B, M] from the teacher's: the hidden part is a learned linear map."""
        if not len(self.hidden):
            return teacher
        seen = teacher[:, self.signal.seen_states]
        return teacher.index_copy(1, self.hidden, seen @ self.first_state.T)

    @torch.no_grad()
    def _adapt(self, teacher: Tensor) -> None:
        scheme = self.engine.scheme
        if scheme.adaptive and self.steps_done % 5 == 0:
            scheme.adapt(self.model.dynamics.jacobian(teacher), self.forcing)
        self.steps_done += 1

    # ---- measures ------------------------------------------------------------------------------
    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """Divergence and spectral distance of free runs from the data; their sum is the score."""
        runs, truth = self.free_runs()
        if not truth or (np.concatenate(truth).std(0) == 0).any():
            return {"score": 0.0, "d_stsp": 0.0, "d_h": 0.0, "alpha": self.forcing.alpha}
        if not all(np.isfinite(r).all() and np.abs(r).max() < 1e6 for r in runs):
            return {"score": np.inf, "d_stsp": np.inf, "d_h": 1.0, "alpha": self.forcing.alpha}
        seen = slice(None, None, self._stride)
        pair = {"truth": [t[seen] for t in truth], "pred": [r[seen] for r in runs]}
        d_stsp = float(state_space_divergence(**pair, samples=500, floor=False))
        d_h = 0.0
        if min(len(t) for t in truth) >= SHORTEST:
            d_h = float(power_spectrum_distance(truth=truth, pred=runs, floor=False))
        return {
            "score": d_stsp + d_h, "d_stsp": d_stsp, "d_h": d_h, "alpha": self.forcing.alpha
        }  # fmt: skip

    @property
    def _stride(self) -> int:
        """Steps between the states that are compared: mixtures of many points take long."""
        if self.signal.y.shape[-1] <= HISTOGRAM:
            return 1
        return max(int(self.check.length.sum()) // POINTS, 1)

    def free_runs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Free runs from the first observed states of the trials and the data, standardised."""
        signal, length = self.checked, self.check.length.clamp_max(LONGEST)
        first = signal.mask.all(-1).to(torch.uint8).argmax(1)
        rows, steps = torch.arange(len(length)), int(length.max())
        teacher, _ = signal.teacher(signal.y[rows, first], signal.mask[rows, first])
        inputs = self.check.inputs if self.model.dynamics.n_inputs else None
        if inputs is not None:
            ahead = (first[:, None] + 1 + torch.arange(steps)).clamp_max(inputs.shape[1] - 1)
            inputs = inputs[rows[:, None], ahead]
        path = self.model.dynamics.rollout(self.start(teacher), steps, noise=False, inputs=inputs)
        mean, sd = self.signal.mean, self.signal.sd
        pred = ((signal.predict(path) - mean) / sd).double().numpy()
        true = ((signal.y - mean) / sd).double().numpy()
        runs, data = [], []
        for trial, n in enumerate(length.tolist()):
            seen = signal.mask[trial, :n].all(-1).numpy()
            if seen.sum() > 1:
                runs.append(pred[trial, :n])
                data.append(true[trial, :n][seen])
        return runs, data

    def state(self) -> dict[str, float]:
        """The strength of the forcing, which follows the training."""
        return {"alpha": self.forcing.alpha, "steps_done": self.steps_done}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back the strength of the forcing."""
        self.forcing.alpha, self.steps_done = state["alpha"], int(state["steps_done"])
