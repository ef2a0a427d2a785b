"""Tempering: how much each modality counts in the posterior of the latent path."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from plssm.data import Batch, Dataset, Modality
from plssm.errors import PlssmError
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel

__all__ = ["NULL_FISHER", "check_weights", "is_tempered", "null_fisher", "temper"]

NULL_FISHER = "null-fisher"


def check_weights(weights: Mapping[str, float] | str | None) -> None:
    """Refuse what cannot be a choice of weights, whatever the model.

    Raises:
        PlssmError: For an unknown word, or a weight that is not positive and finite.
    """
    if weights is None or weights == NULL_FISHER:
        return
    if not isinstance(weights, Mapping):
        raise PlssmError(
            f"modality_weights is {weights!r}, wanted None, {NULL_FISHER!r} or a dict such as "
            "{'choice': 5.0}."
        )
    for name, weight in weights.items():
        if not (np.isfinite(weight) and weight > 0):
            raise PlssmError(f"modality_weights[{name!r}] is {weight!r}, wanted a number > 0.")


def temper(
    model: StateSpaceModel, data: Dataset, weights: Mapping[str, float] | str | None
) -> dict[str, float]:
    r"""Set the exponent of each modality's likelihood in the posterior of the latent path.

    .. math:: q(Z) \propto p(Z) \prod_m p(y^{(m)} \mid Z)^{w_m}

    With weights other than 1 this is a generalised Bayes posterior: its bands are not calibrated,
    and its evidence compares only with that of the same weights.

    Args:
        model: Changed in place.
        data: Training data, for ``"null-fisher"``.
        weights: None (all 1), a weight for some modalities (the others 1), or ``"null-fisher"``:
            the inverse of :func:`null_fisher`, so that every modality pulls the latent path about
            as strongly per predictor as a standardised Gaussian channel does. Standardise
            continuous data first: their weight is their variance.

    Returns:
        The weights by modality.

    Raises:
        PlssmError: If a weight names no modality of the model.

    References:
        Bissiri, Holmes and Walker (2016), doi:10.1111/rssb.12158 (generalised Bayes).
    """
    check_weights(weights)
    names = list(model.observations)
    if weights == NULL_FISHER:
        batch = data.batch()
        chosen = {n: 1 / null_fisher(model.observations[n], batch, n) for n in names}
    else:
        unknown = set(weights or {}) - set(names)
        if unknown:
            raise PlssmError(
                f"modality_weights names {sorted(unknown)}; the model observes {names}."
            )
        chosen = {n: float((weights or {}).get(n, 1.0)) for n in names}
    for name, weight in chosen.items():
        model.observations[name].tempering.fill_(weight)
    return chosen


def is_tempered(model: StateSpaceModel) -> bool:
    """Whether any modality counts for more or less than its proper likelihood."""
    return any(float(o.tempering) != 1.0 for o in model.observations.values())


def null_fisher(observation: ObservationModel, batch: Batch, name: str) -> float:
    """Fisher information per predictor of a model that does not see the latent path.

    The model's intercept and noise are fitted to the data with the weights at zero. The curvature
    then is 1 / s² for Gaussian channels of variance s², the mean count for Poisson channels, and
    (K - 1) / K² for K equally frequent classes.

    Args:
        observation: The observation model (its parameters are not used).
        batch: Training data.
        name: The modality.
    """
    null = type(observation).from_config(observation.config()).bind(observation.dim)
    modality: Modality = batch.modalities[name]
    nowhere = torch.zeros(len(batch), batch.steps, observation.dim, dtype=torch.float64)
    null.init_from(modality, nowhere)
    with torch.no_grad():
        features = null.features_at(modality, nowhere)
        curvature = null.derivatives(features, modality, positive=True)[2]
    if curvature.ndim == features.ndim + 1:
        curvature = torch.diagonal(curvature, dim1=-2, dim2=-1)
    seen = modality.mask if curvature.shape == modality.mask.shape else modality.mask.any(-1)
    values = curvature[seen]
    return max(float(values.mean()), 1e-12) if values.numel() else 1.0
