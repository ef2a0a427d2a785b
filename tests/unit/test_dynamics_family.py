"""The PLRNN family: its formulas by plain loops, refusals, bounded orbits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.dynamics import (
    PLRNN,
    AlmostLinearRNN,
    DendriticPLRNN,
    HiddenLayer,
    ShallowPLRNN,
)
from plssm.errors import PlssmError, ShapeError
from plssm.testing import DynamicsContract

OPTIONS = {"process_noise": [0.1, 0.2, 0.3], "initial_mean": [0.5, -0.5, 0.0]}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def coupled(dim=3, seed=2):
    W = 0.4 * normal(dim, dim, seed=seed)
    np.fill_diagonal(W, 0.0)
    return W


def decay(dim=3):
    return np.linspace(-0.4, 0.8, dim)


def plrnn(*, mean_centered=True, inputs=2):
    return PLRNN.from_parameters(
        A=decay(), W=coupled(), h=0.3 * normal(3, seed=3), C=normal(3, inputs, seed=4),
        mean_centered=mean_centered, **OPTIONS,
    )  # fmt: skip


def shallow(*, clipped=True, mean_centered=False, inputs=2, **options):
    return ShallowPLRNN.from_parameters(
        A=decay(), W1=0.5 * normal(3, 5, seed=1), W2=normal(5, 3, seed=2), h1=normal(3, seed=3),
        h2=normal(5, seed=4), C=normal(3, inputs, seed=5), clipped=clipped,
        mean_centered=mean_centered, **{**OPTIONS, **options},
    )  # fmt: skip


def dendritic(*, clipped=True, mean_centered=False, inputs=2, **options):
    return DendriticPLRNN.from_parameters(
        A=decay(), W=coupled(), h=normal(3, seed=3), alpha=normal(4, seed=6),
        thresholds=normal(3, 4, seed=7), C=normal(3, inputs, seed=5), clipped=clipped,
        mean_centered=mean_centered, **{**OPTIONS, **options},
    )  # fmt: skip


def almost_linear(relu_units=2, inputs=2, **options):
    return AlmostLinearRNN.from_parameters(
        A=decay(), W=0.4 * normal(3, 3, seed=2), relu_units=relu_units, h=normal(3, seed=3),
        C=normal(3, inputs, seed=5), **{**OPTIONS, **options},
    )  # fmt: skip


# ---- the contract -------------------------------------------------------------------------------
class TestCentredPLRNN(DynamicsContract):
    def create(self):
        return plrnn()


class TestShallow(DynamicsContract):
    def create(self):
        return shallow(input_at_start=True)


class TestUnclippedShallow(DynamicsContract):
    def create(self):
        return shallow(clipped=False, inputs=0)


class TestCentredShallow(DynamicsContract):
    def create(self):
        return shallow(mean_centered=True, initial_noise=np.eye(3) + 0.3)


class TestUnclippedCentredShallow(DynamicsContract):
    def create(self):
        return shallow(clipped=False, mean_centered=True, initial="tied")


class TestFreshShallow(DynamicsContract):
    def create(self):
        return ShallowPLRNN(2, 6, 1, noise="full")


class TestDendritic(DynamicsContract):
    def create(self):
        return dendritic(initial="tied")


class TestUnclippedDendritic(DynamicsContract):
    def create(self):
        return dendritic(clipped=False)


class TestCentredDendritic(DynamicsContract):
    def create(self):
        return dendritic(mean_centered=True, inputs=0)


class TestUnclippedCentredDendritic(DynamicsContract):
    def create(self):
        return dendritic(clipped=False, mean_centered=True, input_at_start=True)


class TestFreshDendritic(DynamicsContract):
    def create(self):
        return DendriticPLRNN(4, 1, noise="isotropic")


class TestAlmostLinear(DynamicsContract):
    def create(self):
        return almost_linear(input_at_start=True)


class TestAlmostLinearWithOneGate(DynamicsContract):
    def create(self):
        return almost_linear(1, 0)


class TestAllUnitsRectified(DynamicsContract):
    def create(self):
        return almost_linear(3)


class TestNoUnitRectified(DynamicsContract):
    def create(self):
        return almost_linear(0)


class TestFreshAlmostLinear(DynamicsContract):
    def create(self):
        return AlmostLinearRNN(4, 2)


MEMBERS = {
    "PLRNN": lambda: plrnn(mean_centered=False),
    "centred PLRNN": plrnn,
    "shallow": shallow,
    "unclipped shallow": lambda: shallow(clipped=False),
    "centred shallow": lambda: shallow(mean_centered=True),
    "unclipped centred shallow": lambda: shallow(clipped=False, mean_centered=True),
    "dendritic": dendritic,
    "unclipped dendritic": lambda: dendritic(clipped=False),
    "centred dendritic": lambda: dendritic(mean_centered=True),
    "unclipped centred dendritic": lambda: dendritic(clipped=False, mean_centered=True),
    "almost linear": almost_linear,
}
UNCLIPPED = [n for n in MEMBERS if "unclipped" in n or "PLRNN" in n or "almost" in n]
member = pytest.mark.parametrize("create", MEMBERS.values(), ids=MEMBERS.keys())


# ---- the formulas, by plain loops ---------------------------------------------------------------
def relu(x):
    return x if x > 0 else 0.0


def by_loops(dynamics, z, s):
    """The papers' formulas, entry by entry."""
    p = {name: value.tolist() for name, value in dynamics.named_parameters()}
    states, z, s = range(dynamics.dim), z.tolist(), s.tolist()
    mean = sum(z) / len(z)
    seen = [x - mean for x in z] if dynamics.mean_centered else z
    kappa = float(getattr(dynamics, "clipped", False))
    if isinstance(dynamics, ShallowPLRNN):
        weights, bias, units = p["W1"], p["h1"], []
        for row, h in zip(p["W2"], p["h2"], strict=True):
            u = sum(w * x for w, x in zip(row, seen, strict=True))
            units.append(relu(u + h) - kappa * relu(u))
    elif isinstance(dynamics, DendriticPLRNN):
        weights, bias = p["W"], p["h"]
        units = [
            sum(
                a * (relu(seen[m] - h) - kappa * relu(seen[m]))
                for a, h in zip(p["alpha"], p["thresholds"][m], strict=True)
            )
            for m in states
        ]
    elif isinstance(dynamics, AlmostLinearRNN):
        weights, bias = p["W"], p["h"]
        units = [z[m] if m < dynamics.dim - dynamics.relu_units else relu(z[m]) for m in states]
    else:
        weights, bias, units = p["W"], p["h"], [relu(x) for x in seen]
    return [
        p["A"][i] * z[i]
        + sum(w * f for w, f in zip(weights[i], units, strict=True))
        + bias[i]
        + sum(c * x for c, x in zip(p["C"][i], s, strict=True))
        for i in states
    ]


