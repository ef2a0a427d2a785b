"""Where variational inference begins."""

from __future__ import annotations

import numpy as np
import pytest

import plssm as ps
from plssm.inference.modality_weights import temper
from plssm.inference.variational_start import started_model


@pytest.mark.parametrize("dynamics", [ps.dynamics.LinearDynamics, ps.dynamics.AlmostLinearRNN])
def test_start_values_keep_the_weights_of_modalities(dynamics):
    """They are in the model when it is handed over; LaplaceEM's own default would reset them."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(3, 20, n)) for name, n in (("x", 3), ("u", 2))}
    data = ps.Dataset.from_arrays(arrays)
    parts = {"x": ps.observations.Gaussian(3), "u": ps.observations.Gaussian(2)}
    options = {} if dynamics is ps.dynamics.LinearDynamics else {"relu_units": 1}
    model = ps.StateSpaceModel(dynamics(2, **options), parts)
    temper(model, data, {"u": 0.25})
    begun = started_model(model, data, start="auto", seed=0)
    assert {n: float(o.tempering) for n, o in begun.observations.items()} == {"x": 1, "u": 0.25}
    assert float(parts["u"].tempering) == 0.25
