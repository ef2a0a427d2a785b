"""The Pyro bridge: densities, drawing, weights, priors on parameters, refusals."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch import nn

import plssm as ps
from plssm.data.batch import Batch, Modality
from plssm.errors import PlssmError, ShapeError
from plssm.inference.pyro_bridge import Observed, PathPrior, to_pyro
from plssm.inference.pyro_priors import default_prior
from plssm.testing import ObservationContract

o = ps.observations
LENGTH = torch.tensor([7, 5, 1])


class StudentT(o.ObservationModel):
    """A user's own observation model."""

    def __init__(self, channels, df=4.0):
        super().__init__(channels)
        self.df = df
        self.log_scale = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def distribution(self, features):
        return torch.distributions.StudentT(self.df, features, self.log_scale.exp())


HISTORY = o.RaisedCosine(functions=2, longest_seconds=3.0)
MODELS = {
    "gaussian": lambda: o.Gaussian(4, nuisance=2),
    "gaussian-relu": lambda: o.Gaussian(4, readout="relu"),
    "poisson": lambda: o.Poisson(3),
    "softplus": lambda: o.Poisson(3, link="softplus"),
    "negative-binomial": lambda: o.NegativeBinomial(3, nuisance=1),
    "zero-inflated": lambda: o.ZeroInflatedPoisson(3),
    "history": lambda: o.Poisson(3, history=HISTORY, coupling=True, nuisance=1),
    "zip-history": lambda: o.ZeroInflatedPoisson(2, history=HISTORY),
    "categorical": lambda: o.Categorical(4),
    "bernoulli": lambda: o.Bernoulli(3),
    "ordinal": lambda: o.Ordinal(3, 4),
    "bold": lambda: o.BOLD(3, tr_seconds=2.0, nuisance=1),
    "bold-regions": lambda: o.BOLD(3, tr_seconds=2.0, learn_hrf="regions"),
    "student-t": lambda: StudentT(3),
}
CASES = [
    (name, clock)
    for name in MODELS
    for clock in ("latent", "own")
    if clock == "latent" or "history" not in name
]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(observation):
    """Counts of three ragged trials with missing entries."""
    shape, generator = (3, 7, observation.channels), torch.Generator().manual_seed(4)
    y = torch.poisson(torch.full(shape, 0.8, dtype=torch.float64), generator=generator)
    inside = torch.arange(7) < LENGTH[:, None]
    mask = (torch.rand(shape, generator=generator) > 0.25) & inside[..., None]
    nuisance = rand(3, 7, observation.nuisance, seed=5) if observation.nuisance else None
    return Modality(torch.where(mask, y, 0.0), mask, None, nuisance)


def problem(name, clock="latent"):
    """A model with perturbed parameters, a ragged masked batch of three trials, five paths."""
    case = type("Case", (ObservationContract,), {"create": staticmethod(MODELS[name])})()
    if "history" in name:
        observation = case._model()
        m = counts(observation)
    else:
        observation, m, _ = case._problem(clock=clock)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(3, inputs=2), {"y": observation})
    with torch.no_grad():
        model.dynamics.C.copy_(rand(3, 2, seed=7))
    batch = Batch({"y": m}, rand(3, 7, 2, seed=8), LENGTH, ["s"] * 3, ["a", "b", "c"], 1.0)
    z = rand(5, 3, 7, 3, seed=9)
    return model, batch, torch.where(batch.time_mask[..., None], z, 0.0)


def traced(model, batch, values, **options):
    """Trace with given values, log-densities computed."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace(batch, **options)
    trace.compute_log_prob()
    return trace


def densities(trace, names):
    return {name: trace.nodes[name]["log_prob"] for name in names}


def linear(*, inputs=0):
    """A linear model of two states with all parameters known."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8, 0.1], [-0.2, 0.7]], h=[0.3, -0.1], process_noise=[[0.3, 0.1], [0.1, 0.2]],
        C=rand(2, inputs, seed=3).numpy() if inputs else None,
        initial_mean=[1.0, -1.0], initial_noise=[[1.0, 0.3], [0.3, 0.5]],
    )  # fmt: skip
    x = o.Gaussian.from_parameters(
        [[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]], [0.1, 0.2, 0.3], noise=[0.4, 0.6, 0.2]
    )
    return ps.StateSpaceModel(dynamics, {"x": x})


