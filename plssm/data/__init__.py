"""Data: recordings in seconds, datasets on a latent clock, batches of tensors, simulators.

The way of the data is one line. A :class:`Recording` holds what was measured, each
:class:`Signal` and each set of :class:`Events` in seconds on its own time base. Its
``to_dataset(dt)`` puts it on a latent clock and gives a :class:`Dataset`; arrays that are already
on one clock enter by ``Dataset.from_arrays``, tables by ``Dataset.from_pandas``. Everything is
checked once, there, and refused with a :class:`~plssm.errors.DataError` that names the place and
the fix. A dataset is split, folded, selected, joined and held out without copies or further
checks, and shown to models as a :class:`Batch`: padded tensors, filled with zeros, with masks.

Conventions: time in seconds; NaN is missing, on the way in and on the way out; latent step k of a
trial covers [k dt, (k + 1) dt) from its start; a sample on its own clock belongs to the nearest
step, ties to the earlier; trials may differ in length and may lack a modality.

``plssm.data.synthetic`` simulates the usual chaotic and oscillating systems as plain arrays;
:func:`load_recording` loads a recording by its name, :func:`read_nwb` one from an NWB file.
"""

from __future__ import annotations

from plssm.data.batch import Batch, Modality
from plssm.data.catalogue import load_recording, load_truth, recordings
from plssm.data.dataset import Dataset
from plssm.data.io_nwb import read_nwb, write_posterior_nwb
from plssm.data.recording import Recording
from plssm.data.signals import Events, Signal
from plssm.data.trial import KINDS, Trial

__all__ = [
    "KINDS",
    "Batch",
    "Dataset",
    "Events",
    "Modality",
    "Recording",
    "Signal",
    "Trial",
    "load_recording",
    "load_truth",
    "read_nwb",
    "recordings",
    "synthetic",
    "write_posterior_nwb",
]


def __getattr__(name: str) -> object:
    if name == "synthetic":
        import importlib

        return importlib.import_module("plssm.data.synthetic")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
