"""Fits by EM that are kept for their free runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import CapabilityError, PlssmError
from plssm.inference import LaplaceEM, Stage
from plssm.inference.free_selection import FreeSelection
from plssm.inference.laplace import laplace_posterior

D = ps.dynamics
HELD = (Stage("linear", 5, dynamics="linear"), Stage("a", 7, process_noise=1e-3),
        Stage("b", 9, process_noise=1e-2))  # fmt: skip


def tents(slope=1.7, **noise):
    """Two independent maps z' = 1 - slope |z|, chaotic for slopes above 1, seen with noise."""
    dynamics = D.ShallowPLRNN.from_parameters(
        A=[slope] * 2, W1=-2 * slope * np.eye(2), W2=np.eye(2), h1=[1.0] * 2, clipped=False,
        **({"process_noise": 1e-5, "initial_noise": 0.1} | noise),
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(
        np.array([[1.0, 0.2], [0.0, 1.0], [0.5, -0.5]]), noise=0.01
    )
    return ps.StateSpaceModel(dynamics, {"x": seen})


@pytest.fixture(scope="module")
def recording():
    return tents().simulate(1500, seed=1)


@pytest.fixture(scope="module")
def oscillation():
    """A damped rotation that noise keeps going: runs of maps fitted to it do not leave."""
    c, s = 0.98 * math.cos(0.3), 0.98 * math.sin(0.3)
    dynamics = D.LinearDynamics.from_parameters(
        [[c, -s], [s, c]], process_noise=[0.05, 0.05], initial_noise=1.0
    )
    seen = ps.observations.Gaussian.from_parameters(
        np.array([[1.0, 0.2], [0.0, 1.0], [0.5, -0.5]]), noise=0.1
    )
    return ps.StateSpaceModel(dynamics, {"x": seen}).simulate(1500, seed=3)


def score(model, data, path=None):
    """The score beside a path, or beside the model's own smoothed path."""
    batch = data.batch()
    if path is None:
        path = laplace_posterior(model, batch).posterior.mean
    driven = model.dynamics.n_inputs > 0
    return FreeSelection(batch, driven=driven).compare(model.dynamics, path)[0]


def turning(turn):
    """A rotation by an angle, written with hinges: its runs do not depend on rounding."""
    c, s = math.cos(turn), math.sin(turn)
    return D.ShallowPLRNN.from_parameters(
        A=[0.0] * 2, W1=np.hstack([[[c, -s], [s, c]], -np.array([[c, -s], [s, c]])]),
        W2=np.vstack([np.eye(2), -np.eye(2)]), clipped=False, process_noise=1e-6,
        initial_noise=1.0,
    )  # fmt: skip


def test_runs_are_compared_with_the_path():
    """Once more with numpy's axes and the closed form of the orbit."""
    angle = np.arange(1500)
    path = np.stack([2.0 * np.cos(0.1 * angle), 2.0 * np.sin(0.1 * angle)], 1)
    away = path - path.mean(0)
    size, axes = np.linalg.svd(away, full_matrices=False)[1:]
    model = ps.StateSpaceModel(turning(0.13), {"x": ps.observations.Gaussian(2)})
    data = ps.Dataset.from_arrays({"x": path}, 1.0)
    found = score(model, data, torch.from_numpy(path)[None])
    starts = np.linspace(0, 1499, 16).astype(int)
    steps = 4 * 2500 + 1 + np.arange(2500)
    turned = 0.1 * starts[:, None] + 0.13 * steps
    runs = 2.0 * np.stack([np.cos(turned), np.sin(turned)], -1)
    alone = []
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):  # axes have no sign
        turn = axes.T * (len(path) ** 0.5 / size) * signs
        truth, pred = away @ turn, list((runs - path.mean(0)) @ turn)
        d = ps.metrics.state_space_divergence(truth=[truth], pred=pred, samples=500, floor=False)
        pred = [run[:1500] for run in pred]
        h = ps.metrics.power_spectrum_distance(truth=[truth], pred=pred, floor=False)
        assert float(h) > 0.1  # another frequency
        alone.append(float(d) + float(h))
    assert min(abs(found - a) for a in alone) < 0.02


def test_maps_are_told_apart_by_their_runs(recording):
    """The truth, another map, one at rest, and one that is left for good; same path for all."""
    path = laplace_posterior(tents(), recording.batch()).posterior.mean
    true, other, resting, leaving = (
        score(tents(s), recording, path) for s in (1.7, 1.3, 0.5, 2.5)
    )
    assert true < 0.7 * other and other < resting
    assert leaving == math.inf
    compared = FreeSelection(recording.batch(), driven=False)
    assert [compared.compare(tents(s).dynamics, path)[1] for s in (1.7, 1.3, 0.5, 2.5)] == [
        True, True, False, False,
    ]  # fmt: skip
    alone = ps.metrics.state_space_divergence(
        truth=[path[0].numpy()], pred=[np.full((2500, 2), 2 / 3)] * 16, floor=False
    )
    assert resting == pytest.approx(float(alone) + 1.0 + 3.0, abs=0.5)


