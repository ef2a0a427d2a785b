"""Arrays, columns and intervals of an NWB file as plain numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from plssm.errors import DataError

__all__ = [
    "codes",
    "entries",
    "intervals",
    "is_text",
    "label_names",
    "observed",
    "sample_times",
    "scalar_columns",
    "values",
    "without",
]


def entries(data: Any) -> np.ndarray:
    """Return stored data (an HDF5 dataset, a list or an array) as an array in memory."""
    return np.asarray(data[:])


def is_text(data: Any) -> bool:
    """Whether stored data hold text; only one entry is read."""
    shape = np.shape(data)
    if not shape or not shape[0]:
        return False
    first = np.asarray(data[0]).ravel()
    return first.dtype.kind in "SUO" and bool(first.size) and isinstance(first[0], str | bytes)


def sample_times(series: Any) -> np.ndarray:
    """Return the times of the samples of a time series [n] in seconds."""
    if series.timestamps is not None:
        return entries(series.timestamps).astype(np.float64)
    start = 0.0 if series.starting_time is None else float(series.starting_time)
    return start + np.arange(len(series.data)) / float(series.rate)


def values(series: Any, path: str) -> np.ndarray:
    r"""Return the values of a time series in its unit.

    .. math:: x = \text{data} \cdot \text{conversion} \cdot \text{channel conversion} +
        \text{offset}

    Args:
        series: The time series.
        path: Its path, for messages.

    Returns:
        Values [n, N]; axes after the first are flattened.

    Raises:
        DataError: If they are no real numbers.
    """
    raw = entries(series.data)
    if raw.dtype.kind not in "fiub":
        raise DataError(
            f"{path} does not hold real numbers",
            got=f"dtype {raw.dtype}",
            wanted="a numeric time series",
        )
    scaled = raw.astype(np.float64) * float(series.conversion)
    channel = getattr(series, "channel_conversion", None)
    if channel is not None:
        factor = entries(channel).astype(np.float64)
        scaled *= factor if scaled.ndim < 3 else factor.reshape(-1, *[1] * (scaled.ndim - 2))
    scaled += float(getattr(series, "offset", 0.0) or 0.0)
    return scaled.reshape(len(scaled), -1)


def label_names(events: Any) -> np.ndarray | None:
    """Return the label of each event of the extension ndx-events, None where there are none."""
    labels, data = getattr(events, "labels", None), getattr(events, "data", None)
    if labels is None or data is None:
        return None
    return np.asarray([str(label) for label in labels[:]], dtype=object)[entries(data).astype(int)]


def codes(column: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return a column as numbers [n] and, if it was text, the classes they stand for.

    Args:
        column: Numbers, booleans or text; empty text is missing.

    Returns:
        Numbers, NaN = missing, and the names of classes 0 ... K-1 (empty for numbers).

    Raises:
        DataError: If it holds something else.
    """
    if column.ndim == 1 and column.dtype.kind in "fiub":
        return column.astype(np.float64), []
    shown = [x.decode() if isinstance(x, bytes) else x for x in column]
    if not all(isinstance(x, str) for x in shown):
        raise DataError(
            "the column holds neither one number nor one text per row",
            got=f"{type(shown[0]).__name__} in an array of shape {column.shape}",
            wanted="numbers or text",
        )
    classes = sorted({x for x in shown if x})
    numbers = {x: float(k) for k, x in enumerate(classes)}
    return np.array([numbers.get(x, np.nan) for x in shown]), classes


def scalar_columns(table: Any) -> pd.DataFrame:
    """Return the columns of a table that have one number or text per row."""
    frame = pd.DataFrame(index=pd.Index(table.id[:], name="id"))
    for name in table.colnames:
        column = table[name]
        if hasattr(column, "target") or hasattr(column, "table"):  # ragged, or a reference
            continue
        data = entries(column.data)
        if data.ndim == 1 and data.dtype.kind in "fiubUSO" and not data.dtype.names:
            frame[name] = data
    return frame


def intervals(table: Any) -> np.ndarray:
    """Return start and stop of the rows of a table [k, 2]; none where there is no table."""
    if table is None:
        return np.zeros((0, 2))
    return np.stack([entries(table[c].data) for c in ("start_time", "stop_time")], axis=1)


def observed(table: Any, row: int) -> np.ndarray | None:
    """Return the observation intervals of a unit [k, 2], None where they are not stated."""
    stated = np.asarray(table["obs_intervals"][row], dtype=np.float64)
    return stated.reshape(-1, 2) if stated.size else None


def without(support: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Return intervals [k, 2] less others [h, 2], as intervals [m, 2]."""
    left = support[support[:, 0] < support[:, 1]]
    for low, high in holes:
        before = np.stack([left[:, 0], np.minimum(left[:, 1], low)], axis=1)
        after = np.stack([np.maximum(left[:, 0], high), left[:, 1]], axis=1)
        left = np.concatenate([before, after])
        left = left[left[:, 0] < left[:, 1]]
    return left[np.argsort(left[:, 0], kind="stable")]
