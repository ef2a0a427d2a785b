"""Draws of whole models: what the parameters may be, given the data."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from plssm.analysis.work_bar import WorkBar
from plssm.data import Dataset
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import Engine, best_of
from plssm.inference.filter_form import hinges_of
from plssm.inference.filter_likelihood import FilterLikelihood
from plssm.inference.importance import effective_draws, importance_weights, pareto_shape
from plssm.inference.information import Information, mode_information
from plssm.inference.replicates import replicate
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.fit import Fit

__all__ = ["ParameterDraws", "parameter_draws"]

METHODS = ("information", "bootstrap", "restarts")
MOST_HINGES = 32  # of which moments are matched unasked: all pairs are treated
FAR = 2.0  # posterior standard deviations from the mode that are worth a warning


@dataclass(frozen=True, eq=False)
class ParameterDraws:
    """Models drawn from what is known about their parameters.

    Args:
        models: The models.
        weights: Their weights [n], which sum to one.
        method: Where they come from.
        report: What is known about the draws, by name; see :func:`parameter_draws`.
        centre: The model that they are drawn around; None where there is none.
    """

    models: tuple[StateSpaceModel, ...]
    weights: np.ndarray
    method: str
    report: dict[str, float]
    centre: StateSpaceModel | None = None

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[StateSpaceModel]:
        return iter(self.models)

    def __getitem__(self, index: int) -> StateSpaceModel:
        return self.models[index]

    def __repr__(self) -> str:
        """Says where the draws come from, and what is known about them."""
        known = "".join(f", {name}={value:.4g}" for name, value in self.report.items())
        return f"ParameterDraws({len(self)} by {self.method}{known})"


def parameter_draws(
    fit: Fit,
    draws: int = 100,
    *,
    data: Dataset | None = None,
    method: str = "information",
    seed: int = 0,
    share: float = 1e-4,
    newton_steps: int | None = None,
    importance: bool = False,
    limit: int = 400,
    propagation: str | None = None,
    progress: bool | None = None,
) -> ParameterDraws:
    r"""Draws models from the posterior of the parameters.

    .. math:: \theta \sim \mathcal N(\hat\theta, H^{+}), \qquad
        H = -\nabla^2_\theta \Big[ \sum_t \log p_\theta(y_t | y_{1:t-1}) + \log p(\theta) \Big]

    "information": the likelihood is that of a Gaussian filter's innovations, exact for
    linear-Gaussian models and nearly so with matched moments; the prior is the engine's ridge on
    hinge weights and the map's regularizer. Where observations are Gaussian, Newton steps go to
    the mode of that density first, whichever engine the fit is by, because engines stop short of
    it: fits near the same mode, with the same ridge, give nearly the same draws. Directions that
    leave the density of every step as it is (scalings, rotations and shifts of the latent space,
    whichever the model allows) are held, as are those with little or negative curvature: the
    report counts them. With modality weights other than one the likelihood is a tempered one and
    intervals have no coverage to expect.

    "bootstrap": the engine fits data that are drawn from the fit, with the trials, clocks and gaps
    of the training data, starts drawn from these. How far such fits come from the one whose data
    they saw tells how far that one came from the truth, errors of engine and start included;
    intervals of quantities are reflected accordingly. It takes as many fits as draws.

    "restarts": the engine fits the data again from other seeds, starts drawn from the data. What
    differs then is where fits end, not what the data allow: an ensemble, not a posterior.

    Args:
        fit: The fit.
        draws: Number of models (of fits, for "bootstrap" and "restarts").
        data: The training data, which a fit does not hold.
        method: "information", "bootstrap" or "restarts".
        seed: Seed of all random choices.
        share: Directions are held whose curvature is below this share of that of single
            parameters.
        newton_steps: Newton steps at most towards the mode of the filter's posterior density,
            with the curvature at the fit; it is measured again where they end, and steps go on
            from there up to three times. 0 keeps the draws around the fit as it is. None takes 20
            where observations are Gaussian, and 0 elsewhere: the likelihood of filtered counts and
            labels has errors that a search for its mode would find.
        importance: Weigh draws by the exact log-density of the filter, so that draws off the
            quadratic (maps that diverge, say) lose their weight.
        limit: Largest number of parameters of which the Hessian is taken.
        propagation: How the filter carries a state on: "linearised" or "moments" (exactly, for
            maps that are one layer of hinges). None takes "moments" for maps of up to 32 hinges
            (a clipped unit has two, a dendritic one as many as bases) and for fits by EKF that
            did. The linearised likelihood is biased where states spread over kinks, so that its
            intervals miss the truth too often.
        progress: True or False; None shows a bar on a terminal if it takes long.

    Returns:
        The models with weights and a report. "information" reports ``parameters``,
        ``matched`` (1 where moments were matched, 0 where not), ``rank``
        (directions drawn) and why others are held: ``inert``, ``gauge``, ``weak``, ``negative``;
        ``distance`` is how many posterior standard deviations a Newton step leads away (0 at a
        mode), ``newton_rise`` what the Newton steps gained in nats; with importance weights also
        ``effective_draws`` and ``pareto_shape`` (above .7 weights cannot be trusted); "bootstrap"
        reports ``failed`` fits, which are left out.

    Raises:
        CapabilityError: If data are missing, or the model has too many parameters.
        DataError: If the data do not fit the model.
        PlssmError: If no fit of a bootstrap worked.

    References:
        Davison & Hinkley (1997), Bootstrap Methods and their Application, sections 2.1 and 5.2,
        doi:10.1017/CBO9780511802843.
    """
    if method not in METHODS:
        raise PlssmError(f"parameter_draws: method is {method!r}, wanted one of {METHODS}.")
    if int(draws) != draws or draws < 1:
        raise PlssmError(f"parameter_draws: draws is {draws}, wanted a whole number >= 1.")
    if data is None:
        raise CapabilityError(
            f"parameter_draws: method {method!r} needs the training data, which a fit does not "
            "hold; pass data=..., or a list of fits or models"
        )
    fit.model.check(data)
    if method != "information":
        return _refitted(fit, data, draws, seed, progress, drawn=method == "bootstrap")
    ridge = float(getattr(fit.engine, "ridge", 0.0))
    chosen = _propagation(fit) if propagation is None else propagation
    if newton_steps is None:
        newton_steps = 20 if all(o.quadratic for o in fit.model.observations.values()) else 0
    problem = FilterLikelihood(fit.model, data, ridge=ridge, propagation=chosen)
    _check_size(problem, limit)
    with WorkBar("curvature of the likelihood", show=progress) as bar:
        information, rise = mode_information(
            problem, steps=newton_steps, share=share, report=bar.report
        )
    _tell(information, chosen)
    points, log_density = information.draw(draws, torch.Generator().manual_seed(seed))
    report = _report(information, rise) | {"matched": float(chosen == "moments")}
    weights = np.full(draws, 1.0 / draws)
    if importance:
        weights, more = _weighed(problem, points, log_density, progress)
        report |= more
    models = tuple(problem.model_at(point) for point in points)
    centre = problem.model_at(information.point)
    return ParameterDraws(models, weights, method, report, centre)


def _propagation(fit: Fit) -> str:
    """The better one, where it does not take too long, or was taken before."""
    hinges = hinges_of(fit.model.dynamics)
    few = hinges is not None and len(hinges.offset) <= MOST_HINGES
    known = getattr(fit.engine, "propagation", "linearised")
    return "moments" if few else known


def _check_size(problem: FilterLikelihood, limit: int) -> None:
    """Refuses Hessians that would take too long."""
    size = len(problem.origin)
    if size > limit:
        raise CapabilityError(
            f"parameter_draws: the model has {size} free parameters, and the Hessian is taken of "
            f"{limit} at most: hold what is known (requires_grad_(False)), raise limit=, or use "
            "an ensemble (method='restarts') or a Pyro guide"
        )


def _tell(information: Information, propagation: str) -> None:
    """Warns where a Gaussian around the point says little."""
    if not information.rank:
        raise CapabilityError(
            "parameter_draws: the likelihood curves downwards in no direction, so the fit is far "
            "from a mode; train longer, or use an ensemble (method='restarts')"
        )
    if information.distance > FAR:
        warnings.warn(
            f"the draws are around a point that is {information.distance:.3g} posterior standard "
            "deviations away from the mode of the filter's posterior density; train on from this "
            f"fit by EKF(propagation={propagation!r}), or take (more) newton_steps=",
            RuntimeWarning,
            stacklevel=3,
        )
    if information.negative:
        warnings.warn(
            f"the log posterior density curves upwards in {information.negative} directions, "
            "which are held: what the parameters may be is underrated",
            RuntimeWarning,
            stacklevel=3,
        )


def _report(information: Information, rise: float) -> dict[str, float]:
    """What is known about draws from a Gaussian."""
    names = ("rank", "inert", "gauge", "weak", "negative", "distance")
    found = {"parameters": len(information.point)}
    return found | {n: getattr(information, n) for n in names} | {"newton_rise": rise}


def _weighed(
    problem: FilterLikelihood,
    points: torch.Tensor,
    log_density: torch.Tensor,
    progress: bool | None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Importance weights of the draws, and how far they can be trusted."""
    values = []
    with WorkBar("weights of the draws", show=progress) as bar:
        for k, point in enumerate(points):
            values.append(problem.value(point))
            bar.report((k + 1) / len(points))
    ratios = np.array(values) - log_density.numpy()
    weights = importance_weights(ratios)
    if not weights.any():
        raise PlssmError(
            "parameter_draws: the filter breaks down under every draw, so none can be weighed"
        )
    shape = pareto_shape(ratios)
    return weights, {"effective_draws": effective_draws(weights), "pareto_shape": shape}


