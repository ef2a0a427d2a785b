"""Datasets as flat dictionaries of plain arrays, and as npz files without pickles.

A key is a keyword of :meth:`Dataset.from_arrays`, with the modality after a slash where the
keyword takes a mapping: ``arrays/x``, ``times/bold``, ``kinds/x``, ``dt``, ``inputs``. A key that
is no keyword is a modality, so a file that holds nothing but ``x`` and ``dt`` works too. Ragged
trials are padded to the longest; ``lengths`` says where each one ends.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from plssm.errors import DataError

if TYPE_CHECKING:
    from plssm.data.dataset import Dataset

__all__ = ["flat_arrays", "keyword_arguments", "read_npz", "write_npz"]

_GROUPS = ("arrays", "times", "nuisance", "kinds", "hidden")
_SINGLE = (
    "dt",
    "inputs",
    "trials",
    "subjects",
    "sessions",
    "latent",
    "lengths",
    "starts",
    "check_channels",
)


def keyword_arguments(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``Dataset.from_arrays`` that a mapping holds.

    Args:
        mapping: Nested or flat keys, such as an open npz file.

    Returns:
        Keyword arguments, ragged trials as lists.

    Raises:
        DataError: If a key cannot be understood or no modality is there.
    """
    found: dict[str, Any] = {}
    for key in mapping:
        group, slash, name = str(key).partition("/")
        value = mapping[key]
        if group in _GROUPS and slash:
            found.setdefault(group, {})[name] = value
        elif group in _GROUPS and isinstance(value, Mapping):
            found.setdefault(group, {}).update(value)
        elif key in _SINGLE:
            found[key] = value
        elif value is not None or group not in _GROUPS:
            found.setdefault("arrays", {})[_modality_key(key)] = value
    if not found.get("arrays"):
        raise DataError(
            "there is no modality",
            got=f"keys {sorted(map(str, mapping))}",
            wanted="an array 'arrays/<name>' for each modality",
            fix="name an array 'arrays/x'",
        )
    if "kinds" in found:
        found["kinds"] = {m: str(np.asarray(k).item()) for m, k in found["kinds"].items()}
    for key in ("dt", "check_channels"):
        if key in found:
            found[key] = np.asarray(found[key]).item()
    return _without_padding(found)


def flat_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return a dataset as plain arrays by flat keys, ragged trials padded with NaN.

    Args:
        dataset: Any dataset.

    Returns:
        Arrays that need no pickles; :func:`keyword_arguments` reads them back.
    """
    trials = dataset.trials
    flat = {
        "dt": np.array(dataset.dt),
        "lengths": dataset.lengths,
        "starts": np.array([t.start for t in trials]),
        "trials": np.array(dataset.trial_names, dtype=np.str_),
        "subjects": np.array(dataset.subjects, dtype=np.str_),
        "sessions": np.array(dataset.sessions, dtype=np.str_),
        "check_channels": np.array(False),
    }
    for modality, kind in dataset.kinds.items():
        flat[f"arrays/{modality}"] = dataset.values(modality)
        flat[f"kinds/{modality}"] = np.array(kind, dtype=np.str_)
        if any(t.times[modality] is not None for t in trials):
            flat[f"times/{modality}"] = dataset.sample_times(modality)
        if any(modality in t.hidden for t in trials):
            flat[f"hidden/{modality}"] = dataset.hidden_values(modality)
        if (nuisance := dataset.nuisance(modality)) is not None:
            flat[f"nuisance/{modality}"] = nuisance
    for key, array in (("inputs", dataset.inputs), ("latent", dataset.latent)):
        if array is not None:
            flat[key] = array
    return flat


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays to an npz file; the file appears whole or not at all.

    Args:
        path: File to write; an existing one is replaced.
        arrays: Plain arrays by key.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            members: dict[str, Any] = dict(arrays)
            np.savez_compressed(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file.

    Args:
        path: File to read.

    Returns:
        The arrays by key.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If the file is truncated, no npz file, or holds pickled objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"cannot read {path.name}",
            got=f"{type(error).__name__}: {error}",
            wanted="a whole npz file without pickled objects",
            fix="copy or write the file again; it may be truncated",
        ) from error


def _modality_key(key: str) -> str:
    keywords = (*_GROUPS, *_SINGLE)
    close = difflib.get_close_matches(str(key), keywords, n=1, cutoff=0.8)
    if "/" in str(key) or close:
        raise DataError(
            "a key cannot be understood",
            got=repr(key),
            wanted=f"one of {keywords}, or arrays/<modality>",
            fix=f"write {close[0]!r}" if close else f"write 'arrays/{key}' if it is a modality",
        )
    return key


def _without_padding(found: dict[str, Any]) -> dict[str, Any]:
    if "lengths" not in found:
        return found
    lengths = [int(n) for n in np.atleast_1d(found["lengths"])]
    times = dict(found.get("times") or {})
    for modality, padded in times.items():
        if isinstance(padded, np.ndarray) and padded.ndim == 2:
            counts = [_last_finite(row) for row in padded]
            times[modality] = _trimmed(padded, counts)
            for group in ("arrays", "hidden", "nuisance"):
                _trim_in(found, group, modality, counts)
    for group in ("arrays", "hidden", "nuisance"):
        for modality in found.get(group) or {}:
            if modality not in times:
                _trim_in(found, group, modality, lengths)
    for key in ("inputs", "latent"):
        if key in found and np.ndim(found[key]) == 3:
            found[key] = _trimmed(found[key], lengths)
    if times:
        found["times"] = times
    return found


def _trim_in(found: dict[str, Any], group: str, modality: str, counts: list[int]) -> None:
    arrays = found.get(group) or {}
    padded = arrays.get(modality)
    if isinstance(padded, np.ndarray) and padded.ndim == 3 and len(padded) == len(counts):
        found[group] = {**arrays, modality: _trimmed(padded, counts)}


def _trimmed(padded: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    return [row[:n] for row, n in zip(padded, counts)]


def _last_finite(row: np.ndarray) -> int:
    finite = np.flatnonzero(~np.isnan(row))
    return int(finite[-1]) + 1 if finite.size else 0
