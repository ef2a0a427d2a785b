"""Causal convolution and its second moments against numpy, scipy and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from plssm.observations.bold.convolution import (
    band_sums,
    band_weights,
    convolve,
    convolved_covariance,
    correlate,
    lag_products,
    windows,
)

SIZES = [(1, 1), (1, 4), (3, 7), (7, 7), (8, 7), (40, 7), (9, 1), (9, 2)]


def _draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def _toeplitz(kernel, steps):
    column = np.zeros(steps)
    column[: len(kernel)] = kernel[:steps]
    return scipy.linalg.toeplitz(column, np.zeros(steps))


@pytest.mark.parametrize(("steps", "lags"), SIZES)
def test_convolution_equals_numpy_and_its_adjoint_the_transpose(steps, lags):
    z, shared, own = _draw(2, 3, steps, 4), _draw(lags, seed=1), _draw(4, lags, seed=2)
    for kernel in (shared, own):
        got, back = convolve(z, kernel), correlate(z, kernel)
        for f in range(4):
            h = kernel.numpy() if kernel.ndim == 1 else kernel[f].numpy()
            for index in np.ndindex(2, 3):
                column = z[(*index, slice(None), f)].numpy()
                wanted = np.convolve(column, h)[:steps]
                np.testing.assert_allclose(got[(*index, slice(None), f)], wanted, atol=1e-12)
                wanted = _toeplitz(h, steps).T @ column
                np.testing.assert_allclose(back[(*index, slice(None), f)], wanted, atol=1e-12)
    past, ahead = windows(z, lags), windows(z, lags, ahead=True)
    torch.testing.assert_close(past @ shared, convolve(z, shared))
    torch.testing.assert_close(ahead @ shared, correlate(z, shared))


def test_gradients_of_a_convolution():
    z = _draw(2, 6, 3).requires_grad_()
    for kernel in (_draw(4, seed=1), _draw(3, 4, seed=1)):
        assert torch.autograd.gradcheck(convolve, (z, kernel.requires_grad_()))
        assert torch.autograd.gradgradcheck(convolve, (z, kernel))


def test_what_is_not_finite_stays_where_it_belongs():
    """It reaches the steps that remember it, of its own column, and no gradient."""
    kernel, z = _draw(3, seed=1), _draw(1, 12, 2)
    for junk in (float("nan"), float("inf"), -float("inf")):
        broken = z.clone()
        broken[0, 4, 0], broken[0, 11] = junk, junk
        broken.requires_grad_()
        got = convolve(broken, kernel)
        reached = torch.zeros(1, 12, 2, dtype=torch.bool)
        reached[0, 4:7, 0] = reached[0, 11] = True
        assert torch.equal(torch.isnan(got), reached)
        torch.testing.assert_close(got[~reached], convolve(z, kernel)[~reached])
        (gradient,) = torch.autograd.grad(got[~reached].sum(), broken)
        assert bool(torch.isfinite(gradient).all())


def test_convolution_of_combinations():
    z, weight, kernel = _draw(2, 9, 3), _draw(4, 3, seed=1), _draw(4, 5, seed=2)
    torch.testing.assert_close(convolve(z, kernel, weight=weight), convolve(z @ weight.mT, kernel))
    broken, weight = z.clone(), weight.requires_grad_()
    broken[0, 6, 1] = torch.nan
    got = convolve(broken, kernel, weight=weight)
    assert bool(torch.isnan(got[0, 6:]).all()) and not bool(torch.isnan(got[0, :6]).any())
    (gradient,) = torch.autograd.grad(got[:, :6].sum(), weight)
    assert bool(torch.isfinite(gradient).all())


def _joint(trials, steps, dim):
    """Covariance of whole paths, dense and as lagged blocks with NaN where there is no pair."""
    root = _draw(trials, steps * dim, steps * dim, seed=3).numpy()
    dense = (root @ root.swapaxes(1, 2)).reshape(trials, steps, dim, steps, dim)
    blocks = np.full((trials, steps, steps, dim, dim), np.nan)
    for t in range(steps):
        for lag in range(steps - t):
            blocks[:, t, lag] = dense[:, t, :, t + lag]
    return dense, torch.from_numpy(blocks)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_bands_and_sums_equal_dense_matrices(steps):
    """H' D H of every group, and sums of covariances of the convolved path."""
    lags, dim, trials = 4, 2, 3
    counts = torch.from_numpy(np.random.default_rng(4).integers(0, 3, (trials, steps, 2))).double()
    dense, blocks = _joint(trials, steps, dim)
    blocks = torch.nn.functional.pad(blocks, (0, 0, 0, 0, 0, lags), value=torch.nan)[:, :, :lags]
    for kernel in (_draw(lags, seed=1), _draw(2, lags, seed=2)):
        band = band_weights(counts, kernel)
        sums = band_sums(band, blocks)
        assert band.shape == (trials, steps, 2, lags)
        for b in range(trials):
            for g in range(2):
                H = _toeplitz(kernel.expand(2, -1)[g].numpy(), steps)
                full = H.T @ np.diag(counts[b, :, g]) @ H
                for lag in range(lags):
                    wanted = np.append(np.diag(full, lag), np.zeros(min(lag, steps)))[:steps]
                    np.testing.assert_allclose(band[b, :, g, lag], wanted, atol=1e-12)
                seen = np.einsum("ts,sjuk,vu->tjvk", H, dense[b], H)
                wanted = np.einsum("tjtk,t->jk", seen, counts[b, :, g])
                np.testing.assert_allclose(sums[b, g], wanted, atol=1e-11)


def test_covariance_of_a_convolved_path():
    dense, blocks = _joint(2, 9, 3)
    kernel = _draw(4, seed=1)
    H = _toeplitz(kernel.numpy(), 9)
    wanted = np.einsum("ts,bsjuk,tu->btjk", H, dense, H)
    np.testing.assert_allclose(convolved_covariance(blocks[:, :, :4], kernel), wanted, atol=1e-11)


def test_products_of_kernel_weights():
    h = _draw(2, 5)
    products = lag_products(h).numpy()
    for j in range(5):
        for lag in range(5):
            wanted = h[:, j] * h[:, j - lag] if lag <= j else torch.zeros(2)
            np.testing.assert_allclose(products[:, j, lag], wanted)
