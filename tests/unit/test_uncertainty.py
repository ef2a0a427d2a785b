"""Uncertainty of quantities: sources, named quantities, quantiles, failures, fixed points."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import plssm as ps
from plssm.analysis import uncertainty
from plssm.analysis.cycles import fixed_points
from plssm.analysis.fixed_point_spread import match_points
from plssm.analysis.quantities import predicted_at
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.pyro_bridge import to_pyro

BISTABLE = {"A": [0.5, 0.5], "W": [[0.0, -1.0], [-1.0, 0.0]], "h": [0.5, 0.5]}


def bistable(*, shift=0.0, h=None, **options):
    """Mutual inhibition: stable at (1, -1) and (-1, 1), a saddle at (1/3, 1/3)."""
    given = BISTABLE | {"h": [0.5 + shift, 0.5 + shift] if h is None else h} | options
    dynamics = ps.dynamics.PLRNN.from_parameters(
        **given, process_noise=[0.05, 0.05], initial_noise=[1.0, 1.0]
    )
    weight = [[1.0, 0.2], [-0.3, 0.8], [0.5, 0.5]]
    seen = ps.observations.Gaussian.from_parameters(weight, noise=[0.1] * 3)
    return ps.StateSpaceModel(dynamics, {"x": seen})


def first_bias(model):
    return model.dynamics.h[0].item()


def fickle(model):
    """Works for small biases only."""
    bias = model.dynamics.h[0].item()
    if bias > 0.8:
        raise PlssmError(f"the orbit diverged at step {int(bias * 1000)}")
    return math.nan if bias > 0.7 else bias


@pytest.fixture(scope="module")
def fitted():
    """A fit of the map by EM, from the truth; all else is held."""
    model = bistable().requires_grad_(False)
    for name in ("A", "W", "h"):
        model.dynamics.get_parameter(name).requires_grad_(True)
    data = model.simulate(40, trials=12, seed=1)
    return ps.inference.LaplaceEM(iterations=30).fit(model, data, progress=False), data


def test_summaries_are_those_of_the_values():
    models = [bistable(shift=0.01 * k) for k in range(11)]
    found = uncertainty(models, first_bias)
    x = 0.5 + 0.01 * np.arange(11)
    np.testing.assert_allclose(found.values, x)
    assert found.mean == pytest.approx(x.mean())
    assert found.sd == pytest.approx(x.std())
    assert found.median == pytest.approx(np.median(x))
    for p in (0.0, 0.05, 0.31, 6 / 11, 1.0):
        wanted = np.quantile(x, p, method="averaged_inverted_cdf")
        assert found.quantile(p) == pytest.approx(wanted)
    assert found.interval(0.5) == (found.quantile(0.25), found.quantile(0.75))
    row = found.table().loc["first_bias"]
    assert row["low"] == found.interval()[0]
    assert row["draws"] == 11
    assert math.isnan(row["estimate"])
    assert "first_bias" in repr(found)
    assert found.method == "models"


def test_a_basic_interval_has_the_draws_distances_on_the_other_side():
    draws = np.random.default_rng(0).chisquare(3, size=41)
    found = uncertainty([bistable(shift=x) for x in draws], first_bias)
    found = replace(found, estimate=2.0)
    errors = np.sort(found.values - 2.0)  # as if of the estimate about the truth
    low, high = found.interval(0.8, kind="basic")
    tails = np.quantile(errors, (0.1, 0.9), method="averaged_inverted_cdf")
    assert (2.0 - high, 2.0 - low) == pytest.approx(tuple(tails))
    with pytest.raises(PlssmError, match="percentile"):
        found.interval(0.8, kind="bca")
    with pytest.raises(PlssmError, match="at the estimate"):
        replace(found, estimate=None).interval(0.8, kind="basic")


def test_weights_count_as_repetitions(fitted):
    fit, data = fitted
    draws = fit.parameter_draws(4, data=data)
    weighted = copy.copy(draws)
    object.__setattr__(weighted, "weights", np.array([0.5, 0.0, 0.25, 0.25]))
    repeated = [draws[k] for k in (0, 0, 2, 3)]
    one, two = uncertainty(weighted, first_bias), uncertainty(repeated, first_bias)
    assert one.mean == pytest.approx(two.mean)
    assert one.sd == pytest.approx(two.sd)
    for p in (0.1, 0.4, 0.5, 0.6, 0.9):
        assert one.quantile(p) == pytest.approx(two.quantile(p))


def test_failed_draws_are_told():
    models = [bistable(shift=s) for s in (0.0, 0.1, 0.25, 0.4, 0.5)]
    found = uncertainty(models, fickle)
    np.testing.assert_allclose(found.values, [0.5, 0.6])
    assert found.weights.tolist() == [0.5, 0.5]
    assert found.failed_share == pytest.approx(0.6)
    assert [k for k, _ in found.failures] == [2, 3, 4]
    reasons = {"not a number": 1, "PlssmError: the orbit diverged at step #": 2}
    assert found.reasons() == reasons
    assert "60.0% failed" in repr(found)
    nothing = uncertainty(models[2:], fickle)
    with pytest.raises(PlssmError, match="no draw worked"):
        _ = nothing.mean
    with pytest.raises(AttributeError):  # a mistake in the function is not a failed draw
        uncertainty(models, lambda m: m.nothing)


def test_diverging_maps_fail_by_name():
    wild = bistable(A=[3.0, 0.5], W=[[0.0, 0.0], [-1.0, 0.0]])
    found = uncertainty([bistable(), wild], "lyapunov_max", steps=200)
    assert found.failed_share == 0.5
    assert "diverged" in found.failures[0][1]


def test_a_fit_draws_and_has_an_estimate(fitted):
    fit, data = fitted
    found = uncertainty(fit, "lyapunov_spectrum", data=data, draws=8, steps=500, seed=3)
    again = uncertainty(fit, "lyapunov_spectrum", data=data, draws=8, steps=500, seed=3)
    np.testing.assert_array_equal(found.values, again.values)
    assert found.values.shape == (8, 2)
    centre = fit.parameter_draws(8, data=data, seed=3).centre  # the mode
    wanted = ps.analysis.lyapunov_spectrum(centre.dynamics, steps=500)
    np.testing.assert_allclose(found.estimate, wanted)
    options = {"posterior": {"newton_steps": 0}, "draws": 2, "steps": 500}
    kept = uncertainty(fit, "lyapunov_spectrum", data=data, **options)
    wanted = ps.analysis.lyapunov_spectrum(fit.model.dynamics, steps=500)
    np.testing.assert_allclose(kept.estimate, wanted)
    assert found.report["rank"] > 0
    assert found.method == "information"
    table = found.table()
    assert list(table.index) == ["lyapunov_spectrum[0]", "lyapunov_spectrum[1]"]
    assert (table["low"] <= table["high"]).all()
    other = uncertainty(fit, "lyapunov_max", data=data, draws=8, steps=500, seed=4)
    assert other.values.shape == (8,)
    assert not np.isclose(other.values, found.values[:, 0]).any()


def test_free_runs_and_divergence_from_data(fitted):
    fit, data = fitted
    run = uncertainty([fit, fit], "free_run", steps=7)
    alone = fit.model.simulate(7, noise=False).values("x")[0]
    np.testing.assert_allclose(run.values, [alone, alone])
    assert run.method == "restarts"
    found = uncertainty([fit.model], "d_stsp", data=data, steps=300, discard=50, bins=5)
    made = fit.model.simulate(350, dt=data.dt, seed=0).values("x")[0, 50:]
    wanted = ps.metrics.state_space_divergence(
        truth=list(data.values("x")), pred=made, bins=5, floor=False
    )
    assert found.values[0] == pytest.approx(float(wanted))
    with pytest.raises(CapabilityError, match="pass data="):
        uncertainty(fit, "d_stsp")


def test_fixed_points_are_followed_through_the_draws():
    """Draws with moved points, without one of them, and with another stability."""
    models = [bistable(), bistable(shift=0.02), bistable(h=[0.5, -2.0]), bistable(A=[0.5, -1.1])]
    found = uncertainty(models, "fixed_points")
    spread = found.points
    counts = [len(fixed_points(m.dynamics)) for m in models]
    assert spread.counts.tolist() == counts
    assert counts[:3] == [3, 3, 1]
    assert sum(spread.number.values()) == pytest.approx(1.0)
    assert spread.number[1] >= 0.25
    np.testing.assert_allclose(
        spread.positions, [[-1.0, 1.0], [1 / 3, 1 / 3], [1.0, -1.0]], atol=1e-12
    )
    assert spread.exists[:2].all()
    assert spread.stable[:2].tolist() == [[True, False, True]] * 2
    # of (1, -1) there is h2 = -2 left, at (1, -6): further than half-way to the saddle
    assert not spread.exists[2].any()
    moved = spread.drawn[1] - spread.positions
    np.testing.assert_allclose(moved[1], 0.02 / 1.5, atol=1e-12)  # h / (1 - A + 1)
    table = found.table()
    assert table["stability"].tolist() == ["stable", "saddle", "stable"]
    assert table["exists"].tolist() == spread.exists.mean(0).tolist()
    assert table["stable"][1] == 0.0
    with pytest.raises(CapabilityError, match="objects"):
        _ = found.mean


def test_spread_of_fixed_points_of_a_fit(fitted):
    fit, data = fitted
    found = uncertainty(fit, "fixed_points", data=data, draws=40)
    table = found.table()
    assert len(table) == 3
    assert found.points.space == "latent"
    assert (table["exists"] > 0.9).all()
    np.testing.assert_allclose(table["stable"], [1.0, 0.0, 1.0])
    assert (table["sd"] < 0.5).all()
    assert found.points.number[3] > 0.9


def test_ensembles_are_compared_by_what_they_predict():
    """The same system with its states swapped has the same points in the data's space."""
    one = bistable()
    seen = copy.deepcopy(one.observations["x"])
    with torch.no_grad():
        seen.weight.copy_(seen.weight.flip(1))
    swapped = ps.StateSpaceModel(copy.deepcopy(one.dynamics), {"x": seen})
    found = uncertainty([ps.Fit(one), ps.Fit(swapped)], "fixed_points")
    assert found.points.space == "predicted"
    assert found.points.exists.all()
    np.testing.assert_allclose(found.points.drawn[0], found.points.drawn[1], atol=1e-12)


