"""``plssm doctor``: what is installed, what it runs on, what data are found."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plssm import __version__
from plssm.data.catalogue import is_available, recordings

__all__ = ["doctor"]

NEEDED = (
    "torch", "pyro-ppl", "numpy", "scipy", "pandas", "numba", "safetensors", "rich", "matplotlib",
    "pydantic", "tomli-w",
)  # fmt: skip
EXTRA = ("nitime", "pynwb", "pykalman", "statsmodels", "dynamax", "jupytext", "nbclient")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def doctor(args: argparse.Namespace) -> int:
    """Print versions, devices, threads, BLAS, the state of the compile cache, recordings.

    Args:
        args: None of its own.

    Returns:
        0 when everything that plssm needs is installed, otherwise 2.
    """
    del args
    table = Table(show_header=False, title=f"plssm {__version__}", title_justify="left")
    missing = [name for name in NEEDED if _version(name) is None]
    groups = (_versions(), _machine(), _threads(), _blas(), _cache(), _recordings())
    for rows in groups:
        for name, value in rows:
            table.add_row(name, escape(value))
        table.add_section()
    console = Console()
    console.print(table, highlight=False)
    if missing:
        console.print(f"missing: {', '.join(missing)}. Fix: pip install {' '.join(missing)}")
    return 2 if missing else 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> list[tuple[str, str]]:
    needed = [f"{name} {_version(name) or 'MISSING'}" for name in NEEDED]
    extra = [f"{name} {found}" for name in EXTRA if (found := _version(name))]
    return [
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("needed", ", ".join(needed)),
        ("extras", ", ".join(extra) or "none"),
    ]


def _machine() -> list[tuple[str, str]]:
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("devices", ", ".join(devices) + " (the Laplace engine computes on the cpu)"),
    ]


def _threads() -> list[tuple[str, str]]:
    import numba
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    text = (
        f"{usable} cores, torch {torch.get_num_threads()}, numba {numba.config.NUMBA_NUM_THREADS}"
    )
    return [("threads", ", ".join([text, *told]))]


def _blas() -> list[tuple[str, str]]:
    import numpy
    import scipy
    import torch

    rows = []
    for package in (numpy, scipy):
        found = package.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
        rows.append(f"{package.__name__} {found.get('name', '?')} {found.get('version', '')}")
    rows.append("torch MKL" if torch.backends.mkl.is_available() else "torch without MKL")
    return [("BLAS", ", ".join(rows))]


def _cache() -> list[tuple[str, str]]:
    """Where the compiled kernels are kept, how many, and whether more can be written."""
    from plssm.kernels import rollout as kernel

    caches = [v._cache.cache_path for v in vars(kernel).values() if hasattr(v, "_cache")]
    if not caches:
        return [("compile cache", "numba is not used")]
    folder = Path(caches[0])
    files = list(folder.glob("*.nbc")) if folder.is_dir() else []
    size = sum(file.stat().st_size for file in files) / 1e6
    place = folder if folder.is_dir() else folder.parent
    state = f"{len(files)} kernels, {size:.1f} MB" if files else "empty: first use compiles"
    writable = "" if os.access(place, os.W_OK) else "; NOT WRITABLE, set NUMBA_CACHE_DIR"
    trained = sum(file.name.startswith("forced_lanes.forward_lanes") for file in files)
    ready = f"sizes of batches compiled: {trained}" if trained else "not compiled yet"
    return [
        ("compile cache", f"{state}, {folder}{writable}"),
        ("teacher forcing", f"{ready}; the first step of a new size takes about 10 s, once"),
    ]


def _recordings() -> list[tuple[str, str]]:
    where = os.environ.get("PLSSM_DATA")
    names: dict[str, list[str]] = {"folder": [], "nitime": [], "shipped": []}
    absent: list[str] = []
    for source in recordings():
        (names[source.place] if is_available(source) else absent).append(source.name)
    return [
        ("PLSSM_DATA", where or "not set"),
        ("recordings there", ", ".join(names["folder"]) or "none"),
        ("with nitime", ", ".join(names["nitime"]) or "none: pip install plssm[data]"),
        ("shipped", ", ".join(names["shipped"])),
        ("not here", ", ".join(absent) or "none"),
    ]
