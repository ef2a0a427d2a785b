"""The extension promise: a stranger's observation model is only its distribution."""

from __future__ import annotations

import inspect

import numpy as np
import scipy.stats
import torch
import torch.distributions as D
from torch import nn

from plssm.observations import ObservationModel
from plssm.testing import ObservationContract


class StudentT(ObservationModel):
    """Heavy-tailed continuous channels."""

    def __init__(self, channels, df=4.0):
        super().__init__(channels)
        self.df = df
        self.log_scale = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def distribution(self, features):
        return D.StudentT(self.df, features, self.log_scale.exp())


class TestStudentT(ObservationContract):
    def create(self):
        return StudentT(5, df=6.0)

    def reference(self, features, y):
        scale = self.model.log_scale.detach().exp().numpy()
        return scipy.stats.t(6.0, features, scale).logpdf(y)

    def simulate(self, features, rng):
        return features + self.model.log_scale.detach().exp().numpy() * rng.standard_t(
            6.0, features.shape
        )


def test_it_takes_at_most_fifteen_lines():
    assert len([line for line in inspect.getsource(StudentT).splitlines() if line.strip()]) <= 15


def _outliers():
    model = StudentT(2, df=3.0).bind(2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    y = torch.tensor([[[0.1, 40.0], [-0.2, -0.4]]], dtype=torch.float64)
    case = TestStudentT()
    case.model = model
    m = case._modality(model, torch.zeros(3, 2, 2, dtype=torch.float64))
    mask = torch.ones_like(y, dtype=torch.bool)
    return model, type(m)(y, mask), torch.zeros(1, 2, 2, dtype=torch.float64)


def test_curvature_of_an_outlier_is_exact_and_the_step_curvature_is_safe():
    model, m, z = _outliers()
    scale, df = 1.0, 3.0
    r2 = np.asarray(m.y[0]) ** 2
    # second derivative of (df + 1) / 2 * log(1 + r^2 / (df s^2)) in r
    curvature = (df + 1) * (df * scale**2 - r2) / (df * scale**2 + r2) ** 2
    exact = model.local(m, z).curvature[0]
    safe = model.local(m, z, positive=True).curvature[0]
    for t in range(2):
        np.testing.assert_allclose(exact[t].numpy(), np.diag(curvature[t]), atol=1e-12)
        np.testing.assert_allclose(
            safe[t].numpy(), np.diag(np.maximum(curvature[t], 0.0)), atol=1e-12
        )
    assert curvature.min() < 0


def test_m_step_is_less_moved_by_outliers_than_least_squares():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 300, 2, generator=generator, dtype=torch.float64)
    weight = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    y = z @ weight.mT + 0.1 * torch.randn(1, 300, 1, generator=generator, dtype=torch.float64)
    y[0, ::25] += 30.0
    case, _, _ = _outliers()
    m = type(_outliers()[1])(y, torch.ones_like(y, dtype=torch.bool))
    model = StudentT(1).bind(2)
    model.init_from(m, z)
    assert torch.allclose(model.weight, weight, atol=0.05)
    assert abs(float(model.bias.detach())) < 0.05
    np.testing.assert_allclose(float(model.log_scale.detach().exp()), 0.1, rtol=0.35)
    slope, intercept = np.linalg.lstsq(
        np.column_stack([z[0].numpy(), np.ones(300)]), y[0].numpy(), rcond=None
    )[0][[0, 2], 0]
    assert abs(intercept) > 1.0 or abs(slope - 1.0) > 0.2
