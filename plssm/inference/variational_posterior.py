"""The posterior that a recognition model gives, with a bound on the evidence of every trial."""

from __future__ import annotations

import math
import zlib
from functools import partial

import numpy as np
import torch

from plssm.data import Batch
from plssm.errors import CapabilityError
from plssm.inference.chains import PathTerms
from plssm.inference.closed_bound import expected_log_joint, is_closed
from plssm.inference.modality_weights import is_tempered
from plssm.inference.recognition import Recognition
from plssm.linalg.block_tridiagonal import ChainFactor, factor
from plssm.model import StateSpaceModel
from plssm.posterior import GaussianChain

__all__ = ["factored", "log_joint", "path_noise", "variational_posterior"]

LOG_2PI = math.log(2.0 * math.pi)
AT_ONCE = 20_000_000  # numbers of the paths that are drawn at a time


@torch.no_grad()
def variational_posterior(
    model: StateSpaceModel, batch: Batch, recognition: Recognition, *, draws: int, seed: int,
    bound: str = "elbo",
) -> GaussianChain:  # fmt: skip
    r"""Gaussian path of every trial; its ``log_evidence`` is a bound from below.

    .. math:: \log p(Y) \ge E_q[\log p(Y, Z)] + H[q]

    The expectation is exact for linear-Gaussian models and a mean over draws otherwise; the
    entropy is exact. Draws depend on the seed and the trial's name only, and are made when
    somebody asks for the bound.

    Args:
        model: The model, float64.
        batch: The trials, float64.
        recognition: The recognition model, float64.
        draws: Number of draws.
        seed: Their seed.
        bound: "elbo" or "importance".

    Returns:
        The posterior, ``evidence_kind`` "elbo" or "importance".

    Raises:
        CapabilityError: If the precision is not positive definite.
    """
    mean, chain = factored(batch, recognition(model, batch))
    evidence = partial(_bound, model, batch, mean, chain, draws=draws, seed=seed, bound=bound)
    kind = "tempered" if is_tempered(model) else bound
    return GaussianChain(
        mean, chain, length=batch.length.numpy(), log_evidence=evidence, evidence_kind=kind,
        status=("variational",) * len(batch),
    )  # fmt: skip


@torch.no_grad()
def _bound(
    model: StateSpaceModel, batch: Batch, mean: np.ndarray, chain: ChainFactor, *, draws: int,
    seed: int, bound: str,
) -> np.ndarray:  # fmt: skip
    """The bound on the evidence of every trial [B]."""
    entropy = 0.5 * chain.length * mean.shape[2] * (1 + LOG_2PI) - 0.5 * chain.logdet
    if bound == "elbo" and is_closed(model, batch.dt):
        moments = (torch.from_numpy(x) for x in (mean, *chain.covariances()))
        weight = batch.time_mask.to(torch.float64)
        return expected_log_joint(model, batch, *moments, weight).numpy() + entropy
    logs = _log_ratios(model, batch, mean, chain, draws=draws, seed=seed, entropy=entropy)
    if bound == "importance":
        return np.logaddexp.reduce(logs[1], 0) - math.log(draws)
    return logs[0].mean(0)


def factored(batch: Batch, terms: PathTerms) -> tuple[np.ndarray, ChainFactor]:
    """Mean [B, T, M] of Gaussian paths, and their factorised precision.

    Args:
        batch: The trials.
        terms: The paths, float64.

    Raises:
        CapabilityError: If a precision is not positive definite.
    """
    trials, steps, dim = terms.shift.shape
    off = np.zeros((trials, steps - 1, dim, dim))
    if terms.off is not None:
        off += terms.off.numpy()
    chain = factor(terms.diag.numpy(), off, batch.length.numpy())
    if chain.status.any():
        failed = batch.trial[int(chain.status.nonzero()[0][0])]
        raise CapabilityError(
            f"the guide's precision is not positive definite for trial {failed!r}: "
            "its parameters have extreme values; fit again with a smaller learning rate."
        )
    return chain.solve(terms.shift.numpy()), chain


def _log_ratios(
    model: StateSpaceModel, batch: Batch, mean: np.ndarray, chain: ChainFactor, *, draws: int,
    seed: int, entropy: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Log joint density of draws plus entropy, and less their own log-density, each [S, B]."""
    noise = path_noise(batch, draws, mean.shape[2], seed)
    joint = []
    for part in np.array_split(noise, max(noise.size // AT_ONCE, 1)):
        z = torch.from_numpy(mean + chain.sample(part))
        joint.append(log_joint(model, batch, z).numpy())
    joint = np.concatenate(joint)
    free = entropy - 0.5 * chain.length * mean.shape[2]
    return joint + entropy, joint + free + 0.5 * np.square(noise).sum((-2, -1))


def path_noise(batch: Batch, draws: int, dim: int, *seeds: int) -> np.ndarray:
    """Standard normal numbers [S, B, T, M] that depend on seeds and the trials' names only.

    Args:
        batch: The trials.
        draws: Number of draws S.
        dim: Latent states M.
        *seeds: Seeds.
    """
    noise = np.zeros((draws, len(batch), batch.steps, dim))
    for b, (name, steps) in enumerate(zip(batch.trial, batch.length.tolist(), strict=True)):
        rng = np.random.default_rng([*seeds, zlib.crc32(name.encode())])
        noise[:, b, :steps] = rng.standard_normal((draws, steps, dim))
    return noise


def log_joint(model: StateSpaceModel, batch: Batch, z: torch.Tensor) -> torch.Tensor:
    """Log joint density of paths [S, B, T, M] with tempered likelihoods, [S, B].

    Args:
        model: The model.
        batch: The trials.
        z: The paths; 0 beyond a trial's end.
    """
    total = model.dynamics.log_prob(z, batch.inputs, batch.length)
    for name, observation in model.observations.items():
        value = observation.log_prob(batch.modalities[name], z)
        total = total + observation.tempering * value
    return total
