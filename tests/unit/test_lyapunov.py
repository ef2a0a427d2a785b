"""Lyapunov spectra against eigenvalues, trace identities and published values."""

import math

import numpy as np
import pytest
import torch

from plssm.analysis import lyapunov_spectrum
from plssm.dynamics import PLRNN, LatentDynamics, LinearDynamics, PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError, ShapeError


class Lozi(PiecewiseLinear):
    """x' = 1 - a |x| + y, y' = b x: a gate with its own bias form."""

    def __init__(self, a=1.7, b=0.5):
        super().__init__(2)
        self.a, self.b = a, b

    def region(self, z):
        return z[..., :1] > 0

    def affine(self, region):
        slope = torch.where(region[..., 0], -self.a, self.a).double()
        one = torch.ones_like(slope)
        rows = [torch.stack([slope, one], -1), torch.stack([self.b * one, 0 * one], -1)]
        return torch.stack(rows, -2), torch.stack([one, 0 * one], -1)


class Henon(LatentDynamics):
    """A smooth map through automatic differentiation."""

    def step(self, z, s=None):
        x, y = z[..., 0], z[..., 1]
        return torch.stack([1 - 1.4 * x**2 + y, 0.3 * x], -1)


class LorenzStep:
    """One Runge-Kutta step of Lorenz-63 with its jacobian by the chain rule, plain numpy."""

    def __init__(self, dt):
        self.dt = dt

    def field(self, z):
        x, y, w = z
        return np.array([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w])

    def slope(self, z):
        x, y, w = z
        return np.array([[-10, 10, 0], [28 - w, -1, -x], [y, x, -8 / 3]])

    def stages(self, z):
        eye, total, jacobian = np.eye(3), np.zeros(3), np.zeros((3, 3))
        k, dk = np.zeros(3), np.zeros((3, 3))
        for share, weight in ((0, 1), (0.5, 2), (0.5, 2), (1, 1)):
            at, dat = z + share * self.dt * k, eye + share * self.dt * dk
            k, dk = self.field(at), self.slope(at) @ dat
            total, jacobian = total + weight * k, jacobian + weight * dk
        return z + self.dt / 6 * total, eye + self.dt / 6 * jacobian

    def step(self, z):
        return self.stages(z)[0]

    def jacobian(self, z):
        return self.stages(z)[1]


def plrnn(dim=4, inputs=0, seed=0, gain=0.6):
    rng = np.random.default_rng(seed)
    weight = gain * rng.standard_normal((dim, dim))
    np.fill_diagonal(weight, 0)
    return PLRNN.from_parameters(
        A=rng.uniform(0.2, 0.8, dim),
        W=weight,
        h=rng.standard_normal(dim),
        C=rng.standard_normal((dim, inputs)) if inputs else None,
        process_noise=np.full(dim, 0.1),
        initial_mean=rng.standard_normal(dim),
    )


@pytest.mark.parametrize("largest", [0.9, 1.2])
def test_linear_map_is_log_modulus_of_the_eigenvalues(largest):
    rng = np.random.default_rng(1)
    basis, eigenvalues = rng.standard_normal((3, 3)), np.array([largest, -0.7, 0.3])
    matrix = basis @ np.diag(eigenvalues) @ np.linalg.inv(basis)
    dynamics = LinearDynamics.from_parameters(
        A=matrix, h=np.ones(3), process_noise=np.ones(3), initial_mean=np.ones(3)
    )
    want = np.log(np.abs(eigenvalues))
    got = lyapunov_spectrum(dynamics, steps=4000, dt=0.5)  # grows beyond 1e308 if followed
    np.testing.assert_allclose(got, want / 0.5, atol=1e-9)
    pair = (lambda z: matrix @ z, lambda z: matrix)
    got = lyapunov_spectrum(pair, steps=500, start=np.zeros(3), every=3)
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_a_rotation_is_neutral():
    c, s = math.cos(0.3), math.sin(0.3)
    dynamics = LinearDynamics.from_parameters(A=[[c, -s], [s, c]], process_noise=[1.0, 1.0])
    np.testing.assert_allclose(lyapunov_spectrum(dynamics, steps=1000), 0, atol=1e-12)


