"""The text that a dataset prints of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from plssm.data.dataset import Dataset

__all__ = ["describe"]


def describe(dataset: Dataset) -> str:
    """Return what a dataset holds: trials, lengths, dt, modalities and how much is missing.

    Args:
        dataset: Any dataset.

    Returns:
        One line for the whole and one for each modality.
    """
    steps = _range(dataset.lengths.min(), dataset.lengths.max())
    who = [_counted(len(dataset), "trial")]
    who += [_counted(n, "subject") for n in [len(set(dataset.subjects))] if n > 1]
    pairs = len(set(zip(dataset.subjects, dataset.sessions)))
    who += [_counted(pairs, "session")] if pairs > 1 else []
    lines = [f"Dataset: {', '.join(who)}, {steps} steps of {dataset.dt:g} s"]
    lines += [f"  {_modality(dataset, m)}" for m in dataset.names]
    if dataset.n_inputs:
        lines.append(f"  inputs: {dataset.n_inputs}")
    return "\n".join(lines)


def _modality(dataset: Dataset, name: str) -> str:
    trials = dataset.trials
    missing = sum(int(np.isnan(t.values[name]).sum()) for t in trials)
    hidden = sum(int((~np.isnan(t.hidden[name])).sum()) for t in trials if name in t.hidden)
    total = sum(t.values[name].size for t in trials)
    parts = [f"{name}: {dataset.kinds[name]}", _counted(dataset.channels[name], "channel")]
    if any(t.times[name] is not None for t in trials):
        counts = [len(t.values[name]) for t in trials]
        parts.append(f"own clock ({_range(min(counts), max(counts))} samples)")
    if name in trials[0].nuisance:
        parts.append(_counted(trials[0].nuisance[name].shape[1], "nuisance regressor"))
    parts.append(f"{(missing - hidden) / max(total, 1):.1%} missing")
    if hidden:
        parts.append(f"{hidden / max(total, 1):.1%} held out")
    return ", ".join(parts)


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
