"""PLRNN and LinearDynamics: known values, setters, refusals, start values, priors."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from plssm.dynamics import (
    PLRNN,
    LatentDynamics,
    LinearDynamics,
    ManifoldAttractor,
    PiecewiseLinear,
    base,
)
from plssm.errors import CapabilityError, PlssmError, ShapeError


def parameters(dim=3, inputs=0, seed=0):
    rng = np.random.default_rng(seed)
    W = 0.3 * rng.standard_normal((dim, dim))
    np.fill_diagonal(W, 0.0)
    known = {"A": rng.random(dim), "W": W, "h": rng.standard_normal(dim)}
    return {**known, "C": rng.standard_normal((dim, inputs))} if inputs else known


def test_known_values_are_kept_to_the_last_bit():
    known = parameters(inputs=2)
    mean = np.random.default_rng(1).standard_normal(3)
    dynamics = PLRNN.from_parameters(**known, process_noise=0.1, initial_mean=mean)
    for name, value in {**known}.items():
        assert np.array_equal(getattr(dynamics, name).detach().numpy(), value), name
    assert np.array_equal(dynamics.initial.mean.detach().numpy(), mean)
    assert dynamics.initialised
    assert dynamics.n_inputs == 2
    assert not PLRNN(3).initialised
    linear = LinearDynamics.from_parameters(A=known["W"], h=known["h"])
    assert np.array_equal(linear.A.detach().numpy(), known["W"])


@pytest.mark.parametrize(
    ("process", "initial", "kinds"),
    [
        (0.1, None, ("isotropic", "isotropic")),
        ([0.1, 0.2, 0.3], 1.0, ("diagonal", "isotropic")),
        (np.diag([0.1, 0.2, 0.3]) + 0.05, [1.0, 1.0, 2.0], ("full", "diagonal")),
        ([0.1, 0.2, 0.3], np.eye(3), ("diagonal", "full")),
    ],
)
def test_kind_of_noise_follows_the_shape(process, initial, kinds):
    dynamics = PLRNN.from_parameters(**parameters(), process_noise=process, initial_noise=initial)
    assert (dynamics.noise.kind, dynamics.initial.noise.kind) == kinds
    config = dynamics.config()
    assert (config["noise"], config["initial_noise"]) == kinds
    full = np.asarray(process, dtype=float)
    full = full if full.ndim == 2 else np.diag(np.broadcast_to(full, 3))
    np.testing.assert_allclose(dynamics.noise.covariance.detach(), full, rtol=1e-14)
    if initial is None:
        np.testing.assert_allclose(dynamics.initial.noise.covariance.detach(), full, rtol=1e-14)


def test_self_couplings_are_refused_with_the_way_out():
    known = parameters()
    known["W"] = known["W"] + 0.2 * np.eye(3)
    with pytest.raises(PlssmError, match=r"add the diagonal of W to A"):
        PLRNN.from_parameters(**known)
    dynamics = PLRNN(3)
    before = dynamics.W.detach().clone()
    with pytest.raises(PlssmError, match="diagonal"):
        dynamics.W = np.ones((3, 3))
    assert torch.equal(dynamics.W, before)


def test_gradients_cannot_make_self_couplings():
    dynamics = PLRNN(3)
    dynamics.step(torch.ones(3).double()).square().sum().backward()
    assert not dynamics.W.grad.diagonal().any()
    with torch.no_grad():
        dynamics.W.fill_(0.3)
    z = torch.rand(5, 3).double()
    W = 0.3 * (1 - torch.eye(3).double())
    torch.testing.assert_close(dynamics.step(z), z * dynamics.A + z @ W.T + dynamics.h)
    torch.testing.assert_close(
        dynamics.affine(z > 0)[0], torch.diag(dynamics.A) + W.expand(5, 3, 3)
    )
    np.testing.assert_allclose(dynamics.relu_form().outer, W)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"A": np.eye(3)}, ShapeError, r"A: got shape \(3, 3\), wanted \(M,\)"),
        ({"W": np.zeros((3, 2))}, ShapeError, r"W: got shape \(3, 2\), wanted \(3, 3\)"),
        ({"h": np.zeros(2)}, ShapeError, r"h: got shape \(2,\), wanted \(3,\)"),
        ({"C": np.zeros((2, 4))}, ShapeError, r"C: got shape \(2, 4\), wanted \(3, K\)"),
        ({"h": [0.0, np.nan, 0.0]}, PlssmError, "h: all entries must be finite"),
        ({"A": [0.0, np.inf, 0.0]}, PlssmError, "A: all entries must be finite"),
        ({"process_noise": [0.1, 0.0, 0.1]}, PlssmError, "process_noise: .*positive"),
        ({"initial_noise": -np.eye(3)}, PlssmError, "initial_noise: .*positive definite"),
        ({"process_noise": np.ones(2)}, ShapeError, r"process_noise: got shape \(2,\)"),
        ({"initial_mean": np.zeros(4)}, ShapeError, "initial mean: got shape"),
        ({"initial": "free"}, PlssmError, "'shared' or 'tied'"),
    ],
)
def test_bad_values_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        PLRNN.from_parameters(**{**parameters(), "process_noise": 0.1, **change})


def test_bad_sizes_and_inputs_are_refused():
    for sizes in ((0,), (2.5,), (3, -1)):
        with pytest.raises(PlssmError, match="sizes"):
            PLRNN(*sizes)
    with pytest.raises(ShapeError, match=r"A: got shape \(3, 2\), wanted \(M, M\)"):
        LinearDynamics.from_parameters(A=np.zeros((3, 2)))
    dynamics = PLRNN(3, 2)
    with pytest.raises(ShapeError, match="got 1 on the last axis, wanted 2"):
        dynamics.step(torch.zeros(3).double(), torch.zeros(1).double())
    with pytest.raises(ShapeError, match="got 4 steps, wanted 5"):
        dynamics.rollout(torch.zeros(3).double(), 5, inputs=torch.zeros(4, 2).double())
    with pytest.raises(ShapeError, match="got 4 steps, wanted 5"):
        dynamics.sample(5, inputs=torch.zeros(4, 2).double())


def test_assigning_values_writes_into_the_parameter():
    dynamics = PLRNN(3, 1)
    parameter = dynamics.h
    dynamics.h = [1.0, 2.0, 3.0]
    assert dynamics.h is parameter
    assert parameter.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ShapeError, match="h: got shape"):
        dynamics.h = [1.0]
    dynamics.input_at_start = True
    assert torch.equal(dynamics.first_mean(), dynamics.initial.mean)
    dynamics.C = [[1.0], [0.0], [2.0]]
    s = torch.tensor([[[3.0], [9.0]]]).double()
    torch.testing.assert_close(dynamics.first_mean(s), torch.tensor([[3.0, 0.0, 6.0]]).double())


@pytest.mark.parametrize("dim", [1, 2, 10, 60])
def test_fresh_dynamics_are_stable_and_the_same_every_time(dim):
    dynamics = PLRNN(dim)
    assert ((dynamics.A > 0.5) & (dynamics.A < 0.9)).all()
    assert not dynamics.W.diagonal().any()
    corners = torch.rand(200, dim, generator=torch.Generator().manual_seed(0)).double().round()
    jacobian = dynamics.affine(corners)[0]
    assert jacobian.abs().sum(-1).max() <= 0.95 + 1e-12
    for cls in (PLRNN, LinearDynamics):
        one, other = cls(dim).state_dict(), cls(dim).state_dict()
        assert all(torch.equal(one[k], other[k]) for k in one)
        noise = cls(dim).noise
        assert torch.equal(noise.variance, torch.ones(dim).double())


def test_fixed_point_by_regions_is_fixed():
    """In every region, the affine map's fixed point is one of the map if it lies in the region."""
    dynamics = PLRNN.from_parameters(**parameters(4, seed=2))
    found = 0
    for bits in itertools.product([False, True], repeat=4):
        region = torch.tensor(bits)
        J, b = dynamics.affine(region)
        z = torch.linalg.solve(torch.eye(4).double() - J, b)
        if torch.equal(dynamics.region(z), region):
            torch.testing.assert_close(dynamics.step(z), z)
            found += 1
    assert found


