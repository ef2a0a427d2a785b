"""Particle filter and smoother: exact models, quadrature, unbiasedness, any model, options."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.distributions as D

import plssm as ps
from plssm.dynamics import LatentDynamics
from plssm.errors import CapabilityError
from plssm.inference import particle_clouds
from plssm.inference.base import working_copy
from plssm.inference.filtering import filter_batch
from plssm.inference.particle import combined_evidence, particle_filter
from plssm.path_samples import PathSamples, StateSamples
from plssm.prediction.latent_draws import draw_histories, draw_last_states, draw_paths

PROPOSALS = ("guided", "lookahead", "bootstrap")
LENGTHS = (12, 7, 1)


class NormalByHand(ps.observations.ObservationModel):
    """Unit-variance normal channels through the defaults: not known to be quadratic."""

    def distribution(self, features):
        return D.Normal(features, torch.ones_like(features))


class TanhMap(LatentDynamics):
    """Dynamics that are not piecewise linear."""

    def __init__(self, dim, inputs=0, **options):
        super().__init__(dim, inputs, **options)
        self.W = torch.nn.Parameter(1.5 * torch.eye(dim, dtype=torch.float64) + 0.2)

    def step(self, z, s=None):
        return torch.tanh(z) @ self.W.T + self.drive(s)


def linear_model(*, kind="linear", by_hand=False, noise=0.5):
    rng = np.random.default_rng(1)
    options = dict(
        h=[0.1, -0.2], C=rng.normal(size=(2, 2)), process_noise=[[0.3, 0.1], [0.1, 0.2]],
        initial_mean=[0.5, -0.4], initial_noise=[0.5, 0.7], input_at_start=True,
    )  # fmt: skip
    if kind == "linear":
        dynamics = ps.dynamics.LinearDynamics.from_parameters([[0.8, 0.2], [-0.3, 0.7]], **options)
    else:
        dynamics = ps.dynamics.PLRNN.from_parameters([0.8, 0.6], [[0, 0.9], [-0.8, 0]], **options)
    B, b = rng.normal(size=(3, 2)), rng.normal(size=3)
    if by_hand:
        observation = NormalByHand(3).bind(2)
        with torch.no_grad():
            observation.weight.copy_(torch.from_numpy(B))
            observation.bias.copy_(torch.from_numpy(b))
    else:
        observation = ps.observations.Gaussian.from_parameters(B, b, noise=[noise] * 3)
    return ps.StateSpaceModel(dynamics, {"x": observation})


def data_of(model, lengths=LENGTHS, seed=0):
    """Ragged trials drawn from the model, with missing entries and a missing step."""
    rng = np.random.default_rng(seed)
    values, inputs = [], []
    for k, n in enumerate(lengths):
        s = rng.normal(size=(n, 2))
        y = model.simulate(n, inputs=s, seed=seed + k).values("x")[0]
        if n > 3:
            y[rng.random(y.shape) < 0.3] = np.nan
            y[2] = np.nan
        values.append(y)
        inputs.append(s)
    return ps.Dataset.from_arrays({"x": values}, inputs=inputs)


def run(model, data, **options):
    return particle_filter(working_copy(model), data.batch(), **options)


# ---- against exact posteriors -------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_evidence_of_linear_models_lies_within_three_standard_errors(proposal, by_hand):
    model = linear_model(by_hand=by_hand, noise=1.0)
    data = data_of(model)
    exact = ps.smooth(linear_model(noise=1.0), data).log_evidence
    inside = 0
    for seed in range(20):
        got = run(model, data, proposal=proposal, particles=200, runs=8, seed=seed, draws=1)
        error = got.evidence_error.square().sum().sqrt()
        inside += bool((got.log_evidence - exact).sum().abs() <= 3 * error)
        assert got.evidence_kind == "particle"
    assert inside >= 19


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_likelihood_is_estimated_without_bias(proposal, by_hand):
    model = linear_model(by_hand=by_hand, noise=1.0)
    data = data_of(model, lengths=(6, 6, 2))
    exact = ps.smooth(linear_model(noise=1.0), data).log_evidence
    got = run(model, data, proposal=proposal, particles=20, runs=1500, draws=1)
    ratio = (got.log_evidence - exact).exp()
    assert ((ratio - 1).abs() <= 4 * got.evidence_error + 1e-12).all()


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_smoothed_moments_of_linear_models(proposal):
    model = linear_model()
    data = data_of(model)
    exact = ps.smooth(model, data)
    draws = 4000
    got = ps.smooth(
        model, data, "particle", proposal=proposal, particles=2000, runs=4, draws=draws
    )
    sd = exact.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    scale = {
        "mean": sd,
        "covariance": sd[..., :, None] * sd[..., None, :],
        "cross_covariance": sd[:, :-1, :, None] * sd[:, 1:, None, :],
    }
    for name, unit in scale.items():
        a, b = (getattr(p, name) for p in (got, exact))
        a, b = (a, b) if name == "mean" else (a(), b())
        assert torch.equal(torch.isnan(a), torch.isnan(b)), name
        apart = torch.nan_to_num((a - b) / unit).abs()
        assert apart.max() < 8 / draws**0.5, name  # particles are shared by paths
        assert apart.square().mean().sqrt() < 3 / draws**0.5, name
    low, high = got.interval(0.9)
    wanted = exact.interval(0.9)
    assert torch.nan_to_num((low - wanted[0]) / sd).abs().max() < 0.2
    assert torch.nan_to_num((high - wanted[1]) / sd).abs().max() < 0.2


@pytest.mark.parametrize("proposal", ["guided", "bootstrap"])
def test_filtered_moments_of_linear_models(proposal):
    model = linear_model()
    data = data_of(model)
    exact = ps.smooth(model, data, causal=True)
    got = ps.smooth(model, data, "particle", True, proposal=proposal, particles=4000)
    assert isinstance(got, StateSamples) and got.evidence_kind == "particle"
    sd = exact.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    apart = torch.nan_to_num((got.mean - exact.mean) / sd).abs()
    assert apart.max() < 0.08
    apart = (got.covariance() - exact.covariance()) / (sd[..., :, None] * sd[..., None, :])
    assert torch.nan_to_num(apart).abs().max() < 0.1
    with pytest.raises(CapabilityError, match="causal=False"):
        got.cross_covariance()


# ---- against quadrature -------------------------------------------------------------------------


def quadrature(model, data, reach=8.0, points=1201):
    """Log evidence, means and variances of scalar states of one trial, forward and backward."""
    batch, dynamics = data.batch(), model.dynamics
    steps = batch.steps
    grid = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    inputs = None if batch.inputs is None else batch.inputs[0]
    with torch.no_grad():
        seen = torch.zeros(points, steps, dtype=torch.float64)
        for name, o in model.observations.items():
            paths = grid[:, None, None].expand(-1, 1, steps, -1)
            seen += o.tempering * o.log_prob_entries(batch.modalities[name], paths)[:, 0].sum(-1)
        first = dynamics.first_mean(None if inputs is None else inputs[None])
        log_f = [dynamics.initial.noise.log_prob(grid - first) + seen[:, 0]]
        moves = []
        for t in range(1, steps):
            s = None if inputs is None else inputs[t].expand(points, -1)
            ahead = dynamics.step(grid, s)
            moves.append(dynamics.noise.log_prob(grid[None] - ahead[:, None]))
            log_f.append(torch.logsumexp(log_f[-1][:, None] + moves[-1], 0) + seen[:, t])
        log_b = [torch.zeros(points, dtype=torch.float64)]
        for t in range(steps - 1, 0, -1):
            log_b.insert(0, torch.logsumexp(moves[t - 1] + seen[:, t] + log_b[0], 1))
    gap = float(np.log(2 * reach / (points - 1)))
    mean, variance = [], []
    for f, b in zip(log_f, log_b, strict=True):
        w = torch.softmax(f + b, 0)
        mean.append((w * grid[:, 0]).sum())
        variance.append((w * (grid[:, 0] - mean[-1]) ** 2).sum())
    evidence = float(torch.logsumexp(log_f[-1], 0)) + steps * gap
    return evidence, torch.stack(mean), torch.stack(variance)


def scalar(kind):
    """A scalar model and three steps of data."""
    noise = dict(process_noise=[0.4], initial_mean=[0.3], initial_noise=[0.6])
    if kind == "tanh":
        dynamics = TanhMap(1, inputs=1)
        dynamics.noise.variance, dynamics.initial.noise.variance = 0.4, 0.6
        dynamics.C = [[0.7]]
    else:
        dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
            A=[0.3], W1=[[1.2, -0.9]], W2=[[1.0], [-1.5]], h1=[0.1], h2=[0.2, 0.3], C=[[0.7]],
            **noise,
        )  # fmt: skip
    gaussian = ps.observations.Gaussian.from_parameters([[1.0], [0.5]], noise=[0.5, 0.3])
    poisson = ps.observations.Poisson.from_parameters([[0.9], [-0.7]], [0.4, 0.8], bin_seconds=1.0)
    return dynamics, gaussian, poisson


SCALAR_DATA = {
    "x": np.array([[0.7, np.nan], [-1.1, 0.4], [1.9, -0.3]]),
    "n": [[0, 4], [7, 1], [2, 0]],
}
SCALAR_INPUTS = np.array([[0.3], [-0.8], [1.2]])


@functools.cache
def scalar_problem(kind, names, tempered):
    dynamics, gaussian, poisson = scalar(kind)
    parts = {"x": gaussian, "n": poisson}
    model = ps.StateSpaceModel(dynamics, {n: parts[n] for n in names})
    if tempered:
        for o in model.observations.values():
            o.tempering.fill_(0.6)
    data = ps.Dataset.from_arrays(
        {n: SCALAR_DATA[n] for n in names},
        kinds={"n": "count"} if "n" in names else None,
        inputs=SCALAR_INPUTS,
    )
    return model, data, quadrature(model, data)


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("names", ["x", "n", "xn"])
@pytest.mark.parametrize("kind", ["plrnn", "tanh"])
def test_scalar_models_against_quadrature(kind, names, tempered, proposal):
    model, data, (evidence, mean, variance) = scalar_problem(kind, names, tempered)
    got = ps.smooth(model, data, "particle", proposal=proposal, particles=2000, draws=4000)
    assert got.evidence_kind == ("tempered" if tempered else "particle")
    assert abs(float(got.log_evidence[0]) - evidence) < 4 * float(got.evidence_error[0]) + 1e-9
    assert float(got.evidence_error[0]) < 0.1
    near = 0.2 if proposal == "bootstrap" else 0.1
    assert ((got.mean[0, :, 0] - mean).abs() < near * variance.sqrt()).all()
    assert ((got.covariance()[0, :, 0, 0] / variance - 1).abs() < 2 * near).all()


def test_counts_with_a_spike_history_against_quadrature():
    """Covariates that depend on earlier counts belong to the step of the sample."""
    dynamics, *_ = scalar("plrnn")
    rng = np.random.default_rng(0)
    for maker, options in (
        (
            ps.observations.Poisson,
            {"history": ps.observations.RaisedCosine(functions=2, longest_seconds=3.0)},
        ),
        (ps.observations.NegativeBinomial, {}),
    ):
        observation = maker(2, bin_seconds=1.0, **options).bind(1)
        with torch.no_grad():
            for p in observation.parameters():
                p.add_(torch.as_tensor(0.3 * rng.normal(size=p.shape)))
        model = ps.StateSpaceModel(dynamics, {"n": observation})
        data = ps.Dataset.from_arrays(
            {"n": SCALAR_DATA["n"]}, kinds={"n": "count"}, inputs=SCALAR_INPUTS
        )
        evidence, _, _ = quadrature(model, data)
        for proposal in PROPOSALS:
            got = run(model, data, proposal=proposal, particles=2000, runs=8)
            error = 4 * float(got.evidence_error[0])
            assert abs(float(got.log_evidence[0]) - evidence) < error < 0.6


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_one_step_of_counts_and_labels_against_dense_quadrature(proposal):
    rng = np.random.default_rng(4)
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.5, 0.5], np.zeros((2, 2)), initial_mean=[0.4, -0.2], initial_noise=[1.5, 0.8]
    )
    model = ps.StateSpaceModel(dynamics, {
        "n": ps.observations.Poisson.from_parameters(
            rng.normal(size=(3, 2)), [1.0, 0.5, 2.0], bin_seconds=1.0
        ),
        "c": ps.observations.Categorical.from_parameters(
            weight=3 * rng.normal(size=(2, 2)), bias=rng.normal(size=2)
        ),
    })  # fmt: skip
    n, c = [np.array([[0, 9, 3]]), np.array([[4, 0, 14]])], [np.array([[1]]), np.array([[2]])]
    data = ps.Dataset.from_arrays(
        {"n": n, "c": c}, kinds={"n": "count", "c": "label"}, check_channels=False
    )
    batch, grid = data.batch(), torch.linspace(-9, 9, 901, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)[:, None, None].expand(-1, 2, -1, -1)
    with torch.no_grad():
        value = dynamics.log_prob(z)
        for name, o in model.observations.items():
            value = value + o.log_prob(batch.modalities[name], z)
    wanted = torch.logsumexp(value, 0) + 2 * (grid[1] - grid[0]).log()
    got = run(model, data, proposal=proposal, particles=2000, runs=16)
    assert ((got.log_evidence - wanted).abs() < 4 * got.evidence_error).all()
    assert (got.evidence_error < 0.1).all()
    w = (value - torch.logsumexp(value, 0)).exp()[..., None]
    mean = (w * z[:, :, 0]).sum(0)
    torch.testing.assert_close(got.mean[:, 0], mean, atol=0.05, rtol=0)


def test_weights_stay_bounded_where_counts_are_far_from_their_expansion():
    """A hundred counts pin the state; single counts far away must not blow up a weight."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.9]], process_noise=[4.0], initial_noise=[4.0]
    )
    poisson = ps.observations.Poisson.from_parameters([[1.0]], [0.0], bin_seconds=1.0)
    model = ps.StateSpaceModel(dynamics, {"n": poisson})
    data = ps.Dataset.from_arrays({"n": [[150], [0]]}, kinds={"n": "count"})
    evidence, _, _ = quadrature(model, data)
    for proposal in ("guided", "lookahead"):
        got = run(model, data, proposal=proposal, particles=1000, runs=8)
        assert abs(float(got.log_evidence[0]) - evidence) < 4 * float(got.evidence_error[0])
        assert got.evidence_error[0] < 0.15
        assert got.status == ("sampled",)


