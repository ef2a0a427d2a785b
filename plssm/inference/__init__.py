"""Inference engines: interchangeable ways to fit a model and to infer its latent paths."""

from __future__ import annotations

from plssm.inference.base import Engine
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, held_stages, plain_stages

__all__ = [
    "Engine",
    "LaplaceEM",
    "Stage",
    "annealed_stages",
    "held_stages",
    "plain_stages",
    "smooth",
]
