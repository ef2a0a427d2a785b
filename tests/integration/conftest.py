"""Every observation model, alone and in pairs, with small data that have all sorts of gaps."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

import plssm as ps
from plssm import observations as o

SHORT = {"length_seconds": 6.0}
MAKERS = {
    "gaussian": lambda: o.Gaussian(3),
    "poisson": lambda: o.Poisson(3),
    "softplus": lambda: o.Poisson(3, link="softplus"),
    "negative_binomial": lambda: o.NegativeBinomial(3),
    "zero_inflated": lambda: o.ZeroInflatedPoisson(3),
    "categorical": lambda: o.Categorical(3),
    "bernoulli": lambda: o.Bernoulli(3),
    "ordinal": lambda: o.Ordinal(2, 3),
    "bold": lambda: o.BOLD(3, tr_seconds=2.0, hrf=o.DoubleGamma(**SHORT)),
}
LENGTHS = (24, 17, 20)


def pytest_generate_tests(metafunc):
    """Tests that ask for `observed_by` run with each, those for `observed_by_two` with pairs."""
    if "observed_by" in metafunc.fixturenames:
        metafunc.parametrize("observed_by", list(MAKERS))
    if "observed_by_two" in metafunc.fixturenames:
        metafunc.parametrize("observed_by_two", list(combinations(MAKERS, 2)), ids="+".join)


def model_of(names):
    """A fresh model of some modalities."""
    return ps.StateSpaceModel(ps.dynamics.PLRNN(2), {n: MAKERS[n]() for n in names})


def data_of(names, seed=0):
    """Ragged trials of random data, a quarter missing, one modality absent in the last trial."""
    truth = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters([0.9, 0.8], [[0.0, 0.4], [-0.4, 0.0]], h=[0.1, 0.0]),
        {n: MAKERS[n]() for n in names},
    )
    rng = np.random.default_rng(seed)
    full = truth.simulate(max(LENGTHS), trials=3, dt=1.0, seed=seed)
    values, times = {}, {}
    for name in names:
        rows = []
        for trial, length in zip(full.trials, LENGTHS):
            inside = trial.seconds(name, 1.0) < length
            x = trial.values[name][inside].copy()
            x[rng.random(x.shape) < 0.25] = np.nan
            rows.append(x)
            if trial.clock[name] is not None:
                times.setdefault(name, []).append(trial.seconds(name, 1.0)[inside])
        values[name] = rows
    if len(names) > 1:
        values[names[0]][2][:] = np.nan
    return ps.Dataset.from_arrays(
        values, 1.0, kinds=full.kinds, times=times or None, check_channels=False
    )


@pytest.fixture(scope="session")
def small():
    """Makes models and data: `small.model(names)`, `small.data(names, seed)`."""
    return SimpleNamespace(model=model_of, data=data_of)
