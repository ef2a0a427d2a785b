"""The log marginal likelihood of the data, the same for every fit: by particles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from plssm.data import Dataset
from plssm.inference.smoothers import smooth
from plssm.model import StateSpaceModel

__all__ = ["RUNS", "particle_evidence"]

RUNS = 8
"""Independent runs of the particle filter, whose spread is the standard error."""


def particle_evidence(
    model: StateSpaceModel,
    data: Dataset,
    *,
    particles: int,
    seed: int,
    smoother: Callable[..., Any] | None = None,
) -> tuple[float, float]:
    r"""Estimate the log marginal likelihood of all trials together.

    .. math:: \sum_b \widehat{\log p}(Y_b), \qquad \mathrm{se} = \sqrt{\textstyle\sum_b s_b^2}

    The likelihood is the proper one: weights of modalities (tempering) are set to one.

    Args:
        model: The model; never changed.
        data: The trials.
        particles: Particles of a run.
        seed: Seed of the particles.
        smoother: What makes the posterior with ``.log_evidence [B]`` and ``.evidence_error [B]``;
            :func:`plssm.smooth` by default.

    Returns:
        The estimate in nats and its standard error.
    """
    proper = copy.deepcopy(model)
    for observation in proper.observations.values():
        observation.tempering.fill_(1.0)
    remembers = any(o.memory(data.dt) for o in proper.observations.values())
    made = (smoother or smooth)(
        proper,
        data,
        method="particle",
        causal=remembers,  # smoothed particles hold the present state only
        particles=particles,
        runs=RUNS,
        draws=1,  # paths are not looked at
        seed=seed,
    )
    variance = (made.evidence_error**2).sum()
    return float(made.log_evidence.sum()), float(variance.sqrt())
