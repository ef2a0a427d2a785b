"""The table of the recordings: where each comes from and which arrays its file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plssm.data import _builders as build

__all__ = ["SOURCES", "Source"]


@dataclass(frozen=True)
class Source:
    """Where a recording comes from.

    Args:
        name: Name for `load_recording`, and of the folder and the npz file under PLSSM_DATA.
        title: What it is, in a few words.
        origin: Where to get the original.
        licence: Terms of the original.
        citation: What to cite.
        build: Makes the Recording or the Dataset.
        place: "folder" (npz under PLSSM_DATA), "nitime" (a file of that package) or "shipped".
        arrays: Names and shapes of the arrays in the npz.
        sha256: Checksum of the npz, or "" where none is known.
        clock: Arguments of `Recording.to_dataset` for a first look, where it loads as a Recording.
        seconds: The stretch of it that is worth a first look, None for all.
        gap_steps: Steps to leave out between parts that are cut in time (delay embeddings).
    """

    name: str
    title: str
    origin: str
    licence: str
    citation: str
    build: Callable[[Any], Any] = field(repr=False)
    place: str = "folder"
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    sha256: str = ""
    clock: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seconds: tuple[float, float] | None = field(default=None, repr=False)
    gap_steps: int = field(default=0, repr=False)


_NITIME = dict(
    origin="the package nitime (pip install plssm[data])",
    licence="BSD-3-Clause",
    citation="nitime developers, time-series analysis for neuroscience",
    place="nitime",
)
_SHIPPED = dict(
    origin="made by datasets/simulated/make.py",
    licence="MIT",
    citation="plssm developers",
    build=build.simulated,
    place="shipped",
)
_NO_LICENCE = "none stated: local use only, do not redistribute"

_ALL = (
    Source(
        "fmri_nback",
        "13 people, n-back task: 20 regions, task stage, stimuli; repetition time 3 s",
        "github.com/DurstewitzLab/mmPLRNN, mmPLRNN_EM/Data/Training/fMRI",
        _NO_LICENCE,
        "Koppe et al. 2014, NeuroImage; Kramer et al. 2022, ICML",
        build.fmri_nback,
        arrays={
            "bold": (13, 5, 72, 20),
            "inputs": (13, 5, 72, 5),
            "labels": (13, 5, 72),
            "label_names": (5,),
            "input_names": (5,),
            "subject": (13,),
            "tr_seconds": (),
        },
        sha256="fd96ddb6758c2cec1691fc7cdd8b58b7eef68a5a2062a02ef477880fbb6ea2d0",
    ),
    Source(
        "fmri_nback_subject",
        "one person, n-back task: 20 regions, 6 motion regressors; repetition time 3 s",
        "github.com/DurstewitzLab/ContPLRNN, Example_winp_206.mat",
        "CC-BY",
        "Koppe et al. 2019, PLoS Comput Biol; Monfared & Durstewitz 2020, ICML",
        build.fmri_nback_subject,
        arrays={
            "bold": (360, 20),
            "inputs": (360, 5),
            "motion": (360, 6),
            "regions": (20,),
            "hrf": (11,),
            "tr_seconds": (),
        },
        sha256="27f561bb8097a026c41b9f49374e064e53534db477fb7f818e947a356534a6f8",
        clock={"dt": 3.0},
    ),
    Source(
        "fmri_localizer",
        "one person, functional localizer: 6 regions, 80 events; repetition time 2.4 s",
        "github.com/pyhrf/pyhrf, python/pyhrf/datafiles",
        "CeCILL v2",
        "Vincent et al. 2014, Front Neurosci (pyhrf); Pinel et al. 2007, BMC Neurosci",
        build.fmri_localizer,
        arrays={
            "bold": (128, 6),
            "roi_label": (6,),
            "tr_seconds": (),
            "onset_seconds": (80,),
            "condition": (80,),
        },
        sha256="c72b2b280e57f8abfec0f2a70759684030719374fe4ef449becc9433718bb192",
        clock={"dt": 2.4},
    ),
    Source(
        "linear_track",
        "rat on a linear track: spike times of 31 units, position at 60 Hz",
        "github.com/nelpy/example-data, linear-track",
        "MIT",
        "nelpy example data",
        build.linear_track,
        arrays={
            "spike_times_seconds": (28829,),
            "spike_unit": (28829,),
            "position_times_seconds": (118965,),
            "position_pixels": (118965, 2),
        },
        sha256="bee4ce19c2f62173cf7e567fc50854204fdf309c84f79512fe1517a453a2d8a5",
        clock={"dt": 0.1, "resample": {"position": "mean"}},
        seconds=build.RUNNING,
    ),
    Source(
        "hippocampus_spikes_lfp",
        "rat hippocampus: counts of 77 units, 128 field-potential features, position, speed",
        "the repository of the authors of bioRxiv 828467",
        _NO_LICENCE,
        "bioRxiv 828467, doi:10.1101/828467",
        build.hippocampus_spikes_lfp,
        arrays={
            "counts": (2650, 77),
            "lfp_features": (2650, 128),
            "position": (2650,),
            "speed": (2650,),
        },
        sha256="ab1fe69eb3a5a5764ecfc0047e5089b81d2ef5e973215bb2d4237bac5df93e62",
    ),
    Source(
        "m1_reaching",
        "monkey motor cortex, reaches to four targets: counts of 71 units, velocity, target",
        "github.com/KordingLab/DAD, data",
        "local use only; cite the paper",
        "Dyer et al. 2017, Nat Biomed Eng, doi:10.1101/080861 (preprint)",
        build.m1_reaching,
        arrays={
            "counts_train": (1200, 71),
            "velocity_train": (1200, 2),
            "target_train": (1200,),
            "counts_test": (1818, 71),
            "velocity_test": (1818, 2),
            "target_test": (1818,),
        },
        sha256="dc5262ca8f25bcdc9b9d846423b007f58a4a7ce347e418677f4a8e5ea6f99121",
    ),
    Source(
        "acc_delayed_alternation",
        "rat anterior cingulate cortex, delayed alternation: smoothed rates of 30 units",
        "github.com/DurstewitzLab/PLRNNstsp, del_alt_11_26_KDE05.mat",
        "CC-BY",
        "Hyman et al. 2013, Cereb Cortex 23: 1257; Durstewitz 2017, PLoS Comput Biol",
        build.acc_delayed_alternation,
        arrays={
            "rates_hz": (14, 28, 30),
            "trial_type": (14,),
            "mean_rate_hz": (30,),
            "bin_seconds": (),
        },
        sha256="d8a6099724832cf0d913fdef8ccc9116180192c868b2b7b2e5bf959dd5903a8e",
    ),
    Source(
        "eeg",
        "human EEG: 64 electrodes, 160 Hz, smoothed and z-scored",
        "github.com/DurstewitzLab/GTF-shPLRNN, ICML2023_datasets/EEG",
        "GPL-3 (repository); PhysioNet eegmmidb",
        "Schalk et al. 2004, IEEE Trans Biomed Eng; Hess et al. 2023, ICML",
        build.eeg,
        arrays={"eeg": (9640, 64), "rate_hz": ()},
        sha256="ed4d570804ba2c80ccfafd4d7248481671e784bf54bb230684d9bacaeee510d6",
        clock={"dt": 1 / 160},
    ),
    Source(
        "ecg",
        "human electrocardiogram: delay embedding of one channel in five dimensions",
        "github.com/DurstewitzLab/GTF-shPLRNN, ICML2023_datasets/ECG",
        "GPL-3 (repository)",
        "Hess et al. 2023, ICML",
        build.ecg,
        arrays={"ecg_embedded": (50000, 5)},
        sha256="8aad5062698acb9fcea7d369b412a97d4cc77926468515be38040dd1077a393f",
        gap_steps=68,
    ),
    Source(
        "membrane_potential",
        "membrane potential of one neuron: delay embedding in six dimensions",
        "github.com/DurstewitzLab/continuous-time-PLRNN, example_data",
        _NO_LICENCE,
        "Brändle et al. 2026, ICML",
        build.membrane_potential,
        arrays={"potential_embedded": (11703, 6)},
        sha256="29b6b5f7f9e0f6e63e4571dde1d25b39412a93f7bb562edfdba047908cbfe0b4",
        gap_steps=65,
    ),
    Source(
        "nitime_bold",
        "human fMRI at rest: 28 regions, repetition time 1.89 s",
        build=build.nitime_bold,
        **_NITIME,
        clock={"dt": 1.89},
    ),
    Source(
        "nitime_event_related",
        "human fMRI, moving stimuli: one region, six kinds of trials; repetition time 2 s",
        build=build.nitime_event_related,
        **_NITIME,
        clock={"dt": 2.0},
    ),
    Source(
        "nitime_grasshopper",
        "grasshopper auditory receptor: spike times and stimulus, two trials of 10 s",
        build=build.nitime_grasshopper,
        **_NITIME,
        clock={"dt": 0.01},
    ),
    Source("simulated_linear", "linear dynamics with inputs, ragged trials", **_SHIPPED),
    Source("simulated_plrnn", "PLRNN with known parameters, missing entries", **_SHIPPED),
    Source("simulated_lorenz63", "Lorenz-63 seen through noise", **_SHIPPED),
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
