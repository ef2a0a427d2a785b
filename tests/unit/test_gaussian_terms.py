"""Gaussian observation terms against torch's density and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plssm.kernels.gaussian_terms import gaussian_terms


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(3, 40, 4, 3), (1, 30, 300, 90), (2, 1, 1, 1)])
def test_equals_log_density_and_its_gradient(shape, observed, known):
    trials, samples, channels, dim = shape
    rng = np.random.default_rng(channels)
    y = rng.normal(size=(trials, samples, channels))
    mask = rng.random(y.shape) < observed
    z = rng.normal(size=(trials, samples, dim))
    weight, bias = rng.normal(size=(channels, dim)), rng.normal(size=channels)
    variance = rng.uniform(0.5, 2.0, channels)
    extra = rng.normal(size=y.shape) if known else None
    squares, counts, score = gaussian_terms(y, mask, z, weight, bias, 1 / variance, known=extra)
    states = torch.tensor(z, requires_grad=True)
    features = states @ torch.tensor(weight).T + torch.tensor(bias)
    if known:
        features = features + torch.tensor(extra)
    density = torch.distributions.Normal(features, torch.tensor(variance).sqrt())
    entries = torch.where(torch.tensor(mask), density.log_prob(torch.tensor(y)), 0.0)
    wanted = entries.sum((1, 2))
    constant = (counts * np.log(2 * math.pi * variance)).sum(1)
    np.testing.assert_allclose(-0.5 * (squares + constant), wanted.detach(), rtol=1e-11)
    (gradient,) = torch.autograd.grad(wanted.sum(), states)
    np.testing.assert_allclose(score, gradient, atol=1e-9)
    np.testing.assert_array_equal(counts, mask.sum(1))


def test_states_of_absent_samples_may_be_missing():
    rng = np.random.default_rng(0)
    y, mask = rng.normal(size=(1, 5, 2)), np.ones((1, 5, 2), dtype=bool)
    y[0, 3:], mask[0, 3:] = np.nan, False
    z = rng.normal(size=(1, 5, 2))
    z[0, 3:] = np.nan
    results = gaussian_terms(y, mask, z, np.eye(2), np.zeros(2), np.ones(2))
    short = gaussian_terms(y[:, :3], mask[:, :3], z[:, :3], np.eye(2), np.zeros(2), np.ones(2))
    np.testing.assert_allclose(results[0], short[0])
    np.testing.assert_array_equal(results[2][0, 3:], 0.0)
