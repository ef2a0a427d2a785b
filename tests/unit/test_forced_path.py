"""Compiled forced paths and their gradients against the plain loop, for the whole family."""

from __future__ import annotations

import pytest
import torch

from plssm.dynamics import (
    PLRNN,
    AlmostLinearRNN,
    DendriticPLRNN,
    LinearDynamics,
    ShallowPLRNN,
)
from plssm.inference.forced_rollout import force, forced_rollout
from plssm.kernels import forced_path as kernel
from plssm.kernels.forced_path import forced_loss, forced_path, forced_path_plain

FAMILY = {
    "plrnn": lambda: PLRNN(5, inputs=2),
    "plrnn centred": lambda: PLRNN(4, mean_centered=True),
    "shallow": lambda: ShallowPLRNN(3, 13, inputs=2, clipped=False),
    "shallow clipped": lambda: ShallowPLRNN(5, 14, inputs=1),
    "shallow clipped centred": lambda: ShallowPLRNN(4, 7, mean_centered=True),
    "dendritic": lambda: DendriticPLRNN(4, 6, inputs=2, clipped=False),
    "dendritic clipped": lambda: DendriticPLRNN(7, 3),
    "dendritic clipped centred": lambda: DendriticPLRNN(3, 3, mean_centered=True),
    "almost linear": lambda: AlmostLinearRNN(6, 2, inputs=1),
    "all rectified": lambda: AlmostLinearRNN(3, 3),
    "one state": lambda: ShallowPLRNN(1, 1),
}
SCHEMES = ("free", "sparse", "partial", "missing", "strong")


