"""Iterated linearisation of single steps: modes of both states' joint density, kinks included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import plssm as ps
from plssm import observations as o


def kink_model(mean, *, noise=0.05, q=0.1):
    d = ps.dynamics.PLRNN.from_parameters(
        [0.9, 0.8], [[0.0, 1.5], [-1.5, 0.0]], h=[0.2, 0.1], process_noise=[q, q],
        initial_mean=mean, initial_noise=[0.5, 0.5],
    )  # fmt: skip
    x = o.Gaussian.from_parameters(np.eye(2), np.zeros(2), noise=[noise, noise])
    return ps.StateSpaceModel(d, {"x": x})


def two_step_joint(model, data):
    """Negative log joint density of the two states of a trial, its first datum missing."""
    d = model.dynamics
    y = data.values("x")[0][1]
    with torch.no_grad():
        m, p = d.initial.mean.numpy(), d.initial.noise.covariance.numpy()
        q, r = d.noise.covariance.numpy(), np.diag([0.05, 0.05])
    form = d.relu_form()

    def value(v):
        z, after = v[:2], v[2:]
        parts = ((z - m, p), (after - form.step(z), q), (y - after, r))
        return sum(0.5 * e @ np.linalg.solve(c, e) for e, c in parts)

    return value


@pytest.mark.parametrize(
    ("mean", "y"),
    [([0.3, -0.2], [-1.0, 0.4]), ([0.5, 0.5], [0.2, -1.5]), ([-0.1, 0.05], [0.4, 0.3]),
     ([0.05, -0.4], [0.35, -0.2])],
)  # fmt: skip
def test_an_iterated_step_is_a_mode_of_both_states(mean, y):
    model = kink_model(mean)
    data = ps.Dataset.from_arrays({"x": [np.array([[np.nan, np.nan], y])]})
    got = ps.smooth(model, data, causal=True, iterations=60)
    value = two_step_joint(model, data)
    best = min(
        (minimize(value, np.concatenate([start, y]), method="Nelder-Mead",
                  options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000,
                           "adaptive": True})
         for start in (mean, [0.2, 0.2], [-0.2, 0.2], [0.2, -0.2], [-0.2, -0.2])),
        key=lambda found: found.fun,
    )  # fmt: skip
    np.testing.assert_allclose(got.mean[0, 1], best.x[2:], atol=2e-5)
    once = ps.smooth(model, data, causal=True)
    torch.testing.assert_close(got.predicted_mean, once.predicted_mean, equal_nan=True)
    torch.testing.assert_close(got.mean[0, 0], once.mean[0, 0])


def test_a_mode_on_a_kink_is_found():
    """z1's mode is 0: both neighbouring regions lead across the kink."""
    d = ps.dynamics.ShallowPLRNN.from_parameters(
        [1.0], [[-2.0]], [[1.0]], h1=[0.0], h2=[0.0], clipped=False, process_noise=[0.01],
        initial_mean=[0.4], initial_noise=[1.0],
    )  # z' = -|z|  # fmt: skip
    x = o.Gaussian.from_parameters([[1.0]], [0.0], noise=[0.01])
    model = ps.StateSpaceModel(d, {"x": x})
    data = ps.Dataset.from_arrays({"x": [np.array([[np.nan], [1.0]])]})
    got = ps.smooth(model, data, causal=True, iterations=60)
    # z1 = 0, so that z2 is halfway between -|0| and the datum
    np.testing.assert_allclose(got.mean[0, 1, 0], 0.5, atol=1e-9)
    assert abs(float(ps.smooth(model, data, causal=True).mean[0, 1, 0]) - 0.5) > 0.1
