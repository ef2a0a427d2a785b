"""Runs of training steps in compiled code against single steps with torch's RAdam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import plssm as ps
from plssm.dynamics import PLRNN, AlmostLinearRNN, DendriticPLRNN, ShallowPLRNN
from plssm.inference import GTF, SparseTF, TeacherForcing
from plssm.inference.compiled_updates import copied_values, quadratic_penalty
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
    if kind == "gaps":
        for v in values:
            v[rng.random(v.shape) < 0.2] = np.nan
    return values, inputs


def trainer(name, setting, kind="whole", *, dtype="float64", steps=60, **options):
    """A trainer as the engine makes it."""
    dynamics = FAMILY[name]() if isinstance(name, str) else name
    values, inputs = recordings(kind)
    data = ps.Dataset.from_arrays({"x": values}, 0.1, inputs=inputs if dynamics.n_inputs else None)
    dynamics.draw_start(torch.Generator().manual_seed(1))
    model = ps.StateSpaceModel(
        dynamics.to(getattr(torch, dtype)), {"x": ps.observations.Gaussian(3, readout="identity")}
    ).to(getattr(torch, dtype))
    engine = TeacherForcing(
        steps=steps, sequence=20, dtype=dtype, learning_rate=(0.03, 0.001), **SETTINGS[setting],
        **options,
    )  # fmt: skip
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
        made.step += len(new)
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


def test_frozen_parameters_stay():
    dynamics = FAMILY["shallow clipped"]()
    dynamics.W2.requires_grad_(False)
    made = trainer(dynamics, "plain")
    before = dynamics.W2.detach().clone()
    _, vector, _ = run(made, fast=True)
    assert torch.equal(dynamics.W2, before) and vector.numel() < 4 + 80 + 80 + 4 + 20 + 8


def test_decays_stay_below_one_where_orbits_are_to_be_bounded():
    for bounded in (True, False):
        made = trainer("shallow clipped", "plain", bounded=bounded)
        with torch.no_grad():
            made.problem.model.dynamics.A.fill_(1.5)
        run(made, fast=True)
        largest = float(made.problem.model.dynamics.A.detach().abs().max())
        assert (largest <= 0.999) == bounded


def test_a_step_that_is_not_finite_ends_a_run():
    ends = []
    for fast in (True, False):
        made = trainer("shallow", "plain", steps=10)
        _, _, made = run(made, fast=fast)
        made.training = type(made.training)(steps=60, learning_rate=(1e30, 1e30))
        made._marks = {60: 0}
        made.step, made.good = 50, made.vector.detach().clone()
        with pytest.warns(RuntimeWarning, match="not finite"):
            while not made.failures:  # one enormous step, and its successor
                made.step += len(made.update_some())
        assert made.step == 51
        ends.append((made.vector.detach().clone(), made.slower, len(made.optimiser.state)))
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-7)
    assert ends[0][1:] == ends[1][1:] == (0.5, 0)


class Squashed(ShallowPLRNN):
    """A member whose layer is not a copy of its parameters."""

    def layer(self):
        layer = super().layer()
        return type(layer)(**{**vars(layer), "decay": torch.tanh(self.A)})


@pytest.mark.parametrize(
    "dynamics", [Squashed(3, 4), ShallowPLRNN(3, 4, mean_centered=True)], ids=["squashed", "mean"]
)
def test_other_maps_take_single_steps(dynamics):
    made = trainer(dynamics, "plain", steps=5)
    assert made._fast is None
    assert made.update_some() and made.step == 0


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
