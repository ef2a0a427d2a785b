"""What a demo fits: a recording made ready, its parts, and what is said about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from plssm.cli.shortening import first_subject, held_out_part, scaled, shortened, useful_channels
from plssm.data import Dataset, Recording, load_recording, recordings
from plssm.defaults import default_model
from plssm.errors import DataError
from plssm.model import StateSpaceModel

__all__ = ["Material", "recording_material"]


@dataclass(frozen=True)
class Material:
    """What a demo fits, and how it is called.

    Args:
        model: A fresh model.
        train: What is fitted.
        test: What is held out.
        names: Names of the channels of each modality.
        story: What is said about the data.
        note: What is said about the number of latent dimensions.
    """

    model: StateSpaceModel
    train: Dataset
    test: Dataset
    names: dict[str, tuple[str, ...]]
    story: str
    note: str = ""


def recording_material(name: str, dim: int | None = None) -> Material:
    """Make any recording of the catalogue ready for a fit of about a minute.

    One subject is taken, and at most so many steps and channels as a demo can bear; a part is held
    out; channels that tell nothing are left out and real-valued ones z-scored, both by what is
    fitted.

    Args:
        name: Name of the recording.
        dim: Latent dimensions; None takes those of the default model.

    Raises:
        DataError: If there is no such recording on this machine.
    """
    loaded = load_recording(name)
    source = next(s for s in recordings() if s.name == name)
    names: dict[str, tuple[str, ...]] = {}
    if isinstance(loaded, Recording):
        names = {m: tuple(signal.names) for m, signal in loaded.signals.items()}
        window = None if source.seconds is None else [source.seconds]
        if window is not None:
            loaded = dataclasses.replace(loaded, trials=window)
        data = loaded.to_dataset(**source.clock, check_channels=False)
    else:
        data = loaded
    total, notes = data, []
    data = first_subject(data, notes)
    data = shortened(data, notes)
    train, test, how = held_out_part(data, source.gap_steps)
    kept = useful_channels(train, notes)
    if not kept:
        raise DataError(f"no channel of {name!r} varies in what would be fitted")
    names = {
        m: tuple((names.get(m) or _numbered(m, total.channels[m]))[k] for k in which)
        for m, which in kept.items()
    }
    train, test, whole = scaled(train, (train, test, data), kept)
    story = [f"data: {source.title}", f"      from {source.origin}; licence: {source.licence}"]
    story += [f"      {line.strip()}" for line in repr(whole).splitlines()[1:]]
    story += [f"      {how}", *(f"      {note}" for note in notes)]
    if any(kind in ("continuous", "bold") for kind in train.kinds.values()):
        story.append("      real-valued channels are z-scored by what is fitted")
    return Material(default_model(whole, dim), train, test, names, "\n".join(story))


def _numbered(modality: str, channels: int) -> tuple[str, ...]:
    return tuple(np.char.add(f"{modality} ", np.arange(1, channels + 1).astype(str)).tolist())
