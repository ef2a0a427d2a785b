"""Analysis of latent dynamics as dynamical systems."""

from __future__ import annotations

from plssm.analysis.lyapunov import lyapunov_spectrum

__all__ = ["lyapunov_spectrum"]