def test_one_state_and_one_step():
    dynamics = LinearDynamics.from_parameters(A=[[-0.5]], process_noise=[1.0])
    np.testing.assert_allclose(lyapunov_spectrum(dynamics, steps=1), [math.log(0.5)])


def test_lozi_map_compiled_and_plain():
    dynamics = Lozi()
    compiled = lyapunov_spectrum(dynamics, steps=200_000, start=[0.1, 0.1])
    # the jacobian has determinant -b everywhere; the first exponent is about 0.47
    assert compiled.sum() == pytest.approx(math.log(0.5), abs=1e-9)
    assert compiled[0] == pytest.approx(0.47, abs=0.01)
    pair = (
        lambda z: np.array([1 - 1.7 * abs(z[0]) + z[1], 0.5 * z[0]]),
        lambda z: np.array([[-1.7 if z[0] > 0 else 1.7, 1.0], [0.5, 0.0]]),
    )
    plain = lyapunov_spectrum(pair, steps=20_000, start=[0.1, 0.1])
    np.testing.assert_allclose(plain, compiled, atol=0.01)


def test_henon_map_by_automatic_differentiation():
    dynamics = Henon(2)
    got = lyapunov_spectrum(dynamics, steps=1500, transient=100)
    assert got.sum() == pytest.approx(math.log(0.3), abs=1e-9)
    np.testing.assert_allclose(got, [0.419, -1.623], atol=0.02)  # published


def test_lorenz_63_published_spectrum():
    dt = 0.025
    got = lyapunov_spectrum(LorenzStep(dt), steps=16_000, dt=dt, start=np.ones(3), every=2)
    assert got[0] == pytest.approx(0.9056, rel=0.03)
    assert got[1] == pytest.approx(0.0, abs=0.02)
    assert got[2] == pytest.approx(-14.57, rel=0.03)
    assert got.sum() == pytest.approx(-(10 + 1 + 8 / 3), abs=0.02)  # the trace of the field


@pytest.mark.slow
def test_lorenz_63_published_spectrum_with_a_fine_step():
    dt = 0.01
    got = lyapunov_spectrum(LorenzStep(dt), steps=60_000, dt=dt, start=np.ones(3), every=5)
    assert got[0] == pytest.approx(0.9056, rel=0.02)
    assert got[1] == pytest.approx(0.0, abs=0.005)
    assert got[2] == pytest.approx(-14.57, rel=0.02)


@pytest.mark.parametrize("every", [1, 5, 7])
def test_plrnn_compiled_equals_the_plain_loop(every):
    dynamics = plrnn()
    pair = (
        lambda z: dynamics.step(torch.from_numpy(z)).detach().numpy(),
        lambda z: dynamics.jacobian(torch.from_numpy(z)).detach().numpy(),
    )
    options = {"steps": 53, "transient": 50, "warmup": 20, "every": every}
    compiled = lyapunov_spectrum(dynamics, **options)
    plain = lyapunov_spectrum(pair, start=dynamics.initial.mean.detach(), **options)
    np.testing.assert_allclose(compiled, plain, atol=1e-8)
    assert (np.diff(compiled) <= 0).all()


def test_the_sum_is_the_mean_log_determinant():
    form = (dynamics := plrnn(seed=3)).relu_form()
    z, want = dynamics.initial.mean.detach().numpy(), 0.0
    for t in range(140):
        if t >= 100:
            want += np.linalg.slogdet(form.jacobian(form.region(z)))[1] / 40
        z = form.step(z)
    got = lyapunov_spectrum(dynamics, steps=40, transient=80, warmup=20)
    assert got.sum() == pytest.approx(want, abs=1e-12)


