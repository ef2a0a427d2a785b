"""The differentiable innovation likelihood: values, gradients, smoothing, windows."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o
from plssm.errors import CapabilityError, DataError, PlssmError
from plssm.inference import EKF, Innovation, OpenLoop
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.filter_form import filter_form, hinges_of
from plssm.inference.filter_options import FilterOptions
from plssm.inference.filtered_states import FilteredStates
from plssm.inference.filtering import filter_batch
from plssm.inference.innovation_training import InnovationTraining
from plssm.inference.innovations import innovations
from plssm.inference.rts_smoother import filter_posterior
from plssm.inference.state_smoother import joined_states
from plssm.inference.trainer import Trainer
from plssm.kernels.innovation_filter import filter_plain

D = ps.dynamics
MAPS = {
    "linear": lambda: D.LinearDynamics(2),
    "plrnn": lambda: D.PLRNN(2),
    "almost linear": lambda: D.AlmostLinearRNN(3, 1),
    "shallow": lambda: D.ShallowPLRNN(2, 4, clipped=False),
    "clipped": lambda: D.ShallowPLRNN(2, 4),
    "dendritic": lambda: D.DendriticPLRNN(2, 3, clipped=True),
}
OBSERVED = {
    "gaussian": lambda: {"x": o.Gaussian(3)},
    "poisson": lambda: {"x": o.Poisson(4, link="softplus")},
    "negative binomial": lambda: {"x": o.NegativeBinomial(3)},
    "zero-inflated": lambda: {"x": o.ZeroInflatedPoisson(3)},
    "categorical": lambda: {"x": o.Categorical(3)},
    "ordinal": lambda: {"x": o.Ordinal(2, 4)},
    "bold": lambda: {"x": o.BOLD(2, tr_seconds=2.0)},
    "states": lambda: {"x": o.BOLD(2, tr_seconds=2.0, kernel="states"), "y": o.Poisson(2)},
    "bold and counts": lambda: {"x": o.BOLD(2, tr_seconds=2.0), "y": o.Poisson(2)},
    "three": lambda: {"x": o.Gaussian(2), "y": o.Bernoulli(3), "z": o.Categorical(3)},
}


def problem(dynamics="plrnn", observed="gaussian", *, inputs=False, steps=12, gaps=True):
    """A model with moved parameters, away from the kinks, and data with gaps."""
    model = ps.StateSpaceModel(MAPS[dynamics](), OBSERVED[observed]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if not isinstance(model.dynamics, D.LinearDynamics):
            model.dynamics.draw_start(generator)
        for name, p in model.named_parameters():
            move = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            keep = (p != 0) if name == "dynamics.W" else 1.0
            p.add_(0.2 * move * keep)
    dt = 2.0 if observed in ("bold", "states", "bold and counts") else 1.0
    data = model.simulate(steps, trials=3, seed=3, dt=dt)
    if not gaps:
        return model, data
    rng = np.random.default_rng(0)
    arrays = {n: [] for n in data.names}
    for trial, length in zip(data.trials, (steps, steps - 3, 1), strict=True):
        for n in data.names:
            y = np.array(trial.values[n][:length])
            y[rng.random(y.shape) < 0.2] = np.nan
            arrays[n].append(y)
    kinds = {n: data.kinds[n] for n in data.names}
    return model, ps.Dataset.from_arrays(arrays, dt, kinds=kinds, check_channels=False)


def likelihood(model, batch, *, propagation="linearised", **options):
    states = joined_states(model, batch.dt)
    form = filter_form(model, batch, states, propagation=propagation)
    return innovations(model, batch, states, form, sweeps=60, **options)


@pytest.mark.parametrize("dynamics", MAPS)
def test_hinges_are_the_map(dynamics):
    model, _ = problem(dynamics)
    hinges, z = hinges_of(model.dynamics), torch.randn(50, model.dim, dtype=torch.float64)
    after, jacobian = hinges(z)
    torch.testing.assert_close(after, model.dynamics.step(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(jacobian, model.dynamics.jacobian(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("propagation", ["linearised", "moments"])
@pytest.mark.parametrize(
    "dynamics, observed",
    [(d, "gaussian") for d in MAPS] + [("plrnn", x) for x in OBSERVED if x != "gaussian"],
)
def test_evidence_is_that_of_the_filter_without_gradients(dynamics, observed, propagation):
    model, data = problem(dynamics, observed)
    batch = data.batch()
    found = likelihood(model, batch, propagation=propagation)
    assert bool(found.settled.all()) and float(found.moved.max()) < 1e-6
    with torch.no_grad():
        options = FilterOptions(propagation=propagation)
        want = filter_batch(copy.deepcopy(model), batch, options).log_evidence
    # a few linear states stand in for the response: about a percent of its peak
    # and where curvature is not positive sweeps settle slowly
    tolerance = {"states": 5e-3, "zero-inflated": 1e-5}.get(observed, 1e-7)
    torch.testing.assert_close(found.increment.sum(1), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("propagation", ["linearised", "moments"])
@pytest.mark.parametrize(
    "dynamics, observed",
    [(d, "gaussian") for d in MAPS] + [("plrnn", x) for x in OBSERVED if x != "gaussian"],
)
def test_gradients_are_those_of_the_settled_filter(dynamics, observed, propagation):
    """Central differences along a random direction of each parameter."""
    model, data = problem(dynamics, observed)
    batch, how = data.batch(), {"propagation": propagation}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel()]
    value = likelihood(model, batch, **how).increment.sum()
    slopes = torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    for (name, p), slope in zip(named, slopes, strict=True):
        along = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * 1e-5 * along)
                ends.append(float(likelihood(model, batch, **how).increment.sum()))
                p.add_(-sign * 1e-5 * along)
        want = (ends[0] - ends[1]) / 2e-5
        got = 0.0 if slope is None else float((slope * along).sum())
        rounding = 1e-6 * abs(float(value.detach()))  # of a sum, over a step of 1e-5
        assert abs(got - want) < 1e-6 * (1 + abs(want)) + rounding, name


def test_a_map_of_unknown_form_goes_through_its_own_jacobian():
    model, data = problem("plrnn")
    batch = data.batch()

    class Smooth(D.LatentDynamics):
        def __init__(self, inner):
            super().__init__(2)
            self.inner = inner

        def step(self, z, s=None):
            return self.inner.step(z, s)

    smooth = Smooth(model.dynamics)
    smooth.noise, smooth.initial = model.dynamics.noise, model.dynamics.initial
    other = copy.copy(model)
    other._modules = dict(model._modules, dynamics=smooth)
    for m in (other, model):
        states = joined_states(m, batch.dt)
        form = filter_form(m, batch, states)
        found = innovations(m, batch, states, form).increment
        slope = torch.autograd.grad(found.sum(), model.dynamics.W)[0]
        if m is other:
            want, slope_there = found, slope
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, slope_there, rtol=1e-10, atol=1e-12)


def test_inputs_move_states():
    dynamics = D.PLRNN.from_parameters(
        A=[0.5, 0.8], W=[[0, 0.3], [-0.2, 0]], h=[0.1, 0.2], C=[[1.0], [0.5]],
        process_noise=[0.1, 0.2], initial_mean=[0.3, 0.4], initial_noise=[0.5, 0.5],
        input_at_start=True,
    )  # fmt: skip
    model = ps.StateSpaceModel(dynamics, {"x": o.Gaussian(3)})
    inputs = np.random.default_rng(0).normal(size=(2, 10, 1))
    batch = model.simulate(10, trials=2, inputs=inputs, seed=0).batch()
    want = filter_batch(copy.deepcopy(model), batch).log_evidence
    torch.testing.assert_close(likelihood(model, batch).increment.sum(1), want.detach())


def test_steps_without_update_are_open_loop_predictions():
    """Linear-Gaussian: moments of k steps ahead in closed form."""
    model, data = problem("linear", gaps=False)
    batch = data.batch()
    updates = torch.arange(12) < 4
    found = likelihood(model, batch, updates=updates)
    whole = likelihood(model, batch)
    a, h = model.dynamics.A.detach(), model.dynamics.h.detach()
    q = model.dynamics.noise.covariance.detach()
    m, p = whole.run.filtered_mean[:, 3], whole.run.filtered_covariance[:, 3]
    for t in range(4, 12):
        m, p = m @ a.T + h, a @ p @ a.T + q
        torch.testing.assert_close(found.run.predicted_mean[:, t], m)
        torch.testing.assert_close(found.run.predicted_covariance[:, t], p)
    x = model.observations["x"]
    b, y = x.weight.detach(), batch.modalities["x"].y
    spread = b @ p @ b.T + torch.diag(x.noise.detach())
    exact = torch.distributions.MultivariateNormal(m @ b.T + x.bias.detach(), spread)
    torch.testing.assert_close(found.increment[:, 11], exact.log_prob(y[:, 11]))


@pytest.mark.parametrize("observed", ["gaussian", "bold"])
def test_smoothing_of_a_linear_model_is_exact(observed):
    model, data = problem("linear", observed)
    post = filter_posterior(copy.deepcopy(model), data.batch())
    want = ps.smooth(model, data)
    assert post.evidence_kind == want.evidence_kind == "exact"
    for got, exact in (
        (post.mean, want.mean), (post.covariance(), want.covariance()),
        (post.log_evidence, want.log_evidence),
    ):  # fmt: skip
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-8, equal_nan=True)


def test_smoothing_is_rauch_tung_striebel():
    """The textbook's recursion on what the filter gives."""
    model, data = problem("shallow", gaps=False)
    batch = data.batch()
    post = filter_posterior(copy.deepcopy(model), batch)
    with torch.no_grad():
        run = likelihood(model, batch).run
        mean, cov = run.filtered_mean[:, -1], run.filtered_covariance[:, -1]
        for t in reversed(range(11)):
            j = model.dynamics.jacobian(run.filtered_mean[:, t])
            p = run.filtered_covariance[:, t]
            gain = p @ j.mT @ torch.linalg.inv(run.predicted_covariance[:, t + 1])
            away = mean - run.predicted_mean[:, t + 1]
            mean = run.filtered_mean[:, t] + (gain @ away[..., None])[..., 0]
            cov = p + gain @ (cov - run.predicted_covariance[:, t + 1]) @ gain.mT
            torch.testing.assert_close(post.mean[:, t], mean, rtol=0, atol=1e-9)
            torch.testing.assert_close(post.covariance()[:, t], cov, rtol=0, atol=1e-9)


