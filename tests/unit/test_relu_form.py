"""ReLU forms: their algebra, and finding them by probing region and affine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from plssm.dynamics import PLRNN, LinearDynamics, PiecewiseLinear, ReluForm
from plssm.errors import CapabilityError, ShapeError


def random_form(dim=3, gates=5, inputs=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (dim, dim), (dim,), (dim, gates), (gates, dim), (gates,), (dim, inputs)
    return ReluForm(*(0.4 * rng.standard_normal(s) for s in shapes))


class Gated(PiecewiseLinear):
    """z' = L z + b + O relu(I z + o), gates written on the side that `signs` says."""

    def __init__(self, form: ReluForm, signs=None):
        super().__init__(form.bias.size, form.inputs.shape[1])
        arrays = dataclasses.asdict(form)
        for name in ("linear", "bias", "outer", "inner", "offset"):
            self.register_parameter(name, nn.Parameter(torch.from_numpy(arrays[name].copy())))
        self.C = form.inputs
        gates = form.offset.size
        self.signs = torch.ones(gates).double() if signs is None else torch.tensor(signs).double()

    def region(self, z):
        return self.signs * (z @ self.inner.T + self.offset) > 0

    def affine(self, region):
        on = region.double()
        on = torch.where(self.signs > 0, on, 1.0 - on)
        outer = self.outer * on[..., None, :]
        return self.linear + outer @ self.inner, self.bias + outer @ self.offset


def points(dim, n=500, seed=1):
    return 3.0 * np.random.default_rng(seed).standard_normal((n, dim))


def same_map(one, other, dim, inputs):
    z, s = points(dim), np.random.default_rng(2).standard_normal((500, inputs))
    np.testing.assert_allclose(one.step(z, s), other.step(z, s), atol=1e-10)
    np.testing.assert_allclose(
        one.jacobian(one.region(z)), other.jacobian(other.region(z)), atol=1e-10
    )
    np.testing.assert_allclose(
        one.regional_bias(one.region(z)), other.regional_bias(other.region(z)), atol=1e-10
    )


# ---- algebra ------------------------------------------------------------------------------------
def test_step_is_the_formula_and_the_regions_affine_map():
    form = random_form()
    z, s = points(3), np.random.default_rng(3).standard_normal((500, 2))
    for i in range(20):
        relu = np.maximum(form.inner @ z[i] + form.offset, 0.0)
        want = form.linear @ z[i] + form.bias + form.outer @ relu + form.inputs @ s[i]
        np.testing.assert_allclose(form.step(z[i], s[i]), want, atol=1e-13)
    region = form.region(z)
    affine = np.einsum("nij,nj->ni", form.jacobian(region), z) + form.regional_bias(region)
    np.testing.assert_allclose(form.step(z), affine, atol=1e-12)


def test_jacobian_is_the_derivative():
    form, h = random_form(), 1e-6
    for z in points(3, 20):
        if np.abs(form.gates(z)).min() < 1e-4:
            continue
        columns = [(form.step(z + h * e) - form.step(z - h * e)) / (2 * h) for e in np.eye(3)]
        np.testing.assert_allclose(form.jacobian(form.region(z)), np.stack(columns, -1), atol=1e-8)


def test_fractional_gates_interpolate():
    form = random_form()
    d = np.random.default_rng(0).random((4, 5))
    corners = form.jacobian(np.eye(5)) - form.jacobian(np.zeros(5))
    want = form.jacobian(np.zeros(5)) + np.einsum("np,pij->nij", d, corners)
    np.testing.assert_allclose(form.jacobian(d), want, atol=1e-13)
    steps = form.regional_bias(np.eye(5)) - form.bias
    np.testing.assert_allclose(form.regional_bias(d), form.bias + d @ steps, atol=1e-13)
    by_hand = form.linear + form.outer @ np.diag(d[0]) @ form.inner
    np.testing.assert_allclose(form.jacobian(d[0]), by_hand, atol=1e-13)


