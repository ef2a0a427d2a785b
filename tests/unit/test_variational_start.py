"""Where variational inference begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.encoders import Encoder
from plssm.inference.modality_weights import temper
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import refresh_typical
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


def test_typical_states_have_the_moments_of_states():
    spec = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    batch = spec.simulate(30, trials=2, seed=0).batch()
    guide = Recognition(Encoder.for_model(spec, batch, network="none"), 2, chain="learned")
    z = np.random.default_rng(1).standard_normal((50, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + [3.0, 0.0]
    refresh_typical(guide, spec, torch.from_numpy(z))
    spread = np.cov(z.T, bias=True) + spec.dynamics.noise.covariance.detach().numpy()
    np.testing.assert_allclose(guide.typical_mean.detach().numpy(), z.mean(0))
    precision = guide.typical_precision.detach().numpy()
    np.testing.assert_allclose(precision @ spread, np.eye(2), atol=1e-12)