def test_frozen_parameters_are_not_free_one_by_one():
    dynamics = PLRNN(3, 2)
    theta, free = dynamics.coefficients()
    assert theta.shape == (3, 9)
    structure = torch.cat([torch.eye(3), 1 - torch.eye(3), torch.ones(3, 3)], dim=1).bool()
    assert torch.equal(free, structure)
    blocks = {"A": slice(0, 3), "W": slice(3, 6), "h": slice(6, 7), "C": slice(7, 9)}
    for name, columns in blocks.items():
        frozen = copy.deepcopy(dynamics)
        getattr(frozen, name).requires_grad_(False)
        _, free = frozen.coefficients()
        want = structure.clone()
        want[:, columns] = False
        assert torch.equal(free, want), name
        frozen.assign_coefficients(theta + 1.0)
        new, _ = frozen.coefficients()
        torch.testing.assert_close(new, theta + want)
    linear = LinearDynamics(3, 2)
    linear.h.requires_grad_(False)
    theta, free = linear.coefficients()
    assert theta.shape == (3, 6)
    assert torch.equal(free, torch.ones(3, 6).bool().index_fill(1, torch.tensor([3]), False))
    with pytest.raises(ShapeError, match="theta"):
        linear.assign_coefficients(theta[:, :5])


def test_manifold_attractor():
    prior = ManifoldAttractor(2.0, 3.0)
    known = parameters(5, inputs=1)
    dynamics = PLRNN.from_parameters(**known, regularizer=prior)
    A, W, h = known["A"], known["W"], known["h"]
    rows = range(3)  # the first ceil(5/2) units
    want = sum(
        0.5 * 3.0 * (A[i] - 1) ** 2
        + 0.5 * 2.0 * (sum(W[i, j] ** 2 for j in range(5) if j != i) + h[i] ** 2)
        for i in rows
    )
    np.testing.assert_allclose(dynamics.penalty().item(), want, rtol=1e-12)
    dynamics.penalty().backward()
    assert not dynamics.C.grad.any()
    assert not dynamics.A.grad[3:].any()
    weight, target = dynamics.prior()
    assert weight.shape == target.shape == (5, 12)
    exact = {"A": np.ones(5), "W": np.zeros((5, 5)), "h": np.zeros(5)}
    attractor = PLRNN.from_parameters(**exact, regularizer=prior)
    assert attractor.penalty().item() == 0.0
    z = torch.rand(4, 5).double()
    torch.testing.assert_close(attractor.step(z), z)  # a continuum of fixed points
    assert PLRNN(3).prior() is None
    assert PLRNN(3).penalty().item() == 0.0


