"""Filters that match moments: quadrature, Monte Carlo, limits, every datum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.stats import norm

import plssm as ps
from plssm import observations as o
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.augmented_filter import run_filter, run_smoother
from plssm.inference.augmented_states import LagStates
from plssm.inference.base import working_copy
from plssm.inference.chain_prior import ChainPrior
from plssm.observations.counts.history import RaisedCosine

LENGTHS = (9, 5, 1)


class NormalByHand(o.ObservationModel):
    """Unit-variance normal channels through the defaults: not known to be quadratic."""

    def distribution(self, features):
        return D.Normal(features, torch.ones_like(features))


def dynamics(kind, dim=2, inputs=0):
    rng = np.random.default_rng(3)
    options = dict(
        C=rng.normal(size=(dim, inputs)) if inputs else None,
        process_noise=np.full(dim, 0.3), initial_mean=np.linspace(0.3, -0.2, dim),
        initial_noise=np.full(dim, 0.6),
    )  # fmt: skip
    if kind == "linear":
        return ps.dynamics.LinearDynamics.from_parameters(
            0.6 * np.eye(dim) + 0.1, h=np.full(dim, 0.1), **options
        )
    W = 0.9 * rng.normal(size=(dim, dim)) * (1 - np.eye(dim))
    return ps.dynamics.PLRNN.from_parameters(np.full(dim, 0.7), W, h=np.full(dim, 0.2), **options)


def filled(observation, dim, seed=0):
    observation.bind(dim)
    with torch.no_grad():
        shape = observation.weight.shape
        rng = np.random.default_rng(seed)
        observation.weight.copy_(torch.from_numpy(rng.normal(size=shape)))
    return observation


def data_of(model, lengths=LENGTHS, seed=0, inputs=0):
    """Ragged trials drawn from the model, with missing entries and a step without data."""
    rng = np.random.default_rng(seed)
    values, drives = {n: [] for n in model.observations}, []
    for k, n in enumerate(lengths):
        s = rng.normal(size=(n, inputs)) if inputs else None
        drawn = model.simulate(n, inputs=s, seed=seed + k)
        for name in values:
            y = drawn.values(name)[0].astype(float)
            if n > 3:
                y[rng.random(len(y)) < 0.2] = np.nan
                y[2] = np.nan
            values[name].append(y)
        drives.append(s)
    return dataset(model, values, inputs=drives if inputs else None)


def dataset(model, values, **options):
    kinds = {n: v.kinds[0] for n, v in model.observations.items()}
    return ps.Dataset.from_arrays(values, kinds=kinds, **options)


def same(one, two, tolerance):
    for name in ("mean", "log_evidence", "predicted_mean", "predicted_covariance"):
        if hasattr(one, name):
            a, b = getattr(one, name), getattr(two, name)
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)
    for name in ("covariance", "cross_covariance"):
        if name == "covariance" or not hasattr(one, "predicted_mean"):
            a, b = getattr(one, name)(), getattr(two, name)()
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)


# ---- propagation by moments ---------------------------------------------------------------------


class Scalar:
    """z' = a z + w relu(z) + h + N(0, q), y = z + N(0, r), with everything by quadrature."""

    a, w, h, q, r = 0.9, -1.8, 0.8, 0.3, 0.5

    def __init__(self, steps=6):
        d = ps.dynamics.ShallowPLRNN.from_parameters(
            [self.a], [[self.w]], [[1.0]], h1=[self.h], h2=[0.0], clipped=False,
            process_noise=[self.q], initial_mean=[0.2], initial_noise=[0.7],
        )  # fmt: skip
        self.model = ps.StateSpaceModel(
            d, {"x": o.Gaussian.from_parameters([[1.0]], [0.0], noise=[self.r])}
        )
        self.data = self.model.simulate(steps, seed=4)
        self.y = self.data.values("x")[0][:, 0]
        self.x, self.fine = np.linspace(-12, 12, 1201), np.linspace(-8, 8, 200_001)

    def map(self, z):
        return self.a * z + self.w * np.maximum(z, 0) + self.h

    def average(self, f, mean, variance):
        weight = norm.pdf(self.fine, mean, variance**0.5)
        return (f * weight).sum() / weight.sum()

    def filter(self):
        """Assumed-density filter by sums over a fine grid; smoother from joint moments."""
        m, p, out, evidence = 0.2, 0.7, [], 0.0
        for t, y in enumerate(self.y):
            ahead, spread, cross = m, p, 0.0
            if t:
                f = self.map(self.fine)
                ahead = self.average(f, m, p)
                spread = self.average((f - ahead) ** 2, m, p) + self.q
                cross = self.average((f - ahead) * (self.fine - m), m, p)
            evidence += norm.logpdf(y, ahead, (spread + self.r) ** 0.5)
            gain = spread / (spread + self.r)
            m, p = ahead + gain * (y - ahead), (1 - gain) * spread
            out.append((m, p, ahead, spread, cross))
        return np.array(out), evidence

    def exact_evidence(self):
        """The evidence by a grid of states."""
        width = self.x[1] - self.x[0]
        kernel = norm.pdf(self.x[:, None], self.map(self.x)[None], self.q**0.5) * width
        weight, total = norm.pdf(self.x, 0.2, 0.7**0.5), 0.0
        for t, y in enumerate(self.y):
            if t:
                weight = kernel @ weight
            weight = weight * norm.pdf(y, self.x, self.r**0.5)
            scale = weight.sum() * width
            total += np.log(scale)
            weight = weight / scale
        return total


