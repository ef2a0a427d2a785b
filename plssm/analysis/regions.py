"""The linear regions that a path visits, and how it moves between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from plssm.analysis.map_form import map_form, to_array
from plssm.errors import PlssmError, ShapeError

__all__ = ["VisitedRegions", "visited_regions"]


@dataclass(frozen=True, eq=False)
class VisitedRegions:
    r"""Linear regions of a path as symbols, with the transitions between them.

    .. math:: N_{ab} = \#(a_t = a, a_{t+1} = b), \qquad P_{ab} = N_{ab} / \sum_c N_{ac}

    Args:
        patterns: Which gates are on in each region, bool [R, P]; the most visited region first.
        symbols: Number of the region at each time, [..., T].
        transitions: N [R, R], counted within paths only.

    References:
        Brenner et al. 2024 (symbolic codes of almost-linear RNNs), arXiv:2410.14240; Lind and
        Marcus 2021, An Introduction to Symbolic Dynamics and Coding.
    """

    patterns: np.ndarray
    symbols: np.ndarray
    transitions: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Share of time in each region [R]."""
        return np.bincount(self.symbols.ravel(), minlength=len(self.patterns)) / self.symbols.size

    @property
    def probabilities(self) -> np.ndarray:
        """P [R, R], the rows of N divided by their sums; zero where a path only ended."""
        total = self.transitions.sum(axis=1, keepdims=True)
        return self.transitions / np.maximum(total, 1)

    @property
    def topological_entropy(self) -> float:
        r"""Entropy of the graph of the transitions that occur, in nats per step.

        .. math:: h = \log \rho(N > 0)

        with the spectral radius of the adjacency matrix; 0 where no way leads back. It bounds the
        entropy of the symbols from above, once all transitions have been seen.
        """
        adjacent = (self.transitions > 0).astype(np.float64)
        return float(np.log(max(1.0, np.abs(np.linalg.eigvals(adjacent)).max())))

    @property
    def markov_entropy(self) -> float:
        r"""Entropy rate of the Markov chain with these transitions, in nats per step.

        .. math:: h = -\sum_{ab} \frac{N_{ab}}{\sum N} \log P_{ab}
        """
        seen = self.transitions > 0
        weight = self.transitions[seen] / max(1, self.transitions.sum())
        return float(-(weight * np.log(self.probabilities[seen])).sum() + 0.0)

    def table(self) -> pd.DataFrame:
        """Returns one row per region: gates as text, gates on, steps, share, mean stay in steps.

        The gates are written "1" (on) and "0", the first gate first. A stay is a run of steps in
        one region; those that the path's ends cut short count with what was seen of them.
        """
        steps = np.bincount(self.symbols.ravel(), minlength=len(self.patterns))
        stays = steps - np.diagonal(self.transitions)
        return pd.DataFrame(
            {
                "region": ["".join("01"[int(b)] for b in row) for row in self.patterns],
                "gates_on": self.patterns.sum(axis=1),
                "steps": steps,
                "share": self.shares,
                "mean_stay": steps / stays,
            }
        )

    def __repr__(self) -> str:
        """Says how many regions were visited."""
        return (
            f"VisitedRegions({len(self.patterns)} regions, "
            f"topological entropy {self.topological_entropy:.3g} nats per step)"
        )


def visited_regions(dynamics: Any, path: Any) -> VisitedRegions:
    """Reads off which linear regions a path visits.

    Args:
        dynamics: Piecewise-linear dynamics, or a ReluForm.
        path: States [T, M], or several paths [..., T, M].

    Returns:
        The regions, their shares of time and the transitions between them.

    Raises:
        CapabilityError: The map is not piecewise linear.
        ShapeError: `path` has the wrong shape.
        PlssmError: `path` is not finite.

    Example:
        >>> from plssm.dynamics import PLRNN
        >>> dynamics = PLRNN.from_parameters(A=[0.5], W=[[0.0]])
        >>> visited_regions(dynamics, [[1.0], [2.0], [-1.0], [3.0]]).table()[["region", "share"]]
          region  share
        0      1   0.75
        1      0   0.25
    """
    form, states = map_form(dynamics, who="visited_regions"), to_array(path)
    dim = len(form.bias)
    if states.ndim < 2 or states.shape[-1] != dim or states.size == 0:
        raise ShapeError(
            f"visited_regions: path: got shape {states.shape}, wanted [..., T, {dim}]"
        )
    if not np.isfinite(states).all():
        raise PlssmError("visited_regions: path must be finite")
    region = form.region(states).reshape(states.size // dim, len(form.offset))
    packed = np.packbits(region, axis=1)
    if packed.shape[1] == 0:  # a map without gates has one region
        packed = np.zeros((len(region), 1), dtype=np.uint8)
    _, first, symbols, counts = np.unique(
        packed, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    ranking = np.lexsort((first, -counts))
    symbols = np.argsort(ranking)[symbols.ravel()].reshape(states.shape[:-1])
    transitions = np.zeros((len(ranking), len(ranking)), dtype=np.int64)
    np.add.at(transitions, (symbols[..., :-1].ravel(), symbols[..., 1:].ravel()), 1)
    return VisitedRegions(region[first[ranking]], symbols, transitions)
