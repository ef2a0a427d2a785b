"""Several fits measured by one yardstick, on the same held-out data."""

from __future__ import annotations

from plssm.comparison.table import compare

__all__ = ["compare"]
