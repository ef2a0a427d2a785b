"""The contract of latent dynamics as a pytest test case."""

from __future__ import annotations

import copy
import inspect
import json
from abc import ABC, abstractmethod

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from plssm.dynamics import LatentDynamics, Noise, PiecewiseLinear, ReluForm
from plssm.errors import CapabilityError, ShapeError

__all__ = ["DynamicsContract"]

_TRIALS, _STEPS = 3, 6


class DynamicsContract(ABC):
    """Tests that a dynamics class keeps its promises.

    Subclass it in a test file, with a name that starts with ``Test``, and write `create`. Every
    inherited test then runs on what `create` returns; tests that do not apply are skipped and say
    why. `inputs` may be overridden where random inputs make no sense.

    Example:
        A test file::

            class TestMyDynamics(DynamicsContract):
                def create(self):
                    return MyDynamics(dim=3, inputs=2)
    """

    tolerance = 1e-10

    @abstractmethod
    def create(self) -> LatentDynamics:
        """Returns the dynamics under test, the same in every call."""

    def inputs(self, dynamics: LatentDynamics, trials: int, steps: int) -> Tensor | None:
        """Returns inputs [trials, steps, K], or None for dynamics without inputs."""
        if not dynamics.n_inputs:
            return None
        return _normal(trials, steps, dynamics.n_inputs, seed=7)

    # ---- the map ------------------------------------------------------------------------------
    def test_parameters_are_float64(self) -> None:
        """Parameters at rest are float64 and finite."""
        for name, parameter in self.create().named_parameters():
            assert parameter.dtype == torch.float64, name
            assert torch.isfinite(parameter).all(), name

    def test_step_takes_any_leading_axes(self) -> None:
        """A batch of states is stepped as each state alone, with and without inputs."""
        dynamics = self.create()
        z = _normal(2, _TRIALS, _STEPS, dynamics.dim)
        for s in (None, self.inputs(dynamics, _TRIALS, _STEPS)):
            together = dynamics.step(z, s)
            assert together.shape == z.shape
            for index in np.ndindex(2, _TRIALS, _STEPS):
                alone = dynamics.step(z[index], None if s is None else s[index[1:]])
                self.close(together[index], alone)

    def test_jacobian_is_the_derivative_of_step(self) -> None:
        """The Jacobian equals automatic differentiation, state by state."""
        dynamics = self.create()
        z = _normal(_TRIALS, _STEPS, dynamics.dim)
        s = self.inputs(dynamics, _TRIALS, _STEPS)
        jacobian = dynamics.jacobian(z, s)
        assert jacobian.shape == (*z.shape, dynamics.dim)
        for index in np.ndindex(_TRIALS, _STEPS):

            def step(point: Tensor, index: tuple[int, ...] = index) -> Tensor:
                return dynamics.step(point, None if s is None else s[index])

            self.close(jacobian[index], torch.autograd.functional.jacobian(step, z[index]))

    def test_region_and_affine_give_step(self) -> None:
        """J_r z + b_r + C s is the step, and J_r its Jacobian."""
        dynamics = self.piecewise()
        z = _normal(_TRIALS, _STEPS, dynamics.dim)
        s = self.inputs(dynamics, _TRIALS, _STEPS)
        region = dynamics.region(z)
        assert region.dtype == torch.bool
        assert region.shape[:-1] == z.shape[:-1]
        jacobian, bias = dynamics.affine(region)
        drive = 0.0 if s is None else s @ dynamics.C.T
        by_hand = torch.einsum("...ij,...j->...i", jacobian, z) + bias + drive
        self.close(by_hand, dynamics.step(z, s))
        self.close(jacobian, dynamics.jacobian(z, s))

    def test_relu_form_gives_step(self) -> None:
        """The ReLU form has the same steps, Jacobians and regional biases."""
        dynamics = self.piecewise()
        form = self.form(dynamics)
        z = _normal(64, dynamics.dim)
        s = self.inputs(dynamics, 64, 1)
        s = None if s is None else s[:, 0]
        after = form.step(_array(z), None if s is None else _array(s))
        self.close(torch.from_numpy(after), dynamics.step(z, s))
        jacobian, bias = dynamics.affine(dynamics.region(z))
        region = form.region(_array(z))
        self.close(torch.from_numpy(form.jacobian(region)), jacobian)
        self.close(torch.from_numpy(form.regional_bias(region)), bias)

    def test_relu_form_found_by_probing(self) -> None:
        """A hand-written ReLU form is the one that region and affine imply."""
        dynamics = self.piecewise()
        if type(dynamics).relu_form is PiecewiseLinear.relu_form:
            pytest.skip("relu_form is not overridden")
        given, found = dynamics.relu_form(), PiecewiseLinear.relu_form(dynamics)
        for name in ("linear", "bias", "inputs"):
            np.testing.assert_allclose(getattr(found, name), getattr(given, name), atol=1e-9)
        for one, other in zip(_gate_matrices(found), _gate_matrices(given), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)

    # ---- densities ----------------------------------------------------------------------------
    def test_log_prob_is_the_sum_over_steps(self) -> None:
        """The density of a path equals a plain loop over torch.distributions."""
        dynamics = self.create()
        z = _normal(2, _TRIALS, _STEPS, dynamics.dim)
        s = self.inputs(dynamics, _TRIALS, _STEPS)
        together = dynamics.log_prob(z, s)
        assert together.shape == (2, _TRIALS)
        for sample, trial in np.ndindex(2, _TRIALS):
            alone = _loop_log_prob(dynamics, z[sample, trial], None if s is None else s[trial])
            self.close(together[sample, trial], alone)

    def test_log_prob_of_one_step(self) -> None:
        """A path of one step has only the density of the first state."""
        dynamics = self.create()
        z, s = _normal(_TRIALS, 1, dynamics.dim), self.inputs(dynamics, _TRIALS, 1)
        together = dynamics.log_prob(z, s)
        assert together.shape == (_TRIALS,)
        for trial in range(_TRIALS):
            alone = _loop_log_prob(dynamics, z[trial], None if s is None else s[trial])
            self.close(together[trial], alone)

    def test_log_prob_ignores_what_lies_beyond_a_trial(self) -> None:
        """Ragged trials: padding, even NaN, changes neither value nor gradient."""
        dynamics = self.create()
        length = torch.tensor([_STEPS, 3, 1])
        z, s = _normal(_TRIALS, _STEPS, dynamics.dim), self.inputs(dynamics, _TRIALS, _STEPS)
        alone = [
            dynamics.log_prob(z[i, :n], None if s is None else s[i, :n])
            for i, n in enumerate(length.tolist())
        ]
        beyond = torch.arange(_STEPS) >= length[:, None]
        z = z.masked_fill(beyond[..., None], torch.nan).requires_grad_()
        s = None if s is None else s.masked_fill(beyond[..., None], torch.nan)
        together = dynamics.log_prob(z, s, length)
        self.close(together, torch.stack(alone))
        together.sum().backward()
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()
        assert (z.grad[beyond] == 0).all()
        for name, parameter in dynamics.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name

    def test_inputs_act_on_the_step_arrived_at(self) -> None:
        """s_t acts on z_t; s_1 only with input_at_start, and then through the initial mean."""
        dynamics = self.create()
        if not dynamics.n_inputs:
            with pytest.raises(ShapeError):
                dynamics.log_prob(_normal(2, dynamics.dim), _normal(2, 1))
            return
        with torch.no_grad():
            dynamics.C.copy_(_normal(*dynamics.C.shape, seed=11))
        z = _normal(3, dynamics.dim)
        s = _normal(3, dynamics.n_inputs, seed=7)
        for t in range(3):
            moved = s.clone()
            moved[t] += 1.0
            change = dynamics.log_prob(z, moved) - dynamics.log_prob(z, s)
            assert (change.abs() > 1e-9) == (t > 0 or dynamics.input_at_start)
        path = dynamics.sample(3, inputs=s, noise=False)[0]
        self.close(path[1], dynamics.step(path[0], s[1]))
        self.close(path[2], dynamics.step(path[1], s[2]))
        first = dynamics.initial.mean
        self.close(path[0], first + s[0] @ dynamics.C.T if dynamics.input_at_start else first)

    # ---- paths --------------------------------------------------------------------------------
    @pytest.mark.parametrize("gradient", [True, False])
    def test_rollout_without_noise_iterates_step(self, gradient: bool) -> None:
        """The noise-free rollout is the iterated step, with and without gradients."""
        dynamics = self.create()
        start = _normal(2, _TRIALS, dynamics.dim)
        s = self.inputs(dynamics, _TRIALS, _STEPS)
        with torch.set_grad_enabled(gradient):
            path = dynamics.rollout(start, _STEPS, inputs=s, noise=False)
            assert path.shape == (2, _TRIALS, _STEPS, dynamics.dim)
            z = start
            for t in range(_STEPS):
                z = dynamics.step(z, None if s is None else s[:, t])
                self.close(path[..., t, :], z)
            assert dynamics.rollout(start[0, 0], 0, noise=False).shape == (0, dynamics.dim)

    def test_rollout_draws_the_process_noise(self) -> None:
        """What a rollout adds to each step has mean zero and the noise's covariance."""
        dynamics = self.create()
        with torch.no_grad():
            start = _normal(4000, dynamics.dim)
            path = dynamics.rollout(start, 3, generator=torch.Generator().manual_seed(1))
            before = torch.cat([start[:, None], path[:, :-1]], dim=1)
            noise = (path - dynamics.step(before)).reshape(-1, dynamics.dim)
            self.has_moments(noise, dynamics.noise.covariance)

    def test_sample_starts_from_the_initial_distribution(self) -> None:
        """The first states have the initial mean and covariance; seeds reproduce paths."""
        dynamics = self.create()
        with torch.no_grad():
            first = dynamics.sample(1, trials=10_000, generator=torch.Generator().manual_seed(2))
            assert first.shape == (10_000, 1, dynamics.dim)
            self.has_moments(
                first[:, 0] - dynamics.initial.mean, dynamics.initial.noise.covariance
            )
            one, other = (
                dynamics.sample(4, trials=2, generator=torch.Generator().manual_seed(3))
                for _ in range(2)
            )
            assert torch.equal(one, other)

    # ---- parameters ---------------------------------------------------------------------------
    def test_saved_and_rebuilt(self) -> None:
        """The configuration, through JSON, and the state dict make the same dynamics again."""
        dynamics = self.create()
        config = json.loads(json.dumps(dynamics.config()))
        other = type(dynamics).from_config(config)
        other.load_state_dict(dynamics.state_dict())
        self.same(dynamics, other)
        assert other.config() == dynamics.config()

    def test_copies_are_independent(self) -> None:
        """A deep copy is equal and changing it leaves the original alone."""
        dynamics = self.create()
        other = copy.deepcopy(dynamics)
        self.same(dynamics, other)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        self.same(dynamics, self.create())

    def test_float32_copy(self) -> None:
        """A float32 copy agrees to float32 accuracy and stays in float32."""
        dynamics = self.create()
        single = copy.deepcopy(dynamics).float()
        z, s = _normal(_TRIALS, _STEPS, dynamics.dim), self.inputs(dynamics, _TRIALS, _STEPS)
        z32, s32 = z.float(), None if s is None else s.float()
        pairs = [
            (single.step(z32, s32), dynamics.step(z, s)),
            (single.jacobian(z32, s32), dynamics.jacobian(z, s)),
            (single.log_prob(z32, s32), dynamics.log_prob(z, s)),
            (single.penalty(), dynamics.penalty()),
        ]
        with torch.no_grad():
            path = dynamics.rollout(z[:, 0], _STEPS, inputs=s, noise=False)
            path32 = single.rollout(z32[:, 0], _STEPS, inputs=s32, noise=False)
            pairs.append((path32, path))
        for low, high in pairs:
            assert low.dtype == torch.float32
            torch.testing.assert_close(low.double(), high, rtol=1e-3, atol=1e-3)

    def test_known_parameters_come_back(self) -> None:
        """from_parameters with the dynamics' own values makes the same dynamics."""
        dynamics = self.create()
        cls = type(dynamics)
        if not hasattr(cls, "from_parameters"):
            pytest.skip("there is no from_parameters")
        names = inspect.signature(cls.from_parameters).parameters
        values = {n: getattr(dynamics, n) for n in names if hasattr(dynamics, n)}
        values.update(
            process_noise=_noise_value(dynamics.noise),
            initial_mean=dynamics.initial.mean,
            initial_noise=_noise_value(dynamics.initial.noise),
            initial=dynamics.initial.kind,
            input_at_start=dynamics.input_at_start,
        )
        other = cls.from_parameters(**values)
        assert other.initialised
        assert other.noise.kind == dynamics.noise.kind
        self.same(dynamics, other)

    def test_frozen_parameters_stay(self) -> None:
        """Closed-form updates leave parameters without requires_grad as they are."""
        dynamics = self.create().requires_grad_(False)
        dynamics.noise.assign_moment(7.0 * torch.eye(dynamics.dim, dtype=torch.float64))
        found = dynamics.coefficients() if isinstance(dynamics, PiecewiseLinear) else None
        if isinstance(dynamics, PiecewiseLinear) and found is not None:
            theta, free = found
            assert not free.any()
            dynamics.assign_coefficients(theta + 1.0)
        self.same(dynamics, self.create())

    def test_start_values_are_drawn(self) -> None:
        """Start values follow the generator, leave noise and frozen parameters, and are finite."""
        one, other, frozen = (self.create().requires_grad_(free) for free in (True, True, False))
        before = {name: p.detach().clone() for name, p in one.named_parameters()}
        try:
            one.draw_start(torch.Generator().manual_seed(1))
        except CapabilityError as error:
            assert type(one).__name__ in str(error)
            pytest.skip("there are no random start values")
        other.draw_start(torch.Generator().manual_seed(1))
        frozen.draw_start(torch.Generator().manual_seed(1))
        for name, p in one.named_parameters():
            assert torch.isfinite(p).all(), name
            assert torch.equal(p, other.get_parameter(name)), name
            assert torch.equal(before[name], frozen.get_parameter(name)), name
            if "." in name:  # noise and initial state
                assert torch.equal(p, before[name]), name
        other.draw_start(torch.Generator().manual_seed(2))
        assert one.dim == 1 or any(
            not torch.equal(p, other.get_parameter(n)) for n, p in one.named_parameters()
        )

    def test_coefficients_are_the_map(self) -> None:
        """Theta [z; relu(gates); 1; s] is the step; theta can be written back."""
        dynamics = self.piecewise().requires_grad_(True)
        form, (theta, free) = self.form(dynamics), self.coefficients(dynamics)
        assert theta.shape == free.shape
        assert free.dtype == torch.bool
        assert (theta[~free] == 0).all(), "structural zeros"
        z = _normal(64, dynamics.dim)
        s = self.inputs(dynamics, 64, 1)
        s = torch.zeros(64, 0, dtype=z.dtype) if s is None else s[:, 0]
        gates = torch.from_numpy(np.maximum(form.gates(_array(z)), 0.0))
        one = torch.ones(64, 1, dtype=z.dtype)
        self.close(torch.cat([z, gates, one, s], dim=1) @ theta.T, dynamics.step(z, s))
        moved = theta + torch.where(free, _normal(*theta.shape, seed=5), 0.0)
        dynamics.assign_coefficients(moved + torch.where(free, 0.0, 1.0))
        self.close(self.coefficients(dynamics)[0], moved)

    def test_penalty_is_the_prior(self) -> None:
        """The penalty is a scalar, and equals the quadratic prior where there is one."""
        dynamics = self.create()
        penalty = dynamics.penalty()
        assert penalty.shape == ()
        prior = dynamics.prior() if isinstance(dynamics, PiecewiseLinear) else None
        if isinstance(dynamics, PiecewiseLinear) and prior is not None:
            weight, target = prior
            theta, _ = self.coefficients(dynamics)
            self.close(penalty, 0.5 * (weight * (theta - target) ** 2).sum())

    # ---- helpers ------------------------------------------------------------------------------
    def close(self, got: Tensor, want: Tensor) -> None:
        """Asserts equality to the contract's tolerance."""
        torch.testing.assert_close(got, want, rtol=self.tolerance, atol=self.tolerance)

    def same(self, one: LatentDynamics, other: LatentDynamics) -> None:
        """Asserts that two dynamics are the same model."""
        z = _normal(_TRIALS, _STEPS, one.dim)
        s = self.inputs(one, _TRIALS, _STEPS)
        self.close(other.step(z, s), one.step(z, s))
        self.close(other.log_prob(z, s), one.log_prob(z, s))

    def has_moments(self, draws: Tensor, covariance: Tensor) -> None:
        """Asserts mean zero and the covariance of draws [n, M] within five standard errors."""
        sd = covariance.diagonal().sqrt()
        assert (draws.mean(0).abs() < 5 * sd / len(draws) ** 0.5).all()
        products = draws[:, :, None] * draws[:, None, :]
        error = products.std(0) / len(draws) ** 0.5
        assert ((products.mean(0) - covariance).abs() < 5 * error).all()

    def piecewise(self) -> PiecewiseLinear:
        """Returns the dynamics, or skips the test where they are not piecewise linear."""
        dynamics = self.create()
        if not isinstance(dynamics, PiecewiseLinear):
            pytest.skip("the dynamics are not piecewise linear")
        return dynamics

    def coefficients(self, dynamics: PiecewiseLinear) -> tuple[Tensor, Tensor]:
        """Returns theta and which entries are free, or skips the test where there are none."""
        found = dynamics.coefficients()
        if found is None:
            pytest.skip("there are no closed-form coefficients")
        return found

    def form(self, dynamics: PiecewiseLinear) -> ReluForm:
        """Returns the ReLU form, or skips the test where the map has none."""
        try:
            return dynamics.relu_form()
        except CapabilityError as error:
            pytest.skip(str(error))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 values, twice as wide."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def _gate_matrices(form: ReluForm) -> list[np.ndarray]:
    """What each gate adds to [J | b], which does not depend on how its factors are scaled."""
    inner = np.concatenate([form.inner, form.offset[:, None]], axis=1)
    return [np.outer(form.outer[:, p], inner[p]) for p in range(form.offset.size)]


def _noise_value(noise: Noise) -> Tensor:
    """The (co)variance in the shape that names the kind of noise."""
    if noise.kind == "full":
        return noise.covariance
    return noise.variance if noise.kind == "diagonal" else noise.variance[0]


def _loop_log_prob(dynamics: LatentDynamics, z: Tensor, s: Tensor | None) -> Tensor:
    """Log-density of one path [T, M], step by step."""
    mean: Tensor = dynamics.initial.mean
    if s is not None and dynamics.input_at_start:
        mean = mean + dynamics.C @ s[0]
    total = MultivariateNormal(mean, dynamics.initial.noise.covariance).log_prob(z[0])
    for t in range(1, len(z)):
        mean = dynamics.step(z[t - 1], None if s is None else s[t])
        total = total + MultivariateNormal(mean, dynamics.noise.covariance).log_prob(z[t])
    return total
