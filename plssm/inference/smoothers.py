"""A posterior for any model, however it was trained."""

from __future__ import annotations

from typing import Any

from plssm.data import Batch, Dataset
from plssm.dynamics.base import PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import working_copy
from plssm.inference.filter_options import FilterOptions, rectified
from plssm.inference.filtering import filter_batch
from plssm.inference.laplace import laplace_posterior
from plssm.inference.marginal_smoother import smooth_marginals
from plssm.inference.modality_weights import is_tempered
from plssm.inference.parallel_states import parallel_posterior
from plssm.inference.particle import particle_filter, particle_smoother
from plssm.inference.state_smoother import smooth_states
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["smooth"]

METHODS = ("laplace", "ekf", "particle")
RUNS = 8  # independent particle filters: enough for a standard error of the evidence


def smooth(
    model: StateSpaceModel,
    data: Dataset,
    method: str = "laplace",
    causal: bool = False,
    *,
    particles: int | None = None,
    runs: int | None = None,
    draws: int | None = None,
    proposal: str | None = None,
    seed: int | None = None,
    propagation: str | None = None,
    update: str | None = None,
    iterations: int | None = None,
    parallel: bool | None = None,
) -> Posterior:
    r"""Posterior of the latent paths given data and fixed parameters.

    Args:
        model: The model; never changed.
        data: The trials.
        method: ``"laplace"``: global Laplace approximation (exact for linear-Gaussian models).
            ``"ekf"``: iterated extended Kalman smoother in covariance form; it serves fine latent
            clocks under BOLD, whose response it can hold as a few linear states
            (``BOLD(kernel="states")``). It gives marginals, or whole paths where moments are
            matched and data have no memory.
            ``"particle"``: particle filter and backward simulation, for any dynamics with a
            ``step``; right up to Monte-Carlo error, which the evidence comes with.
        causal: Give the filtered marginals :math:`p(z_t | y_{1:t})` of a piecewise-linear
            extended Kalman filter (or of the particle filter) instead, which use no data from
            after t.
        particles: Particles of each filter (1000). This and what follows: ``"particle"`` only.
        runs: Independent filters (8).
        draws: Paths, or states of every step, that are kept (1000).
        proposal: What the particles move by: "guided" (the data of each step; the default of
            causal=True), "lookahead" (later data, too; otherwise the default), or "bootstrap".
        seed: Seed of the particles (0).
        propagation: How a Gaussian filter carries a state on: "linearised" (default), or
            "moments": the exact mean and covariance of the map's values under a Gaussian. This
            and what follows: ``"ekf"`` and causal=True; with "moments" the smoother is that of
            Rauch, Tung and Striebel behind the filter.
        update: How data that are not Gaussian change it: "laplace" (default: mode and curvature)
            or "moments" (posterior mean and covariance of each step, by quadrature).
        iterations: How often a causal filter linearises each step (1: the extended Kalman
            filter); a smoother does so until its path stays.
        parallel: Whether the extended Kalman filter or smoother runs by associative scans over
            time, on the graphics processor where torch finds one; for long series.

    Returns:
        A GaussianChain over whole paths, GaussianMarginals, or the FilteredMarginals of each step;
        PathSamples or StateSamples from particles.

    Raises:
        PlssmError: If the method is unknown, or an option is, or belongs to another method.
        DataError: If the data do not match the model.
        CapabilityError: If the dynamics have no ReLU form, or, for smoothed particles, if an
            observation has memory (BOLD), which "moments" updates, iterations and parallel=True
            do not serve either.

    References:
        Maybeck 1982, Stochastic Models, Estimation and Control 2, chapter 12 (moments). Saerkkae
        and Garcia-Fernandez 2021, doi:10.1109/TAC.2020.2976316 (scans).

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> ps.smooth(model, model.simulate(10)).mean.shape
        torch.Size([1, 10, 2])
    """
    if method not in METHODS:
        raise PlssmError(f"smooth: method is {method!r}, wanted one of {METHODS}.")
    sampling = _given(particles=particles, runs=runs, draws=draws, proposal=proposal, seed=seed)
    filtering = _given(
        propagation=propagation, update=update, iterations=iterations, parallel=parallel
    )
    _refuse_strangers(method, causal, sampling, filtering)
    options = FilterOptions(**filtering)
    model.check(data)
    if method == "particle":
        sampler = particle_filter if causal else particle_smoother
        return sampler(working_copy(model), data.batch(), **({"runs": RUNS} | sampling))
    if not isinstance(model.dynamics, PiecewiseLinear):
        raise CapabilityError(
            f"smooth: {type(model.dynamics).__name__} is not piecewise linear, which the method "
            f"{method!r} needs; use method='particle', or derive the dynamics from "
            "PiecewiseLinear."
        )
    work = working_copy(model)
    batch = data.batch()
    if causal or method == "ekf":
        posterior = _filtered(work, batch, causal, options)
        if is_tempered(work):
            posterior.evidence_kind = "tempered"
        return posterior
    result = laplace_posterior(work, batch)
    if result.failed:
        raise CapabilityError(
            f"smooth: the mode search ended {set(result.status)}; the model's curvature is not "
            "positive definite for these data. Check the parameters for extreme values."
        )
    return result.posterior


def _given(**options: Any) -> dict[str, Any]:
    """The options that somebody chose."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse_strangers(
    method: str, causal: bool, sampling: dict[str, Any], filtering: dict[str, Any]
) -> None:
    """Refuse options of other methods."""
    if sampling and method != "particle":
        raise PlssmError(
            f"smooth: {', '.join(sampling)} belong to method='particle', got method={method!r}."
        )
    if filtering and (method == "particle" or (method == "laplace" and not causal)):
        raise PlssmError(
            f"smooth: {', '.join(filtering)} belong to method='ekf' and to causal=True, got "
            f"method={method!r}, causal={causal}."
        )
    if filtering.get("iterations", 1) != 1 and not causal:
        raise PlssmError(
            "smooth: iterations belong to causal=True; the smoother linearises again until its "
            "path stays."
        )


def _filtered(
    model: StateSpaceModel, batch: Batch, causal: bool, options: FilterOptions
) -> Posterior:
    """The posterior by a Gaussian filter, and a smoother behind it."""
    options.refuse(model, batch)
    if options.parallel:
        return parallel_posterior(model, batch, causal=causal)
    if causal:
        return filter_batch(model, batch, options)
    if options.matched:
        return smooth_marginals(model, batch, options)
    if any(rectified(o) for o in model.observations.values()):
        return parallel_posterior(model, batch, causal=False)
    return smooth_states(model, batch)
