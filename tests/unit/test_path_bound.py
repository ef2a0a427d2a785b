"""The bound of paths: against Pyro's, exact evidence, windows, importance weights, training."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.closed_bound import expected_log_joint, is_closed
from plssm.inference.encoders import Encoder
from plssm.inference.path_bound import PathBound, PathGuide, bound_terms
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.pyro_bridge import PyroModel, to_pyro
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import start_recognition
from plssm.inference.variational import VariationalInference
from plssm.inference.variational_start import rough_path
from plssm.inference.variational_training import PathTraining

o = ps.observations
LENGTHS = (9, 5, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_model():
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8, 0.2], [-0.2, 0.7]], h=[0.3, -0.1], process_noise=[[0.3, 0.1], [0.1, 0.2]],
        C=[[0.5], [0.2]], initial_mean=[1.0, -1.0], initial_noise=[[1.0, 0.3], [0.3, 0.5]],
    )  # fmt: skip
    x = o.Gaussian.from_parameters(
        [[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]], [0.1, 0.2, 0.3], noise=[0.4, 0.6, 0.2]
    )
    y = o.Gaussian.from_parameters([[0.3, 0.9]], [0.0], noise=[0.5])
    return ps.StateSpaceModel(dynamics, {"x": x, "y": y})


def mixed_model():
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.9, 0.7], [[0.0, 0.3], [-0.3, 0.0]], h=[0.2, -0.1], process_noise=[0.2, 0.2],
        C=[[0.5], [0.2]], initial_noise=[1.0, 1.0],
    )  # fmt: skip
    spec = ps.StateSpaceModel(
        dynamics,
        {
            "x": o.Gaussian(3),
            "n": o.Poisson(2),
            "b": o.BOLD(2, tr_seconds=2.0, hrf=o.DoubleGamma(length_seconds=4.0)),
        },
    )
    with torch.no_grad():
        for p in spec.observations.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator(1), dtype=torch.float64))
    return spec


def data_of(spec, lengths=LENGTHS, seed=0):
    """Ragged trials with gaps; modalities keep their clocks."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((len(lengths), max(lengths), 1))
    full = spec.simulate(max(lengths), trials=len(lengths), inputs=inputs, dt=1.0, seed=seed)
    values = {n: [] for n in full.names}
    times = {n: [] for n in full.names if full.trials[0].clock[n] is not None}
    for trial, steps in zip(full.trials, lengths, strict=True):
        for name in full.names:
            at = trial.seconds(name, 1.0)
            x = trial.values[name][at < steps].copy()
            x[rng.random(x.shape) < 0.2] = np.nan
            values[name].append(x)
            if name in times:
                times[name].append(at[at < steps])
    return ps.Dataset.from_arrays(
        values, 1.0, kinds=full.kinds, times=times or None, check_channels=False,
        inputs=[x[:n] for x, n in zip(inputs, lengths, strict=True)],
    )  # fmt: skip


def started(spec, data, *, chain="model", network="none", noise=0.0):
    batch = data.batch()
    made = Recognition(
        Encoder.for_model(spec, batch, network=network, hidden=4),
        2,
        inputs=data.n_inputs,
        chain=chain,
    )
    start_recognition(made, spec, batch, rough_path(spec, data))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(noise * torch.randn(p.shape, generator=generator(4), dtype=torch.float64))
    return made


def exact(made):
    """Without the faint directions the started guide of a linear-Gaussian model is exact."""
    with torch.no_grad():
        for part in made.encoder.modalities.values():
            part.log_weight[part.size.channels * part.rank :] = -40.0
    return made


def same(got, want, **options):
    torch.testing.assert_close(got, want, **({"rtol": 1e-10, "atol": 1e-9} | options))


def setting(spec, data, made, *, samples=1, seed=0):
    """Pyro model and guide whose draws come from a fresh generator."""
    guide = PathGuide(made, spec, samples=samples, generator=generator(seed))
    return PyroModel(spec), guide, data.batch()


