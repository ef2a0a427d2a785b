"""Tangent products, transported covariances and failure modes: closed forms and known maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.analysis import kaplan_yorke_dimension
from plssm.errors import CapabilityError, DataError, PlssmError, ShapeError
from plssm.metrics import consistency, tangent_product, transported_covariance
from plssm.metrics.alignment import frobenius_alignment, leading_cosine
from plssm.metrics.resampling import Resampling

NAN = float("nan")
POWER = np.linalg.matrix_power


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def _linear(matrix):
    return lambda z: z @ np.transpose(matrix), lambda z: matrix


def _rotation(angle):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


class Tent:
    """z' = 1 - a |z|: every tangent product is a^k in size."""

    def __init__(self, a=1.7):
        self.a = a

    def step(self, z):
        return 1 - self.a * np.abs(z)

    def jacobian(self, z):
        return (-self.a * np.sign(z))[..., None]


class Henon:
    """x' = 1 - 1.4 x^2 + y, y' = .3 x."""

    def step(self, z):
        return np.stack([1 - 1.4 * z[..., 0] ** 2 + z[..., 1], 0.3 * z[..., 0]], -1)

    def jacobian(self, z):
        out = np.zeros((*z.shape, 2))
        out[..., 0, 0], out[..., 0, 1], out[..., 1, 0] = -2.8 * z[..., 0], 1.0, 0.3
        return out

    def orbit(self, steps):
        z, path = np.zeros(2), []
        for _ in range(steps + 100):
            z = self.step(z)
            path.append(z)
        return np.array(path[100:])


def _plrnn(inputs=0):
    return ps.dynamics.PLRNN.from_parameters(
        [0.8, 0.6], [[0.0, 0.9], [-0.8, 0.0]], h=[0.1, -0.2],
        C=np.array([[0.5], [-1.0]]) if inputs else None, process_noise=[0.3, 0.2],
    )  # fmt: skip


# ---- products of Jacobians --------------------------------------------------------------------
def test_products_are_derivatives_of_the_iterated_map(rng):
    dynamics, z = _plrnn(inputs=1), rng.normal(size=(5, 2))
    s = rng.normal(size=(5, 4, 1))

    def ahead(state, drive):
        for k in range(4):
            state = dynamics.step(state, drive[k])
        return state

    found = tangent_product(dynamics, torch.tensor(z), steps=4, inputs=torch.tensor(s))
    for i in range(5):
        wanted = torch.autograd.functional.jacobian(
            lambda x, i=i: ahead(x, torch.tensor(s[i])), torch.tensor(z[i])
        )
        np.testing.assert_allclose(found[i, -1], wanted, atol=1e-12)


def test_forms_of_what_is_given(rng):
    henon, z = Henon(), rng.uniform(-0.5, 0.5, (4, 2))
    found = tangent_product(henon, z, steps=3)
    assert found.shape == (4, 3, 2, 2)
    np.testing.assert_array_equal(found, tangent_product((henon.step, henon.jacobian), z, steps=3))
    np.testing.assert_array_equal(found[1], tangent_product(henon, z[1], steps=3))
    path, jacobians = z, []
    for _ in range(3):
        jacobians.append(henon.jacobian(path))
        path = henon.step(path)
    jacobians = np.stack(jacobians, 1)
    np.testing.assert_array_equal(found, tangent_product(jacobians))
    np.testing.assert_array_equal(found[:, :2], tangent_product(torch.tensor(jacobians), steps=2))
    shared = tangent_product(_plrnn(inputs=1), z, steps=2, inputs=[[1.0], [-1.0]])
    each = tangent_product(
        _plrnn(inputs=1), z, steps=2, inputs=np.tile([[1.0], [-1.0]], (4, 1, 1))
    )
    np.testing.assert_array_equal(shared, each)


def test_single_precision_is_taken(rng):
    z = rng.normal(size=(3, 2)).astype(np.float32)
    found = tangent_product(_plrnn().float(), z, steps=3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, tangent_product(_plrnn(), z, steps=3), rtol=1e-5)


# ---- transported covariances ------------------------------------------------------------------
def _by_formula(matrix, start, noise, k):
    total = POWER(matrix, k) @ start @ POWER(matrix, k).T
    accumulated = sum(POWER(matrix, i) @ noise @ POWER(matrix, i).T for i in range(k))
    return total + accumulated, accumulated


