"""Predictive mixtures against closed forms of Gaussian mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

import plssm as ps
from plssm.prediction import Prediction


def make(draws=50, seed=0, trials=2, steps=3):
    observation = ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.2, 0.5])
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(draws, trials, steps, 2, generator=generator, dtype=torch.float64)
    return Prediction(observation, features, np.arange(1.0, steps + 1), seed=4), features


def test_moments_and_density_of_a_gaussian_mixture():
    made, features = make()
    noise = torch.tensor([0.2, 0.5], dtype=torch.float64)
    mean, variance = made.moments()
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(variance, features.var(0, correction=0) + noise)
    torch.testing.assert_close(made.mean, mean)
    y = np.random.default_rng(0).normal(size=(2, 3, 2))
    y[0, 1, 1] = np.nan
    got = made.log_prob(y).numpy()
    want = np.log(norm.pdf(y, features.numpy(), np.sqrt(noise.numpy())).mean(0))
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert np.isnan(got[0, 1, 1])
    assert np.isfinite(np.delete(got.ravel(), 3)).all()


def test_samples_have_the_moments_and_reproduce():
    made, _ = make(draws=30_000)
    mean, variance = made.moments()
    assert made.samples.shape == (30_000, 2, 3, 2)
    assert made.samples is made.samples
    error = 5 * (variance / 30_000).sqrt()
    assert ((made.samples.mean(0) - mean).abs() < error).all()
    np.testing.assert_allclose(made.samples.var(0).numpy(), variance.numpy(), rtol=0.06)
    few, _ = make()
    assert torch.equal(few.sample(7, seed=1), few.sample(7, seed=1))
    assert not torch.equal(few.sample(7, seed=1), few.sample(7, seed=2))
    assert few.sample(170).shape == (170, 2, 3, 2)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_intervals_hold_their_share_of_a_known_distribution(level):
    observation = ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.2, 0.5])
    made = Prediction(observation, torch.zeros(20_000, 1, 1, 2).double(), np.zeros(1))
    low, high = made.interval(level)
    half = norm.ppf(0.5 + level / 2) * np.sqrt([0.2, 0.5])
    np.testing.assert_allclose(low[0, 0].numpy(), -half, rtol=0.05)
    np.testing.assert_allclose(high[0, 0].numpy(), half, rtol=0.05)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95])
def test_impossible_levels_are_refused(level):
    with pytest.raises(ValueError, match="level"):
        make()[0].interval(level)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    make()[0].interval(0.9)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "draws=50" in repr(make()[0])
