"""How one signal of a recording gets onto the latent clock of a trial."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plssm.data.binning import (
    count_events,
    hold,
    place,
    resample,
    spread_delays,
    supported_steps,
)
from plssm.data.clock import own_clock
from plssm.data.signals import Events, Signal
from plssm.data.trial import Trial
from plssm.errors import DataError

__all__ = ["Aligned", "Route", "input_rows"]

_SAME = 0.01
"""A signal whose sample interval is within this share of dt counts as sampled at dt."""


@dataclass(frozen=True)
class Aligned:
    """One modality of one trial.

    Args:
        values: Observations [n, N].
        times: Sample times in seconds from the trial start [n], None on the latent clock.
        clock: Latent step of each sample [n], None on the latent clock.
        nuisance: Nuisance regressors [n, R], or None.
    """

    values: np.ndarray
    times: np.ndarray | None = None
    clock: np.ndarray | None = None
    nuisance: np.ndarray | None = None


@dataclass(frozen=True)
class Route:
    """The way of one signal onto the latent clock, the same in every trial.

    Args:
        name: Name of the modality.
        how: "count", "place", "own", "mean", "last" or "sum".
        interval: Seconds between the samples of the signal.
    """

    name: str
    how: str
    interval: float = np.inf

    @classmethod
    def choose(cls, name: str, signal: Signal | Events, dt: float, resample: str | None) -> Route:
        """Return the route that the sample interval and the user's word call for.

        Args:
            name: Name of the modality.
            signal: The signal.
            dt: Seconds per latent step.
            resample: What the user asks for: "mean", "last", for counts "sum", or None.

        Returns:
            The route.

        Raises:
            DataError: If the signal is faster than dt and nothing fitting is asked for.
        """
        if isinstance(signal, Events):
            return cls(name, "count")
        interval = signal.interval()
        allowed = {"count": ("sum",), "label": ("last",), "ordinal": ("last",)}
        choices = allowed.get(signal.kind, ("mean", "last"))
        if resample is not None and resample not in choices:
            raise DataError(
                f"a signal of kind {signal.kind!r} cannot be resampled like this",
                modality=name,
                got=f"resample {resample!r}",
                wanted=f"one of {choices}",
            )
        if interval > (1 + _SAME) * dt:
            return cls(name, "own", interval)
        if resample is not None or (signal.kind == "count" and interval < (1 - _SAME) * dt):
            return cls(name, resample or "sum", interval)
        if interval >= (1 - _SAME) * dt:
            return cls(name, "place", interval)
        raise DataError(
            "the signal is sampled faster than dt",
            modality=name,
            axis="time",
            got=f"a sample every {interval:g} s, dt = {dt:g} s",
            wanted="how to make one value of the samples of a step",
            fix=f"to_dataset({dt:g}, resample={{{name!r}: {choices[0]!r}}})"
            + (" or 'last'" if len(choices) > 1 else ""),
        )

    def __call__(self, signal: Signal | Events, trial: Trial, dt: float) -> Aligned:
        """Return the signal on the latent clock of a trial.

        Args:
            signal: The signal this route was chosen for.
            trial: The trial, of which start and length are read.
            dt: Seconds per latent step.

        Returns:
            The aligned modality.

        Raises:
            DataError: If two samples at dt fall into one step.
        """
        if isinstance(signal, Events):
            return _counted(signal, trial, dt)
        if self.how == "own":
            return _own_samples(signal, trial, dt)
        values = self._by_delay(signal.values, signal, trial, dt)
        nuisance = None
        if signal.nuisance is not None:
            mean = self if self.how != "sum" else replace(self, how="mean")
            rows = mean._merged(signal.nuisance, signal.times, trial, dt)
            nuisance = np.nan_to_num(rows, nan=0.0)
        return Aligned(values, nuisance=nuisance)

    def _by_delay(self, values: np.ndarray, signal: Signal, trial: Trial, dt: float) -> np.ndarray:
        delays = signal.channel_delay_seconds
        if delays is None:
            return self._merged(values, signal.times, trial, dt)
        merged = np.empty((trial.length, values.shape[1]))
        for delay in np.unique(delays):
            columns = delays == delay
            merged[:, columns] = self._merged(values[:, columns], signal.times + delay, trial, dt)
        return merged

    def _merged(
        self, values: np.ndarray, times: np.ndarray, trial: Trial, dt: float
    ) -> np.ndarray:
        near = _near(times, trial, dt)
        values, times, place_in = values[near], times[near], (trial.start, trial.length, dt)
        if self.how != "place":
            return resample(values, times, *place_in, how=self.how, interval=self.interval)
        placed = place(values, times, *place_in)
        if placed is None:
            raise DataError(
                "two samples fall into one step: the clock drifts or jitters against dt",
                modality=self.name,
                trial=trial.name,
                axis="time",
                got=f"a sample every {self.interval:.9g} s, dt = {dt:g} s",
                wanted="at most one sample per step",
                fix=f"to_dataset({dt:g}, resample={{{self.name!r}: 'last'}})",
            )
        return placed


def input_rows(inputs: Signal | Events, trial: Trial, dt: float) -> np.ndarray:
    """Return the inputs of a trial [T, K].

    Args:
        inputs: A signal, of which each step takes the last value before its end, or events,
            which are counted.
        trial: The trial, of which start and length are read.
        dt: Seconds per latent step.

    Returns:
        Finite numbers [T, K].

    Raises:
        DataError: If the inputs do not cover the trial.
    """
    place_in = (trial.start, trial.length, dt)
    if isinstance(inputs, Signal):
        rows = hold(inputs.values, inputs.times, *place_in)
        known = f"from {inputs.times[0]:g} s on"
    else:
        covered = _seen(inputs, *place_in).all()
        near = [t[_near(t, trial, dt)] for t in inputs.times]
        rows = count_events(near, *place_in) if covered else None
        known = f"on {inputs.support.tolist()} s"
    if rows is None:
        raise DataError(
            "the inputs are not known over the whole trial",
            modality="inputs",
            trial=trial.name,
            axis="time",
            got=f"inputs {known}",
            wanted=f"{trial.start:g} to {trial.start + trial.length * dt:g} s",
            fix="extend the inputs (with zeros where nothing was given) or shorten the trial",
        )
    return rows


def _near(
    times: np.ndarray, trial: Trial, dt: float, before: float = 0.0, after: float = 0.0
) -> slice:
    # Sorted times that may concern the trial: a generous window, so that long recordings are
    # not scanned once per trial.
    low, high = trial.start - before - dt, trial.start + (trial.length + 1) * dt + after
    return slice(*np.searchsorted(times, [low, high]))


def _counted(events: Events, trial: Trial, dt: float) -> Aligned:
    place_in = (trial.start, trial.length, dt)
    counts = count_events([t[_near(t, trial, dt)] for t in events.times], *place_in)
    counts[~np.broadcast_to(_seen(events, *place_in), counts.shape)] = np.nan
    return Aligned(counts)


def _seen(events: Events, start: float, steps: int, dt: float) -> np.ndarray:
    """Which steps lie wholly in the support, [steps, 1], or [steps, units] where units differ."""
    seen = supported_steps(events.support, start, steps, dt)[:, None]
    if events.unit_support is None:
        return seen
    each = [supported_steps(support, start, steps, dt) for support in events.unit_support]
    return seen & np.stack(each, axis=1)


def _own_samples(signal: Signal, trial: Trial, dt: float) -> Aligned:
    delays = signal.channel_delay_seconds
    delays = np.zeros(signal.values.shape[1]) if delays is None else delays
    near = _near(signal.times, trial, dt, before=delays.max(), after=-delays.min())
    seconds = signal.times[near] - trial.start
    rows, seconds, origin = spread_delays(signal.values[near], seconds, delays, trial.length, dt)
    nuisance = None if signal.nuisance is None else signal.nuisance[near][origin]
    return Aligned(rows, seconds, own_clock(seconds, trial.length, dt), nuisance)
