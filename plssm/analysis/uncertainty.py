"""Uncertainty of what a reconstruction says: any quantity over draws of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch

from plssm.analysis.fixed_point_spread import match_points
from plssm.analysis.quantities import named_quantity, predicted_at
from plssm.analysis.uncertain import Uncertain
from plssm.analysis.work_bar import WorkBar
from plssm.errors import CapabilityError, PlssmError

__all__ = ["uncertainty"]

METHODS = ("auto", "bootstrap", "guide", "information", "restarts")
EXPECTED = (PlssmError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError)


def uncertainty(
    source: Any,
    quantity: str | Callable[[Any], Any],
    *,
    draws: int = 100,
    method: str = "auto",
    level: float = 0.9,
    data: Any = None,
    seed: int = 0,
    workers: int = 1,
    posterior: dict[str, Any] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Uncertain:
    r"""Distribution of a quantity of a model, given what is not known about its parameters.

    .. math:: p(Q \mid Y) = \int \delta\big(Q - Q(\theta)\big)\, p(\theta \mid Y)\, d\theta

    Parameters come from a Gaussian with the observed information of the innovation likelihood
    ("information", the default for a fit), from fits of data drawn from the fit ("bootstrap"),
    from fits with other starts ("restarts"; also a list of fits), or from wherever models are
    drawn ("guide"): an iterable of models, or a function of a seed that draws one. With a Pyro
    guide that has learned about parameters::

        pyro_model = plssm.inference.to_pyro(fit.model, {"dynamics.*": "default"})
        guide = AutoNormal(pyro_model)          # trained with pyro.infer.SVI

        def draw(seed):
            pyro.set_rng_seed(seed)
            return pyro_model.to_model(guide(batch))

        ps.analysis.uncertainty(draw, "lyapunov_max", draws=200)

    Args:
        source: A Fit, a list of fits, an iterable of models (such as
            ``fit.parameter_draws(data=data)``), or a function of a seed.
        quantity: A function of a model, or a name: "lyapunov_max", "lyapunov_spectrum",
            "fixed_points" (their number, and for each of the fit's the position, and the
            probabilities of existing and of being stable), "d_stsp" (noisy free runs beside
            data), "free_run" (noise-free, from the mean first state).
        draws: Number of draws, where they are made here.
        method: "information", "bootstrap", "restarts", "guide", or "auto" by what the source is.
        level: Probability in the intervals.
        data: The training data; all draws from a fit and "d_stsp" need them.
        seed: Seed of the draws.
        workers: Processes that evaluate a quantity, which must then be a name or a function of a
            module; a script needs the usual ``if __name__ == "__main__":``.
        posterior: Options of :meth:`plssm.Fit.parameter_draws`, such as
            ``{"newton_steps": 100, "importance": True}``.
        progress: True or False; None shows a bar on a terminal if it takes long.
        **options: Options of a named quantity: those of :func:`lyapunov_spectrum`,
            :func:`fixed_points` or :func:`plssm.metrics.state_space_divergence`; ``steps`` of a
            free run.

    Returns:
        Values, intervals, the share of draws that failed (an orbit that diverged) with reasons;
        ``estimate`` is the quantity of the model that draws are around: the mode that Newton steps
        led to, the fit for the other methods.

    Raises:
        CapabilityError: If data are missing that the method or the quantity needs.

    Example:
        >>> import plssm as ps
        >>> models = [ps.dynamics.PLRNN.from_parameters(A=[a], W=[[0.0]]) for a in (0.5, 0.6, 0.7)]
        >>> seen = {"x": ps.observations.Gaussian.from_parameters([[1.0]], noise=1.0)}
        >>> known = uncertainty(
        ...     [ps.StateSpaceModel(m, seen) for m in models], lambda m: m.dynamics.A[0].item()
        ... )
        >>> known.median
        0.6
    """
    if isinstance(quantity, str):
        name, function = quantity, named_quantity(quantity, data, options)
    elif options:
        raise PlssmError(f"uncertainty: a function takes no options, got {sorted(options)}")
    else:
        name, function = getattr(quantity, "__name__", type(quantity).__name__), quantity
    found = _drawn(source, method, draws, data, seed, posterior or {}, progress)
    estimate = None if found.centre is None else _evaluated(function, found.centre)
    if workers > 1:
        outcomes = _in_processes(function, found.models, workers, progress)
    else:
        outcomes = _in_turn(function, found.models, progress)
    worked = np.array([o.reason is None for o in outcomes], dtype=bool)
    mass = float(found.weights[worked].sum())
    weights = found.weights[worked] / (mass or 1.0)
    values = [o.value for o in outcomes if o.reason is None]
    points = None
    if quantity == "fixed_points":
        points = _points(found, estimate, values, worked, weights)
    return Uncertain(
        name=name, values=_stacked(values), weights=weights,
        estimate=None if estimate is None else estimate.value, draws=len(found.models),
        failures=tuple((k, o.reason) for k, o in enumerate(outcomes) if o.reason is not None),
        failed_share=max(1.0 - mass, 0.0) if not worked.all() else 0.0, level=level,
        method=found.method, report=found.report, points=points,
    )  # fmt: skip


class _Draws(NamedTuple):
    """Models to evaluate, and the one in the middle."""

    models: list[Any]
    weights: np.ndarray
    centre: Any
    method: str
    report: dict[str, float]
    shared: bool  # whether all have the same latent space


class _Outcome(NamedTuple):
    """A value, or the reason why there is none."""

    value: Any
    reason: str | None = None


def _drawn(
    source: Any, method: str, draws: int, data: Any, seed: int, posterior: dict[str, Any],
    progress: bool | None,
) -> _Draws:  # fmt: skip
    """The models that a source stands for."""
    if method not in METHODS:
        raise PlssmError(f"uncertainty: method is {method!r}, wanted one of {METHODS}")
    if hasattr(source, "parameter_draws"):
        chosen = "information" if method == "auto" else method
        if chosen == "guide":
            raise CapabilityError(
                "uncertainty: method 'guide' takes models or a function that draws them, not a fit"
            )
        settings = {"method": chosen, "data": data, "seed": seed, "progress": progress}
        found = source.parameter_draws(draws, **settings | posterior)
        shared = chosen == "information"
        return _Draws(list(found), found.weights, found.centre, found.method, found.report, shared)
    weights, known, report = getattr(source, "weights", None), "models", {}
    if weights is not None:
        known, report = source.method, source.report
    elif callable(source):
        seeds = np.random.SeedSequence(seed).generate_state(draws)
        source, known = [source(int(s)) for s in seeds], "guide"
    if not isinstance(source, Iterable):
        raise CapabilityError(
            f"uncertainty: a {type(source).__name__} is neither a fit nor fits, models or a "
            "function that draws them"
        )
    items = list(source)
    fits = [hasattr(item, "parameter_draws") for item in items]
    models = [item.model if fit else item for item, fit in zip(items, fits, strict=True)]
    if not models or not all(hasattr(m, "dynamics") for m in models):
        raise CapabilityError("uncertainty: wanted at least one fit or model among the draws")
    known = "restarts" if all(fits) else known
    if method not in ("auto", known) and not (method == "guide" and not any(fits)):
        raise CapabilityError(f"uncertainty: method {method!r} needs a fit; these are {known}")
    even = np.full(len(models), 1.0 / len(models))
    weights = even if weights is None else np.asarray(weights, dtype=np.float64)
    centre = getattr(source, "centre", None)
    return _Draws(models, weights, centre, known, report, known not in ("restarts", "guide"))


def _evaluated(function: Callable[[Any], Any], model: Any) -> _Outcome:
    """The quantity of one model; errors that say something about the model are reasons."""
    try:
        value = function(model)
    except EXPECTED as error:
        return _Outcome(None, f"{type(error).__name__}: {error}")
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, float | int | np.ndarray | np.generic):
        numbers = np.asarray(value, dtype=np.float64)
        if np.isnan(numbers).any():
            return _Outcome(None, "not a number")
        return _Outcome(numbers if numbers.ndim else float(numbers))
    return _Outcome(value)


def _in_turn(
    function: Callable[[Any], Any], models: list[Any], progress: bool | None
) -> list[_Outcome]:
    """All models, one after the other."""
    outcomes = []
    with WorkBar("uncertainty", show=progress) as bar:
        for model in models:
            outcomes.append(_evaluated(function, model))
            bar.report(len(outcomes) / len(models))
    return outcomes


def _in_processes(
    function: Callable[[Any], Any], models: list[Any], workers: int, progress: bool | None
) -> list[_Outcome]:
    """All models, in processes."""
    inner = function.func if isinstance(function, partial) else function
    if "<" in getattr(inner, "__qualname__", type(inner).__qualname__):
        raise CapabilityError(
            "uncertainty: other processes cannot be told a function that was made inside "
            "another one, or a lambda; pass a name or a function of a module, or workers=1"
        )
    count = min(workers, len(models))
    threads = max(torch.get_num_threads() // count, 1)
    pool = ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (threads,))
    with pool, WorkBar("uncertainty", show=progress) as bar:
        waiting: list[Future] = [pool.submit(_evaluated, function, m) for m in models]
        for k, _ in enumerate(as_completed(waiting)):
            bar.report((k + 1) / len(models))
        return [done.result() for done in waiting]


def _stacked(values: list[Any]) -> np.ndarray | list[Any]:
    """Numbers of one shape as an array [n, ...]; anything else as it is."""
    plain = all(isinstance(v, float | np.ndarray) for v in values)
    if plain and len({np.shape(v) for v in values}) <= 1:
        return np.array(values, dtype=np.float64)
    return values


def _points(
    found: _Draws, estimate: _Outcome | None, values: list[Any], worked: np.ndarray,
    weights: np.ndarray,
) -> Any:  # fmt: skip
    """Fixed points of the draws beside those of the fit, or of the first draw without one."""
    models = [m for m, good in zip(found.models, worked, strict=True) if good]
    centre, reference = found.centre, None if estimate is None else estimate.value
    if reference is None:
        if not values:
            return None
        centre, reference = models[0], values[0]

    def place(number: int | None, states: np.ndarray) -> np.ndarray:
        model = centre if number is None else models[number]
        states = states.reshape(-1, model.dim)
        return states if found.shared else predicted_at(model, states)

    space = "latent" if found.shared else "predicted"
    return match_points(reference, values, weights, place=place, space=space)
