"""First states of windows by an encoder that learns from the filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o
from plssm.inference import EKF, filtered_states
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.encoder_starts import EncoderStarts
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.observed_starts import spread_of

D = ps.dynamics


def turning():
    """A damped rotation that two of three channels see well, and data of three trials."""
    turn = 0.9 * torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    dynamics = D.LinearDynamics.from_parameters(A=turn, process_noise=[0.3, 0.3], h=[0.2, 0.0])
    seen = o.Gaussian.from_parameters(B=[[1.0, 0.0], [0.5, 1.0], [0.0, 0.2]], noise=[0.2] * 3)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    return model, model.simulate(700, trials=3, seed=0)


def moments(states, model):
    """The filter's run, and the moments of its states."""
    found = states.refresh(model)
    own = found.run.filtered_covariance
    return found, spread_of(found.run.filtered_mean, own, states.batch.time_mask)


@torch.no_grad()
def test_it_learns_what_the_filter_predicts():
    """Of a linear system with a short memory: the Kalman filter's, but for the encoder's error."""
    model, data = turning()
    batch = data.batch()
    states = FilteredStates(model, batch)
    found, spread = moments(states, model)
    encoder = EncoderStarts(model, batch, 2)
    first = encoder.learn(found, spread)
    for _ in range(4):
        last = encoder.learn(found, spread)
    assert last < first and encoder.times == 5
    told = encoder.starts(spread)
    want, own = found.run.predicted_mean[:, 20:], found.run.predicted_covariance[:, 20:]
    away = told.mean[:, 20:] - want
    assert float(away.square().mean() / (want - want.mean((0, 1))).square().mean()) < 0.02
    root = torch.linalg.cholesky(told.covariance[:, 20:])
    half = torch.linalg.solve_triangular(
        root, own + away[..., None] * away[..., None, :], upper=False
    )
    whole = torch.linalg.solve_triangular(root, half.mT, upper=False).diagonal(dim1=-2, dim2=-1)
    np.testing.assert_allclose(whole.mean((0, 1)), 1.0, atol=0.1)  # variances are what is missed
    torch.testing.assert_close(told.mean[:, 0], spread.mean.expand(3, 2))
    torch.testing.assert_close(told.covariance[0, 0], spread.covariance)


def test_it_reads_the_past_only():
    model, data = turning()
    batch = data.batch()
    found, spread = moments(FilteredStates(model, batch), model)
    encoder = EncoderStarts(model, batch, 2)
    encoder.learn(found, spread)
    before = encoder.starts(spread)
    batch.modalities["x"].y[0, 300] += 5.0
    encoder.features = encoder.encoder.features(model, batch)
    after = encoder.starts(spread)
    for one, two in zip(before, after, strict=True):
        moved = (one != two).flatten(2).any(-1)[0].nonzero()[:, 0]
        assert moved.min() == 301 and moved.max() == 317
    assert torch.equal(before.mean[1:], after.mean[1:])


def test_trials_that_have_not_settled_teach_nothing():
    model, data = turning()
    batch = data.batch()
    found, spread = moments(FilteredStates(model, batch), model)
    lost = found._replace(moved=torch.full_like(found.moved, torch.inf))
    encoder = EncoderStarts(model, batch, 2)
    before = {k: v.clone() for k, v in encoder.encoder.state_dict().items()}
    encoder.learn(lost, spread)
    assert encoder.times == 0
    assert all(torch.equal(v, before[k]) for k, v in encoder.encoder.state_dict().items())
    encoder.learn(found, spread)
    assert not all(torch.equal(v, before[k]) for k, v in encoder.encoder.state_dict().items())


def test_a_trial_that_ran_away_does_not_stretch_the_others(monkeypatch):
    model, data = turning()
    states = FilteredStates(model, data.batch(), start="encoder")
    found = states.refresh(model)
    mean = found.run.filtered_mean.clone()
    mean[0] = 1e10
    moved = found.moved.clone()
    moved[0] = torch.inf
    run = found.run._replace(filtered_mean=mean, predicted_mean=mean)
    monkeypatch.setattr(
        filtered_states, "innovations", lambda *a, **k: found._replace(run=run, moved=moved)
    )
    states.refresh(model)
    assert float(states.before.abs().max()) < 100


def test_windows_start_there():
    model, data = turning()
    states = FilteredStates(model, data.batch(), start="encoder")
    states.refresh(model)
    window = BatchWindows(states.batch, steps=10, context=5, after=0).cut(
        torch.tensor([0, 1]), torch.tensor([20, 33])
    )
    mean, covariance, known = states.first(window)
    assert bool(known.all())
    torch.testing.assert_close(mean[1], states.before[1, 28])
    torch.testing.assert_close(covariance[0], states.covariance[0, 15])
    other = FilteredStates(model, data.batch(), start="encoder")
    other.restore(states.state())
    for one, two in zip(other.first(window), (mean, covariance, known), strict=True):
        assert torch.equal(one, two)
    for both in (states, other):  # what is learned next is the same
        both.refresh(model)
    assert torch.equal(other.before, states.before)
    assert not torch.equal(other.first(window)[0], mean)


@pytest.mark.parametrize(
    "seen", [{"n": o.Poisson(4), "c": o.Categorical(3)}, {"b": o.BOLD(2, tr_seconds=2.0)}]
)
def test_trainings_of_any_observations_can_begin_there(seen):
    model = ps.StateSpaceModel(D.PLRNN(2), seen)
    data = model.simulate(60, trials=2, seed=0, dt=2.0)
    engine = EKF(steps=10, checks=2, window=15, warmup=3, state="encoder", start_iterations=2)
    fit = engine.fit(model, data, progress=False)
    assert np.isfinite(fit.history["log_likelihood"].to_numpy()).all()
    assert EKF(**engine.settings()) == engine


def test_trials_of_one_step_have_nothing_to_learn_from():
    model, _ = turning()
    data = model.simulate(1, trials=4, seed=0)
    fit = EKF(steps=8, checks=1, state="encoder", start="model").fit(model, data, progress=False)
    assert np.isfinite(fit.history["log_likelihood"]).all()
