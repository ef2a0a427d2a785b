"""Fisher coordinates of maps and observation models, and variational training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.linalg
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.encoders import Encoder
from plssm.inference.fisher_coordinates import (
    FAINT,
    FAINTER,
    LOADING,
    MapCoordinates,
    ReadoutCoordinates,
    applied,
)
from plssm.inference.recognition import Recognition
from plssm.inference.variational import VariationalInference
from plssm.inference.variational_start import started_model
from plssm.inference.variational_training import PathTraining

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


@pytest.mark.parametrize("name", list(MAPS))
def test_at_zero_it_is_the_map(name):
    made = dynamics(name)
    found = MapCoordinates.of(made, *around(made))
    before = {n: p.clone() for n, p in made.named_parameters()}
    assert (found.values == 0).all()
    copied = applied(made, {"": found})
    for n, p in copied.named_parameters():
        same(p, before[n])
    found.write(made)
    for n, p in made.named_parameters():
        assert torch.equal(p, before[n])
    z = rand(7, 3)
    s = rand(7, 2) if made.n_inputs else None
    same(copied.step(z, s), made.step(z, s))


def inverse_root(information, most):
    """By its definition: of the loaded correlations, then in units of the diagonal."""
    scale = np.diag(information) + FAINT * np.diag(information).max() + FAINTER * most
    half = np.diag(scale**-0.5)
    loaded = half @ information @ half + LOADING * np.eye(len(scale))
    return np.linalg.inv(scipy.linalg.sqrtm(loaded)) @ half


@pytest.mark.parametrize("name", list(MAPS))
def test_coefficients_move_by_deviations_in_units_of_their_information(name):
    """Row by row, by the definition; structural zeros stay."""
    made = dynamics(name)
    made.noise.variance = torch.tensor([0.5, 0.1, 0.01])
    path, inputs, inside = around(made)
    found = MapCoordinates.of(made, path, inputs, inside)
    theta, free = made.coefficients()
    with torch.no_grad():
        found.values.copy_(rand(*found.values.shape, seed=3))
    z = path[:, :-1][inside[:, 1:]].numpy()
    bent = {"linear": z[:, :0], "almost-linear": z[:, 2:]}.get(name, z)
    parts = [z, np.maximum(bent, 0.0)]
    parts.append(np.ones((len(z), 1)))
    if made.n_inputs:
        parts.append(inputs[:, 1:][inside[:, 1:]].numpy())
    read = np.hstack(parts)
    moment, variance = read.T @ read / len(read), made.noise.variance.detach().numpy()
    rows = [moment[np.ix_(row, row)] / q for row, q in zip(free.numpy(), variance)]
    most = max(np.diag(m).max() for m in rows)
    want = theta.detach().clone()
    for i, (row, information) in enumerate(zip(free, rows)):
        v = found.values[i][row].detach().numpy()
        want[i, row] += torch.from_numpy(v @ inverse_root(information, most))
    found.write(made)
    same(made.coefficients()[0], want)
    if name in ("plrnn", "no-inputs"):
        assert (made.W.diagonal() == 0).all()


@pytest.mark.parametrize("name", list(MAPS))
def test_gradients_are_those_of_the_parameters_by_the_chain_rule(name):
    made = dynamics(name)
    found = MapCoordinates.of(made, *around(made))
    with torch.no_grad():
        found.values.copy_(0.1 * rand(*found.values.shape, seed=3))
    z, to = rand(9, 3, seed=4), rand(9, 3, seed=5)
    s = rand(9, 2, seed=6) if made.n_inputs else None
    loss = (applied(made, {"": found}).step(z, s) - to).square().sum()
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
    for i in np.ndindex(*at.shape):  # the coordinates are linear: differences are exact
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
    found = MapCoordinates.of(made, *around(made))
    assert held not in found.places
    with torch.no_grad():
        found.values.copy_(rand(*found.values.shape, seed=3))
    found.write(made)
    assert torch.equal(made.get_parameter(held), before)
    assert torch.equal(applied(made, {"": found}).get_parameter(held), before)
    for n in set("AWhC") - {held}:
        assert n in found.places


def test_maps_without_free_coefficients_have_no_coordinates():
    made = dynamics("plrnn")
    path = around(made)
    for n in "AWhC":
        made.get_parameter(n).requires_grad_(False)
    assert MapCoordinates.of(made, *path) is None
    assert MapCoordinates.of(d.ShallowPLRNN(3, 5), *around(d.ShallowPLRNN(3, 5))) is None


def test_trials_of_one_step_are_enough():
    made = dynamics("plrnn")
    found = MapCoordinates.of(
        made, rand(4, 1, 3), rand(4, 1, 2, seed=1), torch.ones(4, 1, dtype=torch.bool)
    )
    assert torch.isfinite(found.coefficients()).all()


def test_steps_of_a_map_are_isotropic_in_the_prediction():
    """A step v of size one in any direction moves predictions by one standard deviation."""
    made = dynamics("plrnn")
    made.noise.variance = torch.tensor([0.5, 0.1, 0.01])
    path, inputs, inside = around(made)
    found = MapCoordinates.of(made, path, inputs, inside)
    before, arrived = path[:, :-1][inside[:, 1:]], inputs[:, 1:][inside[:, 1:]]
    start, free = made.step(before, arrived).detach(), made.coefficients()[1]
    for i in free.nonzero().tolist():
        with torch.no_grad():
            found.values.zero_()
            found.values[*i] = 1.0
            moved = applied(made, {"": found}).step(before, arrived)
        change = (moved - start) / made.noise.variance.detach().sqrt()
        size = float(change.square().sum(-1).mean())
        assert 0.8 < size <= 1.0 + 1e-9  # a little less by the loading


# ---- observation models -------------------------------------------------------------------------
SHORT = {"length_seconds": 6.0}
OBSERVED = {
    "gaussian": lambda: o.Gaussian(3),
    "rectified": lambda: o.Gaussian(3, readout="relu", nuisance=1),
    "poisson": lambda: o.Poisson(3),
    "history": lambda: o.Poisson(2, history=o.RaisedCosine(functions=2, longest_seconds=4.0)),
    "negative binomial": lambda: o.NegativeBinomial(3),
    "zero inflated": lambda: o.ZeroInflatedPoisson(3),
    "categorical": lambda: o.Categorical(3),
    "ordinal": lambda: o.Ordinal(2, 3),
    "bold": lambda: o.BOLD(3, tr_seconds=2.0, hrf=o.DoubleGamma(**SHORT)),
    "bold by region": lambda: o.BOLD(
        2, tr_seconds=2.0, hrf=o.DoubleGamma(**SHORT, learn=True, regions=2)
    ),
}


def observed(name):
    """A model, a path, its data with gaps, and which steps exist."""
    made, rng = OBSERVED[name]().bind(3), np.random.default_rng(4)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(0.2 * rand(*p.shape, seed=i) * bool(made.weight.shape == p.shape))
    truth = ps.StateSpaceModel(dynamics("no-inputs"), {"y": made})
    path = rand(2, 40, 3, seed=3)
    drift = {"y": rng.standard_normal((2, 40, made.nuisance))} if made.nuisance else None
    whole = truth.observe(path, dt=1.0, seed=3, nuisance=drift)
    for trial in whole.trials:
        trial.values["y"][rng.random(trial.values["y"].shape) < 0.2] = np.nan
    batch = whole.batch()
    return made, path, batch.modalities["y"], batch.time_mask


@pytest.mark.parametrize("name", list(OBSERVED))
def test_information_is_the_second_derivative_of_the_log_density(name):
    """By automatic differentiation through the whole log-density, in coordinates."""
    made, path, m, inside = observed(name)
    places, information = made.information(m, path)
    theta = places.read().detach().requires_grad_()

    def total(values):
        parts = {n: p for n, p in made.named_parameters()} | places.tensors(values)
        known = {id(p): parts[n] for n, p in made.named_parameters()}
        return copy.deepcopy(made, known).log_prob(m, path).sum()

    hessian, free = torch.autograd.functional.hessian(total, theta), places.free()
    K, q = theta.shape
    if len(information) == 1:
        same(information.view(K, q, K, q), -hessian, rtol=1e-7, atol=1e-8)
        return
    for k, row in enumerate(free):
        got, want = (x[row][:, row] for x in (information[k], -hessian[k, :, k]))
        same(got, want, rtol=1e-7, atol=1e-8)
        assert bool(row.any())


@pytest.mark.parametrize("name", list(OBSERVED))
def test_coordinates_of_observation_models(name):
    """At zero they are the model; in well determined directions the log-density curves by one."""
    made, path, m, inside = observed(name)
    before = {n: p.clone() for n, p in made.named_parameters()}
    found = ReadoutCoordinates.of(made, m, path, inside)
    for n, p in applied(made, {"": found}).named_parameters():
        same(p, before[n])
    places, information = made.information(m, path)
    white = found.roots @ information @ found.roots.mT / inside.sum()
    sizes = torch.linalg.eigvalsh(white)
    assert 0.9 < sizes.max() <= 1 + 1e-9
    assert (sizes > 0.5).sum() >= 0.5 * places.free().sum()
    with torch.no_grad():
        found.values.copy_(0.1 * rand(*found.values.shape, seed=2))
    moved = applied(made, {"": found})
    found.write(made)
    same(made.log_prob(m, path), moved.log_prob(m, path))
    assert not torch.equal(made.weight, before["weight"])
    for n in before:
        if n not in ("weight", "bias", "nuisance_weight"):
            assert torch.equal(made.get_parameter(n), before[n])


def test_units_of_channels_and_regressors_do_not_matter():
    """The same deviations change the log-density alike, whatever the data are measured in."""
    path, inside = rand(2, 40, 3, seed=3), torch.ones(2, 40, dtype=torch.bool)
    found = []
    for channel, state in ((1.0, 1.0), (1e-2, 1.0), (1.0, 30.0)):
        size = torch.tensor([1.0, channel], dtype=torch.float64)
        scale = torch.tensor([1.0, 1.0, state], dtype=torch.float64)
        weight = torch.tensor([[0.5, 0.2, -1.0], [1.0, 0.3, 0.4]]).double()
        made = o.Gaussian.from_parameters(B=size[:, None] * weight / scale, noise=0.1 * size**2)
        y = path @ weight.T * size + 0.3 * rand(2, 40, 2, seed=4) * size
        batch = ps.Dataset.from_arrays({"y": y.numpy()}, 1.0).batch()
        m = batch.modalities["y"]
        part = ReadoutCoordinates.of(made, m, path * scale, inside)
        before = made.log_prob(m, path * scale)
        with torch.no_grad():
            part.values.copy_(0.3 * rand(*part.values.shape, seed=5))
        found.append(applied(made, {"": part}).log_prob(m, path * scale) - before)
    for other in found[1:]:  # FAINT and FAINTER, which are shares of what is measured most exactly
        same(other, found[0], rtol=0.05, atol=0.5)
    assert found[0].abs().min() > 5


def test_coordinates_of_sums_of_parameters_with_one_held():
    """The diagonal of a linear unit is A + W; whatever A is, W moves alone."""
    for seed in range(20):
        made = d.AlmostLinearRNN(3, 1)
        with torch.no_grad():
            made.A.copy_(rand(3, seed=seed))
        made.A.requires_grad_(False)
        found = MapCoordinates.of(made, *around(made))
        assert found is not None and set(found.places) == {"W", "h"}


def test_what_observation_models_share_stays_shared():
    model = ps.StateSpaceModel(dynamics("no-inputs"), {"a": o.Gaussian(2), "b": o.Gaussian(2)})
    model.observations["b"].weight = model.observations["a"].weight
    data = model.simulate(20, trials=2, seed=0)
    fit = VariationalInference(**ENGINE).fit(model, data, progress=False)
    a, b = (fit.model.observations[n].weight for n in "ab")
    assert torch.equal(a, b)
    assert not torch.equal(a, model.observations["a"].weight)


@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_tempered_information(weight):
    made, path, m, inside = observed("poisson")
    plain = ReadoutCoordinates.of(made, m, path, inside)
    made.tempering = torch.tensor(weight, dtype=torch.float64)
    found = ReadoutCoordinates.of(made, m, path, inside)
    if weight:
        same(found.roots, plain.roots / 2, rtol=1e-8)
    else:
        assert found is None


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


def test_restarts_with_falling_noise_are_compared_by_their_last_bounds():
    options = {**ENGINE, "process_noise": (1e-1, 1e-2), "restarts": 3, "start": "data"}
    fit = VariationalInference(**options).fit(fresh(), data(), progress=False)
    last = fit.history.groupby("restart")["elbo"].last()
    (chosen,) = fit.history.loc[fit.history["selected"], "restart"].unique()
    assert chosen == last.idxmax()
    assert last.nunique() == 3


@pytest.mark.parametrize("at", [0, 1])
def test_an_interruption_before_a_restart_begins(monkeypatch, at):
    calls = []

    def start(*args, **options):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return started_model(*args, **options)

    monkeypatch.setattr("plssm.inference.variational.started_model", start)
    engine = VariationalInference(**{**ENGINE, "restarts": 3})
    if not at:
        with pytest.raises(KeyboardInterrupt):
            engine.fit(fresh(), data(), progress=False)
        return
    with pytest.warns(RuntimeWarning, match="before restart 1 began"):
        fit = engine.fit(fresh(), data(), progress=False)
    assert set(fit.history["restart"]) == {0}


def test_filters_have_no_bound():
    fit = VariationalInference(**ENGINE).fit(fresh(), data(), progress=False)
    with pytest.raises(PlssmError, match="a filter has no bound"):
        fit.posterior(data(), causal=True, bound="importance")


@pytest.mark.parametrize("name", ["plrnn", "almost-linear", "linear"])
def test_the_ridge_is_half_the_squares_of_the_weights_of_the_hinges(name):
    """Of all data together, in nats; the loss is one of a latent step."""
    made = dynamics(name)
    model = ps.StateSpaceModel(made, {"x": o.Gaussian(4)})
    inputs = rand(2, 15, made.n_inputs).numpy()
    batch = model.simulate(15, trials=2, seed=1, inputs=inputs).batch()
    path, losses = rand(2, 15, 3), []
    for ridge in (0.0, 6.0):
        engine = VariationalInference(**{**ENGINE, "dtype": "float64", "ridge": ridge})
        guide = Recognition(Encoder.for_model(model, batch, network="none"), 3, inputs=2)
        problem = PathTraining(engine, model, guide, batch, batch, path=path)
        losses.append(problem.loss(0.5, torch.Generator().manual_seed(0)).detach())
    weights = {"plrnn": lambda: made.W, "almost-linear": lambda: made.W[:, 2:]}
    squares = weights[name]().detach().square().sum() if name in weights else torch.zeros(())
    same(losses[1] - losses[0], (3.0 * squares / 30).double())
    assert name == "linear" or losses[1] > losses[0]