def test_manifold_attractor_settings():
    assert ManifoldAttractor(1.0).rows(5) == [0, 1, 2]
    assert ManifoldAttractor(1.0, units=2).rows(5) == [0, 1]
    assert ManifoldAttractor(1.0, units=[4, 0]).rows(5) == [4, 0]
    assert ManifoldAttractor(1.0, units=[4, 0]) == ManifoldAttractor(1.0, units=(4, 0))
    weight, _ = ManifoldAttractor(1.5).quadratic(dim=2)
    assert weight.tolist() == [[1.5, 0.0, 0.0, 1.5, 1.5], [0.0] * 5]
    with pytest.raises(PlssmError, match="tau"):
        ManifoldAttractor(-1.0)
    with pytest.raises(PlssmError, match="lam"):
        ManifoldAttractor(1.0, np.nan)
    with pytest.raises(PlssmError, match="units"):
        PLRNN(3, regularizer=ManifoldAttractor(1.0, units=(3,)))


def test_gradients_flow_through_rollout_and_sample():
    dynamics = PLRNN.from_parameters(**parameters(), process_noise=0.1)
    generator = torch.Generator().manual_seed(0)
    dynamics.sample(5, trials=2, generator=generator).sum().backward()
    for name, parameter in dynamics.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_compiled_and_plain_paths_agree_on_the_same_draws():
    dynamics = PLRNN.from_parameters(**parameters(inputs=2), process_noise=[0.1, 0.2, 0.3])
    s = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(1)).double()

    def draw():
        return dynamics.sample(
            50, trials=4, inputs=s, generator=torch.Generator().manual_seed(2)
        )  # fmt: skip

    plain = draw()
    with torch.no_grad():
        compiled = draw()
    assert plain.requires_grad
    assert not compiled.requires_grad
    torch.testing.assert_close(compiled, plain.detach(), rtol=1e-12, atol=1e-12)


