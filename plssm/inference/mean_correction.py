"""From the mode of the latent path towards its mean."""

from __future__ import annotations

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.laplace import LaplaceResult
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["mean_corrected"]

FARTHEST = 10.0  # longest correction of a trial, in posterior standard deviations


def mean_corrected(model: StateSpaceModel, batch: Batch, result: LaplaceResult) -> GaussianChain:
    r"""The Laplace posterior moved from the mode to the mean, to second order.

    .. math:: \hat m = Z^* - \tfrac12 U^{-1} \, \nabla_Z \log |U(Z^*)|

    Skewed likelihoods (counts, labels) have the mode of the path beside its mean. The gradient of
    the Laplace evidence in the parameters is, up to products of the correction with itself, that
    of the expected quadratic expansion of the log joint under this posterior; with the mode in the
    place of the mean it would leave out how the curvature changes as the mode moves. Hinges are
    taken as linear, as in the Laplace covariance. Exactly the mode where all observations are
    quadratic. A trial's step is shortened to at most ten posterior standard deviations; where it
    overflows the mode stays.

    Args:
        model: The model.
        batch: The trials.
        result: Their Laplace approximation.

    Returns:
        A chain with the same covariance and evidence.

    References:
        Tierney & Kadane (1986), J Am Stat Assoc 81:82, doi:10.1080/01621459.1986.10478240.
    """
    posterior, z = result.posterior, torch.from_numpy(result.path)
    covariance = torch.from_numpy(posterior.arrays()[1])
    pull = np.zeros_like(result.path)
    for name, observation in model.observations.items():
        m = batch.modalities[name]
        if observation.quadratic or observation.memory(m.dt):
            continue
        pull += float(observation.tempering) * np.asarray(
            observation.score_correction(m, z, covariance)
        )
    if not pull.any():
        return posterior
    step = posterior.solve(pull)
    if not np.isfinite(step).all():
        return posterior
    deviation = np.sqrt(np.einsum("btii->bti", covariance.numpy()))
    ratio = np.abs(step) / np.where(deviation > 0, deviation, 1.0)
    longest = ratio.max(axis=(1, 2), initial=FARTHEST)
    return posterior.moved(step * (FARTHEST / longest)[:, None, None])