def test_covariances_of_a_linear_map(rng):
    matrix, steps = rng.normal(size=(3, 3)), 6
    root = rng.normal(size=(4, 3, 3))
    start, noise = root @ np.swapaxes(root, 1, 2), np.diag([0.1, 0.2, 0.0])
    dynamics = ps.dynamics.LinearDynamics.from_parameters(matrix, process_noise=[1.0] * 3)
    ahead = transported_covariance(
        dynamics, rng.normal(size=(4, 3)), covariance=start, noise=noise, steps=steps
    )
    for i in range(4):
        for k in range(1, steps + 1):
            total, accumulated = _by_formula(matrix, start[i], noise, k)
            np.testing.assert_allclose(ahead.covariance[i, k - 1], total, rtol=1e-9)
            np.testing.assert_allclose(ahead.noise[i, k - 1], accumulated, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(ahead.tangent[i, k - 1], POWER(matrix, k), rtol=1e-9)
            assert ahead.log_volume[i, k - 1] == pytest.approx(np.linalg.slogdet(total)[1] / 2)
            share = np.trace(accumulated) / np.trace(total)
            assert ahead.noise_share()[i, k - 1] == pytest.approx(share)


def test_volume_keeps_what_a_determinant_loses(rng):
    """Growth by e and shrinkage by e: after 15 steps variances lie 26 orders apart."""
    turn = _rotation(0.7)
    matrix = turn @ np.diag([math.e, 1 / math.e]) @ turn.T
    ahead = transported_covariance(_linear(matrix), [0.0, 0.0], covariance=1.0, steps=15)
    np.testing.assert_allclose(ahead.log_volume, 0.0, atol=1e-2)
    assert not abs(np.linalg.slogdet(ahead.covariance[-1])[1] / 2) < 1


def test_singular_covariances_have_no_volume():
    ahead = transported_covariance(_linear(np.eye(2)), [0.0, 0.0], covariance=[1.0, 0.0], steps=2)
    assert (ahead.log_volume == -math.inf).all()


# ---- directions -------------------------------------------------------------------------------
def test_leading_directions_that_are_known():
    """R diag(3, 1/2): sizes 3 and 1/2, the first left singular vector is R e_1."""
    for angle in (0.3, 1.2, 2.5):
        tangent = _rotation(angle) @ np.diag([3.0, 0.5])
        for other in (0.0, 0.9):
            along = _rotation(other) @ np.diag([2.0, 0.1]) @ _rotation(other).T
            assert leading_cosine(along, tangent) == pytest.approx(abs(math.cos(angle - other)))


def test_without_a_leading_direction_the_cosine_is_that_of_random_ones(rng):
    tangent = rng.normal(size=(20, 4, 4))
    np.testing.assert_allclose(leading_cosine(0.3 * np.eye(4), tangent), 0.5)
    np.testing.assert_allclose(leading_cosine(np.diag([1.0, 0, 0, 0]), 2 * np.eye(4)), 0.5)
    directions = rng.normal(size=(40_000, 4))
    cosines = directions[:, 0] / np.linalg.norm(directions, axis=1)
    assert math.sqrt((cosines**2).mean()) == pytest.approx(0.5, abs=0.01)


def test_frobenius_alignment(rng):
    a, b = rng.normal(size=(2, 3, 3))
    wanted = np.trace(a.T @ b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert frobenius_alignment(a, b) == pytest.approx(wanted)
    assert frobenius_alignment(a, 1e300 * a) == pytest.approx(1.0)
    assert np.isnan(frobenius_alignment(a, 0 * b))


# ---- reports ----------------------------------------------------------------------------------
def test_linear_map_in_closed_form():
    matrix, start, noise = np.diag([1.5, 0.6]), 0.2 * np.eye(2), 0.1 * np.eye(2)
    report = consistency(
        _linear(matrix), np.zeros((3, 2)), covariance=start, noise=noise, horizons=(1, 4, 7),
        reference=_linear(matrix), reference_noise=[0.2, 0.2], dt=0.5, steps=50,
    )  # fmt: skip
    for k in (1, 4, 7):
        total, accumulated = _by_formula(matrix, start, noise, k)
        share = np.trace(accumulated) / np.trace(total)
        assert report.value("noise share", k) == pytest.approx(share)
        for whose in ("own", "reference"):
            assert report.value(f"leading cosine, {whose} tangent", k) == pytest.approx(1)
            assert report.value(f"alignment, {whose} tangent", k) == pytest.approx(1)
            assert np.isnan(report.value(f"correlation, {whose} tangent", k))
    assert report.value("process noise ratio") == pytest.approx(0.5)
    np.testing.assert_allclose(report.spectrum, np.log([1.5, 0.6]) / 0.5)
    assert report.value("sum of positive exponents") == pytest.approx(math.log(1.5) / 0.5)
    assert report.value("largest exponent, difference") == 0
    volumes = [
        np.linalg.slogdet(_by_formula(matrix, start, noise, k)[0])[1] / 2 for k in (1, 4, 7)
    ]
    slope = np.polyfit(0.5 * np.array([1, 4, 7]), volumes, 1)[0]
    assert report.value("log-volume slope") == pytest.approx(slope)


def test_volume_without_noise_grows_with_all_exponents():
    matrix = np.array([[1.5, 0.4], [0.0, 0.6]])
    report = consistency(_linear(matrix), [0.0, 0.0], covariance=1.0, noise=0.0, dt=0.1, steps=50)
    assert report.value("log-volume slope") == pytest.approx(math.log(0.9) / 0.1)


def test_volume_with_noise_grows_with_the_positive_exponents():
    report = consistency(
        _linear(np.diag([1.5, 0.6])), [0.0, 0.0], covariance=1.0, noise=0.1,
        horizons=(20, 25, 30), steps=50,
    )  # fmt: skip
    assert report.value("log-volume slope") == pytest.approx(math.log(1.5), abs=1e-4)


def test_tent_map(rng):
    """One state: every direction is right, sizes are a^k, the share is a geometric sum."""
    a, p, q = 1.7, 1e-4, 1e-4
    report = consistency(Tent(a), rng.uniform(-0.6, 0.9, (50, 1)), covariance=p, noise=q)
    assert report.value("largest exponent") == pytest.approx(math.log(a))
    for k in (1, 2, 5, 10, 20):
        accumulated = q * (a ** (2 * k) - 1) / (a**2 - 1)
        share = accumulated / (accumulated + p * a ** (2 * k))
        assert report.value("noise share", k) == pytest.approx(share)
        assert report.value("leading cosine, own tangent", k) == 1
        assert np.isnan(report.value("correlation, own tangent", k))


def test_core_collapse_and_noise_masking():
    """A contracting map with noise as large as the attractor, as open-loop fits end up."""
    collapsed = ps.dynamics.PLRNN.from_parameters([0.5], [[0.0]], process_noise=[0.1])
    report = consistency(
        collapsed, np.zeros((5, 1)), covariance=1e-3, reference=Tent(1.7), reference_noise=1e-4,
        horizons=(1, 5, 20),
    )  # fmt: skip
    difference = math.log(0.5) - math.log(1.7)
    assert report.value("largest exponent, difference") == pytest.approx(difference)
    assert report.value("spectrum RMSE") == pytest.approx(-difference)
    assert report.value("Kaplan-Yorke dimension") == 0
    assert report.value("Kaplan-Yorke dimension, reference") == 1
    assert report.value("process noise ratio") == pytest.approx(1000)
    assert report.value("noise share", 20) > 0.999
    assert abs(report.value("log-volume slope")) < 0.01


@pytest.fixture(scope="module")
def henon():
    return Henon().orbit(600)


HORIZONS = (2, 5, 10)


def test_a_model_that_is_right_sees(henon):
    report = consistency(
        Henon(), henon, covariance=1e-6, noise=1e-9, horizons=HORIZONS, reference=Henon(), block=10
    )
    for k in HORIZONS:
        assert report.value("leading cosine, reference tangent", k) > 0.999
        assert report.value("correlation, reference tangent", k) > 0.99
    assert report.value("largest exponent") == pytest.approx(0.419, abs=0.01)
    assert report.value("Kaplan-Yorke dimension") == pytest.approx(1.26, abs=0.01)
    assert report.value("log-volume slope") < report.value("sum of positive exponents") + 0.1


def test_constant_covariances_are_blind(henon):
    predicted = np.broadcast_to(0.01 * np.eye(2), (600, 3, 2, 2))
    report = consistency(
        Henon(), henon, covariance=1e-6, noise=1e-9, horizons=HORIZONS, predicted=predicted,
        reference=Henon(),
    )  # fmt: skip
    for k in HORIZONS:
        for whose in ("own", "reference"):
            assert report.value(f"correlation, {whose} tangent", k) == 0
            cosine = report.value(f"leading cosine, {whose} tangent", k)
            assert cosine == pytest.approx(math.sqrt(0.5))
    assert report.value("log-volume slope") == pytest.approx(0, abs=1e-12)
    assert report.settings["chance_cosine"] == pytest.approx(math.sqrt(0.5))


def test_covariances_that_vary_without_the_state_are_blind(henon, rng):
    """Along the shrinking axis and of random size: no correlation within four deviations."""
    scale = np.exp(rng.normal(size=(600, 3)))[..., None, None]
    predicted = scale * np.diag([0.01, 1.0])
    report = consistency(
        Henon(), henon, covariance=1e-6, noise=1e-9, horizons=HORIZONS, predicted=predicted
    )
    for k in HORIZONS:
        row = report.measures.loc["blind uncertainty", "correlation, own tangent", k]
        assert abs(row["value"]) < 4 / math.sqrt(600)
        assert row["low"] < 0.1 and row["high"] > -0.1
        assert report.value("leading cosine, own tangent", k) < 0.5
        values = np.linalg.norm(tangent_product(Henon(), henon, steps=k)[:, -1], axis=(1, 2))
        wanted = np.corrcoef(np.log(scale[:, HORIZONS.index(k), 0, 0]), np.log(values))[0, 1]
        assert row["value"] == pytest.approx(wanted)


def test_a_linear_model_is_blind_to_the_true_tangent(henon):
    flow = np.linalg.lstsq(henon[:-1], henon[1:], rcond=None)[0].T
    report = consistency(
        _linear(flow), henon, covariance=1e-6, noise=0.1, horizons=HORIZONS, reference=Henon(),
        steps=100,
    )  # fmt: skip
    for k in HORIZONS:
        assert report.value("correlation, reference tangent", k) == 0
        assert np.isnan(report.value("correlation, own tangent", k))
        own = report.value("alignment, own tangent", k)
        assert own == pytest.approx(1) and report.value("alignment, reference tangent", k) < 1
    assert report.value("largest exponent, difference") < -0.4


def test_other_coordinates(henon):
    """A model in turned coordinates, seen through its read-out, scores as in its own."""
    turn = _rotation(0.8)
    inner = Henon()
    turned = (
        lambda w: inner.step(w @ turn) @ turn.T,
        lambda w: turn @ inner.jacobian(w @ turn) @ turn.T,
    )
    options = dict(horizons=HORIZONS, reference=inner, reference_noise=1e-9, resamples=20)
    plain = consistency(inner, henon, covariance=1e-6, noise=1e-9, **options)
    seen = consistency(
        turned, henon @ turn.T, covariance=1e-6, noise=1e-9, readout=turn.T, **options
    )
    leave = plain.table().drop(index=["spectrum RMSE", "largest exponent, difference"], level=1)
    other = seen.table().loc[leave.index]
    blind = leave.index.get_level_values(0) != "core collapse"  # exponents come from other orbits
    np.testing.assert_allclose(other[blind], leave[blind], rtol=1e-6)
    np.testing.assert_allclose(other[~blind], leave[~blind], rtol=0.05)
    assert seen.settings["coordinates"] == "read-out"


def test_a_hidden_state_is_read_out(henon):
    """A third state that is not seen changes nothing but the list of exponents."""
    inner, b = Henon(), np.eye(2, 3)
    wide = (
        lambda z: np.concatenate([inner.step(z[..., :2]), 0.5 * z[..., 2:]], -1),
        lambda z: _padded(inner.jacobian(z[..., :2])),
    )
    z = np.concatenate([henon, np.zeros((600, 1))], 1)
    options = dict(covariance=1e-6, noise=1e-9, horizons=HORIZONS, reference=inner, resamples=20)
    plain, seen = consistency(inner, henon, **options), consistency(wide, z, readout=b, **options)
    rows = ["noise masking", "blind uncertainty"]
    np.testing.assert_allclose(seen.table().loc[rows], plain.table().loc[rows], rtol=1e-6)
    assert seen.value("log-volume slope") == pytest.approx(plain.value("log-volume slope"))
    assert seen.spectrum[1] == pytest.approx(math.log(0.5))
    between = (math.log(0.5) - plain.spectrum[1]) / math.sqrt(2)
    assert seen.value("spectrum RMSE") == pytest.approx(between, rel=1e-3)


def _padded(jacobian):
    out = np.zeros((*jacobian.shape[:-2], 3, 3))
    out[..., :2, :2], out[..., 2, 2] = jacobian, 0.5
    return out


def test_jacobians_and_spectra_may_be_given(henon):
    path, jacobians = henon[:50], []
    for _ in range(5):
        jacobians.append(Henon().jacobian(path))
        path = Henon().step(path)
    jacobians = torch.tensor(np.stack(jacobians, 1))
    options = dict(covariance=1e-6, noise=1e-9, horizons=(1, 5))
    report = consistency(
        jacobians, reference=jacobians, spectrum=[-1.6, 0.4], reference_spectrum=[0.5, -1.7],
        **options,
    )  # fmt: skip
    whole = consistency(Henon(), henon[:50], spectrum=[0.4, -1.6], **options)
    np.testing.assert_array_equal(
        report.table().loc["noise masking"], whole.table().loc["noise masking"]
    )
    assert report.value("largest exponent, difference") == pytest.approx(-0.1)
    assert report.value("spectrum RMSE") == pytest.approx(0.1)
    bare = consistency(jacobians, **options)
    assert bare.spectrum is None
    with pytest.raises(DataError, match="no such measure.*noise share"):
        bare.value("largest exponent")


def test_noise_of_the_dynamics_is_the_default(rng):
    z = rng.normal(size=(6, 2))
    options = dict(covariance=0.1, horizons=(1, 3), steps=100)
    own = consistency(_plrnn(), torch.tensor(z), **options)
    given = consistency(_plrnn(), z, noise=[0.3, 0.2], **options)
    np.testing.assert_allclose(own.table(), given.table())
    driven = consistency(_plrnn(inputs=1), z, inputs=np.ones((3, 1)), **options)
    assert driven.spectrum is None and 0 < driven.value("noise share", 3) < 1


def test_origins_that_diverge_are_left_out():
    class Square:
        def step(self, z):
            return z**2

        def jacobian(self, z):
            return 2 * z[..., None]

    options = dict(covariance=1.0, noise=1.0, horizons=(1, 20), spectrum=[0.0])
    report = consistency(Square(), [[0.5], [0.9], [1e10]], **options)
    assert report.settings["origins"] == 2 and report.settings["left_out"] == 1
    assert np.isfinite(report.value("noise share", 20))
    with pytest.raises(DataError, match="no origin stays finite"):
        consistency(Square(), [[1e10]], **options)


def test_prints(henon):
    report = consistency(Henon(), henon[:40], covariance=1e-6, noise=1e-9, horizons=(5, 1))
    table = report.table()
    assert list(table.columns) == [1, 5, "overall"]
    assert list(dict.fromkeys(table.index.get_level_values(0))) == [
        "core collapse", "noise masking", "blind uncertainty",
    ]  # fmt: skip
    low, high = report.measures.loc["noise masking", "noise share", 5][["low", "high"]]
    value = report.value("noise share", 5)
    assert low <= value <= high
    assert f"{value:.3g} [{low:.3g}, {high:.3g}]" in str(report)
    assert "<table" in report._repr_html_()
    fixed = consistency(_linear(np.eye(2)), np.zeros((4, 2)), covariance=1, noise=1, steps=9)
    assert "unavailable" in str(fixed)


# ---- bootstrap --------------------------------------------------------------------------------
def test_interval_of_a_mean_is_the_normal_one(rng):
    x = rng.normal(size=(400, 1))
    value, low, high = Resampling(400, draws=4000, block=1, level=0.95, seed=0).mean(x)[0]
    assert value == pytest.approx(x.mean())
    half = 1.96 * x.std() / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)


def test_blocks_widen_the_interval_of_dependent_values(rng):
    """AR(1) with .9: the variance of the mean is (1 + .9) / (1 - .9) times that of white noise."""
    widths, noise = [], rng.normal(size=20_000)
    x = np.zeros(20_000)
    for t in range(1, 20_000):
        x[t] = 0.9 * x[t - 1] + noise[t]
    for block in (1, 200):
        row = Resampling(20_000, draws=300, block=block, level=0.9, seed=0).mean(x[:, None])[0]
        widths.append(row[2] - row[1])
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(19), rel=0.2)


