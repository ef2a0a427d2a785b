"""Trainings by likelihood that keep what a map does by itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference import EKF
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.kept_dynamics import KeptDynamics

D = ps.dynamics


def tents(slope=1.7):
    """Two independent maps z' = 1 - slope |z|, chaotic for slopes above 1, seen with noise."""
    dynamics = D.ShallowPLRNN.from_parameters(
        A=[slope] * 2, W1=-2 * slope * np.eye(2), W2=np.eye(2), h1=[1.0] * 2, clipped=False,
        process_noise=1e-5, initial_noise=0.1,
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(
        np.array([[1.0, 0.2], [0.0, 1.0], [0.5, -0.5]]), noise=0.01
    )
    return ps.StateSpaceModel(dynamics, {"x": seen})


def resting(slope=0.5):
    """The same with a fixed point that every orbit ends in."""
    return tents(slope)


@pytest.fixture(scope="module")
def recording():
    return tents().simulate(1500, seed=1)


def kept(model, data, **options):
    options = {"known": True, "select": "auto"} | options
    return KeptDynamics(model, data.batch(), **options)


def seen_by(guard, model, data):
    states = FilteredStates(model, data.batch())
    states.refresh(model)
    return guard.measures(model, states)


def test_the_limit_is_the_starts_score_and_slack(recording):
    guard = kept(tents(), recording)
    start = seen_by(guard, tents(), recording)
    assert start["kept"] and start["free_score"] == start["d_stsp"] + start["d_h"]
    assert guard.limit == pytest.approx(1.25 * start["free_score"] + 0.05)
    lost = seen_by(guard, resting(), recording)
    assert not lost["kept"] and lost["free_score"] > 3.0
    assert guard.limit == pytest.approx(1.25 * start["free_score"] + 0.05)
    again = kept(tents(), recording)
    again.restore(guard.state())
    assert again.limit == guard.limit and again.on


def test_runs_are_compared_with_filtered_states(recording):
    """Once more with numpy's principal axes and runs of the plain map."""
    model = tents()
    score = seen_by(kept(model, recording), model, recording)
    states = FilteredStates(model, recording.batch())
    states.refresh(model)
    path = states.point[0]
    start = path[np.linspace(0, 1499, 16).astype(int)]
    runs = model.dynamics.rollout(start, 5 * 2500, noise=False)[:, -2500:].detach().numpy()
    away = path.numpy() - path.numpy().mean(0)
    size, axes = np.linalg.svd(away, full_matrices=False)[1:]
    turn = axes.T * (len(away) ** 0.5 / size)
    truth, runs = away @ turn, (runs - path.numpy().mean(0)) @ turn
    given = {"samples": 500, "floor": False}
    alone = ps.metrics.state_space_divergence(truth=[truth], pred=list(runs), **given)
    assert abs(score["d_stsp"] - float(alone)) < 0.1
    truth = truth + np.random.default_rng(0).normal(size=truth.shape)
    noisy = ps.metrics.state_space_divergence(truth=[truth], pred=list(runs), **given)
    assert float(noisy) > score["d_stsp"] + 0.3


def test_auto_protects_what_there_is_to_protect(recording):
    assert not kept(tents(), recording, known=False).on
    assert not kept(tents(), recording, select="likelihood").on
    assert kept(tents(), recording, known=False, select="free_runs").on
    short = tents().simulate(100, trials=3, seed=0)
    guard = kept(tents(), short)
    assert seen_by(guard, tents(), short) == {} and not guard.on
    guard = kept(resting(), recording)  # nothing moves at the start
    assert seen_by(guard, resting(), recording) == {} and not guard.on
    linear = ps.StateSpaceModel(D.LinearDynamics(2), {"x": ps.observations.Gaussian(3)})
    assert not kept(linear, recording).on
    driven = D.PLRNN(2, inputs=1)
    model = ps.StateSpaceModel(driven, {"x": ps.observations.Gaussian(3)})
    assert not kept(model, model.simulate(5, inputs=np.zeros((5, 1)))).on


def test_a_start_is_kept_where_all_that_follows_loses_its_dynamics(recording):
    """Large steps from too much noise: the likelihood doubles, and the map is another."""
    options = {"steps": 60, "checks": 6, "learning_rate": (0.1, 0.1), "seed": 2}
    start = tents()
    start.dynamics.noise.variance = 0.1
    fit = EKF(**options).fit(start, recording, progress=False)
    rows = fit.history
    assert (rows["kept"] == (rows["free_score"] <= 1.25 * rows["free_score"][0] + 0.05)).all()
    assert rows["kept"].sum() == 1 and np.isinf(rows["score"][1:]).all()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(fit.model.state_dict()[name], value)
    free = EKF(**options, select="likelihood").fit(start, recording, progress=False)
    assert "free_score" not in free.history
    np.testing.assert_allclose(free.history["log_likelihood"], rows["log_likelihood"])
    assert free.history["score"].min() < rows["score"].min() - 0.3


def test_the_best_likelihood_among_kept_checks_is_returned(recording, monkeypatch):
    measures = KeptDynamics.measures
    verdicts = iter([True, False, True, True, False])

    def scripted(self, model, states):
        return measures(self, model, states) | {"kept": next(verdicts)}

    monkeypatch.setattr(KeptDynamics, "measures", scripted)
    start = tents()
    start.dynamics.noise.variance = 1e-2
    rates = {"learning_rate": (3e-3, 3e-3)}
    fit = EKF(steps=20, checks=4, **rates).fit(start, recording, progress=False)
    likelihood = fit.history["log_likelihood"]
    best = likelihood[[0, 2, 3]].max()
    assert likelihood.max() > best > likelihood[0]
    states = FilteredStates(fit.model, recording.batch())
    value = float(states.refresh(fit.model).increment.sum()) / 1500
    assert value == pytest.approx(best, abs=1e-9)


def test_settings(recording):
    assert EKF().select == "auto"
    with pytest.raises(PlssmError, match="select"):
        EKF(select="chaos")
    engine = EKF(steps=2, checks=1, select="free_runs")
    assert EKF(**engine.settings()) == engine
    data = tents().simulate(60, trials=2, seed=0)
    rows = engine.fit(copy.deepcopy(tents()), data, progress=False).history
    assert {"d_stsp", "d_h", "free_score", "kept"} <= set(rows)


def test_auto_leaves_comparisons_and_parameter_estimates_alone(recording):
    """Open loops lose chaos, which comparisons are to show; "model" says where to start, only."""
    loop = ps.inference.OpenLoop(horizon=5)
    for options in ({"objective": loop}, {"start": "model"}):
        rows = EKF(steps=1, checks=1, **options).fit(tents(), recording, progress=False).history
        assert "free_score" not in rows
    rows = EKF(steps=1, checks=1).fit(tents(), recording, progress=False).history
    assert "free_score" in rows