def test_one_dimension_equals_quadrature():
    problem = Scalar()
    got = ps.smooth(problem.model, problem.data, causal=True, propagation="moments")
    want, evidence = problem.filter()
    assert got.evidence_kind == "moments"
    np.testing.assert_allclose(got.mean[0, :, 0], want[:, 0], atol=1e-7)
    np.testing.assert_allclose(got.covariance()[0, :, 0, 0], want[:, 1], atol=1e-7)
    np.testing.assert_allclose(got.predicted_mean[0, :, 0], want[:, 2], atol=1e-7)
    np.testing.assert_allclose(float(got.log_evidence[0]), evidence, atol=1e-7)


def test_one_dimension_smoothed_from_joint_moments():
    """Backwards, neighbours are jointly Gaussian with the moments of the grid."""
    problem = Scalar()
    filtered, _ = problem.filter()
    mean, variance = filtered[-1, :2]
    got = ps.smooth(problem.model, problem.data, "ekf", propagation="moments")
    for t in range(len(filtered) - 1, -1, -1):
        if t + 1 < len(filtered):
            _, _, ahead, spread, cross = filtered[t + 1]
            m, p = filtered[t, :2]
            np.testing.assert_allclose(
                got.cross_covariance()[0, t, 0, 0], cross / spread * variance, atol=1e-6
            )
            mean = m + cross / spread * (mean - ahead)
            variance = p - cross**2 / spread + (cross / spread) ** 2 * variance
        np.testing.assert_allclose(got.mean[0, t, 0], mean, atol=1e-6)
        np.testing.assert_allclose(got.covariance()[0, t, 0, 0], variance, atol=1e-6)


def test_the_evidence_is_nearer_to_the_exact_one_than_by_linearisation():
    problem = Scalar(steps=40)
    exact = problem.exact_evidence()
    by_moments, by_slope = (
        float(ps.smooth(problem.model, problem.data, causal=True, propagation=p).log_evidence)
        for p in ("moments", "linearised")
    )
    assert abs(by_moments - exact) < 0.3 * abs(by_slope - exact)
    assert abs(by_moments - exact) < 0.5


