"""Datasets: trials on one latent clock, what every fit starts from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset as TorchDataset

from plssm.data import archive, partition
from plssm.data.arrays import trials_from_sources
from plssm.data.batch import Batch, collate, pad
from plssm.data.frames import frame_arguments
from plssm.data.joining import concatenate
from plssm.data.sources import Sources
from plssm.data.summary import describe
from plssm.data.trial import Trial
from plssm.data.validation import check_channels as require_channels
from plssm.data.validation import check_dt, check_known, resolve_kinds
from plssm.errors import DataError

__all__ = ["Dataset"]


class Dataset(TorchDataset):
    """Trials of one or several modalities on one latent clock.

    Latent step k of a trial covers the seconds [k dt, (k + 1) dt) from its start. A modality
    either has one sample per step, or its own clock: sample times in seconds, each sample
    belonging to the nearest step (ties to the earlier). NaN marks what is missing. Datasets do
    not change; every method returns a new one. Make one with :meth:`from_arrays`,
    :meth:`from_pandas`, :meth:`from_dict`, :meth:`load` or ``Recording.to_dataset``.

    Args:
        trials: The trials; all have the same modalities.
        dt: Seconds per latent step.
        kinds: Kind of each modality, one of "continuous", "count", "label", "ordinal", "bold".

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(4, 50, 3))
        >>> data = Dataset.from_arrays({"x": x}, dt=0.1)
        >>> train, test = data.split(fractions=(0.75, 0.25), seed=0)
        >>> len(train), test.values("x").shape, data.batch().steps
        (3, (1, 50, 3), 50)
    """

    def __init__(self, trials: Sequence[Trial], dt: float, kinds: Mapping[str, str]) -> None:
        self.trials, self.dt = tuple(trials), check_dt(dt)
        if not self.trials:
            raise DataError("a dataset needs a trial", got="no trial", wanted="at least one")
        for trial in self.trials:
            check_known(trial.values, kinds, f"trial {trial.name!r}")
            check_known(kinds, trial.values, "kinds")
        self.kinds = resolve_kinds(kinds, self.trials[0].values)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        dt: float = 1.0,
        *,
        inputs: Any = None,
        kinds: Mapping[str, str] | None = None,
        times: Mapping[str, Any] | None = None,
        nuisance: Mapping[str, Any] | None = None,
        trials: Sequence[str] | None = None,
        subjects: str | Sequence[str] | None = None,
        sessions: str | Sequence[str] | None = None,
        latent: Any = None,
        lengths: Sequence[int] | None = None,
        starts: Sequence[float] | None = None,
        hidden: Mapping[str, Any] | None = None,
        check_channels: bool = True,
    ) -> Dataset:
        """Return a dataset of arrays in memory, checked once, here.

        An array is [T, N], [T] (one channel), [trials, T, N], or a list with one [T_i, N] per
        trial (None where a trial lacks the modality); tensors and DataFrames count as arrays.

        Args:
            arrays: Observations of each modality; NaN = missing.
            dt: Seconds per latent step.
            inputs: Inputs on the latent clock in the same forms, never NaN; one [T, K] drives all
                trials alike.
            kinds: Kind of each modality; "continuous" where none is given. Counts are whole
                numbers, labels and ordinals run from 0 to K - 1.
            times: Seconds from the trial start, [n] or a list per trial, of the modalities that
                have their own clock.
            nuisance: Nuisance regressors [n, R] on the clock of their modality, for all trials
                or per trial.
            trials: Name of each trial; "0", "1", ... by default.
            subjects: Subject of each trial, or one for all.
            sessions: Session of each trial, or one for all.
            latent: True latent path [T, M] of simulated data.
            lengths: Latent steps of each trial; needed only where no array tells.
            starts: Start of each trial in its recording, in seconds.
            hidden: Held-out values of each modality, in the form of its array.
            check_channels: False to accept channels that are never observed or never vary.

        Raises:
            DataError: If anything is wrong; the message says where and what to do.
        """
        if not isinstance(arrays, Mapping) or not arrays:
            raise DataError(
                "arrays are not named",
                got=type(arrays).__name__,
                wanted="a mapping from modality to array",
                fix="Dataset.from_arrays({'x': x})",
            )
        dt, kinds = check_dt(dt), resolve_kinds(kinds, arrays)
        sources = Sources.read(
            arrays,
            times=times,
            nuisance=nuisance,
            hidden=hidden,
            inputs=inputs,
            latent=latent,
            lengths=lengths,
            starts=starts,
            trials=trials,
            subjects=subjects,
            sessions=sessions,
        )
        built = trials_from_sources(sources, dt, kinds)
        if check_channels:
            require_channels(built, kinds)
        return cls(built, dt, kinds)

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        *,
        dt: float | None = None,
        time: str | None = None,
        trial: str | None = None,
        subject: str | None = None,
        session: str | None = None,
        inputs: str | Sequence[str] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Return a dataset of a table with one row per time step.

        Args:
            frame: The table; empty cells are missing.
            columns: Columns of each modality, ``{"x": ["a", "b"]}``; None takes all numeric
                columns that have no other role as modality "x".
            dt: Seconds per latent step; None reads it from the time column (1.0 without one).
            time: Column of times in seconds; steps that have no row are missing.
            trial: Column that tells trials apart; None is one trial (per subject and session).
            subject: Column of subjects.
            session: Column of sessions.
            inputs: Columns of the inputs.
            kinds: Kind of each modality.

        Raises:
            DataError: If anything is wrong; the message says where and what to do.
        """
        arguments = frame_arguments(
            frame,
            columns,
            dt=dt,
            time=time,
            trial=trial,
            subject=subject,
            session=session,
            inputs=inputs,
        )
        return cls.from_arrays(**arguments, kinds=kinds)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Dataset:
        """Return a dataset of the keywords of :meth:`from_arrays`, nested or flat.

        Flat keys are what an npz file holds: ``arrays/x``, ``times/bold``, ``kinds/x``, ``dt``,
        ``inputs``; any other name is a modality. Arrays are padded where ``lengths`` is given.
        """
        return cls.from_arrays(**archive.keyword_arguments(mapping))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays from which :meth:`from_dict` makes the same dataset."""
        return archive.flat_arrays(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset to an npz file; the file appears whole or not at all."""
        archive.write_npz(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dataset:
        """Return the dataset of an npz file; DataError if the file is truncated."""
        return cls.from_dict(archive.read_npz(path))

    # ---- what is in it ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> Trial:
        return self.trials[index]

    def __repr__(self) -> str:
        return describe(self)

    @property
    def names(self) -> list[str]:
        """Names of the modalities."""
        return list(self.kinds)

    @property
    def channels(self) -> dict[str, int]:
        """Number of channels of each modality."""
        return {m: self.trials[0].values[m].shape[1] for m in self.kinds}

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        inputs = self.trials[0].inputs
        return 0 if inputs is None else inputs.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Latent steps of each trial [B], int64."""
        return np.array([t.length for t in self.trials], dtype=np.int64)

    @property
    def trial_names(self) -> list[str]:
        """Name of each trial."""
        return [t.name for t in self.trials]

    @property
    def subjects(self) -> list[str]:
        """Subject of each trial."""
        return [t.subject for t in self.trials]

    @property
    def sessions(self) -> list[str]:
        """Session of each trial."""
        return [t.session for t in self.trials]

    def values(self, modality: str) -> np.ndarray:
        """Return the observations [B, n, N]; NaN = missing, held out, or beyond the end."""
        check_known([modality], self.kinds, "values")
        return pad([t.values[modality] for t in self.trials], np.nan)

    def hidden_values(self, modality: str) -> np.ndarray:
        """Return the held-out observations [B, n, N], NaN elsewhere."""
        check_known([modality], self.kinds, "hidden_values")
        empty = (np.full_like(t.values[modality], np.nan) for t in self.trials)
        return pad([t.hidden.get(modality, e) for t, e in zip(self.trials, empty)], np.nan)

    def sample_times(self, modality: str) -> np.ndarray:
        """Return the seconds from the trial start of each sample [B, n], NaN beyond the end."""
        check_known([modality], self.kinds, "sample_times")
        return pad([np.asarray(t.seconds(modality, self.dt)) for t in self.trials], np.nan)

    def nuisance(self, modality: str) -> np.ndarray | None:
        """Return the nuisance regressors [B, n, R], NaN beyond the end, or None."""
        check_known([modality], self.kinds, "nuisance")
        if modality not in self.trials[0].nuisance:
            return None
        return pad([t.nuisance[modality] for t in self.trials], np.nan)

    @property
    def inputs(self) -> np.ndarray | None:
        """Inputs [B, T, K], NaN beyond the end of a trial, or None."""
        found = [t.inputs for t in self.trials if t.inputs is not None]
        return pad(found, np.nan) if found else None

    @property
    def latent(self) -> np.ndarray | None:
        """True latent paths [B, T, M] of simulated data, NaN beyond the end, or None."""
        found = [t.latent for t in self.trials if t.latent is not None]
        return pad(found, np.nan) if len(found) == len(self) else None

    # ---- parts of it -----------------------------------------------------------------------

    @staticmethod
    def concat(datasets: Sequence[Dataset]) -> Dataset:
        """Return all trials of several datasets; a modality that one lacks is missing there."""
        return Dataset(*concatenate(datasets))

    def select(
        self,
        *,
        trials: Any = None,
        subjects: str | Sequence[str] | None = None,
        sessions: str | Sequence[str] | None = None,
        time: tuple[float, float] | None = None,
    ) -> Dataset:
        """Return the trials that meet all conditions.

        Args:
            trials: Numbers, names, a slice or a boolean mask.
            subjects: One subject or several.
            sessions: One session or several.
            time: Keep the steps that start in [t0, t1) seconds from the trial start; trials
                that have none are left out.

        Returns:
            The selection.

        Raises:
            DataError: If a name is unknown or nothing is left.
        """
        conditions = {"chosen": trials, "subjects": subjects, "sessions": sessions, "time": time}
        return self._with(partition.select(self.trials, self.dt, **conditions))

    def split(
        self, by: str = "trial", fractions: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int = 0
    ) -> tuple[Dataset, ...]:
        """Return as many parts as fractions.

        Args:
            by: "trial" deals whole trials, shuffled by the seed; "time" cuts every trial into
                contiguous parts in order.
            fractions: Share of each part; they sum to 1.
            seed: Shuffles the trials.

        Raises:
            DataError: If the fractions do not sum to 1 or a part would be empty.
        """
        if by == "trial":
            parts = partition.split_trials(len(self), fractions, seed)
            return tuple(self._with([self.trials[i] for i in part]) for part in parts)
        if by == "time":
            pieces = [partition.split_time(t, fractions, self.dt) for t in self.trials]
            return tuple(self._with(part) for part in zip(*pieces))
        raise DataError("cannot split this way", got=f"by={by!r}", wanted="'trial' or 'time'")

    def folds(
        self, by: str = "trial", n: int | None = None, *, seed: int = 0
    ) -> Iterator[tuple[Dataset, Dataset]]:
        """Return (train, test) pairs for cross-validation.

        Args:
            by: "trial", "session" (of a subject) or "subject"; a group is never torn apart.
            n: Number of folds; None leaves out one group at a time.
            seed: Shuffles the groups before they are dealt to n folds.

        Raises:
            DataError: If there are too few groups.
        """
        groups: dict[str, list[tuple[str, ...]]] = {
            "trial": [(str(i),) for i in range(len(self))],
            "session": list(zip(self.subjects, self.sessions)),
            "subject": [(s,) for s in self.subjects],
        }
        if by not in groups:
            raise DataError("cannot fold this way", got=f"by={by!r}", wanted=f"one of {[*groups]}")
        pairs = partition.fold_indices(groups[by], n, seed, by)
        pick = self.trials.__getitem__
        return ((self._with(map(pick, a)), self._with(map(pick, b))) for a, b in pairs)

    def hold_out(
        self, modality: str, channels: int | Sequence[int] | None = None, times: Any = None
    ) -> Dataset:
        """Return a dataset in which entries are hidden but remembered.

        Args:
            modality: The modality.
            channels: Channels to hide; None is all.
            times: (start, stop) or a list of such pairs, seconds from the trial start, half
                open; None is all.

        Returns:
            NaN in ``values`` at the hidden entries, which ``hidden_values`` and
            ``hidden_batch`` hold.

        Raises:
            DataError: If the modality or a channel is unknown, or nothing observed is hidden.
        """
        check_known([modality], self.kinds, "hold_out")
        held = partition.hide(self.trials, self.dt, modality, channels=channels, times=times)
        return self._with(held)

    def reveal(self) -> Dataset:
        """Return the dataset with all held-out entries put back."""
        return self._with(map(partition.reveal, self.trials))

    def without_inputs(self) -> Dataset:
        """Return the dataset without its inputs, for models that are not told about them."""
        return self._with(replace(trial, inputs=None) for trial in self.trials)

    # ---- as tensors ------------------------------------------------------------------------

    def batch(
        self,
        indices: Any = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Batch:
        """Return trials (all by default) as one padded batch of tensors."""
        return self._batch(indices, hidden=False, dtype=dtype, device=device)

    def hidden_batch(
        self,
        indices: Any = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Batch:
        """Return the same as :meth:`batch`, with exactly the held-out entries observed."""
        return self._batch(indices, hidden=True, dtype=dtype, device=device)

    def collate(self, trials: Sequence[Trial]) -> Batch:
        """Return trials as a batch: the ``collate_fn`` of a torch DataLoader."""
        return collate(trials, dt=self.dt)

    def _batch(self, indices: Any, **options: Any) -> Batch:
        chosen = slice(None) if indices is None else indices
        kept = partition.trial_indices(chosen, self.trial_names)
        return collate([self.trials[i] for i in kept], dt=self.dt, **options)

    def _with(self, trials: Any) -> Dataset:
        return Dataset(tuple(trials), self.dt, self.kinds)