def test_interval_of_a_correlation_covers(rng):
    """Gaussian pairs of correlation .6: 90 % intervals hold it in about 90 % of cases."""
    runs, held = 300, 0
    for seed in range(runs):
        x = rng.normal(size=(80, 1))
        y = 0.6 * x + 0.8 * rng.normal(size=(80, 1))
        found = Resampling(80, draws=200, block=1, level=0.9, seed=seed).correlation(x, y)[0]
        held += found[1] <= 0.6 <= found[2]
        assert found[0] == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert abs(held / runs - 0.9) < 0.05


def test_what_is_not_finite_is_left_out(rng):
    x, y = rng.normal(size=(2, 30, 2))
    x[3, 0], y[4, 0], x[:, 1] = NAN, -math.inf, NAN
    draw = Resampling(30, draws=50, block=3, level=0.9, seed=0)
    keep = [i for i in range(30) if i not in (3, 4)]
    found = draw.correlation(x, y)
    assert found[0, 0] == pytest.approx(np.corrcoef(x[keep, 0], y[keep, 0])[0, 1])
    assert np.isnan(found[1]).all() and np.isnan(draw.mean(x)[1]).all()
    assert draw.mean(x)[0, 0] == pytest.approx(np.nanmean(x[:, 0]))


# ---- Kaplan-Yorke -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [
        (
            [0.9056, 0.0, -14.5723],
            2.0621,
        ),  # Lorenz-63: Sprott 2003, Chaos and Time-Series Analysis
        ([-1.623, 0.419], 1.2582),  # Henon: the same
        ([-0.1, -0.2], 0.0),
        ([0.3, 0.2], 2.0),
        ([0.5, -math.inf], 1.0),
        ([0.0, -1.0], 1.0),
    ],
)
def test_kaplan_yorke_dimension(exponents, dimension):
    assert kaplan_yorke_dimension(exponents) == pytest.approx(dimension, abs=1e-4)


