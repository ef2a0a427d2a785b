"""Multimodal teacher forcing keeps the promises of every engine, whatever is observed."""

from __future__ import annotations

import plssm as ps
from plssm.inference import MTF, TeacherForcing
from plssm.testing import EngineContract


class TestGaussian(EngineContract):
    def create(self):
        return TeacherForcing(
            scheme=MTF(3), seed=2, steps=60, sequence=8, batch_size=4, checks=3
        )  # fmt: skip

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(2, 5), {"x": ps.observations.Gaussian(3)}
        )


class TestCountsAndLevels(EngineContract):
    """No Gaussian channels, more states than are forced, inputs, float64."""

    tolerance = 1e-5

    def create(self):
        return TeacherForcing(
            scheme=MTF(3, states=2), seed=1, steps=60, sequence=8, batch_size=4, checks=2,
            dtype="float64",
        )  # fmt: skip

    def model(self):
        observations = {
            "n": ps.observations.Poisson(2, link="softplus"),
            "l": ps.observations.Ordinal(2, 3),
        }
        return ps.StateSpaceModel(ps.dynamics.AlmostLinearRNN(3, 2, inputs=1), observations)
