"""Posteriors and predictions into NWB files, without ever harming a file that is there."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from plssm.data._nwb_file import opened, require_pynwb
from plssm.data.clock import TOLERANCE
from plssm.data.dataset import Dataset
from plssm.errors import DataError, ShapeError

__all__ = ["write_posterior_nwb"]

MODULE = "plssm"


def write_posterior_nwb(
    path: str | os.PathLike[str],
    posterior: Any,
    data: Dataset,
    *,
    source: str | os.PathLike[str] | None = None,
    predictions: Mapping[str, Any] | None = None,
    name: str = "latent",
    starts: Sequence[float] | None = None,
    session_start: datetime | None = None,
    description: str = "posterior of the latent path of a state-space model",
) -> Path:
    """Write the posterior of the latent path, and predictions, to an NWB file.

    The processing module "plssm" gets the time series ``latent_mean`` and ``latent_sd``, the
    trials one after another, and the table ``latent_trials`` of their starts, stops and names.
    The file appears whole or not at all; what is copied from ``source`` stays as it is.

    Args:
        path: File to write. It must not exist, unless it is the source itself, which is then
            replaced by its extended copy once that is complete.
        posterior: What ``fit.posterior(data)`` returned, or a pair (mean, sd), each
            ``[B, T, M]``.
        data: The dataset the posterior belongs to: it knows the times.
        source: NWB file to extend; None makes a new file with subject and session of the data.
        predictions: By modality, what ``fit.predict`` returned, or a pair (mean, sd), each
            ``[B, n, N]`` on the samples of the modality. They become ``<modality>_mean`` and
            ``<modality>_sd``, for labels and levels ``<modality>_probabilities`` (a column for
            each class of each channel).
        name: First part of the names, so that several posteriors fit into one file.
        starts: Start of each trial in seconds, where the dataset does not know them.
        session_start: Start of the session in a new file; 1 January 1970 where it is not known.
        description: What is said about the posterior in the file.

    Returns:
        The path.

    Raises:
        CapabilityError: If pynwb is not installed.
        DataError: If the file exists, the trials overlap or are of several sessions, or names
            are taken.
        ShapeError: If posterior and data do not fit each other.
    """
    require_pynwb()
    path = Path(path)
    origin = None if source is None else Path(source)
    if path.exists() and not (origin is not None and origin.exists() and path.samefile(origin)):
        raise DataError(
            f"{path} exists",
            fix="choose another name, or pass source= to extend that file",
        )
    layout = _Layout.of(data, starts)
    series = _latent_series(posterior, layout, name, description)
    for modality, prediction in (predictions or {}).items():
        series += _predicted_series(modality, prediction, layout, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part.nwb")
    os.close(handle)
    try:
        if origin is None:
            _new_file(part, layout, series, posterior, name, session_start)
        else:
            _extend(part, origin, layout, series, posterior, name)
        with opened(part) as file:  # a file that cannot be read never takes the place of another
            file.processing[MODULE].data_interfaces[f"{name}_mean"].data[:1]
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


@dataclass(frozen=True)
class _Layout:
    """The trials of one session in the order of time.

    Args:
        data: The dataset.
        order: Trial numbers by start.
        starts: Start of each trial of the dataset in seconds.
    """

    data: Dataset
    order: list[int]
    starts: np.ndarray

    @classmethod
    def of(cls, data: Dataset, starts: Sequence[float] | None) -> _Layout:
        """Refuse several sessions, and trials that overlap."""
        pairs = sorted(set(zip(data.subjects, data.sessions)))
        if len(pairs) > 1:
            raise DataError(
                "an NWB file holds one session of one subject",
                got=f"{len(pairs)} of them: {pairs[:3]} ...",
                wanted="one",
                fix="write one file per session: data.select(subjects=..., sessions=...)",
            )
        given = [t.start for t in data.trials] if starts is None else list(starts)
        begin = np.asarray(given, dtype=np.float64)
        if begin.shape != (len(data),) or not np.isfinite(begin).all():
            raise ShapeError(
                f"starts: got {begin.shape}, wanted {len(data)} finite numbers, one per trial."
            )
        order = np.argsort(begin, kind="stable")
        ends = (begin + data.lengths * data.dt)[order][:-1]
        late = np.flatnonzero(begin[order][1:] < ends - TOLERANCE * data.dt)
        if late.size:
            a, b = (data.trial_names[order[late[0] + k]] for k in (0, 1))
            raise DataError(
                "trials overlap in time, so they cannot stand in one time series",
                trial=b,
                got=f"it starts before trial {a!r} has ended",
                fix="pass starts=[...], the start of each trial in the session in seconds",
            )
        return cls(data, [int(i) for i in order], begin)

    def seconds(self, modality: str | None = None) -> list[np.ndarray]:
        """Times of the latent steps, or of the samples of a modality, by trial in order."""
        dt, trials = self.data.dt, self.data.trials
        return [
            self.starts[i]
            + (
                np.arange(trials[i].length) * dt
                if modality is None
                else np.asarray(trials[i].seconds(modality, dt))
            )
            for i in self.order
        ]

    def rows(self, array: Any, modality: str | None, what: str) -> np.ndarray:
        """One row per time, [rows, N], of an array [B, n, N]."""
        values = np.asarray(array, dtype=np.float64)
        counts = [len(s) for s in self.seconds(modality)]
        fits = values.ndim == 3 and len(values) == len(self.order)
        if not fits or values.shape[1] < max(counts):
            raise ShapeError(
                f"{what}: got shape {values.shape}, wanted [{len(self.order)} trials, "
                f"{max(counts)} steps, features]."
            )
        return np.concatenate([values[i, :n] for i, n in zip(self.order, counts)])


@dataclass(frozen=True)
class _Series:
    """One time series to be written."""

    name: str
    rows: np.ndarray
    times: list[np.ndarray]
    dt: float
    description: str

    def made(self) -> Any:
        """The pynwb object; one regular trial has a rate, anything else its timestamps."""
        times = np.concatenate(self.times)
        clock: dict[str, Any] = {"timestamps": times}
        if len(times) == 1 or np.allclose(np.diff(times), self.dt, rtol=0, atol=1e-9 * self.dt):
            clock = {"rate": 1.0 / self.dt, "starting_time": float(times[0])}
        return require_pynwb().TimeSeries(
            name=self.name,
            data=self.rows,
            unit="unknown",
            description=self.description,
            **clock,
        )


def _latent_series(posterior: Any, layout: _Layout, name: str, description: str) -> list[_Series]:
    if isinstance(posterior, tuple):
        mean, sd = posterior
    else:
        mean = posterior.mean
        variances = np.diagonal(np.asarray(posterior.covariance()), axis1=-2, axis2=-1)
        sd = np.sqrt(np.maximum(variances, 0.0))
    times, dt = layout.seconds(), layout.data.dt
    parts = {"mean": (mean, description), "sd": (sd, f"standard deviation: {description}")}
    return [
        _Series(f"{name}_{what}", layout.rows(array, None, f"posterior {what}"), times, dt, text)
        for what, (array, text) in parts.items()
    ]


def _predicted_series(modality: str, prediction: Any, layout: _Layout, name: str) -> list[_Series]:
    data = layout.data
    if modality not in data.names:
        raise DataError(
            "predictions name an unknown modality", got=repr(modality), wanted=data.names
        )
    if isinstance(prediction, tuple):
        parts = dict(zip(("mean", "sd"), prediction))
    elif getattr(prediction, "has_classes", False):
        found = np.asarray(prediction.class_probabilities())  # [B, n, N, K]
        parts = {"probabilities": found.reshape(*found.shape[:2], -1)}
    else:
        mean, variance = (np.asarray(x) for x in prediction.moments())
        parts = {"mean": mean, "sd": np.sqrt(variance)}
    first = "" if name == "latent" else f"{name}_"
    times = layout.seconds(modality)
    rows = {w: layout.rows(a, modality, f"{modality} {w}") for w, a in parts.items()}
    return [
        _Series(f"{first}{modality}_{w}", r, times, data.dt, f"predicted {modality}: {w}")
        for w, r in rows.items()
    ]


def _new_file(
    part: str,
    layout: _Layout,
    series: Sequence[_Series],
    posterior: Any,
    name: str,
    session_start: datetime | None,
) -> None:
    pynwb, data = require_pynwb(), layout.data
    file = pynwb.NWBFile(
        session_description="posterior of a state-space model",
        identifier=str(uuid.uuid4()),
        session_start_time=session_start or datetime(1970, 1, 1, tzinfo=UTC),
        session_id=data.sessions[0],
        subject=pynwb.file.Subject(subject_id=data.subjects[0]),
    )
    _add(file, layout, series, posterior, name)
    with pynwb.NWBHDF5IO(part, mode="w") as handle:
        handle.write(file)


def _extend(
    part: str,
    origin: Path,
    layout: _Layout,
    series: Sequence[_Series],
    posterior: Any,
    name: str,
) -> None:
    with opened(origin) as file:
        module = (file.processing or {}).get(MODULE)
        there = set() if module is None else set(module.data_interfaces)
    if taken := there & {s.name for s in series}:
        raise DataError(
            f"{origin.name} already has these in its module {MODULE!r}",
            got=", ".join(sorted(taken)),
            fix="pass another name=",
        )
    shutil.copyfile(origin, part)
    with require_pynwb().NWBHDF5IO(part, mode="a", load_namespaces=True) as handle:
        file = handle.read()
        _add(file, layout, series, posterior, name)
        handle.write(file)


def _add(file: Any, layout: _Layout, series: Sequence[_Series], posterior: Any, name: str) -> None:
    module = (file.processing or {}).get(MODULE)
    if module is None:
        module = file.create_processing_module(
            name=MODULE, description="what plssm inferred from the recording"
        )
    for one in series:
        module.add(one.made())
    module.add(_trials(layout, posterior, name))


def _trials(layout: _Layout, posterior: Any, name: str) -> Any:
    """The table of the trials of a posterior."""
    data = layout.data
    evidence = getattr(posterior, "log_evidence", None)
    table = require_pynwb().epoch.TimeIntervals(
        name=f"{name}_trials", description=f"trials of {name}_mean, in steps of {data.dt!r} s"
    )
    table.add_column(name="trial", description="name of the trial")
    if evidence is not None:
        kind = getattr(posterior, "evidence_kind", "")
        table.add_column(name="log_evidence", description=f"log evidence ({kind}) in nats")
    for i in layout.order:
        row: dict[str, Any] = {"trial": data.trial_names[i]}
        if evidence is not None:
            row["log_evidence"] = float(evidence[i])
        start = float(layout.starts[i])
        table.add_row(start_time=start, stop_time=start + data.trials[i].length * data.dt, **row)
    return table