def test_identity_gates_take_the_short_way():
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((3, 3)), np.zeros(3), rng.standard_normal((3, 3)))
    form = ReluForm(*arrays, np.eye(3), np.zeros(3), np.zeros((3, 0)))
    assert form.identity_gates
    permuted = ReluForm(*arrays, np.eye(3)[[1, 0, 2]], np.zeros(3), np.zeros((3, 0)))
    assert not permuted.identity_gates
    assert not ReluForm(*arrays, np.eye(3), np.ones(3), np.zeros((3, 0))).identity_gates
    d = rng.random((2, 3))
    long_way = form.linear + form.outer @ (d[:, :, None] * form.inner)
    np.testing.assert_allclose(form.jacobian(d), long_way, atol=1e-14)


def test_no_gates():
    form = LinearDynamics.from_parameters(A=[[0.5, 0.1], [0.0, 0.5]], h=[1.0, 2.0]).relu_form()
    assert form.region(np.ones((4, 2))).shape == (4, 0)
    np.testing.assert_allclose(form.jacobian(np.ones((4, 0))), np.tile(form.linear, (4, 1, 1)))
    np.testing.assert_allclose(form.step(np.ones(2)), [1.6, 2.5])


def test_shapes_are_checked_and_arrays_locked():
    form = random_form()
    with pytest.raises(ValueError, match="read-only"):
        form.linear[0, 0] = 1.0
    arrays = dataclasses.asdict(form)
    arrays.pop("identity_gates")
    with pytest.raises(ShapeError, match="outer"):
        ReluForm(**{**arrays, "outer": np.zeros((3, 4))})


@pytest.mark.parametrize("gates", [0, 5])
def test_rollout_iterates_step(gates):
    form = random_form(gates=gates)
    rng = np.random.default_rng(4)
    start, s = rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3, 7, 2))
    noise = rng.standard_normal((2, 3, 7, 3))
    path, z = form.rollout(start, 7, s, noise), start
    assert path.shape == (2, 3, 7, 3)
    for t in range(7):
        z = form.step(z, s[:, :, t]) + noise[:, :, t]
        np.testing.assert_allclose(path[:, :, t], z, atol=1e-12)
    alone = form.rollout(start[0, 0], 2)
    np.testing.assert_allclose(alone[1], form.step(form.step(start[0, 0])), atol=1e-12)


# ---- found by probing ---------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_shallow_map_is_found(seed):
    form = random_form(gates=11, seed=seed)
    found = Gated(form).relu_form()
    same_map(found, form, 3, 2)
    # factors are unique up to a positive scale: the largest inner weight is one
    scale = np.abs(form.inner).max(1)
    np.testing.assert_allclose(found.inner, form.inner / scale[:, None], atol=1e-10)
    np.testing.assert_allclose(found.offset, form.offset / scale, atol=1e-10)
    np.testing.assert_allclose(found.outer, form.outer * scale, atol=1e-10)


def test_gates_called_on_on_their_other_side_are_found():
    form = random_form(gates=6, seed=3)
    dynamics = Gated(form, signs=[1, -1, -1, 1, -1, 1])
    found = dynamics.relu_form()
    z = points(3)
    np.testing.assert_allclose(found.step(z), form.step(z), atol=1e-10)
    bits = dynamics.region(torch.from_numpy(z)).numpy()
    assert (found.region(z) == bits).all()


def test_partly_linear_units_are_found():
    """Only the last two of five units have a rectifier."""
    rng = np.random.default_rng(0)
    linear = np.diag(rng.random(5)) + 0.2 * rng.standard_normal((5, 5))
    form = ReluForm(
        linear, rng.standard_normal(5), 0.3 * rng.standard_normal((5, 2)), np.eye(5)[3:],
        np.zeros(2), np.zeros((5, 0)),
    )  # fmt: skip
    found = Gated(form).relu_form()
    same_map(found, form, 5, 0)
    np.testing.assert_array_equal(found.inner, form.inner)
    np.testing.assert_array_equal(found.offset, form.offset)


def test_clipped_map_is_found():
    """Pairs of parallel gates, z' = A z + W1 [relu(W2 z + h2) - relu(W2 z)] + h1."""
    form = random_form(gates=4, seed=5)
    clipped = ReluForm(
        form.linear, form.bias, np.hstack([form.outer, -form.outer]),
        np.vstack([form.inner, form.inner]), np.concatenate([form.offset, np.zeros(4)]),
        form.inputs,
    )  # fmt: skip
    same_map(Gated(clipped).relu_form(), clipped, 3, 2)


