"""Checking what a TOML table holds against the constructor it is meant for."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from plssm.errors import PlssmError

__all__ = ["ConfigError", "checked", "parameters", "plain", "refuse_unknown"]


class ConfigError(PlssmError):
    """A configuration that cannot be used; the message names the table, the key and the fix."""


def refuse_unknown(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError for the first key that does not exist.

    Args:
        given: Keys of a table.
        allowed: Keys it may have.
        where: What the message calls the table.
    """
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{where}: unknown key {key!r}; allowed are {', '.join(allowed)}.{meant}"
            )


def parameters(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the constructor arguments of a class: type and whether it must be given.

    Where a constructor passes ``**options`` on, those of the next class in line are included.

    Args:
        kind: A class; dataclasses count by their fields.
    """
    found: dict[str, tuple[Any, bool]] = {}
    for cls in kind.__mro__:
        if "__init__" not in vars(cls):
            continue
        hints = _hints(kind if dataclasses.is_dataclass(cls) else vars(cls)["__init__"])
        passes_on = False
        for p in list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]:
            passes_on |= p.kind is p.VAR_KEYWORD
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                found.setdefault(p.name, (hints.get(p.name, Any), p.default is p.empty))
        if not passes_on:
            break
    return found


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except NameError:  # a type that is imported for type checkers only
        return {}


def checked(value: Any, hint: Any, where: str) -> Any:
    """Return a TOML value as the type that is wanted.

    Whole numbers count as floats and lists as tuples; nothing else is converted. Tables become
    dataclasses where one is wanted, and their keys are checked as well.

    Args:
        value: A TOML value.
        hint: The type.
        where: What the message calls the value.

    Raises:
        ConfigError: If the value is of another type.
    """
    if hint is Any:
        return value
    _check_nested_keys(value, hint, where)
    try:
        adapter = _adapter(hint)
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        place = _place(where, value, first["loc"])
        raise ConfigError(f"{place}: got {first['input']!r}; {reason}.") from error
    except TypeError as error:  # dates and times
        raise ConfigError(f"{where}: got {value!r}, which no setting takes.") from error


def _place(where: str, value: Any, location: Iterable[Any]) -> str:
    """The place of a fault inside a value, without the names of types."""
    for key in location:
        if isinstance(value, Mapping) and key in value:
            where, value = f"{where} {key}", value[key]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            where, value = f"{where}[{key}]", value[key]
    return where


def _adapter(hint: Any) -> TypeAdapter:
    if dataclasses.is_dataclass(hint):
        return TypeAdapter(hint)
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _check_nested_keys(value: Any, hint: Any, where: str) -> None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [h for h in typing.get_args(hint) if dataclasses.is_dataclass(h)]
        if isinstance(value, Mapping) and len(members) == 1:
            _check_nested_keys(value, members[0], where)
        elif isinstance(value, list):
            for member in typing.get_args(hint):
                _check_nested_keys(value, member, where)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        known = parameters(typing.cast(type, hint))
        refuse_unknown(value, known, where)
        for key, item in value.items():
            _check_nested_keys(item, known[key][0], f"{where}.{key}")
    elif typing.get_origin(hint) in (tuple, list) and isinstance(value, list):
        for k, item in enumerate(value):
            _check_nested_keys(item, typing.get_args(hint)[0], f"{where}[{k}]")


def plain(value: Any) -> Any:
    """Return a value as TOML can hold it: without None, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value if v is not None]
    return value
