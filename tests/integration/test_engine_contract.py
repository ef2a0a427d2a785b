"""The engine contract, run on the Laplace EM engine with several models."""

from __future__ import annotations

import plssm as ps
from plssm.inference import LaplaceEM
from plssm.testing import EngineContract


class TestLaplaceEM(EngineContract):
    def create(self):
        return LaplaceEM(seed=3, iterations=15)


class TestRestartsAndInputs(EngineContract):
    """Two restarts, inputs from the start on, a regulariser, nuisance regressors."""

    def create(self):
        return LaplaceEM(seed=0, iterations=5, restarts=2)

    def model(self):
        dynamics = ps.dynamics.PLRNN(
            2, inputs=1, noise="full", input_at_start=True,
            regularizer=ps.dynamics.ManifoldAttractor(0.1),
        )  # fmt: skip
        return ps.StateSpaceModel(
            dynamics,
            {"x": ps.observations.Gaussian(3, nuisance=1), "u": ps.observations.Gaussian(2)},
        )


class TestLinear(EngineContract):
    def create(self):
        return LaplaceEM(iterations=4)

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(1)}
        )
