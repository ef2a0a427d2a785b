"""The tables [dynamics], [observations.NAME] and [engine]: a class and its arguments."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plssm._config_capture import Configurable, find_class
from plssm.config.values import ConfigError, checked, parameters, plain, refuse_unknown
from plssm.dynamics import LatentDynamics
from plssm.errors import PlssmError
from plssm.inference import Engine
from plssm.observations import ObservationModel

__all__ = ["Part"]

CLASS = "class"


@dataclass(frozen=True)
class _Section:
    """What a table of this kind may hold."""

    module: str
    base: type
    from_data: frozenset[str] = frozenset()


SECTIONS = {
    "dynamics": _Section("plssm.dynamics", LatentDynamics, frozenset({"inputs"})),
    "observations": _Section(
        "plssm.observations", ObservationModel, frozenset({"channels", "nuisance"})
    ),
    "engine": _Section("plssm.inference", Engine),
}


@dataclass(frozen=True)
class Part:
    """A class by its name, and the arguments of its constructor.

    Args:
        section: "dynamics", "observations" or "engine".
        name: Name in plssm, or "module:Class" for a class of your own.
        arguments: Keyword arguments; a table with the key ``class`` stands for an object.
        where: What messages call the table.
    """

    section: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    @classmethod
    def read(cls, section: str, table: Any, where: str, default: str | None = None) -> Part:
        """Read a TOML table with the key ``class``.

        Raises:
            ConfigError: If it is no table or names no class.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: got {table!r}, wanted a table with the key 'class'.")
        name = table.get(CLASS, default)
        if not isinstance(name, str):
            known = ", ".join(_classes(SECTIONS[section].module, SECTIONS[section].base))
            raise ConfigError(f"{where}: the key 'class' is missing; classes are {known}.")
        return cls(section, name, {k: v for k, v in table.items() if k != CLASS}, where)

    def table(self) -> dict[str, Any]:
        """The TOML table of this part; what is None is left out."""
        return {CLASS: self.name, **plain(self.arguments)}

    def build(self, **given: Any) -> Any:
        """Make the object.

        Args:
            **given: Arguments that come from the data.

        Raises:
            ConfigError: If the class or an argument is unknown, missing or wrong.
        """
        section = SECTIONS[self.section]
        kind = _find(self.name, section, self.where, section.base)
        for name in sorted(section.from_data & set(self.arguments)):
            raise ConfigError(f"{self.where} {name}: comes from the data. Fix: leave it out.")
        hidden = {k: v for k, v in given.items() if k in parameters(kind)}
        return _made(kind, self.arguments, self.where, section, hidden)

    def spelled_out(self, config: Mapping[str, Any]) -> Part:
        """The same part with every argument written out.

        Args:
            config: All constructor arguments, as the object tells them.
        """
        section = SECTIONS[self.section]
        arguments = {k: _as_table(v) for k, v in config.items() if k not in section.from_data}
        return dataclasses.replace(self, arguments=plain(arguments))


def _classes(module: str, base: type) -> list[str]:
    """Names of the classes of a module that can stand for a base class."""
    found = importlib.import_module(module)
    members = {name: getattr(found, name) for name in found.__all__}
    return [
        name
        for name, value in members.items()
        if isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)
    ]


def _find(name: Any, section: _Section, where: str, base: type | None) -> type:
    """The class of a name, of plssm's own or by module: one of a base, or any setting."""
    kind: Any = None
    if isinstance(name, str) and ":" in name:
        try:
            kind = find_class(name)
        except PlssmError as error:
            raise ConfigError(f"{where}: {error}") from error
    elif isinstance(name, str):
        kind = getattr(importlib.import_module(section.module), name, None)
    right = isinstance(kind, type) and not inspect.isabstract(kind)
    if right and base is not None:
        right = issubclass(kind, base)
    elif right:
        right = dataclasses.is_dataclass(kind) or issubclass(kind, Configurable)
    if not right:
        setting = f"a setting of {section.module}"
        wanted = setting if base is None else ", ".join(_classes(section.module, base))
        raise ConfigError(
            f"{where} class: got {name!r}, wanted {wanted}, or 'module:Class' for one of your own."
        )
    return kind


def _made(
    kind: type, table: Mapping[str, Any], where: str, section: _Section, given: dict[str, Any]
) -> Any:
    known = parameters(kind)
    allowed = [k for k in known if k not in section.from_data]
    refuse_unknown(table, [CLASS, *allowed], where)
    arguments = {
        k: _value(v, known[k][0], f"{where} {k}", section) for k, v in table.items() if k != CLASS
    }
    arguments.update(given)
    missing = [k for k, (_, needed) in known.items() if needed and k not in arguments]
    if missing:
        raise ConfigError(f"{where}: {kind.__name__} needs {', '.join(missing)}.")
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(value: Any, hint: Any, where: str, section: _Section) -> Any:
    """One argument; a table with a class becomes an object."""
    base = hint if isinstance(hint, type) and inspect.isabstract(hint) else None
    if isinstance(value, Mapping) and CLASS in value:
        kind = _find(value[CLASS], section, where, base)
        return _made(kind, value, where, section, {})
    if base is not None:
        known = ", ".join(_classes(section.module, base))
        raise ConfigError(
            f"{where}: got {value!r}, wanted a table with the key 'class': one of {known}."
        )
    return checked(value, hint, where)


def _as_table(value: Any) -> Any:
    """Arguments as an object tells them, nested objects as tables with a class."""
    if isinstance(value, Mapping):
        if "__class__" in value:
            arguments = {k: _as_table(v) for k, v in value["arguments"].items()}
            return {CLASS: value["__class__"], **arguments}
        return {k: _as_table(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_table(v) for v in value]
    return value
