"""By which likelihood training through a filter chooses what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference import EKF, OpenLoop

D = ps.dynamics


def counts(steps=80):
    """Rare spikes that the states hardly show in."""
    model = ps.StateSpaceModel(D.PLRNN(2), {"n": ps.observations.Poisson(3)})
    with torch.no_grad():
        model.observations["n"].bias.fill_(-1.0)
        weight = np.random.default_rng(0).normal(size=(3, 2))
        model.observations["n"].weight.copy_(torch.from_numpy(weight))
    return model, model.simulate(steps, trials=2, seed=0)


def test_counts_are_compared_by_the_evidence_of_paths():
    """What is kept is the check with the best one, as the smoother gives it."""
    model, data = counts()
    options = {"steps": 24, "checks": 6, "start": "model", "learning_rate": (0.03, 0.03)}
    fit = EKF(**options, window=40).fit(model, data, progress=False)
    rows = fit.history
    np.testing.assert_allclose(rows["score"], -rows["path_evidence"])
    assert not np.allclose(rows["path_evidence"], rows["log_likelihood"], atol=1e-4)
    first, best = rows.iloc[0], rows.loc[rows["score"].idxmin()]
    cold = [float(ps.smooth(m, data).log_evidence.sum()) / 160 for m in (model, fit.model)]
    assert first["path_evidence"] == pytest.approx(cold[0], abs=1e-6)
    # checks go on from the path of the last one, and may stay at a mode beside the best: here the
    # cold search finds one that is .02 nats better, all 160 steps together
    assert cold[1] - 1e-3 < best["path_evidence"] < cold[1] + 1e-6
    assert best["path_evidence"] > first["path_evidence"] + 0.01


def test_gaussian_channels_open_loops_and_smooth_maps_are_compared_by_the_filter():
    model, data = counts(40)
    options = {"steps": 2, "checks": 1, "start": "model", "window": 20, "warmup": 5}
    for other in ({"measure": "filter"}, {"objective": OpenLoop(horizon=3)}):
        rows = EKF(**options, **other).fit(model, data, progress=False).history
        assert "path_evidence" not in rows
    gaussian = ps.StateSpaceModel(D.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    data = gaussian.simulate(40, seed=0)
    rows = EKF(**options).fit(gaussian, data, progress=False).history
    assert "path_evidence" not in rows
    rows = EKF(**options, measure="path").fit(gaussian, data, progress=False).history
    want = float(ps.smooth(gaussian, data).log_evidence.sum()) / 40
    assert rows["path_evidence"][0] == pytest.approx(want, abs=1e-6)
    with pytest.raises(PlssmError, match="measure"):
        EKF(measure="best")
