"""From the arrays of a stored recording to a Recording or a Dataset: one function each.

The functions are used by :mod:`plssm.data.catalogue`, which finds, verifies and opens the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plssm.data.dataset import Dataset
from plssm.data.recording import Events, Recording, Signal

__all__ = [
    "acc_delayed_alternation",
    "ecg",
    "eeg",
    "fmri_localizer",
    "fmri_nback",
    "fmri_nback_subject",
    "hippocampus_spikes_lfp",
    "linear_track",
    "m1_reaching",
    "membrane_potential",
    "nitime_bold",
    "nitime_event_related",
    "nitime_grasshopper",
    "simulated",
]

Arrays = Mapping[str, np.ndarray]

TRACKING_LOST = ((477.0, 479.0), (522.0, 8.0))
"""Pixel positions at which the camera of the linear track rests while it sees no rat."""

RUNNING = (4397.0, 5300.0)
"""Seconds between which the rat of the linear track runs; it rests afterwards."""


def _clock(samples: int, period: float) -> np.ndarray:
    return np.arange(samples) * float(period)


def fmri_nback(arrays: Arrays) -> Dataset:
    """13 subjects, five runs each; the clock is the repetition time of the scanner."""
    subjects, runs = arrays["bold"].shape[:2]

    def trials(values: np.ndarray) -> np.ndarray:
        return values.reshape(subjects * runs, values.shape[2], -1).astype(np.float64)

    who = [str(subject) for subject in arrays["subject"] for _ in range(runs)]
    run = [str(r + 1) for _ in range(subjects) for r in range(runs)]
    return Dataset.from_arrays(
        {"bold": trials(arrays["bold"]), "stage": trials(arrays["labels"])},
        dt=float(arrays["tr_seconds"]),
        inputs=trials(arrays["inputs"]),
        kinds={"bold": "bold", "stage": "label"},
        trials=[f"subject {s} run {r}" for s, r in zip(who, run, strict=True)],
        subjects=who,
        sessions=run,
    )


def fmri_nback_subject(arrays: Arrays) -> Recording:
    """One subject with motion regressors."""
    times = _clock(len(arrays["bold"]), arrays["tr_seconds"])
    bold = Signal(
        arrays["bold"].astype(np.float64),
        times,
        kind="bold",
        nuisance=arrays["motion"].astype(np.float64),
        names=tuple(str(region) for region in arrays["regions"]),
        unit="z-score",
    )
    inputs = Signal(arrays["inputs"].astype(np.float64), times)
    meta = {"tr_seconds": float(arrays["tr_seconds"]), "hrf": arrays["hrf"].tolist()}
    return Recording({"bold": bold}, inputs=inputs, meta=meta)


def fmri_localizer(arrays: Arrays) -> Recording:
    """Six regions; the onsets of the ten conditions are the inputs."""
    tr = float(arrays["tr_seconds"])
    scans = len(arrays["bold"])
    conditions = sorted({str(c) for c in arrays["condition"]})
    onsets = tuple(
        np.sort(arrays["onset_seconds"][arrays["condition"] == condition])
        for condition in conditions
    )
    regions = tuple(f"region {label}" for label in arrays["roi_label"])
    bold = Signal(arrays["bold"].astype(np.float64), _clock(scans, tr), kind="bold", names=regions)
    return Recording(
        {"bold": bold},
        inputs=Events(onsets, (0.0, scans * tr)),
        meta={"tr_seconds": tr, "conditions": conditions},
    )


def linear_track(arrays: Arrays) -> Recording:
    """Spike trains of 31 units and the position of the rat, NaN while tracking is lost."""
    seconds, keep = np.unique(arrays["position_times_seconds"], return_index=True)
    position = arrays["position_pixels"][keep].astype(np.float64)
    for rest in TRACKING_LOST:
        position[(position == rest).all(axis=1)] = np.nan
    unit, spikes = arrays["spike_unit"], arrays["spike_times_seconds"]
    support = (min(seconds[0], spikes.min()), max(seconds[-1], spikes.max()))
    trains = tuple(np.sort(spikes[unit == u]) for u in range(int(unit.max()) + 1))
    return Recording(
        {
            "spikes": Events(trains, support),
            "position": Signal(position, seconds, names=("x", "y"), unit="pixel"),
        },
        meta={"running_seconds": RUNNING},
    )


def hippocampus_spikes_lfp(arrays: Arrays) -> Dataset:
    """Counts, field-potential features, position and speed; one step is one bin."""
    return Dataset.from_arrays(
        {
            "spikes": arrays["counts"].astype(np.float64),
            "lfp": arrays["lfp_features"].astype(np.float64),
            "position": arrays["position"].astype(np.float64),
            "speed": arrays["speed"].astype(np.float64),
        },
        dt=1.0,
        kinds={"spikes": "count"},
    )


def m1_reaching(arrays: Arrays) -> Dataset:
    """Reaches to four targets; one trial for the training part and one for the test part.

    The reaches of a part stay together, so that no trial border tells when a target changes; one
    step is one bin.
    """
    parts = ("train", "test")
    return Dataset.from_arrays(
        {
            "spikes": [arrays[f"counts_{part}"].astype(np.float64) for part in parts],
            "velocity": [arrays[f"velocity_{part}"].astype(np.float64) for part in parts],
            "target": [arrays[f"target_{part}"].astype(np.float64) for part in parts],
        },
        dt=1.0,
        kinds={"spikes": "count", "target": "label"},
        trials=parts,
        sessions=parts,
    )


def acc_delayed_alternation(arrays: Arrays) -> Dataset:
    """Smoothed rates of 30 units; the side of the trial is one label, in its last bin."""
    rates = arrays["rates_hz"].astype(np.float64)
    dt = float(arrays["bin_seconds"])
    side = arrays["trial_type"].astype(np.float64).reshape(-1, 1, 1) - 2.0
    return Dataset.from_arrays(
        {"rates": rates, "side": side},
        dt=dt,
        kinds={"side": "label"},
        times={"side": np.array([(rates.shape[1] - 1) * dt])},
    )


def eeg(arrays: Arrays) -> Recording:
    """64 electrodes at 160 Hz."""
    values = arrays["eeg"].astype(np.float64)
    times = _clock(len(values), 1.0 / float(arrays["rate_hz"]))
    return Recording({"eeg": Signal(values, times, unit="z-score")})


def ecg(arrays: Arrays) -> Dataset:
    """Five delays of one electrocardiogram; one step is one sample."""
    return Dataset.from_arrays({"ecg": arrays["ecg_embedded"].astype(np.float64)}, dt=1.0)


def membrane_potential(arrays: Arrays) -> Dataset:
    """Six delays of one membrane potential; one step is one sample."""
    values = arrays["potential_embedded"].astype(np.float64)
    return Dataset.from_arrays({"potential": values}, dt=1.0)


def nitime_bold(folder: Path) -> Recording:
    """28 regions at rest; the averages over whole tissues are kept in `meta`."""
    file = folder / "fmri_timeseries.csv"
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    names = [name.strip('"') for name in header.split(",")]
    values = np.loadtxt(rows, delimiter=",")
    tissue = [names.index(name) for name in ("WM", "Vent", "Brain")]
    regions = [index for index in range(len(names)) if index not in tissue]
    tr = 1.89
    bold = Signal(
        values[:, regions],
        _clock(len(values), tr),
        kind="bold",
        names=tuple(names[index] for index in regions),
    )
    averages = {names[index]: values[:, index].tolist() for index in tissue}
    return Recording({"bold": bold}, meta={"tr_seconds": tr, "tissue": averages})


def nitime_event_related(folder: Path) -> Recording:
    """Motion-sensitive voxels; the onsets of six kinds of trials are the inputs."""
    bold, events = np.loadtxt(folder / "event_related_fmri.csv", delimiter=",", skiprows=1).T
    tr = 2.0
    times = _clock(len(bold), tr)
    onsets = np.stack([events == kind for kind in range(1, 7)], axis=1).astype(np.float64)
    return Recording(
        {"bold": Signal(bold[:, None], times, kind="bold", unit="% signal change")},
        inputs=Signal(onsets, times, names=tuple(f"trial kind {k}" for k in range(1, 7))),
        meta={"tr_seconds": tr},
    )


def nitime_grasshopper(folder: Path) -> Recording:
    """One auditory receptor neuron, two stimuli of ten seconds: two trials in a row."""
    spikes, stimuli, duration = [], [], 10.0
    for trial in (1, 2):
        microseconds = np.loadtxt(folder / f"grasshopper_spike_times{trial}.txt")
        spikes.append(np.unique(microseconds) * 1e-6 + duration * (trial - 1))
        stimuli.append(np.loadtxt(folder / f"grasshopper_stimulus{trial}.txt")[:, 1])
    stimulus = np.concatenate(stimuli)
    return Recording(
        {"spikes": Events((np.concatenate(spikes),), (0.0, 2 * duration))},
        trials=np.array([[0.0, duration], [duration, 2 * duration]]),
        inputs=Signal(stimulus[:, None], _clock(len(stimulus), 50e-6), names=("amplitude",)),
    )


def simulated(arrays: Arrays) -> Dataset:
    """A set made by plssm itself; arrays named ``truth_...`` are its parameters."""
    return Dataset.from_dict({k: v for k, v in arrays.items() if not k.startswith("truth_")})
