"""A posterior for any model, however it was trained."""

from __future__ import annotations

from plssm.data import Dataset
from plssm.dynamics.base import PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import working_copy
from plssm.inference.filtering import filter_batch
from plssm.inference.laplace import laplace_posterior
from plssm.inference.modality_weights import is_tempered
from plssm.inference.state_smoother import smooth_states
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["smooth"]

METHODS = ("laplace", "ekf")


def smooth(
    model: StateSpaceModel, data: Dataset, method: str = "laplace", causal: bool = False
) -> Posterior:
    r"""Posterior of the latent paths given data and fixed parameters.

    Args:
        model: The model; never changed.
        data: The trials.
        method: ``"laplace"``: global Laplace approximation (exact for linear-Gaussian models).
            ``"ekf"``: iterated extended Kalman smoother in covariance form; it serves fine latent
            clocks under BOLD, whose response it can hold as a few linear states
            (``BOLD(kernel="states")``). It gives marginals.
        causal: Give the filtered marginals :math:`p(z_t | y_{1:t})` of a piecewise-linear
            extended Kalman filter instead, which use no data from after t.

    Returns:
        A GaussianChain over whole paths, GaussianMarginals, or the FilteredMarginals of each step.

    Raises:
        PlssmError: If the method is unknown.
        DataError: If the data do not match the model.
        CapabilityError: If the dynamics have no ReLU form.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> ps.smooth(model, model.simulate(10)).mean.shape
        torch.Size([1, 10, 2])
    """
    if method not in METHODS:
        raise PlssmError(f"smooth: method is {method!r}, wanted one of {METHODS}.")
    model.check(data)
    if not isinstance(model.dynamics, PiecewiseLinear):
        raise CapabilityError(
            f"smooth: {type(model.dynamics).__name__} is not piecewise linear, which the method "
            f"{method!r} needs; derive the dynamics from PiecewiseLinear."
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
