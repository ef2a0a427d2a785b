"""First states of windows by the observations before them, without the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o
from plssm.inference import EKF
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.observed_starts import Spread, observed_starts, spread_of
from plssm.inference.state_smoother import joined_states

D = ps.dynamics


def gaussian(steps=(9, 6, 1), gaps=True):
    """A model of two states and three channels, and data with gaps."""
    model = ps.StateSpaceModel(D.PLRNN(2), {"x": o.Gaussian(3)})
    rng = np.random.default_rng(0)
    with torch.no_grad():
        model.observations["x"].weight.copy_(torch.from_numpy(rng.normal(size=(3, 2))))
        model.observations["x"].bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    values = [rng.normal(size=(n, 3)) for n in steps]
    for y in values if gaps else []:
        y[rng.random(y.shape) < 0.3] = np.nan
    return model, ps.Dataset.from_arrays({"x": values})


def test_first_states_are_the_conditional_ones_of_a_process_with_these_moments():
    """The joint Gaussian of all states and data of a trial, written out and conditioned."""
    model, data = gaussian()
    batch = data.batch()
    mean, root = np.array([0.5, -1.0]), np.array([[0.9, 0.0], [0.4, 0.7]])
    covariance, share = root @ root.T, 0.8
    spread = Spread(torch.from_numpy(mean), torch.from_numpy(covariance), share)
    found = observed_starts(model, batch, joined_states(model, data.dt), spread)
    seen = model.observations["x"]
    weight, bias = seen.weight.detach().numpy(), seen.bias.detach().numpy()
    noise = seen.noise.detach().numpy()
    for b, length in enumerate(batch.length.tolist()):
        apart = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        states = np.kron(share**apart, covariance)
        wide = np.kron(np.eye(length), weight)
        y = data.values("x")[b][:length].ravel()
        channels = wide @ states @ wide.T + np.diag(np.tile(noise, length))
        middle = np.tile(weight @ mean + bias, length)
        for t in range(length):
            known = np.flatnonzero(np.isfinite(y[: 3 * t]))
            cross = (wide @ states)[known][:, 2 * t : 2 * t + 2]
            gain = np.linalg.solve(channels[np.ix_(known, known)], cross).T
            want = mean + gain @ (y - middle)[known]
            np.testing.assert_allclose(found.mean[b, t], want, atol=1e-10)
            want = covariance - gain @ cross
            np.testing.assert_allclose(found.covariance[b, t], want, atol=1e-10)


def test_moments_of_states_are_those_of_the_process():
    """Of an autoregressive process whose moments are known, seen with an error."""
    rng = np.random.default_rng(1)
    root, share = np.array([[1.0, 0.0], [0.5, 0.5]]), 0.7
    states = np.zeros((2, 100_000, 2))
    for t in range(1, states.shape[1]):
        new = rng.standard_normal((2, 2)) @ root.T
        states[:, t] = share * states[:, t - 1] + (1 - share**2) ** 0.5 * new
    inside = torch.ones(2, 100_000, dtype=torch.bool)
    inside[1, 60_000:] = False
    path = torch.from_numpy(states + [2.0, 0.0])
    path[~inside] = 1e6  # beyond the end
    extra = 0.3 * torch.eye(2, dtype=path.dtype)
    found = spread_of(path, extra.expand(*path.shape, 2), inside)
    np.testing.assert_allclose(found.mean, [2.0, 0.0], atol=0.03)
    np.testing.assert_allclose(found.covariance, root @ root.T + extra.numpy(), atol=0.04)
    assert abs(found.correlation - share) < 0.01


def test_windows_start_there():
    model, data = gaussian(steps=(60, 40), gaps=False)
    batch = data.batch()
    states = FilteredStates(model, batch, start="observed")
    states.refresh(model)
    window = BatchWindows(batch, steps=10, context=5, after=0).cut(
        torch.tensor([0, 1]), torch.tensor([20, 33])
    )
    mean, covariance, known = states.first(window)
    assert bool(known.all()) and covariance.shape == (2, 2, 2)
    torch.testing.assert_close(mean[1], states.before[1, 28])
    torch.testing.assert_close(covariance[0], states.covariance[0, 15])
    changed = batch.modalities["x"].y.clone()
    batch.modalities["x"].y[0, 15:] += 3.0  # what comes later is not asked
    moments = spread_of(states.point, torch.zeros(*states.point.shape, 2), batch.time_mask)
    later = observed_starts(model, batch, states.joined, moments)
    batch.modalities["x"].y.copy_(changed)
    before = observed_starts(model, batch, states.joined, moments)
    torch.testing.assert_close(later.mean[0, :16], before.mean[0, :16], rtol=0, atol=1e-12)
    assert not torch.allclose(later.mean[0, 16], before.mean[0, 16])


@pytest.mark.parametrize(
    "seen", [{"n": o.Poisson(4), "c": o.Categorical(3)}, {"b": o.BOLD(2, tr_seconds=2.0)}]
)
def test_trainings_of_any_observations_can_begin_there(seen):
    model = ps.StateSpaceModel(D.PLRNN(2), seen)
    data = model.simulate(60, trials=2, seed=0, dt=2.0)
    engine = EKF(steps=10, checks=2, window=15, warmup=3, state="observed", start_iterations=2)
    fit = engine.fit(model, data, progress=False)
    likelihood = fit.history["log_likelihood"].to_numpy()
    assert np.isfinite(likelihood).all()
    assert EKF(**engine.settings()) == engine
