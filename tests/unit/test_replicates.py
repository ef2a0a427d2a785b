"""Data drawn like others: trials, clocks, inputs and gaps are theirs, values the model's."""

from __future__ import annotations

import numpy as np
import pytest

import plssm as ps
from plssm.errors import DataError, PlssmError
from plssm.inference.replicates import replicate


def mixed():
    """Counts at every step, labels at some, two inputs, gaps, ragged trials (one of one step)."""
    rng = np.random.default_rng(0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.8, 0.6], [[0.0, 0.5], [-0.5, 0.0]], C=rng.normal(size=(2, 2)), process_noise=[0.1, 0.2]
    )
    counts = ps.observations.Poisson(3, bin_seconds=0.5)
    labels = ps.observations.Categorical(3)
    model = ps.StateSpaceModel(dynamics, {"spikes": counts, "label": labels})
    for observation in (counts, labels):
        observation.bind(2)
    lengths, at = (9, 5, 1), [np.array([0, 4, 8]), np.array([2]), np.array([0])]
    spikes = [rng.poisson(1.0, size=(n, 3)).astype(float) for n in lengths]
    spikes[0][2:4, 1] = np.nan
    label = [np.ones((len(a), 1)) for a in at]
    data = ps.Dataset.from_arrays(
        {"spikes": spikes, "label": label}, dt=0.5, kinds={"spikes": "count", "label": "label"},
        inputs=[rng.normal(size=(n, 2)) for n in lengths],
        times={"label": [0.5 * a for a in at]}, check_channels=False,
    )  # fmt: skip
    return model, data


def test_everything_but_the_values_is_that_of_the_data():
    model, data = mixed()
    made = replicate(model, data, seed=1)
    assert made.dt == data.dt and dict(made.kinds) == dict(data.kinds)
    np.testing.assert_array_equal(made.lengths, data.lengths)
    for one, other in zip(made, data, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        assert one.latent.shape == (other.length, 2)
        for name in data.names:
            np.testing.assert_array_equal(one.steps(name), other.steps(name))
            np.testing.assert_array_equal(np.isnan(one.values[name]), np.isnan(other.values[name]))
    again, other = replicate(model, data, seed=1), replicate(model, data, seed=2)
    np.testing.assert_array_equal(made.values("spikes"), again.values("spikes"))
    assert not np.array_equal(made.values("spikes"), other.values("spikes"), equal_nan=True)


def test_moments_are_those_of_the_stationary_process():
    """z' = .8 z + e, y = 2 z + v: variance of y and its covariance with the next one."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A=[[0.8]], process_noise=[0.36], initial_noise=[1.0]
    )
    seen = ps.observations.Gaussian.from_parameters([[2.0]], noise=[0.5])
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = ps.Dataset.from_arrays({"x": np.zeros((40, 500, 1))}, check_channels=False)
    x = replicate(model, data, seed=0).values("x")[..., 0]
    assert x.var() == pytest.approx(4.5, rel=0.05)
    assert (x[:, 1:] * x[:, :-1]).mean() == pytest.approx(3.2, rel=0.06)


def test_bold_and_held_out_entries():
    dynamics = ps.dynamics.LinearDynamics.from_parameters(0.5 * np.eye(2), process_noise=[1, 1])
    model = ps.StateSpaceModel(dynamics, {"bold": ps.observations.BOLD(3, tr_seconds=2.0)})
    model.observations["bold"].bind(2)
    data = model.simulate(20, dt=2.0, seed=0).hold_out("bold", channels=[1])
    made = replicate(model, data, seed=1)
    values = made.values("bold")
    assert np.isnan(values[:, :, 1]).all() and np.isfinite(values[:, :, [0, 2]]).all()
    assert not made[0].hidden


def test_refusals():
    model, data = mixed()
    with pytest.raises((DataError, PlssmError)):
        replicate(model, ps.Dataset.from_arrays({"other": np.zeros((5, 1))}), seed=0)
    wild = ps.dynamics.PLRNN.from_parameters([40.0], [[0.0]], initial_mean=[1.0])
    seen = {"x": ps.observations.Gaussian.from_parameters([[1.0]], noise=[1.0])}
    long = ps.Dataset.from_arrays({"x": np.zeros((400, 1))}, check_channels=False)
    with pytest.raises(PlssmError, match="finite"):
        replicate(ps.StateSpaceModel(wild, seen), long, seed=0)
