"""What every test can count on: quiet plots, no leaked global state, recordings where present."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]
_BESIDE = ROOT.parent / "shared" / "data"
if "PLSSM_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["PLSSM_DATA"] = str(_BESIDE)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def recordings_folder() -> Path:
    """The folder of the recordings; the test is skipped where there is none."""
    folder = os.environ.get("PLSSM_DATA")
    if not folder:
        pytest.skip("PLSSM_DATA is not set: no recordings on this machine")
    return Path(folder)


@pytest.fixture(autouse=True)
def _no_leaked_state():
    """Fail a test that changes torch's default dtype; close the figures it opened."""
    import torch

    before = torch.get_default_dtype()
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(before)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    assert after == before, "the test changed torch's default dtype"
