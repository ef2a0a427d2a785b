"""Newton M-steps of observation models against automatic derivatives and other libraries."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import statsmodels.api as sm
import statsmodels.discrete.discrete_model as discrete
import torch
import torch.distributions as D
from statsmodels.miscmodels.ordinal_model import OrderedModel
from torch import nn

from plssm.data.batch import Modality
from plssm.observations import ObservationModel
from plssm.observations.counts.models import NegativeBinomial, Poisson
from plssm.observations.labels.classes import Bernoulli, Categorical
from plssm.observations.labels.ordinal import Ordinal
from plssm.observations.learning.expectation import Expansion, GaussianExpectation
from plssm.observations.learning.expected_fit import make_expectation
from plssm.observations.learning.newton_fit import climb, fit_predictor
from plssm.observations.learning.point_expectation import PointExpectation
from plssm.observations.learning.quadrature import (
    NODES,
    expected_derivatives,
    gauss_hermite,
    matched_points,
    square_root,
)


class Rates(ObservationModel):
    """Counts that are nothing but a distribution."""

    def distribution(self, features):
        return D.Poisson(features.exp(), validate_args=False)


class Overdispersed(ObservationModel):
    """Negative binomial counts with a dispersion for each channel."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.log_dispersion = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def distribution(self, features):
        k = self.log_dispersion.exp()
        return D.NegativeBinomial(k, logits=features - self.log_dispersion, validate_args=False)


class Coins(ObservationModel):
    def distribution(self, features):
        return D.Bernoulli(logits=features)


class Classes(ObservationModel):
    """Softmax; the last class is the reference."""

    def __init__(self, classes, **options):
        super().__init__(1, predictors=classes - 1, **options)

    def distribution(self, features):
        return D.Categorical(logits=nn.functional.pad(features, (0, 1)).unsqueeze(-2))


class Heavy(ObservationModel):
    """Student-t noise: not concave."""

    def distribution(self, features):
        return D.StudentT(3.0, features, 0.5)


class Private(Rates):
    """Some covariates belong to some channels only; the others' weights have no part."""

    @property
    def covariate_mask(self):
        mask = torch.zeros(self.predictors, self.n_covariates, dtype=torch.bool)
        mask[:, 0], mask[0, 1], mask[1, 2:] = True, True, True
        return mask

    def features(self, z, nuisance=None):
        eta = super().features(z)
        if nuisance is None:
            return eta
        return eta + nuisance @ (self.nuisance_weight * self.covariate_mask).mT