# ---- densities ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "clock"), CASES)
def test_a_trace_has_the_log_joint(name, clock):
    model, batch, z = problem(name, clock)
    trace = traced(to_pyro(model), batch, {"z": z})
    parts = densities(trace, ("z", "y"))
    assert parts["z"].shape == parts["y"].shape == (5, 3)
    together = parts["z"] + parts["y"]
    torch.testing.assert_close(together, model.log_joint(batch, z), rtol=1e-12, atol=1e-12)
    for s in range(5):
        one = traced(to_pyro(model), batch, {"z": z[s]})
        torch.testing.assert_close(one.log_prob_sum(), together[s].sum(), rtol=1e-10, atol=1e-10)
    for b in range(3):  # every trial alone, cut to its own length
        m, steps = batch.modalities["y"], int(LENGTH[b])
        n = steps if m.clock is None else m.y.shape[1]
        alone = Modality(
            *(None if v is None else v[b : b + 1, :n] for v in (m.y, m.mask, m.clock, m.nuisance))
        )
        inputs = batch.inputs[b : b + 1, :steps]
        cut = Batch({"y": alone}, inputs, LENGTH[b : b + 1], ["s"], ["a"], 1.0)
        got = traced(to_pyro(model), cut, {"z": z[:, b : b + 1, :steps]})
        both = sum(densities(got, ("z", "y")).values())[:, 0]
        torch.testing.assert_close(both, together[:, b], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "clock"), CASES)