def _refitted(
    fit: Fit, data: Dataset, draws: int, seed: int, progress: bool | None, *, drawn: bool
) -> ParameterDraws:
    """Fits from other starts, of these data or of data drawn from the fit."""
    if fit.engine is None:
        raise CapabilityError(
            "parameter_draws: a known model has no engine that could fit it again; pass a list of "
            "fits instead"
        )
    fields = {field.name for field in dataclasses.fields(fit.engine)}
    wanted = {"restarts": 1, "start": "data", "checkpoint": None}
    change = partial(
        dataclasses.replace, fit.engine, **{k: v for k, v in wanted.items() if k in fields}
    )
    fresh = copy.deepcopy(fit.model)
    for part in (fresh.dynamics, *fresh.observations.values()):
        part.initialised = False
    models: list[StateSpaceModel] = []
    method, reasons = "bootstrap" if drawn else "restarts", []
    seeds = np.random.SeedSequence(seed).generate_state(draws)
    with WorkBar(method, show=progress) as bar:
        for k, number in enumerate(int(s) % 2**20 for s in seeds):
            try:
                some = replicate(fit.model, data, seed=number) if drawn else data
                models.append(_whole_fit(change(seed=number), fresh, some))
            except PlssmError as error:
                if not drawn:
                    raise
                reasons.append(str(error))
            except KeyboardInterrupt:
                if not models:
                    raise
                text = f"interrupted; {len(models)} of {draws} draws are kept"
                warnings.warn(f"parameter_draws: {text}.", RuntimeWarning, stacklevel=4)
                break
            bar.report((k + 1) / draws)
    if not models:
        raise PlssmError(f"parameter_draws: no fit of drawn data worked; the last: {reasons[-1]}")
    report = {"failed": len(reasons)} if drawn else {}
    even = np.full(len(models), 1 / len(models))
    return ParameterDraws(tuple(models), even, method, report, fit.model)


def _whole_fit(engine: Engine, model: StateSpaceModel, data: Dataset) -> StateSpaceModel:
    """What a fit ends with; half a fit is none."""
    engine.check_training(model, data)
    runs = engine.trainings(model, data, None, False)
    if any(run.interrupted for run in runs):
        raise KeyboardInterrupt
    return best_of(runs).model
