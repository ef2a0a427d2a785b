"""One table for the reconstruction of a system: every measure, every run, medians and spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from plssm.errors import DataError
from plssm.metrics.measure import Measure
from plssm.metrics.power_spectrum import power_spectrum_distance
from plssm.metrics.state_space import state_space_divergence
from plssm.metrics.trajectories import trial_pair

__all__ = ["Reconstruction", "reconstruction"]

COLLAPSED = 0.2
"""A run has collapsed when a channel varies less than this share of the truth's deviation."""


@dataclass(frozen=True)
class Reconstruction:
    """Scores of free runs against the truth, with what they have to be compared with.

    Args:
        runs: One row per model and run, one column per measure.
        references: One row per reference ("floor", "fixed point", "white noise", ...), one column
            per measure; NaN where a reference does not apply.
        settings: What each measure depends on, by its name.

    Example:
        >>> import plssm as ps
        >>> orbits = ps.data.synthetic.lorenz63(2000, trials=3)
        >>> table = ps.metrics.reconstruction(truth=orbits[0], pred={"twin": list(orbits[1:])})
        >>> list(table.runs.columns)
        ['D_stsp', 'D_H', 'outside', 'collapsed', 'diverged']
        >>> list(table.summary().index)
        ['twin', 'floor', 'fixed point', 'white noise']
    """

    runs: pd.DataFrame
    references: pd.DataFrame
    settings: dict[str, dict]

    def add(
        self,
        name: str,
        scores: Mapping[str, Sequence[float]] | Sequence[float],
        *,
        floor: float = math.nan,
        references: Mapping[str, float] | None = None,
    ) -> Reconstruction:
        """Return the table with one more measure, such as an n-step error or an exponent.

        Args:
            name: Column of the measure.
            scores: One number per run of each model, in the order of the runs; a plain sequence
                where there is one model. Where the first one is a Measure, its floor, references
                and settings are taken.
            floor: What a perfect model scores.
            references: Scores of other references, by name.

        Returns:
            A new table.

        Raises:
            DataError: Models or numbers of runs that differ from the table's.
        """
        flat = _flat(scores, self.runs.index)
        first, settings = flat[0], {}
        if isinstance(first, Measure):
            floor = first.floor if math.isnan(floor) else floor
            references = {**first.references, **(references or {})}
            settings = first.settings
        beside = {"floor": floor, **(references or {})}
        index = list(dict.fromkeys([*self.references.index, *beside]))
        table = self.references.reindex(index)
        table[name] = pd.Series(beside, dtype=np.float64)
        runs = self.runs.copy()
        runs[name] = [float(score) for score in flat]
        return replace(
            self, runs=runs, references=table, settings={**self.settings, name: settings}
        )

    def summary(self) -> pd.DataFrame:
        """Return medians and quartiles over the runs, with the references below.

        Returns:
            One row per model and per reference. Columns (measure, statistic): "median", "lower"
            and "upper" quartile of numbers, which are +inf where runs diverged; the "share" of
            what is true or false. The references stand under "median"; ("runs", "number") counts.
        """
        rows: dict[str, dict[tuple[str, str], float]] = {}
        for model, part in self.runs.groupby(level="model", sort=False):
            row: dict[tuple[str, str], float] = {("runs", "number"): len(part)}
            for name, column in part.items():
                if column.dtype == bool:
                    row[name, "share"] = float(column.mean())
                    continue
                for statistic, q in (("median", 0.5), ("lower", 0.25), ("upper", 0.75)):
                    row[name, statistic] = _quantile(column.to_numpy(), q)
            rows[model] = row
        for reference, values in self.references.iterrows():
            rows[reference] = {(name, "median"): v for name, v in values.items()}
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.reindex(columns=pd.MultiIndex.from_tuples(columns))

    def __str__(self) -> str:
        """Return the summary as text: median [quartiles, if runs differ], shares, references."""
        table = self.summary()
        out = {}
        for name in dict.fromkeys(table.columns.get_level_values(0)):
            part = table[name]
            out[name] = [_cell(part.loc[row]) for row in table.index]
            if "floor" in table.index and name in self.settings:
                place = table.index.get_loc("floor")
                out[name][place] = out[name][place] or "unavailable"
        return pd.DataFrame(out, index=table.index).to_string()


