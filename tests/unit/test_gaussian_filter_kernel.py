"""The compiled filter against textbook formulas, another library and the joint Gaussian."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from plssm.kernels.gaussian_filter import gaussian_filter, gaussian_filter_plain

FIELDS = ("predicted_mean", "predicted_covariance", "filtered_mean", "filtered_covariance",
          "log_increment", "status")  # fmt: skip


class LinearGaussian:
    """A random linear-Gaussian model with missing entries, inputs and its canonical terms."""

    def __init__(self, seed, size=3, channels=4, steps=12, trials=3, missing=0.3):
        rng = np.random.default_rng(seed)
        self.A = rng.normal(size=(size, size)) * 0.5
        self.h, self.C = rng.normal(size=size), rng.normal(size=(size, 2))
        self.Q, self.S0 = self.covariance(rng, size), self.covariance(rng, size)
        self.B, self.d = rng.normal(size=(channels, size)), rng.normal(size=channels)
        self.G = rng.uniform(0.2, 1.0, channels)
        self.mu = rng.normal(size=(trials, size))
        self.s = rng.normal(size=(trials, steps, 2))
        self.y = rng.normal(size=(trials, steps, channels)) * 2
        self.seen = rng.uniform(size=self.y.shape) > missing
        self.seen[:, 1] = False
        weight = self.seen / self.G
        residual = np.where(self.seen, self.y - self.d, 0)
        self.q = (weight * residual) @ self.B
        self.R = np.einsum("btn,ni,nj->btij", weight, self.B, self.B)
        self.constant = -0.5 * (
            np.where(self.seen, np.log(2 * np.pi * self.G), 0) + weight * residual**2
        ).sum(-1)

    @staticmethod
    def covariance(rng, size):
        a = rng.normal(size=(size, size))
        return a @ a.T / size + 0.1 * np.eye(size)

    def form(self):
        none = np.zeros((len(self.A), 0))
        return self.A, self.h, none, none.T, np.zeros(0), self.C

    def filter(self, method=gaussian_filter, **options):
        return method(*self.form(), self.Q, self.mu, self.S0, self.R, self.q, drive=self.s,
                      **options)  # fmt: skip

    def evidence(self, b, steps):
        """Log density of a trial's observed entries under the dense joint Gaussian."""
        size = len(self.A)
        mean, dense = np.zeros((steps, size)), np.zeros((steps * size, steps * size))
        mean[0], dense[:size, :size] = self.mu[b], self.S0
        for t in range(1, steps):
            here, before = slice(t * size, (t + 1) * size), slice((t - 1) * size, t * size)
            mean[t] = self.A @ mean[t - 1] + self.h + self.C @ self.s[b, t]
            dense[here] = self.A @ dense[before]
            dense[:, here] = dense[:, before] @ self.A.T
            dense[here, here] = self.A @ dense[before, before] @ self.A.T + self.Q
        big, seen = np.kron(np.eye(steps), self.B), self.seen[b, :steps].ravel()
        covariance = big @ dense @ big.T + np.diag(np.tile(self.G, steps))
        centre = big @ mean.ravel() + np.tile(self.d, steps)
        if not seen.any():
            return 0.0
        return multivariate_normal.logpdf(
            self.y[b, :steps].ravel()[seen], centre[seen], covariance[np.ix_(seen, seen)]
        )


def textbook(model, b):
    """Kalman filter in covariance form with the innovation's gain, observed rows only."""
    mean, cov, out = model.mu[b], model.S0, []
    for t in range(model.y.shape[1]):
        if t:
            mean = model.A @ mean + model.h + model.C @ model.s[b, t]
            cov = model.A @ cov @ model.A.T + model.Q
        predicted = mean, cov
        rows = model.seen[b, t]
        B = model.B[rows]
        S = B @ cov @ B.T + np.diag(model.G[rows])
        gain = cov @ B.T @ np.linalg.inv(S)
        mean = mean + gain @ (model.y[b, t, rows] - B @ mean - model.d[rows])
        cov = cov - gain @ S @ gain.T
        out.append((*predicted, mean, cov))
    return [np.stack(x) for x in zip(*out, strict=True)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_case_equals_the_textbook(seed):
    model = LinearGaussian(seed)
    result = model.filter()
    assert not result.status.any()
    for b in range(3):
        for name, wanted in zip(FIELDS, textbook(model, b), strict=False):
            np.testing.assert_allclose(getattr(result, name)[b], wanted, atol=1e-10)


def test_linear_case_equals_pykalman():
    pykalman = pytest.importorskip("pykalman")
    model = LinearGaussian(3, missing=0.0)  # the second step is missing as a whole
    result = model.filter()
    for b in range(3):
        y = np.ma.masked_array(model.y[b], mask=~model.seen[b])
        kalman = pykalman.KalmanFilter(
            model.A, model.B, model.Q, np.diag(model.G), model.h + model.s[b, 1:] @ model.C.T,
            model.d, model.mu[b], model.S0,
        )  # fmt: skip
        mean, covariance = kalman.filter(y)
        np.testing.assert_allclose(result.filtered_mean[b], mean, atol=1e-9)
        np.testing.assert_allclose(result.filtered_covariance[b], covariance, atol=1e-9)
        total = (result.log_increment[b] + model.constant[b]).sum()
        assert total == pytest.approx(kalman.loglikelihood(y), abs=1e-8)


@pytest.mark.parametrize("size, channels", [(1, 1), (3, 4), (4, 2)])
def test_increments_add_up_to_the_exact_evidence(size, channels):
    model = LinearGaussian(4, size=size, channels=channels, steps=6)
    length = np.array([6, 1, 3])
    result = model.filter(length=length)
    for b in range(3):
        total = (result.log_increment + model.constant)[b, : length[b]].sum()
        assert total == pytest.approx(model.evidence(b, length[b]), abs=1e-9)


@pytest.mark.parametrize("gates", [None, 5])
def test_piecewise_linear_case_equals_the_plain_twin(gates):
    rng = np.random.default_rng(5)
    model = LinearGaussian(5)
    inner = np.eye(3) if gates is None else rng.normal(size=(gates, 3))
    offset = np.zeros(3) if gates is None else rng.normal(size=gates)
    outer = rng.normal(size=(3, offset.size))
    arguments = (
        model.A, model.h, outer, inner, offset, model.C, model.Q, model.mu, model.S0, model.R,
        model.q, np.array([12, 1, 7]),
    )  # fmt: skip
    got = gaussian_filter(*arguments, drive=model.s)
    wanted = gaussian_filter_plain(*arguments, drive=model.s)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=1e-9)
    assert not got.filtered_mean[1, 1:].any() and not got.predicted_covariance[2, 7:].any()