def test_matching_without_points():
    none = fixed_points(ps.dynamics.PLRNN.from_parameters(A=[1.0], W=[[0.0]], h=[1.0]))
    some = fixed_points(ps.dynamics.PLRNN.from_parameters(A=[0.5], W=[[0.0]], h=[1.0]))
    weights = np.array([0.5, 0.5])

    def place(_, states):
        return states.reshape(-1, 1)

    spread = match_points(some, [none, some], weights, place=place, space="latent")
    assert spread.exists.tolist() == [[False], [True]]
    assert spread.table()["exists"].tolist() == [0.5]
    empty = match_points(none, [none, some], weights, place=place, space="latent")
    assert empty.table().empty
    assert empty.number == {0: 0.5, 1: 0.5}


def test_predictions_at_constant_states():
    model = bistable()
    z = np.array([[1.0, -1.0], [0.0, 0.5]])
    weight = model.observations["x"].weight.detach().numpy()
    np.testing.assert_allclose(predicted_at(model, z), z @ weight.T)


def test_a_pyro_guide_draws_models(fitted):
    fit, data = fitted
    batch = data.batch()
    pyro.clear_param_store()
    pyro_model = to_pyro(fit.model, {"dynamics.h": "default"})
    guide = AutoNormal(pyro_model, init_scale=0.01)
    guide(batch)  # the first call sets it up

    def draw(seed):
        pyro.set_rng_seed(seed)
        return pyro_model.to_model(guide(batch))

    found = uncertainty(draw, first_bias, draws=6, seed=2)
    again = uncertainty(draw, first_bias, draws=6, seed=2, method="guide")
    assert found.method == "guide"
    np.testing.assert_array_equal(found.values, again.values)
    assert len(set(found.values.tolist())) == 6
    pyro.clear_param_store()


