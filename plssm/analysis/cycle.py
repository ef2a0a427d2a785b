"""A cycle of a map, and the list of the cycles that a search found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["Cycle", "Cycles"]

_MARGIN = 1e-9  # distance of a modulus from one below which a cycle is not called hyperbolic


@dataclass(frozen=True, eq=False)
class Cycle:
    r"""A cycle (periodic orbit) of order k; a fixed point is a cycle of order 1.

    .. math:: z_{i+1} = F(z_i), \quad z_{k+1} = z_1, \qquad
        \mathrm{eigenvalues} = \mathrm{eig}(J(z_k) \cdots J(z_1))

    Args:
        points: z_1 ... z_k [k, M] in the order in which the map visits them; the first is the
            smallest in lexicographic order.
        eigenvalues: [M] complex (the Floquet multipliers), the largest modulus first. At a kink
            they are those of the side on which the gate is off.
        regions: Which gates are on at each point, bool [k, P].
        border_collision: Whether a point lies on a kink, up to 1e-9 of the size of the gate's
            argument: the eigenvalues then hold on one side only.

    References:
        Strogatz 2015, Nonlinear Dynamics and Chaos; Eisenmann et al. 2023, arXiv:2310.17561.
    """

    points: np.ndarray
    eigenvalues: np.ndarray
    regions: np.ndarray
    border_collision: bool = False

    @property
    def order(self) -> int:
        """Number of points k."""
        return len(self.points)

    @property
    def stability(self) -> str:
        """The word for the moduli of the eigenvalues.

        "stable" (all below one), "unstable" (all above one), "saddle" (some below, some above)
        or "non-hyperbolic" (one within 1e-9 of one).
        """
        modulus = np.abs(self.eigenvalues)
        if (np.abs(modulus - 1.0) <= _MARGIN).any():
            return "non-hyperbolic"
        below = int((modulus < 1.0).sum())
        return {0: "unstable", modulus.size: "stable"}.get(below, "saddle")

    def __repr__(self) -> str:
        """Says the order, the stability and the first point."""
        first = np.array2string(self.points[0], precision=4, threshold=6)
        kink = ", on a kink" if self.border_collision else ""
        return f"Cycle(order={self.order}, {self.stability}{kink}, first point {first})"


class Cycles(list[Cycle]):
    """The cycles of one order, with what is known about the search that found them.

    Args:
        cycles: The cycles, by their first points in lexicographic order.
        order: Number of points k of each.
        hits: How many random starts of the search ended in each cycle; 1 in an exhaustive one.
        restarts: Number of random starts; 0 where all sequences of regions were tried.
        exhaustive: Whether all sequences of the regions that exist were tried, so that no
            isolated cycle is missing.
        degenerate: Sequences of regions that hold a continuous family of cycles (at least this
            many); families are not in the list.

    Example:
        >>> Cycles([], order=2, hits=[], restarts=0, exhaustive=True)
        Cycles(0 of order 2, all region sequences tried)
    """

    def __init__(
        self,
        cycles: Iterable[Cycle],
        *,
        order: int,
        hits: Iterable[int],
        restarts: int,
        exhaustive: bool,
        degenerate: int = 0,
    ) -> None:
        super().__init__(cycles)
        self.order, self.hits = order, [int(n) for n in hits]
        self.restarts, self.exhaustive, self.degenerate = restarts, exhaustive, degenerate

    @property
    def missed_share(self) -> float:
        r"""Good and Turing's estimate of what the random starts have not seen.

        .. math:: n_1 / N

        with n_1 the cycles that were hit once and N all hits: the share of successful starts that
        would end in a cycle not yet found. 0 where the search was exhaustive, NaN without hits. A
        small value does not exclude a cycle that hardly any start leads to.

        References:
            Good 1953, doi:10.1093/biomet/40.3-4.237.
        """
        if self.exhaustive:
            return 0.0
        total = sum(self.hits)
        return self.hits.count(1) / total if total else float("nan")

    def table(self) -> pd.DataFrame:
        """Returns one row per cycle: stability, largest modulus, kink, hits and first point."""
        rows = [
            {
                "stability": c.stability,
                "largest_modulus": float(np.abs(c.eigenvalues).max()),
                "border_collision": c.border_collision,
                "hits": n,
                "first_point": c.points[0].tolist(),
            }
            for c, n in zip(self, self.hits, strict=True)
        ]
        columns = ["stability", "largest_modulus", "border_collision", "hits", "first_point"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        """Says how many there are and how they were looked for."""
        how = "all region sequences tried"
        if not self.exhaustive:
            how = f"{self.restarts} restarts, estimated missed share {self.missed_share:.2g}"
        extra = f", {self.degenerate} continuous families" if self.degenerate else ""
        return f"Cycles({len(self)} of order {self.order}, {how}{extra})"
