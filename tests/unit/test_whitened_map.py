"""Whitened coordinates of a map, and variational training: resuming, going back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.variational import VariationalInference
from plssm.inference.variational_training import PathTraining
from plssm.inference.whitened_map import LOADING, WhitenedMap

d, o = ps.dynamics, ps.observations
MAPS = {
    "plrnn": lambda: d.PLRNN(3, inputs=2),
    "linear": lambda: d.LinearDynamics(3, inputs=2),
    "almost-linear": lambda: d.AlmostLinearRNN(3, 1, inputs=2),
    "no-inputs": lambda: d.PLRNN(3),
}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dynamics(name):
    made = MAPS[name]()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(0.2 * rand(*p.shape, seed=i) * ((p != 0) if p.ndim == 2 else 1.0))
        if name in ("plrnn", "no-inputs"):
            made.W.copy_(0.3 * rand(3, 3, seed=9)).fill_diagonal_(0.0)
    return made


def around(made, seed=5):
    """A path, inputs, and which of its steps exist."""
    inputs = rand(2, 40, made.n_inputs, seed=seed + 1) if made.n_inputs else None
    inside = torch.arange(40) < torch.tensor([40, 25])[:, None]
    return rand(2, 40, 3, seed=seed) @ rand(3, 3, seed=seed + 2), inputs, inside


def names(made):
    return [n for n, p in made.named_parameters() if p.numel()]


def same(got, want, **options):
    torch.testing.assert_close(got, want, **({"rtol": 1e-10, "atol": 1e-10} | options))


def has_map(name):
    """A unit that is linear has the sum of two parameters as one coefficient: no copy of one."""
    return name != "almost-linear"


@pytest.mark.parametrize("name", list(MAPS))
def test_at_zero_it_is_the_map(name):
    made = dynamics(name)
    found = WhitenedMap.of(made, *around(made))
    assert (found is not None) == has_map(name)
    if found is None:
        return
    before = {n: p.clone() for n, p in made.named_parameters()}
    assert (found.values == 0).all()
    applied = found.applied(made)
    for n, p in applied.named_parameters():
        same(p, before[n])
    found.write(made)
    for n, p in made.named_parameters():
        assert torch.equal(p, before[n])
    z = rand(7, 3)
    s = rand(7, 2) if made.n_inputs else None
    same(applied.step(z, s), made.step(z, s))


@pytest.mark.parametrize("name", [n for n in MAPS if has_map(n)])
def test_coefficients_move_by_whitened_deviations(name):
    """Row by row, by the definition; structural zeros stay."""
    made = dynamics(name)
    path, inputs, inside = around(made)
    found = WhitenedMap.of(made, path, inputs, inside)
    theta, free = made.coefficients()
    theta = theta.clone()
    with torch.no_grad():
        found.values.copy_(rand(len(found.values), seed=3))
    v, rows = found.values.detach().numpy().copy(), []
    z = path[:, :-1][inside[:, 1:]].numpy()
    parts = [z] if name == "linear" else [z, np.maximum(z, 0.0)]
    parts.append(np.ones((len(z), 1)))
    if made.n_inputs:
        parts.append(inputs[:, 1:][inside[:, 1:]].numpy())
    read = np.hstack(parts)
    moment = read.T @ read / len(read)
    moment += LOADING * np.trace(moment) / len(moment) * np.eye(len(moment))
    for row in free.numpy():
        lower = np.linalg.cholesky(moment[np.ix_(row, row)])
        rows.append(v[: row.sum()] @ np.linalg.inv(lower))
        v = v[row.sum() :]
    want = theta.clone()
    want[free] += torch.from_numpy(np.concatenate(rows))
    found.write(made)
    same(made.coefficients()[0], want)
    if name in ("plrnn", "no-inputs"):
        assert (made.W.diagonal() == 0).all()


@pytest.mark.parametrize("name", [n for n in MAPS if has_map(n)])
def test_gradients_are_those_of_the_parameters_by_the_chain_rule(name):
    made = dynamics(name)
    found = WhitenedMap.of(made, *around(made))
    with torch.no_grad():
        found.values.copy_(0.1 * rand(len(found.values), seed=3))
    z, to = rand(9, 3, seed=4), rand(9, 3, seed=5)
    s = rand(9, 2, seed=6) if made.n_inputs else None
    loss = (found.applied(made).step(z, s) - to).square().sum()
    got = torch.autograd.grad(loss, found.values)[0]
    found.write(made)
    plain = [made.get_parameter(n) for n in found.places]
    loss = (made.step(z, s) - to).square().sum()
    grads = dict(zip(found.places, torch.autograd.grad(loss, plain), strict=True))

    def values(v):
        with torch.no_grad():
            found.values.copy_(v)
            return {n: t.clone() for n, t in found.tensors(made).items()}

    at = found.values.detach().clone()
    for i in range(len(at)):  # the coordinates are linear: differences are exact
        one = torch.zeros_like(at)
        one[i] = 1.0
        up, down = values(at + one), values(at - one)
        want = sum(((up[n] - down[n]) / 2 * grads[n]).sum() for n in grads)
        same(got[i], want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("held", ["A", "W", "h", "C"])
def test_frozen_parameters_stay(held):
    made = dynamics("plrnn")
    made.get_parameter(held).requires_grad_(False)
    before = made.get_parameter(held).clone()
    found = WhitenedMap.of(made, *around(made))
    assert held not in found.places
    with torch.no_grad():
        found.values.copy_(rand(len(found.values), seed=3))
    found.write(made)
    assert torch.equal(made.get_parameter(held), before)
    assert torch.equal(found.applied(made).get_parameter(held), before)
    for n in set("AWhC") - {held}:
        assert n in found.places


def test_maps_without_free_coefficients_have_no_coordinates():
    made = dynamics("plrnn")
    path = around(made)
    for n in "AWhC":
        made.get_parameter(n).requires_grad_(False)
    assert WhitenedMap.of(made, *path) is None
    assert WhitenedMap.of(d.ShallowPLRNN(3, 5), *around(d.ShallowPLRNN(3, 5))) is None


def test_trials_of_one_step_are_enough():
    made = dynamics("plrnn")
    found = WhitenedMap.of(
        made, rand(4, 1, 3), rand(4, 1, 2, seed=1), torch.ones(4, 1, dtype=torch.bool)
    )
    assert torch.isfinite(found.coefficients()).all()


def test_its_gradient_steps_are_isotropic_in_the_prediction():
    """A step v of size one in any direction moves predictions by one, on average."""
    made = dynamics("plrnn")
    path, inputs, inside = around(made)
    found = WhitenedMap.of(made, path, inputs, inside)
    before, arrived = path[:, :-1][inside[:, 1:]], inputs[:, 1:][inside[:, 1:]]
    start = made.step(before, arrived).detach()
    for i in range(len(found.values)):
        with torch.no_grad():
            found.values.zero_()
            found.values[i] = 1.0
            moved = found.applied(made).step(before, arrived)
        size = float((moved - start).square().sum(-1).mean())
        assert 0.8 < size <= 1.0 + 1e-9  # a little less by the loading


# ---- training -----------------------------------------------------------------------------------
def data():
    return ps.StateSpaceModel(dynamics("no-inputs"), {"x": o.Gaussian(4)}).simulate(
        20, trials=3, seed=1
    )


def fresh():
    return ps.StateSpaceModel(d.PLRNN(2), {"x": o.Gaussian(4)})


ENGINE = {
    "steps": 40,
    "encoder": "mlp",
    "hidden": 4,
    "checks": 8,
    "window": 8,
    "batch_size": 3,
    "start": "model",
}
KINDS = {
    "plain": {},
    "held noise": {"process_noise": (1e-1, 1e-3)},
    "annealed": {"anneal": 0.5, "guide": "chain", "dtype": "float64", "samples": 2},
}


class Killed(Exception):
    pass


def state(fit):
    return {**fit.model.state_dict(), **fit.recognition.state_dict()}


def equal(one, other):
    mine, theirs = state(one), state(other)
    assert list(mine) == list(theirs)
    for n, value in mine.items():
        assert torch.equal(value, theirs[n]), n


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stop_at", [10, 40])
def test_resuming_is_exact_to_the_bit(tmp_path, monkeypatch, kind, stop_at):
    """Killed in the middle, and after the last update."""
    file = str(tmp_path / "run.safetensors")
    options = {**ENGINE, **KINDS[kind], "checkpoint_seconds": 0.0}
    whole = VariationalInference(**options).fit(fresh(), data(), progress=False)
    engine = VariationalInference(**options, checkpoint=file)
    measures, seen = PathTraining.measures, []

    def counted(self):
        seen.append(0)
        if len(seen) > stop_at // 5 + 1:
            raise Killed
        return measures(self)

    monkeypatch.setattr(PathTraining, "measures", counted)
    if stop_at < 40:
        with pytest.raises(Killed):
            engine.fit(fresh(), data(), progress=False)
    else:  # everything is trained, but what follows is lost
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(ps.Fit, "after_training", _raise)
            patch.setattr("pathlib.Path.unlink", _raise)
            engine.fit(fresh(), data(), progress=False)
    monkeypatch.setattr(PathTraining, "measures", measures)
    again = engine.fit(fresh(), data(), progress=False)
    equal(again, whole)
    columns = [c for c in whole.history if "seconds" not in c]
    assert whole.history[columns].equals(again.history[columns])
    assert not (tmp_path / "run.safetensors").exists()


def _raise(*args, **options):
    raise Killed


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_goes_back(monkeypatch, broken):
    loss, calls = PathTraining.loss, []

    def sometimes(self, progress, generator):
        calls.append(progress)
        value = loss(self, progress, generator)
        return value * broken if len(calls) in (13, 30) else value

    monkeypatch.setattr(PathTraining, "loss", sometimes)
    with pytest.warns(RuntimeWarning, match="last good"):
        fit = VariationalInference(**ENGINE).fit(fresh(), data(), progress=False)
    assert len(calls) > 40
    for n, value in state(fit).items():
        assert torch.isfinite(value).all(), n
    assert torch.isfinite(fit.posterior(data()).log_evidence).all()
    assert float(fit.history["learning_rate"].iloc[-1]) < 0.3 * 3e-3


def test_an_interruption_keeps_the_best(monkeypatch):
    loss, calls = PathTraining.loss, []

    def stopped(self, progress, generator):
        calls.append(progress)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return loss(self, progress, generator)

    monkeypatch.setattr(PathTraining, "loss", stopped)
    engine = VariationalInference(**{**ENGINE, "restarts": 3})
    with pytest.warns(RuntimeWarning, match="interrupted"):
        fit = engine.fit(fresh(), data(), progress=False)
    assert fit.history["step"].max() == 20
    assert set(fit.history["restart"]) == {0}
    assert torch.isfinite(fit.posterior(data()).log_evidence).all()
