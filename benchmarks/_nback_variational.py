"""Variational inference on the fMRI n-back stretches, beside LaplaceEM on the same ones.

Of every subject (the first ones, with --subjects) one run is left out (subject modulo 5). Size of
the state, weight of the labels and decision rule are those that the inner fits chose for LaplaceEM
and that run; fits that start by themselves take the best free start of the inner grid. Compared
are the encoder with convolutions and free evidence (which is fitted anew to the stretches), both
on from LaplaceEM's fit, the encoder from its own start, and each fitted model with the Laplace
posterior. What is asked is one modality from the other, so training hides one of them in half of
the windows from encoders that learn across trials (the chance that was chosen for M1 reaching;
taken over after subject 0 had been seen without).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import plssm as ps
from benchmarks._nback import RUNS, SCANS, SUBJECTS, Memory, cut, recording, scores, with_past
from benchmarks.fmri_nback import (
    COMMAND,
    FREE,
    dataset,
    decode,
    fit,
    make_broad,
    observations,
    read_out_from_bold,
)

UPDATES, HIDDEN = 150, 0.5
RESULTS = Path(__file__).parent / "results"


def variational(
    model: ps.StateSpaceModel, choice: dict, bold: np.ndarray, labels: np.ndarray, encoder: str
) -> ps.Fit:
    """Trained on some runs; what follows LaplaceEM's fit follows this one, too."""
    engine = ps.inference.VariationalInference(
        steps=UPDATES,
        start_iterations=20,
        encoder=encoder,
        drop=0.0 if encoder == "free" else HIDDEN,
        checks=10,
        modality_weights={"stage": choice["label_weight"]},
    )
    data = dataset(bold, labels.astype(float))
    made = engine.fit(model, data, progress=False)
    make_broad(laplace(made, data) if encoder == "free" else made, data)
    if choice["start"] == "clock":
        read_out_from_bold(made, bold, labels.astype(float))
    return made


def laplace(made: ps.Fit, data: ps.Dataset) -> ps.Fit:
    """The same model, its posteriors by Laplace's method."""
    engine = ps.inference.LaplaceEM(modality_weights=made.engine.modality_weights)
    return ps.Fit.after_training(
        made.model, engine, data, history=made.history, seconds=made.seconds
    )


def row(
    made: ps.Fit, choice: dict, bold: np.ndarray, labels: np.ndarray, s: int, r: int
) -> dict[str, Any]:
    """Accuracies under the chosen rule, Brier score and nats per label on the stretches."""
    found = decode(made, bold, labels, s, r)
    x, truth = with_past(cut(bold, s, r)), with_past(cut(labels, s, r).astype(float))
    table = made.score(dataset(x, truth), given=["bold"])
    out = scores(found[choice["rule"]]) | {"brier": found["brier"]}
    return out | {
        "table": found[choice["rule"]],
        "nats": float(table.loc["stage", "log_likelihood"]),
        "minutes": made.seconds / 60,
    }


def subject_rows(
    bold: np.ndarray, labels: np.ndarray, s: int, choice: dict, free: dict
) -> dict[str, dict]:
    """All engines on one left-out run of a subject."""
    r = s % RUNS
    runs = [q for q in range(RUNS) if q != r]
    x, y = bold[s, runs], labels[s, runs]
    data = dataset(x, y.astype(float))
    first = fit(x, y, choice)
    fresh = ps.StateSpaceModel(
        ps.dynamics.PLRNN(free["dim"], initial_noise="full"), observations()
    )
    fits = {
        "LaplaceEM": (first, choice),
        "conv from LaplaceEM": (variational(first.model, choice, x, y, "conv"), choice),
        "conv, own start": (variational(fresh, free, x, y, "conv"), free),
        "free from LaplaceEM": (variational(first.model, choice, x, y, "free"), choice),
    }
    out = {}
    for name, (made, picked) in fits.items():
        began = time.perf_counter()
        out[name] = row(made, picked, bold, labels, s, r)
        out[name]["decoding_minutes"] = (time.perf_counter() - began) / 60
        if name != "LaplaceEM":
            other = laplace(made, data)
            out[f"{name}, Laplace posterior"] = row(other, picked, bold, labels, s, r)
        shown = {k: round(v, 3) for k, v in out[name].items() if k != "table"}
        print(f"subject {s} {name:<22}", shown, flush=True)
    return out


def add_variational(out: Path | None, memory: Memory, subjects: int = SUBJECTS) -> int:
    """Add the figures to the file of the others, and print means over subjects."""
    path = (out or RESULTS) / "fmri_nback.json"
    made = json.loads(path.read_text())
    bold, labels = recording()
    choices = made["plrnn"]["choices_by_left_out_run"]
    kinds = [c for c in made["inner_grid"] if c["start"] == "free"]
    best = max(kinds, key=lambda c: max(c["argmax"], c["by_frequency"]))
    rule = max(("argmax", "by_frequency"), key=lambda k: best[k])
    free = {k: best[k] for k in FREE[0]} | {"rule": rule}
    rows = {
        str(s): memory(f"variational_{s}", subject_rows, bold, labels, s, choices[s % RUNS], free)
        for s in range(subjects)
    }
    table = {}
    for name in rows["0"]:
        mine = [r[name] for r in rows.values()]
        keys = [k for k in mine[0] if k != "table"]
        table[name] = {k: float(np.mean([m[k] for m in mine])) for k in keys}
        worst, top = (f([m["balanced_accuracy"] for m in mine]) for f in (min, max))
        table[name]["balanced_accuracy_range"] = [worst, top]
        shown = {k: v if isinstance(v, list) else round(v, 3) for k, v in table[name].items()}
        print(f"{name:<42}", shown)
    made["variational"] = {
        "command": COMMAND + " --engine variational", "protocol": __doc__, "updates": UPDATES,
        "free_choice": free, "scans": SCANS, "means": table, "subjects": rows,
    }  # fmt: skip
    if out is not None:
        path.write_text(json.dumps(made, indent=1, default=float) + "\n")
    return 0
