"""Free runs beside data: the measure by which trainings are checked."""

from __future__ import annotations

import numpy as np
import torch

import plssm as ps
from plssm.inference.forced_readouts import teacher_signal
from plssm.inference.free_runs import COLLAPSED, EACH, ENOUGH, MANY, FreeRuns


def tent_map(slope=1.7, dim=2):
    """Independent maps z' = 1 - slope |z|, chaotic for slopes above 1."""
    return ps.dynamics.ShallowPLRNN.from_parameters(
        A=[slope] * dim, W1=-2 * slope * np.eye(dim), W2=np.eye(dim), h1=[1.0] * dim, clipped=False
    )  # 1 + slope z - 2 slope max(0, z)


def free_runs(values, dynamics, inputs=None):
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(2, readout="identity")})
    batch = ps.Dataset.from_arrays({"x": values}, inputs=inputs).batch()
    return FreeRuns(teacher_signal(model, batch), batch, inputs=inputs is not None)


def orbit(dynamics, steps, start=(0.1, -0.3)):
    with torch.no_grad():
        return dynamics.rollout(torch.tensor(start).double(), steps, noise=False).numpy()


def test_short_trials_are_compared_with_runs_from_their_first_sample():
    """The true map gives the data themselves, shifted by the step that leads to them."""
    dynamics = tent_map()
    values = [orbit(dynamics, n, s) for n, s in ((40, (0.1, 0.2)), (30, (-0.2, 0.3)))]
    free = free_runs(values, dynamics)
    assert not free.long
    runs = free.runs(dynamics, lambda states: states)
    assert [len(r) for r in runs] == [40, 30]
    for run, truth in zip(runs, free.truth, strict=True):
        np.testing.assert_allclose(run[:20], truth[1:21], atol=1e-6)


def test_long_recordings_are_compared_with_runs_from_all_over():
    dynamics = tent_map()
    free = free_runs(orbit(dynamics, 5000), dynamics)
    assert free.long
    runs = free.runs(dynamics, lambda states: states)
    assert len(runs) == MANY
    assert all(len(r) == min(max(5000, ENOUGH // MANY), EACH) for r in runs)
    assert len({int(t) for _, t in free.places}) == MANY
    good = free.measures(dynamics, lambda states: states)
    assert good["score"] == good["d_stsp"] + good["d_h"]
    other = free.measures(tent_map(1.2), lambda states: states)
    assert other["score"] > good["score"] + 0.1


def test_a_run_that_dies_late_costs_three():
    """A map with an attractor for positive first states, and a fixed point for negative ones."""
    values = np.random.default_rng(0).uniform(0.2, 1.0, (3000, 2))
    free = free_runs(values, tent_map())

    class TwoBasins(ps.dynamics.LatentDynamics):
        def step(self, z, s=None):
            moving = 3.9 * z * (1 - z)  # the logistic map
            return torch.where(z[..., :1] > 0, moving, 0.5 * z)

    dynamics = TwoBasins(2)
    alive = free.measures(dynamics, lambda states: states)
    assert alive["score"] == alive["d_stsp"] + alive["d_h"]

    def one_dies(states):
        states = states.clone()
        states[3] = -1.0
        return states

    dead = free.measures(dynamics, one_dies)
    assert dead["score"] == dead["d_stsp"] + dead["d_h"] + 3.0
    assert free.runs(dynamics, one_dies)[3][-100:].std() < COLLAPSED


class LateFall(ps.dynamics.LatentDynamics):
    """A chaotic map of the first state until the second one, a clock, has run out."""

    def step(self, z, s=None):
        moving, clock = 3.9 * z[..., :1] * (1 - z[..., :1]), z[..., 1:]
        late = clock < 1e-6
        return torch.cat([torch.where(late, 0.7436, moving), 0.998 * clock], dim=-1)


def test_runs_that_fall_late_are_found_out():
    """The runs look right for 6900 steps, and are compared after four times 5000."""
    values = np.random.default_rng(0).uniform(0.2, 1.0, (5000, 2))
    free = free_runs(values, tent_map())
    assert free.settle * free.steps > 6900 > free.steps
    found = free.measures(LateFall(2), lambda states: states)
    assert found["score"] == found["d_stsp"] + found["d_h"] + 3.0


class Rotation(ps.dynamics.LatentDynamics):
    """A rotation whose radius shrinks by r a step."""

    def __init__(self, r):
        super().__init__(2)
        c, s = r * np.cos(0.1), r * np.sin(0.1)
        self.matrix = torch.tensor([[c, -s], [s, c]])

    def step(self, z, s=None):
        return z @ self.matrix.T.to(z)


def test_data_that_come_to_rest_are_compared_with_runs_that_have_not_settled():
    """Otherwise every shrinking rotation would look the same."""
    starts = [(np.cos(a), np.sin(a)) for a in (0.0, 2.0, 4.0)]
    free = free_runs([orbit(Rotation(0.998), 1500, start) for start in starts], tent_map())
    assert free.long and free.settle == 0
    true, wrong = (free.measures(Rotation(r), lambda z: z)["d_stsp"] for r in (0.998, 0.98))
    assert true < 3 < wrong


def test_data_that_come_to_rest_excuse_runs_that_do():
    values = orbit(ps.dynamics.PLRNN.from_parameters(A=[0.9, 0.8], W=np.zeros((2, 2))), 1500)
    dynamics = ps.dynamics.PLRNN.from_parameters(A=[0.9, 0.8], W=np.zeros((2, 2)))
    free = free_runs(values, dynamics)
    assert free.long
    found = free.measures(dynamics, lambda states: states)
    assert found["score"] == found["d_stsp"] + found["d_h"]


def test_divergence_is_infinite_and_missing_samples_are_left_out():
    dynamics = tent_map()
    values = orbit(dynamics, 1200)
    values[100:200, 0] = np.nan
    free = free_runs(values, dynamics)
    runs = free.runs(dynamics, lambda states: states)
    assert len(free.truth[0]) == 1100
    assert [len(r) for r in free.observed(runs)] == [1100] * MANY
    wild = ps.dynamics.PLRNN.from_parameters(A=[2.0, 2.0], W=np.zeros((2, 2)))
    assert free.measures(wild, lambda states: states)["score"] == np.inf


def test_driven_trials_are_run_with_their_inputs():
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=[0.5, 0.5], W=np.zeros((2, 2)), C=[[1.0], [-1.0]]
    )
    s = np.random.default_rng(0).standard_normal((60, 1))
    values = np.zeros((60, 2))
    for t in range(1, 60):
        values[t] = 0.5 * values[t - 1] + np.array([1.0, -1.0]) * s[t]
    free = free_runs(values, dynamics, inputs=s)
    run = free.runs(dynamics, lambda states: states)[0]
    np.testing.assert_allclose(run[:-1], free.truth[0][1:], atol=1e-10)


def test_nothing_to_compare_with_gives_no_score():
    dynamics = tent_map()
    values = np.full((20, 2), np.nan)  # no sample is complete
    values[::2, 0], values[1::2, 1] = np.arange(10), np.arange(10)
    free = free_runs(values, dynamics)
    assert not free.comparable
    assert np.isnan(free.measures(dynamics, lambda states: states)["score"])
