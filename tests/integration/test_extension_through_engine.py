"""A stranger's observation model (Student-t: only its distribution) goes through the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.stats import t as student
from torch import nn

import plssm as ps
from plssm.inference import LaplaceEM
from plssm.inference.laplace import laplace_posterior
from plssm.testing import EngineContract


class StudentT(ps.observations.ObservationModel):
    """Heavy-tailed continuous channels."""

    def __init__(self, channels, df=4.0):
        super().__init__(channels)
        self.df = df
        self.log_scale = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def distribution(self, features):
        return D.StudentT(self.df, features, self.log_scale.exp())


class TestStudentTThroughTheEngine(EngineContract):
    """Masks, ragged trials, own clocks, freezing, files: everything the engine promises."""

    tolerance = 1e-4  # an inner Newton ends at a relative gain, not at rounding error

    def create(self):
        return LaplaceEM(iterations=3, start="data")

    def model(self):
        return ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), {"x": StudentT(3, df=5.0)})


def known(weight, df, scale, A=0.8, process=0.5):
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[A]], h=[0.1], process_noise=[process], initial_mean=[0.3], initial_noise=[1.0]
    )
    observation = StudentT(len(weight), df).bind(1)
    with torch.no_grad():
        observation.weight.copy_(torch.as_tensor(weight)[:, None])
        observation.log_scale.fill_(float(np.log(scale)))
    observation.initialised = True
    return ps.StateSpaceModel(dynamics, {"x": observation})


def exact_evidence(weight, df, scale, y, A=0.8, process=0.5, points=1201, reach=14.0):
    """Forward recursion on a fine grid of the one latent state."""
    z = np.linspace(-reach, reach, points)
    h = z[1] - z[0]

    def normal(x, mean, variance):
        return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)

    def likelihood(row):
        seen = np.isfinite(row)
        return np.exp(
            sum(student.logpdf(v, df, w * z, scale) for v, w in zip(row[seen], weight[seen]))
        )

    kernel = normal(z[:, None], A * z[None] + 0.1, process) * h
    forward = normal(z, 0.3, 1.0) * likelihood(y[0])
    for row in y[1:]:
        forward = (kernel @ forward) * likelihood(row)
    return np.log(forward.sum() * h)


@pytest.mark.parametrize(("df", "limit"), [(1e4, 2e-4), (30.0, 0.06), (3.0, 0.3)])
def test_log_evidence_against_exact_integration(df, limit):
    """Laplace is good where the tails are light and honest about being approximate."""
    weight = np.array([1.0, -0.5])
    model = known(weight, df, 0.6)
    rng = np.random.default_rng(1)
    errors, causal = [], []
    for seed in range(4):
        y = model.simulate(6, seed=seed).values("x")[0]
        y[rng.random(y.shape) < 0.2] = np.nan
        data = ps.Dataset.from_arrays({"x": y}, check_channels=False)
        exact = exact_evidence(weight, df, 0.6, y)
        posterior = ps.smooth(model, data)
        assert posterior.evidence_kind.startswith("laplace")
        assert posterior.status == ("stationary",)
        errors.append(abs(float(posterior.log_evidence[0]) - exact))
        filtered = ps.smooth(model, data, causal=True)
        assert filtered.evidence_kind == "ekf"
        causal.append(abs(float(filtered.log_evidence[0]) - exact))
    assert np.median(errors) < limit, errors
    assert np.median(causal) < 2 * limit, causal


def test_log_evidence_against_importance_sampling():
    """Draws from the Laplace posterior of whole paths, reweighted, in three dimensions."""
    rng = np.random.default_rng(3)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.7, 0.5], [[0.0, 0.3], [-0.4, 0.0]], h=[0.8, 0.7], process_noise=[0.05, 0.05],
        initial_mean=[1.0, 1.0], initial_noise=[0.1, 0.1],
    )  # fmt: skip
    observation = StudentT(3, df=15.0).bind(2)
    with torch.no_grad():
        observation.weight.copy_(torch.from_numpy(rng.normal(size=(3, 2))))
        observation.log_scale.fill_(-1.0)
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    data = model.simulate(3, trials=2, seed=2)
    batch = data.batch()
    posterior = ps.smooth(model, data)
    draws = posterior.sample(40_000, seed=5)
    with torch.no_grad():
        joint = model.log_joint(batch, draws)
    e = draws - posterior.mean
    for b in range(2):
        flat = e[:, b].flatten(1)
        precision = _precision(posterior, b)
        quadratic = torch.einsum("si,ij,sj->s", flat, precision, flat)
        log_q = 0.5 * (torch.logdet(precision) - quadratic - flat.shape[1] * np.log(2 * np.pi))
        weights = joint[:, b] - log_q
        estimate = torch.logsumexp(weights, 0) - np.log(len(weights))
        spread = float((weights - estimate).exp().std()) / len(weights) ** 0.5
        assert spread < 0.02
        np.testing.assert_allclose(float(posterior.log_evidence[b]), float(estimate), atol=0.15)


def _precision(posterior, b):
    """Inverse of the covariance of one path, found column by column."""
    steps, dim = posterior.mean.shape[1:]
    trials = len(posterior.length)
    columns = []
    for i in range(steps * dim):
        unit = np.zeros((trials, steps * dim))
        unit[b, i] = 1.0
        solved = posterior._factor.solve(unit.reshape(trials, steps, dim))
        columns.append(solved[b].ravel())
    return torch.from_numpy(np.linalg.inv(np.array(columns)))


def test_an_outlier_makes_the_curvature_indefinite_and_the_posterior_says_so():
    """One channel far off: the exact Hessian is not positive definite there."""
    model = known([1.0], 1.5, 0.2, process=5.0)
    model.dynamics.initial.noise.variance = [25.0]
    calm = [0.1, -0.2, 0.3]
    data = ps.Dataset.from_arrays(
        {"x": [np.array(calm)[:, None], np.array([0.1, 3.4, 0.3])[:, None]]}
    )
    together = laplace_posterior(model, data.batch())
    kinds = []
    for b in range(2):
        alone = laplace_posterior(model, data.batch([b]))
        kinds.append(alone.posterior.evidence_kind)
        np.testing.assert_allclose(
            float(alone.posterior.log_evidence[0]),
            float(together.posterior.log_evidence[b]),
            atol=1e-6,
        )
        spread = together.posterior.covariance()[b].diagonal(dim1=-2, dim2=-1)
        assert (spread > 0).all()
    assert kinds[0] == "laplace"
    assert together.posterior.evidence_kind == max(kinds, key=len)


def test_the_fit_recovers_what_least_squares_cannot():
    """Gross outliers: the heavy-tailed model explains held-out data far better."""
    rng = np.random.default_rng(0)
    truth = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters(
            [[0.95, 0.2], [-0.2, 0.95]], process_noise=[0.02, 0.02]
        ),
        {"x": ps.observations.Gaussian.from_parameters(rng.normal(size=(3, 2)), noise=[0.05] * 3)},
    )
    values = truth.simulate(60, trials=3, seed=1).values("x")
    hit = rng.random(values.shape) < 0.05
    values[hit] += rng.normal(size=hit.sum()) * 20
    data = ps.Dataset.from_arrays({"x": list(values)})
    evidence = {}
    for name, observation in (("t", StudentT(3, 3.0)), ("normal", ps.observations.Gaussian(3))):
        model = ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), {"x": observation})
        fit = LaplaceEM(iterations=8).fit(model, data)
        evidence[name] = float(fit.posterior(data).log_evidence.sum())
    assert evidence["t"] > evidence["normal"] + 50