def test_a_path_without_any_motion_is_not_compared(recording):
    assert score(tents(), recording, torch.zeros(1, 1500, 2).double()) == math.inf


def test_short_trials_and_inputs_are_compared_with_runs_of_their_own():
    """From the first state on and with the trial's inputs: the true paths themselves."""
    dynamics = D.PLRNN.from_parameters(
        A=[0.9, 0.5], W=[[0.0, 0.3], [-0.4, 0.0]], h=[0.1, 0.0], C=[[1.0], [0.5]],
        process_noise=1e-4, initial_noise=1.0,
    )  # fmt: skip
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(3)})
    inputs = np.random.default_rng(0).normal(size=(3, 80, 1))
    first = torch.ones(1, 2).double()

    def path(shift, sign=1.0):
        moved = torch.from_numpy(sign * np.roll(inputs, shift, axis=1))
        runs = [dynamics.rollout(first[0], 79, inputs=u[1:], noise=False) for u in moved]
        return torch.stack([torch.cat([first, run]) for run in runs]).detach()

    data = model.simulate(80, trials=3, inputs=inputs, seed=0)
    right = score(model, data, path(0))
    others = [score(model, data, path(*how)) for how in ((1,), (-1,), (0, -1.0))]
    assert right < 0.5 * min(others)


@pytest.mark.parametrize("iterations", [1, 7, 25, 51, 153, 1000])
def test_25_to_50_iterations_are_checked(iterations):
    checked = [i for i in range(iterations + 1) if FreeSelection.is_due(i, iterations)]
    assert checked[0] == 0 and min(iterations, 25) <= len(checked) - 1 < 51
    assert len(set(np.diff(checked))) == 1


def fitted(data, **options):
    fresh = ps.StateSpaceModel(D.PLRNN(4), {"x": ps.observations.Gaussian(3)})
    settings = {"seed": 0, "stages": HELD, "tolerance": -1.0, "ridge": 10.0} | options
    return LaplaceEM(**settings).fit(fresh, data, progress=False)


def assert_is(fit, data, stage, iteration, **options):
    """A fit that is kept by evidence and ends there has the same parameters."""
    last = [s.name for s in HELD].index(stage)
    cut = Stage(stage, iteration, process_noise=HELD[last].process_noise)
    same = fitted(data, stages=(*HELD[:last], cut), **options)
    assert "free_score" not in same.history
    for name, value in same.model.state_dict().items():
        torch.testing.assert_close(fit.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_what_is_kept_is_the_iteration_with_the_best_runs_of_the_last_stage(oscillation):
    fit = fitted(oscillation, select="free_runs", seed=1)
    rows = fit.history.query("stage == 'b'").set_index("iteration")
    best = int(rows["free_score"].idxmin())
    assert math.isfinite(rows["free_score"][best])
    kept = fit.history.query("kept")
    assert len(kept) == 1 and kept[["stage", "iteration"]].iloc[0].tolist() == ["b", best]
    assert_is(fit, oscillation, "b", best, seed=1)
    (axis,) = ps.plot.convergence(fit.history).axes
    mark = next(line for line in axis.lines if line.get_label() == "kept")
    at = int(kept.index[0])
    assert (mark.get_xdata(), mark.get_ydata()) == (at + 1, fit.history["evidence"][at])


@pytest.mark.parametrize("initial", ["shared", "tied"])
def test_where_a_stage_ends_early_is_compared_too(recording, initial):
    """A plain stage of 1000 iterations is checked every 40, and ends long before."""
    dynamics = D.PLRNN(4, initial=initial)
    fresh = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(3)})
    stages = (*HELD[:2], Stage("long", 1000, process_noise=1e-2))
    engine = LaplaceEM(seed=0, stages=stages, tolerance=1e-2, ridge=10.0, select="free_runs")
    fit = engine.fit(fresh, recording, progress=False)
    rows = fit.history.query("stage == 'long'")
    assert 3 <= rows["iteration"].iloc[-1] < 40
    assert rows["free_score"].notna().tolist() == [True] + [False] * (len(rows) - 2) + [True]


def scripted(monkeypatch, scores):
    """Scores as told, one for each comparison; negative ones are of runs at rest."""
    told = iter(scores)

    def compare(*_):
        score = next(told)
        return abs(score), 0 < score < math.inf

    monkeypatch.setattr(FreeSelection, "compare", compare)


@pytest.mark.parametrize(
    ("first", "second", "stage", "iteration"),
    [
        ([1.0] * 8, [9.0] * 4 + [2.0] + [3.0] * 5, "b", 4),
        ([5.0, 2.0] + [3.0] * 6, [math.inf] * 10, "a", 1),
        ([9.0, -2.0] + [8.0] * 6, [-1.0] * 10, "a", 2),
        ([-2.0, math.inf] + [-1.0] * 6, [-9.0] * 4 + [-8.0] * 6, "b", 4),
        ([1.0] * 8, [-0.1] * 9 + [9.0], "b", 9),
    ],
)
def test_stages_whose_runs_come_to_rest_or_leave_give_way_to_those_before(
    recording, monkeypatch, first, second, stage, iteration
):
    scripted(monkeypatch, first + second)
    assert_is(fitted(recording, select="free_runs"), recording, stage, iteration)


