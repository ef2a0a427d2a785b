"""Observed information: Hessian, scores, rank, gauge freedoms, ascent to the mode."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference import filter_form as forms
from plssm.inference.filter_likelihood import FilterLikelihood
from plssm.inference.information import mode_information, newton_ascent, observed_information
from plssm.kernels.innovation_filter import filter_plain

LINEAR = [[0.9, -0.3, 0.0], [0.3, 0.8, 0.1], [0.0, 0.2, 0.5]]


def linear(dim, *, bias, seed=0):
    """A linear model with full covariances, everything free, and data."""
    rng = np.random.default_rng(seed)
    noise = np.eye(dim) + 0.2
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A=np.array(LINEAR)[:dim, :dim], process_noise=0.1 * noise, initial_noise=noise
    )
    seen = ps.observations.Gaussian(4, bias=bias).bind(dim)
    with torch.no_grad():
        seen.weight.copy_(torch.from_numpy(rng.normal(size=(4, dim))))
    seen.initialised = True
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    return model, model.simulate(60, trials=3, seed=1)


def plrnn(trials=2):
    """A small PLRNN with data whose path crosses kinks."""
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=[0.6, 0.4], W=[[0.0, -1.0], [0.9, 0.0]], h=[0.4, -0.2], process_noise=[0.1, 0.2]
    )
    weight = np.random.default_rng(2).normal(size=(3, 2))
    seen = ps.observations.Gaussian.from_parameters(weight, noise=[0.2, 0.1, 0.3])
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    return model, model.simulate(40, trials=trials, seed=3)


def plain_run(form, score, information, *, updates=None, third=None):
    """The filter's run in the plain twin, twice differentiable."""
    return filter_plain(
        form.step, form.noise, form.first_mean, form.first_covariance, score, information,
        form.drive, length=form.length, updates=updates, third=third,
    )  # fmt: skip