# ---- against Pyro, and the definition -----------------------------------------------------------
@pytest.mark.parametrize("chain", ["model", "learned", "none"])
def test_the_bound_by_its_definition(chain):
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data, chain=chain, noise=0.1)
    for samples in (1, 4):
        z = PathGuide(made, spec, samples=samples, generator=generator())(data.batch())
        path = GaussianPath(*made(spec, data.batch()))
        joint = spec.log_joint(data.batch(), z)
        joint = joint if samples == 1 else joint.mean(0)
        got = PathBound().bound(*setting(spec, data, made, samples=samples))
        same(got, joint + path.entropy())
        ratio = spec.log_joint(data.batch(), z) - path.log_prob(z.clone())
        ratio = ratio if samples == 1 else torch.logsumexp(ratio, 0) - math.log(samples)
        weighted = PathBound("importance").bound(*setting(spec, data, made, samples=samples))
        same(weighted, ratio)


def test_one_importance_weight_is_the_bound_of_pyro():
    """The same draw: value and gradients."""
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data, noise=0.1)
    parameters = [p for p in (*spec.parameters(), *made.parameters()) if p.numel()]

    def found(loss):
        value = loss.differentiable_loss(*setting(spec, data, made))
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        return value, [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]

    got, want = found(PathBound("importance")), found(Trace_ELBO())
    same(got[0], want[0])
    for one, other in zip(got[1], want[1], strict=True):
        same(one, other, rtol=1e-8, atol=1e-8)
    for kind in (Trace_ELBO(), TraceMeanField_ELBO()):
        assert kind.loss(*setting(spec, data, made)) == pytest.approx(float(want[0].detach()))


def test_the_entropy_form_has_the_mean_of_the_density_form():
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data, noise=0.1)
    with torch.no_grad():
        terms = bound_terms(*setting(spec, data, made, samples=4000), density=True)
    gap = terms.entropy + terms.log_guide
    error = gap.std(0) / math.sqrt(len(gap))
    assert (gap.mean(0).abs() < 3 * error).all()
    wanted = torch.tensor(LENGTHS) * 2 / 2.0  # the variance of half a sum of squares
    same(gap.var(0), wanted.double(), rtol=0.15, atol=0.0)


def test_training_by_pyro_itself():
    """SVI takes the bound and the parameters of Pyro's model, with shared parts."""
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data, noise=0.3)
    pyro.clear_param_store()
    guide = PathGuide(made, spec, samples=2, generator=generator())

    def registered(batch, **options):
        pyro.module("recognition", made)
        return guide(batch, **options)

    svi = SVI(to_pyro(spec), registered, pyro.optim.Adam({"lr": 1e-2}), PathBound())
    losses = [svi.step(data.batch()) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    pyro.clear_param_store()


def test_annealing_weighs_prior_and_entropy():
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data)
    terms = bound_terms(*setting(spec, data, made), density=True)
    got = PathBound().bound(*setting(spec, data, made), beta=0.3)
    same(got, terms.data + 0.3 * (terms.prior + terms.entropy))
    weighted = PathBound("importance").bound(*setting(spec, data, made), beta=0.3)
    same(weighted, terms.data + 0.3 * (terms.prior - terms.log_guide))


def test_tempered_likelihoods_count_by_their_exponents():
    spec = mixed_model()
    data = data_of(spec)
    made = started(spec, data)
    spec.observations["n"].tempering.fill_(2.5)
    z = PathGuide(made, spec, generator=generator())(data.batch())
    batch, path = data.batch(), GaussianPath(*made(spec, data.batch()))
    want = spec.dynamics.log_prob(z, batch.inputs, batch.length) + path.entropy()
    for name, observation in spec.observations.items():
        power = 2.5 if name == "n" else 1.0
        want = want + power * observation.log_prob(batch.modalities[name], z)
    guide = PathGuide(made, spec, generator=generator())
    same(PathBound().bound(PyroModel(spec, tempered=True), guide, batch), want)