def _problem(model, *, dim=2, steps=9, trials=3, spread=0.4, seed=0):
    """A bound model with random parameters, and data with masks, a clock and ragged trials."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    model.bind(dim)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * normal(*p.shape))
    mean, root = normal(trials, steps, dim), normal(trials, steps, dim, dim)
    samples = steps + 2
    clock = (torch.rand(trials, samples, generator=generator) * steps).long().sort(-1).values
    mask = torch.rand(trials, samples, model.channels, generator=generator) > 0.3
    mask[1, -3:] = False
    nuisance = normal(trials, samples, model.nuisance) if model.nuisance else None
    path = torch.take_along_dim(mean, clock[..., None], 1)
    y = model.sample(model.features(path, nuisance), 1).to(torch.float64)
    m = Modality(torch.where(mask, y, 0.0), mask, clock, nuisance)
    return model, m, mean, spread * root @ root.mT


def _gathered(m, values):
    """Values of the latent steps ``[B, T, ...]`` at the samples, one row each."""
    rows = torch.arange(len(values))[:, None].expand_as(m.clock)
    return values[rows, m.clock].flatten(0, 1)


def _design(m, states):
    parts = [states, torch.ones_like(states[..., :1])]
    if m.nuisance is not None:
        rest = m.nuisance.flatten(0, 1)
        parts.append(rest.expand(*states.shape[:-1], -1))
    return torch.cat(parts, -1)


def _density(model, m, eta):
    """Log-density ``[c, S, N]`` of predictors ``[c, S, K]``, written out."""
    mask = m.mask.flatten(0, 1)
    y = torch.where(mask, m.y.flatten(0, 1), model.fill)
    return torch.where(mask, model.distribution(eta).log_prob(y), 0.0)


def _by_quadrature(model, m, mean, covariance):
    """The objective of independent channels as a function of [K, q], one node after the other."""
    centre, V = _gathered(m, mean), _gathered(m, covariance)
    nodes, weights = gauss_hermite(NODES)

    def value(theta):
        c = theta[:, : model.dim]
        s = torch.einsum("ki,tij,kj->tk", c, V, c).sqrt()
        eta = _design(m, centre) @ theta.mT
        return sum(w * _density(model, m, eta + x * s).sum() for x, w in zip(nodes, weights))

    return value


def _by_points(model, m, mean, covariance):
    """The objective over matched points."""
    centre, points = _gathered(m, mean), matched_points(32, model.dim)
    root = square_root(_gathered(m, covariance))
    states = model.readout(centre + torch.einsum("tij,cj->cti", root, points))

    def value(theta):
        return _density(model, m, _design(m, states) @ theta.mT).sum() / len(points)

    return value


def _assert_derivatives(expectation, theta, value):
    """Value, gradient and every block of the negative Hessian, the rest of which is zero."""
    got = expectation.expand(theta)
    torch.testing.assert_close(got.value.sum(), value(theta), rtol=1e-10, atol=1e-9)
    gradient = torch.autograd.functional.jacobian(value, theta)
    torch.testing.assert_close(got.gradient.reshape(theta.shape), gradient, rtol=1e-8, atol=1e-8)
    size = theta.numel()
    hessian = -torch.autograd.functional.hessian(value, theta).reshape(size, size)
    wanted = torch.block_diag(*got.curvature)
    torch.testing.assert_close(wanted, hessian, rtol=1e-8, atol=1e-8)
    slim = expectation.expand(theta, curvature=False)
    assert slim.curvature is None
    assert torch.equal(slim.gradient, got.gradient)


# ---- derivatives -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "model",
    [
        Rates(3),
        Rates(2, nuisance=2),
        Overdispersed(2, nuisance=1),
        Coins(4),
        Heavy(2),
        Poisson(2, link="softplus", bin_seconds=0.5),
        NegativeBinomial(2),
        Bernoulli(2, nuisance=1),
        Ordinal(2, 4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_derivatives_of_the_quadrature(model):
    model, m, mean, covariance = _problem(model)
    with torch.no_grad():
        expectation = make_expectation(model, m, mean, covariance)
        theta = expectation.coefficients.read()
    assert isinstance(expectation, GaussianExpectation)
    _assert_derivatives(expectation, theta, _by_quadrature(model, m, mean, covariance))


def test_derivatives_of_the_closed_form():
    r"""E[log p] = y mu - e^{mu + v / 2} for Poisson counts with exponential rates."""
    model, m, mean, covariance = _problem(Poisson(3, nuisance=1))
    centre, V = _gathered(m, mean), _gathered(m, covariance)
    y, mask = m.y.flatten(0, 1), m.mask.flatten(0, 1)

    def value(theta):
        c = theta[:, :2]
        eta = _design(m, centre) @ theta.mT
        v = torch.einsum("ki,tij,kj->tk", c, V, c)
        return ((y * eta - (eta + v / 2).exp() - torch.lgamma(y + 1)) * mask).sum()

    expectation = make_expectation(model, m, mean, covariance)
    _assert_derivatives(expectation, expectation.coefficients.read().detach(), value)


@pytest.mark.parametrize(
    "model",
    [Classes(4), Classes(3, nuisance=2), Categorical(3), Rates(2, readout="relu", nuisance=1)],
    ids=lambda m: type(m).__name__,
)
def test_derivatives_at_points(model):
    model, m, mean, covariance = _problem(model)
    expectation = make_expectation(model, m, mean, covariance)
    assert isinstance(expectation, PointExpectation)
    theta = expectation.coefficients.read().detach()
    _assert_derivatives(expectation, theta, _by_points(model, m, mean, covariance))


@pytest.mark.parametrize("model", [Rates(3, nuisance=1), Classes(3), Coins(2, readout="relu")])
def test_derivatives_at_a_known_path(model):
    model, m, mean, covariance = _problem(model)
    states = model.readout(_gathered(m, mean))

    def value(theta):
        return _density(model, m, (_design(m, states) @ theta.mT)[None]).sum()

    for nothing in (None, 0 * covariance):
        expectation = make_expectation(model, m, mean, nothing)
        theta = expectation.coefficients.read().detach()
        _assert_derivatives(expectation, theta, value)


@pytest.mark.parametrize("readout", ["linear", "relu"])
def test_derivatives_with_covariates_of_single_channels(readout):
    model, m, mean, covariance = _problem(Private(3, nuisance=4, readout=readout))
    make = _by_quadrature if readout == "linear" else _by_points
    whole = make(model, m, mean, covariance)
    expectation = make_expectation(model, m, mean, covariance)
    coefficients = expectation.coefficients
    theta = coefficients.read().detach()
    assert theta.shape == (3, 2 + 1 + 1 + 2)  # weights, intercept, shared, two of their own

    def value(theta):
        full = torch.zeros(3, 7, dtype=torch.float64)
        parts = [(0, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 5, 6]), (2, [0, 1, 2, 3])]
        for row, places in parts:
            full = full.index_put(
                (torch.full((len(places),), row), torch.tensor(places)), theta[row, : len(places)]
            )
        return whole(full)

    _assert_derivatives(expectation, theta, value)
    before = model.nuisance_weight.detach().clone()
    coefficients.write(theta + 1)
    mask = model.covariate_mask
    assert torch.equal(model.nuisance_weight[~mask], before[~mask])
    torch.testing.assert_close(model.nuisance_weight[mask].detach(), before[mask] + 1)


def test_a_known_part_of_the_predictor_is_kept():
    class Shifted(Rates):
        def features(self, z, nuisance=None):
            return super().features(z, nuisance) + torch.tensor([0.3, -0.7]).to(z)

    model, m, mean, covariance = _problem(Shifted(2))
    plain = Rates(2).bind(2)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain.bias += torch.tensor([0.3, -0.7]).double()
    for V in (covariance, None):
        got = make_expectation(model, m, mean, V).expand(
            make_expectation(model, m, mean, V).coefficients.read().detach()
        )
        other = make_expectation(plain, m, mean, V)
        wanted = other.expand(other.coefficients.read().detach())
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_expected_derivatives_equal_automatic_ones():
    model = Overdispersed(3).bind(2)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    variance = torch.rand(3, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.poisson(mean.exp(), generator=generator)
    m = Modality(y, torch.rand(y.shape, generator=generator) > 0.3)
    x, w = gauss_hermite(NODES)
    mean.requires_grad_()
    variance.requires_grad_()
    eta = [mean + float(a) * variance.sqrt() for a in x]
    value = sum(b * model.masked_log_prob(e, m) for b, e in zip(w, eta))
    first = torch.autograd.grad(value.sum(), (mean, variance), create_graph=True)
    second = [torch.autograd.grad(g.sum(), (mean, variance), retain_graph=True) for g in first]
    wanted = (value, *first, second[0][0], second[0][1], second[1][1])
    got = model.expected_derivatives(mean.detach(), variance.detach(), m)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


def test_expected_derivatives_of_a_nearly_known_predictor():
    """Towards zero variance they go to the derivatives of the log-density, without noise."""
    mean = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def derivatives(eta):
        return eta.exp(), eta.exp(), -eta.exp()

    for variance in (0.0, 1e-20, 1e-12, 1e-9, 1e-7, 1e-5):
        got = expected_derivatives(derivatives, mean, torch.full_like(mean, variance))
        wanted = (mean + variance / 2).exp()
        for values, factor, tolerance in zip(
            got, (1, 1, 0.5, 1, 0.5, 0.25), (1e-12, 1e-12, 1e-8, 1e-12, None, None), strict=True
        ):
            assert bool(torch.isfinite(values).all())
            if tolerance or variance > 1e-6:  # mixed ones are given up where they do not matter
                torch.testing.assert_close(
                    values, factor * wanted, rtol=tolerance or 1e-4, atol=0.0
                )


def test_points_have_the_moments_of_a_standard_normal():
    for dim in (1, 3, 16, 17, 40):
        points = matched_points(32, dim)
        assert len(points) == max(32, 2 * dim)
        assert bool((points.sum(0).abs() < 1e-9).all())
        identity = torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(points.mT @ points / len(points), identity, atol=1e-9, rtol=0)


def test_a_root_of_a_singular_covariance():
    root = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    root[1, :, 2], root[2] = 0.0, 0.0
    covariance = root @ root.mT
    got = square_root(covariance)
    torch.testing.assert_close(got @ got.mT, covariance, atol=1e-12, rtol=1e-12)


# ---- steps -----------------------------------------------------------------------------
def _relative_gradient(expectation):
    """Largest gradient relative to the sum of what the samples contribute, ridge left out."""
    theta = expectation.coefficients.read().detach()
    gradient = expectation.expand(theta).gradient.reshape(theta.shape)
    model, m = expectation.model, expectation.m
    with torch.no_grad():
        eta = expectation.regressors.predict(theta).unflatten(0, m.y.shape[:2])
        slope = model.derivatives(eta, m)[1].flatten(0, 1).abs()
    scale = slope.mT @ expectation.regressors.shared.abs()
    return float((gradient.abs() / scale).max())


@pytest.mark.parametrize("model", [Poisson(5), Bernoulli(4), NegativeBinomial(3), Categorical(4)])
def test_a_warm_start_settles_within_eight_evaluations(model):
    model, m, mean, covariance = _problem(model, dim=3, steps=60, spread=0.05)
    model.m_step(m, mean, covariance)
    generator = torch.Generator().manual_seed(5)
    moved = mean + 0.05 * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expectation = make_expectation(model, m, moved, covariance)
        assert _relative_gradient(expectation) > 2e-3
        end = fit_predictor(expectation, ridge=1e-9)
        assert bool(end.settled.all())
        assert end.evaluations <= 8
        assert _relative_gradient(expectation) < 2e-4


@pytest.mark.parametrize("model", [Rates(3, nuisance=1), Coins(2), Heavy(3), Classes(3)])
def test_the_end_is_a_maximum(model):
    """The gradient with the ridge vanishes, from far away too."""
    model, m, mean, covariance = _problem(model, steps=40, spread=0.1)
    with torch.no_grad():
        model.weight.mul_(4.0)
        model.bias.add_(2.0)
        expectation = make_expectation(model, m, mean, covariance)
        end = fit_predictor(expectation, tolerance=1e-9, iterations=60)
        theta = expectation.coefficients.read()
    assert bool(end.settled.all())
    found = expectation.expand(theta)
    ridge = 1e-3 * expectation.ridge_scale() * theta
    torch.testing.assert_close(
        found.gradient.reshape(theta.shape),
        ridge,
        atol=1e-6 * float(end.value.abs().max()),
        rtol=0,
    )
    assert bool((torch.linalg.eigvalsh(found.curvature) > 0).all())


def _flat(m, z):
    return np.column_stack([z.flatten(0, 1).numpy(), np.ones(z.shape[0] * z.shape[1])])


def _complete(model, *, dim=2, steps=150, seed=3):
    generator = torch.Generator().manual_seed(seed)
    model.bind(dim)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    z = torch.randn(3, steps, dim, generator=generator, dtype=torch.float64)
    y = model.sample(model.features(z), 2).to(torch.float64)
    mask = torch.rand(y.shape, generator=generator) > 0.2
    return Modality(torch.where(mask, y, 0.0), mask), z


@pytest.mark.parametrize(
    ("model", "family"),
    [(Poisson(3), sm.families.Poisson()), (Bernoulli(3), sm.families.Binomial())],
    ids=["poisson", "binomial"],
)
def test_equals_statsmodels_at_a_known_path(model, family):
    m, z = _complete(model)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
        fit_predictor(make_expectation(model, m, z, None), ridge=1e-12, tolerance=1e-9)
    for i in range(3):
        seen = m.mask[..., i].flatten().numpy()
        y = m.y[..., i].flatten().numpy()[seen]
        wanted = sm.GLM(y, _flat(m, z)[seen], family=family).fit(tol=1e-12).params
        got = [*model.weight[i].tolist(), model.bias[i].item()]
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_negative_binomial_equals_statsmodels():
    """Predictor and dispersion take turns until both are at the joint maximum."""
    model = NegativeBinomial(2)
    m, z = _complete(model, steps=300)
    model.init_from(m, z)
    for i in range(2):
        seen = m.mask[..., i].flatten().numpy()
        y = m.y[..., i].flatten().numpy()[seen]
        wanted = (
            discrete.NegativeBinomial(y, _flat(m, z)[seen]).fit(disp=0, method="newton").params
        )
        got = [*model.weight[i].tolist(), model.bias[i].item(), 1 / model.dispersion[i].item()]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_ordinal_equals_statsmodels():
    model = Ordinal(1, 4)
    m, z = _complete(model, steps=300)
    model.init_from(m, z + 1.0)  # thresholds and weights are entangled
    seen = m.mask.flatten().numpy()
    fit = OrderedModel(
        m.y.flatten().numpy()[seen].astype(int), _flat(m, z + 1.0)[seen, :2], distr="logit"
    ).fit(disp=0, method="bfgs", gtol=1e-8)
    thresholds = fit.model.transform_threshold_params(fit.params)[1:-1]
    np.testing.assert_allclose(model.weight[0].tolist(), fit.params[:2], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(model.thresholds[0].tolist(), thresholds, rtol=2e-3, atol=2e-3)


def test_multinomial_regression_equals_scipy():
    model = Categorical(4)
    m, z = _complete(model)
    x, y, seen = _flat(m, z), m.y.flatten().long().numpy(), m.mask.flatten().numpy()

    def loss(beta):
        logits = np.column_stack([x @ beta.reshape(3, 3).T, np.zeros(len(x))])
        return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(y)), y][seen].sum()

    wanted = scipy.optimize.minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-5}).x
    with torch.no_grad():
        fit_predictor(make_expectation(model, m, z, None), ridge=1e-12, tolerance=1e-9)
    got = torch.cat([model.weight, model.bias[:, None]], 1).detach().numpy()
    np.testing.assert_allclose(got, wanted.reshape(3, 3), atol=1e-4)
    assert loss(got.ravel()) <= loss(wanted) + 1e-9


@pytest.mark.parametrize("model", [Bernoulli(2), Categorical(3), Ordinal(1, 3)])
def test_separable_data_stay_finite(model):
    z = torch.linspace(-3, 3, 60, dtype=torch.float64)[None, :, None]
    level = (z > -1).double() + (z > 1).double()
    y = (level > 0).double().expand(1, 60, 2) if isinstance(model, Bernoulli) else level
    m = Modality(y.contiguous(), torch.ones_like(y, dtype=torch.bool))
    model.bind(1)
    model.init_from(m, z)
    for _ in range(4):
        model.m_step(m, z, torch.full((1, 60, 1, 1), 1e-4, dtype=torch.float64))
    assert float(model.log_prob(m, z).detach()) > -5.0
    assert all(bool((p.abs() < 500).all()) for p in model.parameters())


def test_silent_channels_and_channels_without_data():
    model, m, mean, covariance = _problem(Poisson(3), steps=30)
    y, mask = m.y.clone(), m.mask.clone()
    y[..., 0], mask[..., 1] = 0.0, False
    m = Modality(y * mask, mask, m.clock)
    before = copy.deepcopy(model)
    for _ in range(3):
        model.m_step(m, mean, covariance)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert -60 < float(model.bias[0].detach()) < -5
    assert torch.equal(model.weight[1], before.weight[1])
    assert torch.equal(model.bias[1], before.bias[1])
    assert not torch.equal(model.weight[2], before.weight[2])


def test_a_channel_that_is_far_off_does_not_hold_up_the_others():
    model, m, mean, covariance = _problem(Rates(3), steps=40, spread=0.05)
    lonely = copy.deepcopy(model)
    lonely.m_step(m, mean, covariance)
    with torch.no_grad():
        model.bias[1] = 9.0  # its first Newton steps are useless
    model.m_step(m, mean, covariance)
    for name in ("weight", "bias"):
        got, wanted = getattr(model, name).detach(), getattr(lonely, name).detach()
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


def test_parameters_that_overflow_are_left_for_a_fresh_start():
    model, m, mean, covariance = _problem(Rates(2), steps=40, spread=0.05)
    wanted = copy.deepcopy(model)
    wanted.m_step(m, mean, covariance)
    for huge in (1e3, 1e200):
        with torch.no_grad():
            model.weight[0] = huge
        model.m_step(m, mean, covariance)
        torch.testing.assert_close(model.weight, wanted.weight, atol=1e-3, rtol=1e-3)


def test_a_distribution_that_refuses_its_arguments():
    class Strict(Rates):
        def distribution(self, features):
            return D.Poisson(torch.where(features > 8, -1.0, features.exp()))

    model, m, mean, covariance = _problem(Strict(2), steps=40, spread=0.05)
    plain = Rates(2).bind(2)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        model.bias.fill_(-4.0)  # from here the first Newton steps jump far up
        plain.bias.fill_(-4.0)
    model.m_step(m, mean, covariance)
    plain.m_step(m, mean, covariance)
    torch.testing.assert_close(model.weight, plain.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "frozen", [("weight",), ("bias",), ("nuisance_weight",), ("weight", "bias")]
)
def test_frozen_parts_keep_their_values_and_the_rest_is_optimal(frozen):
    model, m, mean, covariance = _problem(Rates(2, nuisance=2), steps=30, spread=0.1)
    before = copy.deepcopy(model)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    with torch.no_grad():
        expectation = make_expectation(model, m, mean, covariance)
        fit_predictor(expectation, ridge=1e-12, tolerance=1e-9)
        found = expectation.expand(expectation.coefficients.read())
    free = expectation.coefficients.free()
    assert bool((found.gradient[free].abs() < 1e-5).all())
    for name in ("weight", "bias", "nuisance_weight"):
        same = torch.equal(getattr(model, name), getattr(before, name))
        assert same == (name in frozen)


def test_float32_copies():
    for model in (Poisson(2), NegativeBinomial(2), Classes(3)):
        model, m, mean, covariance = _problem(model, steps=40, spread=0.05)
        small = copy.deepcopy(model).to(torch.float32)
        half = m.to(dtype=torch.float32)
        model.m_step(m, mean, covariance)
        small.m_step(half, mean.float(), covariance.float())
        for got, wanted in zip(small.parameters(), model.parameters(), strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), wanted, atol=3e-3, rtol=3e-3)
        value = small.expected_log_prob(half, mean.float(), covariance.float())
        assert value.dtype == torch.float32


def test_a_parameter_that_all_channels_share():
    """The scale of normal noise: the root of the mean squared residual of a regression."""

    class Shared(ObservationModel):
        def __init__(self, channels):
            super().__init__(channels)
            self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def distribution(self, features):
            return D.Normal(features, self.log_scale.exp())

    model = Shared(2)
    m, z = _complete(model)
    model.init_from(m, z)
    total = 0.0
    for i in range(2):
        seen = m.mask[..., i].flatten().numpy()
        x, y = _flat(m, z)[seen], m.y[..., i].flatten().numpy()[seen]
        total += np.linalg.lstsq(x, y, rcond=None)[1][0]
    np.testing.assert_allclose(
        float(model.log_scale.detach().exp()), math.sqrt(total / int(m.mask.sum())), rtol=1e-4
    )


def test_parameters_of_channels_that_depend_on_each_other_do_no_harm():
    """Rows of a parameter need not belong to channels: then the steps are checked as a whole."""

    class Tied(ObservationModel):
        def __init__(self, channels):
            super().__init__(channels)
            self.share = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

        def distribution(self, features):
            return D.Normal(features, 0.1 + 3 * torch.softmax(self.share, 0))

    model, m, mean, covariance = _problem(Tied(3), steps=30, spread=0.05)
    with torch.no_grad():
        model.share.copy_(torch.tensor([2.0, -3.0, 0.0]))
    last = float(model.expected_log_prob(m, mean, covariance).sum())
    for _ in range(4):
        model.m_step(m, mean, covariance)
        now = float(model.expected_log_prob(m, mean, covariance).sum())
        assert now >= last - 1e-9 * abs(last)
        last = now


def test_frozen_parameters_of_channels_keep_their_values():
    model, m, mean, covariance = _problem(Ordinal(2, 4), steps=40, spread=0.05)
    model.log_gaps.requires_grad_(False)
    before = copy.deepcopy(model)
    model.m_step(m, mean, covariance)
    assert torch.equal(model.log_gaps, before.log_gaps)
    assert not torch.equal(model.first_threshold, before.first_threshold)


def test_one_step():
    for model in (Poisson(2), Classes(3), Overdispersed(2)):
        model.bind(2)
        y = torch.ones(1, 1, model.channels, dtype=torch.float64)
        m = Modality(y, torch.ones_like(y, dtype=torch.bool))
        z = torch.full((1, 1, 2), 0.5, dtype=torch.float64)
        covariance = 0.1 * torch.eye(2, dtype=torch.float64)[None, None]
        before = float(model.expected_log_prob(m, z, covariance))
        model.m_step(m, z, covariance)
        assert float(model.expected_log_prob(m, z, covariance)) >= before
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_large_numbers_of_regressors_are_summed_in_parts(monkeypatch):
    from plssm.observations.learning import regressors

    model, m, mean, covariance = _problem(Rates(2, nuisance=3), steps=30)
    expectation = make_expectation(model, m, mean, covariance)
    theta = expectation.coefficients.read().detach()
    wanted = expectation.expand(theta)
    monkeypatch.setattr(regressors, "_KEPT", 100)
    for a, b in zip(expectation.expand(theta), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


# ---- the climber -----------------------------------------------------------------------
def test_climbing_functions_that_are_not_concave():
    """- log(1 + (x - a)^2) has its curvature turned round far from its maximum."""
    peak = torch.tensor([[1.0], [-40.0], [300.0]], dtype=torch.float64)

    def expand(theta, *, curvature):
        theta = theta.clone().requires_grad_()
        value = -torch.log1p((theta - peak).square()).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), theta)
        return Expansion(value.detach(), gradient.detach(), -second[..., None])

    with torch.enable_grad():
        end = climb(
            expand, torch.zeros(3, 1).double(), free=torch.ones(3, 1, dtype=torch.bool),
            ridge=torch.zeros(3, 1).double(), count=torch.ones(3).double(), tolerance=1e-8,
            iterations=60,
        )  # fmt: skip
    assert bool(end.settled.all()) and bool(end.concave.all())
    torch.testing.assert_close(end.theta, peak, atol=1e-6, rtol=0)


def test_climbing_stops_where_nothing_is_finite():
    def expand(theta, *, curvature):
        value = torch.where(theta[:, 0] > 5, math.nan, -theta.square().sum(1))
        gradient = -2 * theta
        return Expansion(value, gradient, 2 * torch.eye(1).double().expand(2, 1, 1))

    start = torch.tensor([[9.0], [3.0]], dtype=torch.float64)
    end = climb(
        expand, start, free=torch.ones(2, 1, dtype=torch.bool), ridge=torch.zeros(2, 1).double(),
        count=torch.ones(2).double(),
    )  # fmt: skip
    assert end.theta[0].item() == 9.0 and end.value[0].item() == -math.inf
    assert abs(end.theta[1].item()) < 1e-10
    assert end.settled.tolist() == [False, True]