def test_stages_that_hold_the_map_go_on_from_the_best_runs(recording, monkeypatch):
    scripted(monkeypatch, [3.0] * 8 + [2.0, 1.0] + [5.0] * 8)
    after = Stage("noise", 4, learn=("process_noise",))
    fit = fitted(recording, select="free_runs", stages=(*HELD, after))
    rows = fit.history.query("stage == 'noise'")
    assert rows["free_score"].isna().all() and rows["evidence"].is_monotonic_increasing
    held = fitted(recording, stages=(*HELD[:2], Stage("b", 1, process_noise=1e-2)))
    torch.testing.assert_close(fit.model.dynamics.W, held.model.dynamics.W)
    noise = fit.model.dynamics.noise.variance.detach().mean()
    assert float(noise) == pytest.approx(rows["process_noise"].iloc[-1])


def test_without_any_run_the_evidence_decides(recording, monkeypatch):
    scripted(monkeypatch, [math.inf] * 3 * 18)
    with pytest.warns(RuntimeWarning, match="no free run stays finite"):
        fit = fitted(recording, select="free_runs", restarts=3)
    ends = fit.history.groupby("restart")["evidence"].last()
    chosen = fit.history.loc[fit.history["selected"], "restart"].unique().tolist()
    assert chosen == [ends.idxmax()] and not fit.history["kept"].any()


def test_restarts_are_chosen_by_their_runs(recording, monkeypatch):
    count = 8 + 10
    scripted(monkeypatch, [3.0] * count + [2.0] * count + [4.0] * count)
    fit = fitted(recording, select="free_runs", restarts=3)
    assert fit.history.loc[fit.history["selected"], "restart"].unique().tolist() == [1]


def test_restarts_can_be_chosen_by_runs_beside_other_data(recording, monkeypatch):
    told = {1500: [3.0] * 2 * 18, 900: [1.0, 2.0]}  # the last ones first
    monkeypatch.setattr(
        FreeSelection, "compare", lambda self, *_: (told[self.batch.steps].pop(), True)
    )
    fresh = ps.StateSpaceModel(D.PLRNN(4), {"x": ps.observations.Gaussian(3)})
    engine = LaplaceEM(
        stages=HELD, tolerance=-1.0, ridge=10.0, select="free_runs", restarts=2, seed=0
    )
    other = tents().simulate(900, seed=2)
    fit = engine.fit(fresh, recording, validation=other, progress=False)
    assert fit.history.loc[fit.history["selected"], "restart"].unique().tolist() == [1]
    assert told == {1500: [], 900: []}


def test_an_interrupted_fit_keeps_its_best_runs(recording, monkeypatch):
    from plssm.inference import em_run

    scripted(monkeypatch, [3.0] * 8 + [2.0, 1.0] + [5.0] * 8)
    original = em_run.EMRun._record

    def interrupting(self, stage, iteration, *arguments):
        if (stage.name, iteration) == ("b", 5):
            raise KeyboardInterrupt
        original(self, stage, iteration, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(em_run.EMRun, "_record", interrupting)
        with pytest.warns(RuntimeWarning, match="interrupted"):
            fit = fitted(recording, select="free_runs")
    assert_is(fit, recording, "b", 1)


def test_a_fit_that_fails_at_once_compares_nothing(recording, monkeypatch):
    from plssm.inference import em_run

    broken = lambda *_, **__: (_ for _ in ()).throw(PlssmError("broken"))  # noqa: E731
    fresh = ps.StateSpaceModel(D.PLRNN(4), {"x": ps.observations.Gaussian(3)})
    engine = LaplaceEM(stages=(Stage("a", 3),), start="model", select="free_runs")
    monkeypatch.setattr(em_run, "laplace_posterior", broken)
    with pytest.raises(PlssmError, match="broken"):
        engine.fit(fresh, recording, progress=False)


def test_short_and_ragged_trials_can_be_fitted():
    data = ps.Dataset.from_arrays(
        {"x": [np.random.default_rng(k).normal(size=(n, 3)) for k, n in enumerate((1, 40, 70))]},
        1.0,
    )
    fit = fitted(data, select="free_runs")
    assert fit.history["kept"].sum() == 1 and math.isfinite(fit.history["free_score"].min())


def test_unknown_selections_and_linear_maps_are_refused(recording):
    with pytest.raises(PlssmError, match="select is 'best'"):
        LaplaceEM(select="best")
    linear = ps.StateSpaceModel(D.LinearDynamics(2), {"x": ps.observations.Gaussian(3)})
    with pytest.raises(CapabilityError, match="come to rest"):
        LaplaceEM(select="free_runs").fit(linear, recording)
