"""Fits as files: safetensors for numbers, JSON for everything else, never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from plssm._config_capture import class_name, find_class
from plssm.dynamics.base import LatentDynamics
from plssm.errors import DataError
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from plssm.fit import Fit

__all__ = ["environment", "load_fit", "save_fit"]

FORMAT = 1
TENSORS, RECOGNITION, STATISTICS, SETTINGS, HISTORY = (
    "model.safetensors",
    "recognition.safetensors",
    "baselines.safetensors",
    "fit.json",
    "history.csv",
)
_UNREADABLE = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
PACKAGES = ("plssm", "torch", "numpy", "scipy", "numba")


def _describe(part: Any) -> dict[str, Any]:
    frozen = [name for name, p in part.named_parameters() if not p.requires_grad]
    return {"class": class_name(type(part)), "config": part.config(), "frozen": frozen}


def save_fit(fit: Fit, folder: Path) -> Path:
    """Write a fit; the folder appears whole or not at all.

    Args:
        fit: The fit.
        folder: Where to; an earlier fit there is replaced.

    Returns:
        The folder.

    Raises:
        DataError: If the folder exists and holds something other than a fit.
    """
    _recover(folder)
    if not _may_hold_a_fit(folder):
        raise DataError(
            "the folder holds something other than a fit",
            got=str(folder),
            wanted="a new folder or an earlier fit",
            fix="choose another folder",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(fit, staging)
        _swap(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def _may_hold_a_fit(folder: Path) -> bool:
    if not folder.exists():
        return True
    return folder.is_dir() and ((folder / SETTINGS).exists() or not any(folder.iterdir()))


def _recover(folder: Path) -> None:
    """Put an earlier fit back whose replacement was killed between its two renames."""
    if folder.exists():
        return
    for old in folder.parent.glob(f".{folder.name}-old-*"):
        if (old / "fit" / SETTINGS).exists():
            os.replace(old / "fit", folder)
            old.rmdir()
            return


def _write(fit: Fit, folder: Path) -> None:
    model = fit.model
    save_arrays(_arrays(model), folder / TENSORS)
    if fit.recognition is not None:
        save_arrays(_arrays(fit.recognition), folder / RECOGNITION)
    if fit._baselines is not None:
        statistics = {
            f"{name}/{key}": np.ascontiguousarray(value)
            for name, baseline in fit._baselines.items()
            for key, value in vars(baseline).items()
        }
        save_arrays(statistics, folder / STATISTICS)
    fit.history.to_csv(folder / HISTORY, index=False)
    engine = fit.engine
    settings = {
        "format": FORMAT,
        "dynamics": _describe(model.dynamics),
        "observations": {name: _describe(o) for name, o in model.observations.items()},
        "recognition": fit.recognition and _describe(fit.recognition),
        "engine": engine and {"class": class_name(type(engine)), "settings": engine.settings()},
        "seconds": None if math.isnan(fit.seconds) else fit.seconds,
        "environment": environment(),
        "dt": fit.dt,
        "sha256": {path.name: _digest(path) for path in sorted(folder.iterdir())},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _arrays(module: Any) -> dict[str, np.ndarray]:
    """What a module holds; copies, because parameters may be parts of one vector."""
    state = module.state_dict()
    return {k: np.array(v.detach().cpu().numpy(), order="C") for k, v in state.items()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    """Versions of Python and of what fits depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _swap(staging: Path, folder: Path) -> None:
    """Put a complete folder in place of an earlier one, keeping that until the last moment."""
    staging.chmod(0o755)
    if not folder.exists():
        os.replace(staging, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        os.replace(folder, old / "fit")
        os.replace(staging, folder)
    except BaseException:
        if (old / "fit").exists() and not folder.exists():
            os.replace(old / "fit", folder)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_fit(kind: type[Fit], folder: Path) -> Fit:
    """Read a fit.

    Args:
        kind: The Fit class.
        folder: A folder written by :func:`save_fit`.

    Raises:
        DataError: If the folder is not a whole fit.
    """
    try:
        _recover(folder)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        for name, digest in settings["sha256"].items():
            if _digest(folder / name) != digest:
                raise _broken(folder, f"{name} is not what was written")
        arrays = load_arrays(folder / TENSORS)
        history = _history(folder / HISTORY)
        if settings["format"] != FORMAT:
            raise _broken(folder, f"format {settings['format']}, this plssm reads {FORMAT}")
        model = _rebuild(settings, arrays)
        baselines = _baselines(folder / STATISTICS)
        engine = _engine(settings["engine"])
        recognition = _recognition(settings.get("recognition"), folder / RECOGNITION)
    except DataError:
        raise
    except (*_UNREADABLE, SafetensorError) as error:
        raise _broken(folder, f"{type(error).__name__}: {error}") from error
    seconds = settings.get("seconds")
    seconds = math.nan if seconds is None else seconds
    return kind(
        model,
        engine,
        history=history,
        seconds=seconds,
        baselines=baselines,
        dt=settings.get("dt", 1.0),
        recognition=recognition,
    )


def _broken(folder: Path, got: str) -> DataError:
    return DataError(
        f"{folder} is not a whole fit",
        got=got,
        wanted=f"a folder with {SETTINGS}, {TENSORS} and {HISTORY} as written by Fit.save",
        fix="check the path, or save the fit again",
    )


def _history(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, engine="python")  # which reads floats exactly
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _part(described: dict[str, Any], base: type) -> Any:
    kind = find_class(described["class"])
    if not issubclass(kind, base):
        raise ValueError(f"{described['class']} is not a {base.__name__}")
    return kind.from_config(described["config"])


def _engine(described: dict[str, Any] | None) -> Any:
    if described is None:
        return None
    return find_class(described["class"])(**described["settings"])


def _recognition(described: dict[str, Any] | None, path: Path) -> Any:
    if described is None:
        return None
    import torch

    module = _part(described, torch.nn.Module)
    arrays = {k: torch.from_numpy(v) for k, v in load_arrays(path).items()}
    try:
        module.load_state_dict(arrays)
    except RuntimeError as error:
        raise DataError(
            f"the recognition model in {path.parent} is of another version of plssm",
            got=str(error),
            wanted="the parameters that it has in this version",
            fix="fit again",
        ) from error
    return module


def _rebuild(settings: dict[str, Any], arrays: dict[str, Any]) -> StateSpaceModel:
    import torch

    model = StateSpaceModel(
        _part(settings["dynamics"], LatentDynamics),
        {name: _part(o, ObservationModel) for name, o in settings["observations"].items()},
    )
    model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    parts = [(model.dynamics, settings["dynamics"])]
    parts += [(model.observations[n], o) for n, o in settings["observations"].items()]
    for part, described in parts:
        for frozen in described["frozen"]:
            part.get_parameter(frozen).requires_grad_(False)
    return model


def _baselines(path: Path) -> dict[str, Baseline] | None:
    if not path.exists():
        return None
    statistics = load_arrays(path)
    names = dict.fromkeys(key.rpartition("/")[0] for key in statistics)
    fields = ("mean", "sd", "intercept", "matrix")
    return {n: Baseline(**{f: statistics[f"{n}/{f}"] for f in fields}) for n in names}
