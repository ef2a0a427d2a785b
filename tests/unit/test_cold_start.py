"""A search without a start keeps the better of its two modes; lifted starts keep moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.cold_start import cold_mode, filter_chain
from plssm.inference.laplace import laplace_posterior
from plssm.inference.mode_search import find_mode
from plssm.inference.newton import expand
from plssm.inference.starts import StartPath, turn


def problem(seed, *, dim=6, channels=3, steps=120, trials=3):
    """Few channels, strong hinges: a log joint with many local maxima."""
    rng = np.random.default_rng(seed)
    coupling = 0.5 * rng.standard_normal((dim, dim))
    np.fill_diagonal(coupling, 0.0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=rng.uniform(0.3, 0.7, dim),
        W=coupling / np.abs(np.linalg.eigvals(coupling)).max() * 0.6,
        h=0.3 * rng.standard_normal(dim),
        process_noise=np.full(dim, 0.02),
    )
    observation = ps.observations.Gaussian.from_parameters(
        B=rng.standard_normal((channels, dim)), noise=np.full(channels, 0.1)
    )
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    batch = model.simulate(steps, trials=trials, seed=seed).batch()
    prior = ChainPrior.of(model.dynamics, batch)
    return model, batch, prior, expand(model, batch, np.zeros((trials, steps, dim)))


@pytest.mark.parametrize("seed", range(4))
def test_cold_mode_is_not_below_either_start(seed):
    _, _, prior, terms = problem(seed)
    found = cold_mode(prior, terms, max_solves=400)
    halfway = find_mode(prior, terms, max_solves=24)
    filtered = find_mode(prior, terms, filter_chain(prior, terms).filtered_mean, max_solves=400)
    slack = 1e-8 * (1 + np.abs(found.value))
    assert (found.value >= np.maximum(halfway.value, filtered.value) - slack).all()


@pytest.mark.parametrize("seed", range(3))
def test_smoothing_without_a_start_is_near_the_search_from_the_true_path(seed):
    model, batch, *_ = problem(seed)
    true = model.simulate(120, trials=3, seed=seed).latent
    cold = laplace_posterior(model, batch).posterior.log_evidence
    warm = laplace_posterior(model, batch, start=true).posterior.log_evidence
    assert float((warm - cold).max()) < 5.0  # nats of some hundreds: no absurd mode


def test_an_astray_filter_is_not_used():
    """Where the filter leaves the finite numbers, the half-open start is all there is."""
    model, batch, *_ = problem(0)
    with torch.no_grad():
        model.dynamics.A = np.full(6, 1e200)
    prior = ChainPrior.of(model.dynamics, batch)
    terms = expand(model, batch, np.zeros((3, 120, 6)))
    with np.errstate(all="ignore"):
        found = cold_mode(prior, terms, max_solves=40)
    assert len(found.status) == 3


def chain(k=2, trials=2, steps=400, seed=0):
    rng = np.random.default_rng(seed)
    mean = np.cumsum(0.1 * rng.standard_normal((trials, steps, k)), axis=1)
    root = 0.1 * rng.standard_normal((trials, steps, k, k))
    lags = 0.01 * rng.standard_normal((trials, steps, 3, k, k))
    lags[:, :, 0] = root @ root.swapaxes(-1, -2)
    return StartPath(mean, lags, torch.full((trials,), steps))


def test_turn_is_a_rotation():
    state = chain()
    turned = turn(state, seed=3)
    np.testing.assert_allclose(
        (turned.mean**2).sum(-1), (state.mean**2).sum(-1), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(
        np.linalg.eigvalsh(turned.arrays()[1]), np.linalg.eigvalsh(state.arrays()[1]), atol=1e-12
    )
    assert turn(state, seed=0) is state