# ---- batches, clocks, seeds ---------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_a_padded_trial_is_as_alone(kind, by_hand):
    model = linear_model(kind=kind, by_hand=by_hand)
    data = data_of(model, lengths=(5, 9, 1))
    alone = ps.Dataset.from_arrays({"x": data.trials[0].values["x"]}, inputs=data.trials[0].inputs)
    for proposal in PROPOSALS:
        options = dict(proposal=proposal, particles=50, runs=3, draws=20)
        for causal in (False, True):
            both = [ps.smooth(model, d, "particle", causal, **options) for d in (data, alone)]
            for a, b in zip(*[(p.log_evidence, p.evidence_error) for p in both], strict=True):
                torch.testing.assert_close(a[:1], b, rtol=1e-9, atol=1e-9)
            kept = [p.sample(20)[:, 0, :5].sort(0).values for p in both]
            torch.testing.assert_close(*kept)
            assert both[0].mean.dtype == torch.float64
            assert (
                torch.isnan(both[0].mean[0, 5:]).all()
                and torch.isnan(both[0].effective[0, 5:]).all()
            )


def test_seeds_reproduce():
    model = linear_model(kind="plrnn")
    data = data_of(model)
    one, two, other = (
        ps.smooth(model, data, "particle", particles=60, runs=2, draws=10, seed=s)
        for s in (3, 3, 4)
    )
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert torch.equal(torch.nan_to_num(one.paths), torch.nan_to_num(two.paths))
    assert not torch.equal(one.log_evidence, other.log_evidence)


