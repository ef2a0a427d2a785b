"""Small settings objects of engines (schemes, objectives) as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, TypeVar

from plssm._config_capture import class_name, find_class
from plssm.errors import PlssmError

__all__ = ["make_part", "part_settings"]

HOME = "plssm.inference"  # parts of which are known by their bare name

Part = TypeVar("Part")


def part_settings(part: Any) -> dict[str, Any]:
    """A part as plain values, with its class.

    Args:
        part: A dataclass.
    """
    kind = type(part)
    known = getattr(import_module(HOME), kind.__name__, None) is kind
    return {"class": kind.__name__ if known else class_name(kind), **asdict(part)}


def make_part(value: Part | Mapping[str, Any], kind: type[Part], wanted: str) -> Part:
    """A part from itself or from what :func:`part_settings` gives.

    Args:
        value: The part or its settings.
        kind: What it must be.
        wanted: What to say where it is neither.

    Raises:
        PlssmError: If it is neither.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping) or "class" not in value:
        raise PlssmError(wanted)
    name = value["class"]
    found = find_class(name if ":" in name else f"{HOME}:{name}")
    if not issubclass(found, kind):
        raise PlssmError(wanted)
    return found(**{k: v for k, v in value.items() if k != "class"})
