"""Convert the linear track of the nelpy example data.

`spikes.mat` holds one entry per tetrode, each with one struct per unit (field `time`), empty where
nothing was sorted. The tracking file is a text header up to `<End settings>`, then records of a
32-bit time stamp (30 kHz) and four 16-bit coordinates, of which the first two are used.
Written from the public description of the original; not tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from _common import arguments, save
from scipy.io import loadmat

CLOCK_HZ = 30000.0
RECORD = np.dtype([("time", "<u4"), ("x", "<u2"), ("y", "<u2"), ("x2", "<u2"), ("y2", "<u2")])


def units(tetrodes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the spike times (seconds) of every unit that has some."""
    for tetrode in np.atleast_1d(tetrodes):
        for unit in np.atleast_1d(tetrode):
            times = np.ravel(getattr(unit, "time", []))
            if times.size:
                yield times.astype(np.float64)


def main() -> None:
    """Flatten the units and cut the header off the tracking file."""
    given = arguments(__doc__, spikes="spikes.mat", tracking="trajectory.videoPositionTracking")
    tetrodes = loadmat(given.spikes, squeeze_me=True, struct_as_record=False)["spikes"]
    trains = list(units(tetrodes))
    raw = given.tracking.read_bytes()
    end = b"<End settings>\n"
    start = raw.index(end) + len(end)
    whole = (len(raw) - start) // RECORD.itemsize
    track = np.frombuffer(raw, dtype=RECORD, count=whole, offset=start)
    save(
        given.out,
        "linear_track",
        spike_times_seconds=np.concatenate(trains),
        spike_unit=np.repeat(np.arange(len(trains)), [len(t) for t in trains]).astype(np.int16),
        position_times_seconds=track["time"] / CLOCK_HZ,
        position_pixels=np.stack([track["x"], track["y"]], axis=1).astype(np.float32),
    )


if __name__ == "__main__":
    main()
