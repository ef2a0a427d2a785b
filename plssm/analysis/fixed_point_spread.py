"""The fixed points of a fit through draws of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from plssm.analysis.cycle import Cycles

__all__ = ["FixedPointSpread", "match_points"]


@dataclass(frozen=True, eq=False)
class FixedPointSpread:
    r"""What draws say about each fixed point of the fit.

    .. math:: P(\text{exists}) = \sum_{i: z^*(\theta_i)\ \text{found}} w_i

    Attributes:
        positions: Of the fit's points [K, D]: latent states, or what the observation models
            predict there.
        drawn: Positions of their counterparts [n, K, D]; NaN where a draw has none.
        stable: Whether the counterpart is stable [n, K]; False where there is none.
        stability: That of the fit's points.
        counts: How many fixed points each draw has [n].
        weights: Of the draws [n].
        space: "latent" or "predicted": what positions are.
    """

    positions: np.ndarray
    drawn: np.ndarray
    stable: np.ndarray
    stability: tuple[str, ...]
    counts: np.ndarray
    weights: np.ndarray
    space: str

    @property
    def exists(self) -> np.ndarray:
        """Whether a draw has a counterpart of each point, bool [n, K]."""
        return np.isfinite(self.drawn).all(-1)

    @property
    def number(self) -> dict[int, float]:
        """Probability of each number of fixed points."""
        found = np.unique(self.counts)
        return {int(n): float(self.weights[self.counts == n].sum()) for n in found}

    def table(self) -> pd.DataFrame:
        """One row per fixed point of the fit.

        ``exists`` is the probability that there is such a point, ``stable`` the probability that
        it is stable where it exists; ``sd`` is the root mean square distance from its mean.
        """
        rows = []
        for k, place in enumerate(self.positions):
            has = self.exists[:, k]
            weight = self.weights[has]
            total = float(weight.sum())
            row = {"position": place.tolist(), "stability": self.stability[k], "exists": total}
            share = weight / total if total else weight
            points = self.drawn[has, k]
            mean = share @ points if total else np.full(place.shape, np.nan)
            row["stable"] = float(share @ self.stable[has, k]) if total else np.nan
            row["mean"] = mean.tolist()
            away = np.square(points - mean).sum(1)
            row["sd"] = float(np.sqrt(share @ away)) if total else np.nan
            rows.append(row)
        columns = ["position", "stability", "exists", "stable", "mean", "sd"]
        return pd.DataFrame(rows, columns=columns)


def match_points(
    reference: Cycles,
    found: Sequence[Cycles],
    weights: np.ndarray,
    *,
    place: Callable[[int | None, np.ndarray], np.ndarray],
    space: str,
) -> FixedPointSpread:
    """Matches the fixed points of draws to those of the fit, each to one at most, by distance.

    A point further away than half the distance between the fit's two closest points is another
    one.

    Args:
        reference: The fit's fixed points.
        found: Those of each draw.
        weights: Of the draws [n].
        place: Positions of latent states, of a draw by its number, or of the fit (None).
        space: What positions are.
    """
    home = place(None, _states(reference))
    apart = cdist(home, home) if len(home) else np.zeros((0, 0))
    np.fill_diagonal(apart, np.inf)
    limit = 0.5 * apart.min(initial=np.inf)
    drawn = np.full((len(found), *home.shape), np.nan)
    stable = np.zeros((len(found), len(home)), dtype=bool)
    for i, cycles in enumerate(found):
        if not (len(cycles) and len(home)):
            continue
        here = place(i, _states(cycles))
        distance = cdist(home, here)
        allowed = np.minimum(distance, 2.0 * limit) if np.isfinite(limit) else distance
        for k, j in zip(*linear_sum_assignment(allowed), strict=True):
            if distance[k, j] <= limit:
                drawn[i, k] = here[j]
                stable[i, k] = cycles[j].stability == "stable"
    counts = np.array([len(c) for c in found])
    kinds = tuple(c.stability for c in reference)
    return FixedPointSpread(home, drawn, stable, kinds, counts, weights, space)


def _states(cycles: Any) -> np.ndarray:
    """The points [K, M]."""
    return np.array([c.points[0] for c in cycles])
