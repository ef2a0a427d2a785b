"""Pictures: what is drawn is the data, labelled, without global state."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import norm

from plssm import plot
from plssm.errors import PlssmError
from plssm.metrics import power_spectrum_distance


class Band:
    """A posterior with unit variance, two trials of different lengths."""

    def __init__(self, dim=3):
        rng = np.random.default_rng(0)
        self.mean = torch.tensor(rng.standard_normal((2, 30, dim)))
        self.mean[1, 20:] = torch.nan
        self.length = torch.tensor([30, 20])

    def interval(self, level):
        half = norm.ppf(0.5 + level / 2)
        return self.mean - half, self.mean + half


def line(axes, label):
    found = [artist for artist in axes.get_lines() if artist.get_label() == label]
    assert len(found) == 1, label
    return found[0]


def edges(axes, k=0):
    """Lower and upper edge of the k-th band at its times, as drawn."""
    path = axes.collections[k].get_paths()[0].vertices
    times = np.unique(path[:, 0])
    low = [path[path[:, 0] == t, 1].min() for t in times]
    high = [path[path[:, 0] == t, 1].max() for t in times]
    return times, np.array(low), np.array(high)


def drawn(figure):
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    return figure


@pytest.mark.parametrize("trial", [0, 1])
def test_latents_draw_mean_band_and_truth(trial):
    posterior, truth = Band(), np.random.default_rng(1).standard_normal((30, 3))
    figure = drawn(plot.latents(posterior, trial, level=0.9, dt=0.5, truth=truth))
    steps = int(posterior.length[trial])
    assert len(figure.axes) == 3
    for i, axes in enumerate(figure.axes):
        mean = posterior.mean[trial, :steps, i].numpy()
        x, y = line(axes, "posterior mean").get_data()
        np.testing.assert_array_equal(x, 0.5 * np.arange(steps))
        np.testing.assert_array_equal(y, mean)
        np.testing.assert_array_equal(line(axes, "truth").get_ydata(), truth[:steps, i])
        times, low, high = edges(axes)
        np.testing.assert_allclose(times, 0.5 * np.arange(steps))
        np.testing.assert_allclose(low, mean - 1.6448536, atol=1e-6)
        np.testing.assert_allclose(high, mean + 1.6448536, atol=1e-6)
        assert axes.get_ylabel() == f"z$_{{{i + 1}}}$"
    assert figure.axes[-1].get_xlabel() == "time (s)"
    assert "90% band" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_latents_choose_units_and_refuse_what_is_not_there():
    assert len(plot.latents(Band(12)).axes) == 8
    figure = plot.latents(Band(12), units=[11, 2])
    assert [a.get_ylabel() for a in figure.axes] == ["z$_{12}$", "z$_{3}$"]
    assert figure.axes[-1].get_xlabel() == "latent step"
    with pytest.raises(PlssmError, match="trial 2"):
        plot.latents(Band(), 2)
    with pytest.raises(PlssmError, match="wanted some of 0 to 2"):
        plot.latents(Band(), units=[3])


def test_observed_vs_predicted():
    rng = np.random.default_rng(2)
    times = 0.1 * np.arange(50)
    observed, predicted = rng.standard_normal((2, 50, 2))
    observed[10:20, 1] = np.nan
    figure = drawn(
        plot.observed_vs_predicted(
            times,
            observed,
            torch.tensor(predicted),
            predicted - 1,
            predicted + 2,
            names=["left", "right"],
            unit="mV",
        )
    )
    for i, axes in enumerate(figure.axes):
        np.testing.assert_array_equal(line(axes, "observed").get_ydata(), observed[:, i])
        np.testing.assert_array_equal(line(axes, "predicted").get_ydata(), predicted[:, i])
        _, low, high = edges(axes)
        np.testing.assert_allclose(low, predicted[:, i] - 1)
        np.testing.assert_allclose(high, predicted[:, i] + 2)
    assert [a.get_ylabel() for a in figure.axes] == ["left (mV)", "right (mV)"]
    plain = plot.observed_vs_predicted(times, observed[:, 0], predicted[:, 0])
    assert len(plain.axes[0].collections) == 0
    with pytest.raises(PlssmError, match="both edges"):
        plot.observed_vs_predicted(times, observed, predicted, low=predicted)
    with pytest.raises(PlssmError, match="wanted one shape"):
        plot.observed_vs_predicted(times, observed, predicted[:, :1])


def test_forecast_fan_draws_quantiles():
    rng = np.random.default_rng(3)
    times, samples = np.arange(30, 50) * 0.1, rng.standard_normal((400, 2, 20, 1))
    past, observed = rng.standard_normal((30, 1)), rng.standard_normal((20, 1))
    figure = drawn(
        plot.forecast_fan(
            times,
            torch.tensor(samples),
            trial=1,
            observed=observed,
            past_times=0.1 * np.arange(30),
            past=past,
            levels=(0.5, 0.9),
        )
    )
    (axes,) = figure.axes
    draws = samples[:, 1, :, 0]
    for k, level in enumerate((0.9, 0.5)):  # the widest lies below
        x, low, high = edges(axes, k)
        np.testing.assert_allclose(x, times)
        np.testing.assert_allclose(low, np.quantile(draws, 0.5 - level / 2, axis=0))
        np.testing.assert_allclose(high, np.quantile(draws, 0.5 + level / 2, axis=0))
    shades = [sum(to_rgb(c.get_facecolor()[0][:3])) for c in axes.collections]
    assert shades[0] > shades[1]
    np.testing.assert_allclose(line(axes, "median").get_ydata(), np.median(draws, axis=0))
    np.testing.assert_array_equal(line(axes, "observed").get_ydata(), observed[:, 0])
    assert any(np.array_equal(artist.get_ydata(), past[:, 0]) for artist in axes.get_lines())
    with pytest.raises(PlssmError, match="got samples"):
        plot.forecast_fan(times, samples[:, 0, :5])


@pytest.mark.parametrize(("channels", "panels"), [(1, 1), (2, 2), (3, 2), (6, 2)])
def test_free_run_chooses_the_picture(channels, panels):
    rng = np.random.default_rng(4)
    truth, pred = rng.standard_normal((80, channels)), 9 * rng.standard_normal((60, channels))
    figure = drawn(plot.free_run(truth=truth, pred=pred, dt=0.1))
    assert len(figure.axes) == panels
    if channels == 1:
        np.testing.assert_array_equal(line(figure.axes[0], "data").get_ydata(), truth[:, 0])
        x, y = line(figure.axes[0], "simulation").get_data()
        np.testing.assert_allclose(x, 0.1 * np.arange(60))
        np.testing.assert_array_equal(y, pred[:, 0])
        return
    data, simulation = figure.axes
    assert data.get_xlim() == simulation.get_xlim()  # one scale: the data's
    size = min(channels, 3)
    for axes, label, path in ((data, "data", truth), (simulation, "simulation", pred)):
        artist = line(axes, label)
        got = artist.get_data_3d() if size == 3 else artist.get_data()
        np.testing.assert_array_equal(np.stack([np.asarray(g) for g in got], 1), path[:, :size])


def test_free_run_shows_a_collapsed_simulation():
    truth = np.random.default_rng(5).standard_normal((80, 2))
    figure = plot.free_run(truth=truth, pred=np.full((60, 2), 0.2))
    x, y = line(figure.axes[1], "last point").get_data()
    assert (x[0], y[0]) == (0.2, 0.2)


def test_free_run_series_and_refusals():
    truth = np.random.default_rng(6).standard_normal((80, 3))
    figure = plot.free_run(truth=truth, pred=truth, kind="series", channels=[2, 0])
    np.testing.assert_array_equal(line(figure.axes[0], "data").get_ydata(), truth[:, 2])
    for change, message in (
        ({"pred": truth[:, :2]}, "channels in pred"),
        ({"kind": "film"}, "got kind"),
        ({"kind": "3d", "channels": [0, 1]}, "needs 3 channels"),
        ({"truth": truth[:0]}, "got shape"),
    ):
        with pytest.raises(PlssmError, match=message):
            plot.free_run(**({"truth": truth, "pred": truth} | change))


def history(restarts=1):
    rows = pd.DataFrame(
        {
            "stage": ["linear"] * 3 + ["free"] * 5,
            "iteration": range(8),
            "evidence": np.linspace(-900, -100, 8),
            "joint": np.linspace(-800, -150, 8),
        }
    )
    return pd.concat([rows.assign(restart=k, evidence=rows.evidence - k) for k in range(restarts)])


def test_convergence_draws_evidence_joint_and_stages():
    figure = drawn(plot.convergence(history().drop(columns="restart")))
    (axes,) = figure.axes
    x, y = line(axes, "evidence").get_data()
    np.testing.assert_array_equal(x, np.arange(1, 9))
    np.testing.assert_array_equal(y, np.linspace(-900, -100, 8))
    np.testing.assert_array_equal(line(axes, "joint").get_ydata(), np.linspace(-800, -150, 8))
    assert [t.get_text() for t in axes.texts] == ["linear", "free"]
    borders = [a.get_xdata()[0] for a in axes.get_lines() if len(set(a.get_xdata())) == 1]
    assert borders == [3.5]
    assert axes.get_ylabel() == "nats"


def test_convergence_of_restarts_and_of_little():
    rows = history(3)
    rows["selected"] = rows["restart"] == 1
    (axes,) = plot.convergence(rows).axes
    curves = [a for a in axes.get_lines() if len(a.get_xdata()) == 8]
    assert len(curves) == 6
    np.testing.assert_array_equal(line(axes, "evidence").get_ydata()[0], -901)
    assert [a.get_alpha() for a in curves] == [0.25, 0.25, 1.0, 1.0, 0.25, 0.25]
    only = plot.convergence(pd.DataFrame({"evidence": [-3.0]}))
    assert drawn(only).axes[0].get_ylabel() == "log evidence (nats)"
    with pytest.raises(PlssmError, match="evidence"):
        plot.convergence(pd.DataFrame({"loss": [1.0]}))
    with pytest.raises(PlssmError, match="0 rows"):
        plot.convergence(pd.DataFrame({"evidence": []}))


def training_history(restarts=1):
    rows = pd.DataFrame(
        {
            "step": [0, 100, 200, 300],
            "loss": [np.nan, 1.0, 0.1, 0.01],
            "score": [np.inf, 5.0, 2.0, 3.0],
            "d_stsp": [np.inf, 4.5, 1.9, 2.8],
            "d_h": [1.0, 0.5, 0.1, 0.2],
            "learning_rate": 0.1,
        }
    )
    found = [rows.assign(restart=k, d_h=rows.d_h + k) for k in range(restarts)]
    return pd.concat(found, ignore_index=True)


def test_convergence_of_a_training_marks_the_check_that_is_kept():
    figure = drawn(plot.convergence(training_history().assign(selected=True)))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "$D_{stsp}$ (nats)", "$D_H$", "score"]
    for axes, value in zip(figure.axes, (0.1, 1.9, 0.1, 2.0), strict=True):
        (x,), (y,) = line(axes, "kept").get_data()
        assert (x, y) == (200, value)
    curve = figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(curve.get_xdata(), [0, 100, 200, 300])
    np.testing.assert_array_equal(curve.get_ydata(), [np.nan, 1.0, 0.1, 0.01])
    assert [a.get_yscale() for a in figure.axes] == ["log", "linear", "linear", "linear"]
    crosses = [[a for a in axes.get_lines() if a.get_marker() == "x"] for axes in figure.axes]
    assert [len(c) for c in crosses] == [0, 1, 0, 1] and crosses[1][0].get_xdata() == [0]
    assert figure.axes[-1].get_xlabel() == "step"


def test_convergence_of_variational_inference_draws_the_bound_once():
    rows = training_history().assign(score=[3.001, 3.0, 2.999, 2.998])
    rows = rows.drop(columns=["d_stsp", "d_h"]).assign(elbo=-rows["score"])
    axes = drawn(plot.convergence(rows)).axes
    assert [a.get_ylabel() for a in axes] == ["loss", "bound\n(nats per step)"]
    assert axes[1].yaxis.get_major_formatter().get_useOffset() is False


def test_convergence_of_a_training_with_restarts_and_with_little():
    rows = training_history(3)
    rows["selected"] = rows["restart"] == 1
    spectra = plot.convergence(rows).axes[2]
    curves = [a for a in spectra.get_lines() if len(a.get_xdata()) == 4]
    assert [a.get_alpha() for a in curves] == [0.25, 1.0, 0.25]
    np.testing.assert_array_equal(line(spectra, "selected").get_ydata(), [2.0, 1.5, 1.1, 1.2])
    assert line(spectra, "kept").get_data() == ([200], [1.1])
    only = plot.convergence(pd.DataFrame({"step": [0], "score": [np.inf]}))
    assert [a.get_ylabel() for a in drawn(only).axes] == ["score"]
    nothing = pd.DataFrame({"restart": [0], "selected": [True]})
    with pytest.raises(PlssmError, match="step and score"):
        plot.convergence(nothing)


def test_power_spectrum_peaks_where_the_rhythm_is():
    rng = np.random.default_rng(7)
    t = np.arange(1000) * 0.01
    truth = np.sin(2 * np.pi * 8 * t)[:, None] + 0.1 * rng.standard_normal((1000, 2))
    pred = np.sin(2 * np.pi * 20 * t)[:, None] + 0.1 * rng.standard_normal((1000, 2))
    figure = drawn(plot.power_spectrum(truth=truth, pred=pred, dt=0.01, smoothing=2))
    score = power_spectrum_distance(truth=truth, pred=pred, smoothing=2)
    for i, axes in enumerate(figure.axes):
        for label, rhythm in (("data", 8), ("simulation", 20)):
            x, y = line(axes, label).get_data()
            assert x[np.argmax(y)] == pytest.approx(rhythm, abs=0.2)
        assert f"{score.per_dimension[i]:.3f}" in axes.texts[0].get_text()
    assert figure.axes[-1].get_xlabel() == "frequency (Hz)"


def test_given_axes_are_used_and_nothing_global_is_touched():
    figure = Figure()
    axes = figure.subplots(3, 1)
    assert plot.latents(Band(), ax=axes) is figure
    assert len(axes[0].get_lines()) == 1
    single = Figure().subplots()
    assert plot.convergence(history(), ax=single) is single.figure
    with pytest.raises(PlssmError, match="got 1 axes for 3 panels"):
        plot.latents(Band(), ax=single)
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_a_picture_shows_itself_in_a_notebook_and_saves(tmp_path):
    figure = plot.latents(Band())
    assert figure._repr_png_().startswith(b"\x89PNG")
    for name in ("a.png", "a.pdf", "a.svg"):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
