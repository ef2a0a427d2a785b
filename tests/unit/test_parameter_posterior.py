"""Draws of parameters: spread against grid posteriors, coverage, refusals, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import CapabilityError, PlssmError
from plssm.inference import parameter_posterior
from plssm.inference.filter_likelihood import FilterLikelihood
from plssm.inference.information import observed_information
from plssm.inference.parameter_posterior import parameter_draws
from plssm.inference.replicates import replicate

Q, R = 0.5, 0.3


def autoregression(a, *, free=("A",)):
    """z' = a z + e, y = z + v, of which only the coefficient (and more) is free."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A=[[a]], process_noise=[Q], initial_noise=[1.0]
    )
    seen = ps.observations.Gaussian.from_parameters([[1.0]], noise=[R])
    model = ps.StateSpaceModel(dynamics, {"x": seen}).requires_grad_(False)
    for name in free:
        model.dynamics.get_parameter(name).requires_grad_(True)
    return model


def grid_posterior(y, grid, q=Q):
    """Exact posterior on a grid of coefficients with a flat prior: mean and sd, by hand."""
    m, p = np.zeros_like(grid), np.ones_like(grid)
    total = np.zeros_like(grid)
    for t, value in enumerate(y):
        if t:
            m, p = grid * m, grid**2 * p + q
        s = p + R
        total += -0.5 * (np.log(s) + (value - m) ** 2 / s)
        m, p = m + p / s * (value - m), p * R / s
    weight = np.exp(total - total.max())
    weight /= weight.sum()
    mean = weight @ grid
    return mean, np.sqrt(weight @ (grid - mean) ** 2)


def coefficients(draws):
    return np.array([m.dynamics.A.item() for m in draws])


def whittle_information(a, steps):
    r"""T/(4 pi) times the integral of (d log S / d a)^2, S = q / |1 - a e^{-iw}|^2 + r."""
    w = np.linspace(-np.pi, np.pi, 20_001)[:-1]
    decay = 1 + a**2 - 2 * a * np.cos(w)
    slope = -Q * (2 * a - 2 * np.cos(w)) / decay**2 / (Q / decay + R)
    return steps * 0.5 * np.mean(slope**2)


def test_spread_is_that_of_the_grid_posterior():
    model = autoregression(0.8)
    data = model.simulate(600, seed=3)
    draws = parameter_draws(ps.Fit(model), 1500, data=data, newton_steps=20)
    mean, sd = grid_posterior(data.values("x")[0, :, 0], np.linspace(0.5, 1.0, 2001))
    found = coefficients(draws)
    assert found.std() == pytest.approx(sd, rel=0.06)
    assert abs(found.mean() - mean) < 0.2 * sd
    assert draws.report["rank"] == 1
    assert draws.report["distance"] < 0.05


def test_information_is_the_expected_one_in_long_series():
    model = autoregression(0.8)
    data = model.simulate(4000, seed=4)
    found = coefficients(parameter_draws(ps.Fit(model), 1500, data=data, newton_steps=20))
    assert 1 / found.var() == pytest.approx(whittle_information(0.8, 4000), rel=0.12)


def test_importance_weights_lead_to_the_exact_posterior():
    """In a short series the posterior is skewed; weighted draws have its mean."""
    model = autoregression(0.9)
    data = model.simulate(20, seed=0)
    draws = parameter_draws(ps.Fit(model), 2000, data=data, newton_steps=20, importance=True)
    mean, sd = grid_posterior(data.values("x")[0, :, 0], np.linspace(-4.0, 4.0, 16_001))
    found = coefficients(draws)
    weighted = draws.weights @ found
    assert weighted == pytest.approx(mean, abs=0.04 * sd)
    spread = np.sqrt(draws.weights @ (found - weighted) ** 2)
    assert spread == pytest.approx(sd, rel=0.04)
    assert abs(found.mean() - mean) > 0.1 * sd  # without weights it does not
    assert draws.report["effective_draws"] > 1500
    assert draws.report["pareto_shape"] < 0.7


def test_intervals_cover():
    """Of 40 series the 90 % interval misses the truth in as many as a binomial allows."""
    covered = 0
    for seed in range(40):
        model = autoregression(0.7)
        data = model.simulate(200, seed=100 + seed)
        known = ps.analysis.uncertainty(
            ps.Fit(model), lambda m: m.dynamics.A.item(), data=data, seed=seed,
            draws=100, posterior={"newton_steps": 20},
        )  # fmt: skip
        low, high = known.interval()
        covered += low <= 0.7 <= high
    assert 31 <= covered <= 40  # 99 % of a binomial with 40 and .9


