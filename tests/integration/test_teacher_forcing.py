"""Teacher forcing from data to fit: known maps, calibrated noise, refusals, restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.data import synthetic
from plssm.errors import CapabilityError
from plssm.inference import GTF, SparseTF, TeacherForcing


def gaussian(dynamics, channels=2, readout="identity"):
    return ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(channels, readout=readout)})


def noisy_series(steps=600, seed=0):
    """A stochastic oscillation [T, 2] of a linear map, and the map."""
    matrix = 0.97 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    rng, x = np.random.default_rng(seed), np.zeros((steps, 2))
    for t in range(1, steps):
        x[t] = matrix @ x[t - 1] + 0.3 * rng.standard_normal(2)
    return x, matrix


def test_full_forcing_of_a_linear_map_is_least_squares():
    """Forced at every step, the loss is a regression: one step to the next, in units of spread."""
    x, _ = noisy_series()
    model = gaussian(ps.dynamics.AlmostLinearRNN(2, 0))
    engine = TeacherForcing(
        scheme=SparseTF(1), steps=3000, sequence=599, batch_size=1, noise=0.0, checks=30,
        learning_rate=(1e-2, 1e-6), dtype="float64", fit_noise=False,
    )  # fmt: skip
    problem_data = ps.Dataset.from_arrays({"x": x})
    fit = engine.fit(model, problem_data, progress=False)
    before = np.hstack([x[:-1], np.ones((len(x) - 1, 1))])
    wanted, *_ = np.linalg.lstsq(before, x[1:], rcond=None)
    form = fit.model.dynamics.relu_form()
    loss = ((x[1:] - before @ wanted) / x.std(0)).var(0).mean()
    errors = x[1:] - form.step(x[:-1])
    assert ((errors / x.std(0)) ** 2).mean() == pytest.approx(loss, rel=2e-3)
    # what is kept is the check with the best free run, near the least-squares solution
    np.testing.assert_allclose(form.linear, wanted[:2].T, atol=0.05)


def test_noise_after_training_is_calibrated():
    """Process and observation noise, posterior and forecasts of a model trained by forcing."""
    dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
        A=[0.9, 0.85], W1=[[0.6, -0.4], [-0.5, 0.5]], W2=[[0.5, 1.0], [-1.0, 0.4]],
        h1=[0.1, -0.1], h2=[1.0, 1.0], process_noise=[0.04, 0.04],
    )  # fmt: skip
    B = torch.eye(2, dtype=torch.float64)
    truth = ps.StateSpaceModel(
        dynamics, {"x": ps.observations.Gaussian.from_parameters(B, noise=[0.02, 0.02])}
    )
    train, test = truth.simulate(1500, seed=1), truth.simulate(300, trials=6, seed=2)
    known = gaussian(dynamics)  # the right map: only the noise is left to fit
    known.observations["x"].initialised = False
    noiseless = ps.dynamics.ShallowPLRNN.from_parameters(
        **{n: getattr(dynamics, n).detach() for n in ("A", "W1", "W2", "h1", "h2")}
    )
    model = gaussian(noiseless)
    model.requires_grad_(False)
    for part in (noiseless.noise, noiseless.initial):
        part.requires_grad_(True)
    model.observations["x"].log_noise.requires_grad_(True)
    fit = TeacherForcing(steps=5).fit(model, train, progress=False)
    np.testing.assert_allclose(fit.model.dynamics.noise.variance.detach(), 0.04, rtol=0.5)
    np.testing.assert_allclose(fit.model.observations["x"].noise.detach(), 0.02, rtol=0.5)
    score = fit.score(test, steps=(1, 5))
    assert 0.92 < score["coverage_95"].iloc[0] < 0.98
    low, high = fit.posterior(test).interval(0.95)
    inside = ((test.latent >= low.numpy()) & (test.latent <= high.numpy())).mean()
    assert 0.92 < inside < 0.98


def test_reconstructs_a_limit_cycle_with_missing_samples():
    x = synthetic.van_der_pol(4000, 0.1, seed=0)[0]
    x = (x - x.mean(0)) / x.std(0)
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    engine = TeacherForcing(steps=2500, sequence=40, checks=5, scheme=GTF(0.2), fit_noise=False)
    fit = engine.fit(
        gaussian(ps.dynamics.ShallowPLRNN(2, 20)), ps.Dataset.from_arrays({"x": x}, 0.1),
        progress=False,
    )  # fmt: skip
    assert fit.history["score"].min() < 0.7 * fit.history["score"].iloc[0]
    run = fit.simulate(3000, noise=False).values("x")[0, 1000:]
    assert (run.std(0) > 0.3).all()  # no fixed point
    exponent = ps.analysis.lyapunov_spectrum(fit.model.dynamics, steps=20_000, dt=0.1)
    assert abs(exponent[0]) < 0.15  # 0 along the cycle; the true transverse one is -1.06


def test_more_states_than_channels_and_an_automatic_interval():
    """Only the observed state is forced; the other one has to be inferred."""
    x = synthetic.van_der_pol(3000, 0.1, seed=0)[0][:, :1]
    data = ps.Dataset.from_arrays({"x": x / x.std()}, 0.1)
    engine = TeacherForcing(
        scheme=SparseTF(), steps=800, sequence=40, checks=4, fit_noise=False, shrink=1e-5
    )
    fit = engine.fit(gaussian(ps.dynamics.DendriticPLRNN(4, 5), 1), data, progress=False)
    assert fit.history["loss"].iloc[-1] < 0.9 * fit.history["loss"].iloc[1]
    assert fit.engine.scheme.interval == "auto"


def test_a_mixing_readout_is_learned():
    z, _ = noisy_series(1500)
    mixing = np.random.default_rng(1).standard_normal((5, 2))
    data = ps.Dataset.from_arrays({"x": z @ mixing.T + 3.0})
    engine = TeacherForcing(steps=300, sequence=20, checks=3)
    fit = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5), 5, "linear"), data, progress=False)
    learned = fit.model.observations["x"].weight.detach().numpy()
    angles = np.linalg.svd(np.linalg.qr(learned)[0].T @ np.linalg.qr(mixing)[0])[1]
    assert angles.min() > 0.99
    assert (fit.score(data, steps=(1,))["error_1"] < 0.5).all()


def test_restarts_are_compared_and_recorded():
    x, _ = noisy_series(300)
    data = ps.Dataset.from_arrays({"x": x})
    engine = TeacherForcing(steps=40, sequence=10, checks=2, restarts=3, fit_noise=False)
    fit = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5)), data, progress=False)
    history = fit.history
    assert set(history["restart"]) == {0, 1, 2}
    best = history.groupby("restart")["score"].min().idxmin()
    assert set(history.loc[history["selected"], "restart"]) == {best}
    engine.workers = 2
    again = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5)), data, progress=False)
    for name, value in fit.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_interruption_keeps_the_best_and_starts_no_further_restart(monkeypatch):
    x, _ = noisy_series(300)
    data = ps.Dataset.from_arrays({"x": x})
    engine = TeacherForcing(steps=40, sequence=10, checks=4, restarts=3, fit_noise=False)

    def stop(bar, restart, step, row):
        if step >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr("plssm.inference.training_progress.TrainingProgress.advance", stop)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5)), data, progress=False)
    assert set(fit.history["restart"]) == {0}
    assert fit.history["step"].max() == 20


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Poisson(2)}), "Poisson"),
        (gaussian(ps.dynamics.PLRNN(2), 2, "relu"), "rectified"),
    ],
)
def test_what_does_not_say_where_the_states_are_is_refused(model, word):
    data = ps.Dataset.from_arrays({"x": np.ones((20, 2))}, kinds={"x": "count"})
    if word == "rectified":
        data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).random((20, 2))})
    with pytest.raises(CapabilityError, match=word):
        TeacherForcing(steps=2).fit(model, data, progress=False)


def test_a_known_mixing_readout_of_too_few_channels_is_refused():
    readout = ps.observations.Gaussian.from_parameters(np.ones((1, 3)), noise=[0.1])
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": readout})
    data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).random((20, 1))})
    with pytest.raises(CapabilityError, match="do not determine"):
        TeacherForcing(steps=2).fit(model, data, progress=False)


def test_channels_never_seen_together_are_trained_on_by_the_loss():
    """No sample is complete: free runs cannot be compared, and the lowest loss is kept."""
    x, _ = noisy_series(1200)
    x[::2, 0], x[1::2, 1] = np.nan, np.nan
    data = ps.Dataset.from_arrays({"x": x})
    engine = TeacherForcing(steps=300, sequence=20, checks=3, fit_noise=False)
    fit = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5)), data, progress=False)
    kept = fit.history.loc[fit.history["score"].idxmin()]
    assert kept["step"] > 0
    assert kept["score"] == kept["loss"] == fit.history["loss"].min()
    assert fit.history["d_stsp"].isna().all()
    fit.plot_convergence()


def test_an_automatic_interval_of_short_trials():
    x, _ = noisy_series(240)
    data = ps.Dataset.from_arrays({"x": list(x.reshape(4, 60, 2))})
    engine = TeacherForcing(scheme=SparseTF(), steps=5, sequence=20, checks=1, fit_noise=False)
    fit = engine.fit(gaussian(ps.dynamics.ShallowPLRNN(2, 5)), data, progress=False)
    assert np.isfinite(fit.history["loss"].iloc[-1])
