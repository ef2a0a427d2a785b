"""Comparing fits: columns, closed forms for linear-Gaussian models, failures that cost one row."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import plssm as ps
from plssm.comparison import evidence, free_runs, measures
from plssm.comparison.innovations import mean_nis
from plssm.errors import DataError, PlssmError
from plssm.inference import smoothers

COLUMNS = [
    "evidence", "evidence_se", "own_evidence", "evidence_kind", "error_1", "error_5", "error_10",
    "persistence_1", "persistence_5", "persistence_10", "var1_1", "var1_5", "var1_10", "d_stsp",
    "d_stsp_floor", "d_h", "d_h_floor", "lyapunov_max", "coverage_95", "nis", "seconds",
]  # fmt: skip
A = 0.99 * np.array([[0.95, 0.2], [-0.2, 0.95]])
B = np.array([[1.0, 0.3], [-0.5, 1.0], [0.4, -0.8]])
DT = 0.5


def linear(shrink=1.0, noise=0.2, inputs=0):
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        shrink * A, h=[0.0, 0.0], process_noise=[0.1, 0.2],
        C=np.array([[1.0], [0.0]]) if inputs else None,
    )  # fmt: skip
    x = ps.observations.Gaussian.from_parameters(B, noise=[noise] * 3)
    return ps.StateSpaceModel(dynamics, {"x": x})


def with_gaps(data, share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    y = [np.where(rng.random(t.values["x"].shape) < share, np.nan, t.values["x"])
         for t in data.trials]  # fmt: skip
    return ps.Dataset.from_arrays({"x": y}, dt=data.dt)


def trained(model, train):
    """A known model as the result of a training that changed nothing."""
    engine = ps.inference.LaplaceEM(start="model", stages=(ps.inference.Stage("look", 0),))
    return engine.fit(model, train)


def exact(model, data, *, method, causal, particles, runs, draws, seed):
    """Stands in for the particle filter: the exact evidence, each trial with an error of a third.

    For linear-Gaussian models the Laplace posterior is exact.
    """
    assert (method, particles, runs, seed) == ("particle", 1000, evidence.RUNS, 0)
    assert draws == 1 and causal == any(o.memory(data.dt) for o in model.observations.values())
    made = smoothers.smooth(model, data)
    made.evidence_error = torch.full_like(made.log_evidence, 1 / 3)
    return made


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(evidence, "smooth", exact)


@pytest.fixture(scope="module")
def data():
    return linear().simulate(250, trials=4, dt=DT, seed=3)


@pytest.fixture(scope="module")
def table(data):
    train = linear().simulate(250, trials=2, dt=DT, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "smooth", exact)
        return ps.compare(
            {"true": trained(linear(), train), "wrong": trained(linear(0.7, 0.5), train)}, data
        )


# ---- the table -------------------------------------------------------------------------------


def test_columns_and_rows(table):
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == ["true", "wrong"] and table.index.name == "fit"
    assert list(table["evidence_kind"]) == ["exact", "exact"]
    assert table.drop(columns="evidence_kind").notna().all().all()
    assert table.attrs["notes"] == {}


def test_the_true_model_wins(table):
    true, wrong = table.loc["true"], table.loc["wrong"]
    assert true["evidence"] > wrong["evidence"] + 100
    for column in ("error_1", "error_5", "error_10", "d_stsp", "d_h"):
        assert true[column] < wrong[column], column
    assert true["error_1"] < true["persistence_1"] and true["error_10"] < true["var1_10"]
    assert true["d_stsp"] < 2 * true["d_stsp_floor"] < wrong["d_stsp"]


def test_the_true_model_is_calibrated(table):
    assert abs(table.loc["true", "coverage_95"] - 0.95) < 0.02
    sd = np.sqrt(2 / (4 * 250 * 3))  # of a mean of chi-squared variables
    assert abs(table.loc["true", "nis"] - 1) < 3 * sd
    assert table.loc["wrong", "nis"] > 1 + 3 * sd


def test_evidence_adds_trials_and_their_errors(table, data):
    exact_sum = float(smoothers.smooth(linear(), data).log_evidence.sum())
    assert table.loc["true", "evidence"] == pytest.approx(exact_sum)
    assert table.loc["true", "own_evidence"] == pytest.approx(exact_sum)
    assert table.loc["true", "evidence_se"] == pytest.approx(np.sqrt(4 / 9))


@pytest.mark.parametrize("kind", ["Gaussian", "BOLD"])
def test_evidence_by_particles_is_that_of_the_kalman_filter(kind):
    model = linear()
    if kind == "BOLD":
        o = ps.observations.BOLD.from_parameters(B, noise=[0.5] * 3, tr_seconds=2.0)
        model = ps.StateSpaceModel(model.dynamics, {"x": o})
    part = model.simulate(60, trials=2, dt=2.0 if kind == "BOLD" else DT, seed=3)
    value, error = evidence.particle_evidence(model, part, particles=500, seed=0)
    wanted = smoothers.smooth(model, part)
    assert wanted.evidence_kind == "exact"
    assert abs(value - float(wanted.log_evidence.sum())) < 5 * error
    assert 0 < error < 2


def test_weights_of_modalities_do_not_touch_the_evidence(data):
    model = linear()
    model.observations["x"].tempering.fill_(3.0)
    proper, _ = evidence.particle_evidence(model, data, particles=1000, seed=0, smoother=exact)
    assert proper == pytest.approx(float(smoothers.smooth(linear(), data).log_evidence.sum()))
    assert float(model.observations["x"].tempering) == 3.0


def test_forecasts_are_those_of_fit_score(table, data):
    train = linear().simulate(250, trials=2, dt=DT, seed=4)
    scores = trained(linear(0.7, 0.5), train).score(data)
    for column in [c for c in COLUMNS if c.split("_")[0] in ("error", "persistence", "var1")]:
        assert table.loc["wrong", column] == pytest.approx(scores.loc["x", column], rel=1e-12)
    assert table.loc["wrong", "coverage_95"] == scores.loc["x", "coverage_95"]


def test_the_data_are_smoothed_and_filtered_once(data, stand_in, monkeypatch):
    asked, posterior = [], ps.Fit.posterior

    def counted(fit, *args, causal=False, **options):
        asked.append(causal)
        return posterior(fit, *args, causal=causal, **options)

    monkeypatch.setattr(ps.Fit, "posterior", counted)
    ps.compare({"start": ps.Fit(linear())}, data.select(trials=[0, 1]))
    assert sorted(asked) == [False, True]


def test_the_exponent_of_a_linear_map_is_per_second(table):
    wanted = np.log(np.abs(np.linalg.eigvals(A)).max()) / DT
    assert table.loc["true", "lyapunov_max"] == pytest.approx(wanted)


def test_level_and_steps_name_their_columns(data, stand_in):
    part = data.select(trials=[0, 1])
    made = ps.compare({"a": ps.Fit(linear())}, part, steps=(2,), level=0.5)
    assert list(made.columns) == measures.column_names((2,), 0.5)
    assert {"error_2", "coverage_50"} <= set(made.columns)
    assert abs(made.loc["a", "coverage_50"] - 0.5) < 0.05
    assert np.isnan(made.loc["a", "var1_2"])  # nothing was trained


def test_errors_of_several_modalities_weigh_entries(stand_in):
    """Entries of all modalities together, by a sum over what fit.score says of each."""
    dynamics = linear().dynamics
    o = ps.observations
    model = ps.StateSpaceModel(dynamics, {
        "x": o.Gaussian.from_parameters(B, noise=[0.2] * 3),
        "y": o.Gaussian.from_parameters(B[:1], noise=[1.0]),
        "n": o.Poisson.from_parameters(0.3 * B[:2], bias=[0.0, 0.0]),
    })  # fmt: skip
    data = model.simulate(80, trials=2, every={"y": 2}, seed=1)
    train = model.simulate(80, trials=2, every={"y": 2}, seed=2)
    fit = trained(model, train)
    made = ps.compare({"a": fit}, data, steps=(1, 3)).loc["a"]
    scores = fit.score(data, steps=(1, 3))
    count = {"x": 2 * 67 * 3, "y": 2 * 33}  # samples from step 13 on; of y every second
    wanted = sum(count[m] * scores.loc[m, "error_3"] for m in count) / sum(count.values())
    assert made["error_3"] == pytest.approx(wanted)
    covered = (scores["coverage_95"] * scores["values"]).sum() / scores["values"].sum()
    assert made["coverage_95"] == pytest.approx(covered)
    assert np.isfinite(made["nis"]) and np.isfinite(made["d_stsp"])


# ---- innovations -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_innovations_are_the_quadratic_form_of_the_joint_gaussian(share):
    """The sum of v' S^-1 v is y' K^-1 y with K the covariance of all observed entries."""
    model = linear()
    data = model.simulate(12, trials=3, seed=1)
    data = with_gaps(data, share) if share else data
    found = mean_nis(model, smoothers.smooth(model, data, causal=True), data)
    with torch.no_grad():
        first = model.dynamics.initial
        m, P = first.mean.numpy(), first.noise.covariance.numpy()
        Q = model.dynamics.noise.covariance.numpy()
    means, marginal = [m], [P]
    for _ in range(11):
        means.append(A @ means[-1])
        marginal.append(A @ marginal[-1] @ A.T + Q)
    cov = np.zeros((12, 3, 12, 3))
    for s in range(12):
        for t in range(s, 12):
            lag = B @ marginal[s] @ np.linalg.matrix_power(A.T, t - s) @ B.T
            cov[s, :, t], cov[t, :, s] = lag, lag.T
    cov = cov.reshape(36, 36) + 0.2 * np.eye(36)
    centre = (np.stack(means) @ B.T).ravel()
    total, count = 0.0, 0
    for trial in data.trials:
        off = trial.values["x"].ravel() - centre
        seen = np.isfinite(off)
        total += off[seen] @ np.linalg.solve(cov[np.ix_(seen, seen)], off[seen])
        count += seen.sum()
    assert found == pytest.approx(total / count, rel=1e-9)


def test_innovations_of_a_rectified_read_out_are_linearised():
    model = linear()
    x = ps.observations.Gaussian.from_parameters(B, noise=[0.2] * 3, readout="relu")
    model = ps.StateSpaceModel(model.dynamics, {"x": x})
    data = model.simulate(5, seed=2)
    filtered = smoothers.smooth(model, data, causal=True)
    total = 0.0
    for t in range(5):
        m, P = filtered.predicted_mean[0, t].numpy(), filtered.predicted_covariance[0, t].numpy()
        H = B * (m > 0)
        v = data.values("x")[0, t] - B @ np.maximum(m, 0)
        total += v @ np.linalg.inv(H @ P @ H.T + 0.2 * np.eye(3)) @ v
    assert mean_nis(model, filtered, data) == pytest.approx(total / 15)


# ---- blocks and free runs ----------------------------------------------------------------------


def test_blocks_are_of_one_length_and_at_least_two():
    y = np.random.default_rng(0).normal(size=(100, 2))
    y[35:41, 0] = np.nan
    y[50, 1] = np.nan
    data = ps.Dataset.from_arrays({"x": [y, y[:10]]})
    found = [(b.trial, b.first, len(b.y)) for b in free_runs.blocks_of(data, "x")]
    assert found == [(0, 0, 35), (0, 41, 35)]  # 35 and 59 samples; ten are too few
    data = ps.Dataset.from_arrays({"x": [y[41:], y[:10]]})
    found = [(b.trial, b.first, len(b.y)) for b in free_runs.blocks_of(data, "x")]
    assert found == [(0, 0, 29), (0, 29, 29)]
    with pytest.raises(DataError, match="too few samples without long gaps"):
        free_runs.blocks_of(ps.Dataset.from_arrays({"x": y[:12]}), "x")


def test_short_gaps_are_filled_in_data_and_runs_alike(stand_in):
    values = np.arange(20.0)[:, None] ** 2
    values[[0, 5, 6]] = np.nan
    block = free_runs.Block(0, 0, values)
    wanted = np.arange(20.0) ** 2
    wanted[[0, 5, 6]] = [1.0, 16 + 33 / 3, 16 + 66 / 3]
    np.testing.assert_allclose(block.y[:, 0], wanted)
    run = np.arange(20.0)[:, None]
    np.testing.assert_allclose(block.filled(run)[:, 0], np.maximum(run[:, 0], 1.0))
    gappy = with_gaps(linear().simulate(200, trials=2, dt=DT, seed=3))
    made = ps.compare({"a": ps.Fit(linear())}, gappy, steps=(1,))
    assert made.loc["a", "d_stsp"] < 2 * made.loc["a", "d_stsp_floor"]
    assert "on straight lines" in made.attrs["notes"]["a"][0]


def test_a_free_run_starts_in_the_smoothed_state_and_follows_the_inputs():
    model = linear(inputs=1)
    s = np.random.default_rng(0).normal(size=(30, 1))
    data = model.simulate(30, inputs=s, every={"x": 2}, seed=1)
    posterior = smoothers.smooth(model, data)
    block = free_runs.Block(0, 3, data.trials[0].values["x"][3:10])
    found = free_runs.free_run(model, posterior, data, "x", block, noise=False)
    z, path = posterior.mean[0, 6].numpy(), []
    for t in range(6, 19):
        path.append(z)
        z = A @ z + [s[t + 1, 0], 0.0]
    np.testing.assert_allclose(found, np.stack(path)[::2] @ B.T, rtol=1e-12)


def test_a_free_run_of_bold_sees_the_past():
    """From the middle of a trial on, expected BOLD is that of the whole path before it."""
    o = ps.observations.BOLD.from_parameters(B, noise=[0.1] * 3, tr_seconds=1.0)
    model = ps.StateSpaceModel(linear().dynamics, {"x": o})
    data = model.simulate(40, dt=1.0, seed=1)
    posterior = smoothers.smooth(model, data)
    block = free_runs.Block(0, 25, data.trials[0].values["x"][25:])
    found = free_runs.free_run(model, posterior, data, "x", block, noise=False)
    with torch.no_grad():
        ahead = model.dynamics.rollout(posterior.mean[0, 25], 14, noise=False)
        whole = torch.cat([posterior.mean[0, :26], ahead])
        wanted = model.observations["x"].features_along(whole, dt=1.0)[25:]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-10)


def test_bins_can_be_filled():
    blocks = [np.zeros((300, 3))] * 4
    assert free_runs.bins_of(blocks) == 5  # (600 / 4)^(1/3) = 5.3
    assert free_runs.bins_of([np.zeros((10**6, 1))] * 2) == 30
    assert free_runs.bins_of([np.zeros((20, 5))] * 2) == 3


def test_a_run_that_diverges_scores_infinity_and_says_so(data, stand_in):
    model = linear()
    with torch.no_grad():
        model.dynamics.A.mul_(500.0)
    made = ps.compare({"a": ps.Fit(model)}, data.select(trials=[0, 1]), steps=(1,))
    assert made.loc["a", "d_stsp"] == np.inf and made.loc["a", "d_h"] == np.inf
    assert "diverged" in " ".join(made.attrs["notes"]["a"])


# ---- what cannot be measured -------------------------------------------------------------------


class Broken(ps.inference.LaplaceEM):
    def infer(self, model, data, *, causal=False):
        raise RuntimeError("no posterior today")


def test_a_fit_that_fails_costs_its_own_row_only(data, stand_in):
    part = data.select(trials=[0, 1])
    made = ps.compare({"bad": ps.Fit(linear(), Broken()), "good": ps.Fit(linear())}, part)
    assert made.loc["good"].drop(["seconds", "var1_1", "var1_5", "var1_10"]).notna().all()
    bad = made.loc["bad"]
    assert np.isfinite(bad["evidence"]) and bad["evidence_kind"] == ""
    assert bad.drop(["evidence", "evidence_se", "evidence_kind"]).isna().all()
    notes = made.attrs["notes"]
    assert list(notes) == ["bad"]
    assert "own_evidence: RuntimeError: no posterior today" in notes["bad"]


def test_a_model_whose_noise_was_not_fitted_has_no_likelihood(data, stand_in):
    engine = ps.inference.TeacherForcing(fit_noise=False)
    part = data.select(trials=[0, 1])
    made = ps.compare({"map": ps.Fit(linear(), engine)}, part, steps=(1,))
    assert np.isnan(made.loc["map", "evidence"]) and np.isnan(made.loc["map", "evidence_se"])
    assert np.isfinite(made.loc["map", "d_stsp"])
    notes = " ".join(made.attrs["notes"]["map"])
    assert "no likelihood for the data" in notes and "without noise" in notes


def test_counts_alone_have_neither_errors_nor_free_runs(stand_in):
    spikes = ps.observations.Poisson.from_parameters(0.3 * B, bias=[0.0] * 3)
    model = ps.StateSpaceModel(linear().dynamics, {"n": spikes})
    made = ps.compare({"a": ps.Fit(model)}, model.simulate(60, trials=2, seed=1)).loc["a"]
    for column in ("error_1", "persistence_5", "d_stsp", "d_h_floor", "nis"):
        assert np.isnan(made[column]), column
    assert np.isfinite(made[["own_evidence", "evidence", "coverage_95", "lyapunov_max"]]
                       .astype(float)).all()  # fmt: skip
    assert made["evidence_kind"] == "laplace"


def test_one_set_of_training_statistics_for_all(data, stand_in):
    part = data.select(trials=[0, 1])
    first = trained(linear(), linear().simulate(250, seed=4))
    other = trained(linear(), linear().simulate(250, seed=5))
    made = ps.compare({"a": first, "b": other, "c": ps.Fit(linear())}, part, steps=(1,))
    for column in ("error_1", "persistence_1", "var1_1", "d_stsp", "d_h"):
        assert made[column].nunique() == 1, column
    assert list(made.attrs["notes"]) == ["b"]
    assert "statistics of 'a'" in made.attrs["notes"]["b"][0]


# ---- refusals ----------------------------------------------------------------------------------


def test_refusals_name_the_fit(data):
    fit = ps.Fit(linear())
    two = ps.Dataset.from_arrays({"x": data.values("x"), "extra": data.values("x")}, dt=DT)
    with pytest.raises(DataError, match="'one' does not describe this modality"):
        ps.compare({"one": fit}, two)
    other = ps.Dataset.from_arrays({"y": data.values("x")}, dt=DT)
    with pytest.raises(DataError, match="the fit 'one' does not fit the data"):
        ps.compare({"one": fit}, other)
    with pytest.raises(PlssmError, match="'model' is a StateSpaceModel"):
        ps.compare({"model": linear()}, data)
    with pytest.raises(DataError, match="reveal"):
        ps.compare({"one": fit}, data.hold_out("x", channels=[0]))
    for wrong in (
        {"steps": (0,)}, {"steps": (1.5,)}, {"steps": ()}, {"level": 1.0}, {"particles": 0},
    ):  # fmt: skip
        with pytest.raises(PlssmError, match=f"compare: {next(iter(wrong))}"):
            ps.compare({"one": fit}, data, **wrong)
    for nothing in ({}, fit, [fit]):
        with pytest.raises(PlssmError, match="pass fits by name"):
            ps.compare(nothing, data)


def test_the_name_is_the_function_whatever_was_imported_before():
    code = (
        "import plssm.comparison, plssm.comparison.table, plssm.cli.compare, plssm as ps\n"
        "print(callable(ps.compare), ps.compare.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "plssm.comparison.table"]


def test_the_bar_is_shown_on_request(data, stand_in, capsys):
    ps.compare({"[b]a": ps.Fit(linear())}, data.select(trials=[0, 1]), steps=(1,), progress=True)
    assert "compare" in capsys.readouterr().err


def test_innovations_of_several_samples_in_a_step_are_one_vector():
    model = linear()
    seconds = np.array([0.1, 0.2, 1.9, 2.1, 4.0, 4.3, 4.45])  # steps 0, 0, 2, 2, 4, 4, 4
    values = np.random.default_rng(4).standard_normal((7, 3))
    values[3, 1] = np.nan
    data = ps.Dataset.from_arrays({"x": values}, dt=1.0, times={"x": seconds})
    filtered = smoothers.smooth(model, data, causal=True)
    steps = data.trials[0].steps("x")
    total = 0.0
    for t in np.unique(steps):
        m, P = filtered.predicted_mean[0, t].numpy(), filtered.predicted_covariance[0, t].numpy()
        y = values[steps == t]
        v, H = (y - B @ m).ravel(), np.tile(B, (len(y), 1))
        seen = np.isfinite(v)
        S = H @ P @ H.T + 0.2 * np.eye(len(v))
        total += v[seen] @ np.linalg.inv(S[np.ix_(seen, seen)]) @ v[seen]
    assert len(np.unique(steps)) < 7
    assert mean_nis(model, filtered, data) == pytest.approx(total / 20)
