"""A score that remembers how it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

__all__ = ["Measure"]


class Measure(float):
    """A float that carries its floor and the settings it depends on.

    It behaves as a plain float in arithmetic, arrays, tables and JSON. Printing it shows the
    floor (the value a perfect model would reach at this length) beside the score.

    Args:
        value: The score.
        floor: The score of truth against truth; NaN where it cannot be measured.
        references: What simple forecasts or runs score, by name ("fixed point", "persistence").
        settings: Everything the number depends on (lengths, bins, box, ...).
        per_step: [n] the score by forecast step, where that is natural.
        per_dimension: [N] the score by channel, where that is natural.

    Example:
        >>> score = Measure(0.25, floor=0.0625, settings={"bins": 30})
        >>> print(score)
        0.25 (floor 0.0625)
        >>> score + 1, score.settings["bins"]
        (1.25, 30)
    """

    floor: float
    references: dict[str, float]
    settings: dict
    per_step: np.ndarray | None
    per_dimension: np.ndarray | None

    def __new__(
        cls,
        value: float,
        *,
        floor: float = math.nan,
        references: Mapping[str, float] | None = None,
        settings: Mapping | None = None,
        per_step: np.ndarray | None = None,
        per_dimension: np.ndarray | None = None,
    ) -> Measure:
        """Make the float and attach what it was measured with."""
        self = super().__new__(cls, value)
        self.floor = float(floor)
        self.references = {name: float(score) for name, score in (references or {}).items()}
        self.settings = dict(settings or {})
        self.per_step = per_step
        self.per_dimension = per_dimension
        return self

    def __getnewargs_ex__(self) -> tuple[tuple, dict]:
        """Copy and pickle with everything attached."""
        return (float(self),), {
            "floor": self.floor,
            "references": self.references,
            "settings": self.settings,
            "per_step": self.per_step,
            "per_dimension": self.per_dimension,
        }

    def __str__(self) -> str:
        """Return the score with its floor and its references beside it."""
        floor = "unavailable" if math.isnan(self.floor) else f"{self.floor:.3g}"
        beside = [f"floor {floor}", *(f"{name} {v:.3g}" for name, v in self.references.items())]
        return f"{float(self):.4g} ({', '.join(beside)})"

    def __repr__(self) -> str:
        """Return an unambiguous form with the floor."""
        return f"Measure({float(self)!r}, floor={self.floor!r})"
