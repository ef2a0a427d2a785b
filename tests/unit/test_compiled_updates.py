"""Runs of training steps in compiled code against single steps with torch's RAdam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import plssm as ps
from plssm.dynamics import PLRNN, AlmostLinearRNN, DendriticPLRNN, ShallowPLRNN
from plssm.inference import GTF, SparseTF, TeacherForcing
from plssm.inference.compiled_map import copied_values, quadratic_penalty
from plssm.inference.forced_readouts import start_readouts
from plssm.inference.forced_training import ForcedTraining
from plssm.inference.trainer import Trainer

FAMILY = {
    "plrnn": lambda: PLRNN(3),
    "plrnn with hidden states and inputs": lambda: PLRNN(5, inputs=2),
    "manifold attractor": lambda: PLRNN(4, regularizer=ps.dynamics.ManifoldAttractor(tau=10.0)),
    "shallow": lambda: ShallowPLRNN(3, 11, clipped=False),
    "shallow clipped": lambda: ShallowPLRNN(4, 20, inputs=2),
    "dendritic": lambda: DendriticPLRNN(4, 6, inputs=2, clipped=False),
    "dendritic clipped": lambda: DendriticPLRNN(9, 3),
    "almost linear": lambda: AlmostLinearRNN(6, 2),
}
SETTINGS = {
    "plain": {},
    "noise": {"noise": 0.1, "scheme": GTF(0.3, final_alpha=0.01)},
    "shrink": {"shrink": 0.1, "batch_size": 19},
    "sparse": {"scheme": SparseTF(4, spread=2), "clip": 0.3},
    "adaptive": {"scheme": GTF(0.2, adaptive_by="product"), "batch_size": 1},
}


def recordings(kind):
    """Three trials of three channels: whole ones, ones with gaps, and ones of all lengths."""
    rng = np.random.default_rng(0)
    lengths = (60, 9, 33) if kind == "ragged" else (60, 60, 60)
    values = [rng.standard_normal((n, 3)).cumsum(0) * 0.3 for n in lengths]
    inputs = [rng.standard_normal((n, 2)) for n in lengths]
    if kind == "first missing":
        values[0][0] = np.nan
    if kind == "gaps":
        for v in values:
            v[rng.random(v.shape) < 0.2] = np.nan
    return values, inputs


def trainer(
    name, setting, kind="whole", *, dtype="float64", steps=60, frozen=(), observation=None,
    **options,
):  # fmt: skip
    """A trainer as the engine makes it."""
    dynamics = FAMILY[name]() if isinstance(name, str) else name
    values, inputs = recordings(kind)
    data = ps.Dataset.from_arrays({"x": values}, 0.1, inputs=inputs if dynamics.n_inputs else None)
    dynamics.draw_start(torch.Generator().manual_seed(1))
    for frozen_name in frozen:
        getattr(dynamics, frozen_name).requires_grad_(False)
    observation = observation or ps.observations.Gaussian(3, readout="identity")
    model = ps.StateSpaceModel(dynamics, {"x": observation}).to(getattr(torch, dtype))
    options = {"sequence": 20, "learning_rate": (0.03, 0.001)} | SETTINGS[setting] | options
    engine = TeacherForcing(steps=steps, dtype=dtype, **options)
    batch = data.batch().to(dtype=getattr(torch, dtype))
    problem = ForcedTraining(engine, model, batch, batch, seed=2)
    return Trainer(problem, engine.training(), seed=3)


def bold_trainer(dim, *, mixed=False, learn=False):
    """A trainer on BOLD of three regions, alone or beside a Gaussian channel."""
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((n, 3)).cumsum(0) for n in (60, 41)]
    x[0][22, 0] = np.nan
    values, kinds = {"bold": x}, {"bold": "bold"}
    response = ps.observations.DoubleGamma(
        time_to_peak=1.5, time_to_undershoot=3.0, length_seconds=5.0, learn=learn
    )
    observations = {"bold": ps.observations.BOLD(3, tr_seconds=1.0, hrf=response)}
    if mixed:
        values["eeg"] = [rng.standard_normal((n, 1)) for n in (60, 41)]
        observations["eeg"] = ps.observations.Gaussian(1)
    data = ps.Dataset.from_arrays(values, 1.0, kinds=kinds)
    dynamics = ShallowPLRNN(dim, 12)
    dynamics.draw_start(torch.Generator().manual_seed(1))
    model = ps.StateSpaceModel(dynamics, observations)
    start_readouts(model, data.batch())
    engine = TeacherForcing(
        scheme=GTF(0.2), steps=60, sequence=9, batch_size=5, learning_rate=(0.03, 0.001)
    )
    problem = ForcedTraining(engine, model, data.batch(), data.batch(), seed=2)
    return Trainer(problem, engine.training(), seed=3)


def run(made, *, fast):
    """Losses of all updates and the parameters after them."""
    assert made._fast is not None
    if not fast:
        made._fast = None
    losses = []
    while made.step < made.training.steps:
        new = made.update_some()
        losses += new
    return np.array(losses), made.vector.detach().clone(), made


@pytest.mark.parametrize("kind", ["whole", "gaps", "ragged"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_runs_equal_single_steps(name, setting, kind):
    losses, vector, made = run(trainer(name, setting, kind), fast=True)
    wanted, single, plain = run(trainer(name, setting, kind), fast=False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    torch.testing.assert_close(vector, single, rtol=1e-7, atol=1e-9)
    assert len(losses) == 60 and losses.std() > 0
    state, other = made.optimiser.state[made.vector], plain.optimiser.state[plain.vector]
    assert all(torch.allclose(state[k], other[k], rtol=1e-7, atol=1e-10) for k in other)
    assert torch.equal(made.generator.get_state(), plain.generator.get_state())
    assert made.problem.state() == pytest.approx(plain.problem.state())


@pytest.mark.parametrize("name", ["shallow clipped", "almost linear"])
def test_runs_equal_single_steps_in_single_precision(name):
    losses, vector, _ = run(trainer(name, "noise", "gaps", dtype="float32"), fast=True)
    wanted, single, _ = run(trainer(name, "noise", "gaps", dtype="float32"), fast=False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)  # rounding grows along 60 updates
    torch.testing.assert_close(vector, single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dim", "mixed"), [(3, False), (5, False), (4, True), (6, True)])
def test_runs_through_a_response_equal_single_steps(dim, mixed):
    losses, vector, _ = run(bold_trainer(dim, mixed=mixed), fast=True)
    wanted, single, _ = run(bold_trainer(dim, mixed=mixed), fast=False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    torch.testing.assert_close(vector, single, rtol=1e-7, atol=1e-9)


def test_mixing_readouts_and_learned_responses_take_single_steps():
    assert bold_trainer(2)._fast is None
    assert bold_trainer(3, learn=True)._fast is None


@pytest.mark.parametrize("frozen", [("W2",), ("A", "C"), ("W1", "h1", "h2")])
def test_frozen_parameters_count_and_stay(frozen):
    losses, vector, made = run(trainer("shallow clipped", "shrink", frozen=frozen), fast=True)
    wanted, single, _ = run(trainer("shallow clipped", "shrink", frozen=frozen), fast=False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    torch.testing.assert_close(vector, single, rtol=1e-7, atol=1e-9)
    first = trainer("shallow clipped", "shrink", frozen=frozen).problem.model.dynamics
    for name in frozen:
        assert torch.equal(getattr(made.problem.model.dynamics, name), getattr(first, name))


SELECTING = ps.observations.Gaussian.from_parameters(
    [[0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5], [3.0, 0.0, 0.0, 0.0]],
    bias=[1.0, -1.0, 0.5], noise=[1.0, 1.0, 1.0],
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gaps", {"observation": SELECTING}),
        ("whole", {"sequence": 1}),
        ("first missing", {}),
        ("ragged", {"batch_size": 40}),
    ],
)
def test_edges(kind, options):
    name = "shallow clipped"
    losses, vector, _ = run(trainer(name, "noise", kind, **options), fast=True)
    wanted, single, _ = run(trainer(name, "noise", kind, **options), fast=False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    torch.testing.assert_close(vector, single, rtol=1e-7, atol=1e-9)


def test_decays_stay_below_one_where_orbits_are_to_be_bounded():
    for bounded in (True, False):
        made = trainer("shallow clipped", "plain", bounded=bounded)
        with torch.no_grad():
            made.problem.model.dynamics.A.fill_(1.5)
        run(made, fast=True)
        largest = float(made.problem.model.dynamics.A.detach().abs().max())
        assert (largest <= 0.999) == bounded


@pytest.mark.parametrize("setting", ["sparse", "adaptive"])
def test_a_step_that_is_not_finite_ends_a_run(setting):
    ends = []
    for fast in (True, False):
        made = trainer("shallow", setting, steps=10)
        _, _, made = run(made, fast=fast)
        made.training = type(made.training)(steps=60, learning_rate=(1e30, 1e30), clip=1e30)
        made._marks = {60: 0}
        made.step, made.good = 50, made.vector.detach().clone()
        with pytest.warns(RuntimeWarning, match="step 51: the loss is not finite"):
            while not made.failures:  # one enormous step, and its successor
                made.update_some()
        assert made.step == 51 and made.slower == 0.5 and not made.optimiser.state
        ends.append(made)
    fast, single = ends
    assert torch.allclose(fast.vector, single.vector, rtol=1e-7)
    assert torch.equal(fast.generator.get_state(), single.generator.get_state())
    assert fast.problem.state() == pytest.approx(single.problem.state())


class Squashed(ShallowPLRNN):
    """A member whose layer is not a copy of its parameters."""

    def layer(self):
        layer = super().layer()
        return type(layer)(**{**vars(layer), "decay": torch.tanh(self.A)})


class Fragile(ShallowPLRNN):
    """A member whose layer is not defined for all parameters."""

    def layer(self):
        torch.linalg.cholesky(torch.diag(self.A))
        return super().layer()


class OwnBounds(ShallowPLRNN):
    """A member with bounds of its own."""

    def bound_orbits(self):
        self.A.data.clamp_(-0.5, 0.5)


class OwnDrive(ShallowPLRNN):
    """A member whose inputs enter in another way."""

    def drive(self, s):
        return 2 * super().drive(s)


@pytest.mark.parametrize("kind", [Squashed, Fragile, OwnBounds, OwnDrive, "mean"])
def test_other_maps_take_single_steps(kind):
    dynamics = ShallowPLRNN(3, 4, mean_centered=True) if kind == "mean" else kind(3, 4)
    made = trainer(dynamics, "plain", steps=5)
    kept = made.vector.detach().clone()
    assert made._fast is None
    assert torch.equal(kept, torch.cat([p.flatten() for p in made.parameters]))
    assert len(made.update_some()) == 1 and made.step == 1


def test_runs_with_noise_are_short_where_it_takes_memory():
    made = trainer("plrnn", "noise", sequence=50, batch_size=4000)
    assert made._fast.ready() == 2**22 // (4000 * 50 * 3)
    assert trainer("plrnn", "plain")._fast.ready() > 1000


def test_copies_are_found():
    vector = nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))
    first, second, third = vector.detach()

    def read():
        a, b, c = vector.detach()
        return torch.stack([-b, torch.tensor(7.0), a, a, torch.tensor(0.0), c])

    found = copied_values(vector, read)
    assert found.index.tolist() == [1, -1, 0, 0, -1, 2]
    assert found.sign[found.index >= 0].tolist() == [-1, 1, 1, 1]
    assert found.constant.tolist() == [0, 7, 0, 0, 0, 0]
    assert vector.tolist() == [first, second, third]


@pytest.mark.parametrize(
    "change",
    [torch.abs, torch.tanh, torch.square, lambda x: 2 * x, lambda x: 1 - x, lambda x: x.cumsum(0),
     lambda x: x.clamp(-50, 50), lambda x: x * (x[0] > 0)],
)  # fmt: skip
def test_what_is_no_copy_is_noticed(change):
    vector = nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))
    assert copied_values(vector, lambda: change(vector.detach())) is None


def test_quadratic_penalties_are_found_and_others_noticed():
    vector = nn.Parameter(torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64))
    target = torch.tensor([1.0, 0.0, -1.0])
    found = quadratic_penalty(vector, [vector], lambda: 0.5 * (vector - target).square().sum())
    np.testing.assert_allclose(found.linear, [-1, 0, 1])
    np.testing.assert_allclose(found.quadratic, [1, 1, 1])
    np.testing.assert_allclose(found.constant, [1])
    assert quadratic_penalty(vector, [vector], lambda: None).quadratic.tolist() == [0, 0, 0]
    for other in (lambda: vector.abs().sum(), lambda: vector[0] * vector[1],
                  lambda: vector.pow(4).sum()):  # fmt: skip
        assert quadratic_penalty(vector, [vector], other) is None
    assert vector.tolist() == [0.5, -2.0, 3.0]


def test_many_sequences_are_left_to_many_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    settings = {"sequence": 50, "batch_size": 64}
    dynamics = ShallowPLRNN(10, 800)
    assert trainer(dynamics, "plain", **settings)._fast is None
    assert trainer("shallow", "plain", **settings)._fast is not None  # a short pass
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert trainer(dynamics, "plain", **settings)._fast is not None
