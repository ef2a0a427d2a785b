"""Defaults of observation models, tried on models that are nothing but a distribution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
import torch.distributions as D
from torch import nn

from plssm.data.batch import Modality
from plssm.errors import CapabilityError, ShapeError
from plssm.observations import ObservationModel
from plssm.observations.clock import gather, scatter
from plssm.observations.learning.quadrature import channelwise_moments, gauss_hermite
from plssm.testing import ObservationContract


class LogRate(ObservationModel):
    """Counts with rate exp(features)."""

    def distribution(self, features):
        return D.Poisson(features.exp())


class Softmax(ObservationModel):
    """One label out of several; the last level is the reference."""

    def __init__(self, levels):
        super().__init__(1, predictors=levels - 1)

    def distribution(self, features):
        logits = nn.functional.pad(features, (0, 1))
        return D.Categorical(logits=logits.unsqueeze(-2))


class RectifiedLaplace(ObservationModel):
    """Laplace noise around a rectified read-out with nuisance regressors."""

    def __init__(self, channels):
        super().__init__(channels, readout="relu", nuisance=2)
        self.log_scale = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def distribution(self, features):
        return D.Laplace(features, self.log_scale.exp())


class Positive(ObservationModel):
    """A support that does not contain zero."""

    fill = 1.0

    def distribution(self, features):
        return D.LogNormal(features, 0.5)


class SharedVariance(ObservationModel):
    """As many predictors as channels, but coupled: the spread is that of all predictors."""

    coupled = True

    def distribution(self, features):
        scale = (0.1 * features.mean(-1, keepdim=True)).exp()
        return D.Normal(features, scale.expand_as(features))


class TestLogRate(ObservationContract):
    def create(self):
        return LogRate(4)

    def reference(self, features, y):
        return scipy.stats.poisson(np.exp(features)).logpmf(y)

    def simulate(self, features, rng):
        return rng.poisson(np.exp(features))


class TestSoftmax(ObservationContract):
    def create(self):
        return Softmax(4)

    def reference(self, features, y):
        logits = np.pad(features, ((0, 0), (0, 1)))
        table = scipy.special.log_softmax(logits, axis=-1)
        return np.take_along_axis(table, y.astype(int), axis=-1)


class TestRectifiedLaplace(ObservationContract):
    def create(self):
        return RectifiedLaplace(3)

    def reference(self, features, y):
        return scipy.stats.laplace(features, self.model.log_scale.detach().exp()).logpdf(y)


class TestPositive(ObservationContract):
    def create(self):
        return Positive(3)

    def reference(self, features, y):
        return scipy.stats.lognorm(0.5, scale=np.exp(features)).logpdf(y)


class TestSharedVariance(ObservationContract):
    def create(self):
        return SharedVariance(3)


def _counts(seed=0, trials=3, steps=40):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(trials, steps, 2, generator=generator, dtype=torch.float64)
    weight = torch.tensor([[0.6, -0.2], [0.1, 0.5]], dtype=torch.float64)
    y = torch.poisson((z @ weight.mT + 0.3).exp(), generator=generator)
    return z, y, weight


def test_expectation_of_log_rate_in_closed_form():
    """E[y eta - exp(eta)] = y m - exp(m + v / 2)."""
    z, y, _ = _counts()
    model = LogRate(2).bind(2)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    root = torch.randn(*z.shape, 2, generator=torch.Generator().manual_seed(2)).double()
    covariance = 0.3 * root @ root.mT
    with torch.no_grad():
        eta = model.features(z)
        variance = torch.einsum("btij,ni,nj->btn", covariance, model.weight, model.weight)
        wanted = y * eta - (eta + variance / 2).exp() - torch.lgamma(y + 1)
    got = model.expected_log_prob(Modality(y, mask), z, covariance)
    torch.testing.assert_close(got, (wanted * mask).sum((1, 2)), rtol=1e-6, atol=1e-6)


def test_moments_of_log_rate_in_closed_form():
    """Log-normal mixing: Cov(y_i, y_j) = E_i E_j (exp(c_ij) - 1) + delta_ij E_i."""
    mean = torch.tensor([[0.2, -0.4, 1.0]], dtype=torch.float64)
    root = torch.tensor([[0.5, 0, 0], [0.3, 0.4, 0], [-0.2, 0.1, 0.6]], dtype=torch.float64)
    covariance = (root @ root.mT)[None]
    first, second = LogRate(3).moments(mean, covariance)
    expected = (mean + torch.diagonal(covariance, dim1=1, dim2=2) / 2).exp()
    wanted = expected[:, :, None] * expected[:, None, :] * torch.expm1(covariance)
    torch.testing.assert_close(first, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(second, wanted + torch.diag_embed(expected), rtol=1e-9, atol=1e-12)


def test_moments_with_perfectly_correlated_and_constant_predictors():
    covariance = torch.tensor([[[1.0, 1.0, 0], [1.0, 1.0, 0], [0, 0, 0]]], dtype=torch.float64)
    first, second = channelwise_moments(
        lambda eta: D.Normal(eta**2, 1e-6), torch.zeros(1, 3, dtype=torch.float64), covariance
    )
    torch.testing.assert_close(first[0], torch.tensor([1.0, 1.0, 0.0]).double())
    wanted = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(second[0], wanted, rtol=1e-10, atol=1e-10)


def test_moments_of_a_softmax_by_brute_force():
    """Against a tensor grid of Gauss-Hermite nodes in both predictors."""
    model = Softmax(3)
    mean = torch.tensor([0.3, -0.5], dtype=torch.float64)
    root = torch.tensor([[0.7, 0.0], [0.3, 0.5]], dtype=torch.float64)
    first, second = model.moments(mean[None], (root @ root.mT)[None])
    nodes, weights = gauss_hermite(30)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    weight = np.outer(weights, weights).ravel()
    eta = mean.numpy() + grid @ root.numpy().T
    p = weight @ scipy.special.softmax(np.pad(eta, ((0, 0), (0, 1))), axis=-1)
    wanted = p @ np.arange(3)
    np.testing.assert_allclose(first.item(), wanted, atol=2e-4)
    np.testing.assert_allclose(second.item(), p @ np.arange(3) ** 2 - wanted**2, atol=2e-4)


def test_init_from_finds_the_maximum_likelihood_regression():
    """Against Newton's method for Poisson regression, written out."""
    z, y, _ = _counts(steps=200)
    model = LogRate(2).bind(2)
    model.init_from(Modality(y, torch.ones_like(y, dtype=torch.bool)), z)
    x = np.column_stack([z.reshape(-1, 2).numpy(), np.ones(600)])
    for i in range(2):
        beta = np.zeros(3)
        for _ in range(30):
            rate = np.exp(x @ beta)
            beta += np.linalg.solve(
                x.T @ (x * rate[:, None]), x.T @ (y[..., i].numpy().ravel() - rate)
            )
        got = [*model.weight[i].tolist(), model.bias[i].item()]
        np.testing.assert_allclose(got, beta, atol=1e-5)