def test_compiled_and_plain_steps_are_one_filter(monkeypatch):
    """The step-by-step path for any model, made to take a model that has a compiled one."""
    model = linear_model(kind="plrnn")
    data = data_of(model)
    compiled = {p: run(model, data, proposal=p, particles=80, runs=2) for p in PROPOSALS}
    monkeypatch.setattr(
        particle_clouds._Block,
        "compiled_moves",
        lambda self: (self.move(t) for t in range(1, self.steps)),
    )
    for proposal, wanted in compiled.items():
        got = run(model, data, proposal=proposal, particles=80, runs=2)
        torch.testing.assert_close(got.log_evidence, wanted.log_evidence)
        torch.testing.assert_close(got.mean, wanted.mean, equal_nan=True)
        torch.testing.assert_close(got.effective, wanted.effective, equal_nan=True)


def test_particles_whose_paths_overflow_have_no_part():
    """Units explode from the few first states above 8; data say that they were not there."""
    dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
        A=[0.5], W1=[[1e150]], W2=[[1.0]], h1=[0.0], h2=[-8.0],
        process_noise=[0.1], initial_noise=[16.0],
    )  # fmt: skip
    data = ps.Dataset.from_arrays({"x": 0.1 * np.arange(6.0)[:, None]})
    for observation in (
        ps.observations.Gaussian.from_parameters([[1.0]], noise=[1.0]),
        NormalByHand(1),
    ):
        model = ps.StateSpaceModel(dynamics, {"x": observation})
        with torch.no_grad():
            model.observations["x"].weight.fill_(1.0)
            model.observations["x"].bias.fill_(0.0)
        got = run(model, data, proposal="bootstrap", particles=2000, runs=4)
        assert (got.log_evidence > -20).all() and (got.evidence_error < 0.2).all()
        assert torch.isfinite(got.mean).all() and torch.isfinite(got.covariance()).all()
        assert torch.isfinite(torch.stack(got.interval())).all()


