"""Checkpoints of a training: tensors and numbers in one file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plssm.data import Batch
from plssm.errors import PlssmError
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.base import Engine

__all__ = ["identity", "read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: Path, tensors: dict[str, Tensor], numbers: dict) -> None:
    """Writes a checkpoint beside the old one, then puts it in its place.

    Args:
        path: The file.
        tensors: Tensors by name.
        numbers: What JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, beside, metadata={"training": json.dumps(numbers)})
    os.replace(beside, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Reads a checkpoint.

    Args:
        path: The file.

    Returns:
        Tensors by name, and the numbers.

    Raises:
        PlssmError: If the file is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["training"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise PlssmError(
            f"{path} is not a checkpoint of a training ({error}); delete it or give another file."
        ) from error


def identity(engine: Engine, model: StateSpaceModel, batch: Batch) -> str:
    """A hash of settings, start and data, to tell whose checkpoint a file is."""
    digest = hashlib.sha256(repr(replace(engine, checkpoint=None)).encode())
    for tensor in model.state_dict().values():
        digest.update(np.ascontiguousarray(tensor.numpy(force=True)).tobytes())
    for modality in batch.modalities.values():
        digest.update(modality.y.numpy().tobytes() + modality.mask.numpy().tobytes())
    digest.update(batch.length.numpy().tobytes())
    if batch.inputs is not None:
        digest.update(batch.inputs.numpy().tobytes())
    return digest.hexdigest()
