"""What is measured of one fit on the held-out data, each measure for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from plssm.comparison.evidence import particle_evidence
from plssm.comparison.free_runs import bins_of, blocks_of, free_run, largest_exponent, two_sets
from plssm.comparison.innovations import mean_nis
from plssm.data import Dataset
from plssm.errors import CapabilityError, DataError
from plssm.fit import Fit
from plssm.metrics import power_spectrum_distance, state_space_divergence
from plssm.metrics.baselines import Baseline
from plssm.metrics.measure import Measure
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior
from plssm.scoring.forecasts import score_forecasts
from plssm.scoring.yardsticks import coverage_name

__all__ = ["Subject", "Terms", "column_names", "reason"]

REAL = ("continuous", "bold")
ERRORS = ("error", "persistence", "var1")
AFTER = 10
"""Latent steps before the first forecast."""
UNFITTED = "the noise was not fitted (fit_noise=False)"


@dataclass(frozen=True)
class Terms:
    """What all fits are measured with.

    Args:
        data: Held-out trials.
        steps: Horizons of the forecasts.
        level: Probability of the predictive band.
        particles: Particles of a run of the filter.
        seed: Seed of every draw.
        baselines: Training statistics by modality.
        known: Whether these come from training data.
    """

    data: Dataset
    steps: tuple[int, ...]
    level: float
    particles: int
    seed: int
    baselines: Mapping[str, Baseline]
    known: bool

    @property
    def real(self) -> list[str]:
        """Names of the real-valued modalities."""
        return [n for n in self.data.names if self.data.kinds[n] in REAL]

    def targets(self, name: str, n: int) -> int:
        """Observed entries of a modality that are forecast n steps ahead."""
        trials = self.data.trials
        late = (t.values[name][t.steps(name) >= AFTER + n] for t in trials)
        return int(sum(np.isfinite(y).sum() for y in late))


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def column_names(steps: tuple[int, ...], level: float) -> list[str]:
    """Columns of the table."""
    first = ["evidence", "evidence_se", "own_evidence", "evidence_kind"]
    errors = [f"{what}_{n}" for what in ERRORS for n in steps]
    runs = ["d_stsp", "d_stsp_floor", "d_h", "d_h_floor", "lyapunov_max"]
    return [*first, *errors, *runs, coverage_name(level), "nis", "seconds"]


class Subject:
    """One fit while it is measured; a measure that fails leaves a note and NaN.

    Args:
        fit: The fit.
        terms: What it is measured with.

    Attributes:
        notes: What there is to say about the numbers.
    """

    def __init__(self, fit: Fit, terms: Terms) -> None:
        self.fit, self.terms = fit, terms
        self.notes: list[str] = []
        self.has_noise = bool(getattr(fit.engine, "fit_noise", True))

    def row(self, say: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
        """Measure everything.

        Args:
            say: Is told what is measured next.

        Returns:
            Values by column; columns that could not be measured are absent.
        """
        values: dict[str, Any] = {"seconds": self.fit.seconds}
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "own_evidence": self.own_evidence,
            "evidence": self.evidence,
            "forecasts": self.forecasts,
            "nis": self.nis,
            "d_stsp": self.state_space,
            "d_h": self.spectrum,
            "lyapunov_max": self.lyapunov,
        }
        for what, measure in measures.items():
            say(what)
            try:
                values.update(measure())
            except Exception as error:  # whatever it is, the other numbers are worth having
                self.notes.append(f"{what}: {reason(error)}")
        return values

    @cached_property
    def posterior(self) -> Posterior:
        """Smoothed posterior by the fit's own engine."""
        return self.fit.posterior(self.terms.data)

    @cached_property
    def filtered(self) -> Posterior:
        """Causal posterior by the fit's own engine."""
        return self.fit.posterior(self.terms.data, causal=True)

    def _infer(self, model: StateSpaceModel, data: Dataset, *, causal: bool = False) -> Posterior:
        """Posterior of some of the trials; that of all of them is worked out once."""
        whole = causal and model is self.fit.model and data.trials == self.terms.data.trials
        return self.filtered if whole else self.fit.posterior(data, causal=causal)

    def own_evidence(self) -> dict[str, Any]:
        """What the fit's own engine says of the data."""
        posterior = self.posterior
        kind = posterior.evidence_kind
        return {"own_evidence": float(posterior.log_evidence.sum()), "evidence_kind": kind}

    def evidence(self) -> dict[str, float]:
        """The log marginal likelihood by particles."""
        if not self.has_noise:
            raise CapabilityError(f"{UNFITTED}, so the model has no likelihood for the data")
        terms = self.terms
        value, error = particle_evidence(
            self.fit.model, terms.data, particles=terms.particles, seed=terms.seed
        )
        return {"evidence": value, "evidence_se": error}

    def forecasts(self) -> dict[str, float]:
        """Errors of real-valued modalities beside their baselines, and coverage of all."""
        terms, fit = self.terms, self.fit
        scores = score_forecasts(
            fit.model,
            self._infer,
            terms.data,
            steps=terms.steps,
            baselines=terms.baselines,
            known=terms.known,
            warmup=AFTER,
            seed=terms.seed,
            level=terms.level,
        )
        if not self.has_noise:
            self.notes.append(f"forecasts: {UNFITTED}; starts and bands take that of the start")
        out = {}
        for n in terms.steps:
            weights = {name: terms.targets(name, n) for name in terms.real}
            for what in ERRORS:
                out[f"{what}_{n}"] = _average(scores[f"{what}_{n}"], weights)
        name = coverage_name(terms.level)
        if name in scores:
            covered = scores[name].dropna()
            weights = {m: int(scores.loc[m, "values"]) for m in covered.index}
            out[name] = _average(covered, weights)
        return out

    def nis(self) -> dict[str, float]:
        """Normalised innovation squared per entry."""
        return {"nis": mean_nis(self.fit.model, self.filtered, self.terms.data)}

    @cached_property
    def runs(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Blocks of the data and free runs beside them, in z-scores, by modality."""
        terms, out = self.terms, {}
        if not terms.real:
            raise DataError("no modality is real-valued", got=terms.data.kinds)
        for name in terms.real:
            blocks, baseline = blocks_of(terms.data, name), terms.baselines[name]
            made = [
                free_run(
                    self.fit.model, self.posterior, terms.data, name, block,
                    noise=self.has_noise, seed=terms.seed + 7919 * k,
                )
                for k, block in enumerate(blocks)
            ]  # fmt: skip
            out[name] = [baseline.scale(b.y) for b in blocks], [baseline.scale(y) for y in made]
            gone = sum(not np.isfinite(y).all() for y in made)
            share = np.mean([np.isnan(b.values).mean() for b in blocks])
            if share:
                self.notes.append(
                    f"free runs of {name}: {share:.1%} of the entries are missing and lie on "
                    "straight lines, in the data and in the runs alike"
                )
            if gone:
                self.notes.append(f"free runs of {name}: {gone} of {len(made)} diverged")
        if not self.has_noise:
            self.notes.append(f"free runs: {UNFITTED}; they are without noise")
        return out

    def state_space(self) -> dict[str, float]:
        """State-space divergence of the free runs, with bins that they can fill."""

        def divergence(truth: list[np.ndarray], runs: list[np.ndarray]) -> Measure:
            return two_sets(partial(state_space_divergence, bins=bins_of(truth)), truth, runs)

        return self._scored("d_stsp", divergence)

    def spectrum(self) -> dict[str, float]:
        """Power-spectrum distance of the free runs."""
        return self._scored("d_h", partial(two_sets, power_spectrum_distance))

    def _scored(self, name: str, measure: Callable[..., Measure]) -> dict[str, float]:
        scores = {m: measure(*pair) for m, pair in self.runs.items()}
        weights = {m: sum(y.size for y in truth) for m, (truth, _) in self.runs.items()}
        floors = {m: score.floor for m, score in scores.items()}
        return {name: _average(scores, weights), f"{name}_floor": _average(floors, weights)}

    def lyapunov(self) -> dict[str, float]:
        """Largest Lyapunov exponent per second."""
        found = largest_exponent(self.fit.model, self.posterior, self.terms.data, self.notes)
        return {"lyapunov_max": found}


def _average(values: Mapping[str, float], weights: Mapping[str, int]) -> float:
    """Mean over modalities, weighted; NaN where nothing weighs."""
    total = sum(weights.values())
    sums = (weights[name] * float(values[name]) for name in weights if weights[name])
    return float(sum(sums)) / total if total else float("nan")
