"""Making a dataset small enough, and clean enough, for a demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from plssm.data import Dataset, Trial

__all__ = ["first_subject", "held_out_part", "scaled", "shortened", "useful_channels"]

MOST_STEPS, MOST_SCANS, MOST_CHANNELS = 3000, 1500, 64
HELD_OUT = 0.2
PARTS = ("train", "test")


def first_subject(data: Dataset, notes: list[str]) -> Dataset:
    """The trials of the first subject; a note says so where there are more."""
    others = len(set(data.subjects)) - 1
    if not others:
        return data
    notes.append(f"the first of {others + 1} subjects only")
    return data.select(subjects=data.subjects[0])


def shortened(data: Dataset, notes: list[str]) -> Dataset:
    """At most 3000 latent steps, 1500 with BOLD, all trials cut alike; a note says so."""
    bound = MOST_SCANS if "bold" in data.kinds.values() else MOST_STEPS
    if int(data.lengths.sum()) <= bound:
        return data
    most = bound // len(data)
    if most < 10:  # many short trials: fewer of them instead
        count = int(np.searchsorted(np.cumsum(data.lengths), bound))
        notes.append(f"the first {count} of {len(data)} trials only")
        return data.select(trials=slice(0, count))
    where = "" if len(data) == 1 else " of each trial"
    notes.append(f"the first {most} of {int(data.lengths.max())} steps{where} only")
    return data.select(time=(0.0, most * data.dt))


def held_out_part(data: Dataset, gap: int) -> tuple[Dataset, Dataset, str]:
    """What is fitted, what is held out, and how that is told.

    Sessions called train and test stay what they are; with four trials or more whole trials are
    held out, otherwise the end of each.

    Args:
        data: The dataset.
        gap: Steps to leave out between parts that are cut in time.
    """
    if set(data.sessions) == set(PARTS):
        train, test = (data.select(sessions=part) for part in PARTS)
        how = "the authors' training part is fitted, their test part is held out"
    elif len(data) >= 4:
        train, test = data.split(by="trial", fractions=(1 - HELD_OUT, HELD_OUT), seed=0)
        verb = "is" if len(test) == 1 else "are"
        how = f"{len(train)} trials are fitted, {len(test)} {verb} held out"
    else:
        train, test = data.split(by="time", fractions=(1 - HELD_OUT, HELD_OUT))
        test = test.select(time=(gap * data.dt, np.inf))
        left = f", after a gap of {gap}" if gap else ""
        how = (
            f"the first {train.lengths.max()} steps are fitted, the last "
            f"{test.lengths.max()} held out{left}"
        )
    return train, test, how


def useful_channels(train: Dataset, notes: list[str]) -> dict[str, np.ndarray]:
    """Numbers of the channels that vary in what is fitted, at most 64 of each modality."""
    kept = {}
    for name in train.names:
        values = np.concatenate([trial.values[name] for trial in train.trials])
        seen = np.isfinite(values)
        low = np.where(seen, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(seen, values, -np.inf).max(axis=0, initial=-np.inf)
        varies = np.flatnonzero(high > low)
        if len(varies):
            kept[name] = varies[:MOST_CHANNELS]
        if len(varies) < values.shape[1]:
            still = values.shape[1] - len(varies)
            notes.append(f"{name}: without {still} of {values.shape[1]} channels, silent or lost")
        if len(varies) > MOST_CHANNELS:
            notes.append(f"{name}: the first {MOST_CHANNELS} of {len(varies)} channels only")
    return kept


def scaled(
    train: Dataset, parts: Sequence[Dataset], kept: Mapping[str, np.ndarray]
) -> list[Dataset]:
    """Parts with the channels that are kept, real-valued ones z-scored by the training part."""
    centre, spread = {}, {}
    for name, channels in kept.items():
        centre[name], spread[name] = np.zeros(len(channels)), np.ones(len(channels))
        if train.kinds[name] in ("continuous", "bold"):
            values = np.concatenate([trial.values[name] for trial in train.trials])[:, channels]
            centre[name], spread[name] = np.nanmean(values, axis=0), np.nanstd(values, axis=0)

    def change(trial: Trial) -> Trial:
        values = {m: (trial.values[m][:, c] - centre[m]) / spread[m] for m, c in kept.items()}
        others = {
            what: {m: v for m, v in getattr(trial, what).items() if m in kept}
            for what in ("clock", "times", "nuisance")
        }
        return dataclasses.replace(trial, values=values, hidden={}, **others)

    kinds = {m: train.kinds[m] for m in kept}
    return [Dataset([change(t) for t in part.trials], part.dt, kinds) for part in parts]
