"""The fMRI n-back data, their stretches, and what a decoder of them has to beat."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

import plssm as ps

SUBJECTS, RUNS, SCANS, REGIONS, CLASSES = 13, 5, 72, 20, 5
LENGTH, PAST, STRETCHES = 30, 10, 20
ONSETS = np.random.default_rng(0).integers(0, SCANS - LENGTH + 1, (SUBJECTS, RUNS, STRETCHES))
PAIRS = ((0, 1), (2, 3), (4, 0), (1, 2), (3, 4), (0, 2), (1, 3), (2, 4), (3, 0), (4, 1))
ORDERS = ((0, 6, 12), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11))
LAGS = {"logistic_acausal": range(-2, 7), "logistic_causal": range(-8, 1)}
PENALTIES = (1000.0, 100.0, 10.0, 1.0)


def recording() -> tuple[np.ndarray, np.ndarray]:
    """BOLD ``[subject, run, scan, region]`` and labels ``[subject, run, scan]``."""
    data = ps.data.load_recording("fmri_nback")
    bold = data.values("bold").reshape(SUBJECTS, RUNS, SCANS, REGIONS)
    return bold, data.values("stage").reshape(SUBJECTS, RUNS, SCANS).astype(int)


def cut(series: np.ndarray, subject: int, run: int) -> np.ndarray:
    """The stretches of one run, ``[20, 30, ...]``."""
    return np.stack([series[subject, run, o : o + LENGTH] for o in ONSETS[subject, run]])


def with_past(x: np.ndarray) -> np.ndarray:
    """Stretches ``[n, 30, ...]`` with ten steps before them of which nothing is known."""
    return np.concatenate([np.full((len(x), PAST, *x.shape[2:]), np.nan), x], 1)


def confusion(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Number of scans by true and predicted class ``[5, 5]``."""
    table = np.zeros((CLASSES, CLASSES), dtype=int)
    np.add.at(table, (truth.ravel(), pred.ravel()), 1)
    return table


def scores(table: Any) -> dict[str, float]:
    """Accuracy and balanced accuracy of a confusion table."""
    table = np.asarray(table)
    seen = table.sum(1) > 0
    recall = np.diag(table)[seen] / table.sum(1)[seen]
    return {
        "accuracy": float(np.trace(table) / table.sum()),
        "balanced_accuracy": float(recall.mean()),
    }


def summary(tables: dict[str, list[Any]]) -> dict[str, Any]:
    """Accuracies per subject, of its runs together, and their means; tables by subject and run."""
    each = {s: scores(np.sum(t, 0)) for s, t in tables.items()}
    means = {k: float(np.mean([row[k] for row in each.values()])) for k in each["0"]}
    rows = {s: {k: round(v, 4) for k, v in row.items()} for s, row in each.items()}
    return {**means, "subjects": rows}


def design(x: np.ndarray, lags: Sequence[int]) -> np.ndarray:
    """Lagged copies of ``[T, N]``, zero beyond the ends."""
    index = np.arange(len(x))[:, None] + np.asarray(lags)
    inside = (index >= 0) & (index < len(x))
    return np.where(inside[..., None], x[np.clip(index, 0, len(x) - 1)], 0.0).reshape(len(x), -1)