# ---- linear-Gaussian models ---------------------------------------------------------------------
def closed(spec, batch, made, weight=None, **options):
    path = GaussianPath(*made(spec, batch, **options))
    weight = batch.time_mask.double() if weight is None else weight
    moments = path.mean, path.covariance(), path.cross_covariance()
    expected = expected_log_joint(spec, batch, *moments, weight)
    return expected + (path.entropy_terms() * weight).sum(-1)


def test_the_closed_bound_at_the_exact_posterior_is_the_evidence():
    spec = linear_model()
    data = data_of(spec)
    assert is_closed(spec, 1.0) and not is_closed(mixed_model(), 1.0)
    made = exact(started(spec, data))
    same(closed(spec, data.batch(), made), ps.smooth(spec, data).log_evidence, rtol=1e-8)
    faint = started(spec, data)
    assert (closed(spec, data.batch(), faint) < ps.smooth(spec, data).log_evidence).all()


@pytest.mark.parametrize("chain", ["model", "learned", "none"])
def test_the_closed_bound_is_the_mean_over_draws(chain):
    spec = linear_model()
    data = data_of(spec)
    made = started(spec, data, chain=chain, noise=0.2)
    z = PathGuide(made, spec, samples=4000, generator=generator())(data.batch())
    values = spec.log_joint(data.batch(), z) + GaussianPath(*made(spec, data.batch())).entropy()
    error = values.std(0) / math.sqrt(len(values))
    gap = values.mean(0) - closed(spec, data.batch(), made)
    assert (gap.abs() < 3 * error).all()


