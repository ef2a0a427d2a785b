"""Count models against scipy, automatic differentiation, Monte Carlo and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from plssm.data import Dataset
from plssm.data.batch import Modality
from plssm.errors import DataError, PlssmError, ShapeError
from plssm.observations import ObservationModel
from plssm.observations.counts.distributions import log_factorial, log_rising
from plssm.observations.counts.models import NegativeBinomial, Poisson
from plssm.observations.counts.rates import LOG_RATE_BOUND, make_link
from plssm.observations.counts.zero_inflated import ZeroInflatedPoisson
from plssm.testing import ObservationContract

MODELS = {
    "exp": lambda n=3: Poisson(n),
    "softplus": lambda n=3: Poisson(n, link="softplus", bin_seconds=0.5),
    "negative binomial": lambda n=3: NegativeBinomial(n, bin_seconds=2.0),
    "zero-inflated": lambda n=3: ZeroInflatedPoisson(n),
}
each_model = pytest.mark.parametrize("create", MODELS.values(), ids=MODELS.keys())


def _rate(model, features):
    """Expected counts, by numpy."""
    rate = np.exp(features) if model.link.name == "exp" else np.log1p(np.exp(features))
    return rate * model.bin_seconds


# ---- the contract -----------------------------------------------------------------------------
class _PoissonContract(ObservationContract):
    def reference(self, features, y):
        return scipy.stats.poisson(_rate(self.model, features)).logpmf(y)

    def simulate(self, features, rng):
        return rng.poisson(_rate(self.model, features))


class TestPoisson(_PoissonContract):
    def create(self):
        return Poisson(4)


class TestPoissonInHertz(_PoissonContract):
    def create(self):
        return Poisson(3, bin_seconds=0.25, nuisance=2)


class TestPoissonRelu(_PoissonContract):
    def create(self):
        return Poisson(3, readout="relu", bias=False)


class TestPoissonIdentity(_PoissonContract):
    dim = 4

    def create(self):
        return Poisson(3, readout="identity", nuisance=1)


class TestSoftplus(_PoissonContract):
    def create(self):
        return Poisson(4, link="softplus", bin_seconds=2.0)


class TestSoftplusRelu(_PoissonContract):
    def create(self):
        return Poisson(3, link="softplus", readout="relu", nuisance=1)


class TestKnownPoisson(_PoissonContract):
    def create(self):
        rng = np.random.default_rng(0)
        return Poisson.from_parameters(
            rng.normal(size=(4, 3)) / 2, np.arange(4.0) / 4, nuisance_weight=np.ones((4, 1))
        )


class TestNegativeBinomial(ObservationContract):
    def create(self):
        return NegativeBinomial(4)

    def _scipy(self, features):
        k = self.model.dispersion.detach().numpy()
        return k, k / (k + _rate(self.model, features))

    def reference(self, features, y):
        return scipy.stats.nbinom(*self._scipy(features)).logpmf(y)

    def simulate(self, features, rng):
        k, p = self._scipy(features)
        return rng.negative_binomial(np.broadcast_to(k, p.shape), p)


class TestNegativeBinomialInHertz(TestNegativeBinomial):
    def create(self):
        rng = np.random.default_rng(1)
        return NegativeBinomial.from_parameters(
            rng.normal(size=(3, 3)) / 2,
            bias=[1.0, 2.0, 0.0],
            dispersion=[0.5, 3.0, 200.0],
            bin_seconds=0.2,
            nuisance_weight=np.ones((3, 2)),
        )


class TestZeroInflatedPoisson(ObservationContract):
    def create(self):
        return ZeroInflatedPoisson(4)

    def reference(self, features, y):
        extra = 1 / (1 + np.exp(-self.model.zero_logit.detach().numpy()))
        poisson = scipy.stats.poisson(_rate(self.model, features)).pmf(y)
        return np.log(extra * (y == 0) + (1 - extra) * poisson)

    def simulate(self, features, rng):
        extra = 1 / (1 + np.exp(-self.model.zero_logit.detach().numpy()))
        return rng.poisson(_rate(self.model, features)) * (rng.random(features.shape) > extra)


class TestZeroInflatedRelu(TestZeroInflatedPoisson):
    def create(self):
        return ZeroInflatedPoisson(3, bin_seconds=2.0, readout="relu", nuisance=1)


# ---- links --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["exp", "softplus"])
def test_links_agree_with_autograd_and_high_precision(name):
    """Rate, its logarithm and all derivatives, across the switches to series and parabola."""
    link = make_link(name)
    eta = torch.cat([torch.linspace(-40, 60, 301), torch.tensor([-7.0001, -6.9999, 30.0001])])
    eta = eta.double()
    extended = np.exp(eta.numpy().astype(np.longdouble))
    if name == "softplus":
        extended = np.log1p(extended)
    inside = eta.numpy() < LOG_RATE_BOUND if name == "exp" else np.ones(len(eta), bool)
    rate = link.rate(eta).numpy()
    np.testing.assert_allclose(rate[inside], extended[inside].astype(float), rtol=1e-13)
    log = link.log_rate(eta).numpy()[inside]
    np.testing.assert_allclose(log, np.log(extended[inside]).astype(float), rtol=1e-12)
    terms = link.terms(eta)
    at = eta.clone().requires_grad_()
    for value, first, second in (
        (link.log_rate(at), terms.slope, -terms.excess),
        (link.rate(at), terms.value * terms.slope, terms.bend),
    ):
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), at)
        torch.testing.assert_close(slope.detach(), first.expand_as(eta), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(curve, second.expand_as(eta), rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(terms.log, link.log_rate(eta))
    rates = torch.tensor([1e-9, 0.3, 20.0, 500.0], dtype=torch.float64)
    torch.testing.assert_close(link.rate(link.predictor(rates)), rates, rtol=1e-9, atol=0)


def test_softplus_curvature_is_exact_and_never_negative():
    """Against the formula in extended precision, where it cancels in double."""
    eta = np.linspace(-14, 40, 109)
    u = np.exp(eta.astype(np.longdouble))
    rate, logistic = np.log1p(u), u / (1 + u)
    bend = logistic / (1 + u)
    for y in (0.0, 3.0):
        wanted = y * ((logistic / rate) ** 2 - bend / rate) + bend
        model = Poisson(1, link="softplus").bind(1)
        m = Modality(torch.full((1, len(eta), 1), y).double(), torch.ones(1, len(eta), 1).bool())
        features = torch.from_numpy(eta)[None, :, None]
        curvature = model.derivatives(features, m)[2][0, :, 0]
        np.testing.assert_allclose(curvature.numpy(), wanted.astype(float), rtol=1e-9)
        assert bool((curvature >= 0).all())


def test_exp_link_is_smooth_where_the_parabola_begins():
    terms = make_link("exp").terms(LOG_RATE_BOUND + torch.tensor([-1e-6, 0.0, 1e-6]).double())
    for part in (terms.value, terms.slope.expand(3), terms.bend):
        assert float((part / part[1] - 1).abs().max()) < 1e-5
    assert float(terms.excess.max()) < 1e-5


def test_log_factorial_looks_up_and_computes():
    for y in ([0.0, 1.0, 5.0, 170.0], [3.0, 1e5, 1e12]):
        wanted = scipy.special.gammaln(np.array(y) + 1)
        got = log_factorial(torch.tensor([y], dtype=torch.float64))[0]
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-14)
    assert log_factorial(torch.zeros(0, 3)).shape == (0, 3)


def test_normaliser_of_the_negative_binomial_keeps_its_digits():
    """Sum of log(1 + j / k) over j < y, for dispersions from 1e-3 to 1e12, with its gradient."""
    y = torch.tensor([0.0, 1.0, 2.0, 7.0, 60.0], dtype=torch.float64)
    for k in (1e-3, 0.7, 29.9, 30.1, 1e4, 1e8, 1e12):
        log_k = torch.tensor(np.log(k), requires_grad=True)
        got = log_rising(y, log_k)
        wanted = [np.log1p(np.arange(n) / k).sum() for n in y.int().tolist()]
        slope = [-(np.arange(n) / (k + np.arange(n))).sum() for n in y.int().tolist()]
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-11, atol=1e-13)
        (gradient,) = torch.autograd.grad(got.sum(), log_k)
        np.testing.assert_allclose(float(gradient), sum(slope), rtol=1e-9, atol=1e-13)


def test_normaliser_by_table_equals_the_one_entry_by_entry():
    generator = torch.Generator().manual_seed(0)
    y = torch.poisson(torch.full((3, 40, 3), 2.0, dtype=torch.float64), generator=generator)
    log_k = torch.tensor([-2.0, 0.5, 9.0], dtype=torch.float64, requires_grad=True)
    by_table = log_rising(y, log_k)
    by_entry = torch.stack([log_rising(y[..., n], log_k[n]) for n in range(3)], dim=-1)
    torch.testing.assert_close(by_table, by_entry, rtol=1e-12, atol=1e-14)
    weight = torch.rand(y.shape, generator=generator).double()
    gradients = [torch.autograd.grad((v * weight).sum(), log_k)[0] for v in (by_table, by_entry)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


# ---- extremes and precision ---------------------------------------------------------------------
@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_predictors_stay_finite(create, dtype):
    """Densities, derivatives, means and draws at predictors from -1000 to 1000."""
    model = create(1).bind(1).to(dtype)
    eta = torch.tensor([-1000.0, -100, -20, 0, 20, 60, 100, 1000], dtype=dtype)[None, :, None]
    largest = 40.0 if dtype == torch.float32 else 1000.0
    eta = eta.clamp_max(largest)
    for y in (0.0, 1.0, 3e4):
        m = Modality(torch.full_like(eta, y), torch.ones_like(eta, dtype=torch.bool))
        for positive in (False, True):
            parts = model.derivatives(eta, m, positive=positive)
            assert all(bool(torch.isfinite(p).all()) for p in parts)
            assert all(p.dtype == dtype for p in parts)
            if positive:
                assert bool((parts[2] >= 0).all())
        at = eta.clone().requires_grad_()
        value = model.masked_log_prob(at, m)
        gradient = torch.autograd.grad(value.sum(), [at, *_own(model)], create_graph=True)
        (second,) = torch.autograd.grad(gradient[0].sum(), at)
        assert bool(torch.isfinite(second).all())
        assert all(bool(torch.isfinite(g).all()) for g in (value, *gradient))
    draws = model.sample(eta, 0)
    assert bool(torch.isfinite(draws).all() and (draws >= 0).all())
    assert bool(torch.isfinite(model.distribution(eta).mean).all())
    covariance = torch.full((1, eta.shape[1], 1, 1), 1.0, dtype=dtype)
    assert all(bool(torch.isfinite(v).all()) for v in model.moments(eta, covariance * 0.0))
    assert all(bool(torch.isfinite(v).all()) for v in model.moments(eta, covariance))


def _own(model):
    """Parameters besides those of the predictor."""
    shared = {"weight", "bias", "nuisance_weight"}
    return [p for n, p in model.named_parameters() if n not in shared]


@each_model
def test_derivatives_equal_autograd_over_a_wide_range(create):
    """Also where the contract's draws do not go: predictors of -25 to 35, counts of 0 to 500."""
    model = create(1).bind(1)
    eta = torch.linspace(-25, 35, 241, dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 30.0, 500.0], dtype=torch.float64)
    eta, y = (v.flatten()[None, :, None] for v in torch.meshgrid(eta, y, indexing="ij"))
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    got = model.derivatives(eta, m)
    wanted = ObservationModel.derivatives(model, eta, m)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert model.concave == bool((got[2] >= 0).all())


