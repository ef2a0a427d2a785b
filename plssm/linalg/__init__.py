"""Linear algebra of long, narrow, symmetric positive definite systems."""

from __future__ import annotations

from plssm.linalg.banded import BandedFactor, BlockBanded
from plssm.linalg.block_tridiagonal import ChainFactor, factor

__all__ = ["BandedFactor", "BlockBanded", "ChainFactor", "factor"]
