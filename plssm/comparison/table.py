"""``ps.compare``: one table of several fits on the same held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from plssm.comparison.measures import Subject, Terms, column_names
from plssm.comparison.progress import progress_bar
from plssm.data import Dataset
from plssm.errors import DataError, PlssmError
from plssm.fit import Fit
from plssm.metrics.baselines import Baseline
from plssm.scoring import training_baselines

__all__ = ["checked", "compare"]


def compare(
    fits: Mapping[str, Fit],
    data: Dataset,
    *,
    steps: Sequence[int] = (1, 5, 10),
    level: float = 0.95,
    particles: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Measure fits by one yardstick, whatever engines they come from.

    .. math:: \log \hat p(Y) = \sum_b \log \hat p(Y_b), \qquad
        \Delta = \log \hat p_1(Y) - \log \hat p_2(Y) \pm \sqrt{\mathrm{se}_1^2 + \mathrm{se}_2^2}

    Everything is measured on the data given, which the fits should not have seen. What an engine
    says of its own fit (``own_evidence``) is of its kind: bounds and approximations of different
    kinds do not compare. ``evidence`` does: the log marginal likelihood in nats in total,
    estimated by particles. A difference of 3 nats or more that is several times its standard
    error speaks for the larger one (a nat is a factor of e in likelihood); divided by the number
    of steps it says how much better each step is predicted. With too few particles estimates
    scatter (a large ``evidence_se``) and lie too low, by about half their variance.

    Args:
        fits: Fits by name. Each must describe every modality of the data.
        data: Held-out trials.
        steps: Horizons of the forecasts in latent steps.
        level: Probability of the predictive band.
        particles: Particles of each of the runs that estimate the evidence.
        seed: Seed of every draw.
        progress: Show a progress bar; None shows it where someone can see it.

    Returns:
        One row per fit. ``evidence`` and ``evidence_se`` (standard error), ``own_evidence`` and
        ``evidence_kind`` (of ``fit.posterior``). ``error_n``, ``persistence_n``, ``var1_n``: mean
        squares n steps ahead, from filtered starts, of real-valued modalities, z-scored by one
        set of training statistics for all fits, over all observed entries. ``d_stsp``, ``d_h``:
        state-space divergence and power-spectrum distance of free runs, with process and
        observation noise, from smoothed states at the starts of blocks of the data, to these
        blocks in z-scores (the histogram has bins that so many points can fill, at most 30 a
        channel); the ``_floor`` beside is what half of the blocks score against the other half,
        the least to be hoped for. Gaps of up to 5 samples are filled by straight lines in
        both, longer ones end a block. ``lyapunov_max``: largest exponent per second, the
        median over orbits from smoothed states. ``coverage_95``: share of entries inside their
        central one-step predictive band (that of counts and levels covers more, as they are
        discrete). ``nis``: normalised innovation squared per entry of Gaussian modalities; 1 is
        right, more is too sure. ``seconds``: duration of the fit.

        What could not be measured is NaN, with the reason in ``.attrs["notes"]`` (by fit, a list
        of texts).

    Raises:
        PlssmError: If there is nothing to compare, or an option is out of range.
        DataError: If a fit does not fit the data; the message names it.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> table = compare({"start": ps.Fit(model)}, model.simulate(40, seed=1), particles=50)
        >>> list(table.columns[:3]), table.loc["start", "evidence_kind"]
        (['evidence', 'evidence_se', 'own_evidence'], 'laplace')
    """
    horizons = checked(fits, data, steps, level, particles)
    baselines, known, notes = _common_baselines(fits, data)
    terms = Terms(data, horizons, level, particles, seed, baselines, known)
    columns = column_names(horizons, level)
    rows = {}
    with progress_bar("compare", progress) as bar:
        task = bar.add_task("", total=len(fits))
        for name, fit in fits.items():
            subject = Subject(fit, terms)
            rows[name] = subject.row(
                lambda what, name=name: bar.update(task, description=f"{name}: {what}")
            )
            notes[name] += subject.notes
            bar.advance(task)
    table = pd.DataFrame(
        {c: [row.get(c, "" if c == "evidence_kind" else np.nan) for row in rows.values()]
         for c in columns},
        index=pd.Index(rows, name="fit"),
    )  # fmt: skip
    table.attrs["notes"] = {name: found for name, found in notes.items() if found}
    return table


def checked(
    fits: Mapping[str, Fit], data: Dataset, steps: Sequence[int], level: float, particles: int
) -> tuple[int, ...]:
    """Refuse what cannot be compared, before any work starts; returns the horizons."""
    if not isinstance(fits, Mapping) or not fits:
        raise PlssmError('compare: pass fits by name, such as {"em": fit_a, "vi": fit_b}.')
    if not len(steps) or any(int(n) != n or n < 1 for n in steps):
        raise PlssmError(f"compare: steps are {tuple(steps)}, wanted whole numbers >= 1.")
    if not 0.0 < level < 1.0:
        raise PlssmError(f"compare: level is {level}, wanted a number between 0 and 1.")
    if int(particles) != particles or particles < 1:
        raise PlssmError(f"compare: particles is {particles}, wanted a whole number >= 1.")
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise PlssmError(
                f"compare: {name!r} is a {type(fit).__name__}, wanted a Fit; ps.Fit(model) wraps "
                "a model."
            )
        try:
            fit.model.check(data)
        except DataError as error:
            raise DataError(f"the fit {name!r} does not fit the data: {error}") from error
        unknown = [m for m in data.names if m not in fit.model.observations]
        if unknown:
            raise DataError(
                f"the fit {name!r} does not describe this modality, so that its evidence would "
                "be that of other data",
                modality=unknown[0],
                got=", ".join(fit.model.observations),
                wanted=", ".join(data.names),
                fix="compare on data with the modalities that all fits describe",
            )
    if any(len(trial.hidden) for trial in data.trials):
        raise DataError(
            "entries of the data are held out, so that there would be two kinds of held-out data",
            fix="pass data.reveal(); score hidden entries with fit.score(data)",
        )
    return tuple(dict.fromkeys(int(n) for n in steps))


def _common_baselines(
    fits: Mapping[str, Fit], data: Dataset
) -> tuple[Mapping[str, Baseline], bool, dict[str, list[str]]]:
    """The training statistics that all errors are measured with, and what is to be said."""
    notes: dict[str, list[str]] = {name: [] for name in fits}
    owners = {name: fit._baselines for name, fit in fits.items() if fit._baselines}
    if not owners:
        model = next(iter(fits.values())).model
        return training_baselines(model, data), False, notes
    first = next(iter(owners))
    chosen = owners[first]
    for name, own in owners.items():
        if any(not _same(chosen[m], own[m]) for m in data.names):
            notes[name].append(
                f"forecasts: z-scored, and persistence and VAR(1) made, with the training "
                f"statistics of {first!r}; it was fitted to other data"
            )
    return chosen, True, notes


def _same(a: Baseline, b: Baseline) -> bool:
    return np.allclose(a.mean, b.mean) and np.allclose(a.sd, b.sd)
