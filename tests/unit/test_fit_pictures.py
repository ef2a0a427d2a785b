"""``fit.plot_...``: what is drawn is what the fit says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from plssm.data import Dataset
from plssm.dynamics import PLRNN, LinearDynamics, ShallowPLRNN
from plssm.errors import PlssmError
from plssm.fit import Fit
from plssm.inference import TeacherForcing
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian
from plssm.observations.counts.models import Poisson
from plssm.observations.labels.classes import Categorical
from plssm.plot import class_probabilities, prediction

A = np.array([[0.9, 0.2], [-0.2, 0.8]])
B = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 2.0]])


@pytest.fixture
def fit():
    dynamics = LinearDynamics.from_parameters(
        A=A, h=[0.1, 0.0], process_noise=[0.04, 0.09], initial_mean=[0.0, 0.0],
        initial_noise=[1.0, 1.0],
    )  # fmt: skip
    observation = Gaussian.from_parameters(B, noise=[0.01, 0.04, 0.02])
    return Fit(StateSpaceModel(dynamics, {"x": observation}))


@pytest.fixture
def data(fit):
    return fit.simulate(40, trials=3, seed=0, dt=0.5)


def line(axes, label):
    return next(a for a in axes.get_lines() if a.get_label() == label)


def test_latents(fit, data):
    figure = fit.plot_latents(data, 2, units=[1])
    mean = fit.posterior(data).mean[2, :, 1].numpy()
    x, y = line(figure.axes[0], "posterior mean").get_data()
    np.testing.assert_allclose(y, mean, atol=1e-12)
    np.testing.assert_allclose(x, 0.5 * np.arange(40))
    causal = fit.plot_latents(data, 2, units=[1], causal=True)
    drawn = line(causal.axes[0], "posterior mean").get_ydata()
    np.testing.assert_allclose(drawn, fit.posterior(data, causal=True).mean[2, :, 1], atol=1e-12)


def test_observed_is_the_one_step_prediction(fit, data):
    """Against the closed form: B (A m + h), variance B (A P A' + Q) B' + noise."""
    figure = fit.plot_observed(data, trial=1, samples=4000, level=0.9)
    filtered = fit.posterior(data, causal=True)
    m, p = filtered.mean[1, :-1].numpy(), filtered.covariance()[1, :-1].numpy()
    mean = (m @ A.T + [0.1, 0.0]) @ B.T
    spread = B @ (A @ p @ A.T + np.diag([0.04, 0.09])) @ B.T
    sd = np.sqrt(np.diagonal(spread, axis1=1, axis2=2) + [0.01, 0.04, 0.02])
    for c, axes in enumerate(figure.axes):
        x, y = line(axes, "predicted").get_data()
        np.testing.assert_allclose(x, 0.5 * np.arange(1, 40))
        assert np.abs(y - mean[:, c]).max() < 5 * sd[:, c].max() / np.sqrt(4000)
        np.testing.assert_array_equal(
            line(axes, "observed").get_ydata(), data.values("x")[1, 1:, c]
        )
        path = axes.collections[0].get_paths()[0].vertices
        width = [np.ptp(path[np.isclose(path[:, 0], t), 1]) for t in x]
        np.testing.assert_allclose(width, 2 * 1.6449 * sd[:, c], rtol=0.15)


def test_forecast_joins_past_and_truth(fit, data):
    past, truth = data.select(time=(0, 15)), data.select(time=(15, 20))
    figure = fit.plot_forecast(past, 10, trial=1, truth=truth, past=6, channels=[0, 2])
    values = data.values("x")[1]
    for axes, c in zip(figure.axes, (0, 2)):
        x, y = line(axes, "observed").get_data()
        np.testing.assert_allclose(x, 0.5 * np.arange(30, 40))
        np.testing.assert_array_equal(y, values[30:, c])
        before = axes.get_lines()[1]
        np.testing.assert_allclose(before.get_xdata(), 0.5 * np.arange(24, 30))
        np.testing.assert_array_equal(before.get_ydata(), values[24:30, c])
        median = line(axes, "median").get_ydata()
        made = fit.forecast(past.select(trials=[1]), 10, samples=400)["x"].samples[:, 0, :, c]
        np.testing.assert_allclose(median, np.median(made.numpy(), axis=0), atol=1e-12)


def test_free_run_is_a_simulation(fit, data):
    figure = fit.plot_free_run(data, trial=0, kind="series", discard=7, seed=3)
    made = fit.simulate(47, seed=3).values("x")[0][7:]
    for c, axes in enumerate(figure.axes):
        np.testing.assert_array_equal(line(axes, "simulation").get_ydata(), made[:, c])
        np.testing.assert_array_equal(line(axes, "data").get_ydata(), data.values("x")[0, :, c])


def test_a_free_run_that_leaves_the_scale_says_so(data):
    dynamics = PLRNN.from_parameters(
        A=[1.2, 1.2], W=np.zeros((2, 2)), h=[1.0, 1.0], process_noise=[0.01, 0.01]
    )
    wild = Fit(StateSpaceModel(dynamics, {"x": Gaussian.from_parameters(B, noise=[0.1] * 3)}))
    axes = wild.plot_free_run(data, kind="series").axes[0]
    values = data.values("x")[0, :, 0]
    assert "leaves this range" in axes.texts[0].get_text()
    assert axes.get_ylim()[1] < values.max() + np.ptp(values)


def test_convergence(fit):
    fit.history = pd.DataFrame({"iteration": [0, 1, 2], "evidence": [-9.0, -5.0, -4.0]})
    drawn = line(fit.plot_convergence().axes[0], "evidence").get_ydata()
    np.testing.assert_array_equal(drawn, [-9.0, -5.0, -4.0])


def test_pictures_of_a_training_by_teacher_forcing():
    """The training history is drawn, and attractors side by side in three dimensions."""
    truth = np.stack([np.sin(0.2 * np.arange(200) + k) for k in range(3)], axis=-1)
    seen = Dataset.from_arrays({"x": truth})
    model = StateSpaceModel(ShallowPLRNN(3, 4), {"x": Gaussian(3, readout="identity")})
    engine = TeacherForcing(steps=20, sequence=8, batch_size=4, checks=2, fit_noise=False)
    trained = engine.fit(model, seen, progress=False)
    curve = trained.plot_convergence().axes[0].get_lines()[0]
    np.testing.assert_array_equal(curve.get_xdata(), trained.history["step"])
    np.testing.assert_array_equal(curve.get_ydata(), trained.history["loss"])
    figure = trained.plot_free_run(seen, noise=False)
    assert [a.name for a in figure.axes] == ["3d", "3d"]
    simulated = trained.simulate(200, noise=False).values("x")[0]
    shown = [np.stack(a.get_lines()[0].get_data_3d(), axis=-1) for a in figure.axes]
    np.testing.assert_allclose(shown[0], truth)
    np.testing.assert_allclose(shown[1], simulated)


def test_own_clock_inputs_nuisance_and_ragged_trials():
    rng = np.random.default_rng(0)
    lengths = (30, 24)
    times = [np.arange(0, n - 1, 3) * 1.0 for n in lengths]
    data = Dataset.from_arrays(
        {"x": [rng.normal(size=(n, 2)) for n in lengths],
         "slow": [rng.normal(size=(len(t), 1)) for t in times]},
        times={"slow": times},
        inputs=[rng.normal(size=(n, 2)) for n in lengths],
        nuisance={"slow": [rng.normal(size=(len(t), 2)) for t in times]},
    )  # fmt: skip
    torch.manual_seed(0)
    slow = Gaussian(1, nuisance=2)
    fit = Fit(StateSpaceModel(PLRNN(2, 2), {"x": Gaussian(2), "slow": slow}))
    figure = fit.plot_observed(data, "slow", trial=1, samples=20)
    np.testing.assert_array_equal(line(figure.axes[0], "observed").get_xdata(), times[1][1:])
    figure = fit.plot_free_run(data, "slow", trial=1)
    assert len(line(figure.axes[0], "simulation").get_ydata()) == len(times[1])
    truth = data.select(trials=[0], time=(12, 24))
    past = data.select(trials=[0], time=(0, 12))
    figure = fit.plot_forecast(past, 9, "slow", truth=truth, samples=20)
    x, y = line(figure.axes[0], "observed").get_data()
    np.testing.assert_array_equal(x, [12.0, 15.0, 18.0])
    np.testing.assert_array_equal(y, data.values("slow")[0, 4:7, 0])


def test_refusals(fit, data):
    with pytest.raises(PlssmError, match="got modality 'y', wanted one of"):
        fit.plot_observed(data, "y")
    for draw in (fit.plot_latents, lambda d, t: fit.plot_free_run(d, trial=t)):
        with pytest.raises(PlssmError, match="trial 3"):
            draw(data, 3)
    with pytest.raises(PlssmError, match="wanted at least 2"):
        fit.plot_observed(data.select(time=(0, 0.5)))


@pytest.fixture
def mixed():
    dynamics = LinearDynamics.from_parameters(A=A, process_noise=[0.04, 0.09])
    parts = {
        "x": Gaussian.from_parameters(B, noise=[0.01, 0.04, 0.02]),
        "choice": Categorical.from_parameters(3 * np.eye(2), [0.2, 0.0]),
        "spikes": Poisson.from_parameters([[0.5, 0.5]], [0.3]),
    }
    fit = Fit(StateSpaceModel(dynamics, parts))
    return fit, fit.simulate(20, trials=2, seed=1, dt=0.5)


def strip(axes):
    """Probabilities [n, K] of a drawn strip."""
    return np.asarray(axes.collections[0].get_array()).reshape(-1, 20).T


def test_decoded_labels_are_a_strip_of_their_probabilities(mixed):
    fit, data = mixed
    figure = fit.plot_prediction(data, "choice", ["x"], trial=1, samples=50, seed=2)
    axes = figure.axes[0]
    made = fit.predict(data.select(trials=[1]), "choice", ["x"], samples=50, seed=2)
    np.testing.assert_allclose(strip(axes), made.probabilities[0].numpy(), atol=1e-12)
    x, y = line(axes, "observed").get_data()
    np.testing.assert_allclose(x, 0.5 * np.arange(20))
    np.testing.assert_array_equal(y, data.values("choice")[1, :, 0])
    assert axes.get_title(loc="left") == "choice from x"
    edges = axes.collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges, 0.5 * np.arange(21) - 0.25)


def test_labels_one_step_ahead_and_ahead_of_the_end(mixed):
    fit, data = mixed
    figure = fit.plot_observed(data, "choice", trial=0, samples=50)
    drawn = np.asarray(figure.axes[0].collections[0].get_array()).reshape(3, 19)
    np.testing.assert_allclose(drawn.sum(0), 1.0)
    figure = fit.plot_forecast(
        data.select(time=(0, 7.5)), 5, "choice", truth=data.select(time=(7.5, 10))
    )
    drawn = np.asarray(figure.axes[0].collections[0].get_array())
    made = fit.forecast(data.select(trials=[0], time=(0, 7.5)), 5, samples=400)["choice"]
    np.testing.assert_allclose(drawn.reshape(3, 5).T, made.probabilities[0].numpy(), atol=1e-12)
    np.testing.assert_array_equal(
        line(figure.axes[0], "observed").get_ydata(), data.values("choice")[0, 15:, 0]
    )


def test_counts_are_a_rate_with_its_band(mixed):
    fit, data = mixed
    figure = fit.plot_prediction(data, "spikes", trial=0, samples=50, level=0.8)
    made = fit.predict(data.select(trials=[0]), "spikes", samples=50)
    axes = figure.axes[0]
    np.testing.assert_allclose(line(axes, "predicted").get_ydata(), made.mean[0, :, 0])
    low, high = made.interval(0.8)
    path = axes.collections[0].get_paths()[0].vertices
    assert path[:, 1].min() == float(low.min())
    assert path[:, 1].max() == float(high.max())
    assert axes.get_title(loc="left") == "spikes from x, choice"
    hidden = data.hold_out("spikes")
    again = fit.plot_prediction(hidden, "spikes", trial=0, samples=50)
    np.testing.assert_array_equal(
        line(again.axes[0], "observed").get_ydata(), data.values("spikes")[0, :, 0]
    )


def test_a_prediction_is_drawn_with_and_without_truth(mixed):
    fit, data = mixed
    made = fit.predict(data, "x", ["spikes"], samples=20)
    figure = prediction(made, trial=1, channels=[2])
    drawn = line(figure.axes[0], "predicted").get_ydata()
    np.testing.assert_allclose(drawn, made.mean[1, :, 2])
    assert "observed" not in [a.get_label() for a in figure.axes[0].get_lines()]
    figure = prediction(made, data.values("x"), trial=1)
    assert len(figure.axes) == 3
    with pytest.raises(PlssmError, match="got trial 2, wanted 0 to 1"):
        prediction(made, trial=2)
    with pytest.raises(PlssmError, match="got 19 samples of truth, wanted 20"):
        prediction(made, data.values("x")[:, :-1])


def test_strips_that_do_not_fit_are_refused():
    p = np.full((4, 3), 1 / 3)
    with pytest.raises(PlssmError, match="got probabilities"):
        class_probabilities(np.arange(5), p)
    with pytest.raises(PlssmError, match="got observed"):
        class_probabilities(np.arange(4), p, np.zeros((4, 2)))
    figure = class_probabilities([2.0], p[:1], [1.0], classes=["a", "b", "c"], names=["choice"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert figure.axes[0].get_ylabel() == "choice"