def test_seeds_decide_everything():
    model = autoregression(0.8, free=("A", "h"))
    data = model.simulate(100, seed=1)
    fit = ps.Fit(model)
    one, two, other = (
        coefficients(fit.parameter_draws(5, data=data, newton_steps=5, seed=s)) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.isclose(one, other).any()
    assert fit.model.dynamics.A.item() == 0.8  # the fit is not moved


def test_a_fit_away_from_the_mode_is_told():
    model = autoregression(0.4)
    data = autoregression(0.9).simulate(500, seed=1)
    with pytest.warns(RuntimeWarning, match="posterior standard deviations away"):
        draws = parameter_draws(ps.Fit(model), 5, data=data, newton_steps=0)
    assert draws.report["distance"] > 2
    assert "distance" in repr(draws)


def test_ridge_of_the_engine_is_the_prior():
    """The prior's precision adds to the data's along hinge weights: 1/v = 1/v0 + ridge."""
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=[0.5, 0.5], W=[[0.0, 0.3], [0.0, 0.0]], h=[0.2, 0.0], process_noise=[0.5, 0.5]
    )
    seen = ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.1, 0.1])
    model = ps.StateSpaceModel(dynamics, {"x": seen}).requires_grad_(False)
    model.dynamics.W.requires_grad_(True)
    data = model.simulate(30, seed=0)

    def weights(drawn):
        w = drawn.dynamics.couplings.detach().numpy()
        return np.array([w[0, 1], w[1, 0]])

    def precision(ridge):
        problem = FilterLikelihood(model, data, ridge=ridge)
        found = observed_information(problem)
        units = torch.eye(len(found.point), dtype=torch.float64)
        start = weights(problem.model_at(found.point))
        slope = np.array([weights(problem.model_at(found.point + u)) - start for u in units])
        return np.linalg.inv(slope.T @ found.covariance.numpy() @ slope)

    np.testing.assert_allclose(precision(40.0) - precision(0.0), 40.0 * np.eye(2), atol=1e-4)
    strong = ps.Fit(model, ps.inference.LaplaceEM(ridge=1e8))
    with pytest.warns(RuntimeWarning, match="away from the mode"):
        drawn = strong.parameter_draws(200, data=data, newton_steps=0)
    spread = np.array([weights(m) for m in drawn]).std(0)
    np.testing.assert_allclose(spread, 1e-4, rtol=0.2)


def test_restarts_fit_again_from_the_data():
    model = autoregression(0.8, free=("A", "h"))
    data = model.simulate(60, seed=1)
    engine = ps.inference.LaplaceEM(iterations=2)
    fit = engine.fit(model, data, progress=False)
    draws = fit.parameter_draws(2, data=data, method="restarts")
    again = fit.parameter_draws(2, data=data, method="restarts")
    assert draws.method == "restarts"
    np.testing.assert_array_equal(coefficients(draws), coefficients(again))
    with pytest.raises(CapabilityError, match="no engine"):
        ps.Fit(model).parameter_draws(2, data=data, method="restarts")


def test_a_bootstrap_spreads_as_estimates_do_and_its_intervals_are_reflected():
    """Data of the fit fitted again: spread of the flat posterior, bias of a short series."""
    model = autoregression(0.8)
    data = model.simulate(300, seed=3)
    engine = ps.inference.LaplaceEM(iterations=60, tolerance=1e-10)
    fit = engine.fit(model, data, progress=False)
    draws = fit.parameter_draws(60, data=data, method="bootstrap", seed=1)
    assert draws.method == "bootstrap" and len(draws) == 60 and draws.report == {"failed": 0}
    _, sd = grid_posterior(data.values("x")[0, :, 0], np.linspace(0.5, 1.0, 2001))
    found = coefficients(draws)
    assert found.std() == pytest.approx(sd, rel=0.35)  # 60 draws: 9 % standard error, twice
    assert abs(found.mean() - coefficients([fit.model])[0]) < sd
    known = ps.analysis.uncertainty(
        fit, lambda m: m.dynamics.A.item(), data=data, method="bootstrap", draws=20, seed=1
    )
    low, high = known.interval()
    assert (low, high) == known.interval(kind="basic") != known.interval(kind="percentile")
    assert low < known.estimate < high
    again = ps.analysis.uncertainty(list(draws), lambda m: m.dynamics.A.item())
    assert again.interval() == again.interval(kind="percentile")  # no estimate to reflect at


def test_a_bootstrap_leaves_out_fits_that_fail(monkeypatch):
    model = autoregression(0.8)
    data = model.simulate(40, seed=3)
    fit = ps.inference.LaplaceEM(iterations=1).fit(model, data, progress=False)
    asked = []

    def sometimes(*arguments, **options):
        asked.append(1)
        if len(asked) % 2:
            raise PlssmError("left the finite numbers")
        return replicate(*arguments, **options)

    monkeypatch.setattr(parameter_posterior, "replicate", sometimes)
    draws = fit.parameter_draws(4, data=data, method="bootstrap")
    assert len(draws) == 2 and draws.report == {"failed": 2}
    np.testing.assert_allclose(draws.weights, 0.5)
    with pytest.raises(PlssmError, match="no fit of drawn data worked"):
        fit.parameter_draws(1, data=data, method="bootstrap")
    with pytest.raises(CapabilityError, match="no engine"):
        ps.Fit(model).parameter_draws(2, data=data, method="bootstrap")


