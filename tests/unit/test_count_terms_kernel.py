"""Compiled sums of Poisson counts against plain twins, the torch path and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln

from plssm.data.batch import Modality
from plssm.kernels import count_correction, count_terms
from plssm.kernels._exponential import exponential
from plssm.kernels.count_correction import poisson_correction, poisson_correction_plain
from plssm.kernels.count_expectation import (
    count_samples,
    expected_counts,
    expected_counts_curvature,
    expected_counts_plain,
)
from plssm.kernels.count_terms import log_factorial, poisson_terms, poisson_terms_plain
from plssm.observations.base import ObservationModel
from plssm.observations.counts.distributions import PoissonCounts
from plssm.observations.counts.models import Poisson
from plssm.observations.counts.rates import Exponential
from plssm.observations.learning.expectation import GaussianExpectation
from plssm.observations.learning.expected_fit import make_expectation

SHAPES = [(3, 40, 7, 3), (1, 300, 50, 10), (2, 1, 1, 1)]


def near(got, wanted, tolerance=1e-12):
    """Arrays agree to a share of the largest number."""
    size = max(np.abs(wanted).max(initial=0.0), 1.0)
    np.testing.assert_allclose(got, wanted, atol=tolerance * size, rtol=0)


def problem(shape, observed, seed=0, spread=0.5):
    """Counts, mask, states, weight and intercepts."""
    trials, samples, channels, dim = shape
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(trials, samples, dim))
    weight = spread * rng.normal(size=(channels, dim))
    offset = rng.uniform(-1, 1, channels)
    y = rng.poisson(np.exp(np.minimum(z @ weight.T + offset, 8.0))).astype(float)
    return y, rng.random(y.shape) < observed, z, weight, offset


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_terms_equal_density_and_its_derivatives(shape, observed, known):
    y, mask, z, weight, offset = problem(shape, observed)
    extra = np.random.default_rng(1).normal(size=y.shape) if known else None
    arguments = (y, mask, z, weight, offset)
    got = poisson_terms(*arguments, width=0.5, bound=30.0, known=extra)
    for a, b in zip(
        got, poisson_terms_plain(*arguments, width=0.5, bound=30.0, known=extra), strict=True
    ):
        near(a, b)
    states = torch.tensor(z, requires_grad=True)
    eta = states @ torch.tensor(weight).T + torch.tensor(offset)
    eta = eta + torch.tensor(extra) if known else eta
    link = Exponential()
    density = PoissonCounts(link.log_rate(eta) + math.log(0.5), 0.5 * link.rate(eta))
    value = torch.where(torch.tensor(mask), density.log_prob(torch.tensor(y)), 0.0).sum((1, 2))
    (gradient,) = torch.autograd.grad(value.sum(), states, create_graph=True)
    near(got[0], value.detach().numpy())
    near(got[1], gradient.detach().numpy())
    for i in range(z.shape[-1]):
        (row,) = torch.autograd.grad(gradient[..., i].sum(), states, retain_graph=True)
        near(got[2][..., i, :], -row.numpy())


@pytest.mark.parametrize("observed", [1.0, 0.5])
def test_terms_go_on_as_a_parabola(observed):
    y, mask, z, weight, offset = problem((3, 20, 4, 2), observed, spread=15.0)
    eta = z @ weight.T + offset
    assert (eta > 30).any()
    assert (eta < -30).any()
    got = poisson_terms(y, mask, z, weight, offset, width=1.0, bound=30.0)
    wanted = poisson_terms_plain(y, mask, z, weight, offset, width=1.0, bound=30.0)
    for a, b in zip(got, wanted, strict=True):
        near(a, b)


@pytest.mark.parametrize("observed", [1.0, 0.7])
def test_terms_of_large_counts(observed):
    """Counts beyond the table of factorials, beside small ones."""
    y, mask, z, weight, offset = problem((2, 30, 5, 2), observed)
    y[:, ::7] += 3000.0
    got = poisson_terms(y, mask, z, weight, offset, width=0.3, bound=30.0)
    wanted = poisson_terms_plain(y, mask, z, weight, offset, width=0.3, bound=30.0)
    for a, b in zip(got, wanted, strict=True):
        near(a, b)
    rng = np.random.default_rng(2)
    V, X, theta = (
        np.eye(2) * rng.random((60, 1, 1)),
        rng.normal(size=(60, 3)),
        weight[:, [0, 1, 1]],
    )
    arguments = (V, X, y.reshape(60, 5), mask.reshape(60, 5))
    value, gradient, *_ = expected_counts(count_samples(*arguments, width=0.3), theta)
    wanted = expected_counts_plain(*arguments, theta, width=0.3)
    near(value, wanted[0])
    near(gradient, wanted[1])


def test_absent_samples_may_have_no_state():
    y, mask, z, weight, offset = problem((2, 9, 3, 2), 1.0)
    mask[:, 5:], z[:, 5:] = False, np.nan
    got = poisson_terms(y, mask, z, weight, offset, width=1.0, bound=30.0)
    first = (y[:, :5], mask[:, :5], z[:, :5])
    short = poisson_terms(*first, weight, offset, width=1.0, bound=30.0)
    near(got[0], short[0])
    near(got[2][:, :5], short[2])
    assert not got[1][:, 5:].any()
    assert not got[2][:, 5:].any()


def test_exponential_and_log_factorial():
    x = np.concatenate([np.linspace(-690, 690, 4001), [0.0, -1e-300]])
    got = np.array([exponential(v) for v in x])
    np.testing.assert_allclose(got, np.exp(x), rtol=1e-15 * 4)
    assert exponential(-1e9) < 1e-300
    for n in (0.0, 1.0, 7.0, 1023.0, 1024.0, 5e4):
        np.testing.assert_allclose(log_factorial(n), gammaln(n + 1), rtol=1e-14, atol=1e-14)


def modality(shape, observed, *, seed=0, clock=None, nuisance=None):
    """A modality and its latent path on a clock of 12 steps where one is given."""
    y, mask, z, weight, offset = problem(shape, observed, seed)
    y = np.where(mask, y, 0.0)
    if clock is not None:
        z = np.random.default_rng(seed).normal(size=(shape[0], 12, shape[3]))
    parts = (torch.from_numpy(y), torch.from_numpy(mask), clock, nuisance)
    model = Poisson.from_parameters(
        weight,
        offset,
        bin_seconds=0.5,
        nuisance_weight=None if nuisance is None else np.ones((shape[2], 2)),
    )
    return model, Modality(*parts), torch.from_numpy(z)


def same_local(model, m, z):
    got, wanted = model.local(m, z), ObservationModel.local(model, m, z)
    for name in ("log_prob", "score", "curvature"):
        near(getattr(got, name).numpy(), getattr(wanted, name).detach().numpy())


@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_local_equals_the_general_one(shape, observed):
    same_local(*modality(shape, observed))


def test_local_with_a_clock_covariates_and_ragged_trials():
    generator = torch.Generator().manual_seed(0)
    clock = torch.randint(12, (3, 9), generator=generator).sort(1).values
    nuisance = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    model, m, z = modality((3, 9, 4, 2), 0.8, clock=clock, nuisance=nuisance)
    m.mask[1, 5:] = False
    m.y[1, 5:] = 0.0
    same_local(model, m, z)


def test_local_of_other_types_and_links_is_the_general_one():
    model, m, z = modality((3, 9, 4, 2), 0.8)
    soft = Poisson(4, link="softplus").bind(2)
    same_local(soft, m, z)
    single = model.float().local(m.__class__(m.y.float(), m.mask), z.float())
    assert single.score.dtype == torch.float32
    double = model.double().local(m, z)
    near(single.curvature.detach().numpy(), double.curvature.numpy(), 1e-5)


def expectation_problem(samples, channels, dim, observed, seed=0):
    rng = np.random.default_rng(seed)
    root = 0.4 * rng.normal(size=(samples, dim, dim))
    V, X = root @ root.transpose(0, 2, 1), rng.normal(size=(samples, dim + 2))
    y = rng.poisson(2.0, (samples, channels)).astype(float)
    mask = rng.random(y.shape) < observed
    return V, X, y, mask, 0.4 * rng.normal(size=(channels, dim + 2))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize(("samples", "channels", "dim"), [(300, 7, 3), (128, 50, 10), (1, 1, 1)])
def test_expected_counts_equal_the_twin(samples, channels, dim, observed, known):
    V, X, y, mask, theta = expectation_problem(samples, channels, dim, observed)
    offset = np.random.default_rng(1).normal(size=y.shape) if known else None
    blocks = count_samples(V, X, y, mask, offset, width=0.5)
    value, gradient, spread, rate = expected_counts(blocks, theta)
    curvature = expected_counts_curvature(blocks, theta, spread, rate)
    wanted = expected_counts_plain(V, X, y, mask, theta, offset, width=0.5)
    for a, b in zip((value, gradient, curvature), wanted, strict=True):
        near(a, b)


@pytest.mark.parametrize("nuisance", [False, True])
@pytest.mark.parametrize("observed", [1.0, 0.6])
def test_expectation_equals_the_general_one(observed, nuisance):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 20, 2, generator=generator, dtype=torch.float64)
    model, m, z = modality((3, 20, 5, 2), observed, nuisance=rows if nuisance else None)
    m.mask[1, 12:] = False
    m.y[1, 12:] = 0.0
    root = 0.3 * torch.randn(3, 20, 2, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        got = make_expectation(model, m, z, root @ root.mT)
        general = GaussianExpectation(model, m, got.model.at_samples(z, m), root @ root.mT)
        theta = got.coefficients.read() + 0.1
        for far in (0.0, 40.0):
            theta[:, -1] += far
            for a, b in zip(got.expand(theta), general.expand(theta), strict=True):
                near(a.numpy(), b.numpy())
        assert got.expand(theta, curvature=False).curvature is None


@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("nuisance", [False, True])
def test_channels_that_did_not_move_are_not_expanded_again(observed, nuisance):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 20, 2, generator=generator, dtype=torch.float64)
    model, m, z = modality((3, 20, 5, 2), observed, nuisance=rows if nuisance else None)
    V = 0.2 * torch.eye(2, dtype=torch.float64).expand(3, 20, 2, 2)
    with torch.no_grad():
        kept = make_expectation(model, m, z, V)
        theta = kept.coefficients.read()
        kept.expand(theta)
        for moved in ([], [1], [0, 3], [0, 1, 2, 3], [4]):
            theta = theta.clone()
            theta[moved] += 0.1
            fresh = make_expectation(model, m, z, V).expand(theta)
            got = kept.expand(theta, curvature=False)
            near(got.value.numpy(), fresh.value.numpy())
            near(got.gradient.numpy(), fresh.gradient.numpy())
        near(kept.expand(theta).curvature.numpy(), fresh.curvature.numpy())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_correction_is_what_the_curvature_changes_by(shape, observed, known):
    """Equals the twin, and -1/2 the gradient of tr(R(z) P) by autograd."""
    y, mask, z, weight, offset = problem(shape, observed, spread=0.3)
    rng = np.random.default_rng(1)
    extra = rng.normal(size=y.shape) if known else None
    root = 0.4 * rng.normal(size=(*z.shape, z.shape[-1]))
    covariance = root @ root.swapaxes(-1, -2)
    arguments = (mask, z, covariance, weight, offset)
    got = poisson_correction(*arguments, width=0.5, known=extra)
    near(got, poisson_correction_plain(*arguments, width=0.5, known=extra))
    states, C = torch.tensor(z, requires_grad=True), torch.tensor(weight)
    eta = states @ C.T + torch.tensor(offset) + (torch.tensor(extra) if known else 0.0)
    rate = torch.where(torch.tensor(mask), 0.5 * eta.exp(), 0.0)
    spread = torch.einsum("ci,btij,cj->btc", C, torch.tensor(covariance), C)
    (gradient,) = torch.autograd.grad((rate * spread).sum(), states)
    near(got, -0.5 * gradient.numpy())


def test_correction_ignores_states_where_nothing_was_observed():
    _, mask, z, weight, offset = problem((3, 20, 4, 2), 0.7)
    mask[1, 5], covariance = False, np.tile(np.eye(2), (3, 20, 1, 1))
    wanted = poisson_correction(mask, z, covariance, weight, offset, width=1.0)
    z[1, 5] = np.nan
    got = poisson_correction(mask, z, covariance, weight, offset, width=1.0)
    np.testing.assert_array_equal(got[1, 5], 0.0)
    np.testing.assert_array_equal(got, wanted)


def test_threads_share_the_samples():
    """Two threads give the same but for rounding."""
    y, mask, z, weight, offset = problem((1, 6000, 60, 10), 0.9, spread=0.1)
    assert all(y.size * 75 > 1.2 * m._ENOUGH for m in (count_terms, count_correction))
    covariance = np.tile(0.1 * np.eye(10), (1, 6000, 1, 1))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            terms = poisson_terms(y, mask, z, weight, offset, width=1.0, bound=30.0)
            correction = poisson_correction(mask, z, covariance, weight, offset, width=1.0)
            samples = count_samples(covariance[0], z[0], y[0], mask[0], width=1.0)
            value, gradient, spread, rate = expected_counts(samples, weight)
            bend = expected_counts_curvature(samples, weight, spread, rate)
            results.append((*terms, correction, value, gradient, spread, rate, bend))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        near(two, one)
