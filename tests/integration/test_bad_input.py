"""Bad input: each kind a clear error at the border, nothing half-done, nothing half-written."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import CapabilityError, DataError, PlssmError
from plssm.inference import LaplaceEM

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 20, 4))


def changed(value, where=(1, 5, 2)):
    x = X.copy()
    x[where] = value
    return x


def build(**arguments):
    arrays = arguments.pop("arrays", {"x": X})
    return lambda: ps.Dataset.from_arrays(arrays, **arguments)


# name: (call, words that the message must have)
BORDER = {
    "wrong shape": (build(arrays={"x": X[None]}), ("x", "shape")),
    "channels differ between trials": (
        build(arrays={"x": [X[0], X[1, :, :3]]}), ("x", "channel"),
    ),
    "modalities of different length": (
        build(arrays={"x": X, "u": X[:, :15]}), ("u", "20", "15"),
    ),
    "NaN-only channel": (
        build(arrays={"x": changed(np.nan, (..., 2))}), ("x", "channel 2", "NaN"),
    ),
    "zero-variance channel": (
        build(arrays={"x": changed(1.5, (..., 1))}), ("x", "channel 1", "varies"),
    ),
    "infinite value": (build(arrays={"x": changed(np.inf)}), ("x", "'1'", "channel 2")),
    "unsorted times": (
        build(arrays={"x": X[0, :4]}, times={"x": [0.0, 2.0, 1.0, 3.0]}), ("x", "sorted"),
    ),
    "times of another length": (
        build(arrays={"x": X[0, :4]}, times={"x": [0.0, 1.0]}), ("x", "times"),
    ),
    "negative counts": (
        build(arrays={"x": np.array([[1.0], [-2.0], [3.0]])}, kinds={"x": "count"}),
        ("x", "-2"),
    ),
    "broken counts": (
        build(arrays={"x": np.array([[1.0], [2.5], [3.0]])}, kinds={"x": "count"}),
        ("x", "2.5"),
    ),
    "empty trial": (build(arrays={"x": [X[0], np.zeros((0, 4))]}), ("'1'", "empty")),
    "no trial": (build(arrays={"x": []}), ("trial",)),
    "inputs of another length": (build(inputs=np.ones((3, 19, 1))), ("inputs", "19", "20")),
    "missing inputs": (
        build(inputs=np.where(np.arange(20)[None, :, None] == 3, np.nan, np.ones((3, 20, 1)))),
        ("inputs", "missing", "sample 3"),
    ),
    "unknown kind": (build(kinds={"x": "spikes"}), ("x", "spikes", "count")),
    "kind of an unknown modality": (build(kinds={"y": "count"}), ("y", "x")),
    "time step of zero": (build(dt=0.0), ("dt",)),
    "text": (build(arrays={"x": np.array([["a", "b"]])}), ("x",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BORDER)
def test_refused_at_the_border(name):
    call, words = BORDER[name]
    with pytest.raises(DataError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def model(**options):
    return ps.StateSpaceModel(ps.dynamics.PLRNN(2, **options), {"x": ps.observations.Gaussian(4)})


MISMATCHED = {
    "unknown modality": ({"arrays": {"spikes": X}}, "'x'"),
    "channels": ({"arrays": {"x": X[..., :3]}}, "channel"),
    "inputs": ({"inputs": np.ones((3, 20, 2))}, "input"),
    "kind": ({"arrays": {"x": np.abs(X).round()}, "kinds": {"x": "count"}}, "kind"),
    "nuisance": ({"nuisance": {"x": np.ones((20, 1))}}, "nuisance"),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_refused_before_any_work(name, monkeypatch, capsys):
    arguments, word = MISMATCHED[name]
    data = build(**arguments)()
    good = build()()
    m = model()
    before = {k: v.clone() for k, v in m.state_dict().items()}

    def no_work(*_, **__):
        raise AssertionError("work has started")

    monkeypatch.setattr("plssm.inference.em_run.laplace_posterior", no_work)
    monkeypatch.setattr("plssm.inference.smoothers.laplace_posterior", no_work)
    calls = {
        "fit": lambda: LaplaceEM().fit(m, data, progress=True),
        "validation": lambda: LaplaceEM().fit(m, good, validation=data, progress=True),
        "smooth": lambda: ps.smooth(m, data),
        "filter": lambda: ps.smooth(m, data, causal=True),
        "posterior": lambda: ps.Fit(m).posterior(data),
        "forecast": lambda: ps.Fit(m).forecast(data, 3),
        "score": lambda: ps.Fit(m).score(data),
    }
    for call in calls.values():
        with pytest.raises(DataError, match=word) as caught:
            call()
        assert "Fix:" in str(caught.value)
    for key, value in m.state_dict().items():
        assert torch.equal(value, before[key])
    assert "EM" not in capsys.readouterr().err


def test_forecast_needs_the_inputs_of_the_steps_ahead():
    data = build(inputs=np.ones((3, 20, 1)) * RNG.normal(size=(3, 20, 1)))()
    fit = ps.Fit(model(inputs=1))
    for wrong in (None, np.ones((4, 1)), np.ones((5, 2)), np.ones((2, 5, 1))):
        with pytest.raises(PlssmError, match="inputs"):
            fit.forecast(data, 5, inputs=wrong)
    assert fit.forecast(data, 5, 3, inputs=np.ones((5, 1)))["x"].mean.shape == (3, 5, 4)


def test_dynamics_that_are_not_piecewise_linear_are_refused():
    class Tanh(ps.dynamics.LatentDynamics):
        def step(self, z, s=None):
            return torch.tanh(z)

    odd = ps.StateSpaceModel(Tanh(2), {"x": ps.observations.Gaussian(4)})
    with pytest.raises(CapabilityError, match="piecewise"):
        LaplaceEM().fit(odd, build()())
    for causal in (False, True):
        with pytest.raises(CapabilityError, match="Tanh"):
            ps.smooth(odd, build()(), causal=causal)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="laplace"):
        ps.smooth(model(), build()(), method="magic")


def test_truncated_files(tmp_path):
    data = build()()
    data.save(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "x.npz").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.npz"):
            ps.Dataset.load(tmp_path / "x.npz")
    folder = ps.Fit(model()).save(tmp_path / "fit")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a whole fit"):
        ps.Fit.load(folder)


def test_a_dataset_that_cannot_be_written_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    build()().save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="space"):
        ps.Dataset.from_arrays({"x": X[:1]}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_fit_that_fails_keeps_the_last_good_state(monkeypatch):
    """The E-step breaks down in the third iteration: a warning, and the best parameters so far."""
    from plssm.inference import em_run

    data = build()()
    original, calls = em_run.laplace_posterior, 0

    def breaks(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs)
        if calls == 4:
            object.__setattr__(result, "status", ("failed",) * 3)
        return result

    m = ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(4)})
    monkeypatch.setattr(em_run, "laplace_posterior", breaks)
    with pytest.warns(RuntimeWarning, match="last good parameters are kept"):
        broken = LaplaceEM(iterations=10).fit(m, data)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = LaplaceEM(iterations=2).fit(m, data)
    for key, value in short.model.state_dict().items():
        torch.testing.assert_close(value, broken.model.state_dict()[key])
    assert len(broken.history) == 3


def test_an_m_step_that_fails_keeps_the_last_good_state(monkeypatch):
    from plssm.inference import em_run

    def breaks(*_, **__):
        raise np.linalg.LinAlgError("did not converge")

    m = ps.StateSpaceModel(ps.dynamics.LinearDynamics(2), {"x": ps.observations.Gaussian(4)})
    m.dynamics.initialised = m.observations["x"].initialised = True
    monkeypatch.setattr(em_run, "update_coefficients", breaks)
    with pytest.warns(RuntimeWarning, match="M-step failed .did not converge.; the last good"):
        fit = LaplaceEM(iterations=5).fit(m, build()())
    for key, value in m.state_dict().items():
        assert torch.equal(value, fit.model.state_dict()[key]), key