@pytest.mark.filterwarnings("ignore:LaplaceEM")
@pytest.mark.parametrize("method", ["bootstrap", "restarts"])
def test_an_interruption_keeps_the_fits_that_ended(method, monkeypatch):
    model = autoregression(0.8)
    data = model.simulate(40, seed=3)
    fit = ps.inference.LaplaceEM(iterations=3).fit(model, data, progress=False)
    whole = fit.parameter_draws(4, data=data, method=method)
    trainings, asked = ps.inference.LaplaceEM.trainings, []

    def stopped(self, *arguments):
        asked.append(1)
        runs = trainings(self, *arguments)
        return [run._replace(interrupted=len(asked) == 3) for run in runs]

    monkeypatch.setattr(ps.inference.LaplaceEM, "trainings", stopped)
    with pytest.warns(RuntimeWarning, match="2 of 4 draws are kept"):
        kept = fit.parameter_draws(4, data=data, method=method)
    assert len(asked) == 3
    np.testing.assert_array_equal(coefficients(kept), coefficients(whole)[:2])
    np.testing.assert_allclose(kept.weights, 0.5)
    asked[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        fit.parameter_draws(4, data=data, method=method)


def test_refusals():
    model = autoregression(0.8)
    data, fit = model.simulate(30, seed=1), ps.Fit(model)
    with pytest.raises(CapabilityError, match="needs the training data"):
        fit.parameter_draws(5)
    with pytest.raises(PlssmError, match="wanted one of"):
        fit.parameter_draws(5, data=data, method="guess")
    with pytest.raises(PlssmError, match="whole number"):
        fit.parameter_draws(0, data=data)
    with pytest.raises(CapabilityError, match="free parameters"):
        fit.parameter_draws(5, data=data, limit=0)
    with pytest.raises(CapabilityError, match="no free parameter"):
        ps.Fit(autoregression(0.8, free=())).parameter_draws(5, data=data)
    with pytest.raises(PlssmError, match="modality"):
        fit.parameter_draws(5, data=ps.Dataset.from_arrays({"other": np.zeros((5, 1))}, dt=1.0))


def test_models_are_their_own():
    model = autoregression(0.8)
    draws = parameter_draws(ps.Fit(model), 3, data=model.simulate(50, seed=2), newton_steps=5)
    first = draws[0].dynamics.A.item()
    with torch.no_grad():
        draws[1].dynamics.A.zero_()
    assert draws[0].dynamics.A.item() == first
    assert len({m.dynamics.A.item() for m in draws}) == len(draws) == 3


# defaults ---------------------------------------------------------------------------------------
def hinged(units, engine=None, observed=None):
    """A fit of a small shallow map, and data of it."""
    dynamics = ps.dynamics.ShallowPLRNN(2, units, clipped=False)
    seen = observed or ps.observations.Gaussian(2)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = model.simulate(30, trials=2, seed=1)
    return ps.Fit(model, engine), data


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # models are not at a mode
def test_moments_are_matched_where_hinges_are_few_or_the_engine_did(monkeypatch):
    monkeypatch.setattr(parameter_posterior, "MOST_HINGES", 3)
    fit, data = hinged(3)
    assert fit.parameter_draws(2, data=data).report["matched"] == 1.0
    assert fit.parameter_draws(2, data=data, propagation="linearised").report["matched"] == 0.0
    for engine, matched in ((None, 0.0), (ps.inference.EKF(propagation="moments"), 1.0)):
        fit, data = hinged(4, engine)
        assert fit.parameter_draws(2, data=data, newton_steps=0).report["matched"] == matched
    with pytest.raises(PlssmError, match="parameter_draws: propagation"):
        fit.parameter_draws(2, data=data, propagation="exact")


def test_draws_of_gaussian_data_are_around_the_mode():
    """The estimate is the quantity there, and reflected intervals are taken around it."""
    model = autoregression(0.4)
    data = autoregression(0.9).simulate(500, seed=1)
    draws = ps.Fit(model).parameter_draws(300, data=data)
    assert draws.report["distance"] < 0.1 and draws.report["newton_rise"] > 1.0
    known = ps.analysis.uncertainty(draws, lambda m: m.dynamics.A.item())
    assert known.estimate == pytest.approx(known.median, abs=0.3 * known.sd)
    low, high = known.interval(0.9, kind="basic")
    assert low < known.estimate < high
    with pytest.warns(RuntimeWarning, match="newton_steps"):
        kept = ps.Fit(model).parameter_draws(3, data=data, newton_steps=0)
    assert kept.centre.dynamics.A.item() == pytest.approx(0.4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the model is not at a mode
def test_draws_of_counts_are_around_the_fit():
    fit, data = hinged(2, observed=ps.observations.Poisson(3))
    assert fit.parameter_draws(2, data=data).report["newton_rise"] == 0.0