# ---- refusals ---------------------------------------------------------------------------------
Z = np.zeros((3, 2))
STILL = _linear(np.eye(2))


def _report(dynamics=STILL, origins=Z, **options):
    return consistency(dynamics, origins, **{"covariance": 1.0, "spectrum": [0, 0], **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tangent_product(object(), Z, steps=2), CapabilityError, "no step and jacobian"),
        (lambda: tangent_product(STILL, Z), DataError, "wanted origins=.* and steps"),
        (lambda: tangent_product(STILL, Z, steps=0), DataError, "steps is out of range"),
        (lambda: tangent_product(STILL, Z * NAN, steps=1), DataError, "origins are not finite"),
        (lambda: tangent_product(_plrnn(), np.zeros((3, 4)), steps=1), ShapeError, r"\[S, 2\]"),
        (lambda: tangent_product(np.ones((3, 2, 1)), steps=1), ShapeError, "jacobians: got shape"),
        (lambda: tangent_product(np.ones((3, 2, 2)), steps=5), ShapeError, "wanted 5 or more"),
        (lambda: tangent_product(np.ones((3, 4, 2, 2)), Z[:2]), ShapeError, "do not fit"),
        (
            lambda: tangent_product(_plrnn(1), Z, steps=3, inputs=np.ones((2, 1))),
            ShapeError,
            r"wanted \[3, n\] or \[3, 3, n\]",
        ),
        (
            lambda: tangent_product((lambda z: z[:, :1], lambda z: np.ones(5)), Z, steps=1),
            ShapeError,
            "called with all origins at once",
        ),
        (lambda: _report(covariance=np.diag([1.0, -1.0])), DataError, "negative variances"),
        (lambda: _report(covariance=np.ones((4, 2, 2))), DataError, "covariance has the wrong"),
        (lambda: _report(covariance=np.full((3, 2, 2), NAN)), DataError, "not finite"),
        (lambda: _report(noise=[1.0, 2.0, 3.0]), DataError, "noise has the wrong shape"),
        (lambda: _report(horizons=(0, 1)), DataError, "horizons are out of range"),
        (lambda: _report(horizons=(1.5,)), DataError, "horizons are out of range"),
        (lambda: _report(readout=np.ones((1, 3))), ShapeError, r"readout.*wanted \[N, 2\]"),
        (lambda: _report(predicted=np.ones((3, 2, 2))), ShapeError, "origins, horizons, states"),
        (lambda: _report(reference=Tent(), reference_origins=[[0.1]] * 3), ShapeError, "readout="),
        (lambda: _report(reference_noise=0.0), DataError, "nothing to compare with"),
        (lambda: _report(spectrum=[NAN, 0.0]), ShapeError, "vector of exponents"),
        (lambda: _report(block=4), DataError, "block is out of range"),
        (lambda: _report(level=1.0), DataError, "level is out of range"),
        (lambda: kaplan_yorke_dimension([[0.0]]), ShapeError, "vector of exponents"),
        (
            lambda: _report(_linear(2 * np.eye(2)), Z + 1, spectrum=None),
            PlssmError,
            "orbit diverged",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
