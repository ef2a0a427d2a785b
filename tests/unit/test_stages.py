"""Stages of an EM fit: what they refuse, and that they do what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM, Stage, annealed_stages, held_stages, plain_stages


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1},
        {"iterations": 1, "process_noise": 0.0},
        {"iterations": 1, "process_noise": 0.1, "accelerated": True},
        {"iterations": 1, "process_noise": float("nan")},
        {"iterations": 1, "accelerated": True, "newton": True},
        {"iterations": 1, "learn": ("dynamics", "everything")},
        {"iterations": 1, "dynamics": "quadratic"},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError, match="Stage 'a'"):
        Stage("a", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"restarts": 0},
        {"start": "warm"},
        {"candidates": 0},
        {"stages": (Stage("a", 1), Stage("b", 1, dynamics="linear"))},
    ],
)
def test_engine_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="LaplaceEM"):
        LaplaceEM(**options)


@pytest.mark.parametrize("iterations", [1, 5, 7, 50, 101])
def test_iterations_are_shared_out(iterations):
    stages = annealed_stages(iterations)
    own = sum(s.iterations for s in stages if s.dynamics == "model")
    assert own <= iterations + len(stages)
    assert own >= 0.75 * iterations
    assert all(s.iterations >= 1 for s in stages)
    noises = [s.process_noise for s in stages if s.process_noise is not None]
    assert noises == sorted(noises, reverse=True)
    assert stages[0].dynamics == "linear"
    assert stages[-1].process_noise is None
    assert [s.iterations for s in plain_stages(iterations)] == [iterations]


@pytest.mark.parametrize("iterations", [2, 7, 51])
def test_held_stages_never_free_the_noise(iterations):
    linear, *held = held_stages(iterations)
    assert linear.dynamics == "linear"
    assert [s.process_noise for s in held] == [1e-4, 1e-3]
    assert sum(s.iterations for s in held) == iterations


def test_settings_survive_json():
    engine = LaplaceEM(seed=2, stages=annealed_stages(10))
    again = LaplaceEM(**json.loads(json.dumps(engine.settings())))
    assert again == engine
    assert again.stages[0].learn == engine.stages[0].learn


def data():
    rng = np.random.default_rng(0)
    return ps.Dataset.from_arrays({"x": rng.normal(size=(6, 12, 3)).cumsum(1)})


def test_each_group_is_learned_when_named_and_only_then():
    groups = {
        "dynamics": ("dynamics.A", "dynamics.W", "dynamics.h"),
        "process_noise": ("dynamics.noise.log_variance",),
        "initial": ("dynamics.initial.mean", "dynamics.initial.noise.log_variance"),
        "observations": (
            "observations.x.weight", "observations.x.bias", "observations.x.log_noise",
        ),
    }  # fmt: skip
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name, members in groups.items():
        engine = LaplaceEM(
            start="model", stages=(Stage("one", 2, learn=(name,)),), tolerance=-np.inf
        )
        after = engine.fit(model, data()).model.state_dict()
        for key, value in before.items():
            if value.numel():
                moved = not torch.equal(value, after[key])
                assert moved == (key in members), (name, key)


def test_process_noise_is_held_at_the_value_of_the_stage():
    stages = (Stage("wide", 2, process_noise=0.7), Stage("narrow", 3, process_noise=0.02))
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    fit = LaplaceEM(stages=stages, tolerance=-np.inf).fit(model, data())
    held = fit.history.groupby("stage")["process_noise"].agg(["min", "max"])
    np.testing.assert_allclose(held.loc["wide"], 0.7)
    np.testing.assert_allclose(held.loc["narrow"], 0.02)
    assert list(fit.history["stage"].drop_duplicates()) == ["wide", "narrow"]
    counts = fit.history.groupby("stage")["iteration"].max()
    assert (counts["wide"], counts["narrow"]) == (2, 3)


def test_a_stage_of_no_iterations_only_looks():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    engine = LaplaceEM(start="model", stages=(Stage("look", 0),))
    fit = engine.fit(model, data())
    for key, value in model.state_dict().items():
        assert torch.equal(value, fit.model.state_dict()[key]), key
    assert len(fit.history) == 1


def test_restarts_differ_and_the_best_is_kept():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3), {"x": ps.observations.Gaussian(3)})
    fit = LaplaceEM(iterations=6, restarts=3).fit(model, data())
    last = fit.history.groupby("restart")["evidence"].last()
    assert last.nunique() == 3
    chosen = fit.history.loc[fit.history["selected"], "restart"].unique()
    assert len(chosen) == 1
    free = fit.history[fit.history["stage"] == fit.history["stage"].iloc[-1]]
    assert free.groupby("restart")["evidence"].max().idxmax() == chosen[0]
    shown = fit.posterior(data()).log_evidence.sum()
    np.testing.assert_allclose(float(shown), free["evidence"].max(), rtol=0.02)
