"""EM on linear-Gaussian models never lowers the evidence; PLRNN fits keep their promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM, Stage

M, N, K = 2, 3, 2
GROUPS = ("dynamics", "process_noise", "initial", "observations")


def simulate(seed, *, trials, inputs=0, nuisance=0, missing=0.2, shortest=3, longest=9):
    """Ragged trials with missing entries from a random stable linear system."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(M, M)))[0]
    C, B = rng.normal(size=(M, inputs)), rng.normal(size=(N, M))
    J = rng.normal(size=(N, nuisance))
    y, s, r = [], [], []
    for _ in range(trials):
        steps = int(rng.integers(shortest, longest + 1))
        inputs_, nuisance_ = rng.normal(size=(steps, inputs)), rng.normal(size=(steps, nuisance))
        z = rng.normal(size=M) + C @ inputs_[0]
        path = [z]
        for t in range(1, steps):
            z = 0.8 * rotation @ z + 0.2 + C @ inputs_[t] + 0.4 * rng.normal(size=M)
            path.append(z)
        x = np.array(path) @ B.T + nuisance_ @ J.T + 0.3 * rng.normal(size=(steps, N))
        x[rng.random(x.shape) < missing] = np.nan
        y.append(x), s.append(inputs_), r.append(nuisance_)
    return ps.Dataset.from_arrays(
        {"x": y}, inputs=s if inputs else None, nuisance={"x": r} if nuisance else None
    )


def linear_model(seed, *, noise="diagonal", initial="shared", initial_noise="diagonal", inputs=0,
                 at_start=False, nuisance=0):  # fmt: skip
    rng = np.random.default_rng(seed)
    dynamics = ps.dynamics.LinearDynamics(
        M, inputs, noise=noise, initial=initial, initial_noise=initial_noise,
        input_at_start=at_start,
    )  # fmt: skip
    observation = ps.observations.Gaussian(N, nuisance=nuisance)
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.from_numpy(rng.normal(size=p.shape)))
    return model


def evidences(model, data, *, iterations=12, learn=GROUPS, noise=None):
    """Evidence of every iteration of a stage that never stops early."""
    stage = Stage("em", iterations, learn=learn, process_noise=noise)
    engine = LaplaceEM(start="model", stages=(stage,), tolerance=-np.inf, floor=1e-12)
    fit = engine.fit(model, data)
    assert len(fit.history) == iterations + 1
    return fit, fit.history["evidence"].to_numpy()


def assert_never_falls(evidence):
    steps = np.diff(evidence)
    assert (steps >= -1e-9 * np.abs(evidence[:-1])).all(), steps


@pytest.mark.parametrize("initial", ["shared", "tied"])
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("noise", ["diagonal", "full", "isotropic"])
def test_em_never_lowers_the_evidence_of_a_linear_model(noise, at_start, initial):
    for trials, initial_noise in ((2, "full"), (12, noise), (12, "diagonal")):
        data = simulate(trials, trials=trials, inputs=K, nuisance=1)
        model = linear_model(
            3, noise=noise, initial=initial, initial_noise=initial_noise, inputs=K,
            at_start=at_start, nuisance=1,
        )  # fmt: skip
        _, evidence = evidences(model, data)
        assert_never_falls(evidence)
        assert evidence[-1] > evidence[0] + 1.0


SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(GROUPS, n)]


@pytest.mark.parametrize("learn", SUBSETS, ids="+".join)
def test_every_subset_of_the_updates_never_lowers_the_evidence(learn):
    for initial, trials in (("shared", 12), ("tied", 3)):
        data = simulate(5, trials=trials, inputs=K)
        model = linear_model(6, noise="full", initial=initial, inputs=K, at_start=True)
        _, evidence = evidences(model, data, iterations=3, learn=learn)
        assert_never_falls(evidence)


@pytest.mark.parametrize("trials", [1, 3, 4, 12])
def test_noise_updates_alone_never_lower_the_evidence(trials):
    """Free initial covariance (from 2M trials on), few trials, missing data."""
    data = simulate(7, trials=trials, missing=0.4)
    for noise in ("diagonal", "full", "isotropic"):
        model = linear_model(8, noise=noise, initial_noise=noise)
        for learn in (("process_noise",), ("process_noise", "initial")):
            fit, evidence = evidences(model, data, learn=learn)
            assert_never_falls(evidence)
            moved = fit.model.dynamics.initial.noise.covariance
            kept = torch.equal(moved, model.dynamics.initial.noise.covariance)
            assert kept == (trials < 2 * M or "initial" not in learn)


FREEZES = {
    "A": ["dynamics.A"],
    "h and C": ["dynamics.h", "dynamics.C"],
    "process noise": ["dynamics.noise"],
    "initial": ["dynamics.initial"],
    "initial mean": ["dynamics.initial.mean"],
    "read-out": ["observations.x.weight", "observations.x.log_noise"],
}


