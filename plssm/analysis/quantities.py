"""Quantities of a model that uncertainty knows by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from plssm.analysis.cycle import Cycles
from plssm.analysis.cycles import fixed_points
from plssm.analysis.lyapunov import lyapunov_spectrum
from plssm.errors import CapabilityError, PlssmError

__all__ = ["NAMES", "named_quantity", "predicted_at"]

STEPS = 20_000  # of an orbit whose exponents are taken
DISCARD = 1000  # steps before a free run is looked at


def named_quantity(name: str, data: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    """A function of a model.

    Args:
        name: One of :data:`NAMES`.
        data: The data, for those that need them.
        options: Options of the function.

    Raises:
        PlssmError: If there is no such quantity.
        CapabilityError: If it needs data.
    """
    if name not in NAMES:
        raise PlssmError(
            f"uncertainty: no quantity {name!r}; a function or one of {sorted(NAMES)}"
        )
    function, needs_data = NAMES[name]
    if needs_data:
        if data is None:
            raise CapabilityError(f"uncertainty: {name!r} compares with data; pass data=...")
        options = {"data": data} | options
    return partial(function, **options)


def _lyapunov_spectrum(model: Any, **options: Any) -> np.ndarray:
    """All Lyapunov exponents [M]."""
    return lyapunov_spectrum(model.dynamics, **{"steps": STEPS} | options)


def _lyapunov_max(model: Any, **options: Any) -> float:
    """The largest Lyapunov exponent."""
    return float(_lyapunov_spectrum(model, **options)[0])


def _fixed_points(model: Any, **options: Any) -> Cycles:
    """The fixed points of the map."""
    return fixed_points(model.dynamics, **{"progress": False} | options)


def _free_run(model: Any, *, steps: int = 100, **options: Any) -> np.ndarray:
    """Expected observations of a noise-free run from the mean first state [steps, N]."""
    run = model.simulate(steps, noise=False, **options)
    return np.concatenate([run.values(name)[0] for name in model.observations], axis=-1)


def _d_stsp(
    model: Any,
    *,
    data: Any,
    modality: str | None = None,
    steps: int | None = None,
    discard: int = DISCARD,
    seed: int = 0,
    **options: Any,
) -> float:
    """State-space divergence of a noisy free run from the data."""
    from plssm.metrics import state_space_divergence

    name = next(iter(model.observations)) if modality is None else modality
    values = data.values(name)
    truth = [x[np.isfinite(x).all(-1)] for x in values]
    steps = sum(len(x) for x in truth) if steps is None else steps
    run = model.simulate(discard + steps, noise=True, dt=data.dt, seed=seed)
    options = {"floor": False} | options
    seen = run.values(name)[0][discard:]
    return float(state_space_divergence(truth=truth, pred=seen, **options))


def predicted_at(model: Any, states: np.ndarray) -> np.ndarray:
    """What all observation models predict at constant latent states [K, M], side by side [K, N].

    Positions in the latent space can be compared only between models that share it.
    """
    with torch.no_grad():
        z = torch.from_numpy(states)
        parts = [o.features(z) for o in model.observations.values()]
    return torch.cat(parts, -1).numpy()


NAMES: dict[str, tuple[Callable[..., Any], bool]] = {
    "d_stsp": (_d_stsp, True),
    "fixed_points": (_fixed_points, False),
    "free_run": (_free_run, False),
    "lyapunov_max": (_lyapunov_max, False),
    "lyapunov_spectrum": (_lyapunov_spectrum, False),
}
