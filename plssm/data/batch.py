"""What models and engines see: padded torch tensors, filled with zeros, with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plssm.data.trial import Trial
from plssm.errors import DataError

__all__ = ["Batch", "Modality", "collate", "pad"]


@dataclass(frozen=True, eq=False)
class Modality:
    """One modality inside a batch.

    Args:
        y: Observations [B, n, N]; missing entries and padding hold 0, never NaN.
        mask: True where an entry is observed [B, n, N], bool.
        clock: Latent step of each sample [B, n], int64; None where sample i is step i.
        nuisance: Nuisance regressors [B, n, R], or None.
        dt: Seconds per latent step.
    """

    y: Tensor
    mask: Tensor
    clock: Tensor | None = None
    nuisance: Tensor | None = None
    dt: float = 1.0

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Modality:
        """Return the modality on a device, its real numbers in a dtype."""
        nuisance = self.nuisance
        return replace(
            self,
            y=self.y.to(device=device, dtype=dtype),
            mask=self.mask.to(device=device),
            clock=None if self.clock is None else self.clock.to(device=device),
            nuisance=None if nuisance is None else nuisance.to(device=device, dtype=dtype),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Trials padded to a common length.

    Args:
        modalities: The modalities by name.
        inputs: Inputs [B, T, K], zero in the padding, or None.
        length: Latent steps of each trial [B], int64.
        subject: Subject of each trial.
        trial: Name of each trial.
        dt: Seconds per latent step.
    """

    modalities: dict[str, Modality]
    inputs: Tensor | None
    length: Tensor
    subject: list[str]
    trial: list[str]
    dt: float

    def __len__(self) -> int:
        return int(self.length.shape[0])

    @property
    def steps(self) -> int:
        """Latent steps of the longest trial."""
        return int(self.length.max())

    @property
    def time_mask(self) -> Tensor:
        """True where a latent step exists [B, T], bool."""
        steps = torch.arange(self.steps, device=self.length.device)
        return steps < self.length[:, None]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Return the batch on a device, its real numbers in a dtype."""
        return replace(
            self,
            modalities={m: v.to(device, dtype) for m, v in self.modalities.items()},
            inputs=None if self.inputs is None else self.inputs.to(device=device, dtype=dtype),
            length=self.length.to(device=device),
        )


def pad(arrays: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Return arrays [n_i, ...] as one array [B, max n_i, ...], filled beyond each end."""
    rows = max(len(a) for a in arrays)
    padded = np.full((len(arrays), rows, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(padded, arrays):
        row[: len(array)] = array
    return padded


def collate(
    trials: Sequence[Trial],
    *,
    dt: float,
    hidden: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Batch:
    """Return trials as one padded batch.

    Args:
        trials: At least one trial; all have the same modalities.
        dt: Seconds per latent step.
        hidden: True to show the held-out entries instead of the visible ones.
        dtype: Type of the real numbers.
        device: Where the tensors go.

    Returns:
        The batch.

    Raises:
        DataError: If there is no trial.
    """
    if not trials:
        raise DataError("a batch needs a trial", got="no trial", wanted="at least one")
    inputs = [t.inputs for t in trials if t.inputs is not None]
    batch = Batch(
        modalities={m: _modality(trials, m, dt, hidden) for m in trials[0].values},
        inputs=torch.from_numpy(pad(inputs, 0.0)) if inputs else None,
        length=torch.tensor([t.length for t in trials], dtype=torch.int64),
        subject=[t.subject for t in trials],
        trial=[t.name for t in trials],
        dt=dt,
    )
    return batch.to(device=device, dtype=dtype)


def _modality(trials: Sequence[Trial], name: str, dt: float, hidden: bool) -> Modality:
    if hidden:
        arrays = [t.hidden.get(name, np.full_like(t.values[name], np.nan)) for t in trials]
    else:
        arrays = [t.values[name] for t in trials]
    values = pad(arrays, np.nan)
    mask = ~np.isnan(values)
    clock = nuisance = None
    if any(t.clock[name] is not None for t in trials):
        clock = torch.from_numpy(pad([t.steps(name) for t in trials], 0))
    if any(name in t.nuisance for t in trials):
        nuisance = torch.from_numpy(pad([t.nuisance[name] for t in trials], 0.0))
    return Modality(
        y=torch.from_numpy(np.where(mask, values, 0.0)),
        mask=torch.from_numpy(mask),
        clock=clock,
        nuisance=nuisance,
        dt=dt,
    )
