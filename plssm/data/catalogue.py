"""Recordings by name: those of PLSSM_DATA, those in installed packages, the simulated sets."""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from plssm.data._sources import SOURCES, Source
from plssm.data.archive import read_npz
from plssm.data.dataset import Dataset
from plssm.data.recording import Recording
from plssm.errors import DataError

__all__ = ["Source", "is_available", "load_recording", "load_truth", "recordings"]


def recordings() -> tuple[Source, ...]:
    """List the recordings that `load_recording` knows, with origin, licence and citation.

    Returns:
        One `Source` per recording, whether its file is on this machine or not.

    Example:
        >>> "linear_track" in [source.name for source in recordings()]
        True
    """
    return tuple(SOURCES.values())


def is_available(source: Source, *, folder: str | os.PathLike | None = None) -> bool:
    """Whether the files of a recording are on this machine (they are not opened).

    Args:
        source: One of `recordings()`.
        folder: Folder of the recordings; default: environment variable PLSSM_DATA.
    """
    if source.place == "shipped":
        return True
    if source.place == "nitime":
        return find_spec("nitime") is not None
    place = folder if folder is not None else os.environ.get("PLSSM_DATA")
    return place is not None and (Path(place) / source.name / f"{source.name}.npz").is_file()


def load_recording(
    name: str, *, folder: str | os.PathLike | None = None, verify: bool = True
) -> Recording | Dataset:
    """Load a recording by its name.

    A Recording is returned where the latent clock is still to be chosen (`to_dataset(dt)`), a
    Dataset where the data come on one clock already.

    Args:
        name: One of the names in `recordings()`.
        folder: Folder that holds ``<name>/<name>.npz``; default: environment variable PLSSM_DATA.
        verify: Compare the file with the checksum known for it. A file converted anew from the
            original holds the same arrays but may differ in its bytes: load it with False.

    Returns:
        The Recording or the Dataset.

    Raises:
        DataError: If the name is unknown, the file is absent or broken, or it does not hold the
            arrays it should.

    Example:
        >>> load_recording("simulated_plrnn").values("x").shape
        (20, 100, 10)
    """
    if name not in SOURCES:
        raise DataError("no recording has this name", got=repr(name), wanted=", ".join(SOURCES))
    source = SOURCES[name]
    if source.place == "nitime":
        return source.build(_nitime_folder(source))
    if source.place == "shipped":
        return source.build(_shipped(name))
    path = _path(source, folder)
    if verify and source.sha256:
        _verify(path, source)
    return source.build(_read(path, source))


def load_truth(name: str) -> dict[str, np.ndarray]:
    """Load the parameters a simulated set was made with.

    Args:
        name: Name of a simulated set.

    Returns:
        Parameters by name, as `from_parameters` takes them.

    Raises:
        DataError: If the recording was not simulated.

    Example:
        >>> load_truth("simulated_plrnn")["A"].tolist()
        [0.55, 0.91, 0.95]
    """
    simulated = [source.name for source in SOURCES.values() if source.place == "shipped"]
    if name not in simulated:
        raise DataError(
            "only simulated sets have a truth", got=repr(name), wanted=", ".join(simulated)
        )
    arrays = _shipped(name)
    return {k.removeprefix("truth_"): v for k, v in arrays.items() if k.startswith("truth_")}


def _shipped(name: str) -> dict[str, np.ndarray]:
    return read_npz(Path(__file__).parent / "simulated" / f"{name}.npz")


def _nitime_folder(source: Source) -> Path:
    spec = find_spec("nitime")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"recording {source.name!r} comes with the package nitime, which is not installed",
            fix="pip install plssm[data]",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _path(source: Source, folder: str | os.PathLike | None) -> Path:
    place = folder if folder is not None else os.environ.get("PLSSM_DATA")
    fix = (
        f"get the original from {source.origin} (licence: {source.licence}), convert it with "
        f"datasets/convert/{source.name}.py, and set PLSSM_DATA to the folder that holds "
        f"{source.name}/{source.name}.npz"
    )
    what = f"recording {source.name!r} is not on this machine"
    if place is None:
        raise DataError(what, got="no environment variable PLSSM_DATA", fix=fix)
    path = Path(place) / source.name / f"{source.name}.npz"
    if not path.is_file():
        raise DataError(what, got=f"no file {path}", fix=fix)
    return path


def _verify(path: Path, source: Source) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise DataError(
            f"{path} is not the file that is known as {source.name!r} (its checksum differs)",
            got=found,
            wanted=source.sha256,
            fix="copy it again, or pass verify=False if you converted it from the original",
        )


def _read(path: Path, source: Source) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    for key, shape in source.arrays.items():
        if key not in arrays:
            raise DataError(f"{path} lacks an array", got=", ".join(arrays), wanted=key)
        if arrays[key].shape != shape:
            raise DataError(
                f"array {key!r} of {path} has another shape", got=arrays[key].shape, wanted=shape
            )
    return arrays
