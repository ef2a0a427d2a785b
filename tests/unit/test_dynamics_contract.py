"""Every dynamics that plssm ships, and two written as a user would, keep the contract."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from plssm.dynamics import (
    PLRNN,
    LatentDynamics,
    LinearDynamics,
    ManifoldAttractor,
    PiecewiseLinear,
    ReluForm,
)
from plssm.testing import DynamicsContract


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dim, seed=0):
    root = normal(dim, dim, seed=seed)
    return root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64)


def known_plrnn(dim=3, inputs=2, **options):
    values = {
        "A": 0.3 + 0.6 * torch.rand(dim, generator=torch.Generator().manual_seed(3)).double(),
        "W": (0.4 * normal(dim, dim, seed=4)).fill_diagonal_(0.0),
        "h": 0.3 * normal(dim, seed=5),
        "C": normal(dim, inputs, seed=6),
        "process_noise": torch.linspace(0.1, 1.0, dim).double(),
        "initial_mean": normal(dim, seed=7),
    }
    return PLRNN.from_parameters(**{**values, **options})


class TestFreshLinear(DynamicsContract):
    def create(self):
        return LinearDynamics(3)


class TestLinear(DynamicsContract):
    def create(self):
        return LinearDynamics.from_parameters(
            A=0.4 * normal(3, 3), h=normal(3), C=normal(3, 2), process_noise=covariance(3),
            initial_mean=normal(3, seed=1), initial_noise=0.3, input_at_start=True,
        )  # fmt: skip


class TestFreshPLRNN(DynamicsContract):
    def create(self):
        return PLRNN(4, noise="isotropic")


class TestPLRNN(DynamicsContract):
    def create(self):
        return known_plrnn(initial_noise=covariance(3, seed=2))


class TestPLRNNWithInputAtStart(DynamicsContract):
    def create(self):
        return known_plrnn(input_at_start=True, process_noise=covariance(3), initial="tied")


class TestRegularizedPLRNN(DynamicsContract):
    def create(self):
        return known_plrnn(4, 1, regularizer=ManifoldAttractor(3.0, 5.0, units=(0, 3)))


class TestOneState(DynamicsContract):
    def create(self):
        return PLRNN.from_parameters(A=[0.5], W=[[0.0]], h=[1.0], process_noise=[0.2])


class Shallow(PiecewiseLinear):
    """z' = A z + W1 relu(W2 z + h2) + h1, as a user would write it: region and affine only."""

    def __init__(self, dim, hidden, inputs=0):
        super().__init__(dim, inputs)
        self.A = nn.Parameter(0.5 * normal(dim).abs())
        self.W1 = nn.Parameter(0.3 * normal(dim, hidden, seed=1))
        self.W2 = nn.Parameter(normal(hidden, dim, seed=2))
        self.h1 = nn.Parameter(normal(dim, seed=3))
        self.h2 = nn.Parameter(normal(hidden, seed=4))

    def region(self, z):
        return z @ self.W2.T + self.h2 > 0

    def affine(self, region):
        outer = self.W1 * region.to(self.A.dtype)[..., None, :]
        return torch.diag(self.A) + outer @ self.W2, outer @ self.h2 + self.h1


class TestShallow(DynamicsContract):
    def create(self):
        return Shallow(3, hidden=7, inputs=2)


class Oscillator(LatentDynamics):
    """A smooth map with `step` only, and options that go through keyword arguments."""

    def __init__(self, rate=0.3, **options):
        super().__init__(2, **options)
        self.rate = nn.Parameter(torch.tensor(float(rate), dtype=torch.float64))

    def step(self, z, s=None):
        x, v = z.unbind(-1)
        after = torch.stack([x + self.rate * v, v - self.rate * torch.sin(x)], dim=-1)
        return after + self.drive(s)


class TestOscillator(DynamicsContract):
    def create(self):
        return Oscillator(0.2, noise="full", inputs=1)


# ---- the contract notices mistakes --------------------------------------------------------------
class Broken(PLRNN):
    """A PLRNN with inputs and known values, to be broken below."""

    @classmethod
    def make(cls):
        dynamics = cls(3, 2)
        with torch.no_grad():
            for seed, name in enumerate(("A", "h", "C")):
                parameter = getattr(dynamics, name)
                parameter.copy_(normal(*parameter.shape, seed=seed))
            dynamics.W.copy_(normal(3, 3, seed=9).fill_diagonal_(0.0))
        return dynamics


class LateInput(Broken):
    def log_prob(self, z, inputs=None, length=None):
        late = inputs if inputs is None else torch.roll(inputs, 1, dims=-2)
        return super().log_prob(z, late, length)


class LoudPadding(Broken):
    def log_prob(self, z, inputs=None, length=None):
        return super().log_prob(z, inputs)


class WrongRegion(Broken):
    def region(self, z):
        return z > 0.5


class WrongForm(Broken):
    def relu_form(self):
        form = super().relu_form()
        arrays = form.linear, form.bias, form.outer, form.inner, form.offset + 0.1, form.inputs
        return ReluForm(*arrays)


class TransposedJacobian(LatentDynamics):
    def __init__(self, dim=3, inputs=0):
        super().__init__(dim, inputs)
        self.A = nn.Parameter(normal(dim, dim))

    def step(self, z, s=None):
        return torch.tanh(z @ self.A.T) + self.drive(s)

    def jacobian(self, z, s=None):
        return super().jacobian(z, s).mT


class DoubledNoise(Broken):
    def rollout(self, start, steps, **options):
        path = super().rollout(start, steps, **options)
        return path + self.noise.sample(path.shape[:-1], generator=options.get("generator"))


class Forgetful(Broken):
    instances = itertools.count()

    def __init__(self, dim, inputs=0):
        super().__init__(dim, inputs)
        self.gain = 1.0 + next(self.instances) % 2  # not in the configuration

    def step(self, z, s=None):
        return self.gain * super().step(z, s)


class Thawed(Broken):
    def assign_coefficients(self, theta):
        with torch.no_grad():
            self.h.copy_(theta[:, 6])


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (LateInput, "test_log_prob_is_the_sum_over_steps"),
        (LateInput, "test_inputs_act_on_the_step_arrived_at"),
        (LoudPadding, "test_log_prob_ignores_what_lies_beyond_a_trial"),
        (WrongRegion, "test_region_and_affine_give_step"),
        (WrongRegion, "test_jacobian_is_the_derivative_of_step"),
        (WrongForm, "test_relu_form_gives_step"),
        (WrongForm, "test_relu_form_found_by_probing"),
        (TransposedJacobian, "test_jacobian_is_the_derivative_of_step"),
        (DoubledNoise, "test_rollout_draws_the_process_noise"),
        (Forgetful, "test_saved_and_rebuilt"),
        (Thawed, "test_frozen_parameters_stay"),
    ],
)
def test_contract_notices(cls, test):
    class Contract(DynamicsContract):
        def create(self):
            return cls.make() if issubclass(cls, Broken) else cls()

    sound = type("Sound", (DynamicsContract,), {"create": lambda self: Broken.make()})()
    getattr(sound, test)()
    with pytest.raises(AssertionError):
        getattr(Contract(), test)()