def test_several_samples_of_a_step_count_all():
    model, by_hand = linear_model(noise=1.0), linear_model(by_hand=True)
    rng = np.random.default_rng(0)
    y, at = rng.normal(size=(5, 3)), np.array([0.0, 0.9, 1.1, 2.9, 3.1])
    s = rng.normal(size=(4, 2))
    data = ps.Dataset.from_arrays({"x": y}, times={"x": [at]}, inputs=s)
    assert data.batch().modalities["x"].clock.tolist() == [[0, 1, 1, 3, 3]]
    exact = ps.smooth(model, data).log_evidence
    for m in (model, by_hand):
        got = run(m, data, particles=2000, runs=8)
        assert ((got.log_evidence - exact).abs() < 4 * got.evidence_error).all()


def test_better_proposals_have_less_variance():
    model = linear_model(noise=0.02)
    data = data_of(model, lengths=(40,))
    spread = {
        p: float(run(model, data, proposal=p, particles=300, runs=16, draws=1).evidence_error[0])
        for p in PROPOSALS
    }
    assert spread["lookahead"] < 0.5 * spread["guided"]
    assert spread["guided"] < 0.3 * spread["bootstrap"]


def test_what_later_data_show_is_found_with_lookahead_and_otherwise_owned_up_to():
    """Data that are not the model's: a guide of one step ends nats too low, and says so."""
    model = linear_model(kind="plrnn", noise=1.0)
    rng = np.random.default_rng(0)
    s = rng.normal(size=(12, 2))
    y = 4.0 * rng.normal(size=(12, 3))
    data = ps.Dataset.from_arrays({"x": y}, inputs=s)
    reference = run(model, data, proposal="lookahead", particles=50_000, runs=8, draws=1)
    assert reference.evidence_error[0] < 0.05
    for proposal in PROPOSALS:
        got = run(model, data, proposal=proposal, particles=500, runs=8, seed=5, draws=1)
        error = float(got.evidence_error[0])
        apart = float((got.log_evidence - reference.log_evidence).abs())
        assert apart < 4 * np.hypot(error, float(reference.evidence_error[0]))


