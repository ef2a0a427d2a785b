"""A quantity that is known through draws: values, intervals, and what did not work."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from plssm.analysis.fixed_point_spread import FixedPointSpread
from plssm.errors import CapabilityError, PlssmError

__all__ = ["Uncertain"]

_NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True, eq=False)
class Uncertain:
    r"""The distribution of a quantity over draws of models.

    .. math:: p(Q \mid Y) \approx \sum_i w_i \, \delta(Q - Q(\theta_i))

    Attributes:
        name: What the quantity is called.
        values: Its values under the draws that worked: an array [n, ...], or a list of objects.
        weights: Weights of these draws [n], which sum to one.
        estimate: The quantity of the model that the draws are around (the mode of the parameter
            posterior, or the fit itself); None where that failed, or where there is none.
        draws: Number of all draws.
        failures: Number and reason of each draw that did not work.
        failed_share: Weight of the draws that did not work, between 0 and 1.
        level: Probability in the interval of :meth:`table`.
        method: Where the draws come from.
        report: What is known about the draws (see :meth:`plssm.Fit.parameter_draws`).
        points: Of the quantity "fixed_points": each point of the fit, through all draws.
    """

    name: str
    values: np.ndarray | list[Any]
    weights: np.ndarray
    estimate: Any
    draws: int
    failures: tuple[tuple[int, str], ...]
    failed_share: float
    level: float = 0.9
    method: str = "models"
    report: dict[str, float] = field(default_factory=dict)
    points: FixedPointSpread | None = None

    @property
    def mean(self) -> Any:
        """Weighted mean; a number or an array [...]."""
        return _plain(np.tensordot(self.weights, self._numbers(), 1))

    @property
    def sd(self) -> Any:
        """Weighted standard deviation; a number or an array [...]."""
        x = self._numbers()
        away = np.square(x - np.tensordot(self.weights, x, 1))
        return _plain(np.sqrt(np.tensordot(self.weights, away, 1)))

    @property
    def median(self) -> Any:
        """Weighted median; a number or an array [...]."""
        return self.quantile(0.5)

    def quantile(self, probability: float) -> Any:
        """Weighted quantile.

        Args:
            probability: Between 0 and 1.

        Returns:
            A number or an array [...]: the smallest value up to which there is that much weight,
            half-way to the next one where there is exactly that much.
        """
        if not 0.0 <= probability <= 1.0:
            raise PlssmError(f"quantile: got {probability}, wanted between 0 and 1")
        return _plain(_quantile(self._numbers(), self.weights, probability))

    def interval(self, level: float | None = None, *, kind: str | None = None) -> tuple[Any, Any]:
        r"""Central interval of the draws, or the basic one around the estimate.

        .. math:: [q_{\alpha/2},\; q_{1-\alpha/2}] \quad \text{or} \quad
            [2 \hat q - q_{1-\alpha/2},\; 2 \hat q - q_{\alpha/2}]

        Nonlinear quantities can have draws far on one side of the estimate. The basic interval
        takes the distances of draws from the estimate as those of the estimate from the truth,
        and so reaches out to the other side. Draws of a bootstrap are such distances: percentiles
        would count errors of the estimate twice.

        Args:
            level: Its probability; that of the result where absent.
            kind: "percentile" or "basic"; by default the latter for a bootstrap with an estimate.

        Returns:
            Lower and upper limits, numbers or arrays [...].

        Raises:
            PlssmError: If the level is not between 0 and 1, the kind is unknown, or the basic
                interval is asked for where there is no estimate.

        References:
            Davison & Hinkley (1997), Bootstrap Methods and their Application, section 5.2,
            doi:10.1017/CBO9780511802843.
        """
        level = self.level if level is None else level
        if not 0.0 < level < 1.0:
            raise PlssmError(f"interval: level is {level}, wanted between 0 and 1")
        tail = 0.5 * (1.0 - level)
        low, high = self.quantile(tail), self.quantile(1.0 - tail)
        if kind is None:
            known = self.estimate is not None and np.shape(self.estimate) == np.shape(low)
            kind = "basic" if known and self.method == "bootstrap" else "percentile"
        if kind == "percentile":
            return low, high
        if kind != "basic":
            raise PlssmError(f"interval: kind is {kind!r}, wanted 'percentile' or 'basic'.")
        if self.estimate is None or np.shape(self.estimate) != np.shape(low):
            raise PlssmError(
                "interval: a basic interval needs the quantity at the estimate, which these draws "
                "come without; use kind='percentile'."
            )
        twice = 2 * self.estimate
        return twice - high, twice - low

    def reasons(self) -> dict[str, int]:
        """How many draws failed for which reason (numbers in the messages are left out)."""
        return dict(Counter(_NUMBER.sub("#", reason) for _, reason in self.failures))

    def table(self) -> pd.DataFrame:
        """One row per number of the quantity, or per fixed point of the fit."""
        if self.points is not None:
            return self.points.table()
        x = self._numbers()
        low, high = (np.ravel(limit) for limit in self.interval())
        known = self.estimate is not None and np.shape(self.estimate) == x.shape[1:]
        estimate = np.ravel(self.estimate) if known else np.full(low.shape, np.nan)
        places = list(np.ndindex(x.shape[1:]))
        names = [self.name + "".join(f"[{k}]" for k in place) for place in places]
        columns = {
            "estimate": estimate, "mean": np.ravel(self.mean), "sd": np.ravel(self.sd),
            "low": low, "median": np.ravel(self.median), "high": high,
        }  # fmt: skip
        table = pd.DataFrame(columns, index=pd.Index(names, name="quantity"))
        return table.assign(level=self.level, draws=self.draws, failed=self.failed_share)

    def _numbers(self) -> np.ndarray:
        """The values as an array that has at least one row."""
        if not isinstance(self.values, np.ndarray):
            raise CapabilityError(
                f"{self.name}: the values are objects, not numbers of one shape, so they have no "
                "mean and no interval; use .values, .table() or a quantity that is a number"
            )
        if not len(self.values):
            reasons = "; ".join(f"{n} times: {r}" for r, n in self.reasons().items())
            raise PlssmError(f"{self.name}: no draw worked ({reasons})")
        return self.values

    def __repr__(self) -> str:
        """Says the interval where there is one."""
        text = f"Uncertain({self.name}, {self.draws} draws by {self.method}"
        if isinstance(self.values, np.ndarray) and self.values.ndim == 1 and len(self.values):
            low, high = self.interval()
            text += f", median {self.median:.4g}, {self.level:.0%} in [{low:.4g}, {high:.4g}]"
        return text + (f", {self.failed_share:.1%} failed)" if self.failures else ")")


def _quantile(values: np.ndarray, weights: np.ndarray, probability: float) -> np.ndarray:
    """Quantiles over the first axis of values [n, ...]."""
    order = np.argsort(values, axis=0)
    ranked = np.take_along_axis(values, order, 0)
    total = np.cumsum(weights[order], axis=0)
    target = probability * total[-1]
    close = 1e-12 * len(weights)
    low = np.argmax(total >= target - close, axis=0)
    high = np.where(total[-1] > target + close, np.argmax(total > target + close, axis=0), low)
    lower, upper = (np.take_along_axis(ranked, k[None], 0)[0] for k in (low, high))
    return np.where(lower == upper, lower, 0.5 * (lower + upper))


def _plain(value: Any) -> Any:
    """A float where there is one number."""
    return float(value) if np.ndim(value) == 0 else value
