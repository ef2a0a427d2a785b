"""BOLD against dense matrices, automatic differentiation, Monte Carlo and simulated scans."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from plssm.data import Dataset, Recording, Signal
from plssm.data.batch import Modality
from plssm.errors import CapabilityError, DataError, PlssmError, ShapeError
from plssm.linalg.banded import BlockBanded
from plssm.observations.bold.hrf import DoubleGamma
from plssm.observations.bold.model import BOLD
from plssm.testing import ObservationContract

LENGTHS = (26, 19, 1)


class _BoldContract(ObservationContract):
    def reference(self, features, y):
        return scipy.stats.norm(features, self.model.noise.detach().sqrt()).logpdf(y)

    def simulate(self, features, rng):
        return rng.normal(features, self.model.noise.detach().sqrt())


class TestCanonical(_BoldContract):
    def create(self):
        return BOLD(5, tr_seconds=1.0, hrf=DoubleGamma(length_seconds=4.0))


class TestSharedResponse(_BoldContract):
    def create(self):
        hrf = DoubleGamma(length_seconds=4.0, learn=True)
        return BOLD(4, tr_seconds=1.0, nuisance=2, hrf=hrf, bias=False)


class TestRegionalResponses(_BoldContract):
    def create(self):
        hrf = DoubleGamma(length_seconds=4.0, learn=True, regions=4)
        return BOLD(4, tr_seconds=1.0, nuisance=1, hrf=hrf)


class TestKnownParameters(_BoldContract):
    dim = 2

    def create(self):
        B = np.random.default_rng(0).normal(size=(3, 2))
        hrf = DoubleGamma(length_seconds=6.0)
        return BOLD.from_parameters(
            B, bias=[1.0, 0.0, -1.0], noise=[0.1, 0.2, 0.3], tr_seconds=1.0, J=B, hrf=hrf
        )


# ---- the problem, and the same written out as dense matrices ----------------------------------


def _problem(tr_seconds, dt, *, learn=False, lengths=LENGTHS, missing=0.25, nuisance=1, seed=0):
    """Three ragged trials of three regions; a scan every repetition time."""
    rng = np.random.default_rng(seed)
    stride, dim = round(tr_seconds / dt), 2
    model = BOLD(3, tr_seconds=tr_seconds, nuisance=nuisance, learn_hrf=learn).bind(dim)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.as_tensor(0.4 * rng.normal(size=p.shape)))
    clock = np.arange(0, max(lengths), stride)
    inside = clock < np.array(lengths)[:, None]
    mask = (rng.random((3, len(clock), 3)) >= missing) & inside[..., None]
    y = np.where(mask, rng.normal(size=mask.shape), 0.0)
    m = Modality(
        y=torch.from_numpy(y),
        mask=torch.from_numpy(mask),
        clock=None if stride == 1 else torch.from_numpy(np.where(inside, clock, 0)),
        nuisance=torch.from_numpy(rng.normal(size=(*clock.shape, nuisance))).expand(3, -1, -1),
        dt=dt,
    )
    z = torch.from_numpy(rng.normal(size=(3, max(lengths), dim)))
    return model, m, z


def _designs(model, dt, steps):
    """Rows of the predictors in the path for every step and channel, ``[N, T, T, M]``."""
    peaks = model.hrf.time_to_peak.detach().expand(model.channels).tolist()
    shares = model.hrf.undershoot.detach().expand(model.channels).tolist()
    weight, out = model.weight.detach().numpy(), []
    for n in range(model.channels):
        t = np.arange(int(32 / dt + 1e-6) + 1) * dt
        early, late = scipy.stats.gamma(peaks[n] + 1), scipy.stats.gamma(16.0)
        h = early.pdf(t) - shares[n] * late.pdf(t)
        column = np.zeros(steps)
        column[: len(h)] = (h / h.sum())[:steps]
        H = scipy.linalg.toeplitz(column, np.zeros(steps))
        out.append(H[:, :, None] * weight[n])
    return np.stack(out)


def _entries(model, m, steps):
    """Observed entries of each trial: rows of the design, residual without path, noise."""
    designs = _designs(model, m.dt, steps)
    offset = model.bias + m.nuisance @ model.nuisance_weight.mT
    out = []
    for b in range(len(m.y)):
        i, n = np.nonzero(m.mask[b].numpy())
        at = i if m.clock is None else m.clock[b].numpy()[i]
        rows = designs[n, at].reshape(len(i), -1)
        residual = (m.y[b] - offset[b]).detach().numpy()[i, n]
        out.append((rows, residual, model.noise.detach().numpy()[n]))
    return out


def _dense(curvature):
    return ObservationContract._dense(curvature)


def _joint(z, *, scale=0.3, seed=5):
    """Covariance of whole paths ``[B, TM, TM]``, and its lagged blocks up to lag w."""
    trials, steps, dim = z.shape
    root = np.random.default_rng(seed).normal(size=(trials, steps * dim, steps * dim))
    joint = scale / steps * root @ root.swapaxes(1, 2)

    def lagged(w):
        blocks = np.zeros((trials, steps, w + 1, dim, dim))
        parts = joint.reshape(trials, steps, dim, steps, dim)
        for lag in range(min(w + 1, steps)):
            for t in range(steps - lag):
                blocks[:, t, lag] = parts[:, t, :, t + lag]
        return torch.from_numpy(blocks)

    return joint, lagged


CLOCKS = [(0.5, 0.5), (2.0, 2.0), (3.0, 3.0), (2.0, 1.0), (3.0, 1.0)]


@pytest.mark.parametrize(("tr_seconds", "dt"), CLOCKS)
@pytest.mark.parametrize("learn", [False, "regions"])
def test_local_equals_dense_matrices(tr_seconds, dt, learn):
    """Log-density, score and banded curvature of ragged trials with missing entries."""
    model, m, z = _problem(tr_seconds, dt, learn=learn, lengths=(70, 50, 1))
    local = model.local(m, z)
    assert local.curvature.shape == (3, 70, model.memory(dt) + 1, 2, 2)
    curvature = _dense(local.curvature).numpy()
    for b, (rows, residual, noise) in enumerate(_entries(model, m, 70)):
        error = residual - rows @ z[b].numpy().ravel()
        value = scipy.stats.norm(0, np.sqrt(noise)).logpdf(error).sum()
        np.testing.assert_allclose(local.log_prob[b], value, rtol=1e-11)
        np.testing.assert_allclose(model.log_prob(m, z)[b].detach(), value, rtol=1e-11)
        np.testing.assert_allclose(local.score[b].ravel(), rows.T @ (error / noise), atol=1e-11)
        np.testing.assert_allclose(curvature[b], rows.T @ (rows / noise[:, None]), atol=1e-11)


@pytest.mark.parametrize(("tr_seconds", "dt"), CLOCKS)
def test_local_equals_autograd(tr_seconds, dt):
    model, m, z = _problem(tr_seconds, dt)
    local = model.local(m, z)
    path = z.clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(m, path).sum(), path)
    torch.testing.assert_close(local.score, score, rtol=1e-10, atol=1e-10)
    curvature = _dense(local.curvature)
    for b in range(3):
        one = Modality(*(None if v is None else v[b : b + 1] for v in _fields(m)), dt)
        hessian = torch.autograd.functional.hessian(
            lambda v: model.log_prob(one, v[None]).sum(),  # noqa: B023
            z[b],
        )
        wanted = hessian.reshape(curvature[b].shape)
        torch.testing.assert_close(curvature[b], -wanted, rtol=1e-10, atol=1e-10)


def _fields(m):
    return m.y, m.mask, m.clock, m.nuisance


@pytest.mark.parametrize("learn", [False, "regions"])
def test_the_latent_clock_is_a_fine_clock_with_dt_of_one_scan(learn):
    """Both ways through the code agree to 1e-10."""
    model, m, z = _problem(3.0, 3.0, learn=learn)
    inside = torch.arange(26) < torch.tensor(LENGTHS)[:, None]
    fine = replace(m, clock=torch.where(inside, torch.arange(26), 0))
    twin = copy.deepcopy(model)
    lagged = _joint(z)[1](model.memory(3.0))
    for got, wanted in (
        (twin.features_at(fine, z)[inside], model.features_at(m, z)[inside]),
        (twin.local(fine, z).score, model.local(m, z).score),
        (twin.local(fine, z).curvature, model.local(m, z).curvature),
        (twin.expected_log_prob(fine, z, lagged), model.expected_log_prob(m, z, lagged)),
        (twin.start_signal(fine), model.start_signal(m)),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for each, modality in ((model, m), (twin, fine)):
        each.m_step(modality, z, lagged)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dt", [0.5, 3.0])
@pytest.mark.parametrize("learn", [False, "regions"])
def test_predictors_along_a_path(dt, learn):
    """All steps, some steps, and few steps of a long path, with nuisance regressors."""
    model, _, _ = _problem(3.0, dt, learn=learn)
    z = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 2, 90, 2)))
    nuisance = torch.from_numpy(np.random.default_rng(4).normal(size=(90, 1)))
    designs = torch.from_numpy(_designs(model, dt, 90))
    wanted = torch.einsum("nktm,...tm->...kn", designs, z) + model.bias
    torch.testing.assert_close(model.features_along(z, dt=dt), wanted)
    wanted = wanted + nuisance @ model.nuisance_weight.mT
    for clock in (None, torch.arange(0, 90, 2), torch.tensor([0]), torch.tensor([89])):
        at = torch.arange(90) if clock is None else clock
        got = model.features_along(z, clock=clock, nuisance=nuisance[at], dt=dt)
        torch.testing.assert_close(got, wanted[..., at, :])
    weights = model.lag_weights(dt).detach()
    assert weights.shape == (3, model.memory(dt) + 1, 2)
    lags = min(90, weights.shape[1])
    got = torch.einsum("nlm,...lm->...n", weights[:, :lags], z.flip(-2)[..., :lags, :])
    torch.testing.assert_close(got + model.bias, model.features_along(z, dt=dt)[..., -1, :])


# ---- the posterior ----------------------------------------------------------------------------


def _posterior_precision(tr_seconds, *, steps, dim=3, channels=20):
    """Prior of a random piecewise-linear chain with process variance 1 plus BOLD curvature."""
    rng = np.random.default_rng(1)
    blocks = np.zeros((1, steps, 2, dim, dim))
    blocks[:, :, 0] = np.eye(dim)
    A, W = np.diag(rng.uniform(0.3, 0.8, dim)), 0.3 * rng.normal(size=(dim, dim))
    for t in range(steps - 1):
        J = A + W * rng.integers(0, 2, dim)
        blocks[0, t, 0] += J.T @ J
        blocks[0, t, 1] = -J.T
    B = rng.normal(size=(channels, dim))
    model = BOLD.from_parameters(B, noise=1.0, tr_seconds=tr_seconds)
    y = torch.zeros(1, steps, channels, dtype=torch.float64)
    m = Modality(y, torch.ones_like(y, dtype=torch.bool), dt=tr_seconds)
    curvature = model.local(m, torch.zeros(1, steps, dim, dtype=torch.float64)).curvature.numpy()
    curvature = curvature.copy()
    curvature[:, :, :2] += blocks
    return curvature


@pytest.mark.parametrize("tr_seconds", [0.5, 2.0, 3.0])
def test_posterior_covariance_equals_the_dense_inverse(tr_seconds):
    """Also where the Hessian cut down to a block-tridiagonal one is indefinite."""
    blocks = _posterior_precision(tr_seconds, steps=90)
    factor = BlockBanded(blocks).cholesky()
    assert (factor.status == 0).all()
    full = _dense(torch.from_numpy(blocks)).numpy()[0]
    inverse = np.linalg.inv(full).reshape(90, 3, 90, 3)
    got = factor.covariances()[0]
    for lag in range(got.shape[1]):
        for t in range(90 - lag):
            np.testing.assert_allclose(got[t, lag], inverse[t, :, t + lag], atol=1e-8)
    np.testing.assert_allclose(factor.logdet[0], np.linalg.slogdet(full)[1], rtol=1e-10)
    truncated = _dense(torch.from_numpy(blocks[:, :, :2])).numpy()[0]
    assert np.linalg.eigvalsh(full).min() > 0 > np.linalg.eigvalsh(truncated).min()


# ---- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", [False, "regions"])
@pytest.mark.parametrize(("tr_seconds", "dt"), [(3.0, 3.0), (2.0, 1.0)])
def test_expected_log_prob_equals_the_dense_joint_gaussian(tr_seconds, dt, learn):
    model, m, z = _problem(tr_seconds, dt, learn=learn)
    joint, lagged = _joint(z)
    got = model.expected_log_prob(m, z, lagged(model.memory(dt)))
    more = torch.nn.functional.pad(lagged(model.memory(dt)), (0, 0, 0, 0, 0, 3))
    torch.testing.assert_close(model.expected_log_prob(m, z, more), got)
    for b, (rows, residual, noise) in enumerate(_entries(model, m, z.shape[1])):
        error = residual - rows @ z[b].numpy().ravel()
        second = error**2 + np.einsum("ij,jk,ik->i", rows, joint[b], rows)
        wanted = -0.5 * (second / noise + np.log(2 * np.pi * noise)).sum()
        np.testing.assert_allclose(got[b], wanted, rtol=1e-10)


@pytest.mark.parametrize("missing", [0.0, 0.25])
@pytest.mark.parametrize("learn", [False, "shared", "regions"])
def test_m_step_is_a_stationary_point_of_the_expectation(learn, missing):
    """Gradients of the expectation, written out densely, vanish (regression given the kernel)."""
    model, m, z = _problem(2.0, 1.0, learn=learn, missing=missing)
    for p in model.hrf.parameters():
        p.requires_grad_(False)
    joint, lagged = _joint(z)
    model.m_step(m, z, lagged(model.memory(1.0)))
    designs = torch.from_numpy(
        _designs(model, 1.0, 26)[..., 0] / model.weight.detach().numpy()[:, :1, None]
    )
    params = [model.weight, model.bias, model.nuisance_weight, model.log_noise]
    weight, bias, J, log_noise = params
    total = 0.0
    for b in range(3):
        parts = torch.from_numpy(joint[b].reshape(26, 2, 26, 2))
        for i, n in np.argwhere(m.mask[b].numpy()):
            h = designs[n, int(m.clock[b, i])]
            mean = h @ z[b]
            spread = torch.einsum("s,sjuk,u->jk", h, parts, h)
            error = m.y[b, i, n] - weight[n] @ mean - bias[n] - J[n] @ m.nuisance[b, i]
            second = error**2 + weight[n] @ spread @ weight[n]
            total = total - 0.5 * (second / log_noise[n].exp() + log_noise[n])
    for gradient in torch.autograd.grad(total, params):
        assert float(gradient.abs().max()) < 1e-7


def test_m_step_equals_that_of_a_gaussian_on_the_convolved_path():
    """With a known path, the regression on the convolved states."""
    from plssm.observations import Gaussian

    model, m, z = _problem(3.0, 1.0)
    model.m_step(m, z, None)
    seen, _ = model.seen_moments(z, None, dt=1.0)
    other = Gaussian(3, nuisance=1).bind(2)
    other.m_step(m, seen, None)
    for name in ("weight", "bias", "nuisance_weight", "log_noise"):
        torch.testing.assert_close(getattr(model, name), getattr(other, name))


def _simulated(truth, *, dt=1.0, steps=600, seed=2):
    rng = np.random.default_rng(seed)
    z = np.zeros((2, steps, 2))
    for t in range(1, steps):
        z[:, t] = 0.8 * z[:, t - 1] + rng.normal(size=(2, 2))
    z = torch.from_numpy(z)
    clock = torch.arange(0, steps, round(truth.tr_seconds / dt))
    with torch.no_grad():
        y = truth.sample(truth.features_along(z, clock=clock, dt=dt), seed)
    return Modality(y, torch.ones_like(y, dtype=torch.bool), clock.expand(2, -1), dt=dt), z


@pytest.mark.parametrize("learn", ["shared", "regions"])
def test_response_is_recovered_from_a_known_path(learn):
    peaks = [6.2] * 3 if learn == "shared" else [4.0, 5.5, 7.0]
    hrf = DoubleGamma(learn=True, regions=None if learn == "shared" else 3)
    with torch.no_grad():
        raw = torch.tensor([(p - 1) / 8 for p in peaks], dtype=torch.float64).logit()
        hrf.raw_time_to_peak.copy_(raw[0] if learn == "shared" else raw)
        hrf.raw_undershoot.add_(0.6)
    B = np.array([[1.0, -0.5], [0.3, 1.0], [-0.8, 0.7]])
    truth = BOLD.from_parameters(B, noise=0.05, tr_seconds=2.0, hrf=hrf)
    m, z = _simulated(truth)
    model = BOLD(3, tr_seconds=2.0, learn_hrf=learn).bind(2)
    model.init_from(m, z)
    got, share = model.hrf.time_to_peak.detach(), model.hrf.undershoot.detach()
    np.testing.assert_allclose(got.expand(3), peaks, atol=0.12)
    np.testing.assert_allclose(share, hrf.undershoot.detach(), atol=0.03)
    np.testing.assert_allclose(model.weight.detach(), B, atol=0.06)
    np.testing.assert_allclose(model.noise.detach(), 0.05, rtol=0.2)
    assert float(model.log_prob(m, z).detach().sum()) > float(truth.log_prob(m, z).detach().sum())


@pytest.mark.parametrize("learn", ["shared", "regions"])
def test_statistics_of_the_response_are_the_expectation(learn):
    """What L-BFGS climbs differs from the expectation by a constant."""
    model, m, z = _problem(2.0, 1.0, learn=learn)
    lagged = _joint(z)[1](model.memory(1.0))
    for p in (model.weight, model.bias, model.nuisance_weight, model.log_noise):
        p.requires_grad_(False)
    before = float(model.expected_log_prob(m, z, lagged).sum())
    model.m_step(m, z, lagged)
    best = float(model.expected_log_prob(m, z, lagged).sum())
    assert best > before + 0.01
    for p in model.hrf.parameters():
        for index in np.ndindex(tuple(p.shape)):
            for step in (0.05, -0.05):
                with torch.no_grad():
                    p[index] += step
                    assert float(model.expected_log_prob(m, z, lagged).sum()) < best + 1e-5
                    p[index] -= step


def test_moments_of_the_seen_states():
    model, m, z = _problem(2.0, 2.0)
    joint, lagged = _joint(z)
    w = model.memory(2.0)
    ended = torch.arange(26) >= torch.tensor([26, 19, 1])[:, None]
    mean = torch.where(ended[..., None], torch.nan, z)
    blocks = torch.where(ended[..., None, None, None], torch.nan, lagged(w))
    for t in range(26):
        for lag in range(min(w + 1, 26 - t)):
            blocks[ended[:, t + lag], t, lag] = torch.nan
    seen, spread = model.seen_moments(mean, blocks, dt=2.0)
    h = model.hrf.kernel(2.0).numpy()
    H = scipy.linalg.toeplitz(np.append(h, np.zeros(9)), np.zeros(26))[:26]
    parts = joint.reshape(3, 26, 2, 26, 2)
    wanted = np.einsum("ts,bsjuk,tu->btjk", H, parts, H)
    np.testing.assert_allclose(seen[~ended], (H @ z.numpy())[~ended.numpy()], atol=1e-12)
    np.testing.assert_allclose(spread[~ended], wanted[~ended.numpy()], atol=1e-12)
    assert bool(torch.isnan(seen[ended]).all() and torch.isnan(spread[ended]).all())
    first, _ = model.predictive(seen[~ended], spread[~ended])
    got = model.features_along(z, dt=2.0).detach()
    torch.testing.assert_close(first, got[~ended])
    assert bool((model.seen_moments(z, None, dt=2.0)[1] == 0).all())
    with pytest.raises(CapabilityError, match="features_along"):
        BOLD(3, tr_seconds=2.0, learn_hrf="regions").bind(2).seen_moments(z, None, dt=2.0)


# ---- clocks -----------------------------------------------------------------------------------


def test_slices_taken_one_after_another():
    """Two slices half a repetition time apart: every channel is convolved at its own time."""
    dt, tr_seconds, scans = 0.25, 2.0, 24
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 192, 2)))
    model = BOLD.from_parameters(np.eye(2), noise=[0.1, 0.2], tr_seconds=tr_seconds)
    exact = model.features_along(z, dt=dt)[0].detach().numpy()
    steps = 8 * np.arange(scans)
    values = np.stack([exact[steps, 0], exact[steps + 4, 1]], axis=1)
    signal = Signal(
        values, tr_seconds * np.arange(scans), kind="bold", channel_delay_seconds=[0.0, 1.0]
    )
    data = Recording({"bold": signal}, trials=[(0.0, 48.0)]).to_dataset(dt=dt)
    model.check(data, "bold")
    m = data.batch().modalities["bold"]
    assert m.mask.sum() == 2 * scans and not bool(m.mask.all(-1).any())
    features = model.features_at(m, z)
    torch.testing.assert_close(features[m.mask], m.y[m.mask], rtol=0, atol=1e-13)
    wanted = scipy.stats.norm(0, np.sqrt([0.1, 0.2])).logpdf(0).sum() * scans
    assert model.log_prob(m, z).item() == pytest.approx(wanted)
    aligned = model.start_signal(m)
    assert bool((aligned[~m.mask] == 0).all())
    slow = Recording({"bold": signal}, trials=[(0.0, 48.0)]).to_dataset(dt=2.0)
    model.check(slow, "bold")


def test_linear_states_stand_in_for_the_convolution():
    """Predicted BOLD within one percent of its sd at an eighth of the repetition time."""
    rng = np.random.default_rng(0)
    for tr_seconds in (2.0, 3.0):
        dt, z = tr_seconds / 8, np.zeros((2000, 2))
        for t in range(1, 2000):
            z[t] = 0.95 * z[t - 1] + rng.normal(size=2)
        model = BOLD.from_parameters(np.eye(2), noise=1.0, tr_seconds=tr_seconds, kernel="states")
        A, b, c, d = model.response(dt)
        state, got = np.zeros((5, 2)), np.zeros_like(z)
        for t in range(2000):
            got[t] = c @ state + d * z[t]
            state = A @ state + b[:, None] * z[t]
        wanted = model.features_along(torch.from_numpy(z), dt=dt).detach().numpy()
        assert np.abs(got - wanted).max() < 0.02 * wanted.std()
        assert (got - wanted).std() < 0.01 * wanted.std()


def test_a_path_is_zero_before_its_first_step():
    model, m, z = _problem(3.0, 3.0)
    long = torch.cat([torch.zeros(3, 20, 2, dtype=torch.float64), z], 1)
    got = model.features_along(long, dt=3.0)[:, 20:]
    torch.testing.assert_close(got, model.features_along(z, dt=3.0))


def _scans(spacing, count=30, **options):
    x = np.random.default_rng(0).normal(size=(count, 2))
    arguments = {"kinds": {"bold": "bold"}, "times": {"bold": spacing * np.arange(count)}}
    return Dataset.from_arrays({"bold": x}, **{"dt": 0.5, **arguments, **options})


def test_scans_that_fit_are_accepted():
    model = BOLD(2, tr_seconds=3.0)
    whole = _scans(3.0)
    holes = np.random.default_rng(1).normal(size=(30, 2))
    holes[1::2] = np.nan
    on_grid = np.full((180, 2), np.nan)
    on_grid[::6] = 1.0 + np.arange(60.0).reshape(30, 2)
    kinds = {"bold": "bold"}
    for data in (
        whole,
        _scans(3.1),
        _scans(3.0, times=None, dt=3.0),
        whole.hold_out("bold", times=(10.0, 60.0)),
        whole.select(time=(20.0, 80.0)),
        Dataset.from_arrays(
            {"bold": holes}, dt=0.5, kinds=kinds, times={"bold": 3.0 * np.arange(30)}
        ),
        Dataset.from_arrays({"bold": on_grid}, dt=0.5, kinds=kinds),
        Dataset.from_arrays(
            {"bold": holes[:1]},
            dt=0.5,
            kinds=kinds,
            times={"bold": [1.0]},
            lengths=[90],
            check_channels=False,
        ),
    ):
        model.check(data, "bold")


def test_scans_that_do_not_fit_are_refused():
    model = BOLD(2, tr_seconds=3.0)
    for data, message in (
        (_scans(4.0, times=None, dt=4.0), r"'bold', time axis: the TR is shorter than dt; got"),
        (_scans(2.0), r"the scans do not come at the repetition time; got a scan every 2 s"),
        (_scans(6.0), r"a scan every 6 s, wanted one every 3 s"),
        (_scans(3.3), r"a scan every 3.3 s"),
        (_scans(1.0, times=None, dt=1.0, count=60), r"a scan every 1 s"),
    ):
        with pytest.raises(DataError, match=message):
            model.check(data, "bold")
    short = _scans(3.0, count=10)
    model.check(short, "bold")  # what is known may be applied to a short run
    with pytest.raises(DataError, match=r"HRF is longer than the run; got a response of 32 s"):
        model.check_training(short, "bold")
    BOLD(2, tr_seconds=3.0, hrf=DoubleGamma(length_seconds=24.0)).check_training(short, "bold")


# ---- where a fit starts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tr_seconds", "dt", "learn"), [(3.0, 3.0, False), (0.5, 0.5, False), (2.0, 0.25, "regions")]
)
def test_start_signal_is_in_step_with_the_latent_path(tr_seconds, dt, learn):
    """Far nearer to the activity than the data, and like the data at a delay found by trial."""
    rng = np.random.default_rng(0)
    scans, stride = 300, round(tr_seconds / dt)
    z = np.zeros((2, scans * stride, 2))
    for t in range(1, z.shape[1]):
        z[:, t] = np.exp(-dt / 8) * z[:, t - 1] + rng.normal(size=(2, 2))
    B, J = np.diag([3.0, 0.2]), np.array([[5.0], [-2.0]])
    hrf = DoubleGamma(learn=bool(learn), regions=2 if learn else None)
    model = BOLD.from_parameters(
        B, bias=[100.0, -3.0], noise=1e-9, tr_seconds=tr_seconds, J=J, hrf=hrf
    )
    clock = np.arange(0, z.shape[1], stride)
    drift = torch.from_numpy(np.linspace(-1, 1, scans)[:, None])
    x = model.features_along(
        torch.from_numpy(z), clock=torch.from_numpy(clock), nuisance=drift, dt=dt
    ).detach()
    sd = (x - drift @ torch.from_numpy(J).mT).std(1, keepdim=True)
    noisy = x + 0.5 * sd * torch.from_numpy(rng.normal(size=x.shape))
    mask = torch.from_numpy(rng.random(x.shape) > 0.1)
    m = Modality(
        torch.where(mask, noisy, 0.0),
        mask,
        torch.from_numpy(clock).expand(2, -1),
        drift.expand(2, -1, -1),
        dt,
    )
    signal = model.start_signal(m)
    assert signal.shape == x.shape and bool((signal[~mask] == 0).all())
    for b in range(2):
        for n in range(2):
            seen = mask[b, :, n].numpy()
            active = z[b, clock, n]
            got = np.corrcoef(signal[b, seen, n], active[seen])[0, 1]
            raw = noisy[b, :, n].numpy() - J[n] * drift[:, 0].numpy()
            delayed = [
                np.corrcoef(raw[lag:], active[: scans - lag])[0, 1]
                for lag in range(int(10 / tr_seconds) + 1)
            ]
            assert got > max(0.8, max(delayed) - 0.02, delayed[0] + 0.2)


def test_start_signal_of_steady_activity_has_no_edge():
    """Activity that began before the run does not appear as a burst at its first scan."""
    u = np.sin(np.arange(120) / 6) + 2.0
    h = DoubleGamma().kernel(2.0).numpy()
    x = np.convolve(u, h)[20:120]
    y = torch.from_numpy(np.stack([x, -x], axis=1))[None]
    m = Modality(y, torch.ones_like(y, dtype=torch.bool), dt=2.0)
    signal = BOLD(2, tr_seconds=2.0).start_signal(m)[0].numpy()
    assert np.abs(signal[:10]).max() < 1.2 * np.abs(signal[20:80]).max()
    assert np.corrcoef(signal[:40, 0], u[20:60])[0, 1] > 0.9
    np.testing.assert_allclose(signal[:, 0], -signal[:, 1], atol=1e-12)


def test_start_signal_of_nothing():
    model, m, _ = _problem(3.0, 3.0)
    nothing = replace(m, y=torch.zeros_like(m.y), mask=torch.zeros_like(m.mask))
    assert bool((model.start_signal(nothing) == 0).all())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.m_step(nothing, torch.zeros(3, 26, 2, dtype=torch.float64), None)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


# ---- being an object --------------------------------------------------------------------------


def test_known_parameters_and_their_errors():
    B = [[1.0, 0.0], [0.5, 2.0], [0.0, 1.0]]
    J = [[1.0], [0.0], [2.0]]
    model = BOLD.from_parameters(B, bias=[1.0, 2.0, 3.0], noise=0.5, tr_seconds=2.0, J=J)
    assert model.initialised and model.dim == 2 and model.nuisance == 1 and model.quadratic
    assert model.kinds == ("bold",) and not BOLD(3, tr_seconds=2.0).initialised
    np.testing.assert_array_equal(model.nuisance_weight.detach(), J)
    np.testing.assert_allclose(model.noise.detach(), 0.5)
    with pytest.raises(ShapeError, match="B is"):
        BOLD.from_parameters([1.0], noise=1.0, tr_seconds=2.0)
    with pytest.raises(ShapeError, match="J: wanted shape"):
        BOLD.from_parameters(B, noise=1.0, tr_seconds=2.0, J=[[1.0]])
    with pytest.raises(PlssmError, match="positive"):
        BOLD.from_parameters(B, noise=[1.0, 0.0, 1.0], tr_seconds=2.0)


def test_options_that_do_not_exist():
    for arguments, message in (
        ({"tr_seconds": 0.0}, "tr_seconds"),
        ({"tr_seconds": float("nan")}, "tr_seconds"),
        ({"learn_hrf": "all"}, "learn_hrf is 'all', choose"),
        ({"kernel": "fir"}, "kernel is 'fir', choose"),
        ({"hrf": DoubleGamma(), "learn_hrf": "shared"}, "leave learn_hrf out"),
        ({"hrf": DoubleGamma(regions=3)}, "3 regions"),
    ):
        with pytest.raises(PlssmError, match=message):
            BOLD(2, **{"tr_seconds": 2.0, **arguments})
    model, m, z = _problem(3.0, 3.0)
    for covariance in (torch.zeros(3, 26, 2, 2), torch.zeros(3, 26, 5, 2, 2)):
        with pytest.raises(ShapeError, match=r"\[B, T, 11, M, M\]"):
            model.m_step(m, z, covariance.double())


@pytest.mark.parametrize("learn", [False, "regions"])
def test_states_and_regressors_of_another_size(learn):
    model, m, z = _problem(3.0, 3.0, learn=learn)
    for wrong in (BOLD(3, tr_seconds=3.0, nuisance=1, learn_hrf=learn), copy.deepcopy(model)):
        with pytest.raises(ShapeError, match="latent states, got 3"):
            wrong.features_at(m, torch.zeros(3, 26, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="1 nuisance regressors, the data have 2"):
        model.features_at(replace(m, nuisance=m.nuisance.repeat(1, 1, 2)), z)


def test_a_given_response_is_not_shared_between_models():
    hrf = DoubleGamma(learn=True)
    one, two = (BOLD(2, tr_seconds=2.0, hrf=hrf) for _ in range(2))
    with torch.no_grad():
        one.hrf.raw_time_to_peak.add_(1.0)
    assert float(two.hrf.raw_time_to_peak.detach()) == 0.0
    assert BOLD(2, tr_seconds=2.0, learn_hrf="regions").hrf.raw_time_to_peak.shape == (2,)
