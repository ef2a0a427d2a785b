"""Inference engines: interchangeable ways to fit a model and to infer its latent paths.

What needs Pyro is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plssm.inference.base import Engine
from plssm.inference.ekf import EKF
from plssm.inference.forcing import GTF, ForcingScheme, SparseTF
from plssm.inference.gauss_newton import GaussNewton
from plssm.inference.laplace_em import LaplaceEM
from plssm.inference.multimodal_forcing import MTF
from plssm.inference.objectives import Innovation, Objective, OpenLoop
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, held_stages, plain_stages
from plssm.inference.teacher_forcing import TeacherForcing

if TYPE_CHECKING:
    from plssm.inference.pyro_bridge import to_pyro
    from plssm.inference.variational import VariationalInference

__all__ = [
    "EKF",
    "GTF",
    "MTF",
    "Engine",
    "ForcingScheme",
    "GaussNewton",
    "Innovation",
    "LaplaceEM",
    "Objective",
    "OpenLoop",
    "SparseTF",
    "Stage",
    "TeacherForcing",
    "VariationalInference",
    "annealed_stages",
    "held_stages",
    "plain_stages",
    "smooth",
    "to_pyro",
]

_HOMES = {
    "VariationalInference": "plssm.inference.variational",
    "to_pyro": "plssm.inference.pyro_bridge",
}


def __getattr__(name: str) -> Any:
    """Load a name that needs Pyro when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'plssm.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