def problem(name, *, batch=3, steps=12, scheme="missing", dtype=torch.float64):
    """A drawn map, and everything a forced path depends on."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    dynamics = FAMILY[name]()
    dynamics.draw_start(generator)
    with torch.no_grad():
        for parameter in dynamics.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).double())
    dynamics = dynamics.to(dtype)
    dim = dynamics.dim
    weight = {
        "free": torch.zeros(()),
        "sparse": (torch.arange(steps) % 4 == 0)[None, :, None].to(dtype),
        "partial": 0.3 * (torch.arange(dim) < 2).to(dtype),
        "missing": 0.2 * (torch.rand(batch, steps, dim, generator=generator) < 0.8).to(dtype),
        "strong": torch.ones(1, 1, 1),
    }[scheme]
    inputs = normal(batch, steps, dynamics.n_inputs) if dynamics.n_inputs else None
    return dynamics, normal(batch, dim), normal(batch, steps, dim), weight, inputs


def both(dynamics, start, teacher, weight, inputs):
    """The compiled and the plain path."""
    drive = None if inputs is None else dynamics.drive(inputs)
    options = {"teacher": teacher, "weight": weight, "drive": drive}
    plain = forced_path_plain(dynamics.step, start, **options)
    return forced_rollout(dynamics, start, teacher, weight, inputs), plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILY)
def test_values_and_gradients_equal_the_plain_loop(name, scheme, dtype):
    dynamics, start, teacher, weight, inputs = problem(name, scheme=scheme, dtype=dtype)
    leaves = [start.requires_grad_(), teacher.requires_grad_()]
    leaves += [p for n, p in dynamics.named_parameters() if not n.startswith(("noise", "initial"))]
    leaves = [x for x in leaves if x.numel()]
    got, want = both(dynamics, start, teacher, weight, inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    scale = float(want.detach().abs().max())
    torch.testing.assert_close(got, want, atol=tolerance * max(scale, 1.0), rtol=0)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    mine, theirs = (
        torch.autograd.grad((path * direction).sum(), leaves, allow_unused=True)
        for path in (got, want)
    )
    slack = 1e-11 if dtype == torch.float64 else 2e-5  # sums over steps and sequences
    for one, other in zip(mine, theirs, strict=True):
        if other is None:
            assert one is None or not one.any()
            continue
        size = float(other.abs().max())
        torch.testing.assert_close(one, other, atol=slack * max(size, 1.0), rtol=0)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_by_finite_differences(name):
    dynamics, start, teacher, weight, inputs = problem(name, batch=3, steps=4)
    names = [n for n, p in dynamics.named_parameters() if p.numel()]
    names = [n for n in names if not n.startswith(("noise", "initial"))]
    values = [dynamics.get_parameter(n).detach().clone().requires_grad_() for n in names]

    def path(start, teacher, *values):
        with torch.nn.utils.stateless._reparametrize_module(dynamics, dict(zip(names, values))):
            return forced_rollout(dynamics, start, teacher, weight, inputs)

    arguments = (start.requires_grad_(), teacher.requires_grad_(), *values)
    assert torch.autograd.gradcheck(path, arguments, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_sequences_and_threads(batch, threads, monkeypatch):
    monkeypatch.setattr(kernel, "_ENOUGH", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dynamics, start, teacher, weight, inputs = problem("shallow clipped", batch=batch)
        got, want = both(dynamics, start, teacher, weight, inputs)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
        for one, other in zip(
            torch.autograd.grad(got.square().sum(), [dynamics.W1, dynamics.W2]),
            torch.autograd.grad(want.square().sum(), [dynamics.W1, dynamics.W2]),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    finally:
        torch.set_num_threads(before)


def test_long_sequences_are_summed_in_blocks():
    dynamics, start, teacher, weight, inputs = problem("dendritic clipped", steps=100)
    got, want = both(dynamics, start, teacher, weight, inputs)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), [dynamics.W, dynamics.alpha]),
        torch.autograd.grad(want.square().sum(), [dynamics.W, dynamics.alpha]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_forcing_at_both_limits():
    """Fully forced paths are single steps from the teacher; free ones are free runs."""
    dynamics, start, teacher, _, inputs = problem("shallow clipped")
    forced = forced_rollout(dynamics, start, teacher, torch.ones(()), inputs)
    torch.testing.assert_close(forced, dynamics.step(teacher, inputs), atol=1e-12, rtol=0)
    free = forced_rollout(dynamics, start, teacher, torch.zeros(()), inputs)
    run = dynamics.rollout(start, 12, inputs=inputs, noise=False)
    torch.testing.assert_close(free, run, atol=1e-12, rtol=0)
    torch.testing.assert_close(force(start, teacher[:, 0], 0.0), start)
    torch.testing.assert_close(force(start, teacher[:, 0], 1.0), teacher[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_in_one_pass_is_that_of_the_path(name, dtype):
    dynamics, start, teacher, weight, inputs = problem(name, batch=11, dtype=dtype)
    generator = torch.Generator().manual_seed(8)
    target = torch.randn(teacher.shape, generator=generator).to(dtype)
    target[torch.rand(target.shape, generator=generator) < 0.2] = float("nan")
    precision = torch.rand(dynamics.dim, generator=generator).to(dtype)
    precision[0] = 0.0 if dynamics.dim > 1 else 1.0
    drive = None if inputs is None else dynamics.drive(inputs)
    options = {"teacher": teacher.requires_grad_(), "weight": weight, "drive": drive}
    loss = forced_loss(
        dynamics.layer(), start.requires_grad_(), target=target, precision=precision, **options
    )
    path = forced_path_plain(dynamics.step, start, **options)
    error = torch.where(target.isnan(), 0.0, precision * (path - target.nan_to_num()))
    want = error.square().sum() / target.numel()
    slack = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss, want, atol=slack, rtol=slack)
    leaves = [start, teacher]
    leaves += [p for n, p in dynamics.named_parameters() if not n.startswith(("noise", "initial"))]
    leaves = [x for x in leaves if x.numel()]
    mine, theirs = (
        torch.autograd.grad(3.0 * x, leaves, allow_unused=True, retain_graph=True)
        for x in (loss, want)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=slack, rtol=100 * slack)


def test_one_step_and_dynamics_without_a_layer():
    dynamics, start, teacher, weight, inputs = problem("almost linear", steps=1)
    got, want = both(dynamics, start, teacher, weight, inputs)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    linear = LinearDynamics(6, inputs=1)
    path = forced_rollout(linear, start, teacher, weight, inputs)
    by_hand = linear.step(force(start, teacher[:, 0], weight[:, 0]), inputs[:, 0])
    torch.testing.assert_close(path[:, 0], by_hand)


def test_a_sequence_that_diverges_leaves_the_others_alone():
    layer = PLRNN.from_parameters(A=[2.0, 0.5], W=[[0.0, 0.0], [0.0, 0.0]]).layer()
    start = torch.tensor([[1.0, 1.0], [0.0, 1.0], [float("nan"), 1.0]]).double().requires_grad_()
    path = forced_path(layer, start, steps=1200)
    assert not torch.isfinite(path[0, -1, 0])
    assert torch.isnan(path[2, -1, 0])
    torch.testing.assert_close(path[1, :3, 1].detach(), torch.tensor([0.5, 0.25, 0.125]).double())
    gradient = torch.autograd.grad(path[1, :3].sum(), start)[0]
    torch.testing.assert_close(gradient[1, 1], torch.tensor(0.875).double())


def test_wrong_shapes_are_refused():
    dynamics, start, teacher, weight, _ = problem("dendritic clipped")
    layer = dynamics.layer()
    with pytest.raises(ValueError, match="wanted both or neither"):
        forced_path(layer, start, teacher=teacher)
    with pytest.raises(ValueError, match="teacher: got"):
        forced_path(layer, start, teacher=teacher[:2], weight=weight)
    with pytest.raises(ValueError, match="one number of steps"):
        forced_path(layer, start, teacher=teacher, weight=weight, drive=teacher[:, :3])
    with pytest.raises(ValueError, match="one number of steps"):
        forced_path(layer, start)
    with pytest.raises(RuntimeError, match="expand"):
        forced_path(layer, start, teacher=teacher, weight=torch.ones(5, 5))