def test_what_is_masked_or_beyond_the_end_may_be_anything(name, clock):
    model, batch, z = problem(name, clock)
    m, observation = batch.modalities["y"], model.observations["y"]
    wanted = observation.log_prob(m, z)
    for junk in (math.nan, 1e6, -3.5):
        inside = batch.time_mask[..., None]
        path = torch.where(inside, z, junk).requires_grad_()
        got = Observed(observation, m, path).log_prob(torch.where(m.mask, m.y, junk))
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        prior = PathPrior(model.dynamics, batch.inputs, length=LENGTH)
        value = prior.log_prob(path)
        torch.testing.assert_close(value, prior.log_prob(z), rtol=1e-12, atol=1e-12)
        tensors = [path, *(p for p in model.parameters() if p.numel())]
        gradients = torch.autograd.grad((got + value).sum(), tensors, allow_unused=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
        assert not bool(gradients[0][:, ~batch.time_mask].any())


@pytest.mark.parametrize(("name", "clock"), CASES)
def test_every_latent_sample_may_have_its_own_observations(name, clock):
    model, batch, z = problem(name, clock)
    m, observation = batch.modalities["y"], model.observations["y"]
    pyro.set_rng_seed(0)
    site = Observed(observation, m, z, rand(3, 7).square())
    y = site.sample((2,))
    assert y.shape == (2, 5, *m.y.shape) and y.dtype == m.y.dtype
    got = site.log_prob(y)
    for r in range(2):
        for s in range(5):
            known = replace(m, y=torch.where(m.mask, y[r, s], 0.0))
            one = Observed(observation, known, z[s], rand(3, 7).square())
            torch.testing.assert_close(got[r, s], one.log_prob(known.y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gaussian", "history", "categorical", "bold"])
def test_weights_of_steps_add_up(name):
    model, batch, z = problem(name, "latent" if name == "history" else "own")
    weight = torch.rand(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run, names = to_pyro(model), ("z", "y")
    parts = [
        densities(traced(run, batch, {"z": z}, weight=w), names) for w in (weight, 1 - weight)
    ]
    whole = densities(traced(run, batch, {"z": z}), names)
    for site in names:
        torch.testing.assert_close(parts[0][site] + parts[1][site], whole[site])
    m, entries = batch.modalities["y"], model.observations["y"].log_prob_entries
    by_hand = torch.zeros(5, 3, dtype=torch.float64)
    value = entries(m, z)
    for b in range(3):
        for i in range(m.y.shape[1]):
            step = i if m.clock is None else int(m.clock[b, i])
            by_hand[:, b] += weight[b, step] * value[:, b, i].detach().sum(-1)
    torch.testing.assert_close(parts[0]["y"], by_hand)


def test_weighted_path_density_is_the_sum_over_steps():
    dynamics = linear(inputs=2).dynamics
    z, inputs, weight = rand(3, 7, 2), rand(3, 7, 2, seed=5), rand(3, 7, seed=6).square()
    got = PathPrior(dynamics, inputs, length=LENGTH, weight=weight).log_prob(z)
    A, h, C = (p.detach().numpy() for p in (dynamics.A, dynamics.h, dynamics.C))
    noise, first = (c.detach().numpy() for c in (
        dynamics.noise.covariance, dynamics.initial.noise.covariance
    ))  # fmt: skip
    for b in range(3):
        path, s = z[b].numpy(), inputs[b].numpy()
        total = 0.0
        for t in range(int(LENGTH[b])):
            mean = A @ path[t - 1] + h + C @ s[t] if t else dynamics.initial.mean.detach().numpy()
            step = scipy.stats.multivariate_normal(mean, noise if t else first).logpdf(path[t])
            total += float(weight[b, t]) * step
        assert float(got[b].detach()) == pytest.approx(total, rel=1e-10)


def test_beyond_a_trials_end_a_path_is_anchored_at_zero():
    model, batch, z = problem("gaussian")
    x = rand(3, 7, 3, seed=2)
    path = torch.where(batch.time_mask[..., None], z, x)
    free, held = (
        PathPrior(model.dynamics, batch.inputs, length=LENGTH, anchored=a) for a in (False, True)
    )
    rest = -0.5 * torch.where(batch.time_mask[..., None], 0.0, x).square().sum((-2, -1))
    torch.testing.assert_close(held.log_prob(path), free.log_prob(path) + rest)
    torch.testing.assert_close(held.log_prob(z), free.log_prob(z), rtol=0, atol=0)
    got = traced(to_pyro(model), batch, {"z": path}).nodes["z"]["log_prob"]
    torch.testing.assert_close(got, held.log_prob(path))


def test_scale_and_tempering_count_where_they_are_asked_for():
    model, batch, z = problem("poisson")
    plain = densities(traced(to_pyro(model), batch, {"z": z}), ("z", "y"))
    model.observations["y"].tempering.fill_(0.25)
    same = densities(traced(to_pyro(model), batch, {"z": z}), ("z", "y"))
    assert torch.equal(plain["y"], same["y"])
    run = to_pyro(model, tempered=True)
    got = densities(traced(run, batch, {"z": z}, scale=2.0), ("z", "y"))
    torch.testing.assert_close(got["z"], 2.0 * plain["z"])
    torch.testing.assert_close(got["y"], 0.5 * plain["y"])


def test_batches_with_a_scale_are_unbiased_for_the_whole():
    model = linear()
    data = model.simulate(6, trials=4, seed=2)
    z = torch.from_numpy(data.latent)
    priors = {"dynamics.h": "default"}
    h = {"dynamics.h": torch.tensor([0.2, 0.4], dtype=torch.float64)}
    run = to_pyro(model, priors)
    whole = traced(run, data.batch(), {"z": z} | h).log_prob_sum()
    halves = [
        traced(run, data.batch(range(i, i + 2)), {"z": z[i : i + 2]} | h, scale=2.0).log_prob_sum()
        for i in (0, 2)
    ]
    torch.testing.assert_close(0.5 * (halves[0] + halves[1]), whole)


def test_a_vectorised_bound_is_the_mean_over_its_particles():
    model, batch, _ = problem("poisson")
    drawn = []

    def guide(batch):
        with pyro.plate("trials", 3, dim=-1):
            normal = pyro.distributions.Normal(batch.inputs.new_zeros(3, 7, 3), 1.0)
            drawn.append(pyro.sample("z", normal.to_event(2)))

    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(to_pyro(model), guide, batch)
    z = drawn[-1]
    assert z.shape == (50, 3, 7, 3)
    beyond = torch.where(batch.time_mask[..., None], 0.0, z).square().sum((-2, -1))
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((-2, -1))
    wanted = (model.log_joint(batch, z) - 0.5 * beyond - log_q).sum(-1).mean()
    assert loss == pytest.approx(-float(wanted.detach()), rel=1e-6)


# ---- drawing ------------------------------------------------------------------------------------
def test_drawn_paths_have_the_moments_of_the_linear_model():
    model = linear(inputs=1)
    inputs = rand(2, 4, 1, seed=4)
    prior = PathPrior(model.dynamics, inputs, length=torch.tensor([4, 3]))
    pyro.set_rng_seed(1)
    z = prior.sample((20_000,))
    assert z.shape == (20_000, 2, 4, 2) and not z.requires_grad
    assert not bool(z[:, 1, 3].any())
    A, h, C = (p.detach() for p in (model.dynamics.A, model.dynamics.h, model.dynamics.C))
    mean = model.dynamics.initial.mean.detach().expand(2, 2)
    covariance = model.dynamics.initial.noise.covariance.detach()
    for t in range(4):
        if t:
            mean = mean @ A.T + h + inputs[:, t] @ C.T
            covariance = A @ covariance @ A.T + model.dynamics.noise.covariance.detach()
        for b in range(2 if t < 3 else 1):
            got = z[:, b, t]
            torch.testing.assert_close(got.mean(0), mean[b], rtol=0, atol=0.03)
            torch.testing.assert_close(torch.cov(got.T), covariance, rtol=0, atol=0.04)


@pytest.mark.parametrize("clock", ["latent", "own"])
@pytest.mark.parametrize("name", ["gaussian", "zero-inflated", "categorical", "bold-regions"])
def test_drawn_observations_have_the_moments_of_the_model(name, clock):
    model, batch, z = problem(name, clock)
    m, observation = batch.modalities["y"], model.observations["y"]
    pyro.set_rng_seed(2)
    y = Observed(observation, m, z).sample((4000,))
    seen = replace(m, mask=torch.ones_like(m.mask))
    with torch.no_grad():
        given = observation.distribution(observation.features_at(seen, z))
        error = (given.variance / 4000).sqrt().expand(y.shape[1:])
        off = (y.mean(0) - given.mean).abs() / error.clamp_min(1e-3)
    assert float(off.max()) < 5.5


def test_counts_with_a_history_are_driven_by_those_drawn_before():
    """With strong self-inhibition of one bin no two neighbouring bins have events."""
    one_bin = o.RaisedCosine(functions=1, longest_seconds=1.0)
    counts = o.Poisson(1, history=one_bin).bind(1)
    with torch.no_grad():
        counts.nuisance_weight.fill_(-50.0)
        counts.bias.fill_(1.0)
    y = torch.zeros(1, 400, 1, dtype=torch.float64)
    m = Modality(y, torch.ones_like(y, dtype=torch.bool))
    drawn = Observed(counts, m, torch.zeros_like(y)).sample()[0, :, 0] > 0
    assert bool(drawn.any()) and not bool((drawn[1:] & drawn[:-1]).any())
    free = o.Poisson(1).bind(1)
    drawn = Observed(free, m, torch.zeros_like(y)).sample()[0, :, 0] > 0
    assert bool((drawn[1:] & drawn[:-1]).any())


def test_predictive_draws_data_and_keeps_them_where_asked():
    model = linear()
    batch = model.simulate(6, trials=3).batch()
    run = to_pyro(model, {"observations.x.bias": "default", "dynamics.h": "default"})
    pyro.set_rng_seed(0)
    drawn = Predictive(run, num_samples=5)(batch, observed=False)
    shapes = {name: tuple(value.shape) for name, value in drawn.items()}
    assert shapes == {
        "dynamics.h": (5, 1, 2), "observations.x.bias": (5, 1, 3),
        "z": (5, 3, 6, 2), "x": (5, 3, 6, 3),
    }  # fmt: skip
    pyro.set_rng_seed(0)
    again = Predictive(run, num_samples=5)(batch, observed=False)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    other = Predictive(run, num_samples=5)(batch, observed=False)
    assert not any(torch.equal(drawn[name], other[name]) for name in drawn)
    posterior = {name: drawn[name] for name in ("z", "dynamics.h", "observations.x.bias")}
    y = Predictive(run, posterior)(batch, observed=False)["x"]
    assert y.shape == (5, 3, 6, 3)
    run.to_model({name: value[0] for name, value in posterior.items()})
    fixed = Predictive(run, posterior, return_sites=["x"])(batch)["x"]
    assert torch.equal(fixed, batch.modalities["x"].y.expand(5, 3, 6, 3))
    without = Predictive(to_pyro(model), {"z": drawn["z"]}, parallel=True)(batch, observed=False)
    assert without["x"].shape == (5, 3, 6, 3)


# ---- priors on parameters -----------------------------------------------------------------------
def test_values_of_a_run_stand_in_the_place_of_the_parameters():
    model, batch, z = problem("negative-binomial")
    before = copy.deepcopy(model.state_dict())
    run = to_pyro(model, {"*": "default"})
    names = [name for name, p in model.named_parameters() if p.numel()]
    assert list(run.priors) == names
    values = {
        name: (model.get_parameter(name) + 0.1 * rand(*prior.event_shape, seed=k))
        .detach().requires_grad_()
        for k, (name, prior) in enumerate(run.priors.items())
    }  # fmt: skip
    trace = traced(run, batch, {"z": z[0]} | values)
    other = run.to_model(values)
    wanted = other.log_joint(batch, z[0])
    got = sum(densities(trace, ("z", "y")).values())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    theirs = torch.autograd.grad(wanted.sum(), [other.get_parameter(n) for n in names])
    ours = torch.autograd.grad(got.sum(), list(values.values()))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for name, value in values.items():
        scale = default_prior(name, model.get_parameter(name)).scale
        density = scipy.stats.norm(0, scale).logpdf(value.detach()).sum()
        assert float(trace.nodes[name]["log_prob"].detach()) == pytest.approx(density, rel=1e-10)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.parameters())


def test_runs_do_not_disturb_each_other():
    """Log-densities are evaluated after a run; a second run must not change the first."""
    model, batch, z = problem("gaussian")
    run = to_pyro(model, {"observations.y.weight": "default"})
    value = {"z": z[0], "observations.y.weight": rand(4, 3)}
    first = poutine.trace(poutine.condition(run, value)).get_trace(batch)
    other = {"z": z[0], "observations.y.weight": rand(4, 3, seed=1)}
    poutine.trace(poutine.condition(run, other)).get_trace(batch).log_prob_sum()
    assert first.log_prob_sum() == traced(run, batch, value).log_prob_sum()


def test_parameters_without_prior_stay_those_of_the_model():
    model, batch, z = problem("gaussian")
    run = to_pyro(model, {"dynamics.h": "default"})
    h = rand(3).requires_grad_()
    got = traced(run, batch, {"z": z[0], "dynamics.h": h}).log_prob_sum()
    weight = model.observations["y"].weight
    gradient = torch.autograd.grad(got, [weight, h])
    assert all(bool(g.any()) for g in gradient)


def test_priors_broadcast_and_have_the_parameters_dtype():
    model = linear()
    td, pd = torch.distributions, pyro.distributions
    A = 0.5 * torch.eye(2)
    given = {
        "dynamics.A": td.Normal(A, 0.1),
        "dynamics.h": pd.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        "dynamics.noise.*": td.Normal(0.0, 2.0),
        "observations.x.bias": pd.Uniform(-2.0, 3.0),
        "observations.*": "default",
        "*.mean": td.Independent(td.Laplace(torch.zeros(2), torch.ones(2)), 1),
    }
    run = to_pyro(model, given)
    batch = model.simulate(3).batch()
    trace = poutine.trace(run).get_trace(batch)
    for name, prior in run.priors.items():
        value = trace.nodes[name]["value"]
        assert value.shape == model.get_parameter(name).shape and value.dtype == torch.float64
        assert prior.batch_shape == () and prior.mean.shape == value.shape
        assert prior.log_prob(prior.sample((4, 3))).shape == (4, 3)
        assert bool(prior.support.check(value))
    names = set(run.priors)
    assert "dynamics.C" not in names and "dynamics.initial.noise.log_factor" not in names
    assert {"observations.x.log_noise", "dynamics.initial.mean"} <= names
    A = torch.tensor([[0.7, 0.1], [0.0, 0.2]], dtype=torch.float64)
    wanted = scipy.stats.norm(0.5 * np.eye(2), 0.1).logpdf(A).sum()
    assert float(run.priors["dynamics.A"].log_prob(A)) == pytest.approx(wanted, rel=1e-6)
    wanted = scipy.stats.uniform(-2, 5).logpdf([0.1, 0.2, 0.3]).sum()
    got = run.priors["observations.x.bias"].log_prob(torch.tensor([0.1, 0.2, 0.3]))
    assert float(got) == pytest.approx(wanted, rel=1e-6)


def test_frozen_parameters_stay():
    model = linear()
    model.observations["x"].requires_grad_(False)
    assert not any(n.startswith("observations") for n in to_pyro(model, {"*": "default"}).priors)
    with pytest.raises(PlssmError, match="frozen"):
        to_pyro(model, {"observations.x.weight": "default"})


def test_one_draw_becomes_a_model():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": o.Gaussian(3)})
    run = to_pyro(model, {"dynamics.[AW]": "default"})
    sample = {"dynamics.A": torch.tensor([0.1, 0.2]), "z": torch.zeros(1), "dynamics.h": rand(2)}
    other = run.to_model(sample)
    assert other.dynamics.A.tolist() == pytest.approx([0.1, 0.2])
    assert torch.equal(other.dynamics.W, model.dynamics.W)
    assert torch.equal(other.dynamics.h, model.dynamics.h)
    assert other.dynamics.initialised and not model.dynamics.initialised
    with pytest.raises(ShapeError, match="one draw"):
        run.to_model({"dynamics.A": torch.zeros(9, 2)})


def test_a_float32_copy_computes_in_float32():
    model, batch, z = problem("poisson")
    small = copy.deepcopy(model).to(torch.float32)
    run = to_pyro(small, {"dynamics.h": "default"})
    half, path = batch.to(dtype=torch.float32), z.to(torch.float32)
    trace = traced(run, half, {"z": path, "dynamics.h": model.dynamics.h.detach()})
    got = densities(trace, ("z", "y"))
    assert all(value.dtype == torch.float32 for value in got.values())
    torch.testing.assert_close(
        sum(got.values()), model.log_joint(batch, z).float(), rtol=1e-4, atol=1e-3
    )
    drawn = poutine.trace(run).get_trace(half, observed=False)
    assert all(drawn.nodes[n]["value"].dtype == torch.float32 for n in ("z", "y", "dynamics.h"))


# ---- refusals and imports -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("priors", "error", "message"),
    [
        ({"dynamics.B": "default"}, PlssmError, "matches no free parameter"),
        ({"observation.*": "default"}, PlssmError, "matches no free parameter"),
        ({"dynamics.h": 1.0}, PlssmError, "wanted a distribution"),
        ({"dynamics.h": "wide"}, PlssmError, "wanted a distribution"),
        ({"dynamics.h": torch.distributions.Normal(torch.zeros(3), 1.0)}, ShapeError, "broadcast"),
        (
            {"dynamics.h": torch.distributions.Dirichlet(torch.ones(3))},
            ShapeError,
            "wanted what broadcasts",
        ),
    ],
)
def test_priors_that_do_not_fit_are_refused(priors, error, message):
    with pytest.raises(error, match=message):
        to_pyro(linear(), priors)


def test_other_shapes_and_names_are_refused():
    model = linear()
    batch = model.simulate(4, trials=2).batch()
    z = torch.zeros(2, 5, 2, dtype=torch.float64)
    with pytest.raises(ShapeError, match="wanted"):
        PathPrior(model.dynamics, length=batch.length).log_prob(z)
    with pytest.raises(ShapeError, match="wanted"):
        Observed(model.observations["x"], batch.modalities["x"], z).log_prob(z)
    with pytest.raises(PlssmError, match="rename"):
        to_pyro(ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"z": o.Gaussian(2)}))
    run = to_pyro(model, {"dynamics.h": "default"})
    with pytest.raises(ShapeError, match="parallel=False"):
        Predictive(run, {"dynamics.h": torch.zeros(6, 2)}, parallel=True)(batch)


def test_pyro_is_loaded_when_the_bridge_is_asked_for():
    code = (
        "import sys, plssm.inference; assert 'pyro' not in sys.modules; "
        "plssm.inference.to_pyro; assert 'pyro' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
