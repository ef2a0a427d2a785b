"""Pictures of a fit: what ``fit.plot_...`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from plssm.data import Dataset, Trial
from plssm.errors import PlssmError
from plssm.plot import attractor, history, labels, observed, paths
from plssm.prediction import ahead

if TYPE_CHECKING:
    from plssm.fit import Fit

__all__ = ["convergence", "decoded", "forecast", "free_run", "latents", "one_step_ahead"]


def latents(
    fit: Fit,
    data: Dataset,
    trial: int = 0,
    *,
    causal: bool = False,
    level: float = 0.95,
    **options: Any,
) -> Figure:
    """Draw the posterior of one latent path.

    Args:
        fit: The fit.
        data: The trials.
        trial: Which trial.
        causal: Use only data up to each step.
        level: Probability of the band.
        **options: Of :func:`plssm.plot.latents`.
    """
    chosen = data.select(trials=[_number(data, trial)])
    posterior = fit.posterior(chosen, causal=causal)
    return paths.latents(posterior, level=level, dt=data.dt, **options)


def one_step_ahead(
    fit: Fit,
    data: Dataset,
    modality: str | None = None,
    *,
    trial: int = 0,
    level: float = 0.95,
    samples: int = 400,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draw each sample beside its prediction from all data up to the step before it.

    Args:
        fit: The fit.
        data: The trials.
        modality: Which modality; the first of the model by default.
        trial: Which trial.
        level: Probability of the band.
        samples: Latent draws per step.
        seed: Seed of the draws.
        **options: Of :func:`plssm.plot.prediction`.
    """
    name = _modality(fit, modality)
    chosen = data.select(trials=[_number(data, trial)])
    one = chosen.trials[0]
    if one.length < 2:
        raise PlssmError(
            f"plot: trial {one.name!r} has {one.length} latent step, wanted at least 2 to predict "
            "one from the one before."
        )
    made = ahead.one_step_ahead(
        fit.model, fit.posterior(chosen, causal=True), chosen, name, samples=samples, seed=seed
    )
    values = one.values[name][one.steps(name) > 0]
    options.setdefault("title", "Observed and predicted one step ahead")
    return observed.prediction(made, values[None], level=level, **options)


def decoded(
    fit: Fit,
    data: Dataset,
    modality: str | None = None,
    *,
    given: Sequence[str] | None = None,
    trial: int = 0,
    level: float = 0.95,
    samples: int = 400,
    seed: int = 0,
    causal: bool = False,
    **options: Any,
) -> Figure:
    """Draw one modality as it is predicted from others, and as it was.

    Args:
        fit: The fit.
        data: The trials.
        modality: Which modality; the first of the model by default.
        given: What it is predicted from; all other modalities by default.
        trial: Which trial.
        level: Probability of the band.
        samples: Latent draws.
        seed: Seed of the draws.
        causal: Use only data up to each sample.
        **options: Of :func:`plssm.plot.prediction`.
    """
    name = _modality(fit, modality)
    chosen = data.select(trials=[_number(data, trial)])
    made = fit.predict(chosen, name, given, samples=samples, seed=seed, causal=causal)
    truth = chosen.reveal().trials[0].values[name][None] if name in chosen.names else None
    if given is None:
        known = [n for n in fit.model.observations if n != name and n in data.names]
    else:
        known = [given] if isinstance(given, str) else list(given)
    options.setdefault("title", f"{name} from {', '.join(known) or 'nothing'}")
    return observed.prediction(made, truth, level=level, **options)


