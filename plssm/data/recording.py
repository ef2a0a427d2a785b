"""Recordings in seconds, each signal on its own time base, and their way onto a latent clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from plssm.data.alignment import Route, input_rows
from plssm.data.clock import covering_step, nearest_step, steps_in
from plssm.data.dataset import Dataset
from plssm.data.forms import numbers
from plssm.data.signals import Events, Signal, check_signal
from plssm.data.trial import Trial
from plssm.data.validation import check_channels as require_channels
from plssm.data.validation import check_complete, check_dt, check_known
from plssm.errors import DataError

__all__ = ["Recording"]


@dataclass(eq=False, repr=False)
class Recording:
    """One session of one subject: named signals in seconds, trials and inputs.

    Args:
        signals: Signals and events by modality name.
        trials: Start and stop of each trial in seconds [k, 2], a table with columns start, stop
            and, if there are names, name; None is one trial from the earliest start to the
            latest end.
        inputs: What drove the subject: a Signal, of which each step takes the last value before
            its end, or Events, which are counted.
        subject: Name of the subject.
        session: Name of the session.
        meta: Anything else worth keeping.

    Raises:
        DataError: If anything is wrong; the message names the modality and the place.

    Example:
        >>> import numpy as np
        >>> spikes = Events((np.array([0.02, 0.03, 0.91]), np.array([0.5])), support=(0.0, 1.0))
        >>> data = Recording({"spikes": spikes}).to_dataset(dt=0.25)
        >>> data.values("spikes")[0].T.tolist()
        [[2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    """

    signals: Mapping[str, Signal | Events]
    trials: np.ndarray | pd.DataFrame | None = None
    inputs: Signal | Events | None = None
    subject: str = "0"
    session: str = "0"
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.signals, Mapping) or not self.signals:
            raise DataError(
                "a recording needs a signal",
                got=type(self.signals).__name__,
                wanted="a mapping from name to Signal or Events",
            )
        for name, signal in self.signals.items():
            check_signal(signal, name)
        if self.inputs is not None:
            check_signal(self.inputs, "inputs")
            if isinstance(self.inputs, Signal):
                check_complete(self.inputs.values, "inputs", "all")

    def __repr__(self) -> str:
        trials = 1 if self.trials is None else len(self.trials)
        lines = [
            f"Recording: subject {self.subject!r}, session {self.session!r}, "
            f"{trials} trial{'' if trials == 1 else 's'}"
        ]
        lines += [f"  {name}: {signal!r}" for name, signal in self.signals.items()]
        if self.inputs is not None:
            lines.append(f"  inputs: {self.inputs!r}")
        return "\n".join(lines)

    def to_dataset(
        self,
        dt: float,
        *,
        resample: Mapping[str, str] | None = None,
        check_channels: bool = True,
    ) -> Dataset:
        """Return the recording on a latent clock of steps of dt seconds.

        Events are summed in each step; a step that the support does not wholly cover is missing.
        A signal sampled every dt seconds goes to the steps; so does a faster one, for which
        ``resample`` says how (counts are summed). A slower signal keeps its samples and times;
        each belongs to the nearest step. Trials end with their last whole step.

        Args:
            dt: Seconds per latent step.
            resample: "mean" or "last" for each signal that is sampled faster than dt; entries
                for slower signals have no effect.
            check_channels: False to accept channels that are never observed or never vary.

        Returns:
            The dataset, one trial per trial of the recording.

        Raises:
            DataError: If a fast signal is not named in resample, a trial is empty, or the data
                do not pass the checks of the border.
        """
        dt, resample = check_dt(dt), dict(resample or {})
        check_known(resample, self.signals, "resample")
        routes = {
            name: Route.choose(name, signal, dt, resample.get(name))
            for name, signal in self.signals.items()
        }
        starts, stops, names = self._windows(dt, routes)
        trials = []
        for start, stop, name in zip(starts, stops, names):
            trials.append(self._trial(start, steps_in(stop - start, dt), name, dt, routes))
        kinds = {m: getattr(s, "kind", "count") for m, s in self.signals.items()}
        if check_channels:
            require_channels(trials, kinds)
        return Dataset(trials, dt, kinds)

    def _trial(
        self, start: float, steps: int, name: str, dt: float, routes: Mapping[str, Route]
    ) -> Trial:
        if steps < 1:
            raise DataError(
                "the trial is empty",
                trial=name,
                axis="time",
                got=f"no whole step of {dt:g} s from {start:g} s on",
                wanted="at least one step",
                fix="make the trial longer or dt smaller",
            )
        blank = Trial(
            {},
            {},
            {},
            length=steps,
            start=start,
            name=name,
            subject=str(self.subject),
            session=str(self.session),
        )
        parts = {m: route(self.signals[m], blank, dt) for m, route in routes.items()}
        given = {m: p.nuisance for m, p in parts.items() if p.nuisance is not None}
        driven = None
        if self.inputs is not None:
            driven = input_rows(self.inputs, blank, dt)
        return replace(
            blank,
            values={m: p.values for m, p in parts.items()},
            times={m: p.times for m, p in parts.items()},
            clock={m: p.clock for m, p in parts.items()},
            nuisance=given,
            inputs=driven,
        )

    def _windows(
        self, dt: float, routes: Mapping[str, Route]
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        if self.trials is None:
            return (*self._extent(dt, routes), ["0"])
        names = None
        if isinstance(self.trials, pd.DataFrame):
            absent = {"start", "stop"} - set(self.trials.columns)
            if absent:
                raise DataError(
                    "the table of trials lacks columns",
                    got=list(self.trials.columns),
                    wanted=sorted(absent),
                )
            table = numbers(self.trials[["start", "stop"]], "trials")
            names = self.trials["name"].astype(str).tolist() if "name" in self.trials else None
        else:
            table = np.atleast_2d(numbers(self.trials, "trials"))
        wrong = table.ndim != 2 or table.shape[-1] != 2 or not len(table)
        if wrong or not np.isfinite(table).all() or (table[:, 0] >= table[:, 1]).any():
            raise DataError(
                "trials are not windows of time",
                axis="time",
                got=f"shape {table.shape}" if wrong else f"{table[:3].tolist()} ...",
                wanted="finite start < stop seconds, shape [k, 2]",
            )
        names = [str(i) for i in range(len(table))] if names is None else names
        return table[:, 0], table[:, 1], names

    def _extent(self, dt: float, routes: Mapping[str, Route]) -> tuple[np.ndarray, np.ndarray]:
        start = min(s.span()[0] for s in self.signals.values())
        stops = []
        for name, signal in self.signals.items():
            stop = signal.span()[1]
            if isinstance(signal, Signal):
                step = nearest_step if routes[name].how in ("place", "own") else covering_step
                stop = start + (int(step(np.array(stop - start), dt)) + 1) * dt
            stops.append(stop)
        return np.array([start]), np.array([max(stops)])