def test_separable_labels_stay_finite():
    z = torch.linspace(-3, 3, 40, dtype=torch.float64)[None, :, None]
    y = (z > 0.1).double()
    model = Softmax(2).bind(1)
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    for _ in range(3):
        model.m_step(m, z, torch.full((1, 40, 1, 1), 1e-4, dtype=torch.float64))
    assert float(model.log_prob(m, z).detach()) > -1.0
    assert float(model.weight.detach().abs().max()) < 1e3


def test_a_useless_m_step_leaves_the_parameters():
    """Where the objective is not finite, nothing moves."""

    class Broken(LogRate):
        def distribution(self, features):
            return D.Normal(features, 1e308 * self.weight.sum().square().clamp_min(10.0))

    model = Broken(1).bind(1)
    before = model.weight.detach().clone()
    y = torch.zeros(1, 3, 1, dtype=torch.float64)
    model.m_step(Modality(y, torch.ones_like(y, dtype=torch.bool)), y, None)
    assert torch.equal(model.weight, before)


def test_init_from_starts_where_the_data_are():
    """Heavy-tailed data far from zero, where the gradient of a fresh model points nowhere."""

    class Heavy(ObservationModel):
        def __init__(self, channels):
            super().__init__(channels)
            self.log_scale = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

        def distribution(self, features):
            return D.StudentT(3.0, features, self.log_scale.exp())

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 200, 2, generator=generator, dtype=torch.float64)
    weight = torch.tensor([[300.0, -50.0]], dtype=torch.float64)
    noise = torch.randn(3, 200, 1, generator=generator, dtype=torch.float64)
    y = z @ weight.mT + 1e4 + 5 * noise
    y[:, ::40] += 1e4
    model = Heavy(1).bind(2)
    model.init_from(Modality(y, torch.ones_like(y, dtype=torch.bool)), z)
    torch.testing.assert_close(model.weight.detach(), weight, atol=1.0, rtol=0)
    assert abs(float(model.bias.detach()) - 1e4) < 1.0
    assert 3 < float(model.log_scale.detach().exp()) < 6


