"""Constructor arguments that are remembered, so that an object can be written down and rebuilt.

A class that inherits from :class:`Configurable` needs no method of its own for this: what its
constructor was called with is recorded by name, `config()` returns it as plain JSON values, and
`from_config` builds the same object again.

Example:
    >>> class Scale(Configurable):
    ...     def __init__(self, factor, offset=0.0):
    ...         self.factor, self.offset = factor, offset
    >>> Scale(2.0).config()
    {'factor': 2.0, 'offset': 0.0}
    >>> Scale.from_config({'factor': 3.0, 'offset': 1.0}).factor
    3.0
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any, Self

import numpy as np

from plssm.errors import PlssmError

__all__ = ["Configurable", "class_name", "decode", "encode", "find_class"]

_CLASS, _ARGUMENTS = "__class__", "arguments"


class Configurable:
    """Remembers its constructor arguments, whatever the subclass's constructor looks like.

    Arguments may be anything JSON can hold (numbers, strings, booleans, None, lists, dicts with
    string keys), another `Configurable`, or a dataclass instance. Anything else works as usual and
    is refused, with its name, only when `config()` is called.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Creates the object and records the arguments it was called with."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:  # copying comes without arguments; a wrong call fails in __init__ itself
            return self
        bound.apply_defaults()
        self.__dict__["_arguments"] = _by_name(bound)
        return self

    def config(self) -> dict[str, Any]:
        """Returns the constructor arguments by name, as JSON values.

        Returns:
            A dictionary that `from_config` takes back, also after a trip through JSON.

        Raises:
            PlssmError: If an argument is neither JSON nor a `Configurable` nor a dataclass.
        """
        name = type(self).__name__
        return {k: encode(v, where=f"{name}({k}=...)") for k, v in self._arguments.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds an object from what `config()` returned.

        Args:
            config: Constructor arguments by name.

        Returns:
            A new object of this class, with fresh parameter values.
        """
        return cls(**{k: decode(v) for k, v in config.items()})


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Names every argument; `**kwargs` are spread, `*args` stay marked for `config()`."""
    arguments: dict[str, Any] = {}
    parameters = list(bound.signature.parameters.values())[1:]  # without self
    for p in parameters:
        value = bound.arguments[p.name]
        if p.kind is p.VAR_KEYWORD:
            arguments.update({k: _snapshot(v) for k, v in value.items()})
        elif p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
            if p.kind is p.POSITIONAL_ONLY or value:
                arguments[p.name] = _Unnamed(value)
        else:
            arguments[p.name] = _snapshot(value)
    return arguments


@dataclasses.dataclass(frozen=True)
class _Unnamed:
    """An argument that came without a name, so that it cannot be given back by name."""

    value: Any


def _snapshot(value: Any) -> Any:
    """Copies plain containers, so that changing the caller's list changes nothing here."""
    if type(value) in (list, tuple):
        return type(value)(_snapshot(v) for v in value)
    if type(value) is dict:
        return {k: _snapshot(v) for k, v in value.items()}
    return value


def class_name(cls: type) -> str:
    """Returns the name under which `find_class` finds a class again: ``module:qualified.name``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def find_class(name: str) -> type:
    """Imports the class that `class_name` named.

    Args:
        name: ``module:qualified.name``.

    Returns:
        The class.

    Raises:
        PlssmError: If there is no such module or class, with what to do about it.
    """
    module, _, qualified = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise PlssmError(
            f"cannot find the class {name!r}: {error}. A class of your own must live at the top "
            "level of a module that can be imported under the same name as when it was saved."
        ) from error
    if not isinstance(found, type):
        raise PlssmError(f"{name!r} is not a class but {type(found).__name__}")
    return found


def encode(value: Any, *, where: str = "value") -> Any:
    """Turns a constructor argument into JSON values.

    Args:
        value: Number, string, boolean, None, list, dict, `Configurable` or dataclass instance.
        where: What the error message calls the value.

    Returns:
        Plain Python values; objects become ``{"__class__": name, "arguments": {...}}``.

    Raises:
        PlssmError: If the value cannot be written down.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(v, where=where) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value) and _CLASS not in value:
        return {k: encode(v, where=where) for k, v in value.items()}
    if isinstance(value, Configurable):
        return {_CLASS: class_name(type(value)), _ARGUMENTS: value.config()}
    if isinstance(value, _Unnamed):
        raise PlssmError(
            f"{where} was passed by position to a constructor that gives it no name; "
            "spell the arguments out in that constructor instead of *args"
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        arguments = {f: encode(getattr(value, f), where=f"{where}.{f}") for f in fields}
        return {_CLASS: class_name(type(value)), _ARGUMENTS: arguments}
    raise PlssmError(
        f"{where} is a {type(value).__name__}, which cannot be saved as JSON; pass numbers, "
        "strings, lists, dicts or dataclass instances; arrays belong in parameters or buffers"
    )


def decode(value: Any) -> Any:
    """Turns what `encode` made back into the argument (tuples come back as lists).

    Args:
        value: JSON values.

    Returns:
        The argument.

    Raises:
        PlssmError: If it names a class that is neither a dataclass nor `Configurable`.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if _CLASS not in value:
        return {k: decode(v) for k, v in value.items()}
    cls = find_class(value[_CLASS])
    if not (issubclass(cls, Configurable) or dataclasses.is_dataclass(cls)):
        raise PlssmError(f"{value[_CLASS]!r} is neither a dataclass nor configurable")
    return cls(**{k: decode(v) for k, v in value[_ARGUMENTS].items()})
