"""Labels, binary channels and ordinal scales against scipy, torch, mpmath and closed forms."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch

from plssm.data import Dataset
from plssm.data.batch import Modality
from plssm.errors import DataError, PlssmError, ShapeError
from plssm.observations.labels.base import with_unseen_levels
from plssm.observations.labels.classes import Bernoulli, Categorical
from plssm.observations.labels.levels import LevelDistribution
from plssm.observations.labels.ordinal import Ordinal
from plssm.testing import ObservationContract


# ---- contracts --------------------------------------------------------------------------------
class _CategoricalContract(ObservationContract):
    def reference(self, features, y):
        logits = np.column_stack([features, np.zeros(len(features))])
        rows = np.arange(len(y))
        return scipy.special.log_softmax(logits, axis=1)[rows, y[:, 0].astype(int)][:, None]

    def simulate(self, features, rng):
        logits = np.column_stack([features, np.zeros(len(features))])
        return (logits + rng.gumbel(size=logits.shape)).argmax(1)[:, None].astype(float)


class TestCategorical(_CategoricalContract):
    def create(self):
        return Categorical(4)


class TestTwoClasses(_CategoricalContract):
    def create(self):
        return Categorical(2)


class TestCategoricalWithNuisance(_CategoricalContract):
    def create(self):
        return Categorical(3, nuisance=2, bias=False)


class TestCategoricalRelu(_CategoricalContract):
    def create(self):
        return Categorical(3, readout="relu", nuisance=1)


class TestCategoricalIdentity(_CategoricalContract):
    def create(self):
        return Categorical(3, readout="identity", nuisance=1)


class TestKnownCategorical(_CategoricalContract):
    def create(self):
        weight = np.random.default_rng(0).normal(size=(3, 3))
        return Categorical.from_parameters(weight, bias=[1.0, 0.0, -1.0])


class _BernoulliContract(ObservationContract):
    def reference(self, features, y):
        return scipy.stats.bernoulli(scipy.special.expit(features)).logpmf(y)

    def simulate(self, features, rng):
        return rng.binomial(1, scipy.special.expit(features)).astype(float)


class TestBernoulli(_BernoulliContract):
    def create(self):
        return Bernoulli(4)


class TestBernoulliReluWithNuisance(_BernoulliContract):
    def create(self):
        return Bernoulli(3, readout="relu", nuisance=2)


class _OrdinalContract(ObservationContract):
    def edges(self):
        cuts = self.model.thresholds.detach().numpy()
        end = np.full((len(cuts), 1), np.inf)
        return np.concatenate([-end, cuts, end], axis=1)

    def reference(self, features, y):
        edges, level = self.edges(), y.astype(int)
        channel = np.arange(y.shape[1])
        upper, lower = edges[channel, level + 1] - features, edges[channel, level] - features
        return np.log(scipy.stats.logistic.cdf(upper) - scipy.stats.logistic.cdf(lower))

    def simulate(self, features, rng):
        noisy = features + rng.logistic(size=features.shape)  # latent-variable form of the model
        return (noisy[..., None] > self.edges()[:, 1:-1]).sum(-1).astype(float)


class TestOrdinal(_OrdinalContract):
    def create(self):
        return Ordinal(3, 5)


class TestOrdinalTwoLevels(_OrdinalContract):
    def create(self):
        return Ordinal(2, 2, nuisance=1)


class TestOrdinalRelu(_OrdinalContract):
    def create(self):
        return Ordinal(2, 4, readout="relu", nuisance=2)


class TestKnownOrdinal(_OrdinalContract):
    def create(self):
        weight = np.random.default_rng(0).normal(size=(2, 3))
        return Ordinal.from_parameters(weight, thresholds=[[-1.0, 0.0, 0.1], [0.0, 1.0, 4.0]])


# ---- the distribution over levels -------------------------------------------------------------
def _levels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_level_distribution_agrees_with_torch_and_scipy():
    ours = LevelDistribution(_levels(2, 3, 5))
    theirs = torch.distributions.Categorical(logits=ours.logits)
    support = ours.enumerate_support()
    assert support.shape == (5, 2, 3)
    torch.testing.assert_close(ours.log_prob(support), theirs.log_prob(support))
    torch.testing.assert_close(ours.probs, theirs.probs)
    for i in np.ndindex(2, 3):
        law = scipy.stats.rv_discrete(values=(np.arange(5), theirs.probs[i].numpy()))
        np.testing.assert_allclose(ours.mean[i], law.mean(), rtol=1e-12)
        np.testing.assert_allclose(ours.variance[i], law.var(), rtol=1e-12)
        for k in (-1.0, 0.0, 2.0, 4.0):
            got = ours.cdf(torch.full((2, 3), k, dtype=torch.float64))[i]
            np.testing.assert_allclose(got, law.cdf(k), rtol=1e-12)
    assert torch.equal(ours.mode, theirs.probs.argmax(-1).to(torch.float64))


def test_draws_have_the_frequencies_of_the_levels():
    law = LevelDistribution(_levels(2, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = law.sample((20_000,))
    assert draws.shape == (20_000, 2) and draws.dtype == torch.float64
    for n in range(2):
        counted = np.bincount(draws[:, n].numpy().astype(int), minlength=4)
        expected = 20_000 * law.probs[n].numpy()
        assert scipy.stats.chisquare(counted, expected).pvalue > 1e-3


def test_a_level_of_probability_zero_is_never_drawn():
    law = LevelDistribution(torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64).log())
    assert set(law.sample((5000,)).unique().tolist()) == {1.0, 3.0}


def test_values_broadcast_against_draws_of_the_predictors():
    law = LevelDistribution(_levels(7, 2, 3, 4))
    y = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
    got = law.log_prob(y)
    assert got.shape == (7, 2, 3)
    for s, i, n in np.ndindex(7, 2, 3):
        assert got[s, i, n] == law.logits[s, i, n, int(y[i, n])]
    wide = LevelDistribution(_levels(3, 4)).expand((7, 2, 3))
    assert wide.batch_shape == (7, 2, 3) and wide.log_prob(y).shape == (7, 2, 3)


@pytest.mark.parametrize("value", [-1.0, 4.0, 1.5])
def test_a_value_outside_the_levels_is_refused(value):
    with pytest.raises(ValueError, match="support"):
        LevelDistribution(_levels(4)).log_prob(torch.tensor(value, dtype=torch.float64))


# ---- special cases of each other --------------------------------------------------------------
def _single(y, mask=None):
    y = torch.as_tensor(np.asarray(y), dtype=torch.float64)
    return Modality(y, torch.ones_like(y, dtype=torch.bool) if mask is None else mask)


def _path(trials=3, steps=6, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(trials, steps, dim, generator=generator, dtype=torch.float64)


def _same(one, other, m, z):
    for positive in (False, True):
        a, b = one.local(m, z, positive=positive), other.local(m, z, positive=positive)
        torch.testing.assert_close(a.log_prob, b.log_prob, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.score, b.score, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.curvature, b.curvature, rtol=1e-12, atol=1e-12)


def test_bernoulli_is_two_classes_with_the_sign_turned():
    weight, bias = np.array([[0.7, -1.2]]), np.array([0.3])
    z = _path()
    m = _single(
        np.random.default_rng(0).integers(0, 2, (3, 6, 1)), torch.arange(18).view(3, 6, 1) % 5 > 0
    )
    one = Bernoulli.from_parameters(weight, bias)
    other = Categorical.from_parameters(-weight, -bias)
    _same(one, other, m, z)
    eta = one.features(z)
    torch.testing.assert_close(one.probabilities(eta), other.probabilities(-eta))


def test_ordinal_with_two_levels_is_logistic_regression():
    weight, cuts = np.array([[0.7, -1.2], [0.1, 2.0]]), np.array([[0.4], [-1.0]])
    z = _path()
    m = _single(np.random.default_rng(0).integers(0, 2, (3, 6, 2)))
    _same(
        Ordinal.from_parameters(weight, cuts), Bernoulli.from_parameters(weight, -cuts[:, 0]), m, z
    )


@pytest.mark.parametrize(
    "model",
    [
        Categorical.from_parameters([[1.0, 0.5], [0.0, -1.0]], bias=[0.1, 0.2]),
        Bernoulli.from_parameters([[1.0, 0.5], [0.0, -1.0]]),
        Ordinal.from_parameters([[1.0, 0.5]], [[-1.0, 0.0, 2.0]]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_probabilities_are_those_of_the_distribution(model):
    eta = model.features(_path())
    p = model.probabilities(eta)
    levels = model.distribution(eta).levels
    assert p.shape == (3, 6, model.channels, levels)
    torch.testing.assert_close(p, model.distribution(eta).probs)
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 6, model.channels, dtype=p.dtype))
    assert model.probabilities(eta[0, 0]).shape == (model.channels, levels)


@pytest.mark.parametrize("model", [Categorical(4), Categorical(2), Bernoulli(2), Ordinal(2, 3)])
def test_derivatives_take_leading_sample_axes(model):
    generator = torch.Generator().manual_seed(0)
    shape = (5, 3, 6, model.predictors)
    eta = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.arange(18 * model.channels).view(3, 6, -1) % 4 > 0
    y = model.sample(eta[0], 1)
    m = _single(torch.where(mask, y, 0.0), mask)
    together = model.derivatives(eta, m)
    for s in range(5):
        for got, wanted in zip(together, model.derivatives(eta[s], m), strict=True):
            assert torch.equal(got[s], wanted)


def test_step_curvature_of_a_softmax_stays_positive_where_one_class_is_certain():
    eta = torch.tensor([[[40.0, -40.0, 3.0]], [[700.0, 0.0, -9.0]]], dtype=torch.float64)
    m = _single(np.zeros((2, 1, 1)))
    curvature = Categorical(4).derivatives(eta, m, positive=True)[2]
    off = curvature - torch.diag_embed(torch.diagonal(curvature, dim1=-2, dim2=-1))
    diagonal = torch.diagonal(curvature, dim1=-2, dim2=-1)
    assert bool((diagonal >= (1 - 1e-12) * off.abs().sum(-1)).all())  # diagonally dominant
    with mpmath.workdps(60):
        logits = [mpmath.mpf(x) for x in (40, -40, 3, 0)]
        top = mpmath.exp(40) / sum(mpmath.exp(x) for x in logits)
        wanted = float(top * (1 - top))
    np.testing.assert_allclose(float(curvature[0, 0, 0, 0]), wanted, rtol=1e-12)


# ---- far out ----------------------------------------------------------------------------------
CUTS = [[-1.0, 0.5, 0.5 + 1e-9, 3.0]]


@pytest.mark.parametrize("eta", [-900.0, -60.0, -3.0, 0.4, 2.0, 60.0, 900.0])
def test_ordinal_log_density_far_out_against_many_digits(eta):
    model = Ordinal.from_parameters([[1.0]], CUTS)
    edges = [-mpmath.inf, *model.thresholds.detach()[0].tolist(), mpmath.inf]
    features = torch.full((1, 5, 1), eta, dtype=torch.float64)
    m = _single(np.arange(5.0)[None, :, None])
    value, gradient, curvature = model.derivatives(features, m)
    by_table = model.distribution(features).log_prob(m.y)
    with mpmath.workdps(900):
        for k in range(5):
            F = [
                1 / (1 + mpmath.exp(-(mpmath.mpf(e) - mpmath.mpf(eta)))) for e in edges[k : k + 2]
            ]
            wanted = float(mpmath.log(F[1] - F[0]))
            # the narrow level's width is known as a gap, not as a difference of thresholds
            limit = 1e-6 if k == 2 else 1e-12
            np.testing.assert_allclose(value[0, k, 0].item(), wanted, rtol=limit)
            np.testing.assert_allclose(by_table[0, k, 0].item(), wanted, rtol=limit)
            np.testing.assert_allclose(
                gradient[0, k, 0].item(), float(F[0] + F[1] - 1), atol=1e-15
            )
            f = float(F[0] * (1 - F[0]) + F[1] * (1 - F[1]))
            np.testing.assert_allclose(curvature[0, k, 0].item(), f, rtol=1e-12, atol=1e-300)


def _fresh(name):
    return {
        "categorical": Categorical(3).bind(2),
        "bernoulli": Bernoulli(1).bind(2),
        "ordinal": Ordinal(1, 4).bind(2),
    }[name]


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "ordinal"])
@pytest.mark.parametrize(
    ("dtype", "far"), [(torch.float64, 1e3), (torch.float64, 1e100), (torch.float32, 1e30)]
)
def test_values_and_gradients_are_finite_and_alive_at_extreme_predictors(name, dtype, far):
    model = _fresh(name).to(dtype)
    levels = model.distribution(torch.zeros(1, model.predictors, dtype=dtype)).levels
    y = torch.arange(levels).repeat(2)[None, :, None].to(dtype)
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    sign = torch.tensor([-1.0, 1.0], dtype=dtype).repeat_interleave(levels)[None, :, None]
    eta = (far * sign * torch.ones(model.predictors, dtype=dtype)).requires_grad_()
    value = model.masked_log_prob(eta, m)
    gradient = torch.autograd.grad(value.sum(), [eta, *_own(model)])
    assert bool(torch.isfinite(value).all() and (value <= 0).all())
    assert all(bool(torch.isfinite(g).all()) for g in gradient)
    improbable = value[..., 0] < -1
    assert bool(improbable.any())
    assert bool((gradient[0].abs().amax(-1)[improbable] > 0.3).all())
    law = model.distribution(eta.detach())
    assert bool(torch.isfinite(law.mean).all() and torch.isfinite(law.variance).all())


def _own(model):
    return [p for n, p in model.named_parameters() if n in ("first_threshold", "log_gaps")]


@pytest.mark.parametrize("log_gap", [-300.0, -25.0, -19.0, 0.0, 4.0])
def test_gradients_in_thresholds_and_predictors(log_gap):
    model = Ordinal(1, 4).bind(1)
    with torch.no_grad():
        model.log_gaps.copy_(torch.tensor([[log_gap, 0.3]]))
    m = _single(np.arange(4.0)[None, :, None])
    eta = torch.tensor([-2.0, 0.3, 1.0, 0.1], dtype=torch.float64)[None, :, None].requires_grad_()

    def value(eta, first, gaps):
        swapped = {"first_threshold": first, "log_gaps": gaps}
        return torch.func.functional_call(
            _Density(model), {f"model.{k}": v for k, v in swapped.items()}, (eta, m)
        )

    inputs = (eta, model.first_threshold, model.log_gaps)
    assert torch.autograd.gradcheck(value, inputs, atol=1e-7)
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-6)
    assert bool(torch.isfinite(value(*inputs)).all())


class _Density(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, eta, m):
        return self.model.masked_log_prob(eta, m)


# ---- parameters -------------------------------------------------------------------------------
def test_parameters_come_back_as_they_were_given():
    weight, J = np.arange(6.0).reshape(2, 3), np.ones((2, 1))
    for model in (
        Categorical.from_parameters(weight, [1.0, 2.0], nuisance_weight=J),
        Bernoulli.from_parameters(weight, [1.0, 2.0], nuisance_weight=J),
    ):
        assert model.initialised and model.nuisance == 1
        np.testing.assert_array_equal(model.weight.detach(), weight)
        np.testing.assert_array_equal(model.bias.detach(), [1.0, 2.0])
        np.testing.assert_array_equal(model.nuisance_weight.detach(), J)
    assert Categorical.from_parameters(weight).classes == 3
    cuts = np.array([[-3.0, -2.9, 5.0], [0.0, 1e-6, 1.0]])
    model = Ordinal.from_parameters(weight, cuts, nuisance_weight=J)
    np.testing.assert_allclose(model.thresholds.detach(), cuts, rtol=1e-12)
    assert model.levels == 4 and model.initialised
    assert not bool(model.bias.any()) and "bias" not in dict(model.named_parameters())
    assert model.thresholds.requires_grad
    model.thresholds = [[0.0, 1.0, 2.0]] * 2
    np.testing.assert_allclose(model.thresholds.detach(), [[0.0, 1.0, 2.0]] * 2, rtol=1e-12)


def test_a_fresh_ordinal_model_has_equally_probable_levels():
    model = Ordinal(2, 5)
    p = model.probabilities(torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(p, torch.full_like(p, 0.2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Categorical(1), ShapeError, "classes is 1"),
        (lambda: Categorical(2.5), ShapeError, "classes is 2.5"),
        (lambda: Bernoulli(0), ShapeError, "channels is 0"),
        (lambda: Ordinal(2, 1), ShapeError, "levels is 1"),
        (
            lambda: Categorical.from_parameters([1.0, 2.0]),
            ShapeError,
            "weight is .predictors, dim",
        ),
        (lambda: Categorical.from_parameters([[1.0]], [0.0, 1.0]), ShapeError, "bias: wanted"),
        (lambda: Bernoulli.from_parameters([[np.nan]]), PlssmError, "NaN or infinite"),
        (
            lambda: Bernoulli.from_parameters([[1.0]], nuisance_weight=[1.0]),
            ShapeError,
            "nuisance_weight is",
        ),
        (
            lambda: Categorical.from_parameters([[2.0, 0.0]], readout="identity"),
            ShapeError,
            "must be .I 0.",
        ),
        (lambda: Ordinal.from_parameters([[1.0]], [0.0, 1.0]), ShapeError, "levels - 1"),
        (lambda: Ordinal.from_parameters([[1.0]], [[0.0, 1.0]] * 2), ShapeError, "1 channels"),
        (
            lambda: Ordinal.from_parameters([[1.0]] * 2, [[0.0, 1.0], [1.0, 1.0]]),
            DataError,
            "channel 1: thresholds are not in increasing order",
        ),
        (lambda: setattr(Ordinal(1, 3), "thresholds", [[0.0, 1.0, 2.0]]), ShapeError, "wanted sh"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- data -------------------------------------------------------------------------------------
def _dataset(y, kind="label", **options):
    kinds = {"choice": kind}
    return Dataset.from_arrays({"choice": y}, dt=1.0, kinds=kinds, trials=["a", "b"], **options)


def test_labels_out_of_range_are_refused_with_the_place_and_the_fix():
    y = np.array([[[0.0], [1.0], [np.nan]], [[2.0], [3.0], [0.0]]])
    model = Categorical(3)
    with pytest.raises(DataError) as caught:
        model.check(_dataset(y), "choice")
    message = str(caught.value)
    for part in ("choice", "trial 'b'", "sample 1", "got 3", "0 to 2", "Fix: number the classes"):
        assert part in message
    Categorical(4).check(_dataset(y), "choice")
    hidden = _dataset(y).hold_out("choice", times=(0.5, 1.5))
    with pytest.raises(DataError, match="got 3"):
        model.check(hidden, "choice")


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (
            Bernoulli(1),
            "count",
            "trial 'b'.*value out of range; got 2, wanted whole numbers from 0 to 1",
        ),
        (Bernoulli(1), "label", "code the outcomes as 0 and 1"),
        (
            Ordinal(1, 2),
            "ordinal",
            "sample 0, channel 0: level out of range; got 2.*build Ordinal",
        ),
    ],
)
def test_values_beyond_the_levels_are_refused(model, kind, words):
    y = np.array([[[0.0], [1.0]], [[2.0], [0.0]]])
    with pytest.raises(DataError, match=words):
        model.check(_dataset(y, kind), "choice")
    model.check(_dataset(np.minimum(y, 1.0), kind), "choice")


@pytest.mark.parametrize(
    ("model", "noun"),
    [(Categorical(3), "class"), (Bernoulli(2), "value"), (Ordinal(2, 3), "level")],
)
def test_training_data_with_one_level_are_refused(model, noun):
    y = np.zeros((2, 5, model.channels))
    y[0, 1, 0] = 1.0
    y[1, 1, -1] = np.nan
    if model.channels == 1:
        model.check_training(_dataset(y), "choice")
        y[0, 1] = 0.0
    with pytest.raises(DataError, match=f"only one {noun}.*got {noun} 0 everywhere"):
        model.check_training(_dataset(y), "choice")
    y[..., -1] = np.nan
    with pytest.raises(DataError, match="missing in every trial|no observed value"):
        model.check_training(_dataset(y, check_channels=False), "choice")


# ---- learning ---------------------------------------------------------------------------------
def test_start_signal_of_labels_is_one_hot_centred():
    mask = torch.tensor([[True, True, False], [True, True, True]])[..., None]
    m = _single([[[0], [2], [0]], [[1], [2], [2]]], mask)
    signal = Categorical(3).start_signal(m)
    wanted = np.eye(3)[[0, 2, 0, 1, 2, 2]].reshape(2, 3, 3) - [0.2, 0.2, 0.6]
    np.testing.assert_allclose(signal[mask[..., 0]], wanted[mask[..., 0].numpy()], atol=1e-15)
    binary = _single([[[0], [1]], [[1], [1]]])
    got = Categorical(2).start_signal(binary)
    np.testing.assert_allclose(got[..., 0], [[0.75, -0.25], [-0.25, -0.25]])


def test_without_information_probabilities_are_the_frequencies():
    rng = np.random.default_rng(0)
    z = torch.zeros(3, 40, 2, dtype=torch.float64)
    y = rng.choice(4, p=[0.4, 0.1, 0.3, 0.2], size=(3, 40, 1)).astype(float)
    share = np.bincount(y.astype(int).ravel(), minlength=4) / y.size
    softmax, scale = Categorical(4).bind(2), Ordinal(1, 4).bind(2)
    for model in (softmax, scale):
        model.init_from(_single(y), z)
        p = model.probabilities(model.features(z[:1, 0])).detach()
        np.testing.assert_allclose(p[0, 0], share, atol=2e-3)


@pytest.mark.parametrize("levels", [2, 4])
def test_fit_to_a_path_reaches_the_maximum_likelihood_of_scipy(levels):
    """Maximum of the same likelihood in another parametrisation, written out with scipy."""
    truth = Ordinal.from_parameters([[1.5, -0.8]], [np.linspace(-1.0, 1.5, levels - 1)])
    z = _path(3, 60)
    y = truth.sample(truth.features(z).detach(), 1)
    model = Ordinal(1, levels).bind(2)
    model.init_from(_single(y), z)
    flat, level = z.reshape(-1, 2).numpy(), y.ravel().long().numpy()

    def loss(theta):
        cuts = np.concatenate([[-np.inf], np.sort(theta[2:]), [np.inf]])
        F = scipy.stats.logistic.cdf(cuts[None, :] - (flat @ theta[:2])[:, None])
        return -np.log(np.diff(F, axis=1)[np.arange(len(level)), level] + 1e-300).sum()

    start = np.concatenate([np.zeros(2), np.linspace(-1.0, 1.0, levels - 1)])
    best = scipy.optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
    got = float(model.log_prob(_single(y), z).sum().detach())
    np.testing.assert_allclose(got, -best.fun, rtol=1e-4)
    np.testing.assert_allclose(model.weight.detach()[0], best.x[:2], atol=0.02)
    np.testing.assert_allclose(model.thresholds.detach()[0], np.sort(best.x[2:]), atol=0.02)


def test_classes_are_recovered_from_a_known_path():
    rng = np.random.default_rng(3)
    truth = Categorical.from_parameters(rng.normal(size=(3, 2)), bias=[0.5, 0.0, -0.5])
    z = _path(3, 1500)
    y = truth.sample(truth.features(z).detach(), 1)
    model = Categorical(4).bind(2)
    model.init_from(_single(y), z)
    np.testing.assert_allclose(model.weight.detach(), truth.weight.detach(), atol=0.2)
    np.testing.assert_allclose(model.bias.detach(), truth.bias.detach(), atol=0.2)


def test_samples_follow_the_probabilities_of_each_model():
    eta = torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    for model in (Categorical(3), Bernoulli(2), Ordinal(2, 4)):
        model.bind(2)
        y = model.sample(eta.expand(8000, -1), 5)
        assert y.shape == (8000, model.channels)
        p = model.probabilities(eta).detach()[0]
        for n in range(model.channels):
            counted = np.bincount(y[:, n].numpy().astype(int), minlength=p.shape[-1])
            assert scipy.stats.chisquare(counted, 8000 * p[n].numpy()).pvalue > 1e-3


# ---- levels that never occur ------------------------------------------------------------------
def _lacking(model, lacking, trials=3, steps=60):
    """Data of a model in which some (channel, level) pairs are replaced by a neighbour."""
    z = _path(trials, steps)
    y = model.sample(model.features(z).detach(), 1)
    for channel, level, other in lacking:
        y[..., channel] = torch.where(y[..., channel] == level, float(other), y[..., channel])
    return _single(y), z


def _gains(model, m, z):
    """Score of the log-likelihood in every parameter, at a path taken as known."""
    value = model.log_prob(m, z).sum()
    return torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("known", [True, False])
def test_levels_that_never_occur_keep_a_probability(known):
    truth = Ordinal.from_parameters([[1.5, 0], [0, 1.0], [1, 1]], [[-1.5, -0.5, 0.5, 1.5]] * 3)
    lacking = [(0, 4, 3), (1, 2, 3), (2, 0, 2), (2, 1, 2)]
    m, z = _lacking(truth, lacking)
    covariance = None if known else 0.1 * torch.eye(2, dtype=z.dtype).expand(3, 60, 2, 2)
    model = Ordinal(3, 5).bind(2)
    model.init_from(m, z)
    for _ in range(30):
        model.m_step(m, z, covariance)
    cuts = model.thresholds.detach()
    assert bool((cuts.diff(dim=-1) > 1e-4).all()) and float(cuts.abs().max()) < 12
    p = model.probabilities(model.features(z)).detach().mean((0, 1))
    for channel, level, _ in lacking:  # about one in 180 samples
        assert 0.1 / 180 < float(p[channel, level]) < 3 / 180


def test_a_class_that_never_occurs_keeps_a_probability():
    truth = Categorical.from_parameters([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [0.0, 0.0, 0.0])
    m, z = _lacking(truth, [(0, 2, 3)])
    model = Categorical(4).bind(2)
    model.init_from(m, z)
    for _ in range(10):
        model.m_step(m, z, None)
    assert float(model.bias.detach().abs().max()) < 12
    p = model.probabilities(model.features(z)).detach().mean((0, 1))[0]
    assert 0.1 / 180 < float(p[2]) < 3 / 180


def test_an_unseen_level_is_seen_once_at_the_average_state():
    """The penalised optimum: scores of the data and of that one observation cancel."""
    truth = Bernoulli.from_parameters([[0.0, 0.0]], [0.0])
    z = _path(2, 20)
    y = truth.sample(truth.features(z), 1)
    mask = torch.arange(40).view(2, 20, 1) % 7 > 0
    m = _single(torch.where(mask, y, 0.0), mask)
    model = Ordinal(1, 3).bind(2)
    model.init_from(m, z)
    seen = z[mask[..., 0]].mean(0)
    once = _single(np.full((1, 1, 1), 2.0))
    data, extra = _gains(model, m, z), _gains(model, once, seen[None, None])
    for one, other, name in zip(
        data, extra, ["first_threshold", "log_gaps", "weight"], strict=True
    ):
        assert float(one.abs().max()) > 0.01 or name == "first_threshold"
        assert float((one + other).abs().max()) < 0.01
    own_clock = Modality(m.y, m.mask, torch.arange(20).expand(2, -1))
    twin = Ordinal(1, 3).bind(2)
    twin.init_from(own_clock, z)
    torch.testing.assert_close(twin.thresholds, model.thresholds)


def test_nothing_is_added_where_all_levels_occur():
    model = Ordinal(1, 3).bind(2)
    m = _single(np.tile([0.0, 1.0, 2.0], 4)[None, :, None])
    assert with_unseen_levels(model, m, _path(1, 12), None) is None
