"""Sums for Newton steps in predictor weights against the plain twin and automatic derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.kernels.predictor_newton import (
    BLOCK,
    predictor_products,
    predictor_products_plain,
    sample_blocks,
)


def _problem(samples, channels, size, extra, *, observed=1.0, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(samples, size, size))
    V = root @ root.swapaxes(1, 2)
    X = rng.normal(size=(samples, size + extra))
    weight = rng.normal(size=(channels, size))
    mask = rng.random((samples, channels)) < observed
    p, q = (rng.normal(size=(samples, channels)) * mask for _ in range(2))
    return V, X, weight, p, q


@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize(
    ("samples", "channels", "size", "extra"),
    [
        (1, 1, 1, 1),
        (5, 3, 2, 1),
        (BLOCK, 8, 4, 1),
        (BLOCK + 1, 9, 5, 3),
        (3 * BLOCK - 7, 17, 3, 0),
        (40, 2, 7, 6),
    ],
)
def test_equals_the_twin(samples, channels, size, extra, observed):
    V, X, weight, p, q = _problem(samples, channels, size, extra, observed=observed)
    got = predictor_products(sample_blocks(V, X), weight, p, q)
    wanted = predictor_products_plain(V, X, weight, p, q)
    assert got.shape == (channels, size, size + extra)
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11 * np.abs(wanted).max())


def test_threads_give_the_same():
    V, X, weight, p, q = _problem(20 * BLOCK, 40, 9, 2, observed=0.8)
    blocks = sample_blocks(V, X)
    wanted = predictor_products(blocks, weight, p, q)
    for threads in (2, 3):
        got = predictor_products(blocks, weight, p, q, threads=threads)
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-9)


def test_it_is_a_part_of_a_hessian():
    """The terms with b in the second derivative of sum f(c'm, c'Vc) for f = a u v + e v^2 / 2."""
    V, X, weight, a, e = _problem(30, 2, 3, 0)
    tensors = [torch.from_numpy(x) for x in (V, X, a, e)]

    def value(c, n):
        covariance, mean, a, e = tensors
        u, v = mean @ c, torch.einsum("i,tij,j->t", c, covariance, c)
        return (a[:, n] * u * v + 0.5 * e[:, n] * v**2).sum()

    sums = predictor_products(sample_blocks(V, X), weight, a, e)
    for n in range(2):
        c = torch.from_numpy(weight[n])
        hessian = torch.autograd.functional.hessian(lambda c: value(c, n), c).numpy()  # noqa: B023
        v = np.einsum("i,tij,j->t", weight[n], V, weight[n])
        plain = np.einsum("t,tij->ij", 2 * (a[:, n] * (X @ weight[n]) + e[:, n] * v), V)
        np.testing.assert_allclose(2 * (sums[n] + sums[n].T) + plain, hessian, rtol=1e-10)
