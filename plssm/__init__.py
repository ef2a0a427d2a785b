"""Piecewise-linear state-space models of neural recordings: fit, predict, analyse.

The public names are loaded when they are first used, so that ``import plssm`` is quick and does
not import torch.

Example:
    >>> import plssm as ps
    >>> "Dataset" in dir(ps)
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "Events",
    "Fit",
    "Recording",
    "Signal",
    "StateSpaceModel",
    "__version__",
    "analysis",
    "compare",
    "data",
    "default_model",
    "default_observations",
    "dynamics",
    "inference",
    "metrics",
    "observations",
    "plot",
    "report",
    "smooth",
    "testing",
]

if TYPE_CHECKING:
    from plssm import (
        analysis,
        data,
        dynamics,
        inference,
        metrics,
        observations,
        plot,
        testing,
    )
    from plssm.comparison import compare
    from plssm.data import Dataset, Events, Recording, Signal
    from plssm.defaults import default_model, default_observations
    from plssm.fit import Fit
    from plssm.inference.smoothers import smooth
    from plssm.model import StateSpaceModel
    from plssm.reporting import report

_HOMES = {
    "Dataset": "plssm.data",
    "Events": "plssm.data",
    "Fit": "plssm.fit",
    "Recording": "plssm.data",
    "Signal": "plssm.data",
    "StateSpaceModel": "plssm.model",
    "compare": "plssm.comparison",
    "default_model": "plssm.defaults",
    "default_observations": "plssm.defaults",
    "report": "plssm.reporting",
    "smooth": "plssm.inference.smoothers",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return import_module(f"plssm.{name}")
    raise AttributeError(f"module 'plssm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