# ---- observations with memory -------------------------------------------------------------------


def test_bold_evidence_and_filtered_states_of_a_linear_model():
    rng = np.random.default_rng(2)
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.7, 0.1], [-0.2, 0.6]], process_noise=[0.3, 0.2], initial_noise=[0.5, 0.5]
    )
    model = ps.StateSpaceModel(dynamics, {
        "bold": ps.observations.BOLD.from_parameters(
            rng.normal(size=(3, 2)), noise=[0.5] * 3, tr_seconds=3.0
        ),
        "x": ps.observations.Gaussian.from_parameters(rng.normal(size=(2, 2)), noise=[0.4] * 2),
    })  # fmt: skip
    data = model.simulate(25, trials=3, dt=3.0, seed=1)
    values = {n: [v.copy() for v in data.values(n)] for n in ("bold", "x")}
    values["bold"][0][4] = np.nan
    data = ps.Dataset.from_arrays(values, dt=3.0, kinds={"bold": "bold"})
    exact = filter_batch(working_copy(model), data.batch())
    assert exact.evidence_kind == "exact"
    for proposal in PROPOSALS:
        got = ps.smooth(model, data, "particle", True, particles=2000, proposal=proposal)
        assert ((got.log_evidence - exact.log_evidence).abs() < 4 * got.evidence_error).all()
        assert got.evidence_error.max() < 1.0
        if proposal != "lookahead":
            sd = exact.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
            assert ((got.mean - exact.mean) / sd).abs().max() < 0.3
    memory = model.observations["bold"].memory(3.0)
    histories = draw_histories(got, 7, memory + 1)
    assert histories.shape == (7, 3, 25, memory + 1, 2)
    assert (histories[:, :, 2, : memory - 2] == 0).all()  # before the trial
    assert (histories[:, :, 2, memory - 2 :] != 0).all()
    with pytest.raises(CapabilityError, match="bold.*causal=True"):
        ps.smooth(model, data, "particle")


