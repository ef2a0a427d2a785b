"""Contract test cases: what every dynamics, observation model and engine must do.

Example:
    A test file for a class of your own is four lines::

        from plssm.testing import DynamicsContract

        class TestMyDynamics(DynamicsContract):
            def create(self):
                return MyDynamics(dim=3)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

_HOMES = {
    "DynamicsContract": "plssm.testing.dynamics",
    "EngineContract": "plssm.testing.engine",
    "ObservationContract": "plssm.testing.observations",
}

__all__ = ["DynamicsContract", "EngineContract", "ObservationContract"]

pytest.register_assert_rewrite(*_HOMES.values())


def __getattr__(name: str) -> Any:
    """Load a contract when it is first asked for, after its assertions are prepared."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'plssm.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The contracts."""
    return sorted(__all__)