@member
def test_step_is_the_formula(create):
    dynamics = create()
    z, s = torch.from_numpy(3.0 * normal(40, 3, seed=8)), torch.from_numpy(normal(40, 2, seed=9))
    want = [by_loops(dynamics, *pair) for pair in zip(z, s, strict=True)]
    np.testing.assert_allclose(dynamics.step(z, s).detach(), want, rtol=1e-12, atol=1e-12)


@member
def test_layer_is_the_map_and_carries_gradients(create):
    dynamics = create()
    z = torch.from_numpy(3.0 * normal(7, 3, seed=8))
    layer = dynamics.layer()
    torch.testing.assert_close(layer.step(z), dynamics.step(z), rtol=1e-13, atol=1e-13)
    matrix, bias = dynamics.affine(dynamics.region(z))
    weights = torch.from_numpy(normal(7, 3, seed=1))
    names = [n for n, p in dynamics.named_parameters() if "." not in n and n != "C"]
    through_affine = (matrix @ z[..., None])[..., 0] + bias
    parameters = [dynamics.get_parameter(n) for n in names]
    one, other = (
        torch.autograd.grad((weights * after).sum(), parameters, retain_graph=True)
        for after in (layer.step(z), through_affine)
    )
    for name, a, b in zip(names, one, other, strict=True):
        assert a.abs().sum() > 0, name
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