def forecast(
    fit: Fit,
    data: Dataset,
    steps: int,
    modality: str | None = None,
    *,
    trial: int = 0,
    truth: Dataset | None = None,
    past: int | None = None,
    samples: int = 400,
    inputs: Any = None,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draw what is expected after the end of one trial, and what came before.

    Args:
        fit: The fit.
        data: The trials.
        steps: Latent steps ahead.
        modality: Which modality; the first of the model by default.
        trial: Which trial.
        truth: What really followed, from the step after the end of the trial on; its trial of
            the same number is drawn.
        past: Latent steps before the end to draw; default three times ``steps``.
        samples: Latent draws.
        inputs: Inputs of the steps ahead ``[n, K]``; of ``truth`` where absent.
        seed: Seed of the draws.
        **options: Of :func:`plssm.plot.forecast_fan`; of
            :func:`plssm.plot.class_probabilities` for labels and ordinal levels.
    """
    name = _modality(fit, modality)
    one = data.trials[_number(data, trial)]
    after = None if truth is None else truth.trials[_number(truth, trial)]
    if inputs is None and after is not None and after.inputs is not None:
        inputs = after.inputs[:steps]
    chosen = data.select(trials=[trial])
    made = fit.forecast(chosen, steps, samples=samples, inputs=inputs, seed=seed)[name]
    ahead_seconds = made.times - data.dt
    shown = _recent(one, name, data.dt, 3 * steps if past is None else past)
    if made.has_classes:
        seen = None if after is None else _aligned(after, name, data.dt, ahead_seconds)
        options.setdefault("title", "Forecast")
        return labels.class_probabilities(
            one.length * data.dt + ahead_seconds, made.class_probabilities()[0], seen, **options
        )
    return observed.forecast_fan(
        one.length * data.dt + ahead_seconds,
        made.samples,
        observed=None if after is None else _aligned(after, name, data.dt, ahead_seconds),
        past_times=shown[0],
        past=shown[1],
        **options,
    )


def _recent(one: Trial, name: str, dt: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    late = one.steps(name) >= one.length - steps
    return one.seconds(name, dt)[late], one.values[name][late]


def _aligned(after: Trial, name: str, dt: float, times: np.ndarray) -> np.ndarray:
    """Samples of the trial that followed at the times of a forecast; NaN where there are none."""
    out = np.full((len(times), after.values[name].shape[1]), np.nan)
    seconds = after.seconds(name, dt)
    for k, wanted in enumerate(times):
        near = np.flatnonzero(np.abs(seconds - wanted) <= 0.5 * dt)
        if len(near):
            out[k] = after.values[name][near[0]]
    return out


def free_run(
    fit: Fit,
    data: Dataset,
    modality: str | None = None,
    *,
    trial: int = 0,
    noise: bool = True,
    discard: int = 0,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draw a simulation that never sees the data beside one trial.

    Args:
        fit: The fit.
        data: The trials.
        modality: Which modality; the first of the model by default.
        trial: Which trial; its inputs drive the simulation.
        noise: Draw process and observation noise.
        discard: Latent steps that are simulated first and not shown.
        seed: Seed of the draws.
        **options: Of :func:`plssm.plot.free_run`.
    """
    name = _modality(fit, modality)
    one = data.trials[_number(data, trial)]
    if discard and one.inputs is not None:
        raise PlssmError(
            "plot: discard= does not go with inputs, which are known for a trial only"
        )
    steps = one.length + discard
    nuisance = {
        n: np.zeros((-(-steps // o.interval(data.dt)), o.nuisance))
        for n, o in fit.model.observations.items()
        if o.nuisance
    }
    made = fit.simulate(
        steps, noise=noise, inputs=one.inputs, nuisance=nuisance, seed=seed, dt=data.dt
    )
    run = made.trials[0].cut(discard, steps, data.dt)
    simulated = run.values[name]
    if run.clock[name] is None:  # simulated at every step, the data may be slower
        simulated = simulated[one.steps(name)]
    options.setdefault("dt", data.dt if one.clock[name] is None else None)
    return attractor.free_run(truth=one.values[name], pred=simulated, **options)


def convergence(fit: Fit, **options: Any) -> Figure:
    """Draw how the fit converged.

    Args:
        fit: The fit.
        **options: Of :func:`plssm.plot.convergence`.
    """
    return history.convergence(fit.history, **options)


def _modality(fit: Fit, name: str | None) -> str:
    names = list(fit.model.observations)
    if name is None:
        return names[0]
    if name not in names:
        raise PlssmError(f"plot: got modality {name!r}, wanted one of {names}")
    return name


def _number(data: Dataset, trial: int) -> int:
    if not 0 <= trial < len(data):
        raise PlssmError(f"plot: got trial {trial}, wanted 0 to {len(data) - 1}")
    return trial
