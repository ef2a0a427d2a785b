"""The engine contract, run on training through the extended Kalman filter."""

from __future__ import annotations

import plssm as ps
from plssm.inference import EKF
from plssm.testing import EngineContract


class TestInnovations(EngineContract):
    def create(self):
        return EKF(steps=20, checks=2, window=8, warmup=4, start_iterations=3)


class TestCountsAndLabels(EngineContract):
    tolerance = 1e-5

    def create(self):
        return EKF(steps=6, checks=2, window=8, warmup=4, start_iterations=2, restarts=2)

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.AlmostLinearRNN(2, 1, inputs=1, input_at_start=True),
            {"n": ps.observations.Poisson(3, nuisance=1)},
        )


class TestMoments(EngineContract):
    def create(self):
        return EKF(
            steps=8, checks=2, window=8, warmup=4, start_iterations=2, propagation="moments"
        )


class TestShallow(EngineContract):
    """A map without a closed-form M-step, on its own clock or not."""

    def create(self):
        return EKF(steps=8, checks=1, window=5, state="data", batch_size=4)

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(2, 5), {"x": ps.observations.Gaussian(3)}
        )