@pytest.mark.parametrize("initial", ["shared", "tied"])
@pytest.mark.parametrize("name", FREEZES)
def test_frozen_parameters_stay_and_the_evidence_never_falls(name, initial):
    data = simulate(9, trials=12, inputs=K)
    model = linear_model(10, noise="full", inputs=K, at_start=True, initial=initial)
    for path in FREEZES[name]:
        for key, parameter in model.named_parameters():
            if key == path or key.startswith(path + "."):
                parameter.requires_grad_(False)
    before = {k: v.clone() for k, v in model.named_parameters()}
    fit, evidence = evidences(model, data)
    assert_never_falls(evidence)
    for key, value in fit.model.named_parameters():
        assert torch.equal(model.get_parameter(key), before[key]), "the given model has changed"
        if not value.requires_grad:
            assert torch.equal(value, before[key]), f"{key} has moved"


# ---- piecewise-linear maps --------------------------------------------------------------------
def hinged_truth(seed=0):
    rng = np.random.default_rng(seed)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.8, 0.7], [[0.0, 0.6], [-0.7, 0.0]], h=[0.3, 0.2], process_noise=[0.05, 0.05],
        initial_mean=[0.5, 0.5],
    )  # fmt: skip
    observation = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(5, 2)), rng.normal(size=5), noise=np.full(5, 0.1)
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def test_from_the_true_parameters_the_laplace_evidence_rises_and_settles():
    """Laplace EM is not exact EM; near the truth it behaves like it, and ends by its tolerance."""
    truth = hinged_truth()
    data = truth.simulate(60, trials=8, seed=1)
    start = float(ps.smooth(truth, data).log_evidence.sum())
    fit = LaplaceEM(iterations=40, tolerance=1e-4).fit(truth, data)
    evidence = fit.history["evidence"].to_numpy()
    np.testing.assert_allclose(evidence[0], start, rtol=1e-9)
    assert (np.diff(evidence) > -0.5).all()
    assert evidence.max() > start
    assert evidence.max() < start + 60  # about half a nat a parameter, not a runaway
    assert len(evidence) < 41
    np.testing.assert_allclose(
        float(fit.posterior(data).log_evidence.sum()), evidence.max(), atol=0.5
    )
    assert set(fit.history["status"]) == {"stationary"}
    assert fit.history["solves"].max() <= 12


def test_a_fresh_fit_predicts_held_out_trials_nearly_as_well_as_the_truth():
    truth = hinged_truth()
    train, test = truth.simulate(60, trials=8, seed=2), truth.simulate(60, trials=4, seed=3)
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(5)})
    fit = LaplaceEM(iterations=30, restarts=2).fit(fresh, train)
    fit_score = fit.score(test, steps=(1,)).loc["x"]
    true_score = ps.Fit(truth).score(test, steps=(1,)).loc["x"]
    assert fit_score["log_likelihood"] > true_score["log_likelihood"] - 0.08
    assert fit_score["error_1"] < fit_score["persistence_1"]
    assert abs(fit_score["coverage_95"] - 0.95) < 0.03


@pytest.mark.parametrize("at_start", [False, True])
def test_tied_initial_means_of_a_hinged_map(at_start):
    """One mean a trial while training; new trials get their average with their spread."""
    data = simulate(4, trials=6, inputs=K, longest=20)
    dynamics = ps.dynamics.PLRNN(M, K, initial="tied", noise="full", input_at_start=at_start)
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(N)})
    fit = LaplaceEM(iterations=12).fit(model, data)
    own = fit.model.dynamics
    extra = own.initial.noise.variance - own.noise.variance
    assert (extra > 0).all()
    assert torch.isfinite(fit.posterior(data).log_evidence).all()
    assert np.isfinite(fit.history["evidence"]).all()


def test_restarts_are_chosen_on_the_validation_data():
    truth = hinged_truth()
    train, validation = truth.simulate(30, trials=2, seed=5), truth.simulate(40, trials=4, seed=6)
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": ps.observations.Gaussian(5)})
    fit = LaplaceEM(iterations=8, restarts=3).fit(fresh, train, validation=validation)
    chosen = fit.history.loc[fit.history["selected"], "restart"].iloc[0]
    here = float(fit.posterior(validation).log_evidence.sum())
    first = LaplaceEM(iterations=8).fit(fresh, train).posterior(validation)
    assert here >= float(first.log_evidence.sum()) - 1e-6 * abs(here)
    assert chosen in (0, 1, 2)


def test_a_rectified_readout_is_fitted_without_breaking_down():
    truth = hinged_truth()
    observation = ps.observations.Gaussian(5, readout="relu")
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": observation})
    data = truth.simulate(25, trials=2, seed=7)
    fit = LaplaceEM(iterations=6).fit(model, data)
    assert np.isfinite(fit.history["evidence"]).all()
    said = set("+".join(fit.history["status"]).split("+"))
    assert said <= {"stationary", "stalled", "max_solves"}


