"""Reference values of the measures on Lorenz-63 orbits."""

import numpy as np
import pytest

from plssm.data.synthetic import lorenz63
from plssm.metrics import power_spectrum_distance, state_space_divergence


@pytest.fixture(scope="module")
def orbits():
    path = lorenz63(20_000, dt=0.01, trials=5, seed=0)
    return (path - path[0].mean(axis=0)) / path[0].std(axis=0)


def test_independent_orbits_are_near_the_floor(orbits):
    pairs = [(orbits[0], o) for o in orbits[1:]]
    d = [state_space_divergence(truth=a, pred=b) for a, b in pairs]
    h = [power_spectrum_distance(truth=a, pred=b) for a, b in pairs]
    assert 0.15 < np.median(d) < 0.8
    assert 0.015 < np.median(h) < 0.1


def test_a_fixed_point_and_white_noise_score_badly(orbits):
    truth = orbits[0]
    noise = np.random.default_rng(0).standard_normal((100_000, 3))
    still = np.zeros((100_000, 3))
    assert 15 < state_space_divergence(truth=truth, pred=still) < 17.5
    assert 3.0 < state_space_divergence(truth=truth, pred=noise) < 4.2
    assert 0.8 < power_spectrum_distance(truth=truth, pred=noise) < 0.95
    # why five channels and fewer are binned: the mixture hardly sees a fixed point
    blind = state_space_divergence(truth=truth, pred=still, method="mixture", samples=300)
    assert 0.4 < blind < 0.8


def test_the_floor_is_what_a_perfect_model_scores(orbits):
    got = state_space_divergence(truth=orbits[0], pred=orbits[1][:5000])
    perfect = [
        state_space_divergence(truth=orbits[0][:5000], pred=o[:5000], floor=False)
        for o in orbits[1:]
    ]
    assert got.settings["floor_pairs"] == 2
    assert np.median(perfect) / 2 < got.floor < 2 * np.median(perfect)