def test_windows_that_start_in_known_states_add_up_to_the_whole():
    """The covariance is the mean one, so a linear model in its steady state is exact."""
    model, _ = problem("linear", gaps=False)
    with torch.no_grad():
        model.dynamics.A.mul_(0.5)
    batch = model.simulate(400, trials=2, seed=1).batch()
    states = FilteredStates(model, batch)
    whole = states.refresh(model).increment
    windows = BatchWindows(batch, steps=40, context=20, after=0)
    window = windows.cut(torch.tensor([0, 1, 1]), torch.tensor([0, 120, 360]))
    form = filter_form(model, window.batch, states.joined).started(*states.first(window))
    with torch.no_grad():
        part = innovations(model, window.batch, states.joined, form).increment * window.weight
    want = [whole[0, :40].sum(), whole[1, 120:160].sum(), whole[1, 360:].sum()]
    torch.testing.assert_close(part.sum(1), torch.stack(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", ["crps", "energy", "log"])
@pytest.mark.parametrize("spread", ["propagated", "free"])
def test_open_loop_scores_train(score, spread):
    model, data = problem("plrnn", gaps=False, steps=40)
    engine = EKF(objective=OpenLoop(horizon=4, score=score, spread=spread), steps=25, checks=5,
                 warmup=3, batch_size=8, start="model", learning_rate=(1e-2, 1e-3))  # fmt: skip
    fit = engine.fit(model, data, progress=False)
    rows = fit.history["objective"]
    assert np.isfinite(rows).all() and rows.max() > rows.iloc[0]
    assert ("spread" in fit.history) == (spread == "free")


def test_crps_of_predictions_is_the_closed_form():
    """Against the integral of the squared difference of distribution functions."""
    objective = OpenLoop(horizon=3, score="crps")
    model, data = problem("linear", gaps=False)
    batch = data.batch()
    updates = torch.arange(12) < 3
    found = likelihood(model, batch, updates=updates)
    states = joined_states(model, batch.dt)
    with torch.no_grad():
        got = objective.value(found, model, None, batch, states, torch.Generator())
        x = model.observations["x"]
        mean = found.run.predicted_mean[:, 5] @ x.weight.T + x.bias
        spread = x.weight @ found.run.predicted_covariance[:, 5] @ x.weight.T
        sd = (spread.diagonal(dim1=-2, dim2=-1) + x.noise).sqrt()
        at = torch.linspace(-30, 30, 60001, dtype=torch.float64)
        y = batch.modalities["x"].y[:, 5]
        cdf = torch.special.ndtr((at - mean[..., None]) / sd[..., None])
        want = -((cdf - (at >= y[..., None]).double()) ** 2).sum(-1) * (at[1] - at[0])
    torch.testing.assert_close(got[:, 5], want.sum(-1), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_is_refused():
    counts = ps.StateSpaceModel(D.PLRNN(2), {"n": o.Poisson(2)})
    data = counts.simulate(30, seed=0)
    with pytest.raises(CapabilityError, match="Gaussian channels"):
        EKF(objective=OpenLoop(score="crps")).fit(counts, data)
    with pytest.raises(DataError, match="horizon"):
        EKF(objective=OpenLoop(horizon=50)).fit(counts, data)
    for wrong in ({"window": 0}, {"ridge": -1}, {"state": "x"}, {"start": "x"}, {"warmup": -1}):
        with pytest.raises(PlssmError, match=next(iter(wrong))):
            EKF(**wrong)
    with pytest.raises(PlssmError, match="objective"):
        EKF(objective="innovations")
    with pytest.raises(PlssmError, match="horizon"):
        OpenLoop(horizon=0)


def test_the_twin_carries_gradients_of_shared_terms():
    """One information for all steps gets the sum of what each step's gets."""
    model, data = problem("plrnn", gaps=False)
    batch = data.batch()
    states = joined_states(model, batch.dt)
    form = filter_form(model, batch, states)
    terms = innovations(model, batch, states, form).terms
    assert terms.information.shape[:2] == (1, 1)
    each = terms.information.detach().expand(3, 12, 2, 2).clone().requires_grad_()
    one = terms.information.detach().clone().requires_grad_()
    options = form.noise, form.first_mean, form.first_covariance, terms.score.detach()
    slopes = []
    for information in (one, each):
        run = filter_plain(form.step, *options, information, form.drive)
        slopes.append(torch.autograd.grad(run.increment.sum(), information)[0])
    torch.testing.assert_close(slopes[0][0, 0], slopes[1].sum((0, 1)))


def test_settings_and_defaults():
    assert EKF().objective == Innovation()
    assert EKF(**EKF(objective=OpenLoop(horizon=7)).settings()).objective == OpenLoop(horizon=7)


@pytest.mark.parametrize(
    ("observed", "state"),
    [("gaussian", "filtered"), ("poisson", "filtered"), ("poisson", "encoder")],
)
def test_an_interrupted_training_goes_on_to_the_same_bits(observed, state, tmp_path, monkeypatch):
    model, data = problem("plrnn", observed, gaps=False, steps=40)
    options = {"steps": 12, "checks": 4, "window": 10, "warmup": 5, "start": "model"}
    options["state"] = state
    whole = EKF(**options).fit(model, data, progress=False)
    path = tmp_path / "training"
    engine = EKF(**options, checkpoint=str(path), checkpoint_seconds=0.0)
    update = Trainer.update_some

    def interrupted(self):
        if self.step == 8:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="interrupted"):
        patch.setattr(Trainer, "update_some", interrupted)
        engine.fit(model, data, progress=False)
    assert path.exists()
    fit = engine.fit(model, data, progress=False)
    assert not path.exists()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, fit.model.state_dict()[name]), name
    columns = ["step", "loss", "log_likelihood"]
    assert whole.history[columns].equals(fit.history[columns])


def wild_counts():
    """BOLD and many counts: sweeps that begin at zero overshoot."""
    model = ps.StateSpaceModel(D.PLRNN(2), {"b": o.BOLD(3, tr_seconds=2.0), "n": o.Poisson(10)})
    with torch.no_grad():
        model.observations["n"].bias.fill_(3.0)
    return model, model.simulate(20, trials=2, seed=0, dt=2.0)


def test_a_filter_that_does_not_settle_begins_at_a_guarded_one():
    model, data = wild_counts()
    want = filter_batch(copy.deepcopy(model), data.batch()).log_evidence
    got = filter_posterior(copy.deepcopy(model), data.batch())
    torch.testing.assert_close(got.log_evidence, want, rtol=0, atol=1e-5)
    assert set(got.status) == {"stationary"}
    fit = EKF(steps=6, checks=2, window=10, warmup=5, start="model").fit(
        model, data, progress=False
    )
    assert np.isfinite(fit.history["log_likelihood"]).all()
    assert fit.history["log_likelihood"].max() >= fit.history["log_likelihood"].iloc[0]


def test_parameters_out_of_bounds_give_no_numbers_instead_of_an_error():
    model, data = problem("plrnn", "poisson", gaps=False)
    with torch.no_grad():
        model.observations["x"].weight.fill_(torch.inf)
    found = likelihood(model, data.batch())
    assert not bool(found.settled.any())
    assert bool(found.increment.isnan().any())


def test_where_gaussian_channels_are_expanded_does_not_matter():
    """Points that a filter which ran away has left behind would cost all digits."""
    model, data = problem(gaps=False)
    batch = data.batch()
    want = likelihood(model, batch)
    found = likelihood(model, batch, point=1e12 * torch.randn(*batch.time_mask.shape, 2).double())
    assert torch.equal(found.increment, want.increment) and bool(found.settled.all())


def test_states_that_run_away_say_nothing():
    """Log-densities are differences of squares there, and what is left of them is noise."""
    model, data = problem(gaps=False, steps=40)
    batch = data.batch()
    assert bool(likelihood(model, batch).settled.all())
    with torch.no_grad():
        model.dynamics.A.fill_(1.0)
        model.dynamics.W.zero_()
        model.dynamics.h.copy_(torch.tensor([0.0, 1e10]))
        model.observations["x"].weight[:, 1] = 1e-3  # hardly seen, so that the data do not help
    found = likelihood(model, batch)
    assert bool(found.increment.isfinite().all()) and not bool(found.settled.any())
    states = FilteredStates(model, batch)
    states.refresh(model)
    window = BatchWindows(batch, steps=40, after=0).cut(torch.arange(3), torch.zeros(3).long())
    before = states.point.clone()
    states.keep(window, found, batch.time_mask)
    assert torch.equal(states.point, before)
    for ridge in (1.0, 0.0):
        engine = EKF(steps=8, checks=1, start="model", select="likelihood", ridge=ridge)
        with pytest.warns(RuntimeWarning, match="not finite"):  # there is nothing to learn from
            fit = engine.fit(model, data, progress=False)
        assert np.isinf(fit.history["score"]).all()
        assert float(fit.model.dynamics.h[1].detach()) == 1e10


def test_wide_predictions_are_no_lost_ones():
    """Open loops of an expanding map: variances of 1e24, log-densities as in closed form."""
    dynamics = D.LinearDynamics.from_parameters(
        A=[[2.0]], process_noise=[0.1], initial_noise=[1.0]
    )
    seen = o.Gaussian.from_parameters(B=[[1.0]], noise=[1e-3])
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    y = np.random.default_rng(0).normal(size=(2, 40, 1))
    batch = ps.Dataset.from_arrays({"x": y}).batch()
    found = likelihood(model, batch, updates=torch.zeros(40, dtype=torch.bool))
    assert bool(found.settled.all())
    variance = 1.0
    for t in range(40):
        want = torch.distributions.Normal(0.0, (variance + 1e-3) ** 0.5).log_prob(
            torch.from_numpy(y[:, t, 0])
        )
        torch.testing.assert_close(found.increment[:, t].detach(), want, rtol=0, atol=1e-6)
        variance = 4.0 * variance + 0.1


def test_kinked_readouts_never_win_by_garbage():
    """Gaussian channels of rectified states, whose filter may cycle at the kink."""
    model = ps.StateSpaceModel(D.PLRNN(3), {"x": o.Gaussian(5, readout="relu")})
    with torch.no_grad():
        model.dynamics.h.fill_(0.1)
    data = model.simulate(30, trials=2, seed=1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of losses that are not finite
    engine = EKF(steps=9, checks=3, window=20, warmup=5, start="model", learning_rate=(0.03, 0.01))
    fit = engine.fit(model, data, progress=False)
    score = fit.history["score"]
    assert "unsettled" in fit.history
    assert float(score.min()) > 0  # no density is above one per step here
    assert all(bool(torch.isfinite(p).all()) for p in fit.model.parameters())


def test_open_loop_windows_leave_known_states_alone():
    """Predictions far ahead are no filtered states: starts stay near the filter's own."""
    model, data = problem("plrnn", gaps=False, steps=120)
    engine = EKF(objective=OpenLoop(horizon=15), warmup=6, batch_size=20, start="model")
    batch = data.batch()
    training = InnovationTraining(engine, model, batch, batch, torch.zeros(3, 120, 2).double())
    training.measures()
    before = training.states.before.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        training.loss(0.0, generator)
    sd = training.states.covariance.diagonal().sqrt()
    assert float(((training.states.before - before) / sd).abs().max()) < 1.0


def test_maps_without_hinges_are_filtered_and_smoothed():
    class Smooth(D.LatentDynamics):
        def __init__(self):
            super().__init__(2)
            self.w = torch.nn.Parameter(0.4 * torch.eye(2, dtype=torch.float64))

        def step(self, z, s=None):
            return torch.tanh(z @ self.w.T) + 0.2

    model = ps.StateSpaceModel(Smooth(), {"n": o.Poisson(3)})
    before = model.dynamics.w.detach().clone()
    data = model.simulate(25, trials=2, seed=0)
    fit = EKF(steps=8, checks=1, start="model", measure="path").fit(model, data, progress=False)
    assert "path_evidence" not in fit.history and not torch.equal(fit.model.dynamics.w, before)
    for causal in (False, True):
        post = fit.posterior(data, causal=causal)
        assert post.evidence_kind == "ekf" and bool(torch.isfinite(post.mean).all())
    remembering = ps.StateSpaceModel(Smooth(), {"b": o.BOLD(2, tr_seconds=2.0)})
    bold = remembering.simulate(40, seed=0, dt=2.0)
    with pytest.raises(CapabilityError, match="memory"):
        EKF().fit(remembering, bold)


def test_an_interrupted_start_keeps_the_restarts_before(monkeypatch):
    model, data = problem("plrnn", gaps=False)
    engine = EKF(steps=8, checks=1, restarts=3, start_iterations=1, start="data")
    run, calls = EKF._run, []

    def once(self, *arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(EKF, "_run", once)
    with pytest.warns(RuntimeWarning, match="before restart 1"):
        fit = engine.fit(model, data, progress=False)
    assert set(fit.history["restart"]) == {0}


def test_shallow_maps_start_by_regression():
    """A map of the same form is found: little is left of its noise-free transitions."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    after = torch.stack([0.5 * z[:, 0] + z[:, 1].abs(), 0.3 - 0.4 * z[:, 1]], 1)
    for clipped in (False, True):
        dynamics = D.ShallowPLRNN(2, 40, clipped=clipped)
        left = dynamics.regress_start(z, after, None, generator)
        assert float((left / after.var(0)).max()) < 0.1  # 40 hinges at random, one is needed
        torch.testing.assert_close(left, (after - dynamics.step(z)).square().mean(0).detach())
    held = D.ShallowPLRNN(2, 40)
    held.A.requires_grad_(False)
    kept = held.A.clone()
    held.regress_start(z, after, None, generator)
    assert torch.equal(held.A, kept)
    still = torch.zeros_like(z)
    assert bool(
        torch.isfinite(D.ShallowPLRNN(2, 5).regress_start(still, still, None, generator)).all()
    )
