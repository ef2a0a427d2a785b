"""Fixed points and cycles against exhaustive search, closed forms and known families."""

import itertools
import math

import numpy as np
import pytest
import torch

from plssm.analysis import Cycle, Cycles, cycles, fixed_points
from plssm.analysis.region_cells import enumerate_cells, live_gates
from plssm.dynamics import PLRNN, LatentDynamics, LinearDynamics, PiecewiseLinear
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import CapabilityError, PlssmError, ShapeError


def relu_map(linear, bias, outer, inner, offset=None, inputs=None):
    dim, gates = np.shape(outer)
    return ReluForm(
        linear, bias, outer, inner,
        np.zeros(gates) if offset is None else offset,
        np.zeros((dim, 0)) if inputs is None else inputs,
    )  # fmt: skip


def vanilla(dim, seed):
    """A random PLRNN whose regional Jacobians have a mean spectral radius of 1 to 1.5."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((dim, dim))
    np.fill_diagonal(weight, 0)
    form = relu_map(
        np.diag(rng.uniform(-1, 1, dim)), rng.standard_normal(dim), weight, np.eye(dim)
    )
    return scaled(form, rng)


def almost_linear(dim, gates, seed):
    """A random map with gates on its last states only."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((dim, dim)) / math.sqrt(dim)
    linear = np.diag(rng.uniform(-1, 1, dim))
    linear[:, : dim - gates] += weight[:, : dim - gates]
    inner = np.eye(dim)[dim - gates :]
    form = relu_map(linear, rng.standard_normal(dim), weight[:, dim - gates :], inner)
    return scaled(form, rng)


def scaled(form, rng):
    regions = rng.random((64, len(form.offset))) < 0.5
    radius = np.abs(np.linalg.eigvals(form.jacobian(regions))).max(axis=1).mean()
    gain = rng.uniform(1, 1.5) / radius
    return relu_map(gain * form.linear, form.bias, gain * form.outer, form.inner, form.offset)


def folding(dim, gates, seed):
    """A random map that turns, stretches, and folds at its last states."""
    rng = np.random.default_rng(seed)
    linear = np.linalg.qr(rng.standard_normal((dim, dim)))[0] * rng.uniform(1, 1.5)
    inner = np.eye(dim)[dim - gates :]
    outer = -rng.uniform(1, 2, gates) * linear[:, dim - gates :]
    outer = outer + 0.3 * rng.standard_normal((dim, gates))
    return relu_map(linear, rng.standard_normal(dim), outer, inner)


def every_sequence(form, order):
    """All cycles of an order, from every sequence of all 2^P patterns; each [k, M]."""
    gates, dim = len(form.offset), len(form.bias)
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=gates)))
    maps = np.array([form.linear + form.outer @ np.diag(d) @ form.inner for d in patterns])
    biases = np.array([form.bias + form.outer @ (d * form.offset) for d in patterns])
    sequences = np.array(list(itertools.product(range(len(patterns)), repeat=order)))
    product, constant = np.eye(dim)[None], np.zeros((len(sequences), dim))
    for letter in sequences.T:
        product = maps[letter] @ product
        constant = np.einsum("nij,nj->ni", maps[letter], constant) + biases[letter]
    z = np.linalg.solve(np.eye(dim) - product, constant[..., None])[..., 0]
    real, path = np.ones(len(z), dtype=bool), []
    for letter in sequences.T:
        real &= ((z @ form.inner.T + form.offset > 0) == (patterns[letter] > 0)).all(axis=1)
        path.append(z)
        z = np.einsum("nij,nj->ni", maps[letter], z) + biases[letter]
    found = []
    for points in np.stack(path, axis=1)[real]:
        divisors = [p for p in range(1, order) if order % p == 0]
        if any(np.abs(np.roll(points, p, axis=0) - points).max() < 1e-6 for p in divisors):
            continue
        first = min(range(order), key=lambda j: tuple(points[j]))
        points = np.roll(points, -first, axis=0)
        if not any(np.abs(points - other).max() < 1e-6 for other in found):
            found.append(points)
    return sorted(found, key=lambda p: p.ravel().tolist())


MODELS = (
    [vanilla(2 + s % 3, seed=s) for s in range(18)]
    + [almost_linear(5 + s % 4, 1 + s % 5, seed=s) for s in range(12)]
    + [folding(4 + s % 5, 2 + s % 3, seed=s) for s in range(12)]
)


