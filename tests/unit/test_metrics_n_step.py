"""The n-step error against a loop over origins, and against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from plssm.dynamics import PLRNN, LatentDynamics, LinearDynamics
from plssm.errors import DataError
from plssm.metrics import ahead, n_step_error


class Wave(LatentDynamics):
    """A smooth map, which has no compiled rollout."""

    def step(self, z, s=None):
        return torch.tanh(z) + 0.3 * torch.sin(z.flip(-1)) + self.drive(s)


def network(dim=3, inputs=0, seed=0):
    rng = np.random.default_rng(seed)
    dynamics = PLRNN(dim, inputs=inputs)
    with torch.no_grad():
        for parameter in (dynamics.A, dynamics.W, dynamics.h, dynamics.C):
            parameter.copy_(torch.tensor(0.4 * rng.standard_normal(parameter.shape)))
    return dynamics


def looped(dynamics, trials, states, inputs, train, steps, warmup, readout):
    """Errors [origin, step, N] of the model and the references, one origin at a time."""
    stacked = np.concatenate(train)
    mean, sd = np.nanmean(stacked, axis=0), np.nanstd(stacked, axis=0)
    before = np.concatenate([((t - mean) / sd)[:-1] for t in train])
    after = np.concatenate([((t - mean) / sd)[1:] for t in train])
    whole = ~np.isnan(before + after).any(axis=1)
    design = np.c_[np.ones(whole.sum()), before[whole]]
    weights = np.linalg.pinv(design) @ after[whole]
    out = {"model": [], "persistence": [], "VAR(1)": [], "climatology": []}
    for i, (y, z) in enumerate(zip(trials, states, strict=True)):
        y = (y - mean) / sd
        for t in range(warmup, len(y) - steps):
            if not np.isfinite(z[t]).all():
                continue
            last = np.array([[v for v in [0.0, *column[: t + 1]] if not np.isnan(v)][-1]
                             for column in y.T])  # fmt: skip
            state, path, var, held = torch.tensor(z[t]), [], [], last.copy()
            for k in range(1, steps + 1):
                s = None if inputs is None else torch.tensor(inputs[i][t + k])
                with torch.no_grad():
                    state = dynamics.step(state, s)
                path.append((readout(state.numpy()) - mean) / sd)
                held = weights[0] + held @ weights[1:]
                var.append(held)
            future = y[t + 1 : t + steps + 1]
            out["model"].append((future - path) ** 2)
            out["persistence"].append((future - last) ** 2)
            out["VAR(1)"].append((future - var) ** 2)
            out["climatology"].append(future**2)
    return {name: np.array(errors) for name, errors in out.items()}


@pytest.mark.parametrize("chunk", [ahead.CHUNK, 40])
@pytest.mark.parametrize("make", [network, lambda dim, inputs: Wave(dim, inputs=inputs)])
def test_equals_a_loop_over_origins(make, chunk, monkeypatch):
    monkeypatch.setattr(ahead, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    dynamics = make(4, 2)
    trials = [rng.standard_normal((n, 3)) for n in (30, 4, 19)]
    trials[0][rng.random((30, 3)) < 0.2] = np.nan
    states = [rng.standard_normal((len(t), 4)) for t in trials]
    states[2][8] = np.nan
    inputs = [rng.standard_normal((len(t), 2)) for t in trials]
    train = [2 + 3 * rng.standard_normal((n, 3)).cumsum(axis=0) for n in (50, 20)]
    weight = rng.standard_normal((3, 4))

    def readout(z):
        return z @ weight.T + 0.5

    got = n_step_error(
        dynamics, truth=trials, states=states, inputs=inputs, train=train, steps=4, warmup=3,
        readout=readout, noise=0.3,
    )  # fmt: skip
    want = looped(dynamics, trials, states, inputs, train, 4, 3, readout)
    model = want.pop("model")
    assert got.settings["origins"] == len(model)
    assert got == pytest.approx(np.nanmean(model[:, -1]), rel=1e-9)
    np.testing.assert_allclose(got.per_step, np.nanmean(model, axis=(0, 2)), rtol=1e-9)
    np.testing.assert_allclose(got.per_dimension, np.nanmean(model[:, -1], axis=0), rtol=1e-9)
    for name, errors in want.items():
        assert got.references[name] == pytest.approx(np.nanmean(errors[:, -1]), rel=1e-8)
        np.testing.assert_allclose(
            got.settings["references_per_step"][name], np.nanmean(errors, axis=(0, 2)), rtol=1e-8
        )
    variance = 0.3 / np.concatenate(train).var(axis=0)
    seen = ~np.isnan(model[:, -1])
    assert got.floor == pytest.approx((seen * variance).sum() / seen.sum())


def test_the_map_that_made_the_series_is_perfect():
    dynamics = network()
    with torch.no_grad():
        path = dynamics.rollout(torch.tensor([1.0, -2.0, 0.5]), 60, noise=False).numpy()
    got = n_step_error(dynamics, truth=path, steps=5)
    assert got < 1e-20
    assert got.floor == 0.0
    assert got.settings["origins"] == 60 - 10 - 5


def test_an_autoregression_in_closed_form():
    # persistence 2 (1 - phi^n), the map itself and VAR(1) 1 - phi^(2n), climatology 1
    phi, steps = 0.8, 6
    rng = np.random.default_rng(0)
    x = lfilter([1.0], [1.0, -phi], math.sqrt(1 - phi**2) * rng.standard_normal(300_000))
    dynamics = LinearDynamics(1)
    dynamics.A = [[phi]]
    with torch.no_grad():
        dynamics.h.zero_()
    got = n_step_error(dynamics, truth=x, steps=steps)
    n = np.arange(1, steps + 1)
    best, held = 1 - phi ** (2 * n), 2 * (1 - phi**n)
    np.testing.assert_allclose(got.per_step, best, rtol=0.03)
    beside = got.settings["references_per_step"]
    np.testing.assert_allclose(beside["VAR(1)"], best, rtol=0.03)
    np.testing.assert_allclose(beside["persistence"], held, rtol=0.03)
    np.testing.assert_allclose(beside["climatology"], 1.0, rtol=0.03)
    assert list(got.references) == ["persistence", "VAR(1)", "climatology"]


def test_a_map_that_explodes_scores_infinity():
    dynamics = LinearDynamics(2)
    dynamics.A = 1e200 * np.eye(2)
    x = np.random.default_rng(0).standard_normal((40, 2))
    got = n_step_error(dynamics, truth=x, steps=3)
    assert got == math.inf
    assert np.isfinite(got.references["persistence"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "nothing to forecast"),
        ({"steps": 30}, "no origin"),
        ({"warmup": -1}, "nothing to forecast"),
        ({"truth": np.full((40, 3), np.nan), "train": np.zeros((9, 3))}, "no origin"),
        ({"truth": np.zeros((40, 2))}, "do not fit the dynamics"),
        ({"states": np.zeros((39, 3))}, "different lengths"),
        ({"inputs": np.zeros((39, 3))}, "different lengths"),
        ({"train": np.zeros((9, 2))}, "other channels"),
        ({"readout": lambda z: z[..., :2]}, "read-out does not fit"),
    ],
)
def test_clear_refusals(change, message):
    x = np.random.default_rng(0).standard_normal((40, 3))
    with pytest.raises(DataError, match=message):
        n_step_error(network(), **({"truth": x} | change))
