"""Draws of latent paths that predictions are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plssm.errors import CapabilityError, PlssmError
from plssm.model import StateSpaceModel
from plssm.posterior import FilteredMarginals, GaussianChain, Posterior

__all__ = ["draw_histories", "draw_last_states", "draw_paths", "draw_prior_paths"]

BLOCK = 4_000_000  # numbers of whole paths drawn at a time


def draw_paths(
    posterior: Posterior,
    n: int,
    *,
    seed: int = 0,
    steps: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Draw latent paths of every trial.

    A Gaussian posterior is symmetric about its mean: half of the draws are the mirror images of
    the others, so that whatever is linear in the path has no Monte-Carlo error.

    Args:
        posterior: Posterior of the paths.
        n: Number of draws.
        seed: Seed of the draws.
        steps: Latent steps to keep of each trial ``[n_b]``; None keeps all.

    Returns:
        Draws of each trial ``[n, T_b, M]`` or ``[n, n_b, M]``.
    """
    mirrored = isinstance(posterior, GaussianChain | FilteredMarginals)
    wanted = (n + 1) // 2 if mirrored else n
    lengths = posterior.length.tolist()
    kept = [slice(0, length) for length in lengths]
    if steps is not None:
        kept = [k if s is None else s for k, s in zip(kept, steps, strict=True)]
    most = max(BLOCK // max(posterior.mean.numel(), 1), 1)
    seeds = np.random.SeedSequence(seed).generate_state(-(-wanted // most))
    parts: list[list[Tensor]] = [[] for _ in lengths]
    for k, part_seed in enumerate(seeds):
        z = posterior.sample(min(most, wanted - k * most), seed=int(part_seed))
        for b, index in enumerate(kept):
            parts[b].append(z[:, b, index].clone())
    draws = [torch.cat(part) for part in parts]
    if not mirrored:
        return draws
    means = [posterior.mean[b, index] for b, index in enumerate(kept)]
    return [torch.cat([z, 2 * m - z])[:n] for z, m in zip(draws, means, strict=True)]


def draw_histories(posterior: Posterior, n: int, count: int, *, seed: int = 0) -> Tensor:
    """Draw the last states up to every step from a filter, zeros before the trial.

    The second half of the draws of a Gaussian filter mirrors the first (see :func:`draw_paths`).

    Args:
        posterior: Causal posterior.
        n: Number of draws.
        count: Number of states.
        seed: Seed of the draws.

    Returns:
        ``[n, B, T, count, M]``, the oldest first; NaN beyond a trial's end.

    Raises:
        CapabilityError: If the filter does not know that many states together.
    """
    gaussian = isinstance(posterior, FilteredMarginals)
    wanted = (n + 1) // 2 if gaussian else n
    if count == 1:
        made, centre = (
            posterior.sample(wanted, seed=seed)[..., None, :],
            posterior.mean[..., None, :],
        )
    else:
        made = _histories(posterior, wanted, count, seed)
        centre = _history_means(posterior)[..., -count:, :] if gaussian else None
    return torch.cat([made, 2 * centre - made])[:n] if gaussian else made


def _histories(posterior: Posterior, n: int, count: int, seed: int) -> Tensor:
    made = posterior.histories(n, seed=seed) if hasattr(posterior, "histories") else None
    if made is None or made.shape[-2] < count:
        raise CapabilityError(
            f"a prediction needs the last {count} latent states together, this "
            f"{type(posterior).__name__} knows {0 if made is None else made.shape[-2]} of them; "
            "use an engine that filters models with memory, such as LaplaceEM, or causal=False."
        )
    return made[..., -count:, :]


def _history_means(posterior: FilteredMarginals) -> Tensor:
    """Mean of the last states up to every step, ``[B, T, K, M]``, the oldest first."""
    mean = torch.from_numpy(posterior.joint[0])
    return mean.unflatten(-1, (-1, posterior.mean.shape[-1])).flip(-2)


def draw_last_states(posterior: Posterior, n: int, count: int, *, seed: int = 0) -> Tensor:
    """Draw the last states of every trial jointly, zeros where a trial is shorter.

    Args:
        posterior: Posterior of the paths.
        n: Number of draws.
        count: Number of states.
        seed: Seed of the draws.

    Returns:
        ``[n, B, count, M]``, the oldest first.
    """
    lengths = posterior.length.tolist()
    steps = [torch.arange(max(length - count, 0), length) for length in lengths]
    out = torch.zeros((n, len(lengths), count, posterior.mean.shape[-1]), dtype=torch.float64)
    for b, z in enumerate(draw_paths(posterior, n, seed=seed, steps=steps)):
        out[:, b, count - z.shape[1] :] = z
    return out


def draw_prior_paths(
    model: StateSpaceModel,
    n: int,
    lengths: Sequence[int],
    inputs: Tensor | None,
    *,
    seed: int = 0,
    steps: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Draw latent paths from the prior, by running the dynamics.

    Args:
        model: The model.
        n: Number of draws.
        lengths: Latent steps of each trial.
        inputs: Inputs ``[B, T, K]``, or None.
        seed: Seed of the draws.
        steps: Latent steps to keep of each trial ``[n_b]``; None keeps all.

    Returns:
        Draws of each trial ``[n, T_b, M]`` or ``[n, n_b, M]``.

    Raises:
        PlssmError: If a run leaves the finite numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    out = []
    for b, length in enumerate(lengths):
        driven = None if inputs is None else inputs[b, :length]
        with torch.no_grad():
            z = model.dynamics.sample(length, trials=n, inputs=driven, generator=generator)
        if not bool(torch.isfinite(z).all()):
            raise PlssmError(
                f"predict: nothing is given, and the free run of trial {b} leaves the finite "
                "numbers: the map is not bounded. Give a modality, or fit again."
            )
        keep = None if steps is None else steps[b]
        out.append(z if keep is None else z[:, keep])
    return out
