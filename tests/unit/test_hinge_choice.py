"""Hinges chosen for the start of a fit: beside brute force, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

import plssm as ps
from plssm.inference import LaplaceEM, held_stages
from plssm.inference.hinge_choice import _candidates, choose_hinges
from plssm.inference.hinge_placement import lifted
from plssm.inference.starts import StartPath


def left_over(now, following, directions, kinks, scale=1.0):
    """Squared error of the best linear map with these hinges."""
    hinges = np.maximum(now @ np.transpose(directions) - kinks, 0.0)
    regressors = np.column_stack([np.ones(len(now)), now, hinges])
    weights = np.linalg.lstsq(regressors, following, rcond=None)[0]
    return (((following - regressors @ weights) / scale) ** 2).sum()


def states(n=300, k=2):
    rng = np.random.default_rng(0)
    now = rng.normal(size=(n, k)) @ rng.normal(size=(k, k)) + 1.0
    following = np.column_stack([np.abs(now).sum(1), 5.0 * np.maximum(now[:, 0] - 0.4, 0.0)])
    return now, following + 0.1 * rng.normal(size=(n, 2))


def test_each_choice_leaves_the_least_error():
    """Forward selection, every step by least squares over all candidates."""
    now, following = states()
    directions, kinks = choose_hinges(now, now, following, 3, rng=np.random.default_rng(5))
    pool, at = _candidates(now, 400, np.random.default_rng(5))
    linear = np.column_stack([np.ones(len(now)), now])
    rest = following - linear @ np.linalg.lstsq(linear, following, rcond=None)[0]
    chosen = []
    for i in range(3):
        errors = [
            left_over(now, following, pool[[*chosen, j]], at[[*chosen, j]], rest.std(0))
            for j in range(len(pool))
        ]
        chosen.append(int(np.argmin(errors)))
        np.testing.assert_allclose(directions[i], pool[chosen[i]])
        assert kinks[i] == pytest.approx(at[chosen[i]])


def test_the_hinge_of_a_map_is_found():
    """x' = .9 x + 2 relu(v'x - c): direction and kink up to the density of the candidates."""
    now = np.random.default_rng(1).normal(size=(2000, 2))
    v, c = np.array([0.6, 0.8]), 0.3
    following = 0.9 * now + 2.0 * np.maximum(now @ v - c, 0.0)[:, None]
    directions, kinks = choose_hinges(now, now, following, 1, rng=np.random.default_rng(0))
    size = np.linalg.norm(directions[0])
    assert abs(directions[0] @ v) / size > 0.98
    assert kinks[0] / size * np.sign(directions[0] @ v) == pytest.approx(c, abs=0.2)


def test_chosen_hinges_predict_better_than_random_ones():
    """Beside the median of random directions and kinks, the same own coordinates."""
    now, following = states()
    path = np.stack([now, following], axis=1)
    state = StartPath(path, np.zeros((len(now), 2, 2, 2, 2)), np.full(len(now), 2))
    inside = np.ones(path.shape[:2], dtype=bool)
    z = lifted(state, inside, 6, seed=0).mean[:, 0]
    own = np.column_stack([np.ones(len(now)), now, np.maximum(z[:, :2], 0.0)])
    pool, at = _candidates(now, 400, np.random.default_rng(7))

    def error(hinges):
        x = np.column_stack([own, hinges])
        return ((following - x @ np.linalg.lstsq(x, following, rcond=None)[0]) ** 2).sum()

    random = [
        error(np.maximum(now @ pool[i : i + 4].T - at[i : i + 4], 0.0)) for i in range(0, 400, 4)
    ]
    assert error(np.maximum(z[:, 2:], 0.0)) < 0.5 * np.median(random)


@pytest.mark.parametrize("steps", [2, 40])
def test_fits_with_chosen_hinges(steps):
    """Also with fewer transitions than a regression needs; the noise ends where it is held."""
    x = np.sin(np.arange(steps)[:, None] * np.array([0.3, 0.5, 0.7]))
    data = ps.Dataset.from_arrays({"x": x})
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(5), {"x": ps.observations.Gaussian(3)})
    engine = LaplaceEM(stages=held_stages(6), ridge=10.0)
    fit = engine.fit(model, data)
    assert np.isfinite(fit.history["evidence"]).all()
    np.testing.assert_allclose(fit.model.dynamics.noise.variance.detach(), 1e-3)