def test_far_hyperplanes_and_small_effects_are_found():
    form = random_form(gates=4, seed=6)
    far = dataclasses.asdict(form)
    far.pop("identity_gates")
    far["offset"] = np.array([-300.0, 80.0, 0.0, 0.1])
    far["outer"] = form.outer * np.array([1e-4, 1.0, 1e-3, 1.0])
    far = ReluForm(**far)
    found = Gated(far).relu_form()
    for size in (1.0, 1000.0):
        z = size * points(3)
        np.testing.assert_allclose(found.step(z), far.step(z), atol=1e-8 * size)


def test_gate_without_effect_is_left_out():
    form = random_form(gates=3)
    arrays = dataclasses.asdict(form)
    arrays.pop("identity_gates")
    arrays["outer"] = form.outer * np.array([1.0, 0.0, 1.0])
    silent = ReluForm(**arrays)
    found = Gated(silent).relu_form()
    same_map(found, silent, 3, 2)
    assert not found.outer[:, 1].any()


def test_plrnn_is_found_exactly():
    rng = np.random.default_rng(0)
    W = 0.3 * rng.standard_normal((4, 4))
    np.fill_diagonal(W, 0.0)
    dynamics = PLRNN.from_parameters(A=rng.random(4), W=W, h=rng.standard_normal(4))
    found = PiecewiseLinear.relu_form(dynamics)
    assert found.identity_gates
    np.testing.assert_array_equal(found.outer, W)


def test_float32_copies_have_a_form():
    dynamics = Gated(random_form()).float()
    dynamics.signs = dynamics.signs.float()
    found = dynamics.relu_form()
    assert found.linear.dtype == np.float64
    z = points(3)
    np.testing.assert_allclose(found.step(z), random_form().step(z), atol=1e-5)
    assert dynamics.linear.dtype == torch.float32


# ---- refused ------------------------------------------------------------------------------------
class TwoLayers(PiecewiseLinear):
    """z' = W2 relu(W1 relu(z)): a gate of the second layer depends on the first."""

    def __init__(self):
        super().__init__(2)
        rng = np.random.default_rng(0)
        self.W1 = nn.Parameter(torch.from_numpy(rng.standard_normal((3, 2))))
        self.W2 = nn.Parameter(torch.from_numpy(rng.standard_normal((2, 3))))

    def region(self, z):
        first = z.clamp_min(0.0)
        return torch.cat([z > 0, first @ self.W1.T > 0], dim=-1)

    def affine(self, region):
        on = region.double()
        inner = self.W1 * on[..., None, :2]
        jacobian = self.W2 @ (on[..., 2:, None] * inner)
        return jacobian, torch.zeros(*region.shape[:-1], 2).double()


class Jump(Gated):
    """The rectifiers' gates switch away from where their arguments vanish."""

    def region(self, z):
        return z @ self.inner.T + self.offset > 0.3


class Step(Gated):
    """A gate switches a constant."""

    def affine(self, region):
        jacobian, bias = super().affine(region)
        return jacobian.detach() * 0.0 + self.linear, bias


class Fold(PiecewiseLinear):
    """One gate changes the map by a rank-two matrix."""

    def region(self, z):
        return z[..., :1] > 0

    def affine(self, region):
        on = region.double()[..., None]
        eye = torch.eye(2).double()
        return 0.5 * eye + 0.3 * on * eye, torch.zeros(*region.shape[:-1], 2).double()


@pytest.mark.parametrize(
    ("dynamics", "why"),
    [
        (TwoLayers(), "rank-one|add up"),
        (Jump(random_form()), "jumps at the boundary"),
        (Step(random_form()), "switches a constant"),
        (Fold(2), "rank-one"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, PiecewiseLinear) else None,
)
def test_other_maps_are_refused_and_still_roll_out(dynamics, why):
    with pytest.raises(CapabilityError, match=why) as error:
        dynamics.relu_form()
    assert type(dynamics).__name__ in str(error.value)
    start = torch.from_numpy(points(dynamics.dim, 3))
    with torch.no_grad():
        path = dynamics.rollout(start, 4, noise=False)
        torch.testing.assert_close(path[:, 1], dynamics.step(dynamics.step(start)))
