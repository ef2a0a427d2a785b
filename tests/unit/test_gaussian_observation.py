"""Closed forms of Gaussian observations against defaults, scipy, brute force and regression."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from plssm.data.batch import Modality
from plssm.errors import ShapeError
from plssm.observations import Gaussian, ObservationModel
from plssm.testing import ObservationContract


class _GaussianContract(ObservationContract):
    def reference(self, features, y):
        return scipy.stats.norm(features, self.model.noise.detach().sqrt()).logpdf(y)

    def simulate(self, features, rng):
        return rng.normal(features, self.model.noise.detach().sqrt())


class TestLinear(_GaussianContract):
    def create(self):
        return Gaussian(5)


class TestLinearWithNuisance(_GaussianContract):
    def create(self):
        return Gaussian(4, nuisance=2, bias=False)


class TestRelu(_GaussianContract):
    def create(self):
        return Gaussian(4, readout="relu", nuisance=1)


class TestIdentity(_GaussianContract):
    dim = 4

    def create(self):
        return Gaussian(3, readout="identity", nuisance=1)


class TestKnownParameters(_GaussianContract):
    def create(self):
        B = np.random.default_rng(0).normal(size=(6, 3))
        return Gaussian.from_parameters(B, bias=np.arange(6.0), noise=np.full(6, 0.2))


def _problem(seed=0, *, trials=3, steps=12, channels=4, dim=3, nuisance=0, missing=0.25):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mean, root = draw(trials, steps, dim), draw(trials, steps, dim, dim)
    y = draw(trials, steps, channels) + mean @ draw(dim, channels) + 2.0
    mask = torch.rand(y.shape, generator=generator) >= missing
    extra = draw(trials, steps, nuisance) if nuisance else None
    return Modality(torch.where(mask, y, 0.0), mask, None, extra), mean, 0.2 * root @ root.mT


def _brute_force(model, m, mean, second, free):
    """Normal equations of each channel, one sample at a time; returns coefficients and noise."""
    theta = (
        torch.cat([model.weight, model.bias[:, None], model.nuisance_weight], 1).detach().numpy()
    )
    theta, noise = theta.copy(), np.zeros(len(theta))
    dim, size = model.dim, theta.shape[1]
    for i in range(len(theta)):
        gram, right, square, count = np.zeros((size, size)), np.zeros(size), 0.0, 0
        for b in range(m.y.shape[0]):
            for t in range(m.y.shape[1]):
                if not m.mask[b, t, i]:
                    continue
                extra = [] if m.nuisance is None else m.nuisance[b, t].tolist()
                u = np.array([*mean[b, t].tolist(), 1.0, *extra])
                uu = np.outer(u, u)
                uu[:dim, :dim] = second[b, t]
                x = float(m.y[b, t, i])
                gram, right, square, count = gram + uu, right + x * u, square + x * x, count + 1
        k, fixed = free, ~free
        known = gram[np.ix_(k, fixed)] @ theta[i, fixed]
        theta[i, k] = np.linalg.solve(gram[np.ix_(k, k)], right[k] - known)
        noise[i] = (square - 2 * theta[i] @ right + theta[i] @ gram @ theta[i]) / count
    return theta, noise


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("nuisance_weight", "bias")])
def test_m_step_equals_the_normal_equations_written_out(frozen):
    m, mean, covariance = _problem(nuisance=2)
    model = Gaussian(4, nuisance=2).bind(3)
    with torch.no_grad():
        model.bias.add_(0.5)
        model.nuisance_weight.add_(0.25)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    free = np.array([n not in frozen for n in ["weight"] * 3 + ["bias"] + ["nuisance_weight"] * 2])
    second = covariance + mean[..., :, None] * mean[..., None, :]
    theta, noise = _brute_force(model, m, mean, second.numpy(), free)
    model.m_step(m, mean, covariance)
    got = torch.cat([model.weight, model.bias[:, None], model.nuisance_weight], 1).detach()
    np.testing.assert_allclose(got.numpy(), theta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.noise.detach().numpy(), noise, rtol=1e-9)


def test_m_step_with_a_rectified_readout_uses_exact_moments():
    """Moments of relu(z) by averaging many draws; then the same normal equations."""
    m, mean, covariance = _problem(trials=2, steps=8, dim=2)
    generator = torch.Generator().manual_seed(1)
    xi = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    phi = torch.relu(mean[..., None, :] + xi @ torch.linalg.cholesky(covariance).mT)
    second = phi.mT @ phi / len(xi)
    model = Gaussian(4, readout="relu").bind(2)
    theta, noise = _brute_force(model, m, phi.mean(-2), second.numpy(), np.ones(3, dtype=bool))
    model.m_step(m, mean, covariance)
    got = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    np.testing.assert_allclose(got.numpy(), theta, atol=0.03)
    np.testing.assert_allclose(model.noise.detach().numpy(), noise, rtol=0.03)


def test_m_step_is_a_maximum():
    """No small change of any coefficient or of the noise raises the expectation."""
    m, mean, covariance = _problem()
    for readout in ("linear", "relu"):
        model = Gaussian(4, readout=readout).bind(3)
        model.m_step(m, mean, covariance)
        best = float(model.expected_log_prob(m, mean, covariance).sum())
        for p in model.parameters():
            for index in np.ndindex(tuple(p.shape)):
                for step in (1e-4, -1e-4):
                    with torch.no_grad():
                        p[index] += step
                        worse = float(model.expected_log_prob(m, mean, covariance).sum())
                        p[index] -= step
                    assert worse <= best + 1e-9


def test_whole_samples_missing_equals_the_general_path():
    """Missing rows take a shortcut; splitting off one entry takes the general path."""
    m, mean, covariance = _problem(missing=0.0)
    rows = m.mask.clone()
    rows[0, 3], rows[2, 7:] = False, False
    one, two = Gaussian(4).bind(3), Gaussian(4).bind(3)
    one.m_step(Modality(m.y, rows), mean, covariance)
    nearly = rows.clone()
    nearly[1, 1, 3] = False
    two.m_step(Modality(m.y, nearly), mean, covariance)
    torch.testing.assert_close(one.weight[:3], two.weight[:3], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.noise[:3], two.noise[:3], rtol=1e-10, atol=1e-10)
    a, b = (
        one.local(Modality(m.y, rows), mean),
        ObservationModel.local(one, Modality(m.y, rows), mean),
    )
    torch.testing.assert_close(a.curvature, b.curvature)


def test_curvature_is_one_block_when_nothing_is_missing():
    m, mean, _ = _problem(missing=0.0)
    model = Gaussian(4).bind(3)
    model.noise = [0.1, 0.2, 0.3, 0.4]
    curvature = model.local(m, mean).curvature
    assert curvature.shape == (1, 1, 3, 3)
    W = model.weight.detach()
    torch.testing.assert_close(curvature[0, 0], W.mT @ torch.diag(1 / model.noise.detach()) @ W)
    clock = torch.arange(12).expand(3, -1)
    assert model.local(Modality(m.y, m.mask, clock), mean).curvature.shape == (3, 12, 3, 3)
    longer = torch.cat([mean, mean[:, :2]], 1)
    local = model.local(m, longer)
    assert local.curvature.shape == (3, 14, 3, 3)
    assert bool((local.curvature[:, 12:] == 0).all() and (local.score[:, 12:] == 0).all())


def test_regression_recovers_the_parameters():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(5, 400, 3, generator=generator, dtype=torch.float64)
    truth = Gaussian.from_parameters(
        np.random.default_rng(1).normal(size=(4, 3)),
        bias=[100.0, -2.0, 0.0, 1e4],
        noise=[0.01, 0.04, 0.09, 0.25],
        readout="relu",
    )
    y = truth.sample(truth.features(z), 5)
    mask = torch.rand(y.shape, generator=generator) > 0.3
    model = Gaussian(4, readout="relu").bind(3)
    model.init_from(Modality(torch.where(mask, y, 0.0), mask), z)
    np.testing.assert_allclose(model.weight.detach(), truth.weight.detach(), atol=0.06)
    np.testing.assert_allclose(model.bias.detach(), truth.bias.detach(), atol=0.06)
    np.testing.assert_allclose(model.noise.detach(), truth.noise.detach(), rtol=0.15)


def test_collinear_regressors_and_unseen_channels():
    """A direction without data stays as it was; a channel without data too."""
    m, mean, _ = _problem(missing=0.0)
    mean[..., 2] = 0.0
    mask = m.mask.clone()
    mask[..., 3] = False
    model = Gaussian(4).bind(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.m_step(Modality(m.y, mask), mean, torch.zeros(3, 12, 3, 3, dtype=torch.float64))
    assert torch.equal(model.weight[:, 2], before["weight"][:, 2])
    assert torch.equal(model.weight[3], before["weight"][3])
    torch.testing.assert_close(model.log_noise[3], before["log_noise"][3], rtol=0, atol=1e-15)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_noise_has_a_floor_that_does_not_lower_the_expectation():
    m, mean, _ = _problem(missing=0.0)
    share = 1e-5 * mean.flatten(0, 1).var(0, correction=0).numpy()
    for start, wanted in ((1.0, share), (1e-9, 1e-9)):
        model = Gaussian.from_parameters(np.eye(3), noise=start)
        exact = Modality(mean.clone(), torch.ones_like(mean, dtype=torch.bool))
        before = float(model.log_prob(exact, mean).sum().detach())
        model.m_step(exact, mean, None)
        np.testing.assert_allclose(model.noise.detach(), wanted, rtol=1e-9)
        assert float(model.log_prob(exact, mean).sum().detach()) >= before


def test_identity_readout_observes_the_first_states():
    model = Gaussian(2, readout="identity").bind(3)
    z = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(model.features(z), z[:, :2])
    assert [name for name, _ in model.named_parameters()] == ["log_noise"]
    assert model.quadratic and not Gaussian(2, readout="relu").quadratic
    with pytest.raises(ShapeError, match="at least as many latent states"):
        Gaussian(4, readout="identity").bind(3)
    with pytest.raises(ShapeError, match="must be"):
        Gaussian.from_parameters([[1.0, 0.5]], noise=1.0, readout="identity")
    known = Gaussian.from_parameters(np.eye(2, 3), noise=1.0, readout="identity")
    assert known.initialised and known.dim == 3


def test_predictive_in_closed_form():
    model = Gaussian.from_parameters(
        [[1.0, 2.0]], bias=[0.5], noise=[0.1], nuisance_weight=[[3.0]]
    )
    mean = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    covariance = torch.tensor([[[0.2, 0.1], [0.1, 0.3]]], dtype=torch.float64)
    first, second = model.predictive(mean, covariance, torch.tensor([[2.0]]))
    np.testing.assert_allclose(first, [[5.5]])
    np.testing.assert_allclose(second, [[[0.2 + 4 * 0.1 + 4 * 0.3 + 0.1]]])


def test_known_parameters_and_their_errors():
    B = [[1.0, 0.0], [0.5, 2.0], [0.0, 1.0]]
    model = Gaussian.from_parameters(B, noise=[0.1, 0.2, 0.3])
    assert model.config() == {"channels": 3, "readout": "linear", "nuisance": 0, "bias": True}
    assert bool((model.bias == 0).all()) and model.initialised
    torch.testing.assert_close(model.noise.detach(), torch.tensor([0.1, 0.2, 0.3]).double())
    assert not Gaussian(3).initialised
    for wrong in (
        {"noise": [0.1, 0.2]},
        {"noise": 0.1, "bias": [1.0]},
        {"noise": 0.1, "nuisance_weight": [[1.0]]},
    ):
        with pytest.raises(ShapeError, match="wanted shape"):
            Gaussian.from_parameters(B, **wrong)
    with pytest.raises(ShapeError, match="channels, dim"):
        Gaussian.from_parameters([1.0], noise=0.1)
    for variance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            Gaussian.from_parameters(B, noise=variance)
