"""Scores against computations by hand for a linear-Gaussian model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

import plssm as ps
from plssm.errors import DataError
from plssm.metrics.baselines import Baseline

WARMUP, STEPS = 4, (1, 2, 5)


def make(inputs=1, nuisance=1, seed=0):
    rng = np.random.default_rng(seed)
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.9, 0.3], [-0.3, 0.9]], h=[0.1, 0.0], C=0.5 * rng.normal(size=(2, inputs)) or None
        if inputs == 0 else 0.5 * rng.normal(size=(2, inputs)),
        process_noise=[0.1, 0.2],
    )  # fmt: skip
    x = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(3, 2)), rng.normal(size=3), noise=[0.2, 0.3, 0.4],
        nuisance_weight=rng.normal(size=(3, nuisance)) if nuisance else None,
    )  # fmt: skip
    return ps.StateSpaceModel(dynamics, {"x": x})


def simulate(model, lengths, seed, missing=0.15):
    rng = np.random.default_rng(seed)
    y, s, r = [], [], []
    K, R = model.dynamics.n_inputs, model.observations["x"].nuisance
    for k, n in enumerate(lengths):
        s.append(rng.normal(size=(n, K)))
        r.append(rng.normal(size=(n, R)))
        one = model.simulate(
            n, inputs=s[-1] if K else None, nuisance={"x": r[-1]}, seed=seed + 10 * k
        )
        values = one.values("x")[0]
        values[rng.random(values.shape) < missing] = np.nan
        y.append(values)
    return ps.Dataset.from_arrays(
        {"x": y}, inputs=s if K else None, nuisance={"x": r} if R else None
    )


def fitted(model, train):
    """A known model as the result of a training that changed nothing."""
    engine = ps.inference.LaplaceEM(start="model", stages=(ps.inference.Stage("look", 0),))
    return engine.fit(model, train)


def by_hand(model, train, test):
    """Errors of every horizon, of persistence and VAR(1), and the exact one-step density."""
    d, o = model.dynamics, model.observations["x"]
    with torch.no_grad():
        A, h, C, Q = (v.numpy() for v in (d.A, d.h, d.C, d.noise.covariance))
        B, b, J, R = (v.numpy() for v in (o.weight, o.bias, o.nuisance_weight, o.noise))
    stacked = np.concatenate([t.values["x"] for t in train.trials])
    mean, sd = np.nanmean(stacked, 0), np.nanstd(stacked, 0)
    pairs = [
        ((t.values["x"][:-1] - mean) / sd, (t.values["x"][1:] - mean) / sd) for t in train.trials
    ]
    before, after = (np.concatenate(p) for p in zip(*pairs))
    whole = np.isfinite(before).all(1) & np.isfinite(after).all(1)
    design = np.column_stack([np.ones(whole.sum()), before[whole]])
    weights = np.linalg.lstsq(design, after[whole], rcond=None)[0]
    filtered = ps.smooth(model, test, causal=True)
    errors = {k: {n: [] for n in STEPS} for k in ("error", "persistence", "var1")}
    density, inside, targets = [], [], []
    for k, trial in enumerate(test.trials):
        y, z = trial.values["x"], filtered.mean[k].numpy()
        P = filtered.covariance()[k].numpy()
        scaled = (y - mean) / sd
        for t in range(WARMUP, trial.length - 1):
            held = np.zeros(3)
            for past in scaled[: t + 1]:
                held = np.where(np.isfinite(past), past, held)
            m, v, ahead = z[t], P[t], held
            for n in range(1, max(STEPS) + 1):
                if t + n >= trial.length:
                    break
                m = A @ m + h + C @ trial.inputs[t + n]
                ahead = weights[0] + ahead @ weights[1:]
                seen = np.isfinite(y[t + n])
                made = B @ m + b + J @ trial.nuisance["x"][t + n]
                if n == 1:
                    spread = np.sqrt(np.diag(B @ (A @ v @ A.T + Q) @ B.T) + R)
                    density.extend(norm.logpdf(y[t + 1], made, spread)[seen])
                    inside.extend((np.abs(y[t + 1] - made) < 1.959964 * spread)[seen])
                    targets.extend(scaled[t + 1][seen])
                if n in STEPS:
                    gone = scaled[t + n] - (made - mean) / sd
                    errors["error"][n].extend(gone[seen] ** 2)
                    errors["persistence"][n].extend((scaled[t + n] - held)[seen] ** 2)
                    errors["var1"][n].extend((scaled[t + n] - ahead)[seen] ** 2)
    table = {f"{k}_{n}": np.mean(v) for k, e in errors.items() for n, v in e.items()}
    table["log_likelihood"], table["coverage_95"] = np.mean(density), np.mean(inside)
    table["r2"] = 1 - np.sum(errors["error"][1]) / np.sum((targets - np.mean(targets)) ** 2)
    table["values"] = len(density)
    return table


def test_forecast_scores_equal_the_computation_by_hand():
    model = make()
    train, test = simulate(model, (40, 25), 1), simulate(model, (30, 12, 5, 3), 2)
    fit = fitted(model, train)
    got = fit.score(test, steps=STEPS, warmup=WARMUP, samples=2000).loc["x"]
    want = by_hand(model, train, test)
    for key, value in want.items():
        close = {"log_likelihood": 0.01, "coverage_95": 0.02}.get(key, 1e-9)
        np.testing.assert_allclose(got[key], value, atol=close, err_msg=key)
    evidence = float(ps.smooth(model, test).log_evidence.sum())
    np.testing.assert_allclose(got["evidence"], evidence, rtol=1e-12)
    assert got["evidence_kind"] == "exact"


def test_errors_do_not_depend_on_the_number_of_draws_for_a_linear_model():
    """Antithetic draws cancel exactly; odd numbers of draws are as good as even ones."""
    model = make()
    train, test = simulate(model, (40,), 1), simulate(model, (20,), 2)
    fit = fitted(model, train)
    one, odd, many = (
        fit.score(test, steps=STEPS, warmup=WARMUP, samples=n)["error_5"] for n in (2, 7, 200)
    )
    np.testing.assert_allclose([one["x"], odd["x"]], many["x"], rtol=1e-9)


def test_coverage_of_the_true_model_on_long_data():
    model = make(nuisance=0)
    model = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters(
            [0.9, 0.7], [[0.0, 0.5], [-0.6, 0.0]], h=[0.2, 0.3], process_noise=[0.05, 0.05]
        ),
        {"x": model.observations["x"]},
    )
    data = model.simulate(3000, seed=4)
    table = ps.Fit(model).score(data, steps=(1,), samples=64)
    assert abs(table.loc["x", "coverage_95"] - 0.95) < 0.012
    held = data.hold_out("x", channels=[1])
    hidden = ps.Fit(model).score(held)
    assert abs(hidden.loc["x", "coverage_95"] - 0.95) < 0.015
    assert hidden.loc["x", "values"] == 3000


def test_hidden_entries_are_scored_and_nothing_else():
    model = make()
    train, full = simulate(model, (60,), 1), simulate(model, (30, 20), 5)
    held = full.hold_out("x", channels=[0, 2], times=(4.0, 9.0))
    fit = fitted(model, train)
    got = fit.score(held).loc["x"]
    posterior = ps.smooth(model, held)
    o = model.observations["x"]
    stacked = train.trials[0].values["x"]
    mean, sd = np.nanmean(stacked, 0), np.nanstd(stacked, 0)
    error, density, count = [], [], 0
    with torch.no_grad():
        B, R = o.weight.numpy(), o.noise.numpy()
        for k, trial in enumerate(held.trials):
            features = o.features(
                posterior.mean[k, : trial.length], torch.from_numpy(trial.nuisance["x"])
            ).numpy()
            P = posterior.covariance()[k, : trial.length].numpy()
            spread = np.sqrt(np.einsum("ni,tij,nj->tn", B, P, B) + R)
            hidden = trial.hidden["x"]
            seen = np.isfinite(hidden)
            count += seen.sum()
            error.extend((((hidden - features) / sd) ** 2)[seen])
            density.extend(norm.logpdf(hidden, features, spread)[seen])
    assert got["values"] == count > 0
    np.testing.assert_allclose(got["error"], np.mean(error), rtol=1e-9)
    np.testing.assert_allclose(got["log_likelihood"], np.mean(density), atol=0.02)
    assert mean.shape == (3,)
    elsewhere = [t.values["x"].copy() for t in held.trials]
    hidden = [t.hidden["x"] for t in held.trials]
    same = ps.Dataset.from_arrays(
        {"x": elsewhere}, hidden={"x": hidden}, inputs=[t.inputs for t in held.trials],
        nuisance={"x": [t.nuisance["x"] for t in held.trials]},
    )  # fmt: skip
    assert fit.score(same).loc["x"].equals(got)


def test_a_wholly_hidden_channel_of_a_known_model_is_scored_on_its_own_scale():
    model = make(inputs=1, nuisance=0)
    model.observations["x"].bias.data[1] = 500.0
    data = simulate(model, (50,), 3)
    got = ps.Fit(model).score(data.hold_out("x", channels=[1])).loc["x"]
    assert got["error"] < 3
    assert np.isfinite(got["r2"])


def test_known_models_have_no_var1_and_reproduce():
    model = make()
    data = simulate(model, (30,), 6)
    one, other = (ps.Fit(model).score(data, steps=(1, 3)) for _ in range(2))
    assert one.equals(other)
    assert np.isnan(one["var1_3"]).all()
    assert list(one.filter(like="error").columns) == ["error_1", "error_3"]


def test_short_trials_score_nothing_but_their_evidence():
    model = make()
    table = ps.Fit(model).score(simulate(model, (3, 2), 7), warmup=10)
    assert table.loc["x", "values"] == 0
    assert np.isnan(table.loc["x", "error_1"])
    assert np.isfinite(table.loc["x", "evidence"])


def test_own_clocks_are_scored_at_their_own_samples():
    model = make(inputs=0, nuisance=0) if False else ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters([[0.9]], process_noise=[0.1]),
        {"x": ps.observations.Gaussian.from_parameters([[1.0]], noise=[0.1])},
    )  # fmt: skip
    times = np.array([0.0, 3.0, 6.0, 9.0, 9.2, 15.0])
    y = np.random.default_rng(0).normal(size=(6, 1))
    data = ps.Dataset.from_arrays({"x": y}, times={"x": times})
    table = ps.Fit(model).score(data, steps=(1, 3), warmup=5).loc["x"]
    assert table["values"] == 4  # at 6, 9, 9 (the step of 9.2) and 15; origins from step 5 on
    filtered = ps.smooth(model, data, causal=True).mean[0, :, 0].numpy()
    z = (y[:, 0] - y.mean()) / y.std()
    scale = [(0.9**3 * filtered[t - 3] - y.mean()) / y.std() for t in (9, 9, 15)]
    np.testing.assert_allclose(
        table["error_3"], np.mean((z[3:] - np.array(scale)) ** 2), rtol=1e-9
    )
    held = [z[2], z[2], z[4]]  # the last sample at or before the origin, steps 6, 6 and 12
    np.testing.assert_allclose(table["persistence_3"], np.mean((z[3:] - held) ** 2), rtol=1e-9)


@pytest.mark.parametrize("steps", [(0,), (-1, 2)])
def test_horizons_that_make_no_sense_are_refused(steps):
    model = make()
    with pytest.raises(ValueError, match="steps"):
        ps.Fit(model).score(simulate(model, (20,), 1), steps=steps)


def test_data_that_do_not_match_are_refused():
    with pytest.raises(DataError):
        ps.Fit(make()).score(
            ps.Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(9, 3))})
        )


def test_baseline_with_too_few_pairs_is_the_mean():
    baseline = Baseline.of([np.array([[1.0, 2.0], [3.0, 2.0]])])
    np.testing.assert_allclose(baseline.mean, [2.0, 2.0])
    np.testing.assert_allclose(baseline.sd, [1.0, 1.0])
    ahead = baseline.autoregress(np.array([[1.0, 1.0]]), np.array([2]))
    np.testing.assert_allclose(ahead, 0.0)


def test_forecast_continues_each_trial_on_the_clock_of_its_modality():
    model = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters([[0.9]], process_noise=[0.1]),
        {
            "x": ps.observations.Gaussian.from_parameters([[1.0]], noise=[0.1]),
            "slow": ps.observations.Gaussian.from_parameters([[2.0]], noise=[0.1]),
        },
    )
    rng = np.random.default_rng(0)
    data = ps.Dataset.from_arrays(
        {"x": rng.normal(size=(12, 1)), "slow": rng.normal(size=(3, 1))},
        dt=0.5,
        times={"slow": np.array([0.0, 2.0, 4.0])},
    )
    made = ps.Fit(model).forecast(data, 10, samples=4)
    np.testing.assert_allclose(made["x"].times, 0.5 * np.arange(1, 11))
    # samples at steps 0, 4, 8; the trial ends at step 11, the next are at 12, 16, 20
    np.testing.assert_allclose(made["slow"].times, [0.5, 2.5, 4.5])
    last = ps.smooth(model, data).mean[0, -1, 0]
    want = 2.0 * float(last) * 0.9 ** np.array([1, 5, 9])
    many = ps.Fit(model).forecast(data, 10, samples=20_000)["slow"]
    np.testing.assert_allclose(many.mean[0, :, 0].numpy(), want, atol=0.03)
    with pytest.raises(ValueError, match="steps"):
        ps.Fit(model).forecast(data, 0)
