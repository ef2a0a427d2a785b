"""Solves of a chain that go on from the last one, against solves from the beginning."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.kernels import mode_search
from plssm.kernels._mode_revision import revise_trials
from plssm.kernels._mode_twin import search_twin
from plssm.kernels._threads import over_trials
from plssm.kernels.mode_search import path_values, search_modes
from plssm.kernels.packed_prior import pack_prior, with_terms
from plssm.linalg.block_tridiagonal import empty_factor
from tests.unit.test_mode_search_kernel import PIN, random_problem

PRIOR = ("form", "drive", "precision", "initial_mean", "initial_precision")


class Search:
    """One search at the level of its kernels."""

    def __init__(self, problem, length):
        packed = pack_prior(*(problem[k] for k in PRIOR), length)
        terms = problem["information"], problem["score"]
        self.hinge, self.chain, self.length = with_terms(packed, *terms, PIN)
        self.shape = problem["score"].shape
        trials, steps, self.m = self.shape
        self.factor = empty_factor(trials, steps, self.m, self.length, quadratic=True)
        self.path, self.active = np.zeros(self.shape), np.ones(trials, dtype=bool)
        self.memory = mode_search._memory(self.hinge, self.shape)

    def solve(self, slope, pinned, *, fresh):
        mode_search._maximise(
            self.hinge, self.chain, self.factor, self.path, self.memory, slope, pinned,
            pins=True, fresh=fresh, which=self.active,
        )  # fmt: skip

    def revise(self, slope, pinned):
        """Value and number of changes of every trial; slopes and pins change in place."""
        value, changes = np.zeros(len(slope)), np.zeros(len(slope), dtype=np.int64)
        flat = (x.reshape(-1) for x in (self.path, slope, pinned, np.zeros(slope.shape)))
        over_trials(
            revise_trials,
            (
                *flat, True, self.active, self.memory, value, changes, self.hinge, self.chain,
                self.length,
            ),
            length=self.length,
            m=self.m,
        )  # fmt: skip
        return value, changes


def start(problem, search, rng):
    """Slopes and pins of a random active set, in whole blocks of hinges."""
    shape = (*problem["slope"].shape[:2], search.chain.hinges)
    slope, pinned = np.zeros(shape), np.zeros(shape, dtype=np.uint8)
    gates = problem["slope"].shape[2]
    slope[..., :gates] = rng.random(problem["slope"].shape) < 0.5
    pinned[..., :gates] = rng.random(problem["slope"].shape) < 0.1
    slope[pinned != 0] = 0.0
    return slope, pinned


CASES = [(400, 3, None), (400, 3, 5), (90, 10, None), (40, 6, 20), (1, 2, None), (6, 50, None)]


@pytest.mark.parametrize(("steps", "m", "hinges"), CASES)
def test_what_was_switched_is_solved_as_from_the_beginning(steps, m, hinges):
    rng = np.random.default_rng(steps + m)
    problem = random_problem(rng, 3, steps, m, hinges)
    length = np.array([steps, max(1, steps - 7), max(1, steps // 2)])
    search = Search(problem, length)
    slope, pinned = start(problem, search, rng)
    search.solve(slope, pinned, fresh=True)
    search.revise(slope, pinned)
    for _ in range(12):  # most hinges settle
        search.solve(slope, pinned, fresh=False)
        search.revise(slope, pinned)
    for _ in range(3):
        for b in range(3):
            if length[b] > 1:
                t = rng.integers(length[b] - 1)
                slope[b, t, 0], pinned[b, t, 0] = 1.0 - slope[b, t, 0], 0
                pinned[b, t, 1] = 1 - pinned[b, t, 1]
                slope[b, t, 1] *= pinned[b, t, 1] == 0
                search.memory.switched[b * steps + t] = 1
        search.solve(slope, pinned, fresh=False)
        again = Search(problem, length)
        again.solve(slope, pinned, fresh=True)
        np.testing.assert_allclose(search.path, again.path, atol=1e-11)
        probe = rng.normal(size=search.shape)
        for b in range(3):
            probe[b, length[b] :] = 0.0
        np.testing.assert_allclose(
            search.factor.solve(probe), again.factor.solve(probe), atol=1e-9
        )
        touched = search.memory.touched.reshape(3, steps).sum(1)
        if steps == 400:
            assert touched.max() < 150
        other = slope.copy(), pinned.copy()
        got, wanted = search.revise(slope, pinned), again.revise(*other)
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-12, atol=1e-9)
        np.testing.assert_array_equal(got[1], wanted[1])
        np.testing.assert_array_equal(slope, other[0])
        np.testing.assert_array_equal(pinned, other[1])
        np.testing.assert_array_equal(search.memory.switched, again.memory.switched)


@pytest.mark.parametrize("hinges", [None, 5])
def test_a_search_with_many_solves_ends_where_the_plain_one_does(hinges):
    problem = random_problem(np.random.default_rng(8), 3, 150, 4, hinges)
    got = search_modes(**problem, pin=PIN)
    path, slope, stationary = search_twin(**problem, pin=PIN)
    assert stationary.all()
    assert got.stationary.all()
    assert (got.solves > 4).all()
    # a hinge that is no state is held up to rounding of its gate times the stiffness of the pin
    tolerance = 1e-9 if hinges is None else 1e-6
    np.testing.assert_allclose(got.path, path, atol=tolerance)
    np.testing.assert_allclose(got.slope, slope, atol=100 * tolerance)
    value = path_values(*(problem[k] for k in (*PRIOR, "information", "score")), got.path)
    np.testing.assert_allclose(got.value, value, rtol=1e-9)


def test_a_factor_that_fails_later_is_reported():
    problem = random_problem(np.random.default_rng(1), 2, 30, 3)
    search = Search(problem, np.array([30, 30]))
    slope, pinned = start(problem, search, np.random.default_rng(0))
    search.solve(slope, pinned, fresh=True)
    assert (search.factor.status == 0).all()
    search.memory.switched[:] = 0
    search.memory.switched[12] = 1
    slope[0, 12] = np.nan
    search.solve(slope, pinned, fresh=False)
    np.testing.assert_array_equal(search.factor.status, [13, 0])
    assert np.isinf(search.factor.logdet[0])
    np.testing.assert_array_equal(search.path[0], 0.0)
    assert search.path[1].all()


def test_an_unfinished_search_leaves_its_last_factor():
    """Its factor, pins included, inverts the negative Hessian on what is not pinned."""
    problem = random_problem(np.random.default_rng(3), 3, 60, 4)
    kept = search_modes(**problem, pin=PIN)
    before = kept.factor.flat.copy()
    part = search_modes(**problem, pin=PIN, finish=False)
    change = 1e-6 * np.random.default_rng(0).normal(size=problem["score"].shape)
    step = part.factor.solve(change)
    moved = dict(problem, score=problem["score"] + change, slope=part.slope)
    there = search_modes(**moved, pin=PIN, pinned=part.pinned, flips=1)
    np.testing.assert_allclose(there.path - kept.path, step, atol=1e-10)
    np.testing.assert_array_equal(kept.factor.flat, before)  # a finished one is the caller's