def flat(gradients, parts):
    pairs = zip(gradients, parts, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_hessian_is_that_of_automatic_differentiation(monkeypatch):
    model, data = plrnn()
    problem = FilterLikelihood(model, data, ridge=0.5)
    found = observed_information(problem)
    monkeypatch.setattr(forms.FilterForm, "run", plain_run)
    parts, moving = problem.parts, problem.coordinates.moving()
    for value, hessian in (
        (problem.increments(moving).sum(), found.likelihood),
        (problem.log_prior(moving), found.prior),
    ):
        first = torch.autograd.grad(value, parts, create_graph=True, allow_unused=True)
        rows = [
            flat(torch.autograd.grad(g, parts, retain_graph=True, allow_unused=True), parts)
            for g in flat(first, parts)
        ]
        wanted = -torch.stack(rows)
        torch.testing.assert_close(hessian, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_hessian_of_counts_is_that_of_the_values():
    """Terms of counts are expanded around the filtered path: differences of values are exact."""
    dynamics = plrnn()[0].dynamics
    seen = ps.observations.Poisson(3).bind(2)
    with torch.no_grad():
        seen.weight.copy_(torch.tensor([[0.5, 0.1], [-0.2, 0.4], [0.3, 0.3]]))
        seen.bias.fill_(1.0)
    seen.initialised = True
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    problem = FilterLikelihood(model, model.simulate(15, trials=2, seed=3), ridge=0.5)
    found = observed_information(problem)
    h, middle = 1e-3, problem.value(found.point)
    assert middle == pytest.approx(found.value, abs=1e-9)
    size = len(found.point)
    for unit in torch.randn(5, size, generator=torch.Generator().manual_seed(0)).double():
        beside = problem.value(found.point + h * unit) + problem.value(found.point - h * unit)
        curvature = float(unit @ (found.likelihood + found.prior) @ unit)
        assert (2 * middle - beside) / h**2 == pytest.approx(curvature, rel=1e-3)


@pytest.mark.parametrize(("dim", "bias"), [(1, False), (2, False), (3, False), (2, True)])
def test_gauge_freedoms_of_linear_models_are_all_recognised(dim, bias):
    """z' = T z leaves everything observed as it is, and with a bias z' = z + c does, too."""
    model, data = linear(dim, bias=bias)
    found = observed_information(FilterLikelihood(model, data))
    assert found.gauge == dim**2 + bias * dim
    # the upper triangles of both covariances' factors are not used, nor is an absent bias
    assert found.inert == dim * (dim - 1) + (0 if bias else 4)
    total = found.rank + found.gauge + found.inert + found.weak + found.negative
    assert total == len(found.point)


def test_scales_are_the_gauge_of_a_plrnn():
    model, data = plrnn()
    found = observed_information(FilterLikelihood(model, data))
    assert found.gauge == model.dim


def test_linear_models_in_another_basis_have_the_same_posterior():
    """Posterior sd of what does not depend on the basis, by the delta method."""
    model, data = linear(2, bias=False)
    turn = np.array([[1.5, 0.4], [-0.3, 0.7]])
    back, dynamics = np.linalg.inv(turn), model.dynamics
    other = ps.dynamics.LinearDynamics.from_parameters(
        A=turn @ dynamics.A.detach().numpy() @ back,
        process_noise=turn @ dynamics.noise.covariance.detach().numpy() @ turn.T,
        initial_noise=turn @ dynamics.initial.noise.covariance.detach().numpy() @ turn.T,
    )
    seen = ps.observations.Gaussian(4, bias=False).bind(2)
    with torch.no_grad():
        seen.weight.copy_(model.observations["x"].weight @ torch.from_numpy(back))
    seen.initialised = True

    def sds(model):
        problem = FilterLikelihood(model, data)
        ranks = observed_information(problem)

        def invariants(v):
            a = problem.model_at(v).dynamics.A.detach().numpy()
            return np.array([np.trace(a), np.linalg.det(a)])

        h, slopes = 1e-5, []
        for unit in torch.eye(len(ranks.point), dtype=torch.float64):
            up, down = ranks.point + h * unit, ranks.point - h * unit
            slopes.append((invariants(up) - invariants(down)) / (2 * h))
        slope = np.array(slopes)
        return np.sqrt(np.diag(slope.T @ ranks.covariance.numpy() @ slope))

    # the unit prior on first covariances is the one thing that sees the basis
    np.testing.assert_allclose(sds(model), sds(ps.StateSpaceModel(other, {"x": seen})), rtol=0.02)


def test_large_counts_are_expanded_where_the_filter_is():
    """The value is that of the causal filter."""
    dynamics = plrnn()[0].dynamics
    seen = ps.observations.Poisson(2).bind(2)
    with torch.no_grad():
        seen.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
        seen.bias.fill_(3.0)
    seen.initialised = True
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = model.simulate(30, trials=2, seed=3)
    problem = FilterLikelihood(model, data)
    found = observed_information(problem)
    assert data.values("x").max() > 100
    assert found.rank > 10
    wanted = float(ps.Fit(model).posterior(data, causal=True).log_evidence.sum())
    assert found.value == pytest.approx(wanted, rel=0.02)


def test_newton_steps_end_at_a_mode():
    model, data = linear(1, bias=False)
    for part in (model.dynamics.initial, model.observations["x"]):
        part.requires_grad_(False)
    problem = FilterLikelihood(model, data)
    before = observed_information(problem)
    rise = newton_ascent(problem, before, 30)
    between = observed_information(problem)
    assert rise > 0.0
    assert between.value == pytest.approx(before.value + rise, abs=1e-9)
    assert between.distance < 0.3 < before.distance
    left = newton_ascent(problem, between, 30)  # with the curvature there
    assert left == pytest.approx(0.5 * between.distance**2, rel=0.2)
    assert observed_information(problem).distance < 0.02


def test_saddles_are_left():
    """From where the density curves upwards to a mode that is better than the truth."""
    model, _ = plrnn()
    data = model.simulate(60, trials=3, seed=1)
    start = copy.deepcopy(model)
    with torch.no_grad():
        start.dynamics.A.mul_(0.5)
        start.dynamics.W.zero_()
    problem = FilterLikelihood(start, data, ridge=0.1, propagation="moments")
    before = observed_information(problem)
    assert before.negative > 0 and before.climb.shape[1] == before.rank + before.negative
    found, rise = mode_information(problem, steps=20)
    assert found.value == pytest.approx(before.value + rise, abs=1e-8)
    assert found.distance < 0.1 and not found.negative
    truth = FilterLikelihood(model, data, ridge=0.1, propagation="moments")
    assert found.value > truth.value(truth.origin)
    still, none = mode_information(problem, steps=0)
    assert none == 0.0 and still.value == pytest.approx(found.value, abs=1e-9)


def test_a_likelihood_that_is_not_finite_is_refused():
    model, data = linear(1, bias=False)
    problem = FilterLikelihood(model, data)
    with pytest.raises(PlssmError, match="not finite"):
        problem.move(problem.vector() * math.inf)
        observed_information(problem)