def test_layers_that_do_not_fit_are_refused():
    one, two = torch.ones(1).double(), torch.ones(2).double()
    fitting = {
        "decay": two, "outer": torch.ones(2, 1).double(), "bias": two,
        "inner": torch.ones(1, 2).double(), "thresholds": torch.ones(1, 1).double(),
        "weights": one,
    }  # fmt: skip
    HiddenLayer(**fitting)
    for change, says in [
        ({"inner": torch.ones(2, 1).double()}, r"inner: got shape \(2, 1\), wanted \(1, 2\)"),
        ({"inner": None}, r"outer: got shape \(2, 1\), wanted \(2, 2\)"),
        ({"bias": one}, r"bias: got shape \(1,\), wanted \(2,\)"),
        ({"weights": two}, r"weights: got shape \(2,\), wanted \(1,\)"),
        ({"linear_units": 2}, "linear_units: got 2, wanted between 0 and the 1 units"),
    ]:
        with pytest.raises(ShapeError, match=says):
            HiddenLayer(**{**fitting, **change})


# ---- refusals -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("create", "change", "error", "says"),
    [
        (shallow, {"A": np.eye(3)}, ShapeError, "A is diagonal"),
        (shallow, {"W1": np.ones((2, 5))}, ShapeError, r"W1: got shape \(2, 5\), wanted \(3, L\)"),
        (shallow, {"W2": np.ones((3, 5))}, ShapeError, r"W2: .*\(3, 5\), wanted \(5, 3\)"),
        (shallow, {"h2": np.ones(3)}, ShapeError, r"h2: got shape \(3,\), wanted \(5,\)"),
        (shallow, {"C": np.ones((2, 1))}, ShapeError, r"C: got shape \(2, 1\), wanted \(3, K\)"),
        (shallow, {"h1": [np.nan, 0, 0]}, PlssmError, "h1: all entries must be finite"),
        (shallow, {"process_noise": -1.0}, PlssmError, "process_noise: .*positive"),
        (dendritic, {"thresholds": np.ones(3)}, ShapeError, r"thresholds: .*wanted \(3, B\)"),
        (dendritic, {"alpha": np.ones(3)}, ShapeError, r"alpha: got shape \(3,\), wanted \(4,\)"),
        (dendritic, {"W": np.ones((3, 3))}, PlssmError, "add the diagonal of W to A"),
        (almost_linear, {"W": np.ones((3, 2))}, ShapeError, r"W: got shape \(3, 2\)"),
        (almost_linear, {"relu_units": 4}, PlssmError, "relu_units: got 4, .* from 0 to 3"),
        (almost_linear, {"relu_units": 0.5}, PlssmError, r"relu_units: got 0.5"),
    ],
)
def test_bad_values_are_refused(create, change, error, says):
    dynamics = create()
    names = ("A", "W", "W1", "W2", "h", "h1", "h2", "C", "alpha", "thresholds", "relu_units")
    values = {n: getattr(dynamics, n) for n in names if hasattr(dynamics, n)}
    with pytest.raises(error, match=says):
        type(dynamics).from_parameters(**{**values, **change})


def test_bad_sizes_are_refused():
    with pytest.raises(PlssmError, match="hidden: got 0, wanted a whole number at least 1"):
        ShallowPLRNN(3, 0)
    with pytest.raises(PlssmError, match="bases: got 1.5"):
        DendriticPLRNN(3, 1.5)
    with pytest.raises(PlssmError, match="sizes: got dim=0"):
        AlmostLinearRNN(0, 0)
    for cls, size in ((PLRNN, ()), (ShallowPLRNN, (4,)), (DendriticPLRNN, (4,))):
        with pytest.raises(PlssmError, match="mean_centered: a single state"):
            cls(1, *size, mean_centered=True)
        assert cls(1, *size).dim == 1
    with pytest.raises(TypeError, match="noisy"):
        ShallowPLRNN(3, 4, noisy=True)


