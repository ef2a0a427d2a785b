"""Predictive mixtures against closed forms of Gaussian mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, poisson, t

import plssm as ps
from plssm.observations.counts.models import Poisson
from plssm.prediction import Prediction
from plssm.prediction.predictors import GivenPredictors


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


def test_probability_integral_transform_of_a_gaussian_mixture():
    made, features = make()
    y = np.random.default_rng(0).normal(size=(2, 3, 2))
    y[1, 0, 0] = np.nan
    want = norm.cdf(y, features.numpy(), np.sqrt([0.2, 0.5])).mean(0)
    below, upto = made.cdf(y)
    for got in (below, upto, made.pit(y)):
        np.testing.assert_allclose(got.numpy(), np.where(np.isnan(y), np.nan, want), rtol=1e-10)


def test_distribution_function_of_counts_and_its_randomised_transform():
    """Places among draws are within Monte-Carlo error of the mixture's distribution function."""
    model = Poisson.from_parameters([[1.0], [0.5]], [0.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 2, 4, 1, generator=generator, dtype=torch.float64)
    made = Prediction(model, model.features(z).detach(), np.arange(4.0))
    y = np.random.default_rng(1).integers(0, 5, size=(2, 4, 2)).astype(float)
    y[0, 0, 1] = np.nan
    rate = np.exp(z.numpy() * [1.0, 0.5] + [0.0, 1.0])
    seen = np.isfinite(y)
    below, upto = (e.numpy() for e in made.cdf(y))
    for got, at in ((upto, y), (below, y - 1)):
        want = poisson.cdf(at, rate).mean(0)
        np.testing.assert_allclose(got[seen], want[seen], atol=4.5 * 0.5 / np.sqrt(3000))
        assert np.isnan(got[0, 0, 1])
    u = made.pit(y, seed=3).numpy()
    assert (below[seen] <= u[seen]).all()
    assert (u[seen] <= upto[seen]).all()
    assert not np.array_equal(u[seen], made.pit(y, seed=4).numpy()[seen])


def test_transforms_of_draws_from_the_prediction_itself_are_uniform():
    model = Poisson.from_parameters([[1.0]], [0.3])
    z = torch.randn(400, 1, 1500, 1, generator=torch.Generator().manual_seed(1)).double()
    made = Prediction(model, model.features(z).detach(), np.arange(1500.0))
    rng = np.random.default_rng(2)
    y = rng.poisson(np.exp(rng.normal(size=(1, 1500, 1)) + 0.3)).astype(float)
    assert kstest(made.pit(y).numpy().ravel(), "uniform").pvalue > 0.01
    assert kstest(made.pit(y + 1).numpy().ravel(), "uniform").pvalue < 1e-6


def test_ragged_predictions_are_nan_beyond_each_trial():
    made, features = make(trials=3)
    ragged = Prediction(
        ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.2, 0.5]),
        GivenPredictors(features, [3, 0, 1]),
        np.arange(3.0),
        seed=4,
    )
    mask = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    assert torch.equal(ragged.mask, mask)
    for got, want in zip(ragged.moments(), made.moments()):
        expected = torch.where(mask[..., None], want, torch.nan)
        torch.testing.assert_close(got, expected, equal_nan=True)
    assert torch.equal(torch.isfinite(ragged.samples).all(0).all(-1), mask)
    assert torch.equal(torch.isfinite(ragged.interval()[0]).all(-1), mask)
    assert torch.isfinite(made.mask).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_samples_at_all_and_single_precision(dtype):
    observation = ps.observations.Gaussian.from_parameters(np.eye(2), noise=0.1).to(dtype)
    none = Prediction(observation, torch.zeros(5, 3, 0, 2, dtype=dtype), np.zeros(0))
    assert none.mean.shape == (3, 0, 2)
    assert none.sample(7).shape == (7, 3, 0, 2)
    assert none.log_prob(np.zeros((3, 0, 2))).shape == (3, 0, 2)
    one = Prediction(observation, torch.zeros(5, 3, 1, 2, dtype=dtype), np.zeros(1))
    assert one.mean.dtype == dtype
    want = norm.logpdf(0.5, 0.0, np.sqrt(0.1))
    got = one.log_prob(np.full((3, 1, 2), 0.5)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_observations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="got observations"):
        make()[0].log_prob(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="describes numbers"):
        assert make()[0].probabilities


def test_a_distribution_without_distribution_function_is_ranked_among_draws():
    class Heavy(ps.observations.ObservationModel):
        def distribution(self, features):
            return torch.distributions.StudentT(4.0, features, 0.5)

    model = Heavy(1).bind(1)
    made = Prediction(model, torch.zeros(3000, 1, 5, 1).double(), np.zeros(5))
    y = np.array([-2.0, -0.5, 0.0, 0.3, 1.0])[None, :, None]
    want = t.cdf(y / 0.5, 4.0)
    np.testing.assert_allclose(made.pit(y).numpy(), want, atol=4.5 * 0.5 / np.sqrt(3000))
