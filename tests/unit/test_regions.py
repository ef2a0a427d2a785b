"""Linear regions of paths: symbols, transitions and entropies, by hand and in closed form."""

import math

import numpy as np
import pytest
import torch

from plssm.analysis import visited_regions
from plssm.dynamics import PLRNN, LatentDynamics, LinearDynamics
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import CapabilityError, PlssmError, ShapeError


def line(gates=1):
    """Gates at 0, 1, 2, ... on a line."""
    return ReluForm(
        np.eye(1), np.zeros(1), np.ones((1, gates)), np.ones((gates, 1)),
        -np.arange(gates, dtype=float), np.zeros((1, 0)),
    )  # fmt: skip


def test_shares_and_transitions_by_hand():
    got = visited_regions(line(2), np.array([-1, -2, 0.5, -1, 3, 0.5, -1.0])[:, None])
    table = got.table()
    assert table["region"].tolist() == ["00", "10", "11"]
    assert table["gates_on"].tolist() == [0, 1, 2]
    assert table["steps"].tolist() == [4, 2, 1]
    np.testing.assert_allclose(table["share"], [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(table["mean_stay"], [4 / 3, 1, 1])
    assert got.symbols.tolist() == [0, 0, 1, 0, 2, 1, 0]
    assert got.transitions.tolist() == [[1, 1, 1], [2, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(got.probabilities, [[1 / 3] * 3, [1, 0, 0], [0, 1, 0]])
    # the adjacency matrix has the characteristic polynomial x^3 - x^2 - x - 1
    assert got.topological_entropy == pytest.approx(math.log(1.8392867552141612))
    assert got.markov_entropy == pytest.approx(3 / 6 * math.log(3))
    assert "3 regions" in repr(got)


def test_transitions_do_not_cross_paths():
    paths = np.array([[[-1.0], [1.0]], [[-1.0], [1.0]], [[-2.0], [2.0]]])
    got = visited_regions(line(), torch.from_numpy(paths))
    assert got.symbols.shape == (3, 2)
    assert got.transitions.tolist() == [[0, 3], [0, 0]]
    assert got.topological_entropy == got.markov_entropy == 0.0
    assert got.probabilities[1].tolist() == [0.0, 0.0]


def test_the_golden_mean_shift():
    # the tent map z' = s (1 - |z|) - 1 whose critical orbit has period three: s = golden ratio
    golden = (1 + math.sqrt(5)) / 2
    form = ReluForm([[golden]], [golden - 1], [[-2 * golden]], [[1.0]], [0.0], np.zeros((1, 0)))
    path = form.rollout(np.array([0.1234]), 20_000)[100:]
    got = visited_regions(form, path)
    assert len(got.patterns) == 2
    assert got.topological_entropy == pytest.approx(math.log(golden))
    assert got.markov_entropy == pytest.approx(math.log(golden), abs=0.02)  # maximal here


def test_dynamics_and_one_step_and_no_gates():
    dynamics = PLRNN.from_parameters(A=[0.5, 0.5], W=[[0, 1.0], [0, 0]])
    got = visited_regions(dynamics, [[1.0, -1.0]])
    assert got.patterns.tolist() == [[True, False]]
    assert got.transitions.tolist() == [[0]]
    linear = LinearDynamics.from_parameters(A=np.eye(2), process_noise=[1.0, 1.0])
    got = visited_regions(linear, np.zeros((5, 2)))
    assert got.patterns.shape == (1, 0) and got.table()["region"].tolist() == [""]
    assert got.transitions.tolist() == [[4]]


def test_shares_agree_with_counting_on_a_random_path():
    rng = np.random.default_rng(0)
    gates, dim = 11, 3
    form = ReluForm(
        np.eye(dim), np.zeros(dim), np.ones((dim, gates)),
        rng.standard_normal((gates, dim)), rng.standard_normal(gates), np.zeros((dim, 0)),
    )  # fmt: skip
    path = rng.standard_normal((2, 300, dim))
    got = visited_regions(form, path)
    np.testing.assert_array_equal(got.patterns[got.symbols], form.region(path))
    assert len({tuple(p) for p in got.patterns}) == len(got.patterns)
    assert got.shares.sum() == pytest.approx(1.0) and (np.diff(got.shares) <= 0).all()
    want = np.zeros_like(got.transitions)
    for row in got.symbols:
        for a, b in zip(row[:-1], row[1:], strict=True):
            want[a, b] += 1
    np.testing.assert_array_equal(got.transitions, want)


class Smooth(LatentDynamics):
    def step(self, z, s=None):
        return torch.tanh(z)


def test_clear_refusals():
    with pytest.raises(ShapeError, match="path"):
        visited_regions(line(), np.zeros((5, 2)))
    with pytest.raises(ShapeError, match="path"):
        visited_regions(line(), np.zeros(1))
    with pytest.raises(PlssmError, match="finite"):
        visited_regions(line(), [[np.nan], [1.0]])
    with pytest.raises(CapabilityError, match="visited_regions: Smooth is not piecewise linear"):
        visited_regions(Smooth(1), np.zeros((3, 1)))
