"""Neurodata Without Borders (NWB 2): recordings in, posteriors out. Needs the extra ``io``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from plssm.data import _nwb_columns as columns
from plssm.data._nwb_file import contents, find, opened, require_pynwb
from plssm.data._nwb_posterior import write_posterior_nwb
from plssm.data.recording import Recording
from plssm.data.signals import Events, Signal
from plssm.errors import DataError

__all__ = ["read_nwb", "write_posterior_nwb"]

LARGEST = 2**27
"""Numbers (1 GiB) above which a time series is read only if it is named."""

NO_SIGNAL = {
    "ImageSeries": "images",
    "SpikeEventSeries": "wave forms",
    "IndexSeries": "indices of images",
    "IntervalSeries": "intervals",
}
"""Time series whose values are no channels of a recording."""

SPIKES = "spikes"


def read_nwb(
    path: str | os.PathLike[str],
    *,
    signals: Sequence[str] | Mapping[str, str] | None = None,
    units: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    trials: bool | str = True,
    inputs: str | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Recording:
    """Read an NWB file into a recording; all times are seconds from the session start.

    ==================  ========================================================================
    in the file         in the recording
    ==================  ========================================================================
    units               `Events`; observation intervals are the support, of each unit where they
                        differ, else units count as seen from the first to the last time read
    time series         `Signal`: values times conversion plus offset, NaN kept, further axes
                        flattened to channels
    event tables,       `Events`: one unit, or one per annotation or label
    annotations
    trials              start, stop and name of each trial; the other columns stay in
                        ``recording.trials``
    invalid times       samples become NaN, and events are taken as unseen
    ==================  ========================================================================

    What stands in the file is named by its path (``processing/behavior/Position/position``) or
    an end of it that is unique (``position``). A column of a table is named by the table's path
    and its own name: ``trials/choice`` is one sample per trial, at its start
    (``trials/choice@go_time``: at the time in that column); a column of an event table or of
    intervals other than trials gives events, one unit for each value. Text becomes labels
    0 ... K-1 in alphabetical order, listed in ``recording.meta["classes"]``.

    Args:
        path: The file.
        signals: What to read, as a list or by the names that the modalities shall have; None
            reads all time series with numbers (acquisition and processing) and all events.
        units: Ids of the units of modality "spikes", or ids by modality; None takes all units,
            an empty list none.
        trials: True for the trials table (one trial where there is none), the name of another
            table of intervals, or False for one trial.
        inputs: What drove the subject, as a path.
        kinds: Kind of each signal that is not "continuous"; text columns are labels.

    Returns:
        The recording; ``meta`` has identifier, description, start of the session and the
        scalar columns of the units table.

    Raises:
        CapabilityError: If pynwb is not installed.
        FileNotFoundError: If there is no such file.
        DataError: If it is no NWB file, or does not hold what is asked for.

    References:
        Rübel et al. 2022, doi:10.7554/eLife.78362.
    """
    with opened(path) as file:
        found = contents(file)
        reader = _Reader(found, dict(kinds or {}))
        pieces = {n: reader.piece(n, p) for n, p in reader.chosen(signals).items()}
        pieces |= reader.spikes(file.units, units, taken=pieces)
        driven = None if inputs is None else reader.piece("inputs", reader.path(inputs))
        if unused := set(reader.kinds) - set(pieces):
            raise DataError(
                "kinds names no signal that is read", got=sorted(unused), wanted=sorted(pieces)
            )
        if not pieces:
            raise DataError(
                f"nothing to read in {os.fspath(path)}",
                got=", ".join(found) or "an empty file",
                wanted="units, or time series of numbers",
            )
        table = reader.trials(trials)
        invalid = columns.intervals(found.get("intervals/invalid_times"))
        extent = _extent([*pieces.values(), driven], table)
        return Recording(
            {n: p.finished(extent, invalid) for n, p in pieces.items()},
            trials=table,
            inputs=None if driven is None else driven.finished(extent, invalid[:0]),
            subject=_subject(file),
            session=file.session_id or file.identifier,
            meta=_meta(file, reader.classes),
        )


@dataclass
class _Piece:
    """What becomes one modality, before the extent of the file is known."""

    times: tuple[np.ndarray, ...]
    values: np.ndarray | None = None
    kind: str = "continuous"
    unit: str = ""
    names: tuple[str, ...] = ()
    seen: list[np.ndarray | None] = field(default_factory=list)

    def finished(self, extent: tuple[float, float], invalid: np.ndarray) -> Signal | Events:
        """The signal or the events, with invalid times missing."""
        if self.values is not None:
            times, values = self.times[0], self.values
            for start, stop in invalid:
                values[(times >= start) & (times < stop)] = np.nan
            return Signal(values, times, kind=self.kind, names=self.names, unit=self.unit)  # type: ignore[arg-type]
        whole = np.array([extent])
        each = [whole if seen is None else seen for seen in self.seen] or [whole]
        valid = [columns.without(s, invalid) for s in each]
        if all(np.array_equal(s, valid[0]) for s in valid):
            return Events(self.times, valid[0], names=self.names)
        return Events(self.times, np.array([extent]), tuple(valid), names=self.names)


class _Reader:
    """Reads what is asked for into pieces."""

    def __init__(self, found: Mapping[str, Any], kinds: dict[str, str]) -> None:
        self.found, self.kinds = found, kinds
        self.classes: dict[str, list[str]] = {}

    def path(self, wanted: str) -> str:
        """The full path of what is wanted, a column included."""
        path = find(self.found, wanted)
        if path is None:
            table, _, column = wanted.rpartition("/")
            owner = find(self.found, table) if table else None
            name = column.partition("@")[0]
            if owner is not None and name in getattr(self.found[owner], "colnames", ()):
                return f"{owner}/{column}"
            raise DataError(
                "the file holds nothing of this name",
                got=repr(wanted),
                wanted="a path, the end of one, or a column of a table: "
                + (", ".join(self.found) or "the file holds units only"),
            )
        return path

    def chosen(self, signals: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
        """Paths by modality name."""
        if isinstance(signals, str):
            signals = [signals]
        if isinstance(signals, Mapping):
            return {name: self.path(wanted) for name, wanted in signals.items()}
        if signals is not None:
            return _named([self.path(wanted) for wanted in signals])
        return _named([path for path, thing in self.found.items() if self._usual(path, thing)])

    def _usual(self, path: str, thing: Any) -> bool:
        if path.startswith(("stimulus/", "intervals/")) or _odd(thing):
            return False
        if not isinstance(thing, require_pynwb().TimeSeries):
            return "timestamp" in getattr(thing, "colnames", ()) or hasattr(thing, "timestamps")
        shape = np.shape(thing.data)
        if columns.is_text(thing.data):
            return True
        if np.prod(shape, dtype=float) > LARGEST:
            raise DataError(
                f"{path} is too large to be read unless it is named",
                got=f"shape {shape}",
                wanted=f"at most {LARGEST:.3g} numbers",
                fix=f"name what you want, signals=[...]; there are {', '.join(self.found)}",
            )
        return bool(shape and shape[0])

    def piece(self, name: str, path: str) -> _Piece:
        """What stands at a path."""
        thing = self.found.get(path)
        if thing is None:
            owner, _, column = path.rpartition("/")
            return self._column(name, self.found[owner], owner, column)
        if isinstance(thing, require_pynwb().TimeSeries):
            if reason := _odd(thing):
                raise DataError(f"{path} holds {reason}, which are no signal", modality=name)
            times = columns.sample_times(thing)
            if columns.is_text(thing.data):
                return _events(times, columns.entries(thing.data))
            kind = self.kinds.get(name, "continuous")
            return _Piece((times,), columns.values(thing, path), kind, str(thing.unit))
        if hasattr(thing, "colnames"):
            column = "timestamp" if "timestamp" in thing.colnames else "start_time"
            times = columns.entries(thing[column].data).astype(np.float64)
            by = thing["annotation"].data if "annotation" in thing.colnames else None
            return _events(times, None if by is None else columns.entries(by))
        times = columns.entries(thing.timestamps).astype(np.float64)
        return _events(times, columns.label_names(thing))

    def _column(self, name: str, table: Any, owner: str, column: str) -> _Piece:
        column, _, at = column.partition("@")
        events = "timestamp" in table.colnames
        clock = at or ("timestamp" if events else "start_time")
        if clock not in table.colnames:
            raise DataError(
                f"{owner} has no column of times", got=repr(clock), wanted=list(table.colnames)
            )
        times = columns.entries(table[clock].data).astype(np.float64)
        entries = columns.entries(table[column].data)
        if events or owner != "intervals/trials":
            return _events(times, entries)
        codes, self.classes[name] = columns.codes(entries)
        kind = self.kinds.get(name, "label" if self.classes[name] else "continuous")
        if not self.classes[name]:
            del self.classes[name]
        order = np.argsort(times, kind="stable")[: np.isfinite(times).sum()]  # NaN is last
        return _Piece((times[order],), codes[order, None], kind, names=(column,))

    def spikes(
        self,
        table: Any,
        units: Sequence[int] | Mapping[str, Sequence[int]] | None,
        *,
        taken: Mapping[str, Any],
    ) -> dict[str, _Piece]:
        """Spike trains of the chosen units, by modality."""
        whole = table is not None and "spike_times" in table.colnames
        if units is None:
            units = list(table.id[:]) if whole else []
        wanted = units if isinstance(units, Mapping) else {SPIKES: units}
        out = {}
        for name, ids in wanted.items():
            rows = self._rows(table if whole else None, ids, name)
            if not rows:
                continue
            if name in taken:
                raise DataError(
                    "units and a time series have the same name",
                    modality=name,
                    fix=f"name the series anew, signals={{'{name}_2': ...}}",
                )
            times = tuple(np.asarray(table["spike_times"][r], dtype=np.float64) for r in rows)
            stated = "obs_intervals" in table.colnames
            seen = [columns.observed(table, r) if stated else None for r in rows]
            out[name] = _Piece(times, names=tuple(str(table.id[r]) for r in rows), seen=seen)
        return out

    @staticmethod
    def _rows(table: Any, ids: Sequence[int], modality: str) -> list[int]:
        if len(ids) and table is None:
            raise DataError("the file has no units with spike times", modality=modality)
        known = {} if table is None else {int(unit): row for row, unit in enumerate(table.id[:])}
        absent = [unit for unit in ids if unit not in known]
        if absent:
            raise DataError(
                "there is no such unit", modality=modality, got=absent, wanted=list(known)
            )
        return [known[unit] for unit in ids]

    def trials(self, trials: bool | str) -> pd.DataFrame | None:
        """The table of trials, None for one trial."""
        path = "intervals/trials"
        if trials is False or (trials is True and path not in self.found):
            return None
        table = self.found[path if trials is True else self.path(str(trials))]
        frame = columns.scalar_columns(table)
        if not {"start_time", "stop_time"} <= set(frame):
            raise DataError(
                "the table holds no intervals", got=list(frame), wanted="start_time, stop_time"
            )
        frame = frame.rename(columns={"start": "start_", "stop": "stop_"})
        frame = frame.rename(columns={"start_time": "start", "stop_time": "stop"})
        if "name" not in frame:
            frame.insert(0, "name", [str(i) for i in table.id[:]])
        return frame


def _events(times: np.ndarray, labels: np.ndarray | None) -> _Piece:
    if labels is None:
        return _Piece((times,))
    names = sorted({str(label) for label in labels})
    shown = np.array([str(label) for label in labels])
    return _Piece(tuple(times[shown == name] for name in names), names=tuple(names))


def _odd(thing: Any) -> str:
    """What the values of a time series are, where they are no channels."""
    kinds = {cls.__name__ for cls in type(thing).__mro__}
    return next((what for kind, what in NO_SIGNAL.items() if kind in kinds), "")


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Paths by their last part, or by the whole path where that is not unique."""
    last = [path.rpartition("/")[2] for path in paths]
    names = [n if last.count(n) == 1 and n != SPIKES else p for n, p in zip(last, paths)]
    return {name.replace(".", "_"): path for name, path in zip(names, paths)}


def _extent(pieces: Sequence[_Piece | None], table: pd.DataFrame | None) -> tuple[float, float]:
    """First and last time of everything that was read."""
    times = [t for piece in pieces if piece is not None for t in piece.times]
    times += [s.ravel() for piece in pieces if piece for s in piece.seen if s is not None]
    times += [] if table is None else [table[["start", "stop"]].to_numpy().ravel()]
    every = np.concatenate([np.zeros(0), *times])
    every = every[np.isfinite(every)]
    return (float(every.min()), float(every.max())) if every.size else (0.0, 0.0)


def _subject(file: Any) -> str:
    known = None if file.subject is None else file.subject.subject_id
    return str(known) if known else "0"


def _meta(file: Any, classes: dict[str, list[str]]) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "identifier": file.identifier,
        "description": file.session_description,
        "session_start": file.session_start_time.isoformat(),
        "classes": classes,
    }
    if file.units is not None:
        meta["units"] = columns.scalar_columns(file.units)
    return meta
