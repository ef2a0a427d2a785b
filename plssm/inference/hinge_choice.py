"""Directions and kinks of hinges that help most to predict the next state."""

from __future__ import annotations

import numpy as np

__all__ = ["choose_hinges", "principal_axes"]

CANDIDATES = 400
EDGE = 0.03  # candidates have at least this share of the data on either side of their kink
ALIKE = 1e-3  # share of a hinge's variance beyond the chosen ones below which it adds nothing


def choose_hinges(
    seen: np.ndarray,
    now: np.ndarray,
    following: np.ndarray,
    count: int,
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Hinges chosen one by one for the regression of the next state (forward selection).

    .. math:: x_{t+1} \approx b + L x_t + \sum_i o_i \max(0, v_i^\top x_t - c_i)

    The candidates are random directions of the whitened state with kinks at random quantiles.
    Each choice is the candidate that lowers the squared error most, given those chosen before;
    the components of the next state count alike, each in units of what a linear map leaves.

    Args:
        seen: States from which candidates are drawn ``[N, k]``.
        now: States x_t ``[n, k]``.
        following: Their successors x_{t+1} ``[n, k]``.
        count: Number of hinges.
        rng: Source of the candidates.

    Returns:
        Directions v ``[count, k]`` and kinks c ``[count]``.

    References:
        Chen, Cowan & Grant (1991), IEEE Trans Neural Netw 2:302-309, doi:10.1109/72.80341.
    """
    size = max(CANDIDATES, 4 * count)
    directions, kinks = _candidates(seen, size, rng)
    rest = np.maximum(now @ directions.T - kinks, 0.0)
    base = np.linalg.svd(np.column_stack([np.ones(len(now)), now]), full_matrices=False)
    linear = base[0][:, base[1] > 1e-10 * base[1].max(initial=1e-300)]
    error = following - linear @ (linear.T @ following)
    error = error / np.maximum(np.sqrt((error**2).mean(0)) if len(now) else 1.0, 1e-12)
    whole = np.maximum((rest**2).sum(0), 1e-300)
    rest = rest - linear @ (linear.T @ rest)
    free, chosen = np.ones(size, dtype=bool), []
    for _ in range(count):
        length = (rest**2).sum(0)
        gain = ((rest.T @ error) ** 2).sum(1) / np.maximum(length, 1e-300)
        gain = np.where(length > ALIKE * whole, gain, -1.0)
        best = int(np.argmax(np.where(free, gain, -2.0)))
        chosen.append(best)
        free[best] = False
        if gain[best] > 0:
            axis = rest[:, best] / np.sqrt(length[best])
            error = error - np.outer(axis, axis @ error)
            rest = rest - np.outer(axis, axis @ rest)
    return directions[chosen], kinks[chosen]


def _candidates(
    seen: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions of the whitened state ``[size, k]`` and kinks ``[size]``."""
    scale, vectors = principal_axes(seen)
    directions = rng.standard_normal((size, seen.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions @ (vectors / scale).T
    shares = rng.uniform(EDGE, 1.0 - EDGE, size)
    along = (seen @ directions.T).T
    return directions, np.array([np.quantile(a, q) for a, q in zip(along, shares, strict=True)])


def principal_axes(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations ``[k]`` along the principal axes of states ``[n, k]``, and the axes."""
    centred = states - states.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(states) - 1, 1))
    scale = np.sqrt(np.maximum(values, 1e-12 * values.max()))
    return np.where(scale > 0, scale, 1.0), vectors