@pytest.mark.parametrize("stage", ["linear", "search", "free"])
def test_an_interrupted_fit_keeps_the_best_so_far(monkeypatch, stage):
    """Ctrl-C in the linear stage raises; later it returns the best parameters with a warning."""
    from plssm.inference import em_run

    made, original = [], em_run.EMRun._record

    def interrupting(self, now, *arguments):
        original(self, now, *arguments)
        made.append(now.name)
        if made.count(stage) == (1 if stage == "free" else 8):  # it may end after one
            raise KeyboardInterrupt

    truth = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(4)})
    data = truth.simulate(60, trials=2, seed=0)
    monkeypatch.setattr(em_run.EMRun, "_record", interrupting)
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(4)})
    engine = ps.inference.LaplaceEM(seed=0, iterations=60, tolerance=0.0)
    if stage == "linear":
        with pytest.raises(KeyboardInterrupt):
            engine.fit(fresh, data, progress=False)
        return
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = engine.fit(fresh, data, progress=False)
    reached = fit.history.query("stage != 'linear'")["evidence"]
    assert set(fit.history["stage"]) == {"linear", "search", stage}
    assert len(fit.history) <= len(made)
    assert float(fit.posterior(data).log_evidence.sum()) > reached.max() - 1.0


@pytest.mark.parametrize("long", [False, True])
def test_an_interruption_right_after_the_search_keeps_its_winner(monkeypatch, long):
    from plssm.inference import em_run, start_search

    if long:
        monkeypatch.setattr(start_search, "ENOUGH", 150)
    truth = hinged_truth()
    data = truth.simulate(200, trials=2, seed=7)
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(5)})
    original = em_run.EMRun._iterate

    def stopped(self, stage):
        if stage.name == "free":
            raise KeyboardInterrupt
        return original(self, stage)

    monkeypatch.setattr(em_run.EMRun, "_iterate", stopped)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = LaplaceEM(seed=0).fit(fresh, data, progress=False)
    y = data.values("x").reshape(-1, 5)
    white = -0.5 * len(y) * (np.log(2 * np.pi * y.var(0)) + 1).sum()  # channels on their own
    assert float(fit.posterior(data).log_evidence.sum()) > white + len(y)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1), (1, 3, 2)])
def test_very_short_data_can_be_fitted(shape):
    """One step, one trial, one channel: nothing to learn, but no crash either."""
    x = np.random.default_rng(0).standard_normal(shape)
    data = ps.Dataset.from_arrays({"x": x}, check_channels=False)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": ps.observations.Gaussian(shape[2])})
    fit = LaplaceEM(seed=0, iterations=4).fit(model, data, progress=False)
    assert torch.isfinite(fit.posterior(data).log_evidence).all()


def test_constant_channels_can_be_fitted():
    data = ps.Dataset.from_arrays({"x": np.ones((50, 3))}, check_channels=False)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": ps.observations.Gaussian(3)})
    fit = LaplaceEM(seed=0, iterations=4).fit(model, data, progress=False)
    predicted = fit.forecast(data, steps=2)["x"].mean
    np.testing.assert_allclose(predicted, np.ones((1, 2, 3)), atol=1e-2)


@pytest.mark.parametrize("trials", [3, 30])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_noise_updates_of_a_plrnn_never_lower_the_evidence(trials, missing):
    """Free initial covariance, few and many trials, missing entries; strong hinges."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        coupling = 0.4 * rng.standard_normal((4, 4))
        np.fill_diagonal(coupling, 0.0)
        dynamics = ps.dynamics.PLRNN.from_parameters(
            A=rng.uniform(0.3, 0.8, 4),
            W=coupling,
            h=0.3 * rng.standard_normal(4),
            process_noise=np.full(4, 0.05),
            initial_noise=np.full(4, 0.5),
        )
        observation = ps.observations.Gaussian.from_parameters(
            B=rng.standard_normal((10, 4)), noise=np.full(10, 0.2)
        )
        model = ps.StateSpaceModel(dynamics, {"x": observation})
        x = model.simulate(25, trials=trials, seed=seed).values("x")
        x[rng.random(x.shape) < missing] = np.nan
        dynamics.noise.variance = np.full(4, 0.3)
        dynamics.initial.noise.variance = np.full(4, 2.0)
        observation.noise = np.full(10, 1.0)
        observation.weight.requires_grad_(False)
        observation.bias.requires_grad_(False)
        stage = Stage("noise", 15, learn=("process_noise", "initial", "observations"))
        engine = LaplaceEM(stages=(stage,), tolerance=0.0)
        fit = engine.fit(model, ps.Dataset.from_arrays({"x": x}), progress=False)
        evidence = fit.history["evidence"].to_numpy()
        assert evidence[-1] > evidence[0] + 10
        assert np.diff(evidence).min() > -1e-9 * x.size * 10  # rounding
