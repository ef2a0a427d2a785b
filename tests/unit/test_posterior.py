"""Posterior objects: shapes, blanks beyond a trial's end, draws and bands."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import norm

import plssm as ps
from plssm.posterior import FilteredMarginals, GaussianChain

LENGTHS = (6, 3, 1)


def problem():
    rng = np.random.default_rng(0)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.8, 0.6], [[0.0, 0.4], [-0.5, 0.0]], h=[0.2, 0.1], process_noise=[0.2, 0.3],
        initial_mean=[0.5, -0.5],
    )  # fmt: skip
    observation = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(3, 2)), noise=[0.4] * 3
    )
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    data = ps.Dataset.from_arrays({"x": [rng.normal(size=(n, 3)) for n in LENGTHS]})
    return model, data


@pytest.fixture(scope="module", params=["chain", "filter"])
def posterior(request):
    return ps.smooth(*problem(), causal=request.param == "filter")


def beyond():
    return np.arange(max(LENGTHS)) >= np.array(LENGTHS)[:, None]


def test_shapes_types_and_blanks(posterior):
    outside = beyond()
    assert posterior.length.tolist() == list(LENGTHS)
    assert posterior.log_evidence.shape == (3,)
    low, high = posterior.interval(0.9)
    values = {
        "mean": (posterior.mean, (3, 6, 2)),
        "covariance": (posterior.covariance(), (3, 6, 2, 2)),
        "low": (low, (3, 6, 2)),
        "sample": (posterior.sample(4)[2], (3, 6, 2)),
    }
    for name, (value, shape) in values.items():
        assert value.shape == shape, name
        assert value.dtype == torch.float64
        assert not value.requires_grad
        finite = torch.isfinite(value).flatten(2).all(-1).numpy()
        np.testing.assert_array_equal(finite, ~outside)
    assert "trials=3, steps=6, dim=2" in repr(posterior)


def test_bands_are_gaussian_quantiles(posterior):
    sd = posterior.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    for level in (0.5, 0.95):
        low, high = posterior.interval(level)
        half = norm.ppf(0.5 + level / 2) * sd
        torch.testing.assert_close(high, posterior.mean + half, equal_nan=True)
        torch.testing.assert_close(low, posterior.mean - half, equal_nan=True)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level"):
            posterior.interval(level)


def test_draws_have_the_moments_and_reproduce(posterior):
    draws = posterior.sample(20_000, seed=1)
    for b, n in enumerate(LENGTHS):
        inside = draws[:, b, :n] - posterior.mean[b, :n]
        covariance = torch.einsum("sti,stj->tij", inside, inside) / len(draws)
        torch.testing.assert_close(covariance, posterior.covariance()[b, :n], atol=0.02, rtol=0.06)
    one, other, third = (posterior.sample(3, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    assert not torch.equal(torch.nan_to_num(one), torch.nan_to_num(third))


def test_draws_of_whole_paths_have_the_cross_covariance():
    chain = ps.smooth(*problem())
    draws = chain.sample(20_000, seed=2)
    cross = chain.cross_covariance()
    assert cross.shape == (3, 5, 2, 2)
    assert torch.isnan(cross[1, 2:]).all()
    assert torch.isnan(cross[2]).all()
    for b, n in ((0, 6), (1, 3)):
        e = draws[:, b, :n] - chain.mean[b, :n]
        got = torch.einsum("sti,stj->tij", e[:, :-1], e[:, 1:]) / len(draws)
        torch.testing.assert_close(got, cross[b, : n - 1], atol=0.02, rtol=0.06)


def test_what_is_handed_out_cannot_spoil_the_posterior():
    chain = ps.smooth(*problem())
    before = chain.covariance().clone()
    chain.covariance().zero_()
    torch.testing.assert_close(chain.covariance(), before, equal_nan=True)
    drawn = chain.sample(2)
    chain.sample(2).zero_()
    torch.testing.assert_close(chain.sample(2), drawn, equal_nan=True)


def test_filtered_marginals_of_a_singular_covariance_can_be_drawn():
    one = FilteredMarginals(
        mean=np.zeros((1, 2, 2)), filtered_covariance=np.zeros((1, 2, 2, 2)),
        predicted_mean=np.zeros((1, 2, 2)), predicted_covariance=np.zeros((1, 2, 2, 2)),
        length=np.array([2]), log_evidence=np.zeros(1),
    )  # fmt: skip
    assert float(one.sample(5).abs().max()) < 1e-4


def lazy(calls):
    """The posterior of a problem whose evidence is computed when it is asked for."""
    known = ps.smooth(*problem())

    def evidence():
        calls.append(1)
        return known.log_evidence.numpy()

    mean, _, _ = known.arrays()
    chain = GaussianChain(
        mean, known._factor, length=known.length.numpy(), log_evidence=evidence,
        evidence_kind="elbo",
    )  # fmt: skip
    return chain, known


def test_evidence_is_computed_once_and_when_asked_for():
    calls = []
    chain, known = lazy(calls)
    chain.covariance(), chain.sample(2), chain.moved(np.zeros(chain.mean.shape))
    assert "log_evidence=(not computed yet) [elbo]" in repr(chain)
    assert not calls
    for _ in range(2):
        assert torch.equal(chain.log_evidence, known.log_evidence)
    assert len(calls) == 1
    assert f"{float(known.log_evidence.sum()):.4g} [elbo]" in repr(chain)


def test_bounds_survive_copies_and_files_before_they_are_asked_for():
    model, data = problem()
    engine = ps.inference.VariationalInference(steps=2, checks=1, encoder="none", draws=3)
    post = engine.infer(model, data)
    other = pickle.loads(pickle.dumps(post))
    again, moved = copy.deepcopy(post), post.moved(np.zeros(post.mean.shape))
    want = engine.infer(model, data).log_evidence
    for one in (post, other, again, moved):
        assert torch.equal(one.log_evidence, want)
