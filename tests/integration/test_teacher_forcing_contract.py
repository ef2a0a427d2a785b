"""The engine contract, run on teacher forcing with several members of the family."""

from __future__ import annotations

import pytest

import plssm as ps
from plssm.inference import GTF, GaussNewton, SparseTF, TeacherForcing
from plssm.testing import EngineContract


class TestShallow(EngineContract):
    def create(self):
        return TeacherForcing(seed=2, steps=120, sequence=8, batch_size=4, checks=3)

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(2, 5), {"x": ps.observations.Gaussian(3)}
        )


class TestSparseWithHiddenStatesAndInputs(EngineContract):
    """More states than channels, inputs, sparse forcing, two modalities, float64."""

    def create(self):
        return TeacherForcing(
            scheme=SparseTF(3, spread=1), steps=60, sequence=8, batch_size=4, checks=2,
            dtype="float64",
        )  # fmt: skip

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.AlmostLinearRNN(5, 2, inputs=1),
            {"x": ps.observations.Gaussian(2), "u": ps.observations.Gaussian(1)},
        )


class TestAdaptive(EngineContract):
    # observation noise of 1e-5: modes on kinks differ where the log joint is equal to 1e-8
    tolerance = 1e-3

    def create(self):
        return TeacherForcing(
            scheme=GTF(alpha=1.0, adaptive_by="product"), steps=60, sequence=8, batch_size=4,
            checks=2, restarts=2, shrink=1e-4,
        )  # fmt: skip

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.DendriticPLRNN(3, 4),
            {"x": ps.observations.Gaussian(3, readout="identity")},
        )


class TestGaussNewton(EngineContract):
    """Least squares, with inputs; a small map, because the data are few and noisy."""

    def create(self):
        return TeacherForcing(
            seed=1, optimiser=GaussNewton(updates=6, samples=60), sequence=8, checks=3
        )

    def model(self):
        return ps.StateSpaceModel(
            ps.dynamics.PLRNN(2, inputs=1), {"x": ps.observations.Gaussian(2, readout="identity")}
        )


class TestBOLD(EngineContract):
    """Regions seen through a short response, with a nuisance regressor."""

    def create(self):
        return TeacherForcing(seed=1, steps=60, sequence=5, batch_size=4, checks=2)

    def model(self):
        hrf = ps.observations.DoubleGamma(1.5, 3.0, length_seconds=4.0)
        bold = ps.observations.BOLD(3, tr_seconds=1.0, hrf=hrf, nuisance=1)
        return ps.StateSpaceModel(ps.dynamics.ShallowPLRNN(2, 5), {"x": bold})

    @pytest.mark.parametrize("clock", [False])
    def test_masks_ragged_trials_and_own_clocks(self, clock):
        """Scans come at the repetition time: irregular clocks are refused."""
        super().test_masks_ragged_trials_and_own_clocks(clock)