# ---- the posteriors, and options ----------------------------------------------------------------


def test_posteriors_of_draws():
    model = linear_model()
    data = data_of(model)
    paths = ps.smooth(model, data, "particle", particles=200, draws=40)
    assert isinstance(paths, PathSamples) and paths.paths.shape == (40, 3, 12, 2)
    few = paths.sample(40, seed=1)
    assert torch.equal(few[:, 0].sort(0).values, paths.paths[:, 0].sort(0).values)
    assert paths.sample(90).shape == (90, 3, 12, 2)
    assert torch.equal(few[:5, 0], paths.sample(5, seed=1)[:, 0])
    kept = draw_paths(paths, 10)
    assert [k.shape for k in kept] == [(10, n, 2) for n in LENGTHS]
    assert all(bool(torch.isfinite(k).all()) for k in kept)
    assert draw_last_states(paths, 6, 3).shape == (6, 3, 3, 2)
    states = ps.smooth(model, data, "particle", True, particles=200, draws=40)
    assert states.sample(50, seed=2).shape == (50, 3, 12, 2)
    assert torch.equal(torch.isnan(states.sample(1)[0]), torch.isnan(states.mean))
    assert draw_histories(states, 5, 1).shape == (5, 3, 12, 1, 2)
    with pytest.raises(ValueError, match="level"):
        states.interval(1.0)
    assert "[particle]" in repr(paths) and "[particle]" in repr(states)


def test_a_single_run_has_no_standard_error():
    model = linear_model()
    got = run(model, data_of(model), particles=50)
    assert torch.isnan(got.evidence_error).all() and torch.isfinite(got.log_evidence).all()


@pytest.mark.parametrize(("sd", "least"), [(0.1, 0.96), (1.0, 0.94), (2.5, 0.92)])
def test_the_standard_error_covers_log_normal_estimates(sd, least):
    """Of eight estimates with mean one; a delta-method error covers half of them at 2.5."""
    rng = np.random.default_rng(0)
    logs = -(sd**2) / 2 + sd * rng.normal(size=(8, 20_000))
    value, error = combined_evidence(logs)
    np.testing.assert_allclose(value, np.log(np.exp(logs).mean(0)))
    assert (np.abs(value) <= 3 * error).mean() > least


@pytest.mark.parametrize("options", [{"particles": 10}, {"seed": 0}, {"runs": 2, "draws": 3}])
def test_options_of_another_method_are_refused(options):
    model = linear_model()
    for method in ("laplace", "ekf"):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*method='particle'"):
            ps.smooth(model, data_of(model), method, **options)


@pytest.mark.parametrize(
    "options", [{"particles": 1}, {"runs": 0}, {"draws": 2.5}, {"seed": -1}, {"proposal": "best"}]
)
def test_options_out_of_range_are_refused(options):
    model = linear_model()
    for causal in (False, True):
        with pytest.raises(ValueError, match=next(iter(options))):
            ps.smooth(model, data_of(model), "particle", causal, **options)


def test_what_does_not_fit_into_memory_is_refused():
    model = linear_model()
    data = data_of(model)
    with pytest.raises(CapabilityError, match="draws"):
        ps.smooth(model, data, "particle", draws=100_000_000)
    with pytest.raises(CapabilityError, match="causal=True"):
        ps.smooth(model, data, "particle", particles=1_000_000, runs=1000)


def test_dynamics_without_a_relu_form_need_particles():
    model = ps.StateSpaceModel(TanhMap(2), {"x": ps.observations.Gaussian(3)})
    data = model.simulate(8, trials=3)
    with pytest.raises(CapabilityError, match="particle"):
        ps.smooth(model, data)
    assert ps.smooth(model, data, "particle", particles=50).mean.shape == (3, 8, 2)
