"""Quadratics around a path and around zero are the same function."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.kernels.recentre import recentre, recentre_plain


@pytest.mark.parametrize("shape", [(3, 17, 4), (1, 1, 1), (2, 5, 10), (1, 3, 50)])
def test_recentred_quadratic(shape):
    rng = np.random.default_rng(0)
    g, z, x = rng.normal(size=(3, *shape))
    root = rng.normal(size=(*shape, shape[-1]))
    R = root + root.swapaxes(-1, -2)
    score, constant = recentre(g, R, z)
    for got, wanted in zip((score, constant), recentre_plain(g, R, z), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())

    def value(linear, at):
        return (linear * at - 0.5 * at * np.einsum("btij,btj->bti", R, at)).sum((1, 2))

    around = value(g, x - z)
    np.testing.assert_allclose(constant + value(score, x), around, atol=1e-9)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="curvature must be"):
        recentre(np.zeros((1, 4, 2)), np.zeros((1, 1, 2, 2)), np.zeros((1, 4, 2)))
