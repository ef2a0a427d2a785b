"""A stranger's engine: only its trainings and its inference; the base class does the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference import Engine, LaplaceEM
from plssm.inference.base import Run, best_of, working_copy
from plssm.testing import EngineContract


@dataclass
class ShortEM(Engine):
    """The model as it is, without a score, and a few iterations; histories without restarts."""

    iterations: int = 3

    def trainings(self, model, data, validation, progress):
        engine = LaplaceEM(iterations=self.iterations, seed=self.seed, start="data")
        (run,) = engine.trainings(model, data, validation, False)
        first = Run(0, float("nan"), working_copy(model), pd.DataFrame({"evidence": [0.0]}))
        table = run.history.drop(columns="restart")
        return [
            first,
            Run(1, run.score, run.model, table),
            Run(2, run.score + 1, run.model, table),
        ]

    def infer(self, model, data, *, causal=False):
        return ps.smooth(model, data, causal=causal)


class TestShortEM(EngineContract):
    def create(self):
        return ShortEM()

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(3)}
        )


def problem():
    model = ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(3)})
    return model, model.simulate(20, trials=2, seed=0)


def test_the_best_score_is_selected_and_no_score_is_the_worst():
    fit = ShortEM().fit(*problem(), progress=False)
    selected = fit.history.groupby("restart")["selected"].agg(["all", "any"])
    assert selected.to_dict("index") == {
        0: {"all": False, "any": False},
        1: {"all": True, "any": True},
        2: {"all": False, "any": False},
    }
    want = LaplaceEM(iterations=3, start="data").fit(*problem(), progress=False)
    got = fit.posterior(problem()[1]).log_evidence
    np.testing.assert_array_equal(got, want.posterior(problem()[1]).log_evidence)


def test_without_any_score_the_first_training_is_kept():
    runs = [Run(k, float("nan"), None, pd.DataFrame()) for k in range(3)]
    assert best_of(runs).restart == 0


def test_options_that_an_engine_does_not_have_are_refused():
    model, data = problem()
    fit = ShortEM().fit(model, data, progress=False)
    with pytest.raises(PlssmError, match=r"ShortEM has no option 'bound'; it takes \['causal'\]"):
        fit.posterior(data, bound="importance")