@pytest.mark.parametrize("chain", ["model", "learned", "none"])
def test_gradients_of_the_closed_bound_are_differences(chain):
    spec = linear_model()
    data = data_of(spec)
    batch, made = data.batch(), started(spec, data, chain=chain, noise=0.2)
    checked = [spec.dynamics.A, made.encoder.modalities["x"].factors, spec.dynamics.h, made.A]
    grads = torch.autograd.grad(closed(spec, batch, made).sum(), checked, allow_unused=True)
    for p, gradient in zip(checked, grads, strict=True):
        if gradient is None:
            assert p is made.A and chain != "learned"
            continue
        way = torch.randn(p.shape, generator=generator(2), dtype=torch.float64)
        values = []
        for size in (1e-5, -1e-5):
            with torch.no_grad():
                p.add_(size * way)
                values.append(closed(spec, batch, made).sum())
                p.sub_(size * way)
        same((gradient * way).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_importance_weights_come_to_the_evidence():
    spec = linear_model()
    data = data_of(spec)
    made = started(spec, data, noise=0.05)
    want = ps.smooth(spec, data).log_evidence
    with torch.no_grad():
        bounds = [
            PathBound("importance").bound(*setting(spec, data, made, samples=s))
            for s in (1, 10, 20_000)
        ]
        terms = bound_terms(*setting(spec, data, made, samples=20_000), density=True)
    elbo = closed(spec, data.batch(), made)
    assert (elbo < want).all()
    ratio = (terms.data + terms.prior - terms.log_guide - want).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert (error < 0.1).all()  # so that the comparison says something
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    assert ((bounds[-1] - want).abs() < 4 * error).all()
    groups = (terms.data + terms.prior - terms.log_guide).reshape(-1, 10, 3)
    ten = (torch.logsumexp(groups, 1) - math.log(10)).mean(0)
    assert (ten > elbo).all() and (ten < want).all()


# ---- windows ------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["closed", "drawn"])
@pytest.mark.parametrize("size", [1, 4])
def test_weighted_windows_add_up_to_the_bound(which, size):
    """Inner windows that tile the trials, with the trial as context."""
    spec = linear_model() if which == "closed" else mixed_model()
    data = data_of(spec)
    batch, made = data.batch(), started(spec, data, noise=0.1, network="conv")
    windows = BatchWindows(batch, steps=size, context=20)

    def bound(part, row, **options):
        if which == "closed":
            return closed(spec, part, made, **options)
        guide = _SamePath(made, spec, row)
        return PathBound().bound(PyroModel(spec), guide, part, **options)

    whole = bound(batch, torch.arange(3))
    for b, steps in enumerate(LENGTHS):
        total = 0.0
        for first in range(0, steps, size):
            window = windows.cut(torch.tensor([b]), torch.tensor([first]))
            assert int(window.weight.sum()) == min(size, steps - first)
            total = total + bound(
                window.batch, window.row, weight=window.weight, start=window.start
            )
        same(total, whole[b : b + 1])


class _SamePath(PathGuide):
    """Draws each trial from its own seed, so that windows of a trial share the path."""

    def __init__(self, made, spec, row):
        super().__init__(made, spec)
        self.row = row

    def __call__(self, batch, observed=True, *, weight=None, start=None):
        shift, diag, off, length = self.recognition(self.model, batch, start)
        draws = []
        for b, row in enumerate(self.row.tolist()):
            n, own = int(length[b]), generator(row)
            parts = shift[b : b + 1, :n], diag[b : b + 1, :n], off[b : b + 1, : n - 1]
            z = GaussianPath(*parts, generator=own).rsample()
            draws.append(torch.nn.functional.pad(z, (0, 0, 0, batch.steps - n)))
        value = torch.cat(draws)

        class Known(GaussianPath):
            def rsample(self, sample_shape=()):
                return value

        path = Known(shift, diag, off, length)
        with pyro.plate("trials", len(batch), dim=-1):
            return pyro.sample("z", path)


# ---- what is trained ----------------------------------------------------------------------------
def problem(engine, spec, data, **options):
    made = started(spec, data, network=engine.encoder)
    batch = data.batch()
    return PathTraining(engine, spec, made, batch, batch, **options)


def test_the_loss_is_minus_the_bound_per_step():
    spec = mixed_model()
    data = data_of(spec)
    options = {"warmup": 0.0, "samples": 3, "ridge": 0.0}
    engine = VariationalInference(encoder="none", dtype="float64", **options)
    work = problem(engine, spec, data, path=rough_path(spec, data))
    order = generator(7)
    rows = work.windows.draw(work.count, order).row
    assert rows.tolist() == [0, 1, 2]
    z = PathGuide(work.recognition, spec, samples=3, generator=order)(data.batch())
    entropy = GaussianPath(*work.recognition(spec, data.batch())).entropy()
    want = spec.log_joint(data.batch(), z).mean(0) + entropy
    same(work.loss(0.5, generator(7)), -want.sum() / sum(LENGTHS))


def test_a_warmup_teaches_the_recognition_only():
    spec = mixed_model()
    data = data_of(spec)
    engine = VariationalInference(encoder="none", warmup=0.5, dtype="float64")
    work = problem(engine, spec, data, path=rough_path(spec, data))
    mine = [p for p in work.parameters() if not _within(p, work.recognition)]
    for progress in (0.1, 0.6):
        grads = torch.autograd.grad(work.loss(progress, generator()), mine, allow_unused=True)
        assert any(g is not None and bool((g != 0).any()) for g in grads) == (progress > 0.5)
    one, two = (work.loss(p, generator()) for p in (0.1, 0.6))
    same(one, two)  # the model is the same, only its gradient is not there


def _within(parameter, module):
    return any(parameter is p for p in module.parameters())


def test_hiding_modalities_leaves_one_in_every_trial():
    spec = mixed_model()
    data = data_of(spec, lengths=(6,) * 40)
    engine = VariationalInference(encoder="none", drop=0.4, dtype="float64")
    work = problem(engine, spec, data)
    window = work.windows.draw(40, generator())
    order, gone = generator(1), []
    for _ in range(60):
        shown = work._without_some(window, order).batch
        hidden = [~m.mask.flatten(1).any(1) for m in shown.modalities.values()]
        gone.append(torch.stack(hidden))
        for (name, m), absent in zip(shown.modalities.items(), hidden, strict=True):
            before = window.batch.modalities[name].mask
            assert torch.equal(m.mask[~absent], before[~absent])
    gone = torch.stack(gone, 1).flatten(1).double()
    assert (gone.sum(0) < 3).all()
    share = 0.4 * (1 - 0.4**2)  # less the cases in which all would be hidden
    assert (gone.mean(1) - share).abs().max() < 4 * math.sqrt(share / gone.shape[1])
    found = work.recognition.encoder(spec, shown)
    for absent, part in zip(hidden, found.values(), strict=True):
        assert (part.shift[absent] == 0).all() and (part.precision[absent] == 0).all()


def test_held_noise_falls_from_first_to_last():
    spec = mixed_model()
    data = data_of(spec)
    engine = VariationalInference(encoder="none", process_noise=(0.1, 1e-3), dtype="float64")
    work = problem(engine, spec, data, path=rough_path(spec, data))
    for progress, want in ((0.0, 0.1), (0.5, 1e-2), (1.0, 1e-3)):
        work.loss(progress, generator())
        same(spec.dynamics.noise.variance, torch.full((2,), want, dtype=torch.float64))
    assert not spec.dynamics.noise.log_variance.requires_grad
    assert work.measures()["score"] == -1.0


def test_windows_of_training_are_unbiased():
    """Over all windows that may be drawn, with wide context: the bound of all data."""
    spec = linear_model()
    data = data_of(spec, lengths=(12, 8))
    engine = VariationalInference(encoder="none", window=4, dtype="float64", warmup=0.0)
    work = problem(engine, spec, data)
    windows = BatchWindows(data.batch(), steps=4, context=20)
    rows, inner = [], []
    for r, length in enumerate((12, 8)):
        rows += [r] * (length + 3)
        inner += range(-3, length)
    window = windows.cut(torch.tensor(rows), torch.tensor(inner))
    total = work.values(spec, window, 1, generator()).sum() * windows.scale(len(rows))
    same(total, closed(spec, data.batch(), work.recognition).sum())


def test_windows_reach_as_far_back_as_spike_histories():
    """Counts of inner steps have the same density in a window as in the whole trial."""
    basis = o.RaisedCosine(functions=2, longest_seconds=40.0)
    spec = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"n": o.Poisson(3, history=basis)})
    with torch.no_grad():
        spec.observations["n"].history_weight = -0.3 * np.ones((3, 2))
    data = spec.simulate(120, trials=1, seed=0)
    engine = VariationalInference(encoder="none", window=10, dtype="float64")
    work = problem(engine, spec, data)
    window = work.windows.cut(torch.tensor([0]), torch.tensor([70]))
    z = torch.randn(1, 120, 2, generator=generator(), dtype=torch.float64)
    first, steps = int(window.start[0]), window.batch.steps
    assert 0 < first <= 30
    n = spec.observations["n"]
    whole = n.log_prob_entries(data.batch().modalities["n"], z)
    part = n.log_prob_entries(window.batch.modalities["n"], z[:, first : first + steps])
    inner = window.weight[0] > 0
    same(part[0, inner], whole[0, 70:80])


def test_a_posterior_is_asked_for_another_bound():
    """Of a linear model: the exact guide knows the evidence, weights bring mean field closer."""
    spec = linear_model()
    data = data_of(spec)
    exact = ps.smooth(spec, data).log_evidence
    engine = VariationalInference(steps=1, checks=1, encoder="none", start="model")
    fit = engine.fit(spec.requires_grad_(False), data, progress=False)
    got = fit.posterior(data, bound="importance", draws=3)
    assert got.evidence_kind == "importance"
    torch.testing.assert_close(got.log_evidence, exact, rtol=0, atol=0.02)
    engine = VariationalInference(
        steps=150, checks=5, guide="mean-field", encoder="none", learning_rate=(3e-2, 1e-3)
    )
    rough = engine.fit(spec, data, progress=False)
    plain, few, many = (
        rough.posterior(data, **options).log_evidence.sum()
        for options in ({}, *({"bound": "importance", "draws": n} for n in (10, 3000)))
    )
    assert rough.posterior(data).evidence_kind == "elbo"
    assert plain < few < many < exact.sum() + 0.5
    for options in ({"bound": "exact"}, {"draws": 0}):
        with pytest.raises(PlssmError):
            fit.posterior(data, **options)
