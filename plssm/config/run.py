"""A run: data, model, engine and split, from and to TOML."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from plssm.config.parts import Part
from plssm.config.sections import DataSection, SplitSection
from plssm.config.values import ConfigError, checked, plain, refuse_unknown
from plssm.data import Dataset
from plssm.inference import Engine
from plssm.model import StateSpaceModel

__all__ = ["RunConfig"]

TABLES = ("data", "dynamics", "observations", "engine", "split")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of: data, model, engine and split.

    Args:
        dynamics: The latent dynamics.
        observations: One observation model per modality.
        engine: The inference engine.
        data: How the file is read.
        split: What is held out.

    Example:
        >>> config = RunConfig.from_toml('''
        ... [dynamics]
        ... class = "PLRNN"
        ... dim = 3
        ... [observations.x]
        ... class = "Gaussian"
        ... ''')
        >>> data = Dataset.from_arrays({"x": [[0.0], [1.0], [0.5]]})
        >>> config.make_model(data).dim, config.make_engine().iterations
        (3, 50)
    """

    dynamics: Part
    observations: dict[str, Part]
    engine: Part = Part("engine", "LaplaceEM")
    data: DataSection = field(default_factory=DataSection)
    split: SplitSection = field(default_factory=SplitSection)

    @classmethod
    def from_toml(cls, text: str, *, name: str = "configuration") -> RunConfig:
        """Read a configuration.

        Args:
            text: TOML.
            name: What messages call it.

        Raises:
            ConfigError: If it is not TOML, or a table, key, class or value is wrong.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{name}: this is not TOML: {error}.") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunConfig:
        """Read a configuration file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}.") from error
        return cls.from_toml(text, name=str(path))

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> RunConfig:
        """Read a configuration from nested dictionaries.

        Every part is made once at a small size, so that mistakes show before any data are read.

        Raises:
            ConfigError: If a table, key, class or value is wrong.
        """
        refuse_unknown(tables, TABLES, "configuration")
        for name in ("dynamics", "observations"):
            if not isinstance(tables.get(name), Mapping) or not tables[name]:
                wanted = "[dynamics]" if name == "dynamics" else "[observations.NAME]"
                raise ConfigError(
                    f"configuration: the table {wanted} is missing. Fix: start from the output "
                    "of `plssm fit --example-config`."
                )
        config = cls(
            dynamics=Part.read("dynamics", tables["dynamics"], "[dynamics]"),
            observations={
                name: Part.read("observations", table, f"[observations.{name}]")
                for name, table in tables["observations"].items()
            },
            engine=Part.read("engine", tables.get("engine", {}), "[engine]", "LaplaceEM"),
            data=_section(DataSection, tables.get("data", {}), "[data]"),
            split=_section(SplitSection, tables.get("split", {}), "[split]"),
        )
        config.make_engine()
        config._sized(0, dict.fromkeys(config.observations, 1), {})
        return config

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain dictionaries, without what is None."""
        return {
            "data": plain(dataclasses.asdict(self.data)),
            "dynamics": self.dynamics.table(),
            "observations": {name: part.table() for name, part in self.observations.items()},
            "engine": self.engine.table(),
            "split": plain(dataclasses.asdict(self.split)),
        }

    def to_toml(self) -> str:
        """The configuration as TOML, which :meth:`from_toml` reads back."""
        return tomli_w.dumps(self.to_dict())

    def make_engine(self) -> Engine:
        """Make the engine."""
        return self.engine.build()

    def make_model(self, data: Dataset) -> StateSpaceModel:
        """Make a fresh model of the sizes of the data.

        Raises:
            ConfigError: If the data lack a modality.
        """
        for name in self.observations:
            if name not in data.names:
                raise ConfigError(
                    f"[observations.{name}]: the data have no modality of this name; they have "
                    f"{', '.join(data.names)}."
                )
        regressors = {n: data.nuisance(n) for n in self.observations}
        nuisance = {n: r.shape[-1] for n, r in regressors.items() if r is not None}
        return self._sized(data.n_inputs, data.channels, nuisance)

    def _sized(
        self, inputs: int, channels: Mapping[str, int], nuisance: Mapping[str, int]
    ) -> StateSpaceModel:
        observations = {
            name: part.build(channels=channels[name], nuisance=nuisance.get(name, 0))
            for name, part in self.observations.items()
        }
        return StateSpaceModel(self.dynamics.build(inputs=inputs), observations)

    def resolved(self, data: Dataset, file: str | os.PathLike[str] | None = None) -> RunConfig:
        """The same run with every default written out.

        Args:
            data: The dataset it is run on.
            file: Where that came from.
        """
        model = self.make_model(data)
        section = dataclasses.replace(
            self.data,
            file=self.data.file if file is None else str(file),
            dt=data.dt,
            kinds=dict(data.kinds),
        )
        return dataclasses.replace(
            self,
            dynamics=self.dynamics.spelled_out(model.dynamics.config()),
            observations={
                name: part.spelled_out(model.observations[name].config())
                for name, part in self.observations.items()
            },
            engine=self.engine.spelled_out(self.make_engine().settings()),
            data=section,
        )


Section = TypeVar("Section", DataSection, SplitSection)


def _section(kind: type[Section], table: Any, where: str) -> Section:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: got {table!r}, wanted a table.")
    refuse_unknown(table, [f.name for f in dataclasses.fields(kind)], where)
    return checked(dict(table), kind, where)