def test_kinks_are_left_to_a_method_without_curvature():
    """Laplace noise around a known path: the end is the median regression."""

    class Kinked(ObservationModel):
        def distribution(self, features):
            return D.Laplace(features, 1.0)

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 101, 1, generator=generator, dtype=torch.float64)
    y = 2 * z - 1 + torch.randn(z.shape, generator=generator, dtype=torch.float64) ** 3
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    model = Kinked(1).bind(1)
    model.init_from(m, z)
    columns = np.column_stack([z[0].numpy(), np.ones(101)])
    target = y[0, :, 0].numpy()
    wanted = scipy.optimize.linprog(  # the sum of absolute residuals as a linear program
        np.r_[np.zeros(2), np.ones(202)],
        A_eq=np.hstack([columns, np.eye(101), -np.eye(101)]),
        b_eq=target,
        bounds=[(None, None)] * 2 + [(0, None)] * 202,
    ).fun
    loss = -float(model.log_prob(m, z).detach()) - 101 * np.log(2)
    assert wanted - 1e-6 <= loss < wanted * 1.02


def test_a_model_with_memory_needs_its_own_expectation():
    class Remembering(LogRate):
        def memory(self, dt):
            return 2

    z, y, _ = _counts()
    model = Remembering(2).bind(2)
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    for call in (model.m_step, model.expected_log_prob):
        with pytest.raises(CapabilityError, match="2 earlier latent steps.*must override"):
            call(m, z, None)


def test_only_labels_have_class_probabilities():
    with pytest.raises(CapabilityError, match="LogRate has no class probabilities"):
        LogRate(2).probabilities(torch.zeros(3, 2))


def test_nothing_observed_and_nothing_free():
    z, y, _ = _counts()
    nothing = Modality(y, torch.zeros_like(y, dtype=torch.bool))
    model = LogRate(2).bind(2)
    before = model.weight.detach().clone()
    model.m_step(nothing, z, None)
    model.init_from(nothing, z)
    assert torch.equal(model.weight, before)
    model.requires_grad_(False)
    model.m_step(Modality(y, ~nothing.mask), z, None)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("event", [1, 2])
def test_scatter_is_the_adjoint_of_gather(event):
    generator = torch.Generator().manual_seed(0)
    shape = (2,) * event
    clock = torch.randint(0, 5, (3, 8), generator=generator)
    values = torch.randn(3, 5, *shape, generator=generator, dtype=torch.float64)
    other = torch.randn(3, 8, *shape, generator=generator, dtype=torch.float64)
    left = (gather(values, clock, 8, event=event) * other).sum()
    right = (values * scatter(other, clock, 5)).sum()
    torch.testing.assert_close(left, right)
    for b in range(3):
        for i in range(8):
            assert torch.equal(gather(values, clock, 8, event=event)[b, i], values[b, clock[b, i]])


def test_fewer_samples_than_steps_without_a_clock():
    values = torch.arange(6.0).reshape(1, 3, 2)
    assert torch.equal(gather(values, None, 2), values[:, :2])
    assert torch.equal(scatter(values[:, :2], None, 3)[0, 2], torch.zeros(2))


def test_wrong_shapes_are_refused():
    model = LogRate(2)
    y = torch.zeros(1, 4, 2, dtype=torch.float64)
    mask = torch.ones_like(y, dtype=torch.bool)
    with pytest.raises(ShapeError, match="bind"):
        model.features(torch.zeros(1, 4, 3))
    model.bind(3)
    with pytest.raises(ShapeError, match="bound to 3"):
        model.bind(4)
    with pytest.raises(ShapeError, match="reads 3 latent states, got 2"):
        model.features(torch.zeros(1, 4, 2))
    with pytest.raises(ShapeError, match="4 samples for 3 latent steps"):
        model.log_prob(Modality(y, mask), torch.zeros(1, 3, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="2 channels"):
        wide = torch.zeros(1, 4, 5, dtype=torch.float64)
        model.log_prob(Modality(wide, wide > -1), torch.zeros(1, 4, 3, dtype=torch.float64))
    other = RectifiedLaplace(2).bind(3)
    with pytest.raises(ShapeError, match="2 nuisance regressors, the data have 1"):
        other.features(torch.zeros(1, 4, 3).double(), torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match="unknown read-out 'square'"):
        type("Square", (LogRate,), {})(2, readout="square")
