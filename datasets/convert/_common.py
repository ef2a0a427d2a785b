"""What the conversion scripts share: the command line and the writing of the npz."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def arguments(text: str, **sources: str) -> argparse.Namespace:
    """Read the command line: the source files, then the folder to write to.

    Args:
        text: Docstring of the script.
        sources: Name and help of each source file.

    Returns:
        The parsed arguments, paths as `Path`.
    """
    parser = argparse.ArgumentParser(description=text)
    for name, meaning in sources.items():
        parser.add_argument(name, type=Path, help=meaning)
    parser.add_argument("out", type=Path, help="folder that PLSSM_DATA will name")
    return parser.parse_args()


def save(out: Path, name: str, **arrays: np.ndarray) -> None:
    """Write ``<out>/<name>/<name>.npz`` without pickles and say what is in it."""
    path = out / name / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(path)
    for key, value in arrays.items():
        print(f"  {key}: {value.dtype} {value.shape}")
    print(f"load it with plssm.data.load_recording({name!r}, verify=False)")