def test_gradients_cannot_make_self_couplings():
    dynamics = dendritic()
    dynamics.step(torch.ones(3).double()).square().sum().backward()
    assert dynamics.W.grad.abs().sum() > 0
    assert not dynamics.W.grad.diagonal().any()
    with torch.no_grad():
        dynamics.W.fill_(0.3)
    np.testing.assert_array_equal(dynamics.layer().outer.detach(), 0.3 * (1 - np.eye(3)))
    with pytest.raises(PlssmError, match="diagonal"):
        dynamics.W = np.ones((3, 3))


def test_repr_has_the_sizes():
    assert repr(shallow()) == (
        "ShallowPLRNN(dim=3, hidden=5, clipped=True, inputs=2, noise='diagonal')"
    )
    assert repr(DendriticPLRNN(2, 4, mean_centered=True, clipped=False, noise="full")) == (
        "DendriticPLRNN(dim=2, bases=4, clipped=False, mean_centered=True, noise='full')"
    )
    assert repr(AlmostLinearRNN(5, 2)) == "AlmostLinearRNN(dim=5, relu_units=2, noise='diagonal')"
    assert repr(PLRNN(3, mean_centered=True)) == (
        "PLRNN(dim=3, mean_centered=True, noise='diagonal')"
    )


# ---- bounded orbits -----------------------------------------------------------------------------
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("create", [shallow, dendritic])
def test_clipped_orbits_stay_within_the_closed_form_bound(create, centred):
    """Large random weights, starts from far away: |z_i| ends below (|W| phi + |h|) / (1 - |A|)."""
    dynamics, rng = create(mean_centered=centred, inputs=0), np.random.default_rng(5)
    outer = "W1" if create is shallow else "W"
    for scale in (1.0, 30.0):
        weights = getattr(dynamics, outer).detach().numpy()
        setattr(dynamics, outer, scale * weights)
        p = {n: np.abs(v.detach().numpy()) for n, v in dynamics.named_parameters()}
        gives = p["h2"] if create is shallow else p["thresholds"] @ p["alpha"]
        drift = p[outer] @ gives + p["h1" if create is shallow else "h"]
        bound, start = drift / (1 - p["A"]), 1e6 * rng.standard_normal((50, 3))
        with torch.no_grad():
            path = dynamics.rollout(torch.from_numpy(start), 300, noise=False).abs().numpy()
        steps = np.arange(1, 301)[:, None]
        allowed = p["A"] ** steps * np.abs(start)[:, None] + bound
        assert (path <= allowed * (1 + 1e-9)).all()
        assert (path[:, -1] <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("create", [shallow, dendritic])
def test_unclipped_orbits_can_escape(create):
    """The same weights: 2 z for positive z without the clipping, a fixed point with it."""
    one = {"A": [0.5, 0.5], "W": [[0.0, 1.5], [1.5, 0.0]]}
    if create is shallow:
        known = {"A": one["A"], "W1": one["W"], "W2": np.eye(2), "h2": [0.1, 0.1]}
    else:
        known = {**one, "alpha": [1.0], "thresholds": [[-0.1], [-0.1]]}
    far = torch.full((2,), 10.0).double()
    free, clipped = (
        type(create()).from_parameters(**known, clipped=c).rollout(far, 200, noise=False)
        for c in (False, True)
    )
    assert free[-1].min() > 1e50
    torch.testing.assert_close(clipped[-1], torch.full((2,), 0.15 / 0.5).double())


@pytest.mark.parametrize("name", UNCLIPPED)
def test_small_weights_contract_unclipped_maps(name):
    """Where the stated sum of norms is below 1, any two orbits come together."""
    dynamics = MEMBERS[name]()
    with torch.no_grad():
        for n in ("W", "W1", "W2"):
            if hasattr(dynamics, n):
                p = getattr(dynamics, n)
                p.mul_(0.19 / torch.linalg.matrix_norm(p, 2))
        if hasattr(dynamics, "alpha"):
            dynamics.alpha.div_(dynamics.alpha.abs().sum())
        start = torch.from_numpy(100.0 * normal(2, 3))
        path = dynamics.rollout(start, 2000, noise=False)
    torch.testing.assert_close(path[0, -1], path[1, -1])