def reconstruction(
    *,
    truth: Any,
    pred: Mapping[str, Sequence] | Sequence,
    bins: int = 30,
    method: str = "auto",
    scaling: float = 1.0,
    smoothing: float = 20.0,
    seed: int = 0,
) -> Reconstruction:
    r"""Score the free runs of one or several models, each trained with several seeds.

    Columns: ``D_stsp`` (state-space divergence), ``D_H`` (power-spectrum distance), ``outside``
    (share of points outside the truth's box; histogram only), ``collapsed`` (a channel varies less
    than a fifth of the truth's standard deviation), ``diverged`` (not finite: scores +inf).

    .. math:: \text{collapsed} \iff
        \min_i \operatorname{sd}(\hat x_i) / \operatorname{sd}(x_i) < 0.2

    Args:
        truth: [T, N], [trials, T, N] or list of [T_i, N]. Finite.
        pred: Runs of each model by its name, each [T', N] or trials as in `truth`; or the runs of
            a single model as a list or [run, T', N]. All of one length, on which the scores
            depend.
        bins: Bins per channel of the histogram.
        method: "histogram", "mixture" or "auto" (histogram up to five channels).
        scaling: Variance of the mixture components.
        smoothing: Smoothing of the spectra in frequency bins.
        seed: Seed of the mixture's samples and of the white noise.

    Returns:
        The table; `add` appends measures that do not come from free runs.

    Raises:
        DataError: No runs, runs of different lengths, or what the measures refuse.
    """
    models = dict(pred) if isinstance(pred, Mapping) else {"model": pred}
    keys = [(model, i) for model, runs in models.items() for i in range(len(runs))]
    flat = [run for runs in models.values() for run in runs]
    if not keys:
        raise DataError("there are no runs to score", got={m: len(r) for m, r in models.items()})
    pooled = [tuple(map(np.concatenate, trial_pair(truth, run))) for run in flat]
    lengths = sorted({len(y) for _, y in pooled})
    if len(lengths) > 1:
        raise DataError(
            "the runs have different lengths, on which the scores depend",
            axis="time",
            got=lengths,
            wanted="one length",
            fix="cut them to the shortest; keep diverged runs as NaN",
        )
    state_space, spectrum = [], []
    for i, run in enumerate(flat):
        beside = {"truth": truth, "pred": run, "seed": seed,
                  "floor": i == 0, "references": i == 0}  # fmt: skip
        state_space.append(
            state_space_divergence(bins=bins, method=method, scaling=scaling, **beside)
        )
        spectrum.append(power_spectrum_distance(smoothing=smoothing, **beside))
    index = pd.MultiIndex.from_tuples(keys, names=["model", "run"])
    table = Reconstruction(pd.DataFrame(index=index), pd.DataFrame(), {})
    table = table.add("D_stsp", _by_model(state_space, keys))
    table = table.add("D_H", _by_model(spectrum, keys))
    if state_space[0].settings["method"] == "histogram":
        table.runs["outside"] = [d.settings["pred_outside"] for d in state_space]
        table.references["outside"] = math.nan
    table.runs["collapsed"] = [_collapsed(x, y) for x, y in pooled]
    table.runs["diverged"] = [not np.isfinite(y).all() for _, y in pooled]
    return table


def _collapsed(truth: np.ndarray, pred: np.ndarray) -> bool:
    """Say whether a finite run varies too little in some channel."""
    if not np.isfinite(pred).all():
        return False
    return bool((pred.std(axis=0) < COLLAPSED * truth.std(axis=0)).any())


def _by_model(scores: list[Measure], keys: list[tuple[str, int]]) -> dict[str, list[Measure]]:
    """Sort scores of all runs by model."""
    out: dict[str, list[Measure]] = {}
    for (model, _), score in zip(keys, scores, strict=True):
        out.setdefault(model, []).append(score)
    return out


def _flat(
    scores: Mapping[str, Sequence[float]] | Sequence[float], index: pd.MultiIndex
) -> list[float]:
    """Return the scores of all runs in the order of the table."""
    models = list(dict.fromkeys(index.get_level_values("model")))
    named = scores if isinstance(scores, Mapping) else dict.fromkeys(models[:1], scores)
    got = {model: len(values) for model, values in named.items()}
    wanted = {model: int((index.get_level_values("model") == model).sum()) for model in models}
    if got != wanted:
        raise DataError("the scores do not fit the runs", got=got, wanted=wanted)
    return [score for model in models for score in named[model]]


def _quantile(values: np.ndarray, q: float) -> float:
    """Return a quantile, linear between order statistics, that may be infinite; NaN stays NaN."""
    if np.isnan(values).any():
        return math.nan
    ordered = np.sort(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    share = place - math.floor(place)
    return float(low if share == 0 or low == high else low + share * (high - low))


def _cell(values: pd.Series) -> str:
    """Format one cell of the printed summary."""
    found = {name: v for name, v in values.items() if not pd.isna(v)}
    if not found:
        return ""
    if "median" not in found:
        return f"{next(iter(found.values())):.3g}"
    text = f"{found['median']:.3g}"
    spread = "lower" in found and not found["lower"] == found["median"] == found["upper"]
    return text + (f" [{found['lower']:.3g}, {found['upper']:.3g}]" if spread else "")
