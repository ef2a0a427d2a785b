"""A posterior for any model, however it was trained."""

from __future__ import annotations

from plssm.data import Dataset
from plssm.dynamics.base import PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import working_copy
from plssm.inference.filtering import filter_batch
from plssm.inference.laplace import laplace_posterior
from plssm.inference.modality_weights import is_tempered
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
) -> Posterior:
    r"""Posterior of the latent paths given data and fixed parameters.

    Args:
        model: The model; never changed.
        data: The trials.
        method: ``"laplace"``: global Laplace approximation (exact for linear-Gaussian models).
            ``"ekf"``: iterated extended Kalman smoother in covariance form; it serves fine latent
            clocks under BOLD, whose response it can hold as a few linear states
            (``BOLD(kernel="states")``). It gives marginals.
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

    Returns:
        A GaussianChain over whole paths, GaussianMarginals, or the FilteredMarginals of each step;
        PathSamples or StateSamples from particles.

    Raises:
        PlssmError: If the method is unknown, or an option belongs to another one.
        DataError: If the data do not match the model.
        CapabilityError: If the dynamics have no ReLU form, or, for smoothed particles, if an
            observation has memory (BOLD).

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> ps.smooth(model, model.simulate(10)).mean.shape
        torch.Size([1, 10, 2])
    """
    if method not in METHODS:
        raise PlssmError(f"smooth: method is {method!r}, wanted one of {METHODS}.")
    options = {
        "particles": particles, "runs": runs, "draws": draws, "proposal": proposal, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if given and method != "particle":
        raise PlssmError(
            f"smooth: {', '.join(given)} belong to method='particle', got method={method!r}."
        )
    model.check(data)
    if method == "particle":
        sampler = particle_filter if causal else particle_smoother
        return sampler(working_copy(model), data.batch(), **({"runs": RUNS} | given))
    if not isinstance(model.dynamics, PiecewiseLinear):
        raise CapabilityError(
            f"smooth: {type(model.dynamics).__name__} is not piecewise linear, which the method "
            f"{method!r} needs; use method='particle', or derive the dynamics from "
            "PiecewiseLinear."
        )
    work = working_copy(model)
    batch = data.batch()
    if causal or method == "ekf":
        posterior = filter_batch(work, batch) if causal else smooth_states(work, batch)
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