def test_dt_scales_and_every_start_reaches_the_same_attractor():
    dynamics = plrnn(seed=5, gain=0.3)
    one = lyapunov_spectrum(dynamics, steps=2000)
    np.testing.assert_allclose(lyapunov_spectrum(dynamics, steps=2000, dt=0.01), one / 0.01)
    other = lyapunov_spectrum(dynamics, steps=2000, start=torch.full((4,), 3.0))
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_inputs_drive_the_orbit():
    rng = np.random.default_rng(6)
    dynamics = plrnn(inputs=2)
    options = {"steps": 60, "transient": 30, "warmup": 10}
    s = rng.standard_normal((100, 2))
    c = dynamics.C.detach().numpy()
    pair = (
        lambda z, s: dynamics.step(torch.from_numpy(z), torch.from_numpy(s)).detach().numpy(),
        lambda z, s: dynamics.jacobian(torch.from_numpy(z)).detach().numpy(),
    )
    got = lyapunov_spectrum(dynamics, inputs=s, **options)
    start = dynamics.initial.mean.detach().numpy()
    plain = lyapunov_spectrum(pair, inputs=s, start=start, **options)
    np.testing.assert_allclose(got, plain, atol=1e-8)
    # by hand: row t is the input of the step arrived at
    z, tangent, logs = start, np.eye(4), np.zeros(4)
    for t in range(100):
        if t >= 30:
            tangent, growth = np.linalg.qr(pair[1](z, s[t]) @ tangent)
            logs += np.log(np.abs(np.diag(growth))) * (t >= 40)
        z = dynamics.step(torch.from_numpy(z)).detach().numpy() + c @ s[t]
    np.testing.assert_allclose(got, np.sort(logs / 60)[::-1], atol=1e-8)
    # [steps, K] is repeated backwards, [K] is constant
    longer = np.concatenate([s[40:][-40:], s[40:]])
    np.testing.assert_array_equal(
        lyapunov_spectrum(dynamics, inputs=s[40:], **options),
        lyapunov_spectrum(dynamics, inputs=longer, **options),
    )
    np.testing.assert_array_equal(
        lyapunov_spectrum(dynamics, inputs=s[0], **options),
        lyapunov_spectrum(dynamics, inputs=torch.tensor(s[:1]).repeat(100, 1), **options),
    )


def test_a_collapsed_direction_is_minus_infinity():
    matrix = np.array([[0.5, 0.0], [0.0, 0.0]])
    got = lyapunov_spectrum((lambda z: matrix @ z, lambda z: matrix), steps=10, start=np.ones(2))
    np.testing.assert_array_equal(got, [math.log(0.5), -math.inf])
    dynamics = LinearDynamics.from_parameters(A=matrix, process_noise=[1.0, 1.0])
    np.testing.assert_allclose(lyapunov_spectrum(dynamics, steps=10), got)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_diverging_orbit_is_refused(compiled):
    dynamics = PLRNN.from_parameters(
        A=[2.0, 2.0], W=[[0.0, 0.1], [0.1, 0.0]], h=[1.0, 1.0], process_noise=[1.0, 1.0]
    )
    pair = (lambda z: 2 * z, lambda z: 2 * np.eye(2))
    target, start = (dynamics, None) if compiled else (pair, np.ones(2))
    with pytest.raises(PlssmError, match=r"diverged at step \d+"):
        lyapunov_spectrum(target, steps=1000, start=start)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": np.zeros(3)}, ShapeError, "start"),
        ({"start": [np.nan] * 4}, PlssmError, "finite"),
        ({"inputs": np.zeros((7, 2))}, ShapeError, "inputs"),
        ({"inputs": np.zeros(3)}, ShapeError, "K = 2"),
        ({"inputs": np.full(2, np.inf)}, PlssmError, "finite"),
        ({"steps": 0}, PlssmError, "steps"),
        ({"dt": 0.0}, PlssmError, "dt"),
        ({"transient": -1}, PlssmError, "transient"),
        ({"every": 1.5}, PlssmError, "every"),
    ],
)
def test_clear_refusals(change, error, message):
    with pytest.raises(error, match=message):
        lyapunov_spectrum(plrnn(inputs=2), **({"steps": 10} | change))


def test_what_has_no_map_is_refused():
    with pytest.raises(CapabilityError, match="no step and jacobian"):
        lyapunov_spectrum(object(), steps=10, start=np.zeros(2))
    with pytest.raises(PlssmError, match="start"):
        lyapunov_spectrum(LorenzStep(0.01), steps=10)