def test_long_paths_are_stepped_in_blocks(monkeypatch):
    dynamics = PLRNN.from_parameters(**parameters(inputs=2))
    z = torch.randn(3, 11, 3, generator=torch.Generator().manual_seed(0)).double()
    s = torch.randn(3, 11, 2, generator=torch.Generator().manual_seed(1)).double()
    whole = PiecewiseLinear.step(dynamics, z, s)
    monkeypatch.setattr(base, "_ROWS", 4)
    torch.testing.assert_close(PiecewiseLinear.step(dynamics, z, s), whole)


def test_length_of_a_single_path_and_of_samples():
    dynamics = PLRNN.from_parameters(**parameters(), process_noise=0.1)
    z = torch.randn(4, 2, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        dynamics.log_prob(z[0, 0], length=4), dynamics.log_prob(z[0, 0, :4])
    )
    ragged = dynamics.log_prob(z, length=torch.tensor([6, 4]))
    assert ragged.shape == (4, 2)
    torch.testing.assert_close(ragged[:, 0], dynamics.log_prob(z[:, 0]))
    torch.testing.assert_close(ragged[:, 1], dynamics.log_prob(z[:, 1, :4]))


def test_constant_maps_have_a_jacobian():
    class Constant(LatentDynamics):
        def step(self, z, s=None):
            return torch.ones_like(z)

    z = torch.ones(4, 2).double()
    assert torch.equal(Constant(2).jacobian(z), torch.zeros(4, 2, 2).double())


def test_jacobian_by_differentiation_has_gradients():
    class Squares(LatentDynamics):
        def step(self, z, s=None):
            return z**2

    z = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    jacobian = Squares(2).jacobian(z)
    torch.testing.assert_close(jacobian, torch.diag(2 * z))
    (gradient,) = torch.autograd.grad(jacobian.sum(), z)
    assert gradient.tolist() == [2.0, 2.0]
    with torch.no_grad():
        assert not Squares(2).jacobian(z).requires_grad


def test_no_coefficients_by_default():
    class Half(PiecewiseLinear):
        def region(self, z):
            return z > 0

        def affine(self, region):
            eye = 0.5 * torch.eye(self.dim, dtype=self.C.dtype)
            return eye.expand(*region.shape[:-1], -1, -1), eye.new_zeros(region.shape)

    dynamics = Half(2)
    assert dynamics.coefficients() is None
    with pytest.raises(CapabilityError, match="Half"):
        dynamics.assign_coefficients(torch.zeros(2, 5))


def test_repr_is_short():
    assert repr(PLRNN(3)) == "PLRNN(dim=3, noise='diagonal')"
    assert repr(LinearDynamics(2, 4, noise="full")) == (
        "LinearDynamics(dim=2, inputs=4, noise='full')"
    )