def test_one_piecewise_linear_step_by_hand():
    # z' = .5 z + 2 relu(z), Q = .1, unit information with score 1 at both steps
    form = (np.full((1, 1), 0.5), np.zeros(1), np.full((1, 1), 2.0), np.ones((1, 1)), np.zeros(1),
            np.zeros((1, 0)))  # fmt: skip
    for start, slope in ((2.0, 2.5), (-4.0, 0.5)):
        result = gaussian_filter(
            *form, np.full((1, 1), 0.1), np.full((1, 1), start), np.eye(1), np.ones((1, 1, 1, 1)),
            np.ones((1, 2, 1)),
        )  # fmt: skip
        first = start + 0.5 * (1 - start)
        assert result.filtered_mean[0, 0, 0] == pytest.approx(first)
        assert result.filtered_covariance[0, 0, 0, 0] == pytest.approx(0.5)
        assert result.predicted_mean[0, 1, 0] == pytest.approx(slope * first)
        assert result.predicted_covariance[0, 1, 0, 0] == pytest.approx(slope**2 * 0.5 + 0.1)


def test_shared_information_and_missing_steps():
    model = LinearGaussian(6, missing=0.0)
    model.q, model.R = model.q + 0.1, model.R[:1, :1]
    shared = model.filter()
    model.R = np.tile(model.R, (3, 12, 1, 1))
    repeated = model.filter()
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(shared, name), getattr(repeated, name))
    model.q[:, 4], model.R[:, 4] = 0, 0
    result = model.filter()
    np.testing.assert_array_equal(result.filtered_mean[:, 4], result.predicted_mean[:, 4])
    np.testing.assert_array_equal(
        result.filtered_covariance[:, 4], result.predicted_covariance[:, 4]
    )
    assert not result.log_increment[:, 4].any()


def test_covariances_stay_symmetric_and_positive_in_hard_cases():
    model = LinearGaussian(7, steps=200, missing=0.0)
    model.Q, model.S0, model.G = model.Q * 1e-10, model.S0 * 1e8, model.G
    model.R = model.R * 1e10
    result = model.filter()
    assert not result.status.any()
    for covariance in (result.predicted_covariance, result.filtered_covariance):
        np.testing.assert_array_equal(covariance, covariance.transpose(0, 1, 3, 2))
        assert (np.linalg.eigvalsh(covariance) > -1e-18 * 1e8).all()


def test_states_without_noise_are_allowed():
    model = LinearGaussian(8)
    model.Q = np.diag([0.5, 0.0, 0.0])
    model.S0 = np.zeros((3, 3))
    result = model.filter()
    for b in range(3):
        for name, wanted in zip(FIELDS, textbook(model, b), strict=False):
            np.testing.assert_allclose(getattr(result, name)[b], wanted, atol=1e-10)


def test_an_impossible_update_is_left_out_and_reported():
    model = LinearGaussian(9)
    model.R[1, 3] = -1e3 * np.eye(3)
    result = model.filter()
    assert result.status.tolist() == [0, 4, 0]
    np.testing.assert_array_equal(result.filtered_mean[1, 3], result.predicted_mean[1, 3])
    assert np.isfinite(result.filtered_mean).all()


def test_wrong_shapes_are_refused():
    model = LinearGaussian(10)
    model.mu = model.mu[:2]
    with pytest.raises(ValueError, match="initial_mean"):
        model.filter()