@pytest.mark.parametrize("name", ["ShallowPLRNN", "DendriticPLRNN", "AlmostLinearRNN"])
def test_every_map_of_the_family(name):
    """The first prediction is the mean and covariance of half a million steps."""
    cls = getattr(ps.dynamics, name)
    d = {"ShallowPLRNN": lambda: cls(3, 5), "DendriticPLRNN": lambda: cls(3, 4),
         "AlmostLinearRNN": lambda: cls(3, 2)}[name]()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in d.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    model = ps.StateSpaceModel(d, {"x": filled(o.Gaussian(2), 3)})
    got = ps.smooth(model, model.simulate(2, seed=1), causal=True, propagation="moments")
    mean, p = got.mean[0, 0].numpy(), got.covariance()[0, 0].numpy()
    draws = 500_000
    z = np.random.default_rng(2).multivariate_normal(mean, p, size=draws)
    with torch.no_grad():
        after = d.step(torch.from_numpy(z)).numpy()
    noise = d.noise.covariance.detach().numpy()
    e = after - after.mean(0)
    for value, samples in (
        (got.predicted_mean[0, 1].numpy(), after),
        (got.predicted_covariance[0, 1].numpy() - noise, e[:, :, None] * e[:, None]),
    ):
        error = samples.std(0) / draws**0.5
        assert (np.abs(value - samples.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("inputs", [0, 2])
def test_linear_models_stay_exact(inputs):
    model = ps.StateSpaceModel(dynamics("linear", inputs=inputs), {"x": filled(o.Gaussian(3), 2)})
    data = data_of(model, inputs=inputs)
    exact = ps.smooth(model, data)
    for options in ({"propagation": "moments"}, {"update": "moments"}):
        got = ps.smooth(model, data, "ekf", **options)
        assert got.evidence_kind == "exact"
        same(got, exact, 1e-10)
        same(ps.smooth(model, data, causal=True, **options),
             ps.smooth(model, data, causal=True), 1e-10)  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
def test_settled_sweeps_equal_updates_step_by_step(causal):
    """Normal data that are not known to be quadratic, through the compiled filter or a loop."""
    results, data = [], None
    for observation in (o.Gaussian.from_parameters(np.zeros((3, 2)), noise=[1.0] * 3),
                        NormalByHand(3)):  # fmt: skip
        model = ps.StateSpaceModel(dynamics("plrnn", inputs=2), {"x": filled(observation, 2)})
        data = data_of(model, inputs=2) if data is None else data
        for update in ("laplace", "moments"):
            results.append(
                ps.smooth(model, data, "ekf", causal, propagation="moments", update=update)
            )
    for other in results[1:]:
        same(other, results[0], 1e-8)


KINDS = {
    "poisson": lambda: {"n": o.Poisson(4)},
    "labels": lambda: {"c": o.Categorical(3)},
    "ordinal": lambda: {"r": o.Ordinal(2, 4)},
    "binary, rectified": lambda: {"b": o.Bernoulli(3, readout="relu")},
    "both": lambda: {"n": o.NegativeBinomial(3), "x": o.Gaussian(2)},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("update", ["laplace", "moments"])
def test_every_observation(kind, update):
    parts = KINDS[kind]()
    model = ps.StateSpaceModel(dynamics("plrnn"), {n: filled(v, 2) for n, v in parts.items()})
    data = data_of(model)
    options = {"propagation": "moments", "update": update}
    filtered = ps.smooth(model, data, causal=True, **options)
    smoothed = ps.smooth(model, data, "ekf", **options)
    torch.testing.assert_close(filtered.log_evidence, smoothed.log_evidence)
    for b, n in enumerate(LENGTHS):
        torch.testing.assert_close(filtered.mean[b, n - 1], smoothed.mean[b, n - 1])
        assert torch.isfinite(smoothed.mean[b, :n]).all()
        assert (torch.linalg.eigvalsh(smoothed.covariance()[b, :n]) > 0).all()
        assert torch.isnan(smoothed.mean[b, n:]).all()
    laplace = ps.smooth(model, data, "ekf", propagation="moments")
    apart = torch.nan_to_num(laplace.mean - smoothed.mean).abs().max()
    assert apart < (3.0 if "rectified" in kind else 0.6)
    assert (update == "laplace") == bool(apart == 0)


def test_the_general_filter_does_the_same():
    """Joined states and Bryson-Frazier backwards, as used for data with memory."""
    model = working_copy(
        ps.StateSpaceModel(dynamics("plrnn", inputs=1), {"n": filled(o.Poisson(4), 2)})
    )
    data = data_of(model, inputs=1)
    batch = data.batch()
    prior, states = ChainPrior.of(model.dynamics, batch), LagStates(model, batch.dt)
    run = run_filter(model, batch, prior, states, expected=True)
    mean, covariance, cross = run_smoother(run, states, prior)
    got = ps.smooth(model, data, "ekf", propagation="moments")
    for b, n in enumerate(LENGTHS):
        for value, want in ((got.mean, mean), (got.covariance(), covariance)):
            np.testing.assert_allclose(value[b, :n], want[b, :n], atol=1e-7)
        np.testing.assert_allclose(got.cross_covariance()[b, : n - 1], cross[b, : n - 1],
                                   atol=1e-7)  # fmt: skip
    np.testing.assert_allclose(got.log_evidence, run.evidence, atol=1e-7)


@pytest.mark.parametrize("kernel", ["convolution", "states"])
def test_data_with_memory(kernel):
    """Linear maps stay exact; states far from kinks are carried on linearly."""
    for kind in ("linear", "plrnn"):
        d = dynamics(kind)
        with torch.no_grad():
            if kind == "plrnn":
                d.h = [50.0, 50.0]
                d.initial.mean = [100.0, 100.0]
                d.W = [[0.0, -0.2], [-0.2, 0.0]]
        model = ps.StateSpaceModel(d, {"x": filled(o.BOLD(2, tr_seconds=2.0, kernel=kernel), 2)})
        data = model.simulate(6, trials=2, seed=1, dt=2.0)
        for causal in (False, True):
            got = ps.smooth(model, data, "ekf", causal, propagation="moments")
            want = ps.smooth(model, data, "ekf", causal)
            same(got, want, 1e-6)
        for name, value in (("update", "moments"), ("iterations", 2), ("parallel", True)):
            with pytest.raises(CapabilityError, match=f"{name}.*remembers"):
                ps.smooth(model, data, causal=True, **{name: value})


def test_past_counts_are_covariates_of_single_steps():
    """A filter in a loop sees the counts of earlier steps, as the one in sweeps does."""
    model = ps.StateSpaceModel(
        dynamics("linear"), {"n": filled(o.Poisson(3, history=RaisedCosine(2, 4.0)), 2)}
    )
    with torch.no_grad():
        model.observations["n"].history_weight = -0.3 * torch.ones(3, 2).double()
    data = model.simulate(8, trials=2, seed=0)
    sweeps = ps.smooth(model, data, causal=True)
    loop = ps.smooth(model, data, causal=True, iterations=2)
    same(loop, sweeps, 1e-6)


def test_rectified_readouts_are_not_taken_as_linear():
    """Smoothed in covariance form as by the global Laplace approximation."""
    model = ps.StateSpaceModel(dynamics("linear"), {"x": filled(o.Gaussian(4, readout="relu"), 2)})
    with torch.no_grad():
        model.dynamics.initial.mean = [3.0, 2.5]
        model.dynamics.h = [1.0, 1.0]
    data = data_of(model)
    got, want = ps.smooth(model, data, "ekf"), ps.smooth(model, data)
    torch.testing.assert_close(got.mean, want.mean, rtol=0, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(got.log_evidence, want.log_evidence, rtol=0, atol=1e-6)
    model = ps.StateSpaceModel(
        dynamics("linear"),
        {"x": filled(o.Gaussian(2, readout="relu"), 2),
         "b": filled(o.BOLD(2, tr_seconds=1.0), 2)},
    )  # fmt: skip
    with pytest.raises(CapabilityError, match="rectified read-outs need data"):
        ps.smooth(model, model.simulate(3), "ekf")


def test_evidence_of_counts_beside_a_particle_filter():
    """One dimension, where kinks and counts matter: nearer than by Laplace and slopes."""
    observation = o.Poisson(1).bind(1)
    with torch.no_grad():
        observation.weight.fill_(1.0)
    model = ps.StateSpaceModel(Scalar().model.dynamics, {"n": observation})
    data = model.simulate(20, trials=8, seed=3)
    exact = ps.smooth(model, data, "particle", True, particles=2000, runs=8)
    error = 4 * float(exact.evidence_error.square().sum().sqrt())
    off = {}
    for propagation, update in (("linearised", "laplace"), ("moments", "moments")):
        got = ps.smooth(model, data, causal=True, propagation=propagation, update=update)
        off[update] = float((got.log_evidence - exact.log_evidence).abs().sum())
    assert off["moments"] + error < 0.5 * off["laplace"], off


@pytest.mark.parametrize("by_hand", [False, True])
def test_iterations_change_nothing_for_linear_maps(by_hand):
    observation = NormalByHand(3) if by_hand else o.Gaussian(3)
    model = ps.StateSpaceModel(dynamics("linear", inputs=1), {"x": filled(observation, 2)})
    data = data_of(model, inputs=1)
    same(ps.smooth(model, data, causal=True, iterations=5),
         ps.smooth(model, data, causal=True), 1e-9)  # fmt: skip


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ekf", "propagation": "exact"}, "propagation is 'exact', wanted one of"),
        ({"method": "ekf", "update": "mean"}, "update is 'mean', wanted one of"),
        ({"causal": True, "iterations": 0}, "iterations is 0, wanted a whole number"),
        ({"causal": True, "iterations": True}, "iterations is True"),
        ({"method": "ekf", "iterations": 2}, "iterations belong to causal=True"),
        ({"causal": True, "iterations": 2, "propagation": "moments"}, "leave one of the two out"),
        ({"method": "ekf", "parallel": True, "update": "moments"}, "parallel=True linearises"),
        ({"method": "ekf", "parallel": 2}, "parallel is 2"),
        ({"propagation": "moments"}, "propagation belong to method='ekf'"),
        ({"method": "particle", "update": "moments"}, "update belong to method='ekf'"),
        ({"method": "ekf", "particles": 10}, "particles belong to method='particle'"),
    ],
)
def test_options_are_checked(options, message):
    model = ps.StateSpaceModel(dynamics("plrnn"), {"x": filled(o.Gaussian(2), 2)})
    with pytest.raises(PlssmError, match=message):
        ps.smooth(model, model.simulate(3), **options)