def test_majoriser_of_extra_zeros():
    """Responsibility-weighted Poisson curvature; the exact one is negative for some predictors."""
    model = ZeroInflatedPoisson.from_parameters([[1.0]], zero_logit=[0.5])
    eta = torch.linspace(-4, 4, 81, dtype=torch.float64)[None, :, None]
    m = Modality(torch.zeros_like(eta), torch.ones_like(eta, dtype=torch.bool))
    exact = model.derivatives(eta, m)[2]
    value, gradient, majoriser = model.derivatives(eta, m, positive=True)
    assert float(exact.min()) < -0.01
    rate, extra = eta.exp(), torch.sigmoid(torch.tensor(0.5).double())
    poisson = (1 - extra) * (-rate).exp() / (extra + (1 - extra) * (-rate).exp())
    torch.testing.assert_close(majoriser, poisson * rate)
    # minorise-maximise: the Poisson part's expected log-density touches the value from below
    for at in (10, 40, 70):
        weight = poisson[0, at, 0]
        surrogate = -weight * (rate - rate[0, at, 0]) + value[0, at, 0]
        assert bool((surrogate <= value + 1e-12).all())
        assert float(gradient[0, at, 0]) == pytest.approx(float(-weight * rate[0, at, 0]))


@pytest.mark.parametrize("bins", [1.0, 0.05])
def test_expectation_of_the_exp_link_is_closed(bins):
    """Against quadrature with many nodes, Monte Carlo, and finite differences of the value."""
    model = Poisson(2, bin_seconds=bins).bind(1)
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    variance = torch.rand(3, 5, 2, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 5, 2, generator=generator) > 0.3
    y = torch.poisson(mean.exp(), generator=generator)
    m = Modality(torch.where(mask, y, torch.nan), mask)
    got = model.expected_derivatives(mean, variance, m)
    for a, b in zip(got, ObservationModel.expected_derivatives(model, mean, variance, m)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert bool((a[~mask] == 0).all())
    draws = mean + variance.sqrt() * torch.randn(20000, 3, 5, 2, generator=generator).double()
    values = model.masked_log_prob(draws, m)
    error = values.std(0) / 20000**0.5
    assert bool(((values.mean(0) - got.value).abs() <= 5 * error).all())
    h = 1e-5
    ahead, behind = (model.expected_derivatives(mean + s, variance, m) for s in (h, -h))
    more, less = (model.expected_derivatives(mean, variance + s, m) for s in (h, -h))
    for plus, minus, wanted in (
        (ahead.value, behind.value, got.mean),
        (ahead.mean, behind.mean, got.mean_mean),
        (ahead.variance, behind.variance, got.mean_variance),
        (more.value, less.value, got.variance),
        (more.variance, less.variance, got.variance_variance),
    ):
        torch.testing.assert_close((plus - minus) / (2 * h), wanted, rtol=1e-6, atol=1e-7)


# ---- limits -------------------------------------------------------------------------------------
def test_large_dispersion_and_no_extra_zeros_are_poisson():
    """Density, derivatives, moments and M-step objective go over into the Poisson ones."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = np.array([[0.5, -0.3], [0.2, 0.7]]), np.array([0.3, -0.2])
    plain = Poisson.from_parameters(weight, bias)
    z = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    m = Modality(plain.sample(plain.features(z), 1), torch.rand(3, 9, 2) > 0.2)
    wanted = plain.derivatives(plain.features(z), m)
    covariance = 0.3 * torch.eye(2, dtype=torch.float64).expand(3, 9, 2, 2)
    for model, tolerance in (
        (NegativeBinomial.from_parameters(weight, bias, dispersion=1e12), 1e-9),
        (NegativeBinomial.from_parameters(weight, bias, dispersion=1e5), 2e-3),
        (ZeroInflatedPoisson.from_parameters(weight, bias, zero_logit=-40.0), 1e-12),
    ):
        got = model.derivatives(model.features(z), m)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(model.predictive(z, covariance), plain.predictive(z, covariance)):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    with pytest.raises(AssertionError):  # the limit is not reached from the start
        model = NegativeBinomial.from_parameters(weight, bias, dispersion=1.0)
        torch.testing.assert_close(model.derivatives(model.features(z), m)[0], wanted[0])


# ---- learning -----------------------------------------------------------------------------------
def _simulated(model, *, steps=600, trials=3, seed=0):
    """Known paths (slow, so that neighbouring bins agree) and counts on them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(trials, steps // 2, model.dim, generator=generator, dtype=torch.float64)
    z = z.repeat_interleave(2, dim=1)
    with torch.no_grad():
        y = model.sample(model.features(z), seed + 1)
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[1, 2 * (steps // 3) :] = False  # a shorter trial
    return z, Modality(torch.where(mask, y, 0.0), mask)


@pytest.mark.parametrize("link", ["exp", "softplus"])
def test_two_bin_widths_give_the_same_rate_in_hertz(link):
    """Pairs of bins summed: with exact widths, the likelihood has the same maximum."""
    truth = Poisson.from_parameters(
        [[0.5, -0.2], [0.3, 0.4]], bias=[3.0, 2.0], link=link, bin_seconds=0.01
    )
    z, fine = _simulated(truth, steps=900)
    y = fine.y.unflatten(1, (-1, 2)).sum(2)
    coarse = Modality(y, fine.mask.unflatten(1, (-1, 2)).all(2))
    fits = []
    for m, path, width in ((fine, z, 0.01), (coarse, z[:, ::2], 0.02)):
        model = Poisson(2, link=link, bin_seconds=width).bind(2)
        model.init_from(m, path)
        fits.append(torch.cat([model.weight, model.bias[:, None]], 1).detach())
    torch.testing.assert_close(fits[0], fits[1], rtol=2e-3, atol=2e-3)
    assert float((fits[0][:, 2] - truth.bias.detach()).abs().max()) < 0.5
    per_bin = Poisson(2, link=link).bind(2)
    per_bin.init_from(fine, z)
    if link == "exp":
        torch.testing.assert_close(
            per_bin.bias.detach(), fits[0][:, 2] + np.log(0.01), rtol=2e-3, atol=2e-3
        )


def _standard_errors(model, m, z):
    """Diagonal of the inverse observed information of weight and intercept, per channel."""
    x = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)[..., None, :]
    with torch.no_grad():
        curvature = model.derivatives(model.features(z), m)[2]
    information = torch.einsum("btn,btni,btnj->nij", curvature, *(2 * [x.expand(*m.y.shape, -1)]))
    return torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt()


@pytest.mark.parametrize("kind", ["exp", "softplus", "negative binomial", "zero-inflated"])
def test_a_known_path_gives_the_parameters_back(kind):
    """Weights, intercepts, dispersion and extra zeros within four standard errors."""
    weight, bias = np.array([[0.6, -0.3], [0.2, 0.5]]), np.array([1.0, 0.4])
    truth = {
        "exp": lambda: Poisson.from_parameters(weight, bias, bin_seconds=0.5),
        "softplus": lambda: Poisson.from_parameters(weight, bias, link="softplus"),
        "negative binomial": lambda: NegativeBinomial.from_parameters(
            weight, bias, dispersion=[1.5, 4.0]
        ),
        "zero-inflated": lambda: ZeroInflatedPoisson.from_parameters(
            weight, bias, zero_logit=[-0.5, 0.5]
        ),
    }[kind]()
    z, m = _simulated(truth)
    model = type(truth).from_config(truth.config())
    model.bind(2)
    model.init_from(m, z)
    error = _standard_errors(model, m, z)
    got = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    wanted = torch.cat([truth.weight, truth.bias[:, None]], 1).detach()
    assert bool(((got - wanted).abs() < 4 * error).all())
    assert float(error.max()) < 0.15
    for a, b in zip(_own(model), _own(truth), strict=True):
        assert float((a - b).detach().abs().max()) < 0.4


@each_model
def test_poisson_data_and_silent_stretches_leave_parameters_finite(create):
    """One channel of single events, one constant, one without any observation; T = 1 as well."""
    for steps in (40, 1):
        model = create().bind(2)
        z = torch.randn(3, steps, 2, generator=torch.Generator().manual_seed(1)).double()
        y = torch.zeros(3, steps, 3, dtype=torch.float64)
        y[0, 0, 0], y[..., 1] = 1.0, 2.0
        mask = torch.ones_like(y, dtype=torch.bool)
        mask[..., 2] = False
        m = Modality(y, mask)
        untouched = float(model.bias[2].detach())
        model.init_from(m, z)
        for _ in range(3):
            model.m_step(m, z, 0.2 * torch.eye(2, dtype=torch.float64).expand(3, steps, 2, 2))
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
        assert float(model.bias[2].detach()) == untouched


def test_init_from_keeps_what_is_frozen():
    model = Poisson(3, nuisance=1).bind(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    z, m = _simulated(model, steps=20)
    m = Modality(m.y, m.mask, None, torch.randn(3, 20, 1, dtype=torch.float64))
    for p in (model.weight, model.nuisance_weight):
        p.requires_grad_(False)
    model.init_from(m, z)
    assert torch.equal(model.weight, before["weight"])
    assert torch.equal(model.nuisance_weight, before["nuisance_weight"])
    assert not torch.equal(model.bias, before["bias"])


# ---- the start signal ---------------------------------------------------------------------------
def test_start_signal_is_the_predictor_of_a_smoothed_rate():
    """A constant stays, what is masked has no part, and sparse channels are smoothed."""
    y = torch.full((2, 60, 3), 4.0, dtype=torch.float64)
    y[..., 1] = (torch.arange(60) % 5 == 0).double()
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[:, 20:30, 0] = False
    mask[1, 40:] = False
    m = Modality(torch.where(mask, y, 1e6), mask)
    for model in (Poisson(3), Poisson(3, bin_seconds=0.1), Poisson(3, link="softplus")):
        signal = model.start_signal(m)
        assert signal.shape == y.shape
        counts = torch.from_numpy(_rate(model, signal.numpy()))
        torch.testing.assert_close(counts[..., 0], torch.full((2, 60), 4.5).double())
        inner = counts[0, 15:45, 1]
        window = 2 / 0.2  # bins that hold two events
        assert float((inner - 0.2 - 0.5 / window).abs().max()) < 0.04
        full = mask[..., 2]
        torch.testing.assert_close(counts[..., 2][full], torch.full((100,), 4.5).double())


def test_start_signal_follows_the_rate():
    """The first principal component of sparse channels finds what drives them all."""
    t = torch.arange(800, dtype=torch.float64)
    drive = torch.sin(2 * np.pi * t / 100)
    gain = torch.linspace(-1, 1, 12, dtype=torch.float64)
    rate = 0.3 * (drive[:, None] * gain).exp()
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(3))[None]
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    found = []
    for signal in (Poisson(12).start_signal(m)[0], (y[0] + 0.5).log()):
        centred = signal - signal.mean(0)
        component = torch.linalg.svd(centred / centred.std(0))[0][:, 0]
        found.append(abs(np.corrcoef(component, drive)[0, 1]))
    assert found[0] > 0.85 > 0.8 > found[1]


# ---- refusals -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisson(0), "channels"),
        (lambda: Poisson(2, link="log"), "unknown link 'log'"),
        (lambda: Poisson(2, bin_seconds=0.0), "bin_seconds"),
        (lambda: NegativeBinomial(2, bin_seconds=float("nan")), "bin_seconds"),
        (lambda: ZeroInflatedPoisson(2, readout="square"), "read-out"),
        (lambda: Poisson(2, history=3), "history is 3"),
        (lambda: Poisson(2, coupling=True), "coupling=True needs history"),
        (lambda: Poisson.from_parameters([1.0]), "weight is"),
        (lambda: Poisson.from_parameters([[1.0]], bias=[1.0, 2.0]), "bias"),
        (lambda: Poisson.from_parameters([[np.inf]]), "weight"),
        (lambda: NegativeBinomial.from_parameters([[1.0]], dispersion=[0.0]), "positive"),
        (lambda: NegativeBinomial.from_parameters([[1.0]], dispersion=[1, 2]), "dispersion"),
        (lambda: ZeroInflatedPoisson.from_parameters([[1.0]], zero_logit=[np.nan]), "zero_logit"),
        (lambda: Poisson.from_parameters([[2.0]], readout="identity"), "identity"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(PlssmError, match=message):
        make()


def test_dispersion_is_set_and_read():
    model = NegativeBinomial(2)
    model.dispersion = 3.0
    torch.testing.assert_close(model.dispersion.detach(), torch.full((2,), 3.0).double())
    model.dispersion = [1.0, 2.0]
    assert model.dispersion.tolist() == pytest.approx([1.0, 2.0])
    with pytest.raises(ShapeError):
        model.dispersion = [1.0, 2.0, 3.0]


def _dataset(*trials):
    return Dataset.from_arrays(
        {"n": list(trials)}, dt=0.1, kinds={"n": "count"}, check_channels=False
    )


@each_model
def test_a_silent_channel_is_refused_by_name(create):
    one, two = np.zeros((5, 3)), np.zeros((4, 3))
    one[0, 0], two[1, 2] = 1.0, 4.0
    with pytest.raises(
        DataError, match=r"'n', channel 1: .*no event.*Fix: drop the channel \[1\]"
    ):
        create().check_training(_dataset(one, two), "n")
    two[3, 1] = np.nan
    with pytest.raises(DataError, match="channel 1"):
        create().check_training(_dataset(one, two), "n")
    two[2, 1] = 1.0
    create().check_training(_dataset(one, two), "n")
    one[:, 1] = two[:, 1] = np.nan  # never observed is not silent
    create().check_training(_dataset(one, two), "n")
    with pytest.raises(DataError, match="missing in every trial"):
        create().check_training(_dataset(np.full((5, 3), np.nan)), "n")


@each_model
def test_values_that_are_no_counts_have_no_density(create):
    model = create().bind(2)
    for bad in (-1.0, 0.5):
        with pytest.raises(ValueError, match="support"):
            model.distribution(torch.zeros(3).double()).log_prob(torch.full((3,), bad).double())
