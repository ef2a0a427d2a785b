"""The posterior of a mixture of experts: a Gaussian path for every modality by itself."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

from plssm.data import Batch
from plssm.inference.modality_weights import is_tempered
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.path_mixture import PathMixture
from plssm.inference.recognition import Recognition
from plssm.inference.variational_posterior import AT_ONCE, factored, log_joint, path_noise
from plssm.model import StateSpaceModel
from plssm.posterior import ChainMixture, GaussianChain

__all__ = ["mixture_posterior"]


@torch.no_grad()
def mixture_posterior(
    model: StateSpaceModel, batch: Batch, recognition: Recognition, *, draws: int, seed: int,
    bound: str = "elbo",
) -> ChainMixture:  # fmt: skip
    r"""Mixture of Gaussian paths of every trial; ``log_evidence`` is a bound from below.

    .. math:: \log p(Y) \ge \sum_e w_e E_{q_e}\Big[ \log p(Y, Z)
        - \log \sum_j w_j q_j(Z) \Big]

    Every component has as many draws; they depend on seed, modality and the trial's name only.

    Args:
        model: The model, float64.
        batch: The trials, float64.
        recognition: The recognition model, float64.
        draws: Number of draws of all components together, at least.
        seed: Their seed.
        bound: "elbo" or "importance" (the draws of all components together are weighted).

    Returns:
        The posterior, ``evidence_kind`` "elbo" or "importance".

    Raises:
        CapabilityError: If a precision is not positive definite.
    """
    terms, weight = recognition.mixture(model, batch)
    mixture = PathMixture([GaussianPath(*t) for t in terms.values()], weight)
    count, length = -(-draws // len(terms)), batch.length.numpy()
    chains, logs = [], []
    for name, own in terms.items():
        mean, chain = factored(batch, own)
        nothing = np.zeros(len(batch))
        chains.append(
            GaussianChain(
                mean, chain, length=length, log_evidence=nothing, evidence_kind=bound,
                status=("variational",) * len(batch),
            )
        )  # fmt: skip
        noise = path_noise(batch, count, mean.shape[2], seed, zlib.crc32(name.encode()))
        for part in np.array_split(noise, max(noise.size // AT_ONCE, 1)):
            z = torch.from_numpy(mean + chain.sample(part))
            logs.append((log_joint(model, batch, z) - mixture.log_prob(z)).numpy())
    ratios = np.concatenate(logs).reshape(len(terms), count, len(batch))
    shares = weight.numpy().T[:, None]
    if bound == "importance":
        with np.errstate(divide="ignore"):
            counted = ratios + np.log(shares) - math.log(count)
        evidence = np.logaddexp.reduce(counted.reshape(-1, len(batch)), 0)
    else:
        evidence = np.where(shares > 0, ratios * shares, 0.0).mean(1).sum(0)
    kind = "tempered" if is_tempered(model) else bound
    return ChainMixture(chains, weight.numpy(), log_evidence=evidence, evidence_kind=kind)
