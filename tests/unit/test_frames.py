"""Coordinates that a map predicts best: gradient, optimum beside the truth, frozen parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

import plssm as ps
from plssm.inference.frames import FrameFit, best_frames
from plssm.inference.hinge_placement import Whitened
from plssm.inference.starts import StartPath

TRUTH = {"A": [0.9, 0.85], "W": [[0.0, -0.5], [0.45, 0.0]], "h": [0.3, -0.2]}
MIX = np.array([[1.0, 0.6], [-0.4, 1.2]])


def observed_map(trials=1, steps=1000, inputs=0):
    """Noisy PLRNN states, and the state seen in oblique coordinates."""
    rng = np.random.default_rng(0)
    options = {"C": 0.3 * rng.normal(size=(2, inputs))} if inputs else {}
    dynamics = ps.dynamics.PLRNN.from_parameters(
        **TRUTH, **options, process_noise=[0.1, 0.1], initial_noise=[0.5, 0.5]
    )
    seen = ps.observations.Gaussian.from_parameters(MIX, [2.0, -1.0], noise=[1e-4, 1e-4])
    given = {"inputs": rng.normal(size=(trials, steps, inputs))} if inputs else {}
    data = ps.StateSpaceModel(dynamics, {"x": seen}).simulate(
        steps, trials=trials, seed=1, **given
    )
    z = np.ascontiguousarray(data.latent)
    return z, StartPath.certain(z @ MIX.T + np.array([2.0, -1.0]), data.batch()), data.batch()


def density(z):
    """Log density of a step: least squares of each unit on itself and the other's hinge."""
    total = 0.0
    for i, j in ((0, 1), (1, 0)):
        x = np.column_stack([z[:-1, i], np.maximum(z[:-1, j], 0.0), np.ones(len(z) - 1)])
        left = z[1:, i] - x @ np.linalg.lstsq(x, z[1:, i], rcond=None)[0]
        total -= 0.5 * np.log((left**2).mean())
    return total


@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("centred", [False, True])
def test_gradient_is_that_of_finite_differences(inputs, centred):
    _, state, batch = observed_map(trials=2, steps=60, inputs=inputs)
    dynamics = ps.dynamics.PLRNN(2, inputs, mean_centered=centred)
    dynamics.A.requires_grad_(False)
    fit = FrameFit.of(Whitened(state, batch.time_mask.numpy()), dynamics, batch)
    point = fit.start(np.random.default_rng(2))
    wanted = approx_fprime(point, lambda p: fit.loss(p)[0], 1e-7)
    np.testing.assert_allclose(fit.loss(point)[1], wanted, atol=2e-5)


def test_loss_is_the_log_density_of_least_squares():
    z, state, batch = observed_map()
    white = Whitened(state, batch.time_mask.numpy())
    fit = FrameFit.of(white, ps.dynamics.PLRNN(2), batch)
    frame = np.linalg.inv(MIX) @ np.linalg.inv(white.map)  # z of whitened coordinates
    shift = np.linalg.inv(MIX) @ np.array([2.0, -1.0])
    loss = fit.loss(np.concatenate([frame.ravel(), shift]))[0]
    assert -loss == pytest.approx(density(z[0]) + np.linalg.slogdet(frame)[1], abs=1e-3)


def test_the_best_frame_is_that_of_the_truth():
    """Up to order and positive scale; its density is at least that of the true coordinates."""
    z, state, batch = observed_map()
    paths = best_frames(
        state, batch, ps.dynamics.PLRNN(2), count=3, candidates=20, rng=np.random.default_rng(0)
    )
    found = paths[0].mean[0]
    correlations = np.abs(np.corrcoef(z[0].T, found.T)[:2, 2:]).max(1)
    assert correlations.min() > 0.999
    volume = [
        np.linalg.slogdet(np.linalg.lstsq(z[0] - z[0].mean(0), p - p.mean(0), rcond=None)[0])[1]
        for p in (found, z[0])
    ]
    assert density(found) + volume[0] > density(z[0]) + volume[1] - 1e-4
    np.testing.assert_allclose(found.std(0), 1.0, rtol=1e-6)
    scores = []
    for p in (path.mean[0] for path in paths):
        turned = np.linalg.lstsq(z[0] - z[0].mean(0), p - p.mean(0), rcond=None)[0]
        scores.append(density(p) + np.linalg.slogdet(turned)[1])
    assert scores == sorted(scores, reverse=True)


def test_known_coefficients_keep_the_scale():
    """With W known the coordinates are those of the truth, scale and all."""
    z, state, batch = observed_map(steps=4000)
    dynamics = ps.dynamics.PLRNN(2)
    with torch.no_grad():
        dynamics.W.copy_(torch.tensor(TRUTH["W"]))
        dynamics.h.copy_(torch.tensor(TRUTH["h"]))
    dynamics.W.requires_grad_(False)
    dynamics.h.requires_grad_(False)
    paths = best_frames(
        state, batch, dynamics, count=1, candidates=20, rng=np.random.default_rng(0)
    )
    assert np.sqrt(((paths[0].mean - z) ** 2).mean()) < 0.1 * z.std()
