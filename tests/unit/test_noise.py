"""Noise and initial-state objects against torch, scipy and brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from plssm.dynamics import Diagonal, Full, Initial, Isotropic, make_noise
from plssm.dynamics.noise import noise_kind
from plssm.errors import PlssmError, ShapeError

DIM = 3


def spd(seed=0, dim=DIM):
    root = np.random.default_rng(seed).standard_normal((dim, dim))
    return root @ root.T + 0.1 * np.eye(dim)


def examples():
    diagonal = Diagonal(DIM, variance=[0.1, 1.0, 30.0])
    full = Full(DIM)
    full.covariance = spd()
    return [diagonal, full, Isotropic(DIM, variance=0.3), Full(1, variance=2.0)]


@pytest.mark.parametrize("noise", examples(), ids=repr)
def test_density_and_matrices(noise):
    covariance = noise.covariance.detach().numpy()
    e = np.random.default_rng(1).standard_normal((2, 3, noise.dim))
    want = multivariate_normal(np.zeros(noise.dim), covariance).logpdf(e).reshape(2, 3)
    got = noise.log_prob(torch.from_numpy(e)).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(
        noise.precision.detach().numpy() @ covariance, np.eye(noise.dim), atol=1e-12
    )
    np.testing.assert_allclose(noise.logdet.item(), np.linalg.slogdet(covariance)[1], atol=1e-12)
    np.testing.assert_allclose(noise.variance.detach(), covariance.diagonal(), rtol=1e-14)
    single = copy.deepcopy(noise).float()
    low = single.log_prob(torch.from_numpy(e).float())
    assert low.dtype == torch.float32
    np.testing.assert_allclose(low.detach(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", examples(), ids=repr)
def test_draws_have_the_covariance(noise):
    n = 40_000
    draws = noise.sample((4, n // 4), generator=torch.Generator().manual_seed(0)).detach()
    draws = draws.reshape(n, noise.dim).numpy()
    covariance = noise.covariance.detach().numpy()
    variance = covariance.diagonal()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)  # Isserlis
    assert (np.abs(draws.mean(0)) < 5 * np.sqrt(variance / n)).all()
    assert (np.abs(draws.T @ draws / n - covariance) < 5 * error).all()
    assert noise.sample(generator=torch.Generator().manual_seed(0)).shape == (noise.dim,)


@pytest.mark.parametrize("noise", examples(), ids=repr)
def test_whiten_undoes_colour(noise):
    xi = torch.randn(5, 2, noise.dim, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(noise.whiten(noise.colour(xi)), xi)


@pytest.mark.parametrize("value", [1e-8, 0.01, 1.0, 1e6])
def test_values_come_back(value):
    for noise in (Diagonal(DIM), Isotropic(DIM), Full(DIM)):
        noise.covariance = value * np.eye(DIM)
        np.testing.assert_allclose(noise.covariance.detach(), value * np.eye(DIM), rtol=1e-14)
        noise.variance = 2 * value
        np.testing.assert_allclose(noise.variance.detach(), [2 * value] * DIM, rtol=1e-14)
        parameter = next(noise.parameters())
        assert parameter.is_leaf
        assert parameter.requires_grad
    full = Full(DIM)
    full.covariance = value * spd()
    np.testing.assert_allclose(full.covariance.detach(), value * spd(), rtol=1e-13)


@pytest.mark.parametrize("kind", ["diagonal", "full", "isotropic"])
def test_closed_form_update_is_the_maximum(kind):
    """No other covariance of the kind has a larger expected log-density."""
    moment = torch.from_numpy(spd(3))
    noise = make_noise(kind, DIM)
    assert torch.equal(noise.covariance, torch.eye(DIM, dtype=torch.float64))
    noise.assign_moment(moment)

    def expected():
        return -0.5 * ((noise.precision * moment).sum() + noise.logdet)

    best = expected()
    best.backward()
    for parameter in noise.parameters():
        assert parameter.grad.abs().max() < 1e-12
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            step = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.add_(step)
                assert expected() <= best + 1e-12
                parameter.sub_(step)
    want = {
        "diagonal": torch.diag(moment.diagonal()),
        "full": moment,
        "isotropic": moment.diagonal().mean() * torch.eye(DIM, dtype=torch.float64),
    }[kind]
    torch.testing.assert_close(noise.covariance, want)


def test_update_keeps_a_floor_and_frozen_noise():
    moment = torch.diag(torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64))
    for noise in (Diagonal(DIM), Full(DIM)):
        noise.assign_moment(moment)
        torch.testing.assert_close(noise.variance.detach(), moment.diagonal().clamp_min(1e-5))
    noise = Isotropic(DIM)
    noise.assign_moment(0.0 * moment, floor=0.5)
    np.testing.assert_allclose(noise.variance.detach(), [0.5] * DIM)
    for noise in (Diagonal(DIM), Full(DIM), Isotropic(DIM)):
        noise.requires_grad_(False)
        assert noise.frozen
        noise.assign_moment(9.0 * torch.eye(DIM, dtype=torch.float64))
        assert torch.equal(noise.covariance, torch.eye(DIM, dtype=torch.float64))


def test_update_refuses_what_is_not_finite_and_keeps_the_old_value():
    for noise in (Diagonal(2), Full(2), Isotropic(2)):
        with pytest.raises(PlssmError, match="finite"):
            noise.assign_moment(torch.tensor([[1.0, 0.0], [0.0, torch.nan]]))
        assert torch.equal(noise.covariance, torch.eye(2, dtype=torch.float64))


def test_refusals():
    with pytest.raises(PlssmError, match="smallest is 0"):
        Diagonal(2).variance = [1.0, 0.0]
    with pytest.raises(PlssmError, match="positive definite"):
        Full(2).covariance = [[1.0, 2.0], [2.0, 1.0]]
    with pytest.raises(PlssmError, match="symmetric"):
        Full(2).covariance = [[1.0, 0.5], [0.0, 1.0]]
    with pytest.raises(PlssmError, match="noise='full'"):
        Diagonal(2).covariance = [[1.0, 0.5], [0.5, 1.0]]
    with pytest.raises(PlssmError, match="one variance"):
        Isotropic(2).variance = [1.0, 2.0]
    with pytest.raises(ShapeError, match=r"got shape \(3,\), wanted \(2,\)"):
        Diagonal(2).variance = [1.0, 2.0, 3.0]
    with pytest.raises(PlssmError, match="wanted one of"):
        make_noise("spherical", 2)
    with pytest.raises(ShapeError, match="process_noise"):
        noise_kind("process_noise", np.ones((2, 3)), 2)


def test_noise_kind_by_shape():
    assert noise_kind("q", 0.1, 3) == "isotropic"
    assert noise_kind("q", [0.1], 1) == "diagonal"
    assert noise_kind("q", [[0.1]], 1) == "full"


def test_initial_state():
    initial = Initial(2, kind="tied", noise="full")
    assert (initial.kind, initial.noise.kind) == ("tied", "full")
    mean = initial.mean
    initial.mean = [1.0, 2.0]
    assert initial.mean is mean
    assert initial.mean.tolist() == [1.0, 2.0]
    with pytest.raises(ShapeError):
        initial.mean = [1.0]
    with pytest.raises(PlssmError, match="'shared' or 'tied'"):
        Initial(2, kind="own")
    assert repr(initial) == "Initial(2, kind='tied', noise='full')"
