"""One page about fits: data, training, posteriors, free runs, scores and dynamics."""

from __future__ import annotations

from plssm.reporting.document import report

__all__ = ["report"]
