"""The engine contract, run on variational inference with several guides and models."""

from __future__ import annotations

import plssm as ps
from plssm.inference.variational import VariationalInference
from plssm.testing import EngineContract


class Variational(EngineContract):
    tolerance = 1e-5

    def test_a_second_fit_starts_where_the_first_ended(self):
        """The guide is learned anew, by noisy gradients: nothing much is lost."""
        data, engine = self.dataset(), self.create()
        first = engine.fit(self.model(), data)
        second = engine.fit(first.model, data)
        was = float(first.posterior(data).log_evidence.sum())
        now = float(second.posterior(data).log_evidence.sum())
        values = sum(int(m.mask.sum()) for m in data.batch().modalities.values())
        assert now >= was - 0.05 * values


class TestConvolutions(Variational):
    def create(self):
        return VariationalInference(
            seed=2, steps=20, checks=2, hidden=8, draws=16, start_iterations=3,
        )  # fmt: skip


class TestRecurrentWithInputs(Variational):
    """Two modalities with nuisance regressors, inputs, importance weights."""

    def create(self):
        return VariationalInference(
            steps=6, encoder="gru", guide="model", bound="importance", samples=3, checks=1,
            dtype="float64", drop=0.2, start_iterations=3,
        )  # fmt: skip

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.AlmostLinearRNN(3, 1, inputs=1, input_at_start=True),
            {"x": ps.observations.Gaussian(3, nuisance=1), "u": ps.observations.Gaussian(2)},
        )


class TestMeanField(Variational):
    def create(self):
        return VariationalInference(
            steps=12, encoder="mlp", guide="mean-field", anneal=0.3, checks=2, window=6,
            batch_size=3, restarts=2, start_iterations=3,
        )  # fmt: skip


class TestFree(Variational):
    """Every trial is fitted, in short trainings that end where they end."""

    tolerance = 3e-3

    def create(self):
        return VariationalInference(steps=8, encoder="free", checks=1, dtype="float64")

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(3)}
        )


class TestExperts(Variational):
    """A path for every modality by itself."""

    def create(self):
        return VariationalInference(
            steps=8, encoder="none", experts="mixture", bound="importance", samples=4, checks=1,
            dtype="float64", start_iterations=3,
        )  # fmt: skip

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.PLRNN(2),
            {"x": ps.observations.Gaussian(3), "u": ps.observations.Gaussian(2)},
        )


class TestShallow(Variational):
    """A map without a closed-form M-step, in windows."""

    def create(self):
        return VariationalInference(steps=8, encoder="none", checks=1, window=5, batch_size=4)

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(2, 5), {"x": ps.observations.Gaussian(3)}
        )


del Variational