@pytest.mark.parametrize("method", ["auto", "restarts"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_all_cycles_of_random_maps(order, method):
    count = 0
    for form in MODELS:
        want = every_sequence(form, order)
        got = cycles(form, order=order, method=method, restarts=500)
        assert len(got) == len(want)
        assert got.exhaustive == (method == "auto")
        for cycle, points in zip(got, want, strict=True):
            size = 1 + np.abs(points).max()
            np.testing.assert_allclose(cycle.points, points, atol=1e-7 * size)
            check_cycle(form, cycle)
        count += len(want)
    assert count >= 10  # the comparison is about something


def check_cycle(form, cycle):
    """Points, regions and eigenvalues fit the map."""
    order, dim = cycle.points.shape
    size = 1 + np.abs(cycle.points).max()
    after = np.roll(cycle.points, -1, axis=0)
    np.testing.assert_allclose(form.step(cycle.points), after, atol=1e-8 * size)
    np.testing.assert_array_equal(cycle.regions, form.region(cycle.points))
    total = np.eye(dim)
    for z in cycle.points:
        total = form.jacobian(form.region(z)) @ total
    coefficients = np.poly(cycle.eigenvalues)
    np.testing.assert_allclose(
        coefficients, np.poly(total), atol=1e-6 * (1 + abs(total).max()) ** dim
    )
    assert (np.diff(np.abs(cycle.eigenvalues)) <= 1e-9 * (1 + abs(total).max())).all()


def test_six_gates_and_order_two():
    for seed in range(4):
        form = folding(8, 6, seed=seed)
        want = every_sequence(form, 2)
        got = cycles(form, order=2, method="restarts", restarts=1000, seed=seed)
        assert len(got) == len(want)
        assert got.restarts >= 1000 and not got.exhaustive


def lozi(a=1.7, b=0.5):
    """x' = 1 - a |x| + y, y' = b x."""
    return relu_map([[a, 1], [b, 0]], [1, 0], [[-2 * a], [0]], [[1.0, 0.0]])


class Lozi(PiecewiseLinear):
    def region(self, z):
        return z[..., :1] > 0

    def affine(self, region):
        slope = torch.where(region[..., 0], -1.7, 1.7).double()
        one = torch.ones_like(slope)
        rows = [torch.stack([slope, one], -1), torch.stack([0.5 * one, 0 * one], -1)]
        return torch.stack(rows, -2), torch.stack([one, 0 * one], -1)


@pytest.mark.parametrize("dynamics", [lozi(), Lozi(2)])
def test_lozi_map_in_closed_form(dynamics):
    a, b = 1.7, 0.5
    low, high = fixed_points(dynamics)
    x = 1 / (1 - a - b), 1 / (1 + a - b)
    np.testing.assert_allclose(low.points, [[x[0], b * x[0]]])
    np.testing.assert_allclose(high.points, [[x[1], b * x[1]]])
    assert low.stability == high.stability == "saddle"
    root = math.sqrt(a * a + 4 * b)
    np.testing.assert_allclose(high.eigenvalues, [(-a - root) / 2, (-a + root) / 2])
    (two,) = cycles(dynamics, order=2)
    # x1 > 0 > x2: x2 = 1 - a x1 + b x2 and x1 = 1 + a x2 + b x1
    x1 = (1 - b + a) / ((1 - b) ** 2 + a * a)
    x2 = (1 - a * x1) / (1 - b)
    np.testing.assert_allclose(two.points, [[x2, b * x1], [x1, b * x2]])
    assert two.order == 2 and two.stability == "saddle"


def test_counting_the_cycles_of_the_tent_map():
    # at slope 2 every sequence of two letters runs; z' = 1 - 2 |z|, aperiodic necklaces
    tent = relu_map([[1.99]], [1.0], [[-3.98]], [[1.0]])
    for order, count in ((1, 2), (2, 1), (3, 2), (4, 3), (5, 6), (6, 9)):
        found = cycles(tent, order=order)
        assert len(found) == count
        assert all(c.stability == "unstable" for c in found)
        searched = cycles(tent, order=order, method="restarts", restarts=1000)
        assert len(searched) == count
        assert searched.restarts == 1024 and sum(searched.hits) <= 1024


def test_linear_map():
    matrix = np.array([[0.5, 0.2], [-0.3, 0.8]])
    dynamics = LinearDynamics.from_parameters(A=matrix, h=[1.0, -1.0], process_noise=[1.0, 1.0])
    (point,) = fixed_points(dynamics)
    np.testing.assert_allclose(point.points[0], np.linalg.solve(np.eye(2) - matrix, [1, -1]))
    assert point.stability == "stable" and not point.border_collision
    assert point.regions.shape == (1, 0)
    np.testing.assert_allclose(np.poly(point.eigenvalues), np.poly(matrix), atol=1e-12)
    assert not cycles(dynamics, order=2)
    assert cycles(dynamics, order=2).missed_share == 0.0


def test_a_quarter_turn_is_a_family_of_order_four():
    turn = LinearDynamics.from_parameters(A=[[0, -1.0], [1.0, 0]], process_noise=[1.0, 1.0])
    (centre,) = fixed_points(turn)
    assert centre.stability == "non-hyperbolic"
    assert cycles(turn, order=2).degenerate == 0  # only the fixed point, twice round
    with pytest.warns(UserWarning, match="continuous family"):
        found = cycles(turn, order=4)
    assert len(found) == 0 and found.degenerate == 1
    assert "1 continuous families" in repr(found)


@pytest.mark.parametrize("method", ["exhaustive", "restarts"])
def test_a_line_of_fixed_points(method):
    # z1' = z1 where z1 > 0, otherwise z1 / 2; z2' = z2 / 2 + 1
    form = relu_map(np.diag([0.5, 0.5]), [0.0, 1.0], [[0.5], [0.0]], [[1.0, 0.0]])
    with pytest.warns(UserWarning, match="continuous family"):
        found = fixed_points(form, method=method, restarts=500)
    assert found.degenerate == 1
    (end,) = found  # the end of the line, seen from the other side
    np.testing.assert_allclose(end.points, [[0.0, 2.0]], atol=1e-12)
    assert end.border_collision and "kink" in repr(end)
    assert cycles(form, order=2, method=method, restarts=500).degenerate == 0


def test_a_parallel_shift_has_no_fixed_point():
    # I - J is singular where z > 0 and the equations have no solution
    form = relu_map([[0.5]], [1.0], [[0.5]], [[1.0]])
    found = fixed_points(form)
    assert len(found) == 0 and found.degenerate == 0


def test_constant_inputs_move_the_fixed_point():
    dynamics = PLRNN.from_parameters(
        A=[0.5, 0.4], W=[[0, 0.3], [-0.2, 0]], C=[[1.0], [2.0]], h=[0.1, 0.2]
    )
    moved = PLRNN.from_parameters(A=[0.5, 0.4], W=[[0, 0.3], [-0.2, 0]], h=[3.1, 6.2])
    got, want = fixed_points(dynamics, inputs=torch.tensor([3.0])), fixed_points(moved)
    np.testing.assert_allclose(got[0].points, want[0].points)
    assert not np.allclose(fixed_points(dynamics)[0].points, want[0].points)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cells_are_all_patterns_that_occur(dim):
    rng = np.random.default_rng(dim)
    gates = 7
    form = relu_map(
        np.eye(dim), np.zeros(dim), np.ones((dim, gates)),
        rng.standard_normal((gates, dim)), rng.standard_normal(gates),
    )  # fmt: skip
    cells = enumerate_cells(form, 1 << 16)
    assert len(cells) == sum(math.comb(gates, i) for i in range(dim + 1))  # general position
    known = {tuple(c) for c in cells}
    size = 10 ** rng.uniform(-1, 3, (100_000, 1))
    assert {tuple(c) for c in form.region(size * rng.standard_normal((100_000, dim)))} <= known
    assert len(known) == len(cells)
    assert enumerate_cells(form, 10) is None


def test_cells_where_hyperplanes_coincide_or_run_parallel():
    # thresholds on two axes, one of them twice, and lines through one point
    inner = np.array([[1.0, 0], [1, 0], [2, 0], [0, 1], [0, 1], [1, 1], [1, -1]])
    offset = np.array([0.0, -1, -2, 0, -1, 0, 0])
    form = relu_map(np.eye(2), np.zeros(2), np.ones((2, 7)), inner, offset)
    known = {tuple(c) for c in enumerate_cells(form, 1 << 12)}
    points = np.random.default_rng(0).uniform(-3, 3, (50_000, 2))
    assert {tuple(c) for c in form.region(points)} <= known


def test_gates_that_switch_nothing_are_left_out():
    form = relu_map([[0.5]], [-3.2], [[1.0, 0.0, 2.0]], [[0.0], [1.0], [1.0]], [3.0, 0.0, -1.0])
    lean, live = live_gates(form)
    assert live.tolist() == [False, False, True]
    z = np.linspace(-2, 2, 9)[:, None]
    np.testing.assert_allclose(lean.step(z), form.step(z))
    low, high = fixed_points(form)
    np.testing.assert_allclose([low.points[0, 0], high.points[0, 0]], [-0.4, 2.2 / 1.5])
    assert low.regions.shape == high.regions.shape == (1, 3)


def shallow(dim, gates, seed):
    rng = np.random.default_rng(seed)
    return relu_map(
        np.diag(rng.uniform(0.3, 1.0, dim)), 0.3 * rng.standard_normal(dim),
        rng.standard_normal((dim, gates)) * 1.2 / math.sqrt(gates),
        rng.standard_normal((gates, dim)), rng.standard_normal(gates),
    )  # fmt: skip


def test_hidden_gates_against_all_patterns():
    for seed in range(6):
        form = shallow(2, 9, seed)
        want = every_sequence(form, 1)
        got = fixed_points(form)
        assert got.exhaustive and len(got) == len(want)
        assert len(fixed_points(form, method="restarts", seed=seed)) == len(want)


def test_many_hidden_gates_are_searched_and_points_may_be_given():
    form = shallow(8, 60, seed=1)
    points = np.random.default_rng(0).uniform(-5, 5, (500, 8))
    found = fixed_points(form, region_points=points, restarts=300)
    assert not found.exhaustive and found.restarts >= 300
    for cycle in found:
        check_cycle(form, cycle)
    again = fixed_points(form, region_points=torch.tensor(points), restarts=300)
    assert again.hits == found.hits
    with pytest.raises(CapabilityError, match="too many linear regions"):
        fixed_points(form, method="exhaustive")


def index_sum(form, order, found):
    """Sum of the signs of det(I - DF^k) over all points whose period divides k."""
    total = 0
    for cycle in itertools.chain(*found):
        if order % cycle.order == 0:
            jacobian = np.eye(len(form.bias))
            for z in cycle.points:
                jacobian = form.jacobian(form.region(z)) @ jacobian
            power = np.linalg.matrix_power(jacobian, order // cycle.order)
            total += cycle.order * np.sign(np.linalg.det(np.eye(len(power)) - power))
    return total


@pytest.mark.parametrize("method", ["auto", "restarts"])
def test_the_index_of_bounded_maps_is_one(method):
    # a contraction plus a bounded function: the Lefschetz index of F^k is one
    for seed in range(4):
        rng = np.random.default_rng(seed)
        dim, units = 3, 20
        inner, height = rng.standard_normal((units, dim)), rng.standard_normal(units)
        outer = 0.8 * rng.standard_normal((dim, units))
        form = relu_map(
            np.diag(rng.uniform(-0.9, 0.9, dim)), rng.standard_normal(dim),
            np.concatenate([outer, -outer], axis=1), np.concatenate([inner, inner]),
            np.concatenate([height, np.zeros(units)]),
        )  # fmt: skip
        found = []
        for order in (1, 2) if method == "restarts" else (1,):
            found.append(cycles(form, order=order, method=method, restarts=2000))
            assert index_sum(form, order, found) == 1


@pytest.mark.parametrize(
    ("moduli", "word"),
    [
        ([0.5, -0.9j], "stable"),
        ([1.1, -2.0], "unstable"),
        ([1.1, 0.3], "saddle"),
        ([1.1, -1.0], "non-hyperbolic"),
    ],
)
def test_words_for_stability(moduli, word):
    values = np.array(moduli, dtype=complex)
    assert Cycle(np.zeros((1, 2)), values, np.zeros((1, 0), bool)).stability == word


def test_what_the_list_knows():
    one = Cycle(np.zeros((1, 1)), np.array([0.5 + 0j]), np.zeros((1, 1), bool))
    found = Cycles([one, one, one], order=1, hits=[1, 8, 1], restarts=20, exhaustive=False)
    assert found.missed_share == 0.2
    assert repr(found) == "Cycles(3 of order 1, 20 restarts, estimated missed share 0.2)"
    assert found.table()["hits"].tolist() == [1, 8, 1]
    none = Cycles([], order=3, hits=[], restarts=20, exhaustive=False)
    assert math.isnan(none.missed_share) and none.table().empty


def test_a_bar_is_shown_on_demand(capsys, monkeypatch):
    from plssm.analysis import cycles as function
    from plssm.analysis.work_bar import WorkBar

    with WorkBar("cycles", show=True) as bar:
        bar.report(0.1, "nothing yet")
        assert bar._progress is None  # short searches show nothing
        bar._began -= 10.0
        bar.report(0.5, "half")
        assert bar._progress is not None
    assert "half" in capsys.readouterr().err
    assert len(function(lozi(), order=2, progress=False)) == 1


class Smooth(LatentDynamics):
    def step(self, z, s=None):
        return torch.tanh(z)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 0}, PlssmError, "order"),
        ({"order": 1, "method": "guess"}, PlssmError, "method"),
        ({"order": 1, "restarts": 0}, PlssmError, "restarts"),
        ({"order": 1, "limit": 1.5}, PlssmError, "limit"),
        ({"order": 1, "inputs": [1.0, 2.0]}, ShapeError, "inputs"),
        ({"order": 1, "region_points": np.zeros((3, 5))}, ShapeError, "region_points"),
        ({"order": 1, "region_points": [[np.nan, 0.0]]}, PlssmError, "finite"),
    ],
)
def test_clear_refusals(options, error, message):
    with pytest.raises(error, match=message):
        cycles(lozi(), **options)


def test_smooth_maps_are_refused():
    with pytest.raises(CapabilityError, match="not piecewise linear"):
        fixed_points(Smooth(2))
