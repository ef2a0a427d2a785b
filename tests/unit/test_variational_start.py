"""Where variational inference begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM, start_search, variational_start
from plssm.inference.encoders import Encoder
from plssm.inference.modality_weights import temper
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import refresh_typical
from plssm.inference.variational_start import started_model, stretch


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


def test_stretches_of_long_data():
    """All of short data; the first part of the longest trial; some of many trials."""
    values = np.arange(30 * 1000.0).reshape(30, 1000, 1)
    many = ps.Dataset.from_arrays({"x": values}, dt=0.1)
    assert stretch(many).lengths.tolist() == [1000] * 5
    assert stretch(many).values("x")[:, 0, 0].tolist() == [0, 7e3, 14e3, 22e3, 29e3]
    assert stretch(many.select(trials=range(20))).lengths.tolist() == [1000] * 20
    lengths = (9000, 16_000, 100)
    ragged = ps.Dataset.from_arrays({"x": [np.arange(n)[:, None] + 0.5 for n in lengths]}, dt=0.1)
    some = stretch(ragged)
    assert some.lengths.tolist() == [5000] and some.trial_names == ragged.trial_names[1:2]
    uneven = [np.ones((n, 1)) * n for n in (100, 20_000, 20_001, 100)]
    assert stretch(ps.Dataset.from_arrays({"x": uneven}, dt=0.1)).lengths.tolist() == [5000, 5000]
    one = ps.Dataset.from_arrays({"x": np.arange(25_000.0)[None, :, None]}, dt=0.1)
    np.testing.assert_array_equal(stretch(one).values("x")[0, :, 0], np.arange(5000.0))


@pytest.mark.parametrize("engine", [ps.inference.EKF, ps.inference.VariationalInference])
def test_long_data_are_begun_on_a_stretch(engine, monkeypatch):
    """Most EM iterations see a stretch, two of them everything; what they give is as good."""
    truth = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters(
            A=[0.6, 0.5], W=[[0.0, 0.7], [-0.8, 0.0]], h=[0.2, 0.1], process_noise=[0.1, 0.1]
        ),
        {"x": ps.observations.Gaussian(3)},
    )
    data = truth.simulate(600, trials=2, seed=0)
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(4), {"x": ps.observations.Gaussian(3)})
    seen = []
    trainings = LaplaceEM.trainings

    def watched(self, model, some, *rest):
        seen.append((self.iterations, self.stages, int(some.lengths.sum())))
        return trainings(self, model, some, *rest)

    monkeypatch.setattr(LaplaceEM, "trainings", watched)
    options = {"start": "auto", "seed": 0, "iterations": 6}
    whole = started_model(fresh, data, **options)
    assert [n for *_, n in seen] == [1200]
    monkeypatch.setattr(variational_start, "LONG", 1000)
    for module in (start_search, variational_start):
        monkeypatch.setattr(module, "ENOUGH", 400)
    seen.clear()
    begun = started_model(fresh, data, **options)
    assert [n for *_, n in seen] == [400, 1200]
    assert seen[0][0] == 6 and [s.iterations for s in seen[1][1]] == [2]
    found, want = (float(ps.smooth(m, data).log_evidence.sum()) for m in (begun, whole))
    assert found > want - 0.1 * 1200
    seen.clear()
    engine(steps=6, checks=1, start_iterations=2, seed=0).fit(fresh, data, progress=False)
    assert [n for *_, n in seen] == [400, 1200]
    seen.clear()  # known maps, starts without iterations and counts see everything
    started_model(begun, data, start="auto", seed=0, iterations=6)
    started_model(fresh, data, start="auto", seed=0, iterations=0)
    spikes = {"x": np.random.default_rng(0).poisson(0.5, size=(2, 600, 2))}
    counts = ps.Dataset.from_arrays(spikes, kinds={"x": "count"})
    seen_by = {"x": ps.observations.Poisson(2, bin_seconds=1.0)}
    spiking = ps.StateSpaceModel(ps.dynamics.PLRNN(4), seen_by)
    started_model(spiking, counts, start="auto", seed=0, iterations=2)
    assert all(n == 1200 for *_, n in seen)
