"""Inference engines: interchangeable ways to fit a model and to infer its latent paths."""

from __future__ import annotations

from plssm.inference.base import Engine
from plssm.inference.forcing import GTF, ForcingScheme, SparseTF
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, held_stages, plain_stages
from plssm.inference.teacher_forcing import TeacherForcing

__all__ = [
    "GTF",
    "Engine",
    "ForcingScheme",
    "LaplaceEM",
    "SparseTF",
    "Stage",
    "TeacherForcing",
    "annealed_stages",
    "held_stages",
    "plain_stages",
    "smooth",
]