def logistic(
    x: np.ndarray, y: np.ndarray, penalty: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Multinomial logistic regression with a ridge on the weights, ``[5, p + 1]``."""
    x = np.column_stack([x, np.ones(len(x))])
    hit = np.eye(CLASSES)[y]
    pull = np.r_[np.full(x.shape[1] - 1, penalty), 0.0]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(CLASSES, -1)
        logits = x @ w.T
        logits -= logits.max(1, keepdims=True)
        norm = np.log(np.exp(logits).sum(1, keepdims=True))
        gradient = (np.exp(logits - norm) - hit).T @ x + pull * w
        return -((logits - norm) * hit).sum() + 0.5 * (pull * w**2).sum(), gradient.ravel()

    start = np.zeros((CLASSES, x.shape[1])) if start is None else start
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return found.x.reshape(CLASSES, -1)


def windows(labels: np.ndarray) -> np.ndarray:
    """Labels of a run ``[72]`` from every onset a stretch can have, ``[43, 30]``."""
    return np.stack([labels[o : o + LENGTH] for o in range(SCANS - LENGTH + 1)])


def aligned(logits: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Class probabilities of scans ``[n, 30, 5]`` where the label order of the run is known.

    Scans are taken as independent given the onset, all onsets as equally likely before.
    """
    hit = np.eye(CLASSES)[windows(known)]
    onset = np.einsum("ntk,otk->no", log_softmax(logits, axis=-1), hit)
    onset = np.exp(onset - onset.max(1, keepdims=True))
    return np.einsum("no,otk->ntk", onset / onset.sum(1, keepdims=True), hit)


class Regression:
    """Logistic regression on lagged BOLD, and its confusion on the stretches of a run.

    ``ordered`` fits the label order of the training runs to the log-probabilities of a stretch.
    """

    def __init__(
        self, bold: np.ndarray, labels: np.ndarray, lags: Sequence[int], *, ordered: bool = False
    ) -> None:
        self.bold, self.labels, self.lags, self.ordered = bold, labels, lags, ordered

    def path(self, runs: list[tuple[int, int]], penalties: Sequence[float]) -> list[np.ndarray]:
        """Weights for falling penalties, fitted to whole runs (subject, run)."""
        x = np.concatenate([design(self.bold[s, r], self.lags) for s, r in runs])
        y = np.concatenate([self.labels[s, r] for s, r in runs])
        fits: list[np.ndarray] = []
        for penalty in penalties:
            fits.append(logistic(x, y, penalty, fits[-1] if fits else None))
        return fits

    def test(self, weight: np.ndarray, subject: int, run: int) -> np.ndarray:
        """Confusion on the stretches, which are zero-padded: what is around them is unknown."""
        logits = np.stack(
            [
                design(x, self.lags) @ weight[:, :-1].T + weight[:, -1]
                for x in cut(self.bold, subject, run)
            ]
        )
        if self.ordered:
            logits = aligned(logits, self.labels[subject, (run + 1) % RUNS])
        return confusion(cut(self.labels, subject, run), logits.argmax(-1))

    def subject(self, s: int) -> list[np.ndarray]:
        """Confusion on every run, the penalty chosen on stretches of the training runs."""
        inner = np.zeros((RUNS, len(PENALTIES)))
        for a, b in PAIRS:
            kept = [(s, q) for q in range(RUNS) if q not in (a, b)]
            for k, weight in enumerate(self.path(kept, PENALTIES)):
                inner[a, k] += scores(self.test(weight, s, b))["balanced_accuracy"]
                inner[b, k] += scores(self.test(weight, s, a))["balanced_accuracy"]
        tables = []
        for r in range(RUNS):
            penalties = PENALTIES[: int(inner[r].argmax()) + 1]
            weight = self.path([(s, q) for q in range(RUNS) if q != r], penalties)[-1]
            tables.append(self.test(weight, s, r))
        return tables

    def strict(self, order: int) -> dict[int, list[np.ndarray]]:
        """Confusion on every run of the subjects of one order; the next one chose the penalty."""
        following = ORDERS[(order + 1) % len(ORDERS)]
        others = [s for k in range(len(ORDERS)) if k != order for s in ORDERS[k]]
        kept = [(s, r) for s in others if s not in following for r in range(RUNS)]
        inner = [
            scores(sum(self.test(w, s, r) for s in following for r in range(RUNS)))
            for w in self.path(kept, PENALTIES)
        ]
        best = int(np.argmax([row["balanced_accuracy"] for row in inner]))
        runs = [(s, r) for s in others for r in range(RUNS)]
        weight = self.path(runs, PENALTIES[: best + 1])[-1]
        return {s: [self.test(weight, s, r) for r in range(RUNS)] for s in ORDERS[order]}


def counter(labels: np.ndarray, subject: int, run: int, *, told: bool = False) -> np.ndarray:
    """Confusion of a model that knows the label order of the training runs and counts scans.

    The onset is unknown to it, so that at scan k of a stretch it names the class most frequent at
    scan k over all 43 onsets. ``told``: it is told the onset (all that whole runs test).
    """
    every = windows(labels[subject, (run + 1) % RUNS])
    guess = np.array([np.bincount(column, minlength=CLASSES).argmax() for column in every.T])
    truth = cut(labels, subject, run)
    pred = every[ONSETS[subject, run]] if told else np.broadcast_to(guess, truth.shape)
    return confusion(truth, pred)


def majority(labels: np.ndarray, subject: int, run: int) -> np.ndarray:
    """Confusion of the most frequent class, rest."""
    truth = cut(labels, subject, run)
    return confusion(truth, np.zeros_like(truth))


class Memory:
    """Results of the parts by name, kept in a folder where there is one: a run can go on."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[..., Any], *given: Any) -> Any:
        """The part, from the folder or made by ``make(*given)``."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and path.exists():
            return json.loads(path.read_text())
        made = json.loads(json.dumps(make(*given), default=lambda a: np.asarray(a).tolist()))
        if path is not None:
            path.write_text(json.dumps(made))
        print(f"{name} done", flush=True)
        return made
