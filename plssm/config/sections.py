"""The tables [data] and [split]: how a file is read and what is held out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from plssm.config.values import ConfigError
from plssm.data import Dataset
from plssm.data.archive import read_npz

__all__ = ["DataSection", "SplitSection"]


@dataclass(frozen=True)
class DataSection:
    """How a file is read.

    Args:
        file: The npz or csv file; the command line may name another.
        dt: Seconds per latent step; None takes what the file says.
        kinds: Kind of each modality, where it is not in the file.
        columns: csv: columns of each modality; None takes all numeric ones as "x".
        time: csv: column of times in seconds.
        trial: csv: column that tells trials apart.
        subject: csv: column of subjects.
        session: csv: column of sessions.
        inputs: csv: columns of the inputs.
    """

    file: str | None = None
    dt: float | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[str]] | None = None
    time: str | None = None
    trial: str | None = None
    subject: str | None = None
    session: str | None = None
    inputs: list[str] = field(default_factory=list)

    def load(self, path: str | os.PathLike[str] | None = None) -> Dataset:
        """Read the file.

        Args:
            path: The file; default the one this table names.

        Returns:
            The dataset.

        Raises:
            ConfigError: If there is no file, or its kind or the keys for it are wrong.
            DataError: If it does not hold a dataset.
        """
        path = self.file if path is None else path
        if path is None:
            raise ConfigError("[data]: no file is named. Fix: `plssm fit data.npz ...`.")
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"[data] file: there is no file {path}. Fix: check the path.")
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return self._npz(path)
        if suffix in (".csv", ".tsv"):
            return self._table(path, "\t" if suffix == ".tsv" else ",")
        raise ConfigError(f"[data] file: got {path.name}, wanted a .npz, .csv or .tsv file.")

    def _npz(self, path: Path) -> Dataset:
        for key in ("columns", "time", "trial", "subject", "session", "inputs"):
            if getattr(self, key):
                raise ConfigError(
                    f"[data] {key}: is for tables, but {path.name} is an npz file, which holds "
                    "its own. Fix: leave the key out."
                )
        arrays: dict[str, Any] = dict(read_npz(path))
        arrays.update({f"kinds/{name}": kind for name, kind in self.kinds.items()})
        if self.dt is not None:
            arrays["dt"] = self.dt
        return Dataset.from_dict(arrays)

    def _table(self, path: Path, separator: str) -> Dataset:
        try:
            frame = pd.read_csv(path, sep=separator)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"[data] file: cannot read {path.name} as a table: {error}. Fix: one header row, "
                "then one row per time step with as many cells."
            ) from error
        return Dataset.from_pandas(
            frame,
            self.columns,
            dt=self.dt,
            time=self.time,
            trial=self.trial,
            subject=self.subject,
            session=self.session,
            inputs=self.inputs,
            kinds=self.kinds,
        )


@dataclass(frozen=True)
class SplitSection:
    """What is trained on, and what is held out for the score.

    Args:
        by: "time" cuts every trial, "trial" deals whole trials, "none" trains on everything.
        fractions: Shares of training and test data, or of training, validation and test data.
        seed: Shuffles the trials.
    """

    by: Literal["time", "trial", "none"] = "time"
    fractions: tuple[float, ...] = (0.8, 0.2)
    seed: int = 0

    def apply(self, data: Dataset) -> tuple[Dataset, Dataset | None, Dataset | None]:
        """Return training, validation and test data; None for a part there is not."""
        if self.by == "none":
            return data, None, None
        if len(self.fractions) not in (2, 3):
            raise ConfigError(
                f"[split] fractions: got {len(self.fractions)} numbers, wanted two (train, test) "
                "or three (train, validation, test)."
            )
        parts = data.split(by=self.by, fractions=self.fractions, seed=self.seed)
        return parts[0], (parts[1] if len(parts) == 3 else None), parts[-1]
