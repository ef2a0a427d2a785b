"""What a recording holds: sampled signals and event times, each on its own time base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from plssm.data.forms import numbers
from plssm.data.trial import KINDS
from plssm.data.validation import check_increasing, check_values
from plssm.errors import DataError

__all__ = ["Events", "Signal", "check_signal"]

Kind = Literal["continuous", "count", "label", "ordinal", "bold"]


@dataclass(frozen=True, eq=False, repr=False)
class Signal:
    """Regular or irregular samples of one or several channels.

    Args:
        values: Samples [n, N] or [n]; NaN = missing.
        times: Sample times in seconds [n], increasing.
        kind: What the numbers mean, one of KINDS.
        nuisance: Nuisance regressors [n, R], or None.
        channel_delay_seconds: Delay of each channel after the sample time [N], or None.
        names: Names of the channels.
        unit: Unit of the values.
    """

    values: np.ndarray
    times: np.ndarray
    kind: Kind = "continuous"
    nuisance: np.ndarray | None = None
    channel_delay_seconds: np.ndarray | None = None
    names: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("values", "times", "nuisance", "channel_delay_seconds"):
            value = getattr(self, name)
            if value is not None:
                array = numbers(value, f"Signal.{name}")
                columns = array.ndim == 1 and name in ("values", "nuisance")
                object.__setattr__(self, name, array[:, None] if columns else array)
        object.__setattr__(self, "names", tuple(self.names))

    def interval(self) -> float:
        """Return the median time between samples in seconds; infinite for a single sample."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else np.inf

    def span(self) -> tuple[float, float]:
        """Return the times of the first and of the last sample in seconds, delays included."""
        delays = [0.0] if self.channel_delay_seconds is None else self.channel_delay_seconds
        low, high = min(0.0, np.min(delays)), max(0.0, np.max(delays))
        return float(self.times[0] + low), float(self.times[-1] + high)

    def __repr__(self) -> str:
        missing = float(np.isnan(self.values).mean()) if self.values.size else 0.0
        return (
            f"Signal({self.kind}, {self.values.shape[1]} channels, {len(self.times)} samples, "
            f"{missing:.1%} missing)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Events:
    """Event times such as spikes, by unit.

    Args:
        times: Event times in seconds, one array per unit, in any order.
        support: When events could be seen: (start, stop) seconds, or several such pairs [k, 2].
        unit_support: When each single unit could be seen, inside the support: one [k, 2] per unit
            (k = 0: never), or None where units do not differ.
        names: Names of the units.
    """

    times: tuple[np.ndarray, ...]
    support: np.ndarray
    unit_support: tuple[np.ndarray, ...] | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        units: Any = tuple(self.times)
        if units and all(np.ndim(u) == 0 for u in units):
            units = (units,)
        object.__setattr__(self, "times", tuple(map(_sorted, units)))
        support = np.atleast_2d(numbers(self.support, "Events.support"))
        object.__setattr__(self, "support", support)
        if self.unit_support is not None:
            each = (numbers(s, "Events.unit_support") for s in self.unit_support)
            object.__setattr__(self, "unit_support", tuple(map(_intervals, each)))
        object.__setattr__(self, "names", tuple(map(str, self.names)))

    def span(self) -> tuple[float, float]:
        """Return the start and the end of the support in seconds."""
        return float(self.support.min()), float(self.support.max())

    def __repr__(self) -> str:
        count = sum(len(t) for t in self.times)
        low, high = self.span()
        return f"Events({len(self.times)} units, {count} events, {low:g} to {high:g} s)"


def _intervals(value: np.ndarray) -> np.ndarray:
    return np.atleast_2d(value) if value.size else np.zeros((0, 2))


def _sorted(times: np.ndarray) -> np.ndarray:
    return np.sort(numbers(times, "Events.times").ravel())


def check_signal(signal: Signal | Events, name: str) -> None:
    """Raise DataError, with the name of the modality, if a signal or events cannot be used."""
    if isinstance(signal, Events):
        _check_events(signal, name)
    elif isinstance(signal, Signal):
        _check_signal(signal, name)
    else:
        raise DataError(
            "this is neither a Signal nor Events",
            modality=name,
            got=type(signal).__name__,
            wanted="ps.Signal(values, times) or ps.Events(times, support)",
        )


def _check_events(events: Events, name: str) -> None:
    for unit, times in enumerate(events.times):
        if not np.isfinite(times).all():
            raise DataError(
                "an event time is not finite",
                modality=name,
                axis=f"channel {unit}",
                wanted="seconds",
                fix="leave the event out",
            )
    support = events.support
    if not events.times or not _are_intervals(support):
        raise DataError(
            "events need units and a support",
            modality=name,
            got=f"{len(events.times)} units, support {support.tolist()}",
            wanted="event times of at least one unit, and start < stop seconds",
        )
    each = events.unit_support
    if each is not None and not (
        len(each) == len(events.times) and all(map(_are_intervals, each))
    ):
        raise DataError(
            "unit_support does not fit the units",
            modality=name,
            got=f"{len(each)} entries for {len(events.times)} units",
            wanted="one array [k, 2] of start < stop seconds per unit",
        )
    _check_names(events.names, len(events.times), name)


def _are_intervals(value: np.ndarray) -> bool:
    shaped = value.ndim == 2 and value.shape[1] == 2 and np.isfinite(value).all()
    return bool(shaped and (value[:, 0] < value[:, 1]).all())


def _check_names(names: tuple[str, ...], channels: int, modality: str) -> None:
    if names and len(names) != channels:
        raise DataError(
            "names do not fit the channels",
            modality=modality,
            axis="channel",
            got=f"{len(names)} names",
            wanted=f"{channels}, one per channel, or none",
        )


def _check_signal(signal: Signal, name: str) -> None:
    if signal.kind not in KINDS:
        raise DataError("unknown kind", modality=name, got=repr(signal.kind), wanted=KINDS)
    values, times = signal.values, signal.times
    if values.ndim != 2 or times.ndim != 1 or len(values) != len(times) or not values.size:
        raise DataError(
            "values and times disagree, or there are none",
            modality=name,
            axis="time",
            got=f"values of shape {values.shape}, times of shape {times.shape}",
            wanted="[n, N] and [n] with n >= 1",
            fix="give one time in seconds per row of values",
        )
    check_increasing(times, name)
    check_values(values, signal.kind, name, "all")
    _check_names(signal.names, values.shape[1], name)
    for what, extra, shape in (
        ("nuisance", signal.nuisance, (len(values), -1)),
        ("channel_delay_seconds", signal.channel_delay_seconds, (values.shape[1],)),
    ):
        fits = extra is None or (
            extra.ndim == len(shape) and extra.shape[0] == shape[0] and np.isfinite(extra).all()
        )
        if extra is not None and not fits:
            raise DataError(
                f"{what} do not fit the values",
                modality=name,
                got=f"shape {extra.shape}",
                wanted=f"finite numbers, shape {[s if s >= 0 else 'R' for s in shape]}",
            )
    delays = signal.channel_delay_seconds
    if delays is not None and len(times) > 1 and np.ptp(delays) >= np.diff(times).min():
        raise DataError(
            "channel delays span a whole sample interval",
            modality=name,
            axis="channel",
            got=f"{np.ptp(delays):g} s",
            wanted=f"less than {np.diff(times).min():g} s",
            fix="give the delay of each channel after the time of its sample",
        )
