"""Starts that compete, the path they begin from, and extrapolated fixed points."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM, Stage, em_run, start_search
from plssm.inference.denoised_path import denoised_path
from plssm.inference.em_parameters import EMParameters
from plssm.inference.extrapolation import Extrapolation
from plssm.inference.start_search import (
    ENOUGH,
    ENTRANTS,
    FURTHER,
    KEPT,
    PROBES,
    PROMISE,
    ROUNDS,
    TRIAL,
    best_start,
    searched_part,
)
from plssm.inference.starts import state_path


@dataclass
class Runner:
    """A contender whose evidence rises by its talent."""

    talent: float
    path: float
    evidence: float = -np.inf
    done: list = field(default_factory=list)

    def advance(self, iterations):
        self.done.append(iterations)
        if np.isfinite(self.talent):
            self.evidence = self.talent - 1.0 / sum(self.done)

    def smoothed(self):
        return self.path


def test_the_best_contender_wins_and_its_path_breeds():
    rng, made = np.random.default_rng(0), []

    def entrants(path, count):
        assert count == ENTRANTS
        new = [Runner(path + rng.normal(), path + 1.0) for _ in range(3)]
        new.append(Runner(-np.inf, 0.0))  # fails
        made.extend(new)
        return new

    best = best_start([0.0, 0.5], entrants)
    assert best.evidence == max(r.evidence for r in made)
    assert len(made) == ROUNDS * 2 * 4
    assert all(r.done in ([TRIAL], [TRIAL, FURTHER]) for r in made)
    assert sum(len(r.done) == 2 for r in made) <= ROUNDS * KEPT
    assert best_start([0.0], lambda path, count: [Runner(-np.inf, 0.0)]) is None


@pytest.mark.parametrize("ahead", [0.5, 1.5])
def test_where_iterations_are_slow_a_search_must_promise_something(ahead):
    """Two paths; entrants of the second never are better than the plain start."""
    made, steps, margin = [], 100, 100 * PROMISE

    def entrants(path, count):
        for _ in range(4):
            made.append(Runner(path, path))
            yield made[-1]

    plain = Runner(10.0, 10.0)
    best = best_start([10.0 + ahead * margin, 9.0], entrants, plain=plain, steps=steps)
    second = [r for r in made if r.talent == 9.0]
    assert len(second) == PROBES
    if ahead < 1.0:
        assert best is plain and plain.done == [TRIAL]
        assert len(made) == 2 * PROBES
    else:
        assert best.talent == 10.0 + ahead * margin and best.done == [TRIAL, FURTHER]
        assert len([r for r in made if r.talent > 10.0]) >= ROUNDS * 4
        assert plain.done == [TRIAL]


def test_a_plain_start_that_fails_stops_nobody():
    for plain in (None, Runner(-np.inf, 0.0)):
        failing = [Runner(-np.inf, 0.0) for _ in range(PROBES)]
        runners = [*failing, Runner(1.0, 1.0), Runner(2.0, 2.0)]
        best = best_start([0.0], lambda path, count: runners, plain=plain, steps=10)  # noqa: B023
        assert best is runners[-1]


def interrupted(paths, entrants, *, plain, steps):
    plain.advance(TRIAL)
    raise KeyboardInterrupt


def test_counts_that_follow_a_line_are_not_searched_for_kinks(monkeypatch):
    """Seen by few spikes, a linear state: starts with kinks elsewhere explain no more."""
    made = []
    contender = em_run.EMRun._contender

    def counted(self, path, batch, means):
        made.append(contender(self, path, batch, means))
        return made[-1]

    monkeypatch.setattr(em_run.EMRun, "_contender", counted)
    rng = np.random.default_rng(0)
    truth = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters(
            [[0.95, 0.1], [-0.1, 0.95]], process_noise=[0.05, 0.05]
        ),
        {"x": ps.observations.Poisson.from_parameters(
            rng.normal(size=(6, 2)), np.full(6, -0.5), bin_seconds=1.0)},
    )  # fmt: skip
    data = truth.simulate(400, seed=0)
    model = ps.StateSpaceModel(
        ps.dynamics.PLRNN(2), {"x": ps.observations.Poisson(6, bin_seconds=1.0)}
    )
    fit = LaplaceEM(iterations=10).fit(model, data, progress=False)
    assert 1 < len(made) <= 1 + 3 * PROBES
    rows, (plain, *_) = fit.history, made
    assert rows["stage"].drop_duplicates().tolist() == ["linear", "search", "free"]
    searched = rows.query("stage == 'search'")["evidence"]
    assert searched.tolist() == plain.table()["evidence"].tolist()
    assert rows["evidence"].iloc[-1] >= searched.iloc[-1]
    # interrupted in the search: the plain start is what there is
    monkeypatch.setattr(em_run, "best_start", interrupted)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = LaplaceEM(iterations=10).fit(model, data, progress=False)
    found = float(fit.posterior(data).log_evidence.sum())
    assert found == pytest.approx(plain.evidence, rel=1e-6)


def test_extrapolation_solves_a_linear_iteration_in_as_many_steps_as_it_has_dimensions():
    rng = np.random.default_rng(0)
    matrix, target = 0.3 * rng.normal(size=(4, 4)), rng.normal(size=4)
    wanted = np.linalg.solve(np.eye(4) - matrix, target)
    further, x = Extrapolation(5), np.zeros(4)
    for _ in range(7):
        step = matrix @ x + target - x
        moved = further.after(x, step)
        x = x + step if moved is None else moved
    np.testing.assert_allclose(x, wanted, atol=1e-4)
    assert Extrapolation(0).after(x, x) is None


def test_parameters_as_a_vector_and_back():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    model.observations["x"].bind(2)
    means = np.arange(6.0).reshape(3, 2)
    for trial_means in (None, means):
        here = EMParameters(model.state_dict(), trial_means)
        again = here.at(here.vector())
        assert all(torch.equal(again.state[k], v) for k, v in here.state.items())
        moved = here.at(here.vector() + 1.0)
        assert torch.equal(moved.state["dynamics.A"], here.state["dynamics.A"] + 1.0)
        if trial_means is not None:
            np.testing.assert_array_equal(moved.trial_means, means + 1.0)


CHAOS = {
    "A": [-0.11, -0.23, -0.65],
    "W": [[0.0, 0.22, -1.48], [-1.37, 0.0, 0.6], [0.58, 1.34, 0.0]],
    "h": [0.94, 0.91, -0.48],
}
CYCLE = {"A": [0.61, 0.94], "W": [[0.0, 1.28], [-1.49, 0.0]], "h": [-0.82, 0.91]}


def system(parameters, steps=1000, seed=0, **options):
    dim = len(parameters["A"])
    dynamics = ps.dynamics.PLRNN.from_parameters(**parameters, process_noise=[0.01] * dim)
    weight = np.random.default_rng(0).normal(size=(5, dim))
    seen = ps.observations.Gaussian.from_parameters(weight, noise=[0.1] * 5)
    truth = ps.StateSpaceModel(dynamics, {"x": seen})
    return truth, truth.simulate(steps, seed=seed, **options)


def test_the_denoised_path_sees_a_direction_below_the_noise():
    """The chaotic state, one of whose directions has less variance in the data than the noise."""
    truth, data = system(CHAOS)
    z, batch = data.latent[0], data.batch()

    def explained(path):
        x = np.column_stack([path.mean[0], np.ones(len(z))])
        left = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
        return (1.0 - left.var(0) / z.var(0)).min()

    model = ps.StateSpaceModel(truth.dynamics, {"x": ps.observations.Gaussian(5)})
    cleaned = explained(denoised_path(model, batch, 3))
    assert cleaned > 0.88
    assert 1.0 - cleaned < 0.7 * (1.0 - explained(state_path(model, batch, 3)))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_denoised_path_of_ragged_trials_and_gaps(channels):
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(n, channels)) for n in (40, 13)]
    x[0][rng.random(x[0].shape) < 0.3] = np.nan
    data = ps.Dataset.from_arrays({"x": x})
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": ps.observations.Gaussian(channels)})
    for neighbours in ((-1, 1), (-1,)):
        path = denoised_path(model, data.batch(), 3, neighbours=neighbours).mean
        assert path.shape == (2, 40, 3)
        assert np.isfinite(path).all()
        assert (path[1, 13:] == 0).all()


@pytest.mark.parametrize(("parameters", "slack"), [(CYCLE, 2.0), (CHAOS, 10.0)])
def test_fits_from_the_data_reach_the_evidence_of_the_truth(parameters, slack):
    """Beside EM from the truth, whose first state is as unknown as a fresh model's.

    From starts in the wrong coordinates fits of the cycle end 50 to 1000 nats lower, those of the
    chaotic system 400 to 1000.
    """
    truth, data = system(parameters, seed=1)
    spread = torch.diag(torch.from_numpy(data.latent[0].var(0)))
    truth.dynamics.initial.noise.covariance = spread
    fresh = ps.StateSpaceModel(ps.dynamics.PLRNN(truth.dim), {"x": ps.observations.Gaussian(5)})
    known, found = (LaplaceEM(iterations=50).fit(m, data, progress=False) for m in (truth, fresh))
    known, found = (float(f.posterior(data).log_evidence.sum()) for f in (known, found))
    assert found > known - slack


def test_extrapolated_em_ends_where_plain_em_ends():
    """A linear model: the same maximum, the evidence rising all the way, in fewer iterations."""
    rng = np.random.default_rng(0)
    truth = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics.from_parameters(
            A=[[0.9, 0.2], [-0.2, 0.9]], process_noise=[0.1, 0.1]
        ),
        {"x": ps.observations.Gaussian.from_parameters(rng.normal(size=(5, 2)), noise=[0.3] * 5)},
    )
    data = truth.simulate(200, seed=3)
    tables = [
        LaplaceEM(stages=(Stage("em", 400, accelerated=fast),), tolerance=1e-9).fit(
            truth, data, progress=False
        )
        for fast in (False, True)
    ]
    plain, fast = (fit.history["evidence"].to_numpy() for fit in tables)
    assert (np.diff(fast) > -1e-6).all()
    assert fast[-1] > plain[-1] - 0.05
    reached = plain[-1] - 0.1
    assert np.argmax(fast >= reached) < 0.6 * np.argmax(plain >= reached)


def test_starts_of_long_data_compete_on_a_part_of_them():
    rng = np.random.default_rng(0)
    short = ps.Dataset.from_arrays({"x": rng.normal(size=(3, ENOUGH // 3, 2))}).batch()
    assert searched_part(short) is None
    one = ps.Dataset.from_arrays({"x": rng.normal(size=(3 * ENOUGH, 2))}).batch()
    part = searched_part(one)
    assert part.batch.length.tolist() == [ENOUGH] and part.start.tolist() == [ENOUGH]
    uneven = [rng.normal(size=(n, 2)) for n in (100, 3 * ENOUGH, 4 * ENOUGH, 100)]
    part = searched_part(ps.Dataset.from_arrays({"x": uneven}).batch())
    assert part.row.tolist() == [1, 2] and part.batch.length.tolist() == [ENOUGH] * 2
    many = ps.Dataset.from_arrays({"x": [rng.normal(size=(n, 2)) for n in [70] * 200 + [900]]})
    part = searched_part(many.batch())
    assert 0.7 * ENOUGH < int(part.batch.length.sum()) < 1.5 * ENOUGH
    path = state_path(ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(2)}),
                      many.batch(), 2)  # fmt: skip
    cut = path.within(part)
    assert cut.length.tolist() == part.batch.length.tolist()
    for i, (row, start) in enumerate(zip(part.row, part.start, strict=True)):
        n = int(cut.length[i])
        assert np.array_equal(cut.mean[i, :n], path.mean[row, start : start + n])
        assert not cut.mean[i, n:].any()


@pytest.mark.parametrize("tied", [False, True])
def test_fits_of_many_stages_begin_on_a_part_of_long_data(tied, monkeypatch):
    """All stages on a part, the last one on all data, whose evidence the history shows."""
    truth = ps.dynamics.PLRNN.from_parameters(
        A=[0.6, 0.5], W=[[0.0, 0.7], [-0.8, 0.0]], h=[0.2, 0.1], process_noise=[0.1, 0.1]
    )
    data = ps.StateSpaceModel(truth, {"x": ps.observations.Gaussian(2)}).simulate(
        900, trials=2, seed=0
    )

    def fresh():
        options = {"initial": "tied"} if tied else {}
        return ps.StateSpaceModel(
            ps.dynamics.PLRNN(4, **options), {"x": ps.observations.Gaussian(2)}
        )

    engine = LaplaceEM(iterations=12)
    whole = engine.fit(fresh(), data, progress=False)
    monkeypatch.setattr(start_search, "ENOUGH", 600)
    monkeypatch.setattr(em_run, "LONG", 1000)
    fit = engine.fit(fresh(), data, progress=False)
    rows = fit.history
    assert set(rows["stage"]) == {"free"} and len(rows) <= 5
    found = float(fit.posterior(data).log_evidence.sum())
    assert found == pytest.approx(rows["evidence"].max(), abs=1e-3 * abs(found))
    assert found > whole.history["evidence"].max() - 0.05 * 1800
    # explicit stages, linear systems, searched starts and known maps see everything at once
    begun = []
    monkeypatch.setattr(em_run.EMRun, "_begin_on", lambda self, part: begun.append(part))
    channels = {"x": ps.observations.Gaussian(2)}
    LaplaceEM(stages=(Stage("em", 2),)).fit(fresh(), data, progress=False)
    LaplaceEM(iterations=2).fit(fit.model, data, progress=False)
    linear = ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), channels)
    LaplaceEM(iterations=2).fit(linear, data, progress=False)
    small = ps.StateSpaceModel(ps.dynamics.PLRNN(2), channels)
    LaplaceEM(iterations=2, candidates=2).fit(small, data, progress=False)
    assert not begun
    rows = LaplaceEM(iterations=2).fit(fresh(), data, progress=False).history
    assert len(begun) == 1 and "linear" in set(rows["stage"])  # nothing came of it: all on all


@pytest.mark.parametrize("dim", [2, 5])
def test_long_counts_start_plainly_on_everything(dim, monkeypatch):
    """A part of counts can lack what tells a weight: nothing is searched or begun on one."""
    rng, asked = np.random.default_rng(0), []
    data = ps.Dataset.from_arrays({"x": rng.poisson(0.5, size=(2, 300, 3))}, kinds={"x": "count"})
    counts = ps.observations.Poisson(3, bin_seconds=1.0)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(dim), {"x": counts})
    monkeypatch.setattr(em_run, "searched_part", partial(searched_part, beyond=400))
    monkeypatch.setattr(em_run, "best_start", lambda *a, **k: asked.append("search"))
    monkeypatch.setattr(em_run, "LONG", 400)
    monkeypatch.setattr(em_run.EMRun, "_begin_on", lambda self, part: asked.append("part"))
    fit = LaplaceEM(iterations=4, candidates=2).fit(model, data, progress=False)
    assert not asked and "linear" in set(fit.history["stage"])
    monkeypatch.undo()  # not long: searched if it is small
    monkeypatch.setattr(em_run, "best_start", lambda *a, **k: asked.append("search"))
    LaplaceEM(iterations=2, candidates=2).fit(model, data, progress=False)
    assert asked == (["search"] if dim == 2 else [])


def test_an_interrupted_part_of_long_data_is_kept(monkeypatch):
    data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(2, 700, 2))})
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(4), {"x": ps.observations.Gaussian(2)})
    monkeypatch.setattr(start_search, "ENOUGH", 300)
    monkeypatch.setattr(em_run, "LONG", 1000)
    m_step = em_run.EMRun._m_step

    def stopped(self, stage, result):
        if stage.name == "noise 0.001":
            raise KeyboardInterrupt
        return m_step(self, stage, result)

    monkeypatch.setattr(em_run.EMRun, "_m_step", stopped)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = LaplaceEM(iterations=12).fit(model, data, progress=False)
    assert fit.history.empty
    assert bool(torch.isfinite(fit.posterior(data).log_evidence).all())


def test_a_long_recording_is_fitted_from_a_searched_start(monkeypatch):
    seen = []

    def searched(paths, entrants, **options):
        assert options["plain"] is None  # Gaussian channels: iterations are quick
        seen.append(best_start(paths, entrants))
        return seen[-1]

    monkeypatch.setattr("plssm.inference.em_run.best_start", searched)
    truth = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters(
            A=[0.61, 0.94], W=[[0.0, 1.28], [-1.49, 0.0]], h=[-0.82, 0.91],
            process_noise=[0.01] * 2,
        ),
        {"x": ps.observations.Gaussian.from_parameters(
            np.random.default_rng(0).normal(size=(5, 2)), noise=[0.1] * 5)},
    )  # fmt: skip
    data = truth.simulate(ENOUGH + 1000, seed=0)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(5)})
    fit = LaplaceEM(iterations=10).fit(model, data, progress=False)
    # one trial does not tell the variance of its first state: the truth's is smaller
    known = float(ps.Fit(truth).posterior(data).log_evidence.sum())
    assert float(fit.posterior(data).log_evidence.sum()) > known - 10
    assert "search" not in set(fit.history["stage"])
    (best,) = seen
    assert int(best.batch.length.sum()) == ENOUGH
    free = fit.history.query("stage == 'free'")["evidence"]
    assert free.iloc[0] > free.iloc[-1] - 100