@pytest.mark.slow
def test_processes_give_the_same():
    models = [bistable(shift=s) for s in (0.0, 0.01, 0.02)]
    one = uncertainty(models, "lyapunov_max", steps=100)
    two = uncertainty(models, "lyapunov_max", steps=100, workers=2)
    np.testing.assert_array_equal(one.values, two.values)


def test_refusals(fitted):
    fit, data = fitted
    with pytest.raises(CapabilityError, match="needs the training data"):
        uncertainty(fit, "lyapunov_max")
    with pytest.raises(PlssmError, match="no quantity"):
        uncertainty([fit], "entropy")
    with pytest.raises(PlssmError, match="takes no options"):
        uncertainty([fit], first_bias, steps=3)
    with pytest.raises(PlssmError, match="wanted one of"):
        uncertainty(fit, first_bias, data=data, method="guess")
    with pytest.raises(CapabilityError, match="not a fit"):
        uncertainty(fit, first_bias, data=data, method="guide")
    with pytest.raises(CapabilityError, match="needs a fit"):
        uncertainty([fit], first_bias, method="information")
    with pytest.raises(CapabilityError, match="at least one"):
        uncertainty([], first_bias)
    with pytest.raises(CapabilityError, match="neither"):
        uncertainty(3, first_bias)
    with pytest.raises(CapabilityError, match="workers=1"):
        uncertainty([fit], lambda _: 1.0, workers=2)
    found = uncertainty([fit], first_bias)
    for wrong in (0.0, 1.0):
        with pytest.raises(PlssmError, match="level"):
            found.interval(wrong)
    with pytest.raises(PlssmError, match="between 0 and 1"):
        found.quantile(2.0)
