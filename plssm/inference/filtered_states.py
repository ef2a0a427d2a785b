"""Filtered states of all trials, as a training through a filter last saw them."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.dynamics import PiecewiseLinear
from plssm.inference.augmented_filter import run_filter
from plssm.inference.batch_windows import BatchWindow
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.encoder_starts import EncoderStarts
from plssm.inference.filter_form import filter_form
from plssm.inference.filter_options import FilterOptions
from plssm.inference.filtering import filter_batch
from plssm.inference.innovations import Innovations, innovations
from plssm.inference.observed_starts import observed_starts, spread_of
from plssm.inference.state_smoother import joined_states
from plssm.model import StateSpaceModel

__all__ = ["FilteredStates"]

STARTS = ("filtered", "observed", "encoder", "data")
BY_STEP = ("observed", "encoder")  # whose covariances differ from step to step


class FilteredStates:
    """Where windows start, and where their terms are expanded first.

    Args:
        model: The model.
        batch: The trials.
        start: First states of windows within a trial: "filtered" takes what the filter knew there
            when it last went by (in an earlier window or a pass through the trial), "observed"
            what the observations before say without the map (see :func:`observed_starts`),
            "encoder" what a network has learned to make of them (:class:`EncoderStarts`), "data"
            only mean and covariance of all states, so that the window's own data must find it.
        propagation: How the filter carries a state on (see :class:`FilterOptions`).
    """

    def __init__(
        self, model: StateSpaceModel, batch: Batch, *, start: str = "filtered",
        propagation: str = "linearised",
    ) -> None:  # fmt: skip
        self.batch, self.start, self.propagation = batch, start, propagation
        self.joined = joined_states(model, batch.dt)
        shape = (len(batch), batch.steps, self.joined.size)
        self.point = torch.zeros(shape, dtype=torch.float64)
        self.before = torch.zeros(shape, dtype=torch.float64)
        self.covariance = torch.eye(shape[2], dtype=torch.float64)
        if start in BY_STEP:
            self.covariance = self.covariance.expand(*shape, shape[2])
        self.encoder = None
        if start == "encoder":
            self.encoder = EncoderStarts(model, batch, self.joined.size)
        self._quadratic = all(o.quadratic for o in model.observations.values())
        self._begun = self._quadratic

    @torch.no_grad()
    def refresh(self, model: StateSpaceModel) -> Innovations:
        """Filters all trials with the model as it is.

        Args:
            model: The model.
        """
        form = filter_form(model, self.batch, self.joined, propagation=self.propagation)
        if not self._begun:
            self.point, self._begun = self._guarded(model), True
        found = innovations(model, self.batch, self.joined, form, point=self.point)
        if not self._quadratic and not bool(found.settled.all()):
            point = self._guarded(model)
            found = innovations(model, self.batch, self.joined, form, point=point, sweeps=24)
        run, inside = found.run, self.batch.time_mask
        if bool(torch.isfinite(run.filtered_mean).all()):
            self.point, self.before = run.filtered_mean, run.predicted_mean
            later = inside[:, 1:] if self.batch.steps > 1 else inside
            seen = run.predicted_covariance[:, -later.shape[1] :][later]
            self.covariance = seen.mean(0) if len(seen) else self.covariance
            self._spread(model, found)
        return found

    def _spread(self, model: StateSpaceModel, found: Innovations) -> None:
        """First states that do not rest on what the filter knew."""
        run, inside, mean = found.run, self.batch.time_mask, found.run.filtered_mean
        if self.start == "observed":
            own = run.filtered_covariance[..., : model.dim, : model.dim]
            spread = spread_of(mean[..., : model.dim], own, inside)
            self.before, self.covariance = observed_starts(
                model, self.batch, self.joined, spread, point=self.point
            )
        elif self.encoder is not None:
            told = inside & (found.settled | ~found.settled.any())[:, None]
            spread = spread_of(mean, run.filtered_covariance, told)
            self.encoder.learn(found, spread)
            self.before, self.covariance = self.encoder.starts(spread)
        elif self.start == "data":
            states = mean[inside]
            self.before = states.mean(0).expand_as(self.before)
            away = states - states.mean(0)
            self.covariance = self.covariance + away.T @ away / len(states)

    def _guarded(self, model: StateSpaceModel) -> Tensor:
        """Filtered joined states by a filter whose updates never go downhill [B, T, D]."""
        if not isinstance(model.dynamics, PiecewiseLinear):
            return torch.zeros_like(self.point)
        if self.joined.size == model.dim:
            options = FilterOptions(propagation=self.propagation)
            mean = filter_batch(model, self.batch, options).mean
        else:
            prior = ChainPrior.of(model.dynamics, self.batch)
            expected = self.propagation == "moments"
            run = run_filter(model, self.batch, prior, self.joined, expected=expected)
            mean = torch.from_numpy(run.filtered[0])
        return torch.where(self._inside(), torch.nan_to_num(mean), 0.0)

    def state(self) -> dict[str, Tensor]:
        """What resuming needs."""
        own = {"point": self.point, "before": self.before, "covariance": self.covariance}
        return own | ({} if self.encoder is None else self.encoder.state())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` returned."""
        self.point, self.before = state["point"], state["before"]
        self.covariance, self._begun = state["covariance"], True
        if self.encoder is not None:
            self.encoder.restore(state)

    def _inside(self) -> Tensor:
        return self.batch.time_mask[..., None]

    def first(self, window: BatchWindow) -> tuple[Tensor, Tensor, Tensor]:
        """First states of windows, before their data: mean, covariance, where they are known."""
        at, covariance = (window.row, window.start), self.covariance
        covariance = covariance[at] if self.start in BY_STEP else covariance
        return self.before[at], covariance, window.start > 0

    def points(self, window: BatchWindow) -> Tensor:
        """Where to expand a window's terms first [B, T, D]."""
        steps = window.start[:, None] + torch.arange(window.batch.steps)
        return self.point[window.row[:, None], steps.clamp_max(self.batch.steps - 1)]

    @torch.no_grad()
    def keep(self, window: BatchWindow, found: Innovations, steps: Tensor) -> None:
        """Remembers what the filter found in windows.

        Args:
            window: The windows.
            found: What it found.
            steps: Steps at which it had warmed up and taken in the data, bool [B, T].
        """
        mean, before = found.run.filtered_mean, found.run.predicted_mean
        at = window.start[:, None] + torch.arange(window.batch.steps)
        good = steps & found.settled[:, None]
        rows = window.row[:, None].expand_as(at)[good]
        self.point[rows, at[good]] = mean[good]
        if self.start == "filtered":
            self.before[rows, at[good]] = before[good]
