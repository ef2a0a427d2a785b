"""Opening NWB files, and finding things in them by a path or the end of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from plssm.errors import CapabilityError, DataError

__all__ = ["contents", "find", "opened", "require_pynwb"]


def require_pynwb() -> ModuleType:
    """Return the package pynwb.

    Raises:
        CapabilityError: If it is not installed.
    """
    try:
        import pynwb
    except ImportError as error:
        raise CapabilityError(
            f"NWB files need the package pynwb, which cannot be imported ({error}). "
            "Fix: pip install plssm[io]."
        ) from error
    return pynwb


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open an NWB file for reading.

    Args:
        path: The file.

    Yields:
        The NWBFile; its arrays are read from the file when they are asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is no NWB file, or a broken one.
    """
    pynwb, path = require_pynwb(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        handle = pynwb.NWBHDF5IO(str(path), mode="r", load_namespaces=True)
    except Exception as error:
        raise _broken(path, error) from error
    with handle:
        try:
            file = handle.read()
        except Exception as error:
            raise _broken(path, error) from error
        yield file


def _broken(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"cannot read {path.name}",
        got=f"{type(error).__name__}: {reason[:200]}",
        wanted="an NWB 2 file (HDF5)",
        fix="check that the file is whole; files of NWB 1 have to be converted first",
    )


def contents(file: Any) -> dict[str, Any]:
    """Return what an NWB file holds, by path.

    Args:
        file: The NWBFile.

    Returns:
        Time series, event tables and tables of intervals, by paths such as
        ``processing/behavior/Position/position``, ``events/licks`` or ``intervals/trials``.
    """
    found: dict[str, Any] = {}
    groups = {
        "acquisition": file.acquisition,
        "stimulus": file.stimulus,
        **{f"processing/{name}": module.data_interfaces for name, module in _modules(file)},
        "events": getattr(file, "events", None) or {},
        "intervals": file.intervals or {},
    }
    for group, members in groups.items():
        for name, member in members.items():
            found.update(_walk(member, f"{group}/{name}"))
    return found


def _modules(file: Any) -> list[tuple[str, Any]]:
    return list((file.processing or {}).items())


def _walk(thing: Any, path: str) -> Iterator[tuple[str, Any]]:
    pynwb = require_pynwb()
    if isinstance(thing, pynwb.TimeSeries) or hasattr(thing, "colnames"):
        yield path, thing
    elif hasattr(thing, "timestamps"):  # events of the extension ndx-events
        yield path, thing
    else:
        for child in getattr(thing, "children", ()):
            yield from _walk(child, f"{path}/{child.name}")


def find(found: Mapping[str, Any], wanted: str) -> str | None:
    """Return the one path that is or ends with what is wanted, None where there is none.

    Args:
        found: What the file holds, by path.
        wanted: A path or the end of one, ``position`` or ``Position/position``.

    Raises:
        DataError: If several paths end like this.
    """
    matches = [p for p in found if p == wanted or p.endswith(f"/{wanted}")]
    if wanted in matches:
        return wanted
    if len(matches) > 1:
        raise DataError(
            f"{wanted!r} is not unique in the file",
            got=", ".join(matches),
            wanted="one of them",
            fix="give more of its path",
        )
    return matches[0] if matches else None
