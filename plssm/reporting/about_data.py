"""What the report says about the data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from plssm.data import Dataset
from plssm.plot import recorded
from plssm.reporting.markup import note, paragraph, picture, table

__all__ = ["data_section", "longest_gap"]

MOST_TRIALS = 12


def data_section(data: Dataset, trial: int) -> str:
    """Modalities, trials, gaps, and a picture of one trial.

    Args:
        data: The trials.
        trial: Which one is drawn.
    """
    out = [paragraph(repr(data).splitlines()[0])]
    rows = {name: _modality(data, name) for name in data.names}
    out.append(table(pd.DataFrame.from_dict(rows, orient="index")))
    if data.n_inputs:
        out.append(paragraph(f"Inputs: {data.n_inputs}"))
    shown = data.trials[:MOST_TRIALS]
    trials = pd.DataFrame(
        [
            {"subject": t.subject, "session": t.session, "steps": t.length,
             "seconds": t.length * data.dt}
            | {f"missing {m}": _share(np.isnan(t.values[m])) for m in data.names}
            for t in shown
        ],
        index=[t.name for t in shown],
    )  # fmt: skip
    out.append(table(trials))
    if len(data) > len(shown):
        out.append(note(f"The first {len(shown)} of {len(data)} trials."))
    caption = "Channels z-scored each by itself, shades up to two standard deviations"
    out.append(picture(partial(recorded, data, trial), caption))
    return "".join(out)


def _modality(data: Dataset, name: str) -> dict[str, str | int]:
    trials = data.trials
    own = any(t.clock[name] is not None for t in trials)
    gap, seconds = max(longest_gap(t.values[name]) for t in trials), data.dt
    if own:
        gaps = np.concatenate([np.diff(t.seconds(name, data.dt)) for t in trials])
        seconds = float(np.median(gaps)) if len(gaps) else float("nan")
    return {
        "kind": data.kinds[name],
        "channels": data.channels[name],
        "samples": sum(len(t.values[name]) for t in trials),
        "clock": f"own, about every {seconds:.4g} s" if own else "latent",
        "missing entries": _share(np.concatenate([np.isnan(t.values[name]) for t in trials])),
        "longest gap": f"{gap} samples" if gap else "none",
    }


def longest_gap(y: np.ndarray) -> int:
    """Length of the longest stretch of samples ``[n, N]`` of which nothing was observed."""
    absent = np.isnan(y).all(axis=1).astype(int)
    edges = np.flatnonzero(np.diff(absent, prepend=0, append=0))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _share(missing: np.ndarray) -> str:
    return f"{missing.mean():.1%}" if missing.size else "–"
